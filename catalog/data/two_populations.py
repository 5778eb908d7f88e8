"""Simulated background and target cells that share latents, of which the target has more (after Lopez et al. 2024)."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.ranges import Seed, Size, Weight, checked

SLOPE = 0.2
SPREAD = 0.3
"""Standard deviation of the log of a cell's expected total."""


@dataclass
class SalientWorld:
    """Cells of two populations, and what made them.

    Attributes
    ----------
    data : AnnData
        ``X`` float32 [N, d], counts; ``obs["population"]``, "target" or "background", targets first;
        ``obsm["shared"]`` [N, n_z] and ``obsm["salient"]`` [N, n_s], zero in the background.
    rates, without : float64 [N, d]
        Expected proportions of each cell, and what they would be with salient latents of zero.
    """

    data: anndata.AnnData
    rates: np.ndarray
    without: np.ndarray


@checked
def salient_sim(
    seed: Seed,
    n_target: Size = 4000,
    n_background: Size = 4000,
    n_shared: Size = 5,
    n_salient: Size = 5,
    n_genes: Size = 100,
    n_hidden: Size = 40,
    depth: Weight = 5000.0,
    twist: bool = False,
) -> SalientWorld:
    """Return counts whose rates are a random leaky-rectifier network of shared and salient latents.

    Parameters
    ----------
    seed : int
    n_target, n_background : int
        Cells.
    n_shared, n_salient : int
        Standard normal latents; the salient ones are zero in the background.
    n_genes, n_hidden : int
    depth : float
        Median expected total of a cell.
    twist : bool
        Turn the first two shared latents by an angle that is the norm of the salient ones, before the network. Both
        populations have the same law as without, and the salient latents are not identified any more.

    Examples
    --------
    >>> world = salient_sim(0, n_target=20, n_background=10)
    >>> world.data.shape, int(world.data.obs["population"].eq("target").sum())
    ((30, 100), 20)
    """
    rng = np.random.default_rng(seed)
    widths = [n_shared + n_salient, n_hidden, n_hidden, n_hidden, n_genes]
    layers = [_orthonormal(rng, a, b) for a, b in zip(widths, widths[1:], strict=False)]
    shared, salient = rng.normal(size=(n_target, n_shared)), rng.normal(size=(n_target, n_salient))
    alone = rng.normal(size=(n_background, n_shared))
    target = _logits(np.hstack((_twisted(shared, salient) if twist else shared, salient)), layers)
    none = np.zeros((n_target + n_background, n_salient))
    plain = _logits(np.hstack((np.vstack((shared, alone)), none)), layers)
    scale = target.std()
    counts, rates = [], []
    for logits in (target, plain[n_target:]):
        rho = _proportions(logits / scale)
        totals = np.exp(rng.normal(np.log(depth), SPREAD, size=(len(rho), 1)))
        counts.append(rng.poisson(totals * rho))
        rates.append(rho)
    names = ["target"] * n_target + ["background"] * n_background
    data = anndata.AnnData(
        np.vstack(counts).astype(np.float32),
        obs=pd.DataFrame({"population": pd.Categorical(names)}, index=[f"cell{i}" for i in range(len(names))]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
        obsm={
            "shared": np.vstack((shared, alone)),
            "salient": np.vstack((salient, np.zeros((n_background, n_salient)))),
        },
    )
    return SalientWorld(data, np.vstack(rates), _proportions(plain / scale))


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return a matrix [rows, columns] with orthonormal rows or columns, scaled to keep variances through a layer."""
    drawn = rng.normal(size=(columns, rows))
    q = np.linalg.qr(drawn)[0].T if columns >= rows else np.linalg.qr(drawn.T)[0]
    return q * np.sqrt(2 / (1 + SLOPE**2))


def _logits(latents: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
    for weights in layers[:-1]:
        latents = latents @ weights
        latents = np.where(latents > 0, latents, SLOPE * latents)
    return latents @ layers[-1]


def _proportions(logits: np.ndarray) -> np.ndarray:
    rates = np.exp(logits)
    return rates / rates.sum(1, keepdims=True)


def _twisted(shared: np.ndarray, salient: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(salient, axis=1)
    turned = shared.copy()
    turned[:, 0] = np.cos(angle) * shared[:, 0] - np.sin(angle) * shared[:, 1]
    turned[:, 1] = np.sin(angle) * shared[:, 0] + np.cos(angle) * shared[:, 1]
    return turned
