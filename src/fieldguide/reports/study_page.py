"""The report as one HTML page that needs no other file: style and figures are inside it."""

import platform
from collections.abc import Mapping
from html import escape
from importlib.metadata import version
from typing import Any

import pandas as pd

from fieldguide.decisions import Decision
from fieldguide.reports.frame import embedded, framed
from fieldguide.reports.study import DEFINITIONS, Study
from fieldguide.reports.study_figures import OBJECTIVES
from fieldguide.reports.summary import COLUMNS, findings, question, shown

PACKAGES = ("fieldguide", "torch", "pyro-ppl", "anndata", "arviz", "numpy", "scipy", "scikit-learn")
LISTED = 15
"""Genes listed for each direction."""
CAPTIONS = {
    "training": (
        "Training curves of the objectives",
        "The bound after each epoch. Strong lines: held-out cells; faint lines: training cells. A gap that widens "
        "while the strong line falls is overfitting. Every objective is drawn by its own bound, and one of many "
        "particles lies above one of few for the same model: compare shapes here, and levels in the table.",
    ),
    "latent": (
        "Map of the latent space",
        "One point a cell: the mean of its latent variables, projected onto their first two principal components, and "
        "coloured by label. Neighbours have similar expression under the model; the axes have no scale, and turning or "
        "mirroring a panel means nothing.",
    ),
    "khat": (
        "Histograms of k-hat",
        "How heavy the tail of the importance weights is, for each held-out cell. Green: reliable. Yellow (0.5 to "
        "0.7): usable. Red: the guide misses too much of that cell's posterior, and weighted averages over its draws "
        "cannot be trusted. Bars at either end hold everything beyond.",
    ),
    "fdr": (
        "Expected false discovery rate against the number of genes called",
        "Genes are called from the most certain on. The curve is the expected share of false ones among the first n; "
        "a list ends where it crosses the target (dot). A curve that stays low for longer calls more genes at equal "
        "error.",
    ),
    "volcano": (
        "Volcano plots",
        "One point a gene: its fold change, against how many posterior standard deviations it is away from none. "
        "Coloured: called at the target; the grey band is what counts as no change. Those farthest up on "
        "either side are named, where there is room.",
    ),
}
TABLE = {
    "lfc": ("log2 fold change", "{:.2f}", "Posterior mean; positive is higher in the group."),
    "lfc_low": ("from", "{:.2f}", "Lower end of the central 95 % posterior interval."),
    "lfc_high": ("to", "{:.2f}", "Upper end of the central 95 % posterior interval."),
    "probability": ("p(DE)", "{:.3f}", "Posterior probability that the change is at least delta in this direction."),
    "fdr": ("FDR", "{:.3f}", "Expected false discovery rate of the list from the top down to this gene."),
    "counts_1": ("mean count, group", "{:.2f}", "Mean raw count per cell in the group."),
    "counts_2": ("mean count, reference", "{:.2f}", "Mean raw count per cell in the reference."),
    "nonzero_1": ("cells with any, group", "{:.0%}", "Share of the group's cells with at least one count."),
    "nonzero_2": ("cells with any, reference", "{:.0%}", "Share of the reference's cells with at least one count."),
}


def page(study: Study, figures: Mapping[str, bytes], files: Mapping[str, str], cite: str, date: str) -> str:
    """Return the report.

    Parameters
    ----------
    study : Study
    figures : mapping of str to bytes
        SVG of each figure, under the names of `CAPTIONS`.
    files : mapping of str to str
        What else is in the folder: name and description.
    cite : str
        BibTeX of what was fitted; may be empty.
    date : str
        When the report was made.
    """
    names = " and ".join(filter(None, [", ".join(list(study.fits)[:-1]), list(study.fits)[-1]]))
    title = f"{study.settings['entry']} under {names}"
    sections = [
        ("comparison", "Comparison", _comparison(study)),
        ("training", "Training", _figure("training", figures)),
        ("latent", "Latent space", _figure("latent", figures)),
        ("trust", "Can the weights be trusted?", _figure("khat", figures)),
        ("proposals", "One model, several guides", _proposals(study)),
        ("genes", "Differential expression", _genes(study, figures)),
        ("settings", "Settings and versions", _settings(study)),
        ("citation", "Citation", f"<pre>{escape(cite)}</pre>" if cite else ""),
        ("files", "Files in this folder", _definitions(files, "file")),
    ]
    return framed(title, _size(study), sections, date, top=_findings(study))


def _size(study: Study) -> str:
    s = study.settings
    genes = f" × {s['arguments']['n_genes']} genes" if "n_genes" in s["arguments"] else ""
    cells = s["cells_trained"] + s["cells_held_out"]
    split = f"{s['cells_trained']} cells trained on, {s['cells_held_out']} held out; seed {s['seed']}"
    return f"{s['data']}: {cells} cells{genes}. {split}."


def _findings(study: Study) -> str:
    above = study.table["khat_above"]
    verdict = {"Trust": "good" if (above <= 0.5).all() else "bad"}
    cards = [
        f'<div class="finding {verdict.get(topic, "")}"><h2>{escape(topic)}</h2><p>{escape(text)}</p></div>'
        for topic, text in findings(study)
    ]
    return f'<div class="findings">{"".join(cards)}</div>'


def _rows(table: pd.DataFrame) -> str:
    """A table as `shown` makes it, in HTML; the columns lead to their definitions."""
    head = "".join(f'<th><a href="#def-{name}">{escape(COLUMNS[name][0])}</a></th>' for name in table)
    rows = []
    for number, (label, row) in enumerate(table.iterrows()):
        mark = f'<span class="dot" style="background:{OBJECTIVES[number % len(OBJECTIVES)]}"></span>'
        best = ' class="best"' if row["behind"] == "best" else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in row)
        rows.append(f"<tr{best}><td>{mark}{escape(str(label))}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>objective</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _proposals(study: Study) -> str:
    if study.steps is None:
        return ""
    return (
        f"<p>What makes a good model and what makes a good proposal are different questions. The model of "
        f"{escape(study.steps.model)}, whose held-out bound is best, was kept as it is; guides were fitted to it anew "
        "by each objective, and mixed with its prior (multiple importance sampling with the balance heuristic). At "
        "equal draws and for one model, a higher bound is a better proposal.</p>" + _rows(shown(study.steps))
    )


def _comparison(study: Study) -> str:
    table = shown(study)
    losses = "".join(
        f"<li><code>{escape(str(label))}</code>: <code>{escape(loss)}</code></li>"
        for label, loss in study.table["loss"].items()
    )
    s = study.settings
    meanings = {name: DEFINITIONS[name] for name in [*table.columns, "behind_se", "loss"]}
    titles = {name: COLUMNS[name][0] if name in COLUMNS else name for name in meanings}
    titles |= {"behind_se": "± after it", "loss": "objective"}
    return (
        f"<p>The same model, from the same initial values and on the same split, under each objective; evaluated on "
        f"{s['cells']} held-out cells with S = {s['draws']} draws each. Bounds are in nats per cell. A click on a "
        "column leads to its definition.</p>"
        f"{_rows(table)}<ul>{losses}</ul>"
        f"<details open><summary>What the numbers mean</summary>{_definitions(meanings, 'def', titles)}</details>"
    )


def _figure(name: str, figures: Mapping[str, bytes]) -> str:
    if name not in figures:
        return ""
    alternative, caption = CAPTIONS[name]
    return embedded(figures[name], alternative, caption)


def _genes(study: Study, figures: Mapping[str, bytes]) -> str:
    if not study.decisions:
        return ""
    first = next(iter(study.decisions.values()))
    notes = "".join(f"<p>{escape(note)}</p>" for note in first.notes)
    warned = "".join(
        f"<p><strong>{escape(label)}</strong>: {escape(text)}.</p>" for label, w in study.warnings.items() for text in w
    )
    tables = "".join(
        f"<details{' open' if number == 0 else ''}><summary>{escape(label)}: the most certain genes of each direction"
        f"</summary>{_gene_table(decision, f'de_{label}.csv')}</details>"
        for number, (label, decision) in enumerate(study.decisions.items())
    )
    return (
        f"<p><strong>{escape(question(study))}</strong></p>{_figure('fdr', figures)}"
        f"<h3>Fold changes</h3>{_figure('volcano', figures)}<h3>Genes</h3>{tables}{_disputed(study)}"
        f"<h3>How to read it</h3>{notes}" + (f'<div class="notes">{warned}</div>' if warned else "")
    )


def _gene_table(decision: Decision, file: str) -> str:
    table = decision.table.loc[decision.table["is_de"]]
    columns = [name for name in TABLE if name in table]
    head = "".join(f'<th title="{escape(TABLE[n][2])}">{escape(TABLE[n][0])}</th>' for n in columns)
    tables = []
    for up, where in ((True, decision.settings["group"]), (False, decision.settings["reference"])):
        part = table.loc[(table["lfc"] > 0) == up]
        rows = "".join(
            f"<tr><td>{escape(str(gene))}</td>" + "".join(f"<td>{TABLE[n][1].format(row[n])}</td>" for n in columns)
            for gene, row in part.head(LISTED).iterrows()
        )
        tables.append(
            f"<h3>Higher in {escape(str(where))}: {len(part)} genes</h3>"
            f'<div class="scroll"><table><thead><tr><th>gene</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    meanings = {TABLE[n][0]: TABLE[n][2] for n in columns}
    key = _definitions(meanings, file.removesuffix(".csv").replace(" ", "-"))
    return "".join(tables) + (
        f"<p>All genes are in <code>{escape(file)}</code>.</p><details><summary>What the columns mean</summary>{key}"
        "</details>"
    )


def _disputed(study: Study) -> str:
    called = study.called()
    disputed = called[called.any(axis=1) & ~called.all(axis=1)]
    if disputed.empty:
        return ""
    lines = []
    for labels, genes in disputed.groupby(list(disputed.columns)).groups.items():
        flags = labels if isinstance(labels, tuple) else (labels,)
        by = " and ".join(label for label, flag in zip(disputed.columns, flags, strict=True) if flag)
        named = ", ".join(map(str, genes[:60])) + (f" and {len(genes) - 60} more" if len(genes) > 60 else "")
        lines.append(f"<p><strong>Only under {escape(by)}</strong> ({len(genes)}): {escape(named)}</p>")
    title = f"Genes on which the objectives disagree ({len(disputed)})"
    return f"<details><summary>{title}</summary>{''.join(lines)}</details>"


def _settings(study: Study) -> str:
    flat: dict[str, Any] = {}
    for name, value in study.settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}: {key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    if study.decisions:
        decided = next(iter(study.decisions.values())).settings
        flat |= {f"decision: {name}": value for name, value in decided.items()}
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    versions["machine"] = f"{platform.system()} {platform.machine()}"
    return (
        f"<details><summary>Settings</summary>{_definitions(flat, 'set')}</details>"
        f"<details><summary>Versions</summary>{_definitions(versions, 'version')}</details>"
    )


def _definitions(items: Mapping[str, Any], prefix: str, titles: Mapping[str, str] | None = None) -> str:
    titles = titles or {}
    lines = [
        f'<dt id="{escape(f"{prefix}-{name}".replace(" ", "-"))}">{escape(titles.get(name, name))}</dt>'
        f"<dd>{escape(_plain(value))}</dd>"
        for name, value in items.items()
    ]
    return f"<dl>{''.join(lines)}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None or value == () else str(value)
