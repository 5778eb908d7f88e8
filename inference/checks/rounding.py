"""Comparisons of sums of floats, with the slack that rounding needs; one tolerance for all of them."""

from typing import Any

import numpy as np

SLACK = 1e-9
"""Relative error that a sum of float64 numbers may carry by rounding, with room to spare."""


def exceeds(value: Any, limit: Any, scale: Any = 0.0) -> Any:
    """Whether computed values are above a limit by more than rounding.

    Parameters
    ----------
    value, limit : float or array
    scale : float or array
        Size of the terms that were summed, where they are larger than value and limit (they cancelled).

    Examples
    --------
    >>> bool(exceeds(sum([0.1] * 13), 1.3)), bool(exceeds(1.31, 1.3))
    (False, True)
    """
    value, limit = np.asarray(value, dtype=np.float64), np.asarray(limit, dtype=np.float64)
    size = np.maximum(np.maximum(np.abs(value), np.abs(limit)), np.abs(scale))
    with np.errstate(invalid="ignore"):
        slack = np.where(np.isfinite(size), SLACK * size, 0.0)
    return value > limit + slack


def reaches(value: Any, limit: Any, scale: Any = 0.0) -> Any:
    """Whether computed values are at least a limit, or below it by rounding alone."""
    return ~exceeds(limit, value, scale)
