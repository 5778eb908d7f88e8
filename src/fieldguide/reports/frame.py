"""What every report is made of: one HTML page that needs no other file, with a heading, links and sections."""

from collections.abc import Iterable
from html import escape
from importlib.metadata import version

from fieldguide.reports.style import CSS


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
