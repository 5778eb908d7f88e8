"""Simulated interventions on graphs with cycles, with the truth beside them, as in the experiments of NODAGS-Flow.

After Sethuraman et al. (2023), by their code's distributions, with random streams of our own.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from fieldguide.catalog.parts.contractive import ACTIVATIONS
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Seed, checked

KINDS = ("linear", "tanh", "relu", "selu", "gelu", "mixed")
MIXED = 0.5
"""Share of tanh in the kind "mixed"."""


@dataclass
class CyclicData:
    """Cells under interventions.

    Attributes
    ----------
    x : float32 array [N, d]
    targets : int64 array [N, M]
        Codes of the genes that were forced, -1 for none.
    weights : array [d, d]
        From row to column: ``x_j = act(sum_i weights[i, j] x_i) + e_j``.
    kind : str
    noise : float
        Standard deviation of e.
    validation : CyclicData, optional
        Cells of regimes with two targets each, held at one value in each regime.
    """

    x: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    kind: str
    noise: float
    validation: "CyclicData | None" = field(default=None, repr=False)

    @property
    def adjacency(self) -> np.ndarray:
        """Which edges there are, bool [d, d], from row to column."""
        return self.weights != 0

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What ``fit("nodags", ...)`` takes."""
        return {"x": self.x, "targets": self.targets}


def random_graph(d: int, density: float, rng: np.random.Generator, acyclic: bool = False) -> np.ndarray:
    """Return a graph, bool [d, d] from row to column: each gene has Binomial(d - 1, density / d) parents.

    With ``acyclic``, parents are drawn among the genes before it.
    """
    if d < 2 or not 0 < density <= d:
        raise ValueError(f"d must be at least 2 and density in (0, d], not {d} and {density}")
    graph = np.zeros((d, d), dtype=bool)
    for gene in range(d):
        others = np.arange(gene) if acyclic else np.delete(np.arange(d), gene)
        count = min(len(others), rng.binomial(d - 1, density / d))
        graph[rng.choice(others, count, replace=False), gene] = True
    return graph


@checked
def cyclic_sim(
    seed: Seed = 0,
    d: int = 20,
    cells: int = 300,
    *,
    density: float = 2.0,
    kind: str = "linear",
    acyclic: bool = False,
    contractive: bool = True,
    noise: float = 0.5,
    spread: float = 1.0,
    observational: int = 0,
    graph: np.ndarray | None = None,
) -> CyclicData:
    """Simulate ``cells`` cells under an intervention on each single gene.

    Weights are uniform in (0.2, 0.8) with random signs, then scaled: for a contractive map to a largest singular value
    of 1 / 1.1 of what it was, and of 1 / 1.1 if it was 1 or more (for "selu" and "gelu", whose slopes exceed one, lower
    by that factor); otherwise up to 2, if it was below.

    Parameters
    ----------
    seed : int
    d, cells : int
        Genes, and cells of each regime.
    density : float
        Parents of a gene, about.
    kind : {"linear", "tanh", "relu", "selu", "gelu", "mixed"}
        The activation; "mixed" is ``(z + tanh z) / 2`` of ``z = W'x + e``, with the noise inside.
    acyclic, contractive : bool
        Only an acyclic graph can have a map that is not contractive.
    noise : float
    spread : float
        Standard deviation of the values that targets are forced to, which are new in each cell.
    observational : int
        Cells without a target, at the end.
    graph : bool array [d, d], optional
        From row to column; drawn at random by default.
    """
    one_of("kind", kind, KINDS)
    if not contractive and not acyclic:
        raise ValueError("with cycles, a map that is not contractive may have no steady state: acyclic=True")
    rng = np.random.default_rng(seed)
    edges = random_graph(d, density, rng, acyclic) if graph is None else np.asarray(graph, dtype=bool)
    d = len(edges)
    weights = edges * rng.uniform(0.2, 0.8, (d, d)) * rng.choice([-1.0, 1.0], (d, d))
    norm = np.linalg.norm(weights, 2)
    if contractive:
        weights /= 1.1 * max(1.0, norm) * (ACTIVATIONS[kind][2] if kind in ACTIVATIONS else 1.0)
    elif 0 < norm <= 1:
        weights *= 2 / norm
    single = np.repeat(np.arange(d), cells)[:, None]
    targets = np.concatenate([single, np.full((observational, 1), -1)])
    values = spread * rng.normal(size=(len(targets), d))
    x = _settle(weights, kind, noise, targets, values, rng)
    pairs = np.stack([np.sort(rng.choice(d, 2, replace=False)) for _ in range(10)])
    constants = np.repeat(rng.normal(size=(10, d)), 80, 0)
    held = np.repeat(pairs, 80, 0)
    validation = CyclicData(_settle(weights, kind, noise, held, constants, rng), held, weights, kind, noise)
    return CyclicData(x, targets, weights, kind, noise, validation)


def _settle(weights, kind: str, noise: float, targets, values, rng: np.random.Generator) -> np.ndarray:
    """Iterate to the steady state of each cell, to rounding."""
    n, d = values.shape
    forced = np.zeros((n, d + 1), dtype=bool)
    np.put_along_axis(forced, np.where(targets < 0, d, targets), True, 1)
    forced, e, x = forced[:, :d], noise * rng.normal(size=(n, d)), values.copy()
    for _ in range(5000):
        z = x @ weights
        if kind == "mixed":
            new = (1 - MIXED) * (z + e) + MIXED * np.tanh(z + e)
        else:
            new = _activate(z, kind) + e
        new = np.where(forced, values, new)
        done = np.abs(new - x).max() < 1e-12 * (1 + np.abs(new).max())
        x = new
        if done:
            return x.astype(np.float32)
    raise RuntimeError("the simulated cells did not reach a steady state")


def _activate(z: np.ndarray, kind: str) -> np.ndarray:
    return z if kind == "linear" else ACTIVATIONS[kind][0](torch.from_numpy(z)).numpy()
