"""From the words of the command line to arguments, files and tables, with an error that names what is wrong."""

import os
import re
import sys
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSTRAINT_SETTINGS = ("weight", "bound", "given", "estimator", "rule")
RULES = ("penalty", "lagrangian")


def in_one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Show a warning as one line (takes the place of ``warnings.showwarning``)."""
    print(f"fieldguide: warning: {message}", file=sys.stderr)


def read_h5ad(path: Path, backed: bool = False) -> Any:
    """Read an h5ad file; whatever is wrong with the file is an error that names it."""
    import anndata
    import h5py

    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file() or not h5py.is_hdf5(path):
        raise ValueError(f"{path} is not an h5ad file")
    try:
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an h5ad file: {in_one_line(error)}") from error


def field_places(words: Sequence[str]) -> dict[str, Any] | None:
    """Read FIELD=PLACE; several places, separated by commas, are a list."""
    pairs = [pair(word, "--fields", "FIELD=PLACE") for word in words]
    return {name: place.split(",") if "," in place else place for name, place in pairs} or None


def model_arguments(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE for the constructor of an entry's program; values are Python literals, or else strings."""
    from inspect import signature

    from fieldguide.catalog import get

    known = [p for p in signature(get(name).program).parameters if p != "self"]
    arguments: dict[str, Any] = {}
    for key, value in (pair(word, "--model", "NAME=VALUE") for word in words):
        if key not in known:
            raise ValueError(f"--model: {name} has no argument '{key}'; there are {', '.join(known)}")
        try:
            arguments[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments


def chosen_objective(name: str, objective: str | None, particles: int | None) -> Any:
    """The objective by name, or the entry's own, with K particles where that is asked."""
    from dataclasses import replace

    from fieldguide.catalog import get
    from fieldguide.inference import resolve

    chosen: Any = resolve(objective or get(name).objective)
    if particles is None:
        return chosen
    if not hasattr(chosen, "particles"):
        raise ValueError(f"--particles: {chosen} does not draw particles")
    return replace(chosen, particles=particles)


def constraints_of(words: Sequence[str]) -> tuple | None:
    """Read constraints such as ``hsic(z,n_genes)`` or ``hsic(z,batch,given=cell_type,bound=independent)``.

    Variables come first, then settings as KEY=VALUE. The one word ``none`` leaves out those of the entry, and no word
    leaves them as they are.
    """
    from fieldguide.inference import AugmentedLagrangian, hsic

    if list(words) == ["none"]:
        return ()
    constraints = []
    for word in words:
        match = re.fullmatch(r"\s*hsic\((.*)\)\s*", word)
        if match is None:
            raise ValueError(f"--constraint takes hsic(SITE,COLUMN,...) or none, not {word!r}")
        parts = [part.strip() for part in match[1].split(",")]
        names = [part for part in parts if "=" not in part]
        if not all(parts) or parts[: len(names)] != names:
            raise ValueError(f"--constraint {word!r}: names first, then settings as KEY=VALUE, separated by commas")
        settings: dict[str, Any] = {}
        for part in parts[len(names) :]:
            key, value = pair(part.replace(" ", ""), f"--constraint {word!r}", "KEY=VALUE")
            if key not in CONSTRAINT_SETTINGS:
                raise ValueError(f"--constraint {word!r}: {key!r} is none of {', '.join(CONSTRAINT_SETTINGS)}")
            if key in settings:
                raise ValueError(f"--constraint {word!r}: {key!r} is given twice")
            settings[key] = _number(value) if key in ("weight", "bound") else value
        if settings.get("rule", "penalty") not in RULES:
            raise ValueError(f"--constraint {word!r}: rule must be one of {', '.join(RULES)}")
        if settings.pop("rule", "penalty") == "lagrangian":
            settings["rule"] = AugmentedLagrangian()
        if isinstance(settings.get("weight", 0.0), str):
            raise ValueError(f"--constraint {word!r}: weight must be a number, not {settings['weight']!r}")
        constraints.append(hsic(*names, **settings))
    return tuple(constraints) or None


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def pair(word: str, option: str, form: str) -> tuple[str, str]:
    """Split a word of the form NAME=VALUE."""
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise ValueError(f"{option} takes {form}, not {word!r}")
    return key, value


def check_output(path: Path) -> None:
    """Raise before the work rather than after it."""
    folder = path.resolve().parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {path.name} into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {folder} cannot be written")


def write_table(table: Any, path: Path) -> None:
    """Write a CSV file that appears complete or not at all."""
    partial = path.with_name(f".{path.name}.part")
    try:
        table.to_csv(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def show_table(table: Any, right: bool = False) -> None:
    """Print a table of strings; all but its first column to the right where they are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, name in enumerate(table.columns):
        shown.add_column(str(name), justify="right" if right and number else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
