"""Figures of a study, one function each. Matplotlib is imported when a figure is asked for.

No figure touches the global state of matplotlib (no pyplot), and equal studies give equal files.
"""

from collections.abc import Callable
from io import BytesIO
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.reports.frame import svg_of
from fieldguide.reports.study import Study

OBJECTIVES = ("#2563a8", "#d9730d", "#2f8f5b", "#8a4fbf", "#c23b3b", "#0e8a93", "#8a6d1f", "#5b6470")
LABELS = (
    *("#4477aa", "#ee8866", "#44a07b", "#cc6677", "#8f6bb3", "#bfa43a", "#55b5d6", "#99582a", "#e28bb8", "#7a8591"),
    *("#1b4f72", "#a04000", "#186a3b", "#7b241c", "#4a235a", "#7d6608", "#117a8b", "#4e342e", "#ad1457", "#37474f"),
)
INK, FAINT, RULE = "#1f2933", "#66727f", "#d5dbe1"
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": RULE,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": "#eef1f4",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fieldguide",
}
FONTS = "'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
"""Narrower than the font that the layout is made with, so that no text can overlap."""
WIDTH = 10.6
"""Of a full row, in inches: what the page shows without scaling."""
NAMED = 16
"""Genes that a volcano plot names."""


def svg(draw: Callable[..., Any], study: Study) -> bytes:
    """Return the figure as an SVG file; its text stays text."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        text = svg_of(draw(study)).decode("utf-8")
    return text.replace("'DejaVu Sans'", FONTS).replace("DejaVu Sans", FONTS.replace("'", "")).encode("utf-8")


def png(draw: Callable[..., Any], study: Study, dpi: int = 150) -> bytes:
    """Return the figure as a PNG file."""
    import matplotlib

    file = BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(study).savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def training(study: Study) -> Any:
    """Draw the bound on training and held-out cells after each epoch, for each objective."""
    figure, (axes,) = _panels(1, height=3.8, width=WIDTH)
    lowest = []
    for colour, (label, fit) in zip(_colours(study), study.fits.items(), strict=False):
        history = fit.history
        axes.plot(history.index + 1, -history["train"], color=colour, alpha=0.35, linewidth=1.2)
        axes.plot(history.index + 1, -history["validation"], color=colour, linewidth=2, label=label)
        lowest.append(-history["validation"].iloc[min(len(history) - 1, len(history) // 10)])
    ends = [-fit.history[c].min() for fit in study.fits.values() for c in ("train", "validation")]
    if max(ends) > min(lowest):
        axes.set_ylim(min(lowest), max(ends) + 0.05 * (max(ends) - min(lowest)))
    axes.set_xlim(1, None)
    axes.set_xlabel("epoch")
    axes.set_ylabel("bound, nats per cell")
    axes.grid(axis="y")
    axes.legend(loc="lower right", title="held-out (faint: training)", alignment="left")
    return figure


def latent(study: Study) -> Any:
    """Draw the first two principal components of each fit's latent means, coloured by the compared column."""
    groups = _groups(study)
    figure, panels = _panels(len(study.fits), height=4.6, legend=1.1 if groups is not None else 0.0)
    for axes, (label, fit) in zip(panels, study.fits.items(), strict=False):
        values = np.asarray(fit.latent(), dtype=np.float64)
        centred = values - values.mean(0)
        left, size, _ = np.linalg.svd(centred, full_matrices=False)
        points = (left * size)[:, :2] if values.shape[1] > 1 else np.column_stack((centred, np.zeros(len(centred))))
        share = size[:2] ** 2 / max((size**2).sum(), 1e-12)
        for name, mask, colour in _coloured(groups, len(points)):
            axes.scatter(*points[mask].T, s=11, color=colour, alpha=0.8, linewidths=0, label=name)
        axes.set_title(label)
        axes.set_xlabel(f"component 1 ({share[0]:.0%} of variance)")
        axes.set_ylabel(f"component 2 ({share[1]:.0%})" if len(share) > 1 else "")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(True)
    if groups is not None:
        handles, names = panels[0].get_legend_handles_labels()
        room = figure.get_figwidth() / (0.5 + 0.075 * max(len(name) for name in names))
        columns = int(np.clip(room, 1, len(names)))
        figure.legend(handles, names, loc="outside lower center", ncols=columns, markerscale=2, fontsize=8.5)
    return figure


def khat(study: Study) -> Any:
    """Draw the histogram of k-hat over held-out cells for each objective, with the thresholds 0.5 and 0.7."""
    khats = {label: posterior.khat for label, posterior in study.held_out.items()}
    bins = np.arange(-0.3, 2.0001, 0.1)
    figure, panels = _panels(len(khats), height=2.8, share=True)
    for axes, colour, (label, values) in zip(panels, _colours(study), khats.items(), strict=False):
        for low, high, shade in ((-0.3, 0.5, "#e7f4ea"), (0.5, 0.7, "#fdf3d8"), (0.7, 2.0, "#fbe9e7")):
            axes.axvspan(low, high, color=shade, linewidth=0)
        axes.hist(np.clip(values, -0.25, 2.0), bins, color=colour, alpha=0.85, rwidth=0.92)
        for limit in (0.5, 0.7):
            axes.axvline(limit, color=FAINT, linewidth=1, linestyle="--")
        axes.set_xlim(-0.3, 2.0)
        axes.set_xticks([0, 0.5, 0.7, 1.0, 1.5, 2.0])
        axes.set_title(f"{label}: median {np.median(values):.2f}")
        axes.set_xlabel("k-hat of a held-out cell")
    panels[0].set_ylabel("cells")
    return figure


def fdr(study: Study) -> Any:
    """Draw the expected false discovery rate of the list of the n most certain genes against n."""
    figure, (axes,) = _panels(1, height=3.8, width=WIDTH)
    target = next(iter(study.decisions.values())).settings["fdr"]
    axes.axhline(target, color=FAINT, linewidth=1, linestyle="--")
    shown, ends = 5 * target, [1]
    for number, (colour, (label, decision)) in enumerate(zip(_colours(study), study.decisions.items(), strict=False)):
        path = np.sort(decision.table["fdr"].to_numpy())
        called = int(decision.table["is_de"].sum())
        ends.append(int((path <= shown).sum()))
        width = 2 + 1.5 * (len(study.decisions) - 1 - number)  # equal curves lie on top of each other: all stay visible
        axes.plot(np.arange(1, len(path) + 1), path, color=colour, linewidth=width, label=f"{label}: {called} genes")
        if called:
            axes.plot([called], [path[called - 1]], "o", color=colour, markersize=6)
    axes.annotate(
        f"target {target:g}", (1, target), xytext=(0, 4), textcoords="offset points", color=FAINT, fontsize=8.5
    )
    axes.set_ylim(0, shown)
    axes.set_xlim(0, 1.03 * max(ends))
    axes.set_xlabel("genes called, most certain first")
    axes.set_ylabel("expected false discovery rate")
    axes.grid(axis="y")
    axes.legend(loc="upper left", title="called at the target", alignment="left")
    return figure


def volcano(study: Study) -> Any:
    """Draw each gene's fold change against its probability to be differential and name the most certain ones."""
    figure, panels = _panels(len(study.decisions), height=4.8, share=True)
    settings = next(iter(study.decisions.values())).settings
    for axes, colour, (label, decision) in zip(panels, _colours(study), study.decisions.items(), strict=False):
        table, delta = decision.table, settings["delta"]
        certain = table["lfc"].abs() / table["lfc_sd"]
        called = table["is_de"].to_numpy()
        axes.axvspan(-delta, delta, color="#f1f3f5", linewidth=0)
        axes.scatter(table["lfc"][~called], certain[~called], s=9, color="#b8c1ca", linewidths=0)
        axes.scatter(table["lfc"][called], certain[called], s=11, color=colour, alpha=0.75, linewidths=0)
        _name_genes(axes, table["lfc"].to_numpy(), certain.to_numpy(), called, list(table.index.astype(str)))
        axes.set_title(f"{label}: {called.sum()} of {len(table)} genes")
        axes.set_xlabel(f"log2 fold change, {settings['group']} over {settings['reference']}")
        axes.grid(axis="y")
    panels[0].set_ylabel("fold change / its posterior sd (absolute)")
    return figure


OF_FITS = {"training": training, "latent": latent, "khat": khat}
OF_DECISIONS = {"fdr": fdr, "volcano": volcano}
"""The figures by name: those of every study, and those of a study with decisions."""


def _name_genes(axes: Any, lfc: np.ndarray, certain: np.ndarray, called: np.ndarray, names: list[str]) -> None:
    """Name the most certain called genes of each direction, where the name covers no other name and no called gene."""
    axes.margins(x=0.2, y=0.08)
    inches = axes.figure.get_figwidth() / axes.get_gridspec().ncols - 0.7
    letter, gap = 0.085 / inches * 1.4 * np.ptp(lfc), 0.05 / inches * np.ptp(lfc)
    height = 0.036 * max(np.ptp(certain), 1e-9)
    boxes: list[tuple[float, float, float]] = []  # left, right, middle
    for sign in (-1, 1):
        side = np.flatnonzero(called & (np.sign(lfc) == sign))
        named = 0
        for place in side[np.argsort(-certain[side], kind="stable")]:
            near, far = lfc[place] + sign * gap, lfc[place] + sign * (gap + letter * len(names[place]))
            left, right, middle = min(near, far), max(near, far), certain[place]
            others = called & (np.arange(len(lfc)) != place) & (np.abs(certain - middle) < 0.7 * height)
            hidden = (others & (lfc > left) & (lfc < right)).any()
            clash = any(left < r and right > l and abs(middle - m) < height for l, r, m in boxes)  # noqa: E741
            if hidden or clash or named == NAMED // 2:
                continue
            axes.annotate(
                names[place],
                (lfc[place], middle),
                xytext=(5 * sign, 0),
                textcoords="offset points",
                fontsize=8.5,
                ha="left" if sign > 0 else "right",
                va="center",
            )
            boxes.append((left, right, middle))
            named += 1


def _panels(
    count: int, height: float, width: float | None = None, share: bool = False, legend: float = 0.0
) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, at most three in a row; sizes of a panel in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(3, count) if count != 4 else 2
    rows = ceil(count / columns)
    width = width or min(WIDTH / 2, WIDTH / columns)
    size = (width * columns, min(height, 1.1 * width) * rows + legend)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel().tolist()
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _colours(study: Study) -> list[str]:
    return [OBJECTIVES[i % len(OBJECTIVES)] for i in range(max(len(study.fits), len(study.decisions)))]


def _groups(study: Study) -> pd.Series | None:
    """Labels of the cells, when the data has the column that was compared."""
    column = study.settings.get("groupby")
    if study.data is None or column is None or column not in study.data.obs:
        return None
    labels = study.data.obs[column]
    return pd.Series(np.where(labels.notna(), labels.astype(str), "no label"))


def _coloured(groups: pd.Series | None, n_cells: int) -> list[tuple[str, np.ndarray, str]]:
    """(name, cells, colour) of each label, the most frequent first; the rarest share a grey."""
    if groups is None:
        return [("", np.full(n_cells, True), LABELS[0])]
    names = [str(n) for n in groups.value_counts().sort_index().sort_values(ascending=False, kind="stable").index]
    shown = names if len(names) <= len(LABELS) else names[: len(LABELS) - 1]
    labelled = [(name, (groups == name).to_numpy(), colour) for name, colour in zip(shown, LABELS, strict=False)]
    rest = (~groups.isin(shown)).to_numpy()
    return [*labelled, (f"{len(names) - len(shown)} others", rest, "#c5ccd3")] if rest.any() else labelled
