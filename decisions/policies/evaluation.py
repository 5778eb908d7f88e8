"""What would another policy have earned? Off-policy evaluation from a log, by several estimators at once."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.policies.action_embedding import Embedding
from fieldguide.decisions.policies.bandit_log import BanditLog
from fieldguide.decisions.policies.estimators import DM, ESTIMATORS, IPS, MIPS, SIS, Feedback
from fieldguide.decisions.policies.figures import estimates
from fieldguide.decisions.policies.intervals import METHODS, compared
from fieldguide.decisions.policies.policy import Policy, read_table
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, one_of
from fieldguide.inference.messages import caution


class OptimisticValue(UserWarning):
    """A policy is evaluated on rows that chose it: its value is overstated."""


class NoSupport(UserWarning):
    """The log hardly ever takes the actions of the policy, or its weights have no usable tail."""


def evaluate_policy(
    log: Any,
    policy: Any,
    *,
    estimators: Any = None,
    logging: Any = None,
    top: Any = None,
    reward_model: Any = None,
    embedding: Any = None,
    level: Any = 0.95,
    interval: Any = "bootstrap",
    reward_range: Any = None,
    resamples: Any = 2000,
    seed: Any = 0,
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
        Where fewer than ten contexts that count have another reward than most, resampling cannot say what was not seen:
        intervals are then exact ones of a binomial share (Clopper and Pearson 1934; rewards 0 and 1 that count alike),
        or empirical Bernstein bounds, and a note says so.
    reward_range : (float, float), optional
        Smallest and largest possible reward, for these. By default 0 and 1 where all rewards are 0 or 1, else those
        that were seen (a note says so).
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
    if not isinstance(log, BanditLog):
        raise TypeError(f"log must be a BanditLog (BanditLog.read makes one of a table), not {type(log).__name__}")
    one_of("interval", interval, METHODS)
    level, seed = checked_real("level", level, above=0, below=1), checked_seed(seed)
    resamples = checked_int("resamples", resamples, at_least=1)
    if not len(log):
        raise ValueError("the log has no rows: there is nothing to evaluate a policy by")
    if policy is None or isinstance(policy, str):
        raise TypeError(f"policy must be a table of probabilities, not {policy!r}")
    pi = Policy.read(policy, log.actions, log.rows)
    for argument, given in (("top", top), ("embedding", embedding)):
        if given is not None and logging is None:
            raise ValueError(f"{argument} needs logging, the probabilities of all actions under the logging policy")
    rho = None if logging is None else log.drawn_by(logging)
    if embedding is not None and not isinstance(embedding, Embedding):
        embedding = Embedding.of_categories(embedding, log)
    embedding = None if embedding is None else embedding.aligned(log)
    candidates = None if top is None else rho.top(top)
    q = None if reward_model is None else read_table(reward_model, log.actions, log.rows, "reward_model")
    masses = None if candidates is None else pi.among(candidates).probability.sum(1)
    unsupported = _unsupported(pi, rho, log)
    feedback = _feedback(log, pi, rho, embedding, candidates, q)
    chosen = _chosen(estimators, feedback)
    table, diagnostics, notes = compared(chosen, feedback, level, interval, resamples, seed, reward_range)
    diagnostics["unsupported"] = unsupported
    if embedding is not None:
        marginal = [name for name, e in chosen.items() if isinstance(e, MIPS)]
        diagnostics.loc[marginal, "unsupported"] = embedding.unseen(pi)
    diagnostics["set_mass"] = np.nan if masses is None else float(masses.mean())
    notes += _warn_of_rows(pi, log)
    _warn(diagnostics, len(log), unsupported, 0 if masses is None else int((masses == 0).sum()))
    items = log.action.shape[1]
    settings = {"rows": len(log), "items": items, "actions": len(log.actions), "design": log.design, "top": top}
    settings |= {"level": level, "interval": interval, "resamples": resamples, "seed": seed}
    per_item = "values are per item; multiply by the items of a slate for the value of a slate."
    return Decision(table, diagnostics, settings, ((per_item,) if items > 1 else ()) + notes, estimates)


def _feedback(
    log: BanditLog,
    pi: Policy,
    rho: Policy | None,
    embedding: Embedding | None,
    candidates: Policy | None,
    q: np.ndarray | None,
) -> Feedback:
    """What the estimators see of log, policies, embedding, selected set and predicted rewards [n, K]."""
    feedback = Feedback(
        reward=torch.tensor(log.reward),
        log_propensity=torch.tensor(np.log(log.propensity)),
        log_target=torch.tensor(pi.at(log.action)).log(),
        design=log.design,
    )
    if embedding is not None:
        feedback.target_embedding = torch.tensor(embedding.probability(pi))
        feedback.logging_embedding = torch.tensor(embedding.probability(rho))
    if q is not None:
        feedback.predicted = torch.tensor(np.take_along_axis(q, log.action, 1))
        feedback.direct = torch.tensor(pi.total(q))
    if candidates is not None:
        selected = pi.among(candidates)
        mass = selected.probability.sum(1)
        feedback.inside = torch.tensor(log.within(candidates).place >= 0)
        feedback.target_mass, feedback.logging_mass = torch.tensor(mass), torch.tensor(candidates.probability.sum(1))
        if q is not None:
            feedback.direct_inside = torch.tensor(selected.total(q) / np.maximum(mass, 1e-300))
    return feedback


def _unsupported(pi: Policy, rho: Policy | None, log: BanditLog) -> float:
    """Share of a policy on actions that are nowhere in the log, or that the logging policy never takes there."""
    occurs = np.zeros(len(log.actions))
    occurs[np.unique(log.action)] = 1
    whole = pi.probability.sum(1)
    share = float((whole - pi.total(occurs)).mean())
    return share if rho is None else max(share, float((whole - pi.on(rho)).mean()))


def _chosen(estimators: Any, log: Feedback) -> dict[str, IPS | DM]:
    if isinstance(estimators, Mapping):
        for name, estimator in estimators.items():
            if not isinstance(estimator, IPS | DM):
                raise TypeError(f"estimators: {name!r} is {estimator!r:.60}, not an estimator such as SNIPS()")
    if estimators is None:
        usual = {name: e for name, e in ESTIMATORS.items() if not isinstance(e, SIS) or e.norm == "coverage"}
        if log.design != "iid":
            usual.pop("mips")
        return {name: e for name, e in usual.items() if all(getattr(log, part) is not None for part in e.needs)}
    if isinstance(estimators, str) or not isinstance(estimators, Iterable):
        raise TypeError(f"estimators must be a list of names such as ['ips', 'snips'], not {estimators!r}")
    chosen = dict(estimators) if isinstance(estimators, Mapping) else {}
    for name in () if chosen else estimators:
        if not isinstance(name, str) or name not in ESTIMATORS:
            raise ValueError(f"no estimator {name!r}; there are {', '.join(ESTIMATORS)}")
        chosen[name] = ESTIMATORS[name]
    if not chosen:
        raise ValueError(f"estimators is empty: name some of {', '.join(ESTIMATORS)}")
    return chosen


def _warn_of_rows(policy: Policy, log: BanditLog) -> tuple[str, ...]:
    """Warn if rows of the log chose the policy; a note where they have no names that could tell."""
    if policy.trained_on is None:
        return ()
    if log.numbered:
        return ("the rows of this log have no names: if they chose the policy, its value here is optimistic.",)
    both = log.rows.intersection(policy.trained_on)
    if len(both):
        caution(
            f"{len(both)} of {len(log)} rows of this log chose the policy: its value here is optimistic; evaluate "
            "it on rows that it has not seen",
            OptimisticValue,
        )
    return ()


def _warn(diagnostics: pd.DataFrame, rows: int, unsupported: float, undefined: int) -> None:
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
    if undefined:
        caution(
            f"in {undefined} of {rows} contexts the policy takes no action of the selected set: restricted to it, "
            "it is not defined there, and they count as zero",
            NoSupport,
        )
