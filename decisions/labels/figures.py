"""Figures of decisions on labels. Matplotlib is imported when a figure is asked for."""

from typing import Any

import numpy as np

from fieldguide.decisions.decision import Decision


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


def suspicion(decision: Decision) -> Any:
    """Draw how probable labels are to be wrong, and the expected FDR against the number of labels changed."""
    from matplotlib.figure import Figure

    table, settings = decision.table, decision.settings
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    parts = [table.loc[~table["wrong"], "p_wrong"], table.loc[table["wrong"], "p_wrong"]]
    names = [f"kept ({len(parts[0])})", f"changed ({len(parts[1])})"]
    left.hist(parts, bins=np.linspace(0, 1, 41), stacked=True, color=["C0", "C3"], label=names)
    left.set_xlabel("posterior probability that the label is wrong")
    left.set_ylabel("labelled cells")
    left.legend(loc="best")
    right.plot(np.arange(1, len(table) + 1), np.sort(table["fdr"].to_numpy()))
    right.axhline(settings["fdr"], color="0.5", linestyle="--")
    right.axvline(settings["changed"], color="0.5", linestyle=":")
    right.set_xlabel("labels changed")
    right.set_ylabel("expected false discovery rate")
    return figure


def matrices(decision: Decision) -> Any:
    """Draw the noise matrix of each annotator: true classes in rows, given labels in columns."""
    from matplotlib.figure import Figure

    annotators, classes = decision.settings["annotators"], decision.settings["classes"]
    figure = Figure(figsize=(4.5 * len(annotators), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(annotators), squeeze=False)[0], annotators, strict=True):
        part = decision.table[decision.table["annotator"] == name]
        values = np.asarray(part["estimate"]).reshape(len(classes), len(classes))
        image = axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
        axis.set_title(name)
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
        axis.set_xlabel("given label")
        axis.set_ylabel("true class")
        if len(classes) <= 10:
            for (row, column), value in np.ndenumerate(values):
                colour = "white" if value > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=figure.axes, label="probability")
    return figure
