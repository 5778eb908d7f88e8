"""Simulated interventions on genes that act on each other through factors (Lopez et al. 2022)."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Seed, checked

MECHANISMS = ("linear", "nonlinear")
FEATURE_NOISE = 0.4


@dataclass
class FactorWorld:
    """Cells under interventions, and the graph that made them.

    Attributes
    ----------
    data : AnnData
        ``X`` float32 [n, d]; ``obs["targets"]``: the intervened genes, joined by commas, "" for none.
    edges : bool DataFrame [d, d]
        From the gene of the row to that of the column, through any factor.
    into, out_of : bool arrays [d, m]
        Edges gene -> factor and factor -> gene.
    """

    data: anndata.AnnData
    edges: pd.DataFrame
    into: np.ndarray
    out_of: np.ndarray


@checked
def factor_graph_sim(
    seed: Seed,
    d: int = 30,
    m: int = 5,
    n_regimes: int = 30,
    cells: int = 150,
    n_control: int = 0,
    mechanism: str = "linear",
    p_factor: float = 0.3,
    p_gene: float = 0.3,
    most_targets: int = 3,
    n_hidden: int = 4,
    factor_noise: float = 0.0,
) -> FactorWorld:
    """Return cells of a random acyclic graph of d genes and m factors, under perfect interventions.

    Genes and factors stand in a random order, and each has parents of the other kind from before it: a factor any with
    probability ``p_factor``, a gene with ``p_gene``. An intervened gene is a standard normal draw.

    Parameters
    ----------
    seed : int
    d, m : int
        Genes and factors, at most d of these.
    n_regimes, cells : int
        Regimes of 1 to ``most_targets`` targets each, drawn at random, and the cells of each.
    n_control : int
        Cells without a target.
    mechanism : {"linear", "nonlinear"}
        Linear: weights of size 0.25 to 1. Nonlinear: ``n_hidden`` tanh units with standard normal weights. Genes have
        normal noise of standard deviation 0.4.
    p_factor, p_gene : float
    most_targets : int
    n_hidden : int
    factor_noise : float
        Standard deviation of the noise of factors. Above zero, they are hidden common causes of their children, and
        edges between genes say less than the whole.

    Examples
    --------
    >>> world = factor_graph_sim(0, d=10, m=2, n_regimes=4, cells=5)
    >>> world.data.shape, world.data.obs["targets"].nunique()
    ((20, 10), 4)
    """
    one_of("mechanism", mechanism, MECHANISMS)
    if not 1 <= m <= d:
        raise ValueError(f"there are between 1 and {d} factors, not {m}")
    if not 1 <= most_targets <= d:
        raise ValueError(f"most_targets must be between 1 and {d}, not {most_targets}")
    rng = np.random.default_rng(seed)
    size = d + m
    is_factor = np.zeros(size, dtype=bool)  # vertices in causal order; a factor is neither first nor last
    is_factor[rng.choice(np.arange(1, size - 1), m, replace=False)] = True
    graph = np.zeros((size, size), dtype=bool)
    for v in range(size):
        before = np.flatnonzero(is_factor[:v] != is_factor[v])
        graph[before, v] = rng.random(len(before)) < (p_factor if is_factor[v] else p_gene)
    weights = rng.uniform(0.25, 1, (size, size)) * rng.choice([-1, 1], (size, size)) * graph
    w_in = rng.standard_normal((size, size, n_hidden)) * graph[..., None]
    w_out = rng.standard_normal((size, n_hidden))

    genes = rng.permutation(np.flatnonzero(~is_factor))  # names say nothing of the order
    factors = np.flatnonzero(is_factor)
    regimes = [np.sort(rng.choice(d, rng.integers(1, most_targets + 1), replace=False)) for _ in range(n_regimes)]
    targeted = np.zeros((n_regimes * cells + n_control, size), dtype=bool)
    names = [f"gene{j}" for j in range(d)]
    text: list[str] = []
    for k, targets in enumerate(regimes):
        targeted[k * cells : (k + 1) * cells, genes[targets]] = True
        text += [",".join(names[t] for t in targets)] * cells
    text += [""] * n_control
    x = np.zeros((len(text), size))
    for v in range(size):
        mean = x @ weights[:, v] if mechanism == "linear" else np.tanh(x @ w_in[:, v]) @ w_out[v]
        spread = factor_noise if is_factor[v] else FEATURE_NOISE
        natural = mean + spread * rng.standard_normal(len(x))
        x[:, v] = np.where(targeted[:, v], rng.standard_normal(len(x)), natural)
    into, out_of = graph[np.ix_(genes, factors)], graph[np.ix_(factors, genes)].T
    edges = pd.DataFrame((into.astype(int) @ out_of.T.astype(int)) > 0, index=names, columns=names)
    obs = pd.DataFrame({"targets": text}, index=[f"cell{i}" for i in range(len(text))])
    data = anndata.AnnData(x[:, genes].astype(np.float32), obs=obs, var=pd.DataFrame(index=names))
    return FactorWorld(data, edges, into, out_of)
