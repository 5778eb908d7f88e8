"""Intervals where next to nothing was rewarded: resampling what was seen cannot show what was not.

Of 200 contexts without a click the bootstrap's interval is [0, 0], at any level. Where all rewards that count are 0 or
1 and count alike, the interval is that of a binomial share (Clopper and Pearson 1934), which holds at every n; else it
is the empirical Bernstein bound (Maurer and Pontil 2009) for terms as far apart as the range of the rewards allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fieldguide.decisions.policies.estimators import DM, IPS, Feedback, Translated, ratio
from fieldguide.inference.checks.arguments import checked_real

FEW = 10
"""Contexts that count and have another reward than most, below which an interval is not left to resampling."""


@dataclass(frozen=True)
class RewardRange:
    """Smallest and largest possible reward, and whether that was said or is what the log shows."""

    low: float
    high: float
    said: bool

    @classmethod
    def read(cls, values: Any, reward: Tensor) -> "RewardRange":
        """Return a checked range, given or of the rewards [n, l]: 0 and 1 where there are no others."""
        if values is None:
            if bool(((reward == 0) | (reward == 1)).all()):
                return cls(0.0, 1.0, False)
            return cls(float(reward.min()), float(reward.max()), False)
        if isinstance(values, str) or np.ndim(values) != 1 or len(values) != 2:
            raise TypeError(f"reward_range must be the smallest and the largest possible reward, not {values!r:.60}")
        low = checked_real("reward_range (smallest)", values[0])
        high = checked_real("reward_range (largest)", values[1], above=low)
        if not low <= float(reward.min()) <= float(reward.max()) <= high:
            raise ValueError(
                f"reward_range is {low:g} to {high:g}, and the log has rewards from {float(reward.min()):g} to "
                f"{float(reward.max()):g}"
            )
        return cls(low, high, True)


def clopper_pearson(successes: int, n: int, level: float) -> tuple[float, float]:
    """Return the exact interval of a binomial share.

    Examples
    --------
    >>> [round(end, 4) for end in clopper_pearson(0, 200, 0.95)]  # 1 - 0.025 ** (1 / 200)
    [0.0, 0.0183]
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def bernstein(terms: Tensor, level: float, width: float) -> float:
    """Return the half width of the empirical Bernstein bound of the mean of terms [n] within an interval of a width."""
    n, logs = len(terms), log(4 / (1 - level))
    return (2 * float(terms.double().var()) * logs / n) ** 0.5 + 7 * width * logs / (3 * (n - 1))


def rare(
    estimators: Mapping[str, IPS | DM | None], feedback: Feedback, level: float, reach: RewardRange
) -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
    """Return the intervals of those estimates (None: the log's own mean) that few rewards decide, and a note on them.

    The largest weight is taken to be the largest that was drawn.
    """
    reward = feedback.reward
    if len(reward) < 2:
        return {}, ()
    common = reward.flatten().mode().values
    intervals, exact = {}, []
    counted = len(reward)
    for name, estimator in estimators.items():
        weight = torch.ones_like(reward) if estimator is None else estimator.weights(feedback)
        other = int(((weight > 0) & (reward != common)).any(1).sum())
        if isinstance(estimator, DM) or other >= FEW or (estimator is not None and not bool((weight > 0).any())):
            continue
        counted = min(counted, other)
        ends, binomial = _interval(estimator, feedback, level, reach)
        intervals[name] = ends
        exact += [name] if binomial else []
    return intervals, _notes(intervals, exact, counted, reach, float(common)) if intervals else ()


def _interval(estimator: Any, feedback: Feedback, level: float, reach: RewardRange) -> tuple[tuple[float, float], bool]:
    """Interval of one estimate, and whether it is that of a binomial share."""
    reward = feedback.reward
    top, bottom = _terms(estimator, feedback)
    value = ratio(top, bottom)
    if estimator is not None and isinstance(estimator, Translated) and estimator.translation is None:
        estimator = replace(estimator, translation=value)  # its own estimate is the fixed point

    def linear(rewards: Tensor) -> Tensor:
        above, below = _terms(estimator, replace(feedback, reward=rewards))
        return above if below is None else value + (above - value * below) / below.mean()

    least, most = (linear(torch.full_like(reward, end)) for end in (reach.low, reach.high))
    terms, size = linear(reward), max(float(most.abs().max()), float(least.abs().max()))
    ends = bool(((reward == reach.low) | (reward == reach.high)).all())
    alike = max(float(least.max() - least.min()), float(most.max() - most.min())) <= 1e-9 * size
    if reward.shape[1] == 1 and ends and alike and reach.high > reach.low:
        shares = clopper_pearson(int((reward == reach.high).sum()), len(reward), level)
        start, step = float(least.mean()), float((most - least).mean())
        return (start + step * shares[0], start + step * shares[1]), True
    wide = bernstein(terms, level, float(most.max() - least.min()))
    centre = float(terms.mean())
    if not np.isfinite(value):
        return (float("nan"), float("nan")), False
    return (max(centre - wide, min(reach.low, 0.0)), min(centre + wide, max(reach.high, centre))), False


def _terms(estimator: Any, feedback: Feedback) -> tuple[Tensor, Tensor | None]:
    return (feedback.reward.mean(1), None) if estimator is None else estimator.terms(feedback)


def _notes(
    intervals: Mapping[str, Any], exact: list[str], counted: int, reach: RewardRange, common: float
) -> tuple[str, ...]:
    rest = [name for name in intervals if name not in exact]
    kinds = [f"exact (Clopper-Pearson) for {', '.join(exact)}"] if exact else []
    kinds += [f"empirical Bernstein bounds for {', '.join(rest)}"] if rest else []
    said = "as said" if reach.said else "as far as the log shows: give reward_range if others are possible"
    notes = (
        f"only {counted} contexts that count have a reward other than {common:g}: intervals are {'; '.join(kinds)}, "
        f"with rewards from {reach.low:g} to {reach.high:g} ({said}).",
    )
    if reach.high == reach.low:
        notes += (f"all rewards are {common:g}, and nothing says what others could be: intervals have no width.",)
    return notes
