"""Simulated perturbations that each shift a few latents of a cell (Lopez et al., CLeaR 2023)."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Seed, Size, checked

SLOPE = 0.2
"""Of the leaky rectifier, for negative values."""
N_HIDDEN = 40
MOST_TARGETS = 3
SHIFT, SPREAD = 5.0, 0.5
"""Mean and standard deviation of the size of a shift."""
TOTAL = 1e6
"""Expected total of a gene over all cells (``normalise="cells"``)."""
DEPTH = 1e5
"""Expected total of a cell (``normalise="genes"``)."""


@dataclass
class ShiftWorld:
    """Cells under perturbations, and what made them.

    Attributes
    ----------
    data : AnnData
        ``X`` float32 [n, d], counts; ``obs["perturbation"]``, such as "p7"; ``obsm["latent"]`` [n, p].
    shift : float64 [K, p]
        Mean of the latents under each perturbation; 0 where it does not target them. Rows in the order of the
        categories of ``obs["perturbation"]``.
    """

    data: anndata.AnnData
    shift: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """Which latents each perturbation shifts, bool [K, p]."""
        return self.shift != 0


@checked
def sparse_shift_sim(
    seed: Seed,
    n_cells: Size = 500,
    n_perturbations: Size = 100,
    n_latent: Size = 15,
    n_genes: Size = 100,
    normalise: str = "cells",
    most_targeted: Size | None = None,
) -> ShiftWorld:
    """Return cells whose latents a perturbation shifts by about 5 standard deviations, one to three of them.

    The same random numbers as the published simulator draws after ``numpy.random.seed(seed)``: equal seeds give equal
    counts.

    Parameters
    ----------
    seed : int
    n_cells : int
        Cells of each perturbation.
    n_perturbations, n_latent, n_genes : int
        K, p and d; p at most 40 and d at least 40, the width of the network that makes rates of latents.
    normalise : {"cells", "genes"}
        What rates sum to one over. The published code divides by the sum over the cells, gene by gene: each gene has
        about 10^6 counts in the data, and the total of a cell depends on its latents. The paper describes "genes":
        each cell has about 10^5 counts.
    most_targeted : int, optional
        Only the first so many latents are ever targeted; by default all are.

    Examples
    --------
    >>> world = sparse_shift_sim(0, n_cells=5, n_perturbations=4)
    >>> world.data.shape, world.targets.sum(1).tolist()
    ((20, 100), [1, 1, 2, 3])
    """
    one_of("normalise", normalise, ("cells", "genes"))
    if not n_latent <= N_HIDDEN <= n_genes:
        raise ValueError(
            f"n_latent must be at most {N_HIDDEN} and n_genes at least {N_HIDDEN}, not {n_latent} and {n_genes}"
        )
    targeted = n_latent if most_targeted is None else most_targeted
    if targeted > n_latent:
        raise ValueError(f"most_targeted must be at most n_latent={n_latent}, not {targeted}")
    rng = np.random.RandomState(seed)  # the generator that the published simulator draws from
    mask = np.zeros((n_perturbations, n_latent))
    for row in mask:
        row[rng.choice(np.arange(targeted), rng.choice([1, 2, MOST_TARGETS]))] = 1
    sign = 2.0 * (rng.uniform(0, 1, size=mask.shape) > 0.5) - 1
    shift = mask * rng.normal(SHIFT, SPREAD, size=mask.shape) * sign
    spread = np.eye(n_latent)
    latent = np.concatenate([rng.multivariate_normal(mean, spread, size=n_cells) for mean in shift])
    logits = mixed(rng, latent, n_genes)
    rates = np.exp(logits - logits.max())
    scaled = TOTAL * rates / rates.sum(0) if normalise == "cells" else DEPTH * rates / rates.sum(1, keepdims=True)
    counts = rng.poisson(scaled)
    order = rng.permutation(np.arange(len(counts)))
    names = [f"p{k}" for k in range(n_perturbations)]
    codes = np.repeat(np.arange(n_perturbations), n_cells)[order]
    obs = pd.DataFrame({"perturbation": pd.Categorical.from_codes(codes, categories=names)})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"gene{j}" for j in range(n_genes)])
    data = anndata.AnnData(counts[order].astype(np.float32), obs=obs, var=var, obsm={"latent": latent[order]})
    return ShiftWorld(data, shift)


def mixed(rng: np.random.RandomState, latent: np.ndarray, n_genes: int) -> np.ndarray:
    """Return logits [n, d] of latents [n, p]: an invertible network of three hidden layers, scaled to deviation 1."""
    widths = [latent.shape[1], N_HIDDEN, N_HIDDEN, N_HIDDEN, n_genes]
    hidden = latent
    for layer, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
        hidden = hidden @ _orthonormal(rng, n_in, n_out)
        if layer < len(widths) - 2:
            hidden = np.maximum(SLOPE * hidden, hidden)
    return hidden / np.std(hidden)


def _orthonormal(rng: np.random.RandomState, n_in: int, n_out: int) -> np.ndarray:
    """Weights [n_in, n_out] with orthogonal rows, of the size that keeps the scale of leaky rectified values."""
    rows = np.linalg.qr(rng.normal(size=(n_in, n_out)).T)[0].T
    return rows * np.sqrt(2 / (1 + SLOPE**2)) * np.sqrt(2 / (n_in + n_out))
