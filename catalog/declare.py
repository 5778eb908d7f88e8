"""The catalog: entries are declared with one decorator, and found by name."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pandas as pd

from fieldguide.inference import Objective, Program, Schema
from fieldguide.inference.entry import SUPPORTED, Defaults, Entry, all_entries, find, register

P = TypeVar("P", bound=Program)


def entry(
    name: str,
    *,
    title: str,
    cite: str,
    objective: Objective,
    schema: Schema | None = None,
    constraints: tuple = (),
    supports: tuple[str, ...] = SUPPORTED,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[type[P]], type[P]]:
    """Class decorator that puts a Program into the catalog; the arguments are the attributes of `Entry`."""

    def declare(program: type[P]) -> type[P]:
        settings = Defaults.of(defaults or {})
        register(Entry(name, title, program, schema, objective, constraints, cite, supports, settings))
        return program

    return declare


def get(name: str) -> Entry:
    """Return an entry by name.

    Raises
    ------
    KeyError
        Listing the names that exist.

    Examples
    --------
    >>> get("scvi").program.__name__
    'SCVI'
    """
    return find(name)


def entries() -> pd.DataFrame:
    """Return the catalog as a table, one row an entry: title, fields, objectives, citation key.

    Examples
    --------
    >>> "scvi" in entries().index
    True
    """
    rows = {
        name: {
            "title": declared.title,
            "reads": ", ".join(declared.schema.fields) if declared.schema else "a dict of arrays",
            "objectives": ", ".join(declared.supports),
            "cite": declared.cite.partition("{")[2].partition(",")[0],
        }
        for name, declared in all_entries().items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name").sort_index()


def citation(name: str) -> str:
    """Return the BibTeX of the publication that an entry implements."""
    return get(name).cite.strip()
