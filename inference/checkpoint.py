"""The file of a fit: safetensors, with the settings as JSON in its header and a digest of every byte.

The digest is that of the whole file with zeros in the place of the digest, so that no byte can change unseen. Files of
version 0.1 (``fieldguide-fit-1``) have none and are read as they are.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.json import build_table_schema
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from fieldguide.inference import constraints, objectives
from fieldguide.inference.checks.files import write_bytes
from fieldguide.inference.messages import caution

FORMAT = "fieldguide-fit-2"
WITHOUT_DIGEST = "fieldguide-fit-1"
ZEROS = "0" * 64
COMPANIONS = ("fieldguide", "torch", "pyro-ppl", "anndata", "numpy", "pandas", "scipy", "safetensors")
"""Packages whose versions a file records."""


def write_file(path: Path, state: Mapping[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors and JSON content to ``path``; the file appears complete or not at all.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; an older file at ``path`` is left intact.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    header = {"format": FORMAT, "digest": ZEROS, "fit": json.dumps(content, default=_as_json)}
    blank = bytes_of(tensors, metadata=header)
    write_bytes(path, blank.replace(_quoted(ZEROS), _quoted(hashlib.sha256(blank).hexdigest()), 1))


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON content that `write_file` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or is not a fit.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not the file of a fit")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    raw = path.read_bytes()
    try:
        metadata = dict(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {}))
        tensors = tensors_of(raw)
    except (SafetensorError, ValueError, AttributeError, TypeError, OverflowError) as error:
        said = f"{path} is not a readable safetensors file, or is damaged"
        raise ValueError(f"{said} ({type(error).__name__}: {error})") from None
    if metadata.get("format") not in (FORMAT, WITHOUT_DIGEST):
        raise ValueError(f"{path} is a safetensors file, but not one that fieldguide wrote ({FORMAT})")
    if metadata["format"] == FORMAT:
        digest = str(metadata.get("digest"))
        if hashlib.sha256(raw.replace(_quoted(digest), _quoted(ZEROS), 1)).hexdigest() != digest:
            raise ValueError(f"{path} is damaged: its content is not what was written (the digest differs)")
    try:
        return tensors, dict(json.loads(metadata["fit"]))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: its settings cannot be read ({error})") from None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a fit rests on."""
    known = {"python": platform.python_version()}
    for package in COMPANIONS:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known


def _quoted(digest: str) -> bytes:
    """The digest as the header holds it."""
    return f'"digest":"{digest}"'.encode()


def _as_json(value: Any) -> Any:
    """A plain value of what JSON does not know: numbers of NumPy, arrays, paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no plain value")


def table_text(table: pd.DataFrame) -> str:
    """Return a table as the text that ``pandas.read_json(orient="table")`` reads, its numbers exactly.

    Pandas writes the same in C, which takes an interrupt (Ctrl-C) for an error of its own: `DataFrame.to_json` then
    raises ValueError, or ends the process (2.3.3).
    """
    records = [
        {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]
    return json.dumps({"schema": build_table_schema(table, index=False), "data": records})


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as they are; TypeError names one that is not a plain value, which JSON cannot hold."""
    for name, value in arguments.items():
        try:
            json.dumps(value, default=_as_json)
        except (TypeError, ValueError):
            raise TypeError(
                f"argument '{name}' of the program is a {type(value).__name__}; only plain values can be saved"
            ) from None
    return arguments


def describe_objective(objective: Any) -> dict[str, Any] | None:
    """Return name and settings of an objective of this library; None of a callable of the user's own."""
    name = type(objective).__name__
    if not is_dataclass(objective) or getattr(objectives, name, None) is not type(objective):
        return None
    settings = {f.name: getattr(objective, f.name) for f in fields(objective)}  # type: ignore[arg-type]
    parts = {key: describe_objective(value) if callable(value) else value for key, value in settings.items()}
    if any(callable(settings[key]) and part is None for key, part in parts.items()):
        return None
    return {"name": name, "settings": parts}


def describe_constraint(constraint: constraints.Constraint) -> dict[str, Any]:
    """Return the settings of a constraint; None for a measure or rule of the user's own."""
    settings = {"bound": constraint.bound, "name": constraint.name, "group": constraint.group}
    parts = {"measure": constraint.measure, "rule": constraint.rule}
    for key, part in parts.items():
        known = is_dataclass(part) and getattr(constraints, type(part).__name__, None) is type(part)
        settings[key] = {"name": type(part).__name__, "settings": asdict(part)} if known else None  # type: ignore[arg-type]
    return settings


def read_constraints(described: list[dict[str, Any]]) -> tuple[constraints.Constraint, ...]:
    """Return the constraints that were saved; those with a callable of the user's own cannot be, and are left out."""
    known = []
    for settings in described:
        if settings["measure"] is None or settings["rule"] is None:
            caution(f"constraint '{settings['name']}' of this fit was a callable of its own and is left out")
            continue
        parts = {k: getattr(constraints, settings[k]["name"])(**settings[k]["settings"]) for k in ("measure", "rule")}
        known.append(constraints.Constraint(**(settings | parts)))
    return tuple(known)


def read_objective(described: dict[str, Any] | None) -> objectives.Objective:
    """Return the objective that was saved; a callable of the user's own cannot be, and ELBO stands in for it."""
    if described is None:
        caution("the objective of this fit was a callable of its own and is not saved; ELBO() stands in")
        return objectives.ELBO()
    settings = {k: read_objective(v) if isinstance(v, dict) else v for k, v in described["settings"].items()}
    return getattr(objectives, described["name"])(**settings)
