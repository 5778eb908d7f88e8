"""Figures of the decisions on expression. Matplotlib is imported when a figure is asked for."""

from typing import Any

import numpy as np

from fieldguide.decisions.decision import Decision

LABELLED = 10


def volcano(decision: Decision) -> Any:
    """Draw each gene's fold change and its certainty, and the expected FDR against the number of genes called."""
    from matplotlib.figure import Figure

    table, settings = decision.table, decision.settings
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    certainty = table["lfc"].abs() / table["lfc_sd"]
    for called, colour, name in ((False, "0.7", "not called"), (True, "C3", "called")):
        part = table[table["is_de"] == called]
        left.scatter(
            part["lfc"],
            certainty[table["is_de"] == called],
            s=8,
            color=colour,
            label=f"{name} ({len(part)})",
            linewidths=0,
        )
    for place in np.argsort(-(certainty * table["is_de"]).to_numpy())[: min(LABELLED, int(table["is_de"].sum()))]:
        left.annotate(str(table.index[place]), (table["lfc"].iloc[place], certainty.iloc[place]), fontsize=7)
    left.set_xlabel(f"log2 fold change, {settings['group']} over {settings['reference']}")
    left.set_ylabel("absolute fold change / posterior sd")
    left.legend(loc="best")
    path = np.sort(table["fdr"].to_numpy())
    right.plot(np.arange(1, len(path) + 1), path)
    right.axhline(settings["fdr"], color="0.5", linestyle="--")
    right.axvline(int((path <= settings["fdr"]).sum()), color="0.5", linestyle=":")
    right.set_xlabel("genes called")
    right.set_ylabel("expected false discovery rate")
    return figure


def predictive(decision: Any) -> Any:
    """Draw observed against replicated statistics of the genes, and the coverage of central intervals."""
    from matplotlib.figure import Figure

    genes, levels = decision.genes, decision.calibration
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name in zip(axes, ("zero_fraction", "cv"), strict=False):
        replicated, spread = genes[f"{name}_replicated"], genes[f"{name}_sd"]
        axis.errorbar(genes[name], replicated, 2 * spread, fmt=".", markersize=3, linewidth=0.5)
        ends = [min(genes[name].min(), replicated.min()), max(genes[name].max(), replicated.max())]
        axis.plot(ends, ends, color="0.5", linestyle="--")
        axis.set_xlabel(f"observed {name.replace('_', ' ')} of a gene")
        axis.set_ylabel("replicated (2 sd)")
    axes[2].plot(levels["nominal"], levels["coverage"], marker="o")
    axes[2].plot(levels["nominal"], levels["nominal"], color="0.5", linestyle="--")
    axes[2].set_xlabel("nominal probability of the central interval")
    axes[2].set_ylabel("share of counts inside")
    return figure


def uncertainty(decision: Any) -> Any:
    """Draw each gene's relative posterior uncertainty in a cell against its mean expression."""
    from matplotlib.figure import Figure

    mean = decision.table.mean(axis=0)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.loglog(mean, decision.sd.mean(axis=0) / mean, ".", markersize=3)
    axis.set_xlabel("mean expression of the gene")
    axis.set_ylabel("posterior sd of a cell / mean")
    return figure
