"""The catalog: what each entry is, what it reads, how it is fitted by default, and whom to cite."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from fieldguide.inference import Objective, Program, Schema, registry
from fieldguide.inference.objectives import SHORT_NAMES

P = TypeVar("P", bound=Program)

SUPPORTED = tuple(SHORT_NAMES)
"""What an entry supports by default: every objective, by short name."""


@dataclass(frozen=True)
class Entry:
    """One catalog entry: a program class with everything that is declared about it.

    An experiment is a changed copy: ``dataclasses.replace(get("scvi"), objective=IWAE(25))``.

    Attributes
    ----------
    name, title : str
    program : type of Program
        Its constructor signature holds the configuration.
    schema : Schema or None
        What it reads from an AnnData; None for a dict of arrays.
    objective : callable
        Default objective.
    constraints : tuple
        Default constraints.
    cite : str
        BibTeX of the publication.
    supports : tuple of str
        Short names of the objectives that it can be fitted by.
    defaults : mapping
        Default settings of the loop: ``max_epochs``, ``learning_rate``, ``epsilon`` (of Adam), ``kl_warmup``,
        ``validation``.
    """

    name: str
    title: str
    program: type[Program]
    schema: Schema | None
    objective: Objective
    constraints: tuple = ()
    cite: str = ""
    supports: tuple[str, ...] = SUPPORTED
    defaults: Mapping[str, Any] = field(default_factory=dict)


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
        declared = Entry(name, title, program, schema, objective, constraints, cite, supports, dict(defaults or {}))
        registry.register(name, declared)
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
    return registry.find(name)


def entries() -> pd.DataFrame:
    """Return the catalog as a table, one row an entry: title, fields, objectives, citation key.

    Examples
    --------
    >>> "scvi" in entries().index
    True
    """
    rows = {
        name: {
            "title": found.title,
            "reads": ", ".join(found.schema.fields) if found.schema else "a dict of arrays",
            "objectives": ", ".join(found.supports),
            "cite": found.cite.partition("{")[2].partition(",")[0],
        }
        for name, found in registry.all_entries().items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name").sort_index()


def citation(name: str) -> str:
    """Return the BibTeX of the publication that an entry implements."""
    return get(name).cite.strip()
