"""Figures of a causal graph."""

from typing import Any

import numpy as np

NAMED = 40
"""Genes up to which the axes have names."""


def edge_map(decision: Any) -> Any:
    """Draw the probabilities of edges, genes in causal order, with the kept ones marked; and edges by threshold."""
    from matplotlib.figure import Figure

    order = decision.order or list(decision.edges.index)
    values = decision.probability.loc[order, order].to_numpy()
    rows, columns = np.nonzero(decision.edges.loc[order, order].to_numpy())
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    image = left.imshow(values, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    left.plot(columns, rows, "s", markersize=3, color="C3", markerfacecolor="none", label=f"kept ({len(rows)})")
    figure.colorbar(image, ax=left, label="probability of the edge")
    left.set_xlabel("to gene")
    left.set_ylabel("from gene" + (", in causal order" if decision.order else ""))
    if len(order) <= NAMED:
        left.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
        left.set_yticks(range(len(order)), order, fontsize=7)
    if len(rows):
        left.legend(loc="lower left")
    off = values[~np.eye(len(values), dtype=bool)]
    right.plot(np.sort(off)[::-1], np.arange(1, len(off) + 1), drawstyle="steps-post")
    right.axvline(decision.settings["threshold"], color="0.5", linestyle="--")
    right.set_xlabel("threshold")
    right.set_ylabel("edges at or above it, cycles or not")
    return figure
