"""What every report is made of: one HTML page that needs no other file, with a heading, links, sections and figures."""

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from io import BytesIO
from typing import Any

CSS = """
:root { --ink: #1f2933; --soft: #52606d; --faint: #7b8794; --rule: #e4e9ee; --tint: #f6f8fa; --accent: #2563a8;
  --good: #2f8f5b; --warn: #b7791f; --bad: #c23b3b; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1.5rem; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main, header > div, footer > div { max-width: 68rem; margin: 0 auto; padding: 0 2rem; }
header { background: var(--tint); border-bottom: 1px solid var(--rule); padding: 2.6rem 0 1.6rem; }
.eyebrow { color: var(--accent); font-size: .8rem; font-weight: 600; letter-spacing: .08em; text-transform: uppercase;
  margin: 0 0 .3rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.015em; }
header p { color: var(--soft); margin: 0; }
nav { margin-top: 1.2rem; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
section { padding-top: 2.4rem; }
h2 { font-size: 1.35rem; margin: 0 0 .5rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
section > p, figcaption, .notes { max-width: 46rem; }
.findings { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; margin-top: 1.8rem; }
.finding { border: 1px solid var(--rule); border-top: 3px solid var(--accent); border-radius: 6px;
  padding: .85rem 1.1rem 1rem; }
.finding h2 { font-size: .8rem; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); margin: 0 0 .25rem; }
.finding p { margin: 0; font-size: .95rem; }
.finding.good { border-top-color: var(--good); } .finding.bad { border-top-color: var(--bad); }
.scroll { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; line-height: 1.25; }
thead th { border-bottom: 2px solid #cbd2d9; } thead th a { color: inherit; border-bottom: 1px dotted var(--faint); }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { white-space: normal; }
tbody tr:hover { background: var(--tint); }
tr.best td:first-child { font-weight: 600; }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .86em; }
pre { background: var(--tint); border: 1px solid var(--rule); border-radius: 6px;
  padding: .9rem 1.1rem; overflow-x: auto; }
figure { margin: 1rem 0 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); font-size: .95rem; }
dl { display: grid; grid-template-columns: 11rem 1fr; gap: .45rem 1.2rem; font-size: .9rem; margin: .8rem 0; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
dt:target, dt:target + dd { background: #fff6d6; box-shadow: 0 0 0 .25rem #fff6d6; }
.notes { background: #fffaf0; border-left: 3px solid #e0a82e; padding: .6rem 1rem; margin: 1rem 0; font-size: .9rem; }
.notes p { margin: .3rem 0; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); padding: 1.2rem 0 2.5rem; color: var(--faint);
  font-size: .85rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: .1rem; } dd { margin-bottom: .6rem; }
  h1 { font-size: 1.6rem; } main, header > div, footer > div { padding: 0 1.1rem; } }
@media print { nav { display: none; } body { font-size: 11pt; } section, figure, .finding { break-inside: avoid; } }
"""
"""The style sheet: no external font, readable on a screen and on paper."""


def framed(title: str, summary: str, sections: Iterable[tuple[str, str, str]], date: str, top: str = "") -> str:
    """Return the page.

    Parameters
    ----------
    title, summary : str
        Heading, and one sentence under it.
    sections : iterable of (key, heading, HTML)
        Empty ones are left out.
    date : str
    top : str
        HTML before the first section.
    """
    sections = [(key, heading, body) for key, heading, body in sections if body]
    links = "".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{escape(heading)}</h2>{text}</section>' for key, heading, text in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – fieldguide</title><style>{CSS}</style></head><body>"
        f'<header><div><p class="eyebrow">fieldguide report</p><h1>{escape(title)}</h1><p>{escape(summary)}</p>'
        f"<nav>{links}</nav></div></header><main>{top}{body}</main>"
        f"<footer><div>fieldguide {version('fieldguide')}, {escape(date)}</div></footer></body></html>\n"
    )


def svg_of(figure: Any) -> bytes:
    """Return a matplotlib figure as an SVG file; equal figures give equal files."""
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def embedded(svg: bytes, alternative: str, caption: str = "") -> str:
    """Return the HTML of a figure that is inside the page, with a text for those who cannot see it."""
    source = b64encode(svg).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{source}">{below}</figure>'
