"""How far an off-policy estimate can be trusted: standard errors, intervals, and what the weights look like."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.decisions.policies.estimators import DM, IPS, Feedback, ratio
from fieldguide.decisions.policies.rare import RewardRange, bernstein, rare
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, one_of
from fieldguide.inference.weights.pareto import khat_limit, pareto_k

METHODS = ("bootstrap", "bernstein", "normal")
FEW = 10
"""Different values among the largest tenth of the weights below which they are no tail."""
BLOCK = 2**24
"""Numbers of resampled counts that are held at once."""


def compared(
    estimators: Mapping[str, IPS | DM],
    feedback: Feedback,
    level: float,
    interval: str,
    resamples: int,
    seed: int,
    reward_range: Any = None,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """Return value, standard error and interval of each estimator, its `weight_diagnostics`, and notes on intervals.

    The first row of the values is the mean reward of the log itself. Where few rewards decide, the intervals are those
    of `fieldguide.decisions.policies.rare`.
    """
    terms = {"logging": (feedback.reward.mean(1), None)} | {n: e.terms(feedback) for n, e in estimators.items()}
    ends = intervals(list(terms.values()), level, interval, resamples=resamples, seed=seed)
    reach = RewardRange.read(reward_range, feedback.reward)
    few, notes = rare({"logging": None} | dict(estimators), feedback, level, reach)
    ends = [few.get(name, pair) for name, pair in zip(terms, ends, strict=True)]
    rows = [
        {"value": ratio(top, bottom), "se": standard_error(top, bottom), "low": low, "high": high}
        for (top, bottom), (low, high) in zip(terms.values(), ends, strict=True)
    ]
    table = pd.DataFrame(rows, index=pd.Index(list(terms), name="estimator"))
    own = table.loc["logging", "value"]
    table["over_logging"] = table["value"] / own if own else np.nan
    weights = {name: weight_diagnostics(e, feedback) for name, e in estimators.items()}
    return table, pd.DataFrame.from_dict(weights, orient="index").rename_axis("estimator"), notes


def influences(top: Tensor, bottom: Tensor | None) -> Tensor:
    """Return terms whose mean is the estimate and whose spread its error, [n]; of a ratio by the delta method."""
    if bottom is None:
        return top
    value = top.mean() / bottom.mean()
    return value + (top - value * bottom) / bottom.mean()


def standard_error(top: Tensor, bottom: Tensor | None = None) -> float:
    """Return the standard error of a mean, or of a ratio of means (delta method); not a number for one context."""
    terms = influences(top, bottom)
    return float(terms.std() / len(terms) ** 0.5) if len(terms) > 1 else float("nan")


def interval(
    top: Tensor,
    bottom: Tensor | None = None,
    level: Any = 0.95,
    method: str = "bootstrap",
    reach: tuple[float, float] | None = None,
    resamples: Any = 2000,
    seed: Any = 0,
) -> tuple[float, float]:
    """Return a confidence interval for what the terms [n] estimate.

    Parameters
    ----------
    top, bottom : Tensor [n]
        Terms of numerator and, for a ratio, denominator.
    level : float
    method : {"bootstrap", "bernstein", "normal"}
        "bootstrap": percentiles over resampled contexts; with rare rewards, skewed as the estimate is. "bernstein": the
        empirical Bernstein bound (Maurer and Pontil 2009), which holds at every n for terms within ``reach``, and is
        wide. "normal": estimate and quantiles of its standard error.
    reach : tuple of float, optional
        Smallest and largest possible term, for the Bernstein bound. By default those that were seen: then the bound is
        only as good as the largest weight that was drawn.
    resamples, seed : int
        Of the bootstrap.
    """
    return intervals([(top, bottom)], level, method, reach, resamples, seed)[0]


def intervals(
    pairs: Sequence[tuple[Tensor, Tensor | None]],
    level: Any = 0.95,
    method: str = "bootstrap",
    reach: tuple[float, float] | None = None,
    resamples: Any = 2000,
    seed: Any = 0,
) -> list[tuple[float, float]]:
    """Return the `interval` of each of several estimates from the same contexts, on the same resamples."""
    one_of("interval", method, METHODS)
    level, seed = checked_real("level", level, above=0, below=1), checked_seed(seed)
    resamples = checked_int("resamples", resamples, at_least=1)
    n, tail = len(pairs[0][0]), 1 - level
    if n < 2:
        return [(float("nan"), float("nan"))] * len(pairs)
    if method == "bootstrap":
        drawn = _bootstrap(pairs, resamples, seed).T
        known = [values[~np.isnan(values)] for values in drawn]
        ends = [np.quantile(v, [tail / 2, 1 - tail / 2]) if len(v) else np.full(2, np.nan) for v in known]
        return [(float(low), float(high)) for low, high in ends]
    ends = []
    for top, bottom in pairs:
        values = influences(top, bottom).double()
        if method == "normal":
            wide = NormalDist().inv_cdf(1 - tail / 2) * standard_error(top, bottom)
        else:
            low, high = reach or (float(values.min()), float(values.max()))
            wide = bernstein(values, level, high - low)
        ends.append((float(values.mean()) - wide, float(values.mean()) + wide))
    return ends


def _bootstrap(pairs: Sequence[tuple[Tensor, Tensor | None]], resamples: int, seed: int) -> np.ndarray:
    """Estimates on contexts drawn anew [R, E]; not a number where a denominator is zero."""
    rng, n, parts = np.random.default_rng(seed), len(pairs[0][0]), []
    tops, bottoms = (torch.stack([p[i] if p[i] is not None else torch.ones(n) for p in pairs], 1) for i in (0, 1))
    terms = torch.cat([tops, bottoms], 1).double().cpu().numpy()
    each = max(BLOCK // n, 1)
    for start in range(0, resamples, each):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(each, resamples - start))
        parts.append(counts @ terms)
    sums = np.concatenate(parts)
    above, below = sums[:, : len(pairs)], sums[:, len(pairs) :]
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def weight_diagnostics(estimator: IPS | DM, log: Feedback) -> dict[str, float]:
    """Return what the weights of an estimator look like.

    Returns
    -------
    dict
        ``mean_weight``: near 1 where the log covers the policy and the propensities are right; ``ess``: effective
        number of logged items, (sum w)^2 / sum w^2; ``ess_share``: of all items; ``max_weight``; ``zero_weight``:
        share of items that count for nothing; ``khat`` and ``khat_limit``: Pareto shape of the weights that are not
        zero, above whose limit neither the estimate nor its interval is to be trusted (missing below 25 of them, and
        where the largest ones are a few values again and again, as of a policy that ignores the context: those have
        no tail).
    """
    w = estimator.weights(log).double().flatten().cpu()
    positive = w[w > 0]
    khat = float("nan")
    tail = positive.topk(max(len(positive) // 10, 1)).values if len(positive) else positive
    if len(positive) >= 25 and len(tail.unique()) > FEW:
        khat = float(pareto_k(positive.log().numpy()[:, None])[0])
    square = float((w**2).sum())
    ess = float(w.sum()) ** 2 / square if square else 0.0
    return {
        "mean_weight": float(w.mean()),
        "ess": ess,
        "ess_share": ess / len(w),
        "max_weight": float(w.max()),
        "zero_weight": float((w == 0).double().mean()),
        "khat": khat,
        "khat_limit": khat_limit(max(len(positive), 11)),
    }
