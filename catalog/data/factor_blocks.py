"""Simulated cells of several contexts under several treatments, made by three blocks of latents (FCR)."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.ranges import Seed, Size, Weight, checked

SLOPE = 0.2
GAIN = 1.4
"""Keeps the variance of values through a layer of leaky rectifiers."""
SPREAD = 2.0
"""Standard deviation of the means of the latents."""
SCALES = (0.3, 1.0)
"""Standard deviations of the latents within a condition are uniform between these."""
CONTROL = "control"


@dataclass
class FactorWorld:
    """Cells, and what made them.

    Attributes
    ----------
    data : AnnData
        ``X`` float32 [N, d], real numbers; ``obs["context"]``, such as "c2", and ``obs["treatment"]``, "control" or
        such as "t3"; ``obsm["z_x"]``, ``obsm["z_tx"]`` and ``obsm["z_t"]`` [N, 2].
    means, scales : dict of float64 arrays
        Of the latents in each condition: ``z_x`` [contexts, 2], ``z_t`` [treatments, 2], ``z_tx`` [contexts,
        treatments, 2]; the control is the first treatment.
    layers : list of float64 arrays
    centre : float64 [d]
    scale : float
    """

    data: anndata.AnnData
    means: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    layers: list[np.ndarray]
    centre: np.ndarray
    scale: float

    def expected(self, latents: np.ndarray) -> np.ndarray:
        """Return the values [n, d] without noise of cells with latents [n, 6], z_x before z_tx before z_t."""
        return (_network(latents, self.layers) - self.centre) / self.scale


@checked
def factor_sim(
    seed: Seed,
    n_contexts: Size = 3,
    n_treatments: Size = 6,
    n_cells: Size = 200,
    n_genes: Size = 50,
    n_hidden: Size = 30,
    noise: Weight = 0.1,
) -> FactorWorld:
    """Return cells whose values are a random leaky-rectifier network of latents of context, treatment and both.

    The interaction latents of every pair of context and treatment have a mean of their own, that is nothing else's sum.

    Parameters
    ----------
    seed : int
    n_contexts, n_treatments : int
        The first treatment is the control.
    n_cells : int
        Of each pair of context and treatment.
    n_genes, n_hidden : int
    noise : float
        Standard deviation, where that of the values without it is 1 over all cells and genes.

    Examples
    --------
    >>> world = factor_sim(0, n_cells=10)
    >>> world.data.shape, sorted(world.data.obs["treatment"].unique())[:2]
    ((180, 50), ['control', 't1'])
    """
    rng = np.random.default_rng(seed)
    shapes = {"z_x": (n_contexts, 2), "z_t": (n_treatments, 2), "z_tx": (n_contexts, n_treatments, 2)}
    means = {block: rng.normal(0, SPREAD, shape) for block, shape in shapes.items()}
    scales = {block: rng.uniform(*SCALES, shape) for block, shape in shapes.items()}
    means["z_t"][0] = 0
    means["z_tx"][:, 0] = 0
    context = np.repeat(np.arange(n_contexts), n_treatments * n_cells)
    treatment = np.tile(np.repeat(np.arange(n_treatments), n_cells), n_contexts)
    at = {"z_x": (context,), "z_t": (treatment,), "z_tx": (context, treatment)}
    drawn = {b: means[b][rows] + scales[b][rows] * rng.normal(size=(len(context), 2)) for b, rows in at.items()}
    blocks = {block: drawn[block] for block in ("z_x", "z_tx", "z_t")}
    widths = [6, n_hidden, n_hidden, n_genes]
    layers = [_orthonormal(rng, a, b) for a, b in zip(widths, widths[1:], strict=False)]
    values = _network(np.hstack(list(blocks.values())), layers)
    centre, scale = values.mean(0), float(values.std())
    noisy = (values - centre) / scale + rng.normal(0, noise, values.shape)
    obs = pd.DataFrame(
        {
            "context": pd.Categorical([f"c{c}" for c in context]),
            "treatment": pd.Categorical([CONTROL if t == 0 else f"t{t}" for t in treatment]),
        },
        index=[f"cell{i}" for i in range(len(context))],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    data = anndata.AnnData(noisy.astype(np.float32), obs=obs, var=var, obsm=blocks)
    return FactorWorld(data, means, scales, layers, centre, scale)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return a matrix [rows, columns] with orthonormal rows or columns."""
    drawn = rng.normal(size=(columns, rows))
    return np.linalg.qr(drawn)[0].T if columns >= rows else np.linalg.qr(drawn.T)[0]


def _network(latents: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
    for weights in layers[:-1]:
        latents = GAIN * latents @ weights
        latents = np.where(latents > 0, latents, SLOPE * latents)
    return latents @ layers[-1]
