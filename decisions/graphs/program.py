"""What the decisions on graphs ask of a fitted program, and of its data: its methods, and the names of its genes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from torch import Tensor

from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.aligning import order_of, places, shuffled, unnamed
from fieldguide.inference.checks.labels import label_texts
from fieldguide.inference.fitted import Fit
from fieldguide.inference.program import Batch

LACKING = {
    "edge_weights": "has no graph: it needs a method edge_weights()",
    "one_step": "does not predict genes from others: it needs a method one_step(batch)",
    "simulate": "has no causal graph to draw cells from: it needs a method simulate(noise, targets, held)",
}


@runtime_checkable
class GraphProgram(Protocol):
    """A program with a causal graph of d genes: what the decisions on it call, each of them some of this.

    ``interventions`` is "perfect" where a program does not say; "imperfect" ones force no value on a gene.
    """

    interventions: str

    def edge_weights(self) -> Tensor | tuple[Tensor, Tensor]:
        """Return the probabilities of edges [d, d], or of those into and out of factors, [d, m] each."""
        ...

    def edge_probabilities(self) -> Tensor | tuple[Tensor, Tensor]:
        """Return what to report as probabilities; `edge_weights` where a program does not say."""
        ...

    def settled_edges(self) -> np.ndarray | tuple[np.ndarray, np.ndarray] | None:
        """Return the edges that the program predicts with, bool; None (or no such method) where none are settled."""
        ...

    def one_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, log density and whether it counts, of each gene given the others [B, d].

        What belongs to a cell and not to a gene (a log-determinant) is shared out among the genes that count.
        """
        ...

    def simulate(self, noise: Tensor, targets: Tensor, held: Tensor, **solver: float) -> Tensor:
        """Return cells [B, d] from standard normal noise [B, d], codes of targets [B, M] and their values [B, d]."""
        ...


def graph_program(fitted: Any, method: str) -> Any:
    """Return the program of a fit, which must have one method of a `GraphProgram`; raises TypeError, naming it."""
    if not hasattr(fitted, "program"):
        raise TypeError(f"fitted must be a Fit of a causal program, not {type(fitted).__name__}")
    program = fitted.program
    if not callable(getattr(program, method, None)):
        raise TypeError(f"{type(program).__name__} {LACKING[method]}")
    return program


@dataclass(frozen=True)
class Edges:
    """Checked probabilities of edges, as a table [d, d] (row to column) or a pair [d, m] (gene to factor, and back).

    ``settled`` returns the edges that the program of a fit predicts with, in that form, or None; ``genes`` are names,
    or None.
    """

    table: np.ndarray | tuple[np.ndarray, np.ndarray]
    settled: Callable[[], Any]
    genes: Any


def read_edges(source: Any, genes: Any = None) -> Edges:
    """Return the probabilities of edges that a source of `fieldguide.decisions.causal_graph` says."""
    settled: Callable[[], Any] = _unsettled
    if hasattr(source, "program"):
        program: GraphProgram = graph_program(source, "edge_weights")
        genes = _agreed(genes, known_genes(source))
        settled = getattr(program, "settled_edges", settled)
        source = getattr(program, "edge_probabilities", program.edge_weights)()
    if isinstance(source, tuple) and len(source) == 2:
        first, second, genes = _pair_by_name(source, genes)
        into, out_of = _probabilities(first), _probabilities(second)
        if into.shape != out_of.shape:
            shapes = f"{into.shape} and {out_of.shape}"
            raise ValueError(f"weights into and out of factors must both be [d, m], not {shapes}")
        return Edges((into, out_of), settled, genes)
    if isinstance(source, pd.DataFrame):
        source = by_name(source)
        genes = _agreed(genes, source.index)
    table = _probabilities(source)
    if table.shape[0] != table.shape[1]:
        raise ValueError(f"probabilities of edges are a square table (row to column), not {table.shape}")
    return Edges(table, settled, genes)


def _unsettled() -> None:
    """What says of its edges no more than their probabilities."""


def _agreed(genes: Any, own: Any) -> Any:
    """The names of the genes: those given, where the source has none or the same ones; ValueError for others."""
    if genes is None or own is None or unnamed(pd.Index(own)) or not _listed(genes):
        return own if genes is None else genes
    given, known = label_texts(pd.Index(genes)), label_texts(pd.Index(own))
    if len(given) == len(known) and not all(map(str.isdecimal, known)):  # numbers are given by pandas and AnnData
        other = np.flatnonzero(given != known)
        if other.size:
            raise ValueError(
                f"genes has {given[other[0]]!r} where the source has {known[other[0]]!r}: leave genes out, or put them "
                "in its order; names that the source has are not replaced"
            )
    return genes


def _listed(genes: Any) -> bool:
    return not isinstance(genes, str) and np.ndim(genes) == 1


def by_name(table: Any, what: str = "the graph") -> Any:
    """Return a table [d, d] with its columns in the order of its rows, by their names; anything else as it is."""
    if not isinstance(table, pd.DataFrame) or table.shape[0] != table.shape[1]:
        return table
    if unnamed(table.index) and not shuffled(table.columns):
        return table
    return table.iloc[:, order_of(f"the columns of {what}", table.columns, table.index, "rows")]


def _pair_by_name(source: tuple[Any, Any], genes: Any) -> tuple[Any, Any, Any]:
    """The pair with genes and factors of the second table in the order of the first, and the names of the genes."""
    into, out_of = source
    if not (isinstance(into, pd.DataFrame) and isinstance(out_of, pd.DataFrame)):
        return into, out_of, genes
    if not (unnamed(into.index) or unnamed(out_of.index)):
        out_of = out_of.iloc[places("the second table", out_of.index, into.index, "genes of the first")]
        genes = _agreed(genes, into.index)
    if not (unnamed(into.columns) or unnamed(out_of.columns)):
        out_of = out_of.iloc[:, places("the second table", out_of.columns, into.columns, "factors of the first")]
    return into, out_of, genes


def _probabilities(part: Any) -> np.ndarray:
    values = real_array("source, where it is no fit of a causal program,", part)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"probabilities of edges are a table, not an array of shape {values.shape}")
    outside = np.argwhere(~((values >= 0) & (values <= 1 + 1e-6)))
    if outside.size:
        row, column = outside[0]
        raise ValueError(f"probability of the edge from {row} to {column} is {values[row, column]}")
    return values.clip(0, 1)


def known_genes(fitted: Any, field: str | None = None) -> list | None:
    """Return the names of the genes as the training data had them, in any field or in one; None where they had none."""
    states = {} if fitted.schema is None else fitted.schema.states
    searched = states.values() if field is None else [states[field]] if states else []
    return next((state["genes"] for state in searched if state.get("genes")), None)


def gene_names(fitted: Fit) -> list:
    """Return the names of the genes: those of the training data, or their numbers."""
    names = known_genes(fitted)
    return list(range(fitted.arguments["n_features"])) if names is None else list(names)
