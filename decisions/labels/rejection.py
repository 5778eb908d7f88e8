"""Rejection of uncertain cells from class probabilities alone (pure arrays): the optimal rule, and how good it was.

Deciding for class a when c is true costs ``loss[a, c]``, rejecting costs ``cost``. The action of least posterior
expected loss is optimal (Chow 1970): with a loss of 1 for any wrong class, that is to reject when
``max p <= 1 - cost``. The expected losses are as good as the probabilities are.
"""

import numpy as np
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.arguments import checked_real
from fieldguide.inference.checks.rounding import exceeds, reaches

REJECT = -1
"""The action of rejecting, among the codes of classes."""
THRESHOLDS = np.linspace(0.1, 1, 20)
"""Thresholds of Lopez et al. 2020, for figures that can be set beside theirs."""
ROUNDING = 1e-4
"""By how much a row of probabilities may miss one: single precision over many classes."""


def checked(probability: ArrayLike) -> np.ndarray:
    """Return class probabilities as float64 [N, C].

    Raises
    ------
    ValueError
        Naming the row and the class: no rows, fewer than two classes, a missing or impossible probability, a row that
        does not sum to one.
    """
    values = real_array("probability (cells x classes)", probability)
    if values.ndim != 2:
        raise ValueError(f"probabilities must be an array cells x classes, not of shape {values.shape}")
    if values.shape[0] == 0:
        raise ValueError("there are no cells to decide on")
    if values.shape[1] < 2:
        raise ValueError(f"{values.shape[1]} class(es): a decision needs at least two")
    outside = np.argwhere(~((values >= -ROUNDING) & (values <= 1 + ROUNDING)))
    if outside.size:
        row, column = outside[0]
        raise ValueError(f"probability of row {row}, class {column} is {values[row, column]}, not in [0, 1]")
    total = values.sum(1)
    off = np.flatnonzero(np.abs(total - 1) > ROUNDING)
    if off.size:
        raise ValueError(f"probabilities of row {off[0]} sum to {total[off[0]]:.6g}, not to 1")
    values = values.clip(0, 1)
    return values / values.sum(1, keepdims=True)


def expected_loss(probability: ArrayLike, loss: ArrayLike | None = None) -> np.ndarray:
    """Return the posterior expected loss of deciding for each class, float64 [N, A].

    Parameters
    ----------
    probability : array [N, C]
    loss : array [A, C], optional
        Loss of each decision (row) when each class (column) is true; 0 for the right class and 1 for others by default.

    Examples
    --------
    >>> expected_loss([[0.7, 0.3]]).round(2).tolist()
    [[0.3, 0.7]]
    """
    values = checked(probability)
    classes = values.shape[1]
    if loss is None:
        return 1 - values
    costs = real_array("loss", loss)
    if costs.shape != (classes, classes):
        raise ValueError(f"loss must be an array {classes} x {classes} (decision x true class), not {costs.shape}")
    endless = np.argwhere(~np.isfinite(costs))
    if endless.size:
        raise ValueError(f"loss of deciding for class {endless[0, 0]} when {endless[0, 1]} is true is not finite")
    return values @ costs.T


def decide(probability: ArrayLike, cost: float, loss: ArrayLike | None = None) -> np.ndarray:
    """Return the optimal action for each cell, int64 [N]: the code of a class, or -1 to reject.

    Where rejecting and the best class cost the same, the cell is rejected.

    Examples
    --------
    >>> decide([[0.7, 0.3], [0.95, 0.05]], cost=0.2).tolist()
    [-1, 0]
    """
    cost, losses = checked_real("cost", cost, at_least=0), expected_loss(probability, loss)
    return np.where(exceeds(cost, losses.min(1)), losses.argmin(1), REJECT)


def risk_coverage(certainty: ArrayLike, wrong: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and risk of accepting the k most certain cells, k = 1 ... N, float64 [N] each.

    Coverage is k / N, risk the share of wrong ones among the k. Cells of equal certainty are accepted in random order,
    and the risk is the mean over such orders, so that it does not depend on the order of the cells.

    Parameters
    ----------
    certainty : array [N]
    wrong : array [N] of bool
        Whether the decision for the cell is (or would be) wrong.

    Examples
    --------
    >>> risk_coverage([0.9, 0.5, 0.8], [False, True, False])[1].round(2).tolist()
    [0.0, 0.0, 0.33]
    """
    certainty, wrong = _pair(certainty, wrong, "wrong")
    _, group = np.unique(-certainty, return_inverse=True)
    share = np.bincount(group, wrong) / np.bincount(group)
    accepted = np.arange(1, len(wrong) + 1)
    return accepted / len(wrong), np.cumsum(share[np.sort(group)]) / accepted


def aurc(certainty: ArrayLike, wrong: ArrayLike) -> float:
    """Return the area under the risk-coverage curve: the mean risk over all coverages (Geifman and El-Yaniv 2019).

    Examples
    --------
    >>> round(aurc([0.9, 0.5, 0.8], [False, True, False]), 4)
    0.1111
    """
    return float(risk_coverage(certainty, wrong)[1].mean())


def average_precision(certainty: ArrayLike, unknown: ArrayLike) -> float:
    """Return the average precision of rejecting the least certain cells, where those of unknown classes should be.

    Examples
    --------
    >>> average_precision([0.9, 0.4, 0.8, 0.5], [False, True, False, True])
    1.0
    """
    from sklearn.metrics import average_precision_score

    certainty, unknown = _pair(certainty, unknown, "unknown")
    _both(unknown)
    return float(average_precision_score(unknown, -certainty))


def rejection_curve(
    certainty: ArrayLike, unknown: ArrayLike, thresholds: ArrayLike = THRESHOLDS
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return precision and recall of the unknown classes at each threshold, and the area by the trapezoid rule.

    A cell is rejected when its certainty is at most the threshold. A threshold that rejects nothing has no precision:
    it takes that of the next that rejects something.

    Parameters
    ----------
    certainty : array [N]
        Largest class probability of each cell.
    unknown : array [N] of bool
    thresholds : array, increasing
        The published 20 by default. With so few, the area depends on them; see `average_precision`.

    Examples
    --------
    >>> precision, recall, area = rejection_curve([0.9, 0.4, 0.8, 0.5], [False, True, False, True])
    >>> float(recall.max()), round(area, 3)
    (1.0, 1.0)
    """
    certainty, unknown = _pair(certainty, unknown, "unknown")
    _both(unknown)
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not limits.size or not (np.diff(limits) > 0).all() or not np.isfinite(limits).all():
        raise ValueError(f"thresholds must be rising numbers [T], not {thresholds!r:.60}")
    rejected = reaches(limits[:, None], certainty)
    caught, total = (rejected & unknown).sum(1), rejected.sum(1)
    if not total.any():
        raise ValueError("no threshold rejects a cell")
    precision = caught / np.maximum(total, 1)
    precision[total == 0] = precision[np.flatnonzero(total)[0]]
    recall = caught / unknown.sum()
    return precision, recall, float(np.trapezoid(precision, recall) + recall[0] * precision[0])


def _pair(certainty: ArrayLike, flags: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    certainty = real_array("certainty", certainty)
    try:
        flags = np.asarray(flags)
    except ValueError:
        raise ValueError(f"{name} must be true or false for each cell, in a list without lists in it") from None
    if certainty.ndim != 1 or certainty.shape != flags.shape:
        raise ValueError(f"certainty {certainty.shape} and {name} {flags.shape} must have one value a cell each")
    if not len(certainty):
        raise ValueError("there are no cells to decide on")
    missing = np.flatnonzero(~np.isfinite(certainty))
    if missing.size:
        raise ValueError(f"certainty of row {missing[0]} is {certainty[missing[0]]}")
    if flags.dtype != bool:
        raise ValueError(f"{name} must be true or false for each cell, not of type {flags.dtype}")
    return certainty, flags


def _both(unknown: np.ndarray) -> None:
    if unknown.all() or not unknown.any():
        raise ValueError(
            f"{'every' if unknown.all() else 'no'} cell is of an unknown class: precision and recall need both kinds"
        )
