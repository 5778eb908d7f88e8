"""What a catalog entry is, and how one is found by name without knowing the catalog: it announces itself as a plug-in.

A package adds entries to the catalog with an entry point of the group ``fieldguide.catalog`` that names a module;
importing the module registers its entries. fieldguide's own catalog is one such module.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import Any

from fieldguide.inference.checks.arguments import plain_value
from fieldguide.inference.data.schema import FittedSchema, Schema
from fieldguide.inference.messages import caution
from fieldguide.inference.objectives import ELBO, SHORT_NAMES, Objective
from fieldguide.inference.program import Program

SUPPORTED = tuple(SHORT_NAMES)
"""What an entry supports by default: every objective, by short name."""

_entries: dict[str, "Entry"] = {}
_broken: dict[str, str] = {}
"""Distributions whose catalog could not be imported, and the module; each is warned of once."""


@dataclass(frozen=True)
class Defaults:
    """Settings of the loop that an entry has of its own; None leaves a setting to `fieldguide.inference.fit`."""

    max_epochs: int | None = None
    learning_rate: float | None = None
    epsilon: float | None = None
    cooldown: float | None = None
    kl_warmup: int | None = None
    validation: float | None = None

    @classmethod
    def of(cls, settings: "Mapping[str, Any] | Defaults") -> "Defaults":
        """Return the settings; one that `Defaults` does not have is a TypeError that names it."""
        if isinstance(settings, Defaults):
            return settings
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise TypeError(f"defaults has no setting '{unknown[0]}'; an entry may have {', '.join(known)}")
        return cls(**settings)


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
    defaults : Defaults, or mapping
        Default settings of the loop: ``max_epochs``, ``learning_rate``, ``epsilon`` (of Adam), ``cooldown``,
        ``kl_warmup``, ``validation``.
    built : Program, optional
        A program that its user built and that is fitted as it is. Such an entry, and that of a bare class, is made by
        `as_entry` and is in no catalog.
    listed : bool
        Whether the catalog knows the entry, so that a saved fit needs only its name.
    """

    name: str
    title: str
    program: type[Program]
    schema: Schema | None
    objective: Objective
    constraints: tuple = ()
    cite: str = ""
    supports: tuple[str, ...] = SUPPORTED
    defaults: Defaults | Mapping[str, Any] = field(default_factory=Defaults)
    built: Program | None = None
    listed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", Defaults.of(self.defaults))

    def build(self, schema: FittedSchema | None, arguments: Mapping[str, Any]) -> tuple[Program, dict[str, Any]]:
        """Return the program, with the sizes that the data implies, and its constructor arguments.

        Raises
        ------
        TypeError
            For an argument that the program does not have, or any where it is already built.
        ValueError
            For a size that contradicts the data.
        """
        if self.built is not None:
            if arguments:
                raise TypeError(f"{self.name} is already built: it takes no {', '.join(arguments)}")
            return self.built, {}
        known = inspect.signature(self.program).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        unknown = [] if open_ended else sorted(set(arguments) - set(known))
        if unknown:
            raise TypeError(f"{self.program.__name__} has no argument '{unknown[0]}'; it has {', '.join(known)}")
        implied = {} if schema is None else {n: value for n, value in schema.sizes().items() if n in known}
        given = {name: plain_value(value) for name, value in arguments.items()}
        if schema is not None:
            schema.check_sizes(implied, given)
        complete = implied | given
        return self.program(**complete), complete


def as_entry(what: "str | Entry | type[Program] | Program") -> Entry:
    """Return the entry of a name, of a program class or of a program that is built; an entry stays as it is.

    Raises
    ------
    KeyError
        For a name that the catalog does not have.
    TypeError
        For anything else.
    """
    if isinstance(what, Entry):
        return what
    if isinstance(what, str):
        return find(what)
    program = type(what) if isinstance(what, Program) else what
    if isinstance(program, type) and issubclass(program, Program):
        built, supports = what if isinstance(what, Program) else None, tuple(SHORT_NAMES)  # as many as there are by now
        return Entry(program.__name__, "", program, None, ELBO(), supports=supports, built=built, listed=False)
    raise TypeError(f"an entry is a name, an Entry, a Program class or a Program, not {what!r}")


def require_supported(entry: Entry, objective: Objective) -> None:
    """Raise ValueError for an objective by which an entry of the catalog cannot be fitted, naming both.

    Objectives of one's own, and those of programs of one's own, are never refused.
    """
    objective = getattr(objective, "objective", objective)  # what one for each group is made of
    name = next((short for short, kind in SHORT_NAMES.items() if type(objective) is kind), None)
    if entry.listed and name is not None and name not in entry.supports:
        raise ValueError(f"'{entry.name}' is not for the objective '{name}'; it supports {', '.join(entry.supports)}")


def register(entry: Entry) -> None:
    """Put ``entry`` into the catalog; a name belongs to one program class for good."""
    known = _entries.get(entry.name)
    if known is not None and known.program.__qualname__ != entry.program.__qualname__:
        raise ValueError(f"the catalog already has an entry '{entry.name}' ({known.program.__qualname__})")
    _entries[entry.name] = entry


def find(name: str) -> Entry:
    """Return the entry with this name.

    Raises
    ------
    KeyError
        Listing the names that exist.
    """
    known = all_entries()
    if name not in known:
        lost = f" (not counting those of {', '.join(sorted(_broken))}, which cannot be imported)" if _broken else ""
        raise KeyError(f"no catalog entry '{name}'; there are {', '.join(sorted(known))}{lost}")
    return known[name]


def all_entries() -> dict[str, Entry]:
    """Return all entries by name, loading every catalog that is installed.

    Warns
    -----
    UserWarning
        Naming a distribution whose catalog cannot be imported; the entries of the others are there.
    """
    for plugin in entry_points(group="fieldguide.catalog"):
        package = plugin.dist.name if plugin.dist is not None else plugin.value
        if plugin.module in _broken.values():
            continue
        try:
            plugin.load()
        except Exception as error:
            if plugin.module.partition(".")[0] == "fieldguide":
                raise
            _broken[package] = plugin.module
            caution(
                f"the catalog '{plugin.name}' of the package {package} ({plugin.value}) cannot be imported and is left "
                f"out: {type(error).__name__}: {error}"
            )
    return _entries
