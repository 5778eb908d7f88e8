"""What several fits say of one causal graph: how many find each edge, and draws of the graph for arviz."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

from fieldguide.decisions.graphs.distances import structural_hamming_distance
from fieldguide.decisions.graphs.figures import edge_map
from fieldguide.decisions.graphs.graph import Graph, causal_graph
from fieldguide.decisions.graphs.program import read_edges
from fieldguide.inference.checks.arguments import checked_int, checked_seed
from fieldguide.inference.weights.arviz_data import from_groups

LEVEL = 0.9
NOTES = (
    "the probability of an edge is the share of the fits that keep it: how far it depends on the seed (or on the "
    "sample, if the fits are of resampled cells). It is no posterior: fits of one wrong model agree on wrong edges.",
    f"low and high: central {LEVEL:.0%} interval of that share, had there been many more fits (Jeffreys' prior).",
)


@dataclass
class GraphEnsemble(Graph):
    """A graph that several fits agree on.

    ``probability`` is the share of the fits that keep each edge, and ``edges`` are those that are kept by at least the
    share ``threshold``, most often found first, unless they close a cycle. ``table`` has one row for each edge that any
    fit keeps: ``source``, ``target``, ``probability``, ``low`` and ``high``, ``within`` (mean over the fits of the
    edge's probability in a fit), ``sd`` of that between fits, and ``kept``. ``diagnostics`` has one row a fit: its
    edges, whether they close no cycle, how many were left out for that, and ``shd``, the distance to ``edges``.

    Attributes
    ----------
    members : tuple of Graph
        The graph of each fit.
    masks : tuple
        The probabilities behind each, [d, d] or a pair of [d, m].
    """

    members: tuple[Graph, ...] = ()
    masks: tuple[Any, ...] = field(default=(), repr=False)

    def to_arviz(self, draws: int = 100, seed: int = 0) -> Any:
        """Return arviz InferenceData with ``edge`` [fits, draws, d, d], graphs drawn from the masks of each fit.

        Each fit is a chain, so that ``arviz.rhat`` says which edges the fits disagree on, and means over all draws are
        probabilities of edges. Edges through the same factor are drawn together. Draws may have cycles.

        Examples
        --------
        >>> both = graph_ensemble([[[0, 0.9], [0, 0]], [[0, 0.5], [0, 0]]], genes=["a", "b"])
        >>> edge = both.to_arviz(draws=2000).posterior["edge"]
        >>> edge.shape, abs(float(edge.sel(source="a", target="b").mean()) - 0.7) < 0.03
        ((2, 2000, 2, 2), True)
        """
        draws, rng = checked_int("draws", draws, 1), np.random.default_rng(checked_seed(seed))
        edge = np.stack([draw_edges(mask, draws, rng) for mask in self.masks]).astype(np.int8)
        names = [str(gene) for gene in self.edges.index]
        return from_groups(
            {"posterior": {"edge": edge}}, {"source": names, "target": names}, {"edge": ["source", "target"]}
        )


def graph_ensemble(
    sources: Sequence[Any], threshold: float = 0.5, acyclic: bool = True, genes: Any = None
) -> GraphEnsemble:
    """Return the edges that fits agree on, and how sure one can be of that.

    Parameters
    ----------
    sources : sequence of Fit, array or DataFrame [d, d], or pair of them [d, m]
        Fits of one data set from several seeds, or of resampled cells; each as in `causal_graph`. Of a graph with
        cycles, such as ``edge_strengths(fitted) >= 0.05``, with ``acyclic=False``.
    threshold : float
        Probability in a fit from which it keeps an edge, and share of the fits from which the ensemble does.
    acyclic : bool
        False keeps edges that close cycles, in the fits and in the ensemble.
    genes : sequence, optional
        Names of the d genes, if the sources have none.

    Raises
    ------
    ValueError
        If the sources are not of the same genes, in order.

    Examples
    --------
    >>> agreed = graph_ensemble([[[0, 0.9], [0, 0]], [[0, 0.8], [0, 0]], [[0, 0], [0.7, 0]]], genes=["a", "b"])
    >>> agreed.table[["source", "target", "probability", "kept"]].round(2).to_dict("list")
    {'source': ['a', 'b'], 'target': ['b', 'a'], 'probability': [0.67, 0.33], 'kept': [True, False]}
    """
    if hasattr(sources, "program") or not hasattr(sources, "__len__") or isinstance(sources, str | type | pd.DataFrame):
        raise TypeError(f"sources must be a list of fits or of tables of probabilities, not {type(sources).__name__}")
    if not len(sources):
        raise ValueError("sources is empty: an ensemble needs at least one fit")
    members = tuple(causal_graph(source, threshold, acyclic, genes) for source in sources)
    names = members[0].edges.index
    for number, member in enumerate(members):
        other = member.edges.index
        if len(other) != len(names) or not (other == names).all():
            where = next((f"gene {b!r} in place of {a!r}" for a, b in zip(names, other, strict=False) if a != b), None)
            raise ValueError(
                f"fit {number} is of other genes than fit 0: {where or f'{len(other)}, not {len(names)} genes'}"
            )
    graphs = np.stack([member.edges.to_numpy() for member in members])
    inside = np.stack([member.probability.to_numpy() for member in members])
    count, n = graphs.sum(0), len(members)
    consensus = causal_graph(pd.DataFrame(count / n, index=names, columns=names), threshold, acyclic)
    edges = consensus.edges.to_numpy()
    i, j = np.nonzero(count)
    order = np.lexsort((-inside.mean(0)[i, j], -count[i, j]))
    i, j = i[order], j[order]
    k = count[i, j]
    table = pd.DataFrame(
        {
            "source": names[i],
            "target": names[j],
            "probability": k / n,
            "low": beta.ppf((1 - LEVEL) / 2, k + 0.5, n - k + 0.5),
            "high": np.where(k == n, 1.0, beta.ppf((1 + LEVEL) / 2, k + 0.5, n - k + 0.5)),
            "within": inside.mean(0)[i, j],
            "sd": inside.std(0, ddof=1)[i, j] if n > 1 else np.nan,
            "kept": edges[i, j],
        }
    )
    diagnostics = pd.concat([member.diagnostics for member in members], ignore_index=True).rename_axis("fit")
    diagnostics["shd"] = [structural_hamming_distance(member, edges) for member in graphs]
    return GraphEnsemble(
        table=table,
        diagnostics=diagnostics,
        settings={"threshold": threshold, "acyclic": acyclic, "fits": n},
        notes=NOTES,
        draw=edge_map,
        probability=consensus.probability,
        edges=consensus.edges,
        members=members,
        masks=tuple(read_edges(source).table for source in sources),
    )


def draw_edges(mask: Any, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return graphs [draws, d, d] drawn from probabilities of edges [d, d], or of edges into and out of factors.

    A gene and a factor are joined in one direction at most.

    Raises
    ------
    ValueError
        If the probabilities of both directions between a gene and a factor exceed one in sum.
    """
    if not isinstance(mask, tuple):
        return (rng.random((draws, *mask.shape)) < mask) & ~np.eye(len(mask), dtype=bool)
    a, b = mask
    above = np.argwhere(a + b > 1 + 1e-6)
    if above.size:
        j, f = above[0]
        raise ValueError(
            f"gene {j} is joined to factor {f} with probability {a[j, f] + b[j, f]:.3g} in both directions"
        )
    u = rng.random((draws, *a.shape))
    into, out_of = u < a, (u >= a) & (u < a + b)
    edges = into.astype(np.float32) @ out_of.astype(np.float32).swapaxes(1, 2) > 0
    return edges & ~np.eye(len(a), dtype=bool)
