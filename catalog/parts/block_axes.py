"""Axes in which latents are independent within every condition, and which block each axis belongs to.

Latents z of a cell in condition k have the mean m_k [D] and the covariance S_k [D, D]. Where they are independent in
every condition in some axes, as blocks of latents of their own priors are, these axes make all covariances diagonal at
once. Conditions whose variances differ in ratio fix them, up to order and scale. What an axis belongs to then shows in
its means and variances: they differ between contexts alone, between treatments alone, or between pairs.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

STARTS = 8
CONDITIONS = 400
"""Those of most cells, by which axes are found."""
ROUNDS = 60
SHRINK = 5.0
"""Cells whose worth the average covariance has in that of each condition."""
TINY = 1e-8
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
        axes, loss = _descend(axes, inside, share)
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


def _descend(axes: Tensor, covariances: Tensor, share: Tensor) -> tuple[Tensor, float]:
    """Follow the quasi-Newton directions to a minimum."""
    axes = axes.clone(memory_format=torch.contiguous_format).requires_grad_(True)  # LBFGS reads it row by row
    search = torch.optim.LBFGS([axes], max_iter=ROUNDS, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = dependence(axes, covariances, share)
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    with torch.no_grad():
        return axes.detach(), float(dependence(axes, covariances, share))


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
    the treatments by one for all contexts of a treatment, and nothing in that of both. Blocks have given sizes; the
    axes are given to them so that all together lose least.

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
        "both": np.zeros(means.shape[1]),
        "treatment": _merged(means, variances, cells, treatment),
    }
    places = [block for block, size in zip(BLOCKS, sizes, strict=True) for _ in range(size)]
    table = np.stack([loss[block] for block in places])
    return linear_sum_assignment(table)[1]


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
