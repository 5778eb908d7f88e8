"""Figures of the decisions. Matplotlib is imported when a figure is asked for."""

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


def rejection(decision: Decision) -> Any:
    """Draw how certain the cells are, and the expected share of wrong decisions against the share decided on."""
    from matplotlib.figure import Figure

    table, threshold = decision.table, decision.settings["threshold"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, 1, 41)
    parts = [table.loc[~table["rejected"], "probability"], table.loc[table["rejected"], "probability"]]
    names = [f"decided ({len(parts[0])})", f"rejected ({len(parts[1])})"]
    left.hist(parts, bins=bins, stacked=True, color=["C0", "C3"], label=names)
    left.set_xlabel("probability of the most probable class")
    left.set_ylabel("cells")
    left.legend(loc="best")
    certain = np.sort(table["probability"].to_numpy())[::-1]
    decided = np.arange(1, len(certain) + 1)
    right.plot(decided / len(certain), np.cumsum(1 - certain) / decided)
    right.axvline(decision.settings["coverage"], color="0.5", linestyle="--")
    right.set_xlabel("share of cells decided on")
    right.set_ylabel("expected share of wrong decisions")
    if threshold is not None:
        left.axvline(threshold, color="0.5", linestyle="--")
    return figure


def risk_and_recall(decision: Decision) -> Any:
    """Draw risk against coverage, and precision against recall of the unknown classes where there are any."""
    from matplotlib.figure import Figure

    table, settings = decision.table, decision.settings
    unknown = "recall" in table
    figure = Figure(figsize=(9 if unknown else 5, 4), layout="constrained")
    axes = figure.subplots(1, 1 + unknown, squeeze=False)[0]
    axes[0].plot(table["coverage"], table["risk"])
    axes[0].set_title(f"area under the curve {settings['aurc']:.3f}")
    axes[0].set_xlabel("coverage: share of cells decided on")
    axes[0].set_ylabel("risk: share of wrong ones among them")
    if unknown:
        axes[1].plot(table["recall"], table["precision"])
        axes[1].axhline(settings["base_rate"], color="0.5", linestyle="--")
        axes[1].set_title(f"average precision {settings['average_precision']:.3f}")
        axes[1].set_xlabel("recall: share of unknown cells rejected")
        axes[1].set_ylabel("precision: share of unknown among the rejected")
    return figure


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
    best = table.sort_values("trust").tail(3 * LABELLED)
    right.errorbar(best["trust"], np.arange(len(best)), xerr=best["trust_se"], fmt=".", linewidth=0.7)
    right.set_yticks(np.arange(len(best)), best.index.astype(str), fontsize=6)
    right.set_xlabel("expected correlation, with standard error")
    return figure
