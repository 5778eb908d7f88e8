"""From a log to a policy: the data of `poxm`, how many actions to keep, and a value on rows that did not choose it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions import BanditLog, Decision, NoSupport, evaluate_policy
from fieldguide.decisions.policies.bandit_log import Within, read_context
from fieldguide.decisions.policies.estimators import ESTIMATORS
from fieldguide.decisions.policies.policy import Policy, labels
from fieldguide.inference import Fit, OffPolicyValue, fit
from fieldguide.inference.checks.aligning import unnamed
from fieldguide.inference.checks.arguments import checked_flag, checked_int, checked_real, checked_seed, one_of
from fieldguide.inference.checks.labels import label_codes, label_texts
from fieldguide.inference.checks.rounding import SLACK
from fieldguide.inference.messages import caution

QUANTILES = (0.5, 0.8, 0.9, 0.95)
"""Shares of the rewarded logged items that the sizes tried by ``top="auto"`` cover."""


def policy_data(context: ArrayLike, logging: Policy, log: BanditLog | None = None) -> anndata.AnnData:
    """Return the data of the entry ``poxm``.

    Parameters
    ----------
    context : array or sparse matrix [n, F]
    logging : Policy
        The logging policy's candidates (`Policy.top`).
    log : BanditLog, optional
        What was logged; without it the data are contexts to be decided on.

    Returns
    -------
    AnnData
        ``X``: contexts; ``obsm``: ``candidates`` and their ``log_propensity`` [n, p]; with a log also ``position``,
        ``reward`` and ``weight`` [n, l].
    """
    if logging.codes is None:
        raise ValueError("logging lists all actions: choose candidates by logging.top(p)")
    data = anndata.AnnData(context, obs=pd.DataFrame(index=logging.rows.astype(str)))
    data.obsm["candidates"] = logging.codes
    data.obsm["log_propensity"] = np.log(np.maximum(logging.probability, 1e-30)).astype(np.float32)
    if log is not None:
        within = log.within(logging)
        data.obsm["position"], data.obsm["reward"], data.obsm["weight"] = within.place, log.reward, within.share
    return data


@dataclass
class LearnedPolicy:
    """A policy that a log taught, and what is known of it.

    Attributes
    ----------
    fit : Fit
        Of the entry ``poxm``.
    top : int
        p, the candidates of each context.
    table : DataFrame
        One row a size that was tried: its value on the held-out part of the log, with interval.
    evaluation : Decision
        All estimators on the rows that chose neither the policy nor p; see `fieldguide.decisions.evaluate_policy`.
    actions : Index [K]
    trained_on : Index
        Names of the rows that chose it.
    features : Index [F], optional
        Names of the columns of the contexts, where these were a table with named columns.
    """

    fit: Fit
    top: int
    table: pd.DataFrame
    evaluation: Decision
    actions: pd.Index
    trained_on: pd.Index
    features: pd.Index | None = None

    def predict(self, context: Any, logging: Any, rows: Sequence | pd.Index | None = None) -> Policy:
        """Return the policy [n, p] in new contexts.

        Parameters
        ----------
        context : array or DataFrame [n, F]
            Columns of a table are found by the names that they had in training; those of an array by position.
        logging : Policy, DataFrame or array [n, K]
            The logging policy there: its best actions are the candidates.
        rows : sequence, optional
            Names of the contexts; by default those of a DataFrame's rows.

        Raises
        ------
        ValueError
            Naming a column of the contexts that is missing or stands twice.
        """
        if rows is None and isinstance(context, pd.DataFrame):
            rows = context.index
        context = _as_learnt(context, self.features)
        context = context if hasattr(context, "tocsr") else read_context(context)
        index = labels(np.shape(context)[0] if rows is None else rows, "rows")
        if len(index) != np.shape(context)[0]:
            raise ValueError(f"rows are {len(index)} names for {np.shape(context)[0]} contexts")
        candidates = Policy.read(logging, self.actions, index, "logging", whole=False).top(self.top)
        return replace(policy_of(self.fit, context, candidates), trained_on=self.trained_on)


def _features(context: Any) -> pd.Index | None:
    """Names of the columns of a table; None where it has none, or pandas numbered them."""
    named = isinstance(context, pd.DataFrame) and not unnamed(context.columns)
    return pd.Index(list(context.columns), tupleize_cols=False) if named else None


def _as_learnt(context: Any, features: pd.Index | None) -> Any:
    """Contexts with the columns that the policy was learnt from, in their order: by name where both have names."""
    named = _features(context)
    if named is None or features is None or named.equals(features):
        return context
    codes, wanted = label_codes("context", named, label_texts(features).tolist()), np.arange(len(features))
    absent = np.setdiff1d(wanted, codes)
    if absent.size:
        raise ValueError(
            f"context has no column {features[absent[0]]!r}, which the policy was learnt from; there are "
            f"{', '.join(map(str, named[:20]))}"
        )
    known, places, counts = np.unique(codes, return_index=True, return_counts=True)
    if (counts[known >= 0] > 1).any():
        raise ValueError(f"context has several columns {features[known[(known >= 0) & (counts > 1)][0]]!r}")
    return context.iloc[:, places[known >= 0]]


def policy_of(fitted: Fit, context: ArrayLike, candidates: Policy) -> Policy:
    """Return what a fit of ``poxm`` does in some contexts, among given candidates."""
    posterior = fitted.posterior(policy_data(context, candidates), particles=1)
    parts = [values["log_policy"].reshape(len(rows), -1) for rows, _, values in posterior.chunks()]
    probability = torch.cat(parts).double().exp().cpu().numpy()
    return Policy(candidates.codes, probability, candidates.actions, candidates.rows)


def fit_self_normalised(
    data: anndata.AnnData,
    objective: OffPolicyValue | None = None,
    *,
    rounds: Any = 8,
    tolerance: Any = 0.01,
    **settings,
) -> tuple[Fit, pd.DataFrame]:
    """Fit ``poxm`` with the translation of BanditNet at its fixed point: the self-normalised value that it leads to.

    The self-normalised estimate is a ratio, which no minibatch has a part of. Its gradient is that of ``mean(w (r -
    t))`` where t is the estimate itself. So, from zero: fit with t, estimate the policy on the training rows, take that
    for t, and start again with the same seed (Dinkelbach 1967), until t changes no more. No grid of translations, no
    held-out rows.

    Parameters
    ----------
    data : AnnData
        Of `policy_data`, with a log.
    objective : OffPolicyValue, optional
        Its translation is replaced.
    rounds : int
        At most so many fits.
    tolerance : float
        Relative change of the translation at which to stop.
    **settings
        For `fieldguide.inference.fit`.

    Returns
    -------
    Fit
        The last.
    DataFrame
        One row a fit: ``translation``, the self-normalised ``value`` that it led to, and the ``mean_weight``.

    Warns
    -----
    NoSupport
        If the mean weight leaves [0.5, 2], where the policy has moved to what was hardly ever logged: the fit before
        is returned. If the fixed point was not met.
    """
    rounds = checked_int("rounds", rounds, at_least=1)
    tolerance = checked_real("tolerance", tolerance, at_least=0)
    _check_objective(objective)
    base, rows, previous, translation = objective or OffPolicyValue(), [], None, 0.0
    for _ in range(rounds):
        fitted = _whole(fit("poxm", data, objective=replace(base, translation=translation), **settings))
        value, weight = _logged(fitted)
        rows.append({"translation": translation, "value": value, "mean_weight": weight})
        if not 0.5 <= weight <= 2:
            said = f"at translation {translation:.4g} the mean weight is {weight:.3g}: the policy left what was logged"
            caution(f"{said}; the fit before it is kept" if previous else said, NoSupport)
            fitted = previous or fitted
            break
        if abs(value - translation) <= tolerance * abs(value):
            break
        previous, translation = fitted, value
    else:
        last = rows[-1]["translation"]
        caution(f"the translation was not settled in {rounds} fits: {last:.4g} led to {translation:.4g}", NoSupport)
    return fitted, pd.DataFrame(rows).rename_axis("round")


def _logged(fitted: Fit) -> tuple[float, float]:
    """Self-normalised value and mean weight of a fitted policy on its training rows."""
    batch = {name: values.cpu().double() for name, values in fitted.dataset.batch(fitted.train_rows).items()}
    place = batch["position"].long()
    chunks = fitted.posterior(particles=1).chunks()
    share = torch.cat([values["log_policy"].reshape(len(rows), -1).cpu() for rows, _, values in chunks]).double().exp()
    share = share[torch.as_tensor(fitted.train_rows)].gather(1, place.clamp(min=0))
    weight = torch.where(place >= 0, share * batch["weight"], 0.0)
    return float((weight * batch["reward"]).sum() / weight.sum()), float(weight.mean())


def learn_policy(
    log: Any,
    context: Any,
    logging: Any,
    *,
    top: Any = "auto",
    objective: Any = None,
    held_out: Any = 0.2,
    estimator: Any = "snips",
    self_normalise: Any = False,
    level: Any = 0.95,
    seed: Any = 0,
    **settings,
) -> LearnedPolicy:
    """Learn a policy from a log, and say what it is worth on rows of the log that it has not seen.

    Parameters
    ----------
    log : BanditLog
    context : array or DataFrame [n, F]
        A table is found by the names of its rows; those of its columns are remembered.
    logging : Policy, DataFrame or array [n, K] or [K]
        The policy that drew the log; it has to agree with the log's propensities.
    top : int, "auto" or "q0.9"
        How many actions of the logging policy each context may choose from. "q0.9": as many as hold nine tenths of the
        rewarded logged items. "auto": the size, of those for several such shares, whose value on half of the held-out
        rows has the largest lower confidence bound; the other half evaluates it.
    objective : OffPolicyValue, optional
    held_out : float
        Share of the rows that no policy is trained on.
    estimator : {"snips", "ips", "clipped", "translated"}
        By which sizes are compared: one that needs nothing but the log.
    self_normalise : bool
        Learn with the translation at its fixed point (`fit_self_normalised`: several fits for each size).
    level : float
        Of the intervals.
    seed : int
        Of the split, of training and of the bootstrap.
    **settings
        For `fieldguide.inference.fit`: ``max_epochs``, ``learning_rate``, ``n_hidden``, ``start``, ...

    Raises
    ------
    ValueError
        If nothing was rewarded, or too few rows are held out; if ``logging`` contradicts a propensity of the log,
        naming the row and both.
    TypeError
        Naming a setting that is not one of this function.
    KeyboardInterrupt
        If a fit was interrupted: no policy is returned that was learnt in part.

    Warns
    -----
    NoSupport
        If the candidates hold less than a tenth of the logging policy, or fewer than ten rewarded items.

    Notes
    -----
    Lopez, Dhillon and Jordan (2021) learn by selective importance sampling among the best p actions of the logging
    policy. How they adjust p is not public; the rule here is ours.
    """
    if not isinstance(log, BanditLog):
        raise TypeError(f"log must be a BanditLog (BanditLog.read makes one of a table), not {type(log).__name__}")
    _check_objective(objective)
    one_of("estimator", estimator, [name for name, e in ESTIMATORS.items() if not e.needs])
    for name in ("checkpoint", "fields", "validation", "early_stopping"):
        if name in settings:
            raise TypeError(
                f"{name} is not a setting of learn_policy: it fits each size to all rows that held_out leaves"
            )
    self_normalise, level = (
        checked_flag("self_normalise", self_normalise),
        checked_real("level", level, above=0, below=1),
    )
    held_out, seed = checked_real("held_out", held_out, above=0, below=1), checked_seed(seed)
    top = _checked_top(top)
    sparse = hasattr(context, "tocsr")
    x = context if sparse else log.context(context)
    if np.shape(x)[0] != len(log):
        raise ValueError(f"context has {np.shape(x)[0]} rows, the log {len(log)}")
    whole = log.within(log.drawn_by(logging, whole=False))
    train, choosing, judging = _parts(len(log), held_out, top == "auto", seed)
    arguments = {"n_actions": len(log.actions), "validation": 0.0, "early_stopping": None, "progress": False}
    arguments |= {"seed": seed} | settings
    fits, rows, learning = {}, [], whole.take(train)
    for p in _sizes(learning, top):
        fits[p] = _fitted(x[train], learning.top(p), objective, self_normalise, arguments)
        rows.append({"top": p, "translation": getattr(fits[p].objective, "translation", np.nan)})
        if len(choosing):
            value = _judged(fits[p], x[choosing], whole.take(choosing).top(p), [estimator], level, seed)
            rows[-1] |= value.table.loc[estimator].to_dict()
    best = max(rows, key=lambda row: row["low"])["top"] if len(choosing) else rows[0]["top"]
    evaluation = _judged(fits[best], x[judging], whole.take(judging).top(best), None, level, seed)
    trained_on = log.rows[np.sort(np.concatenate([train, choosing]))]
    tried = pd.DataFrame(rows).set_index("top")
    return LearnedPolicy(fits[best], best, tried, evaluation, log.actions, trained_on, _features(context))


def _fitted(x: Any, part: Within, objective: OffPolicyValue | None, self_normalise: bool, arguments: dict) -> Fit:
    """A policy among the candidates, learnt from a part of the log; warns where they hold too little of it."""
    data, probability = policy_data(x, part.candidates, part.log), part.candidates.probability
    p, mass = probability.shape[1], float(probability.sum(1).mean())
    rewarded = int(((data.obsm["reward"] > 0) & (data.obsm["position"] >= 0)).sum())
    if mass < 0.1:
        caution(f"the {p} candidates hold {mass:.0%} of the logging policy: most of the log says nothing", NoSupport)
    if rewarded < 10:
        caution(f"{rewarded} rewarded items of the log are among the {p} candidates: too few to learn from", NoSupport)
    if self_normalise:
        return fit_self_normalised(data, objective, **arguments)[0]
    return _whole(fit("poxm", data, objective=objective, **arguments))


def _whole(fitted: Fit) -> Fit:
    """A fit that was trained to its end; what an interrupted one holds is not what was asked for."""
    if fitted.interrupted:
        raise KeyboardInterrupt
    return fitted


def _check_objective(objective: Any) -> None:
    if objective is not None and not isinstance(objective, OffPolicyValue):
        raise TypeError(f"objective must be an OffPolicyValue, not {objective!r}: a policy is learnt by its value")


def _judged(fitted: Fit, x: Any, part: Within, estimators: Sequence[str] | None, level: float, seed: int) -> Decision:
    """What a policy is worth by a part of the log."""
    policy = policy_of(fitted, x, part.candidates)
    return evaluate_policy(part.log, policy, estimators=estimators, level=level, seed=seed)


def _parts(n: int, held_out: float, choose: bool, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, for choosing p (none where it is given) and for the value."""
    order = np.random.default_rng(seed).permutation(n)
    out = order[: int(held_out * n * (1 + SLACK))]
    if len(out) < 4:
        raise ValueError(f"{len(out)} rows are held out of {n}: too few to say what a policy is worth")
    half = len(out) // 2 if choose else 0
    return np.sort(order[len(out) :]), np.sort(out[:half]), np.sort(out[half:])


def _sizes(part: Within, top: int | str) -> list[int]:
    """Sizes of the selected set to try."""
    if isinstance(top, int):
        return [top]
    if top == "auto":
        return sorted({part.covering(share) for share in QUANTILES})
    return [part.covering(float(top[1:]))]


def _checked_top(top: Any) -> int | str:
    """A number of actions, "auto" or a quantile such as "q0.9"."""
    if not isinstance(top, str):
        return checked_int("top", top, at_least=1)
    share = top[1:] if top.startswith("q") and top[1:].replace(".", "", 1).isdigit() else None
    if top != "auto" and (share is None or not 0 < float(share) <= 1):
        raise ValueError(f"top must be a number, 'auto' or a quantile such as 'q0.9', not {top!r}")
    return top
