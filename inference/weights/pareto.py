"""The Pareto shape k-hat of importance weights, of all cells at once, and the limit above which they are not used.

Source: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, JMLR 25(72), 2024; the
distribution is fitted as by Zhang and Stephens, Technometrics 51, 2009, with the weak prior of the former.
"""

from math import ceil, log10, sqrt

import numpy as np

FEWEST = 25
"""Draws below which the tail has fewer than five of them: nothing can be said of it."""
TAIL = 5
"""Fewest draws that a tail is fitted to."""
EQUAL = 1e-4
"""Log weights that differ by less (nats) are equal up to rounding in single precision: they have no tail."""
LOWEST = np.log(np.finfo(float).tiny)
"""Log weights below it, relative to the largest, are of weights that are zero."""
COLUMNS = 4096
"""Cells that are fitted at once."""


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Return the Pareto shape k-hat of each column of log weights [S, N], float64 [N].

    It is missing (nan) with fewer than 25 draws, which say nothing of a tail, and 0 where the weights are equal up to
    rounding. The tail are the ceil(min(S / 5, 3 sqrt(S))) largest weights; where ties at the cut leave fewer than five
    of them, it begins at the next smaller weight, and a shape below 0 counts as 0. Where there is none but zero, no
    shape can be fitted: k-hat is 0 if no weight is above sqrt(S) times the mean (where truncation would begin), else
    infinite.

    Raises
    ------
    ValueError
        If a log weight is not finite, naming the cell; or if there are not two dimensions.

    Examples
    --------
    >>> draws = np.random.default_rng(0).exponential(size=(4000, 1))
    >>> abs(float(pareto_k(0.6 * draws)[0]) - 0.6) < 0.2, pareto_k(draws[:20])
    (True, array([nan]))
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 2:
        raise ValueError(f"log weights must be an array [S, N], not of shape {log_weights.shape}")
    infinite = np.flatnonzero(~np.isfinite(log_weights).all(0))
    if infinite.size:
        raise ValueError(f"log weights of cell {infinite[0]} are not finite")
    draws, cells = log_weights.shape
    if draws < FEWEST:
        return np.full(cells, np.nan)
    parts = [_of_columns(log_weights[:, start : start + COLUMNS].T) for start in range(0, cells, COLUMNS)]
    return np.concatenate(parts) if parts else np.zeros(0)


def khat_limit(particles: int) -> float:
    """Return the largest k-hat at which estimates from S draws are usable: min(1 - 1/log10 S, 0.7)."""
    return min(1 - 1 / log10(particles), 0.7) if particles > 10 else 0.0


def _of_columns(log_weights: np.ndarray) -> np.ndarray:
    """k-hat of each row of log weights [n, S]."""
    draws = log_weights.shape[1]
    relative = log_weights - log_weights.max(1, keepdims=True)
    size = ceil(min(draws / 5, 3 * sqrt(draws)))
    top = np.sort(np.partition(relative, draws - size - 1, axis=1)[:, draws - size - 1 :], 1)
    cut = np.maximum(top[:, 0], LOWEST)
    above = (top > cut[:, None]).sum(1)
    shapes = np.zeros(len(relative))
    flat = np.ptp(relative, axis=1) < EQUAL
    whole = (above == size) & ~flat
    if whole.any():
        shapes[whole] = _shape(np.exp(top[whole, 1:]) - np.exp(cut[whole, None]))
    for row in np.flatnonzero(~whole & ~flat):
        shapes[row] = _of_ties(relative[row], cut[row], int(above[row]))
    return shapes


def _of_ties(relative: np.ndarray, cut: float, above: int) -> float:
    """k-hat of one cell where the tail is not as long as it should be."""
    if above < TAIL:
        below = relative[relative < cut]
        if not below.size or cut <= LOWEST:
            return _without_tail(relative)
        cut = below.max()
    tail = np.sort(relative[relative > cut])
    excess = np.exp(tail) - np.exp(cut)
    excess = excess[excess > 0]
    return max(float(_shape(excess[None])[0]), 0.0) if len(excess) >= TAIL else _without_tail(relative)


def _without_tail(relative: np.ndarray) -> float:
    """0 if no weight is above sqrt(S) times the mean, else infinite."""
    weights = np.exp(relative)
    return 0.0 if weights.max() <= sqrt(len(weights)) * weights.mean() else np.inf


def _shape(excess: np.ndarray) -> np.ndarray:
    """Shape [n] of generalised Pareto distributions, from the sorted excesses [n, M] of each."""
    size = excess.shape[1]
    grid = 30 + int(sqrt(size))
    steps = np.arange(1, grid + 1) - 0.5
    quarter, largest = excess[:, [int(size / 4 + 0.5) - 1]], excess[:, [-1]]
    rates = (1 - np.sqrt(grid / steps)) / (3 * quarter) + 1 / largest
    shapes = np.stack([np.log1p(-rates[:, [j]] * excess).mean(1) for j in range(grid)], 1)
    score = size * (np.log(-(rates / shapes)) - shapes - 1)
    share = np.exp(score - score.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    share[share < 10 * np.finfo(float).eps] = 0
    share /= share.sum(1, keepdims=True)
    shape = np.log1p(-(rates * share).sum(1, keepdims=True) * excess).mean(1)
    return (size * shape + 5) / (size + 10)
