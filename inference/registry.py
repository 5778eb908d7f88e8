"""Names of catalog entries, without knowing the catalog: it announces itself as a plug-in.

A package adds entries to the catalog with an entry point of the group ``fieldguide.catalog`` that names a module;
importing the module registers its entries. fieldguide's own catalog is one such module.
"""

from importlib.metadata import entry_points
from typing import Any

_entries: dict[str, Any] = {}


def register(name: str, entry: Any) -> None:
    """Make ``entry`` known under ``name``; a name belongs to one program class for good."""
    known = _entries.get(name)
    if known is not None and known.program.__qualname__ != entry.program.__qualname__:
        raise ValueError(f"the catalog already has an entry '{name}' ({known.program.__qualname__})")
    _entries[name] = entry


def find(name: str) -> Any:
    """Return the entry with this name.

    Raises
    ------
    KeyError
        Listing the names that exist.
    """
    known = all_entries()
    if name not in known:
        raise KeyError(f"no catalog entry '{name}'; there are {', '.join(sorted(known))}")
    return known[name]


def all_entries() -> dict[str, Any]:
    """Return all entries by name, loading every catalog that is installed."""
    for plugin in entry_points(group="fieldguide.catalog"):
        plugin.load()
    return _entries
