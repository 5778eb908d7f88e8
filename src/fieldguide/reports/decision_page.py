"""Any decision as one HTML page that needs no other file: table, diagnostics, figure, settings and what they mean."""

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd

from fieldguide.decisions import Decision
from fieldguide.reports.frame import embedded, framed, svg_of

ROWS = 50
"""Rows of a table that are shown."""


def decision_page(decision: Decision, title: str, summary: str, definitions: Mapping[str, str], date: str) -> str:
    """Return the report of one decision.

    Parameters
    ----------
    decision : Decision
    title, summary : str
        Heading, and one sentence on what was found.
    definitions : mapping of str to str
        What the columns of table and diagnostics mean.
    date : str
    """
    sections = [
        ("result", "Result", _table(decision.table)),
        ("figure", "Figure", _figure(decision, title)),
        ("diagnostics", "Diagnostics", _table(decision.diagnostics)),
        ("notes", "What the numbers do not say", "".join(f"<p>{escape(note)}</p>" for note in decision.notes)),
        ("columns", "Columns", _listed(definitions)),
        ("settings", "Settings", _listed({k: str(v) for k, v in decision.settings.items()})),
    ]
    return framed(title, summary, sections, date)


def _table(table: pd.DataFrame) -> str:
    if not len(table):
        return ""
    shown = table.head(ROWS)
    head = "".join(f"<th>{escape(str(c))}</th>" for c in (table.index.name or "", *table.columns))
    rows = []
    for name, row in zip(shown.index, shown.itertuples(index=False), strict=True):
        rows.append(f"<tr><td>{escape(str(name))}</td>" + "".join(f"<td>{_cell(v)}</td>" for v in row) + "</tr>")
    rest = f"<p>The first {ROWS} of {len(table)} rows.</p>" if len(table) > ROWS else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{rest}'
    )


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    return escape(f"{value:.5g}" if isinstance(value, float | np.floating) else str(value))


def _figure(decision: Decision, title: str) -> str:
    if decision.draw is None:
        return ""
    return embedded(svg_of(decision.plot()), title)


def _listed(entries: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
    return f"<dl>{rows}</dl>" if rows else ""
