"""The response to each level of an incentive, averaged over customers, with its posterior band."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.budgets.figures import band
from fieldguide.decisions.decision import Decision


def response_curve(
    draws: ArrayLike, cost: ArrayLike | None = None, names: Sequence | pd.Index | None = None, level: float = 0.9
) -> Decision:
    """Return the mean response of customers at every level, and the interval in which posterior draws have it.

    Parameters
    ----------
    draws : array [S, N, K]
        Posterior draws of the response of N customers at K levels, as from `fieldguide.catalog.response_draws`.
    cost : array [K], optional
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
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"draws must be of shape (S, N, K), not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"draw {np.argwhere(~np.isfinite(values))[0].tolist()} is not finite")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    count = values.shape[2]
    index = pd.RangeIndex(count) if names is None else pd.Index(names)
    costs = np.arange(count, dtype=np.float64) if cost is None else np.asarray(cost, dtype=np.float64)
    for given, what in ((len(index), "names"), (costs.size, "costs")):
        if given != count:
            raise ValueError(f"there are {given} {what} for {count} levels")
    ends = [(1 - level) / 2, (1 + level) / 2]
    means = values.mean(1)
    steps = np.diff(means, axis=1, prepend=np.nan)
    table = pd.DataFrame({"cost": costs.ravel(), "response": means.mean(0)}, index=index.rename("level"))
    table["low"], table["high"] = np.quantile(means, ends, axis=0)
    table["step"] = steps.mean(0)
    table["step_low"], table["step_high"] = np.quantile(steps, ends, axis=0)
    settings = {"level": level, "draws": len(values), "customers": values.shape[1]}
    return Decision(table, pd.DataFrame(), settings, (), band)
