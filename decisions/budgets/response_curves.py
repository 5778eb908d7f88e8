"""The response to each level of an incentive, averaged over customers, with its posterior band."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.budgets.figures import band
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.messages import named, real_array
from fieldguide.inference.checks.aligning import order_of
from fieldguide.inference.checks.arguments import checked_real


def response_curve(
    draws: ArrayLike, cost: Any = None, names: Sequence | pd.Index | None = None, level: Any = 0.9
) -> Decision:
    """Return the mean response of customers at every level, and the interval in which posterior draws have it.

    Parameters
    ----------
    draws : array [S, N, K]
        Posterior draws of the response of N customers at K levels, as from `fieldguide.catalog.response_draws`.
    cost : array or Series [K], optional
        Of the levels, where the plot puts them; by default 0, 1, 2, ...
    names : sequence [K], optional
        Of the levels.
    level : float
        Of the intervals.

    Returns
    -------
    Decision
        ``table``, one row a level: ``cost``, ``response``, ``low``, ``high``; ``step``, what it adds to the level
        before, with ``step_low`` and ``step_high``. ``plot()`` draws the curve and its band.

    Examples
    --------
    >>> draws = np.array([[[0.1, 0.3]], [[0.2, 0.5]]])
    >>> response_curve(draws, names=["none", "coupon"]).table["response"].round(2).tolist()
    [0.15, 0.4]
    """
    values = real_array("draws", draws)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"draws must be of shape (S, N, K), not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"draw {np.argwhere(~np.isfinite(values))[0].tolist()} is not finite")
    level = checked_real("level", level, above=0, below=1)
    count = values.shape[2]
    if isinstance(names, str) or (names is not None and np.ndim(names) != 1):
        raise TypeError(f"names must be a name for each of {count} levels, not {names!r:.60}")
    index = pd.RangeIndex(count) if names is None else pd.Index(names)
    if len(index) != count:
        raise ValueError(f"names are {len(index)} for {count} levels")
    if not index.is_unique:
        raise ValueError(f"names: level {index[index.duplicated()][0]!r} is there more than once")
    costs = np.arange(count, dtype=np.float64) if cost is None else real_array("cost", cost)
    if isinstance(cost, pd.Series):
        costs = costs[order_of("cost", cost.index, index, "levels")]
    if costs.shape != (count,):
        raise ValueError(f"cost must be one number for each of {count} levels, not of shape {costs.shape}")
    if not np.isfinite(costs).all():
        raise ValueError(f"cost of level {named(index, np.flatnonzero(~np.isfinite(costs))[0])} is not finite")
    ends = [(1 - level) / 2, (1 + level) / 2]
    means = values.mean(1)
    steps = np.diff(means, axis=1, prepend=np.nan)
    table = pd.DataFrame({"cost": costs, "response": means.mean(0)}, index=index.rename("level"))
    table["low"], table["high"] = np.quantile(means, ends, axis=0)
    table["step"] = steps.mean(0)
    table["step_low"], table["step_high"] = np.quantile(steps, ends, axis=0)
    settings = {"level": level, "draws": len(values), "customers": values.shape[1]}
    return Decision(table, pd.DataFrame(), settings, (), band)
