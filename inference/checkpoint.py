"""The file of a fit: safetensors, with the settings as JSON in its header."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fieldguide.inference import constraints, objectives
from fieldguide.inference.messages import caution

FORMAT = "fieldguide-fit-1"


def write_file(path: Path, state: Mapping[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors and JSON content to ``path``; the file appears complete or not at all.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; an older file at ``path`` is left intact.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {path.parent}")
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    except OSError as error:
        raise type(error)(error.errno, f"cannot save to {path}: {error.strerror}") from error
    os.close(handle)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(partial, 0o666 & ~mask)  # temporary files are private, a saved fit need not be
    try:
        save_file(tensors, partial, metadata={"format": FORMAT, "fit": json.dumps(content)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not save to {path}, an older file there is unchanged: {error}") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON content that `write_file` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or is not a fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not one that fieldguide wrote ({FORMAT})")
    return tensors, json.loads(metadata["fit"])


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as they are; TypeError names one that is not a plain value, which JSON cannot hold."""
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError:
            raise TypeError(
                f"argument '{name}' of the program is a {type(value).__name__}; only plain values can be saved"
            ) from None
    return arguments


def describe_objective(objective: Any) -> dict[str, Any] | None:
    """Return name and settings of an objective of this library; None of a callable of the user's own."""
    name = type(objective).__name__
    if not is_dataclass(objective) or getattr(objectives, name, None) is not type(objective):
        return None
    return {"name": name, "settings": asdict(objective)}  # type: ignore[arg-type]


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
    return getattr(objectives, described["name"])(**described["settings"])
