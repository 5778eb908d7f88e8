"""Figures of imputed genes. Matplotlib is imported when a figure is asked for."""

from typing import Any

import numpy as np

BEST = 30
"""Genes that are shown by name."""


def trust_of_genes(decision: Any) -> Any:
    """Draw what the shared genes scored against their score in the reference, and what imputed genes may expect."""
    from matplotlib.figure import Figure

    table, scores = decision.table, decision.settings["scores"]
    if scores is None:
        raise ValueError("there is no trust to draw: impute with trust=True")
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(scores["reference_score"], scores["kernel"], ".", color="0.6", label="shared genes, left out")
    left.plot(table["reference_score"], table["trust"], "x", color="C3", label="imputed genes, expected")
    left.set_xlabel("score within the reference")
    left.set_ylabel("Spearman correlation across assays")
    left.legend(loc="best")
    best = table.sort_values("trust").tail(BEST)
    right.errorbar(best["trust"], np.arange(len(best)), xerr=best["trust_se"], fmt=".", linewidth=0.7)
    right.set_yticks(np.arange(len(best)), best.index.astype(str), fontsize=6)
    right.set_xlabel("expected correlation, with standard error")
    return figure
