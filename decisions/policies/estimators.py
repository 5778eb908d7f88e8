"""Off-policy estimators: what a policy would have earned, from a log of another (pure tensors, any device).

Each turns every context into one term; its value is the mean of the terms, or a ratio of two means. So they share
their standard errors, intervals and diagnostics (`fieldguide.decisions.policies.intervals`), and each is an unbiased or
biased statement about a stated target that `fieldguide.decisions.policies.exact_moments` can enumerate.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fieldguide.decisions.policies.slates import SLATES, coefficients
from fieldguide.inference.checks.arguments import checked_real, one_of

ROUNDING = 1e-12
"""By how much of itself a weight may be above a threshold through rounding alone."""
NORMS = ("coverage", "truncated", "none", "count")
NEEDED = {
    "predicted": "a reward model",
    "direct": "a reward model",
    "direct_inside": "a reward model",
    "target_embedding": "an embedding of the actions, and the logging policy",
    "logging_embedding": "an embedding of the actions, and the logging policy",
}
"""What an optional part of `Feedback` comes from, where it is not a selected set of actions."""


@dataclass
class Feedback:
    """What an estimator sees of a log and of a policy: n contexts with l logged actions each, float64.

    Attributes
    ----------
    reward : Tensor [n, l]
    log_propensity : Tensor [n, l]
        Log probability of each logged action in one draw of the logging policy.
    log_target : Tensor [n, l]
        The same of the policy to be evaluated; minus infinity where it never takes the action.
    design : {"iid", "plackett_luce"}
        How slates were drawn.
    inside : bool Tensor [n, l], optional
        Whether the logged action is in the selected set (the top p of the logging policy); all are by default.
    target_mass, logging_mass : Tensor [n], optional
        Probability of the selected set under each policy; 1 by default.
    predicted : Tensor [n, l], optional
        Reward of the logged actions by a model.
    direct : Tensor [n], optional
        The model's value of the policy, ``sum_a pi(a | x) q(x, a)``.
    direct_inside : Tensor [n], optional
        The same for the policy restricted to the selected set, ``sum_{a in set} pi(a | x) q(x, a) / pi(set | x)``.
    target_embedding, logging_embedding : Tensor [n, l], optional
        Probability of the embedding that came with each logged action, under each policy (`Embedding.probability`).
    """

    reward: Tensor
    log_propensity: Tensor
    log_target: Tensor
    design: str = "iid"
    inside: Tensor | None = None
    target_mass: Tensor | None = None
    logging_mass: Tensor | None = None
    predicted: Tensor | None = None
    direct: Tensor | None = None
    direct_inside: Tensor | None = None
    target_embedding: Tensor | None = None
    logging_embedding: Tensor | None = None

    def need(self, name: str, who: str) -> Tensor:
        """Return an optional part, or say what it is needed for."""
        part = getattr(self, name)
        if part is None:
            raise ValueError(f"{who} needs {NEEDED.get(name, 'a selected set of actions')}")
        return part


@dataclass(frozen=True)
class IPS:
    """Inverse propensity scoring, ``mean(w r)``, ``w = pi / rho``: unbiased where the log covers the policy.

    Parameters
    ----------
    slates : {"murthy", "des_raj"}
        Weights of slates drawn without replacement, see `fieldguide.decisions.policies.slates`.
    """

    slates: str = "murthy"
    needs: ClassVar[tuple[str, ...]] = ()
    """Optional parts of `Feedback` without which there is no estimate."""

    def __post_init__(self) -> None:
        one_of(f"{type(self).__name__}: slates", self.slates, SLATES)

    def weights(self, log: Feedback) -> Tensor:
        """Return the weight of each logged item [n, l]; the mean over the slate of weight times reward is the term."""
        shares = coefficients(log.log_propensity, log.design, self.slates) * log.reward.shape[1]
        return log.log_target.double().exp() * shares

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        """Return the terms [n], and those of the denominator where the value is a ratio."""
        return (self.weights(log) * log.reward).mean(1), None


@dataclass(frozen=True)
class ClippedIPS(IPS):
    """Inverse propensity scoring with weights of at most ``cap``: biased (down, for rewards above 0), less variable."""

    cap: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_real("ClippedIPS: cap", self.cap, above=0, infinite=True)

    def weights(self, log: Feedback) -> Tensor:
        return super().weights(log).clamp(max=self.cap)


@dataclass(frozen=True)
class SNIPS(IPS):
    """Self-normalised, ``sum(w r) / sum(w)``: consistent, within the range of the rewards, moving with their shift."""

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        w = self.weights(log)
        return (w * log.reward).mean(1), w.mean(1)


@dataclass(frozen=True)
class Translated(IPS):
    """Inverse propensity scoring of translated rewards, ``t + mean(w (r - t))`` (BanditNet, Joachims et al. 2018).

    Unbiased for every fixed t where the log covers the policy, and least variable near its value.

    Parameters
    ----------
    translation : float, optional
        t; by default the fixed point, the t that is its own estimate. That is the self-normalised value, which this
        writes as a mean: maximising ``mean(w (r - t))`` at this t is maximising the ratio.
    """

    translation: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.translation is not None:
            checked_real("Translated: translation", self.translation)

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        w = self.weights(log)
        t = float((w * log.reward).mean() / w.mean()) if self.translation is None else self.translation
        return t + (w * (log.reward - t)).mean(1), None


@dataclass(frozen=True)
class MIPS(IPS):
    """Marginalised weights, ``mean(w r)`` with ``w = pi(e | x) / rho(e | x)`` of the action's embedding e.

    Unbiased where the log covers the embeddings (not the actions) of the policy, and actions with one embedding are
    rewarded alike; then never more variable than `IPS` (Saito and Joachims 2022). For independent draws.
    """

    needs = ("target_embedding", "logging_embedding")

    def weights(self, log: Feedback) -> Tensor:
        if log.design != "iid" and log.reward.shape[1] > 1:
            raise ValueError("MIPS is for independent draws, not for slates without replacement")
        return log.need("target_embedding", "MIPS") / log.need("logging_embedding", "MIPS")


@dataclass(frozen=True)
class DM:
    """The direct method: the reward model's value of the policy, as good as the model."""

    needs: ClassVar[tuple[str, ...]] = ("direct",)

    def weights(self, log: Feedback) -> Tensor:
        return torch.zeros_like(log.reward)

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        return log.need("direct", "DM"), None


@dataclass(frozen=True)
class DR(IPS):
    """Doubly robust, ``direct + w (r - q)``: unbiased if the propensities or the reward model are right."""

    needs = ("predicted", "direct")

    def residual_weights(self, log: Feedback) -> Tensor:
        """Return the weight of each residual [n, l]."""
        return self.weights(log)

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        residual = log.reward - log.need("predicted", type(self).__name__)
        return log.need("direct", type(self).__name__) + (self.residual_weights(log) * residual).mean(1), None


@dataclass(frozen=True)
class SwitchDR(DR):
    """Doubly robust, but by the reward model alone where the weight is above a threshold (Wang et al. 2017)."""

    threshold: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_real("SwitchDR: threshold", self.threshold, at_least=0, infinite=True)

    def residual_weights(self, log: Feedback) -> Tensor:
        w = self.weights(log)
        return torch.where(w <= self.threshold * (1 + ROUNDING), w, 0.0)


@dataclass(frozen=True)
class ShrinkageDR(DR):
    """Doubly robust with weights shrunk to ``s w / (w^2 + s)``, from the model (s = 0) to `DR` (Su et al. 2020)."""

    strength: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_real("ShrinkageDR: strength", self.strength, at_least=0)

    def residual_weights(self, log: Feedback) -> Tensor:
        w = self.weights(log)
        return self.strength * w / (w**2 + self.strength) if self.strength > 0 else torch.zeros_like(w)


@dataclass(frozen=True)
class SIS(IPS):
    """Selective importance sampling (Lopez, Dhillon and Jordan 2021): only actions in a selected set count.

    The set is the top p actions of the logging policy. With pi_set for the policy restricted to it and renormalised:

    Parameters
    ----------
    norm : {"coverage", "truncated", "none", "count"}
        - "coverage": ``1(a in set) pi_set(a) / rho(a)``: unbiased for pi_set, the policy that is deployed.
        - "truncated": ``1(a in set) pi(a) / rho(a)``: the policy's own value, less what it earns outside the set.
        - "none": both policies conditioned on the set; its expectation is that of pi_set weighted by rho(set).
        - "count": that divided by the share of logged actions inside.

        The last two are for independent draws.
    """

    norm: str = "coverage"
    needs = ("inside", "target_mass", "logging_mass")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("SIS: norm", self.norm, NORMS)

    def weights(self, log: Feedback) -> Tensor:
        w = torch.where(log.need("inside", "SIS"), super().weights(log), 0.0)
        if self.norm == "truncated":
            return w
        w = w / log.need("target_mass", "SIS").clamp(min=1e-300)[:, None]
        if self.norm == "coverage":
            return w
        if log.design != "iid":
            raise ValueError(f"SIS(norm={self.norm!r}) is for independent draws; use norm='coverage' for slates")
        return w * log.need("logging_mass", "SIS")[:, None]

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        w = self.weights(log)
        if self.norm == "count":
            return (w * log.reward).mean(1), log.need("inside", "SIS").double().mean(1)
        return (w * log.reward).mean(1), None


@dataclass(frozen=True)
class DRSIS(SIS):
    """Selective importance sampling with a reward model on the set: unbiased for pi_set, less variable than `SIS`."""

    needs = (*SIS.needs, "predicted", "direct_inside")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "coverage":
            raise ValueError("DRSIS is defined for norm='coverage'")

    def terms(self, log: Feedback) -> tuple[Tensor, Tensor | None]:
        residual = log.reward - log.need("predicted", "DRSIS")
        return log.need("direct_inside", "DRSIS") + (self.weights(log) * residual).mean(1), None


ESTIMATORS: dict[str, IPS | DM] = {
    "ips": IPS(),
    "clipped": ClippedIPS(),
    "snips": SNIPS(),
    "translated": Translated(),
    "mips": MIPS(),
    "dm": DM(),
    "dr": DR(),
    "switch_dr": SwitchDR(),
    "shrinkage_dr": ShrinkageDR(),
    "sis": SIS(),
    "sis_truncated": SIS(norm="truncated"),
    "sis_none": SIS(norm="none"),
    "sis_count": SIS(norm="count"),
    "dr_sis": DRSIS(),
}
"""Estimators by short name, with their usual settings."""


def ratio(top: Tensor, bottom: Tensor | None) -> float:
    """Return the mean of terms, or the ratio of two; not a number where the denominator is zero."""
    return float(top.mean()) if bottom is None else float(top.mean() / bottom.mean())


def value(estimator: IPS | DM, log: Feedback) -> float:
    """Return the estimate of a policy's value."""
    return ratio(*estimator.terms(log))
