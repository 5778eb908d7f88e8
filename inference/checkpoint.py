"""Saving and loading fits: one file of safetensors, with the settings as JSON in its header."""

import json
import os
import tempfile
import warnings
from dataclasses import asdict, is_dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fieldguide.inference import constraints, objectives
from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.entry import find
from fieldguide.inference.program import Program

if TYPE_CHECKING:
    from fieldguide.inference.fitted import Fit

FORMAT = "fieldguide-fit-1"


def save(fit: "Fit", path: Path) -> None:
    """Write ``fit`` to ``path``; the file appears complete or not at all.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; an older file at ``path`` is left intact.
    TypeError
        If a constructor argument of the program is not a plain value.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {path.parent}")
    content: dict[str, Any] = {
        "program": type(fit.program).__qualname__,
        "entry": getattr(fit.entry, "name", None),
        "arguments": _plain(fit.arguments),
        "objective": _describe(fit.objective),
        "constraints": [_constraint(c) for c in fit.constraints],
        "schema": fit.schema.describe() if fit.schema else None,
        "history": fit.history.reset_index().to_json(orient="table", index=False, double_precision=15),
        "train_rows": fit.train_rows.tolist(),
        "validation_rows": fit.validation_rows.tolist(),
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in fit.program.state_dict().items()}
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


def load(path: str | Path, program: type[Program] | Program | None = None) -> "Fit":
    """Return the fit that `Fit.save` wrote; it holds no data, so pass data to its methods.

    Parameters
    ----------
    path : path
    program : Program class or Program, optional
        When it is not a catalog entry: the class that was fitted, or (for a program that was built before it was
        fitted) one built in the same way, into which the parameters are read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or is not a fit, or belongs to another program.
    """
    from fieldguide.inference.fitted import Fit

    path = Path(path)
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
    content = json.loads(metadata["fit"])
    entry: Any = find(content["entry"]) if content["entry"] else program
    if entry is None:
        raise ValueError(f"{path} holds a fit of {content['program']}: pass that class as program=")
    cls = type(entry) if isinstance(entry, Program) else entry if isinstance(entry, type) else entry.program
    if cls.__qualname__ != content["program"]:
        raise ValueError(f"{path} holds a fit of {content['program']}, not of {cls.__qualname__}")
    with torch.random.fork_rng(devices=[]):
        built = entry if isinstance(entry, Program) else cls(**content["arguments"])
    initial = {k: v.detach().clone() for k, v in built.state_dict().items()} if built is entry else {}
    try:
        built.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this version of {cls.__qualname__}: {error}") from None
    schema = None
    if content["schema"] is not None:
        schema = FittedSchema(entry.schema, content["schema"]["places"], content["schema"]["states"])
    history = pd.read_json(StringIO(content["history"]), orient="table", precise_float=True)
    return Fit(
        program=built.eval(),
        entry=entry,
        schema=schema,
        objective=_objective(content["objective"]),
        arguments=content["arguments"],
        dataset=None,
        train_rows=np.asarray(content["train_rows"], dtype=np.int64),
        validation_rows=np.asarray(content["validation_rows"], dtype=np.int64),
        history=history.set_index("epoch") if "epoch" in history else history,
        initial=initial,
        constraints=_constraints(content.get("constraints", [])),
    )


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError:
            raise TypeError(
                f"argument '{name}' of the program is a {type(value).__name__}; only plain values can be saved"
            ) from None
    return arguments


def _describe(objective) -> dict[str, Any] | None:
    name = type(objective).__name__
    if not is_dataclass(objective) or getattr(objectives, name, None) is not type(objective):
        return None
    return {"name": name, "settings": asdict(objective)}  # type: ignore[arg-type]


def _constraint(constraint: constraints.Constraint) -> dict[str, Any]:
    settings = {"bound": constraint.bound, "name": constraint.name, "group": constraint.group}
    parts = {"measure": constraint.measure, "rule": constraint.rule}
    for key, part in parts.items():
        known = is_dataclass(part) and getattr(constraints, type(part).__name__, None) is type(part)
        settings[key] = {"name": type(part).__name__, "settings": asdict(part)} if known else None  # type: ignore[arg-type]
    return settings


def _constraints(described: list[dict[str, Any]]) -> tuple[constraints.Constraint, ...]:
    """Return the constraints that were saved; those with a callable of the user's own cannot be, and are left out."""
    found = []
    for settings in described:
        if settings["measure"] is None or settings["rule"] is None:
            warnings.warn(
                f"constraint '{settings['name']}' of this fit was a callable of its own and is left out", stacklevel=3
            )
            continue
        parts = {k: getattr(constraints, settings[k]["name"])(**settings[k]["settings"]) for k in ("measure", "rule")}
        found.append(constraints.Constraint(**(settings | parts)))
    return tuple(found)


def _objective(described: dict[str, Any] | None) -> objectives.Objective:
    """Return the objective that was saved; a callable of the user's own cannot be, and ELBO stands in for it."""
    if described is None:
        warnings.warn(
            "the objective of this fit was a callable of its own and is not saved; ELBO() stands in", stacklevel=3
        )
        return objectives.ELBO()
    return getattr(objectives, described["name"])(**described["settings"])
