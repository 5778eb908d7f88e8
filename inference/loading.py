"""A fit from its file."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.inference.checkpoint import read_constraints, read_file, read_objective
from fieldguide.inference.checks.files import checked_path
from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.schema import FittedSchema, Schema
from fieldguide.inference.entry import as_entry
from fieldguide.inference.fitted import Fit
from fieldguide.inference.messages import caution
from fieldguide.inference.program import Program
from fieldguide.inference.randomness import isolated


def load(path: str | Path, program: Any = None) -> Fit:
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
        If the file is damaged (a digest of all bytes is compared), or is not a fit, or belongs to another program.

    Warns
    -----
    UserWarning
        If the training was interrupted.
    """
    path = checked_path("path", path)
    if not (program is None or isinstance(program, Program | type)):
        raise TypeError(
            f"program is the class that was fitted, where it is no catalog entry, not {type(program).__name__}; data "
            "go to the methods of the fit"
        )
    tensors, content = read_file(path)
    try:
        fitted = _from(path, tensors, content, program)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        written = content.get("versions", {}).get("fieldguide", "an older version")
        said = f"{path} cannot be read as a fit ({type(error).__name__}: {error})"
        raise ValueError(f"{said}; it was written by fieldguide {written}") from error
    if fitted.interrupted:
        left = "".join(f"; {said}" for said in fitted.remarks()) if fitted.program.unfinished() else ""
        caution(f"the training of {path} was interrupted after {len(fitted.history)} epochs{left}")
    return fitted


def _from(path: Path, tensors: dict[str, torch.Tensor], content: dict[str, Any], program: Any) -> Fit:
    """The fit that the content of a file describes."""
    if content["entry"] is None and program is None:
        raise ValueError(f"{path} holds a fit of {content['program']}: pass that class as program=")
    entry = as_entry(content["entry"] or program)
    asked = entry if program is None else as_entry(program)
    for named in (entry, asked):
        if named.program.__qualname__ != content["program"]:
            raise ValueError(f"{path} holds a fit of {content['program']}, not of {named.program.__qualname__}")
    if program is not None and entry.program is not asked.program:
        raise ValueError(f"{path} holds a fit of the entry '{content['entry']}', not of the {content['program']} given")
    parameter = next((name for name, tensor in tensors.items() if torch.isnan(tensor).any()), None)
    if parameter is not None:
        raise ValueError(f"{path} holds no usable fit: '{parameter}' has missing values (nan)")
    with isolated(torch.device("cpu")):
        built = entry.program(**content["arguments"]) if entry.built is None else entry.built
    initial = {} if entry.built is None else {k: v.detach().clone() for k, v in built.state_dict().items()}
    try:
        built.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this version of {content['program']}: {error}") from None
    schema = None
    if content["schema"] is not None:
        fields = _fields(entry.schema, content["schema"]["fields"])
        schema = FittedSchema(fields, content["schema"]["places"], content["schema"]["states"])
    history = pd.read_json(StringIO(content["history"]), orient="table", precise_float=True)
    return Fit(
        program=built.eval(),
        entry=entry,
        schema=schema,
        objective=read_objective(content["objective"]),
        arguments=content["arguments"],
        dataset=None,
        train_rows=np.asarray(content["train_rows"], dtype=np.int64),
        validation_rows=np.asarray(content["validation_rows"], dtype=np.int64),
        history=history.set_index("epoch") if "epoch" in history else history,
        initial=initial,
        constraints=read_constraints(content.get("constraints", [])),
        interrupted=bool(content.get("interrupted", False)),
        cells=content.get("cells", ""),
    )


def _fields(schema: Schema, written: dict[str, dict[str, Any]]) -> Schema:
    """The schema of the entry, with fields of the kinds that were trained on where these are others."""
    known, fields = {kind.__name__: kind for kind in _kinds(Field)}, {}
    for name, settings in written.items():
        own = schema.fields.get(name)
        if own is not None and type(own).__name__ == settings["kind"]:
            fields[name] = own
        else:
            fields[name] = known[settings["kind"]](**{k: v for k, v in settings.items() if k != "kind"})
    return Schema(**fields)


def _kinds(kind: type[Field]) -> Iterator[type[Field]]:
    for known in kind.__subclasses__():
        yield known
        yield from _kinds(known)
