"""What would another policy have earned? Off-policy evaluation from a log, by several estimators at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.bandit_figures import estimates
from fieldguide.decisions.decision import Decision, caution
from fieldguide.decisions.estimators import DM, DR, DRSIS, ESTIMATORS, IPS, SIS, Feedback, ratio
from fieldguide.decisions.intervals import intervals, standard_error, weight_diagnostics
from fieldguide.decisions.logs import BanditLog
from fieldguide.decisions.selected import top_actions

TRAINED_ON = "trained_on"
"""Key in ``DataFrame.attrs`` under which a policy says which rows of a log chose it."""
ROUNDING = 1e-4


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
    level: float = 0.95,
    interval: str = "bootstrap",
    resamples: int = 2000,
    seed: int = 0,
) -> Decision:
    """Estimate the value of a policy from the log of another, by several estimators side by side.

    Parameters
    ----------
    log : BanditLog
    policy : array or DataFrame [n, K], or [K]
        Probability of each action in each context (or in all contexts alike).
    estimators : sequence of str, or mapping of names to estimators, optional
        By default all that the rest of the input allows: "ips", "clipped", "snips"; with ``reward_model`` also "dm",
        "dr", "switch_dr", "shrinkage_dr"; with ``logging`` and ``top`` also "sis" and "dr_sis". See
        `fieldguide.decisions.estimators`.
    logging : array or DataFrame [n, K] or [K], optional
        The logging policy's probabilities of all actions.
    top : int, optional
        p: the selected set is the p actions that the logging policy takes most (of equal ones the first).
    reward_model : array or DataFrame [n, K], optional
        Predicted rewards; predict each row by a model that did not see it (`predict_rewards`).
    level : float
        Of the intervals.
    interval : {"bootstrap", "bernstein", "normal"}
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Decision
        ``table``, one row an estimator: ``value``, ``se``, ``low``, ``high``, ``over_logging`` (the ratio to the value of
        the logging policy in the log); the first row is the log's own mean reward, on policy. ``diagnostics``: of the
        weights, see `fieldguide.decisions.intervals.weight_diagnostics`; ``unsupported``: share of the policy on actions
        that occur nowhere in the log; ``set_mass``: its share on the selected set.

    Raises
    ------
    ValueError
        Naming the argument, row and action.

    Warns
    -----
    OptimisticValue
        If the policy says that rows of this log chose it.
    NoSupport
        If more than a tenth of the policy is on actions that do not occur, or k-hat is above its limit.

    Examples
    --------
    >>> log = BanditLog.of(action=[0, 1, 0, 1], reward=[0, 1, 0, 1], propensity=[0.5] * 4, actions=2)
    >>> evaluate_policy(log, [0.0, 1.0], interval="normal").table.loc["ips", "value"]
    1.0
    """
    shape = len(log), len(log.actions)
    pi = probabilities(policy, log, "policy")
    rho = None if logging is None else probabilities(logging, log, "logging")
    feedback = Feedback(
        reward=torch.tensor(log.reward),
        log_propensity=torch.tensor(np.log(log.propensity)),
        log_target=torch.tensor(np.take_along_axis(pi, log.action, 1)).log(),
        design=log.design,
    )
    selected = None
    if top is not None:
        if rho is None:
            raise ValueError("top needs logging, the probabilities of all actions under the logging policy")
        _agree(rho, log)
        selected = top_actions(rho, top)
        feedback.inside = torch.tensor(np.take_along_axis(selected, log.action, 1))
        feedback.target_mass = torch.tensor((pi * selected).sum(1))
        feedback.logging_mass = torch.tensor((rho * selected).sum(1))
    if reward_model is not None:
        q = _table(reward_model, shape, log, "reward_model")
        feedback.predicted, feedback.direct = torch.tensor(np.take_along_axis(q, log.action, 1)), torch.tensor((pi * q).sum(1))
        if selected is not None:
            kept = pi * selected
            feedback.direct_inside = torch.tensor((kept * q).sum(1) / np.maximum(kept.sum(1), 1e-300))
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
    seen = np.zeros(shape[1], dtype=bool)
    seen[np.unique(log.action)] = True
    diagnostics["unsupported"] = unsupported = float(pi[:, ~seen].sum(1).mean())
    diagnostics["set_mass"] = np.nan if selected is None else float((pi * selected).sum(1).mean())
    _warn(policy, log, diagnostics, unsupported)
    settings = {"rows": len(log), "items": log.action.shape[1], "actions": shape[1], "design": log.design, "top": top}
    settings |= {"level": level, "interval": interval, "resamples": resamples, "seed": seed}
    notes = ("values are per item; multiply by the items of a slate for the value of a slate.",) if log.action.shape[1] > 1 else ()
    return Decision(table, diagnostics, settings, notes, estimates)


def probabilities(policy: Any, log: BanditLog, name: str) -> np.ndarray:
    """Return a policy as probabilities float64 [n, K], checked; rows and columns of a table are found by name."""
    table = _table(policy, (len(log), len(log.actions)), log, name)
    bad = np.argwhere(~((table >= -ROUNDING) & (table <= 1 + ROUNDING)))
    if bad.size:
        row, a = bad[0]
        raise ValueError(f"{name}: probability of action {log.actions[a]!r} in row {log.rows[row]!r} is {table[row, a]}")
    total = table.sum(1)
    off = np.flatnonzero(np.abs(total - 1) > ROUNDING)
    if off.size:
        raise ValueError(f"{name}: probabilities of row {log.rows[off[0]]!r} sum to {total[off[0]]:.6g}, not to 1")
    return table.clip(0, 1) / total[:, None]


def _table(values: Any, shape: tuple[int, int], log: BanditLog, name: str) -> np.ndarray:
    if isinstance(values, pd.Series):
        values = values.to_frame().T.set_axis([0])
    if isinstance(values, pd.DataFrame):
        missing = log.actions.difference(values.columns)
        if len(missing):
            raise ValueError(f"{name} has no column for action {missing[0]!r}")
        values = values[list(log.actions)]
        if len(values) > 1 or shape[0] == 1:
            absent = log.rows.difference(values.index)
            if len(absent):
                raise ValueError(f"{name} has no row {absent[0]!r}")
            values = values.loc[log.rows]
        values = values.to_numpy()
    found = np.asarray(values, dtype=np.float64)
    if found.shape not in {shape, shape[1:], (1, shape[1])}:
        raise ValueError(f"{name} must be of shape {shape} or {shape[1:]} (rows x actions), not {found.shape}")
    found = np.broadcast_to(found, shape)
    bad = np.argwhere(~np.isfinite(found))
    if bad.size:
        raise ValueError(f"{name} of row {log.rows[bad[0, 0]]!r}, action {log.actions[bad[0, 1]]!r} is not a number")
    return found


def _agree(rho: np.ndarray, log: BanditLog) -> None:
    """The logging policy has to be the one that the log was drawn with."""
    said = np.take_along_axis(rho, log.action, 1)
    off = np.argwhere(np.abs(said - log.propensity) > 1e-3 * log.propensity + 1e-9)
    if off.size:
        row, item = off[0]
        raise ValueError(
            f"logging says {said[row, item]:.6g} for the action of row {log.rows[row]!r}, the log {log.propensity[row, item]:.6g}"
            ": sets and weights must come from the policy that drew the log"
        )


def _chosen(estimators: Any, log: Feedback) -> dict[str, IPS | DM]:
    if isinstance(estimators, Mapping):
        return dict(estimators)
    if estimators is None:
        fits = lambda e: (  # noqa: E731
            (log.inside is not None or not isinstance(e, SIS))
            and (log.predicted is not None or not isinstance(e, DM | DR | DRSIS))
            and (not isinstance(e, SIS) or e.norm == "coverage")
        )
        return {name: e for name, e in ESTIMATORS.items() if fits(e)}
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown:
        raise ValueError(f"no estimator {unknown[0]!r}; there are {', '.join(ESTIMATORS)}")
    return {name: ESTIMATORS[name] for name in estimators}


def _warn(policy: Any, log: BanditLog, diagnostics: pd.DataFrame, unsupported: float) -> None:
    trained = getattr(policy, "attrs", {}).get(TRAINED_ON)
    if trained is not None:
        both = log.rows.intersection(pd.Index(trained))
        if len(both):
            caution(
                f"{len(both)} of {len(log)} rows of this log chose the policy: its value here is optimistic; evaluate it "
                "on rows that it has not seen",
                OptimisticValue,
            )
    if unsupported > 0.1:
        caution(f"{unsupported:.0%} of the policy is on actions that the log never takes: nothing is known of them", NoSupport)
    poor = diagnostics.index[diagnostics["khat"] > diagnostics["khat_limit"]]
    if len(poor):
        khat = diagnostics.loc[poor[0], "khat"]
        caution(f"weights of {', '.join(poor)} have no usable tail (k-hat {khat:.2f}): estimate and interval may be far off", NoSupport)

