"""The value of a policy from the log of another, as an objective: off-policy learning by the shared loop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, set_fields
from fieldguide.inference.step import Step


@dataclass(frozen=True)
class OffPolicyValue:
    """Minus the estimated value of a policy on logged rewards, ``-mean(w (r - translation))``, ``w = pi / rho``.

    For any program with a deterministic site ``log_policy`` [B, p], the log probabilities of p candidate actions,
    and the fields ``position`` [B, l] (place of each logged action among them, -1 outside), ``reward`` and
    ``weight`` [B, l] (what a unit of policy counts for: 1 / propensity, or a slate's coefficient). Logged actions
    outside the candidates count for nothing, but their context stays in the mean: so the value is that of the policy
    that is deployed, which lives on the candidates.

    Parameters
    ----------
    translation : float
        Subtracted from the rewards (BanditNet, Joachims et al. 2018): with the value itself it is the stationary
        point of the self-normalised estimate. Over all actions a positive one pushes the policy to what was never
        logged; among candidates that the log covers it does not.
    distinct : int
        m: maximise the expected number of different rewarded actions in m draws, with ``1 - (1 - pi)^m`` for pi. It
        keeps a policy that ranks from collapsing onto one action.
    cap : float, optional
        Largest weight.
    variance : float
        Subtracts this times the standard error of the minibatch's mean (counterfactual risk minimisation, Swaminathan
        and Joachims 2015).
    kl : float
        Adds this times the divergence from the logging policy on the candidates (field ``log_propensity`` [B, p]).

    Examples
    --------
    >>> OffPolicyValue(translation=0.2).distinct
    1
    """

    translation: float = 0.0
    distinct: int = 1
    cap: float | None = None
    variance: float = 0.0
    kl: float = 0.0

    def __post_init__(self) -> None:
        said = "OffPolicyValue: {}".format
        set_fields(
            self,
            translation=checked_real(said("translation"), self.translation),
            distinct=checked_int(said("distinct"), self.distinct, 1),
            cap=None if self.cap is None else checked_real(said("cap"), self.cap, above=0),
            variance=checked_real(said("variance"), self.variance, at_least=0),
            kl=checked_real(said("kl"), self.kl, at_least=0),
        )

    def __call__(self, step: Step) -> Tensor:
        log_policy = policy_of(step)
        batch = step.batch
        inside = batch["position"] >= 0
        log_pi = log_policy.gather(1, batch["position"].clamp(min=0))
        share = (
            log_pi.exp() if self.distinct == 1 else -torch.expm1(self.distinct * torch.log1p(-_below_one(log_pi.exp())))
        )
        weight = torch.where(inside, share * batch["weight"], 0.0)
        if self.cap is not None:
            weight = weight.clamp(max=self.cap)
        terms = (weight * (batch["reward"] - self.translation)).mean(1)
        loss = -terms.mean()
        if self.variance and len(terms) > 1:
            loss = loss + self.variance * ((terms.var() + 1e-12) / (step.total or len(terms))) ** 0.5
        if self.kl:
            logging = torch.log_softmax(batch["log_propensity"], -1)
            loss = loss + self.kl * (log_policy.exp() * (log_policy - logging)).sum(1).mean()
        step.log("value", (weight * batch["reward"]).mean())
        step.log("weight", weight.mean())
        return loss


def policy_of(step: Step) -> Tensor:
    """Return the site ``log_policy`` [B, p] of a step's program, or say that it has none."""
    draws = step.weights(1).draws
    if "log_policy" not in draws:
        raise KeyError(
            f"{type(step.program).__name__} has no site 'log_policy', the log probabilities of candidate actions"
        )
    log_policy = draws["log_policy"]
    return log_policy.reshape(log_policy.shape[-2:])


def _below_one(share: Tensor) -> Tensor:
    return share.clamp(max=1 - torch.finfo(share.dtype).eps)
