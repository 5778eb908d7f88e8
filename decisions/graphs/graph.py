"""A causal graph: the probability of each edge, the edges that are kept, and how good they are by the truth."""

from dataclasses import dataclass, field
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.graphs.dag import acyclic_factors, acyclic_part, is_acyclic, topological_order
from fieldguide.decisions.graphs.distances import structural_hamming_distance, structural_intervention_distance
from fieldguide.decisions.graphs.figures import edge_map
from fieldguide.decisions.graphs.program import by_name, read_edges
from fieldguide.decisions.messages import named, real_array
from fieldguide.inference.checks.aligning import missing, order_of, unnamed
from fieldguide.inference.checks.arguments import checked_flag, checked_real

SID_LARGEST = 150
"""Vertices up to which `graph_scores` computes the structural intervention distance."""
NOTES = (
    "probabilities are those of the fitted masks (from one fit): they say what the likelihood decided, and are no "
    "posterior unless the masks had a prior.",
)


@dataclass
class Graph(Decision):
    """Edges between genes.

    ``table`` has one row for each kept edge, most probable first: ``source``, ``target``, ``probability``.
    ``diagnostics``: one row, the number of edges, whether they close a cycle, and how many edges were left out because
    they would have.

    Attributes
    ----------
    probability : DataFrame [d, d]
        Of an edge from the gene of the row to the gene of the column.
    edges : bool DataFrame [d, d]
        Those that are kept.
    into, out_of : DataFrame [d, m], optional
        Of a graph through factors: whether the edges gene -> factor and factor -> gene are kept.
    """

    probability: pd.DataFrame = field(default_factory=pd.DataFrame)
    edges: pd.DataFrame = field(default_factory=pd.DataFrame)
    into: pd.DataFrame | None = None
    out_of: pd.DataFrame | None = None

    @property
    def is_dag(self) -> bool:
        """Whether the kept edges have no directed cycle."""
        return is_acyclic(self.edges.to_numpy())

    @property
    def order(self) -> list | None:
        """The genes in an order in which every edge points forward; None where there is a cycle."""
        places = topological_order(self.edges.to_numpy())
        return None if places is None else list(self.edges.index[places])

    def to_networkx(self) -> Any:
        """Return a ``networkx.DiGraph`` of the kept edges, with their ``probability``."""
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from(self.edges.index)
        rows = self.table[["source", "target", "probability"]].itertuples(index=False)
        graph.add_weighted_edges_from(rows, weight="probability")
        return graph

    def write(self, adata: anndata.AnnData, key: str = "graph") -> None:
        """Put the graph into an AnnData: ``varp[key]`` (probabilities), ``varp[key + "_edges"]`` (kept, sparse).

        Of a graph through factors also ``varm[key + "_into"]`` and ``varm[key + "_out_of"]``.

        Raises
        ------
        ValueError
            If its genes are not those of the graph, naming one.
        """
        names = pd.Index(adata.var_names)
        absent = next((g for g in names if g not in self.edges.index), None)
        if absent is not None or len(names) != len(self.edges):
            what = (
                f"gene {absent!r} is not in it" if absent is not None else f"{len(self.edges)} genes, not {len(names)}"
            )
            raise ValueError(f"the graph is of other genes than the AnnData: {what}")
        adata.varp[key] = self.probability.loc[names, names].to_numpy()
        adata.varp[f"{key}_edges"] = sp.csr_matrix(self.edges.loc[names, names].to_numpy())
        for name, part in (("into", self.into), ("out_of", self.out_of)):
            if part is not None:
                adata.varm[f"{key}_{name}"] = part.loc[names].to_numpy()


def causal_graph(source: Any, threshold: float = 0.5, acyclic: bool = True, genes: Any = None) -> Graph:
    """Return the graph of a fit, or of plain edge probabilities.

    Edges are added by decreasing probability down to ``threshold``; one that would close a cycle is left out. The graph
    that is returned is the one that a fit whose graph has settled predicts with.

    Parameters
    ----------
    source : Fit, array or DataFrame [d, d], or pair of them [d, m]
        A fit of a program with ``edge_weights()`` (see `fieldguide.decisions.graphs.program.GraphProgram`),
        probabilities of edges between genes (row to column), or of the edges gene -> factor and factor -> gene.
    threshold : float
        In [0, 1]; an edge of probability 0 is none.
    acyclic : bool
        False keeps every edge at or above the threshold.
    genes : sequence, optional
        Names of the d genes, if the source has none.

    Examples
    --------
    >>> graph = causal_graph([[0, 0.9], [0.7, 0]], genes=["a", "b"])
    >>> graph.table.to_dict("records"), graph.is_dag
    ([{'source': 'a', 'target': 'b', 'probability': 0.9}], True)
    """
    threshold, acyclic = checked_real("threshold", threshold, at_least=0, at_most=1), checked_flag("acyclic", acyclic)
    least = max(threshold, np.finfo(float).tiny)  # an edge of probability zero is none
    read = read_edges(source, genes)
    settled, factors = read.settled() if acyclic else None, ()
    if isinstance(read.table, tuple):
        into, out_of = read.table
        values, wanted = through_factors(into, out_of), (into >= least, out_of >= least)
        factors = settled or (acyclic_factors(into, out_of, least) if acyclic else wanted)
        first, second = (part.astype(np.float32) for part in factors)
        edges = (first @ second.T > 0) & ~np.eye(len(values), dtype=bool)
        left_out = sum(int(w.sum() - kept.sum()) for w, kept in zip(wanted, factors, strict=True))
    else:
        values = read.table * (1 - np.eye(len(read.table)))
        wanted = values >= least
        edges = settled if settled is not None else acyclic_part(values, least) if acyclic else wanted
        left_out = int(wanted.sum() - edges.sum())
    if isinstance(read.genes, str) or (read.genes is not None and np.ndim(read.genes) != 1):
        raise TypeError(f"genes must be a list of names, one of each gene, not {read.genes!r:.60}")
    names = pd.Index(range(len(values)) if read.genes is None else read.genes)
    if len(names) != len(values):
        raise ValueError(f"genes has {len(names)} names for {len(values)} genes")
    if names.has_duplicates:
        raise ValueError(f"genes has {names[names.duplicated()][0]!r} twice: names of genes must differ")
    places = np.argwhere(edges)
    places = places[np.argsort(-values[edges], kind="stable")]
    rows = {
        "source": names[places[:, 0]],
        "target": names[places[:, 1]],
        "probability": values[places[:, 0], places[:, 1]],
    }
    counts = {"edges": len(places), "is_dag": is_acyclic(edges), "left_out": left_out if settled is None else 0}
    frames = {name: pd.DataFrame(part, index=names) for name, part in zip(("into", "out_of"), factors, strict=False)}
    return Graph(
        table=pd.DataFrame(rows),
        diagnostics=pd.DataFrame([counts]),
        settings={"threshold": threshold, "acyclic": acyclic},
        notes=NOTES,
        draw=edge_map,
        probability=pd.DataFrame(values, index=names, columns=names),
        edges=pd.DataFrame(edges, index=names, columns=names),
        **frames,
    )


def through_factors(into: ArrayLike, out_of: ArrayLike) -> np.ndarray:
    """Return the probability [d, d] that at least one factor joins i to j, its edges being independent; 0 for i = j."""
    a, b = np.asarray(into, dtype=np.float64), np.asarray(out_of, dtype=np.float64)
    none = np.ones((len(a), len(a)))
    for f in range(a.shape[1]):
        none *= 1 - np.outer(a[:, f], b[:, f])
    return (1 - none) * (1 - np.eye(len(a)))


def graph_scores(estimated: Any, true: ArrayLike, sid: Any = None) -> pd.Series:
    """Return how well a graph agrees with the true one.

    Parameters
    ----------
    estimated : Graph, array or DataFrame [d, d]
        A graph, or edges (of true and false, or 0 and 1). Average precision needs a `Graph`.
    true : array or DataFrame [d, d]
        Tables are matched by the names of the genes.
    sid : bool, optional
        Whether to compute the structural intervention distance; by default for acyclic graphs of up to 150 genes.

    Returns
    -------
    Series
        ``shd`` (a reversed edge counts once), ``sid``, ``precision``, ``recall`` and ``f1`` of directed edges,
        ``average_precision`` of the probabilities of all ordered pairs, ``edges`` and ``true_edges``.

    Examples
    --------
    >>> graph_scores([[0, 1], [0, 0]], [[0, 0], [1, 0]])[["shd", "sid", "f1"]].to_dict()
    {'shd': 1.0, 'sid': 2.0, 'f1': 0.0}
    """
    table = estimated.edges if isinstance(estimated, Graph) else estimated
    sid = None if sid is None else checked_flag("sid", sid)
    table = by_name(table, "the estimated graph")
    truth = _match(by_name(true, "the true graph"), table)
    edges = real_array("estimated", table)
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1] or edges.shape != truth.shape:
        raise ValueError(f"estimated and true edges must be tables [d, d], not {edges.shape} and {truth.shape}")
    if not np.isin(edges, (0, 1)).all():
        raise ValueError("estimated edges must be 0 or 1: make a graph of probabilities by causal_graph")
    edges = edges.astype(bool)
    shd = structural_hamming_distance(edges, truth)
    both = int((edges & truth).sum())
    precision = both / edges.sum() if edges.any() else np.nan
    recall = both / truth.sum() if truth.any() else np.nan
    wanted = len(edges) <= SID_LARGEST and is_acyclic(edges) and is_acyclic(truth) if sid is None else sid
    scores = {
        "shd": shd,
        "sid": structural_intervention_distance(edges, truth) if wanted else np.nan,
        "precision": precision,
        "recall": recall,
        "f1": 2 * both / (edges.sum() + truth.sum()) if edges.any() or truth.any() else np.nan,
        "average_precision": np.nan,
        "edges": edges.sum(),
        "true_edges": truth.sum(),
    }
    if isinstance(estimated, Graph) and truth.any():
        from sklearn.metrics import average_precision_score

        off = ~np.eye(len(truth), dtype=bool)
        scores["average_precision"] = average_precision_score(truth[off], estimated.probability.to_numpy()[off])
    return pd.Series(scores, dtype=float)


def _match(true: Any, table: Any) -> np.ndarray:
    if isinstance(true, pd.DataFrame) and isinstance(table, pd.DataFrame):
        absent = missing(true.index, table.index)
        if len(absent) and not (unnamed(true.index) and len(true) == len(table)):
            raise ValueError(f"the true graph has no gene {named(absent, 0)}")
        rows = order_of("the true graph", true.index, table.index, "genes")
        square = true.shape[0] == true.shape[1]  # its columns are in the order of its rows
        true = true.iloc[rows, rows if square else order_of("the true graph", true.columns, table.index, "genes")]
    values = real_array("true", true)
    if not np.isin(values, (0, 1)).all():
        raise ValueError("true edges must be 0 or 1")
    return values.astype(bool)
