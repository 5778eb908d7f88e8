"""Axes in which latents are independent within every condition, and which block each axis belongs to.

Latents z of a cell in condition k have the mean m_k [D] and the covariance S_k [D, D]. Where they are independent in
every condition in some axes, as blocks of latents of their own priors are, these axes make all covariances diagonal at
once. Conditions whose variances differ in ratio fix them, up to order and scale. What an axis belongs to then shows in
its means and variances: they differ between contexts alone, between treatments alone, or between pairs.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

STARTS = 8
CONDITIONS = 400
"""Those of most cells, by which axes are found."""
ROUNDS = 60
SHRINK = 5.0
"""Cells whose worth the average covariance has in that of each condition."""
TINY = 1e-8
MAIN = 0.05
"""Cost of main effects in the latents of both, as a share of what their variance would cost in likelihood."""
BLOCKS = ("context", "both", "treatment")


def diagonal_axes(covariances: Tensor, cells: Tensor, seed: int = 0) -> Tensor:
    """Return the axes B [D, D] in which the covariances are as diagonal as they can be.

    The minimum of ``sum_k n_k (log det diag(B S_k B') - log det(B S_k B'))``, the loss in likelihood by taking latents
    for independent (Pham 2001), of several random starts. Axes have variance one, averaged over cells.

    Parameters
    ----------
    covariances : float64 [K, D, D]
    cells : Tensor [K]
        n_k.
    seed : int
        Of the starts.
    """
    most = torch.argsort(cells, descending=True, stable=True)[:CONDITIONS]
    covariances, cells = covariances[most], cells[most]
    share = cells.double() / cells.sum()
    size = covariances.shape[-1]
    average = (share[:, None, None] * covariances).sum(0)
    shrunk = (cells[:, None, None] * covariances + SHRINK * average) / (cells[:, None, None] + SHRINK)
    values, vectors = torch.linalg.eigh(average)
    white = (vectors / values.clamp(min=TINY * float(values.max())).sqrt()).T
    inside = white @ shrunk @ white.T
    generator = torch.Generator().manual_seed(seed)
    best, least = torch.eye(size, dtype=torch.float64), np.inf
    for start in range(STARTS):
        drawn = torch.randn(size, size, dtype=torch.float64, generator=generator)
        axes = torch.eye(size, dtype=torch.float64) if start == 0 else torch.linalg.qr(drawn)[0]
        axes, loss = _descend(axes, lambda turned: dependence(turned, inside, share))
        if loss < least - 1e-9:
            best, least = axes, loss
    axes = best @ white
    return axes / ((axes @ average) * axes).sum(1, keepdim=True).sqrt()


def dependence(axes: Tensor, covariances: Tensor, share: Tensor) -> Tensor:
    """Return the mean over conditions of ``log det diag(B S B') - log det(B S B')``: 0 where all are diagonal."""
    turned = axes @ covariances @ axes.T
    diagonal = turned.diagonal(dim1=-2, dim2=-1).clamp(min=TINY).log().sum(-1)
    whole = torch.linalg.slogdet(covariances).logabsdet + 2 * torch.linalg.slogdet(axes).logabsdet
    return (share * (diagonal - whole)).sum()


def _descend(axes: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """Follow quasi-Newton directions to a minimum of a loss of the axes."""
    axes = axes.clone(memory_format=torch.contiguous_format).requires_grad_(True)  # LBFGS reads it row by row
    search = torch.optim.LBFGS([axes], max_iter=ROUNDS, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = loss_of(axes)
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    with torch.no_grad():
        return axes.detach(), float(loss_of(axes))


def block_axes(
    axes: Tensor,
    means: Tensor,
    covariances: Tensor,
    cells: Tensor,
    context: Tensor,
    treatment: Tensor,
    sizes: tuple[int, int, int],
) -> Tensor:
    """Return axes of given blocks, turned on to where the priors of the blocks explain the latents best.

    The loss is that of the likelihood under the priors of the blocks. It leaves the axes of the contexts and those of
    both free to mix where nothing but their means differs, between contexts alone: what both have of main effects costs
    a little, so that they go to the block that can say no more.

    Parameters
    ----------
    axes : float64 [D, D]
        Ordered by block, as `assigned_blocks` gives them.
    means, covariances : float64 [K, D] and [K, D, D]
    cells : Tensor [K]
    context, treatment : int64 [K]
    sizes : (int, int, int)
    """
    share = cells.double() / cells.sum()
    groups = [F.one_hot(codes).double() * share[:, None] for codes in (context, treatment)]
    ours = torch.arange(len(axes)).split(list(sizes))

    def loss_of(turned: Tensor) -> Tensor:
        mean, variance = means @ turned.T, (turned @ covariances @ turned.T).diagonal(dim1=-2, dim2=-1)
        loss = -torch.linalg.slogdet(turned).logabsdet
        for group, block in zip(groups, (ours[0], ours[2]), strict=True):
            weight = group.sum(0)[:, None]
            middle = group.T @ mean[:, block] / weight
            square = group.T @ (variance[:, block] + mean[:, block] ** 2) / weight - middle**2
            loss = loss + (weight * square.clamp(min=TINY).log()).sum() / 2
        both = ours[1]
        loss = loss + (share[:, None] * variance[:, both].clamp(min=TINY).log()).sum() / 2
        within = (share[:, None] * variance[:, both]).sum(0)
        for group in groups:
            middle = group.T @ mean[:, both] / group.sum(0)[:, None]
            spread = (group.sum(0)[:, None] * (middle - share @ mean[:, both]) ** 2).sum(0)
            loss = loss + MAIN * torch.log1p(spread / within).sum() / 2
        return loss

    found, _ = _descend(axes, loss_of)
    average = (share[:, None, None] * covariances).sum(0)
    return found / ((found @ average) * found).sum(1, keepdim=True).sqrt()


def assigned_blocks(
    means: np.ndarray,
    variances: np.ndarray,
    cells: np.ndarray,
    context: np.ndarray,
    treatment: np.ndarray,
    sizes: tuple[int, int, int],
) -> np.ndarray:
    """Return which axis stands at each place [D]: those of the contexts first, of both then, of treatments last.

    An axis loses likelihood in the block of the contexts by one Gaussian for all treatments of a context, in that of
    the treatments by one for all contexts of a treatment, and nothing in that of both; there, main effects cost a
    little (`MAIN`), or any axis that is in use would be best kept in it, for the chance differences between pairs.
    Blocks have given sizes; the axes are given to them so that all together lose least.

    Parameters
    ----------
    means, variances : float arrays [K, D]
        Of each axis in each condition.
    cells : array [K]
    context, treatment : int arrays [K]
        Of each condition.
    sizes : (int, int, int)
        Latents of the contexts, of both and of the treatments, D together.

    Examples
    --------
    >>> means = np.array([[0.0, 0], [0, 3], [4, 0], [4, 3]])
    >>> assigned_blocks(means, np.ones((4, 2)), np.ones(4), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), (1, 0, 1))
    array([0, 1])
    """
    loss = {
        "context": _merged(means, variances, cells, context),
        "both": sum(_main(means, variances, cells, group) for group in (context, treatment)),
        "treatment": _merged(means, variances, cells, treatment),
    }
    places = [block for block, size in zip(BLOCKS, sizes, strict=True) for _ in range(size)]
    table = np.stack([loss[block] for block in places])
    return linear_sum_assignment(table)[1]


def _main(means: np.ndarray, variances: np.ndarray, cells: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return what differences between groups cost in the block of both, by axis [D]."""
    share = cells / cells.sum()
    within, grand, spread = share @ variances, share @ means, 0.0
    for g in np.unique(group):
        rows = group == g
        spread = spread + share[rows].sum() * (share[rows] @ means[rows] / share[rows].sum() - grand) ** 2
    return cells.sum() * MAIN / 2 * np.log1p(spread / np.maximum(within, TINY))


def _merged(means: np.ndarray, variances: np.ndarray, cells: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return what one Gaussian for all conditions of a group loses in log likelihood over all cells, by axis [D]."""
    loss = -(cells[:, None] * np.log(np.maximum(variances, TINY))).sum(0) / 2
    for g in np.unique(group):
        rows = group == g
        share = cells[rows, None] / cells[rows].sum()
        mean = (share * means[rows]).sum(0)
        variance = (share * (variances[rows] + (means[rows] - mean) ** 2)).sum(0)
        loss = loss + cells[rows].sum() * np.log(np.maximum(variance, TINY)) / 2
    return loss
