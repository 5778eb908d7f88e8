"""What would another policy have earned? Off-policy evaluation from a log, by several estimators at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decision import Decision, caution
from fieldguide.decisions.messages import named
from fieldguide.decisions.policies.action_embedding import Embedding
from fieldguide.decisions.policies.bandit_log import BanditLog
from fieldguide.decisions.policies.estimators import DM, ESTIMATORS, IPS, MIPS, SIS, Feedback, ratio
from fieldguide.decisions.policies.figures import estimates
from fieldguide.decisions.policies.intervals import intervals, standard_error, weight_diagnostics
from fieldguide.decisions.policies.policy import Policy, read_table


class OptimisticValue(UserWarning):
    """A policy is evaluated on rows that chose it: its value is overstated."""


class NoSupport(UserWarning):
    """The log hardly ever takes the actions of the policy, or its weights have no usable tail."""


def evaluate_policy(
    log: BanditLog,
    policy: Any,
    *,
    estimators: Sequence[str] | Mapping[str, IPS | DM] | None = None,
    logging: Any = None,
    top: int | None = None,
    reward_model: Any = None,
    embedding: Any = None,
    level: float = 0.95,
    interval: str = "bootstrap",
    resamples: int = 2000,
    seed: int = 0,
) -> Decision:
    """Estimate the value of a policy from the log of another, by several estimators side by side.

    Parameters
    ----------
    log : BanditLog
    policy : array or DataFrame [n, K], array or Series [K], or Policy
        Probability of each action in each context (or in all contexts alike). A table can say in
        ``attrs["trained_on"]``, and a `Policy` in ``trained_on``, which rows of a log chose it.
    estimators : sequence of str, or mapping of names to estimators, optional
        By default all that the rest of the input allows: "ips", "clipped", "snips", "translated"; with
        ``reward_model`` also "dm", "dr", "switch_dr", "shrinkage_dr"; with ``logging`` and ``top`` also "sis" and
        "dr_sis"; with ``logging`` and ``embedding`` also "mips". See `fieldguide.decisions.policies.estimators`.
    logging : array, DataFrame or Policy, optional
        The logging policy's probabilities of all actions.
    top : int, optional
        p: the selected set is the p actions that the logging policy takes most (of equal ones the first).
    reward_model : array or DataFrame [n, K], optional
        Predicted rewards; predict each row by a model that did not see it (`predict_rewards`).
    embedding : Series or array [K], DataFrame or array [K, D], or Embedding, optional
        What actions have in common: the category of each, or several; see `fieldguide.decisions.Embedding` for
        embeddings that the action does not fix.
    level : float
        Of the intervals.
    interval : {"bootstrap", "bernstein", "normal"}
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Decision
        ``table``, one row an estimator: ``value``, ``se``, ``low``, ``high``, ``over_logging`` (the ratio to the
        value of the logging policy in the log); the first row is the log's own mean reward, on policy.
        ``diagnostics``: of the weights, see `fieldguide.decisions.policies.intervals.weight_diagnostics`;
        ``unsupported``: share of the policy on actions (for "mips": on embeddings) that occur nowhere in the log or,
        with ``logging``, that the logging policy never takes in the context, if that is more; ``set_mass``: its share
        on the selected set.

    Raises
    ------
    ValueError
        Naming the argument, row and action.

    Warns
    -----
    OptimisticValue
        If the policy says that rows of this log chose it.
    NoSupport
        If more than a tenth of the policy is on actions that are not taken, if it takes no action of the selected set
        in some context, or if k-hat is above its limit.

    Examples
    --------
    >>> log = BanditLog.of(action=[0, 1, 0, 1], reward=[0, 1, 0, 1], propensity=[0.5] * 4, actions=2)
    >>> float(evaluate_policy(log, [0.0, 1.0], interval="normal").table.loc["ips", "value"])
    1.0
    """
    pi = Policy.read(policy, log.actions, log.rows)
    feedback = Feedback(
        reward=torch.tensor(log.reward),
        log_propensity=torch.tensor(np.log(log.propensity)),
        log_target=torch.tensor(pi.at(log.action)).log(),
        design=log.design,
    )
    kept = alike = None
    for argument, given in (("top", top), ("embedding", embedding)):
        if given is not None and logging is None:
            raise ValueError(f"{argument} needs logging, the probabilities of all actions under the logging policy")
    rho = None if logging is None else Policy.read(logging, log.actions, log.rows, "logging")
    if rho is not None:
        _agree(rho, log)
    if embedding is not None:
        alike = embedding if isinstance(embedding, Embedding) else Embedding.of_categories(embedding, log)
        feedback.target_embedding = torch.tensor(alike.probability(pi))
        feedback.logging_embedding = torch.tensor(alike.probability(rho))
    if top is not None:
        candidates = rho.top(top)
        feedback.inside = torch.tensor(candidates.place(log.action) >= 0)
        kept = Policy(candidates.codes, _among(pi, candidates), log.actions, log.rows)
        feedback.target_mass = torch.tensor(kept.probability.sum(1))
        feedback.logging_mass = torch.tensor(candidates.probability.sum(1))
    if reward_model is not None:
        q = read_table(reward_model, log.actions, log.rows, "reward_model")
        feedback.predicted, feedback.direct = (
            torch.tensor(np.take_along_axis(q, log.action, 1)),
            torch.tensor(pi.total(q)),
        )
        if kept is not None:
            feedback.direct_inside = torch.tensor(kept.total(q) / np.maximum(kept.probability.sum(1), 1e-300))
    chosen = _chosen(estimators, feedback)
    terms = {"logging": (feedback.reward.mean(1), None)} | {name: e.terms(feedback) for name, e in chosen.items()}
    weights = {name: weight_diagnostics(e, feedback) for name, e in chosen.items()}
    ends = intervals(list(terms.values()), level, interval, resamples=resamples, seed=seed)
    rows = [
        {"value": ratio(top, bottom), "se": standard_error(top, bottom), "low": low, "high": high}
        for (top, bottom), (low, high) in zip(terms.values(), ends, strict=True)
    ]
    table = pd.DataFrame(rows, index=pd.Index(list(terms), name="estimator"))
    own = table.loc["logging", "value"]
    table["over_logging"] = table["value"] / own if own else np.nan
    diagnostics = pd.DataFrame.from_dict(weights, orient="index").rename_axis("estimator")
    seen = np.zeros(len(log.actions))
    seen[np.unique(log.action)] = 1
    unsupported = float((pi.probability.sum(1) - pi.total(seen)).mean())
    if rho is not None:
        unsupported = max(unsupported, float((pi.probability.sum(1) - pi.on(rho)).mean()))
    diagnostics["unsupported"] = unsupported
    if alike is not None:
        marginal = [name for name, e in chosen.items() if isinstance(e, MIPS)]
        diagnostics.loc[marginal, "unsupported"] = alike.unseen(pi)
    diagnostics["set_mass"] = np.nan if kept is None else float(kept.probability.sum(1).mean())
    _warn(pi, log, diagnostics, unsupported)
    if kept is not None and (outside := int((feedback.target_mass == 0).sum())):
        caution(
            f"in {outside} of {len(log)} contexts the policy takes no action of the selected set: restricted to it, it "
            "is not defined there, and they count as zero",
            NoSupport,
        )
    settings = {
        "rows": len(log),
        "items": log.action.shape[1],
        "actions": len(log.actions),
        "design": log.design,
        "top": top,
    }
    settings |= {"level": level, "interval": interval, "resamples": resamples, "seed": seed}
    notes = (
        ("values are per item; multiply by the items of a slate for the value of a slate.",)
        if log.action.shape[1] > 1
        else ()
    )
    return Decision(table, diagnostics, settings, notes, estimates)


def _agree(rho: Policy, log: BanditLog) -> None:
    """The logging policy has to be the one that the log was drawn with."""
    said = rho.at(log.action)
    off = np.argwhere(np.abs(said - log.propensity) > 1e-3 * log.propensity + 1e-9)
    if off.size:
        row, item = off[0]
        raise ValueError(
            f"logging says {said[row, item]:.6g} for the action of row {named(log.rows, row)}, the log "
            f"{log.propensity[row, item]:.6g}: sets and weights must come from the policy that drew the log"
        )


def _among(policy: Policy, candidates: Policy) -> np.ndarray:
    """Probabilities [n, p] of the candidates under a policy."""
    return policy.at(candidates.codes)


def _chosen(estimators: Any, log: Feedback) -> dict[str, IPS | DM]:
    if isinstance(estimators, Mapping):
        return dict(estimators)
    if estimators is None:
        usual = {name: e for name, e in ESTIMATORS.items() if not isinstance(e, SIS) or e.norm == "coverage"}
        if log.design != "iid":
            usual.pop("mips")
        return {name: e for name, e in usual.items() if all(getattr(log, part) is not None for part in e.needs)}
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown:
        raise ValueError(f"no estimator {unknown[0]!r}; there are {', '.join(ESTIMATORS)}")
    return {name: ESTIMATORS[name] for name in estimators}


def _warn(policy: Policy, log: BanditLog, diagnostics: pd.DataFrame, unsupported: float) -> None:
    if policy.trained_on is not None:
        both = log.rows.intersection(policy.trained_on)
        if len(both):
            caution(
                f"{len(both)} of {len(log)} rows of this log chose the policy: its value here is optimistic; evaluate "
                "it on rows that it has not seen",
                OptimisticValue,
            )
    if unsupported > 0.1:
        caution(
            f"{unsupported:.0%} of the policy is on actions that the log never takes: nothing is known of them",
            NoSupport,
        )
    poor = diagnostics.index[diagnostics["khat"] > diagnostics["khat_limit"]]
    if len(poor):
        khat = diagnostics.loc[poor[0], "khat"]
        caution(
            f"weights of {', '.join(poor)} have no usable tail (k-hat {khat:.2f}): estimate and interval may be far "
            "off",
            NoSupport,
        )
