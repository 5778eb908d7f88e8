"""A fresh guide for a model that stays as it is: step two of fitting by one objective and inferring by another.

The model's parameters and buffers (running means and variances of its batch normalisation) are frozen, and it runs in
evaluation mode, without dropout. The guide is new: new initial values, training mode, and, where asked, another family.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.entry import Entry
from fieldguide.inference.program import Program


def guide_names(program: Program) -> set[str]:
    """Return the names of the parameters and buffers that belong to the guide.

    Parameters are those of the group ``phi``; buffers are those beside them in the same module, and those whose name
    starts with one of ``program.guide_modules``.
    """
    phi = {id(p) for p in program.groups().get("phi", [])}
    names = {name for name, p in program.named_parameters() if id(p) in phi}
    modules = {name.rpartition(".")[0] for name in names} - {""}
    for name, _ in program.named_buffers():
        if name.rpartition(".")[0] in modules or name.startswith(program.guide_modules):
            names.add(name)
    return names


def model_state(program: Program) -> dict[str, Tensor]:
    """Return the parameters and buffers that do not belong to the guide, by name."""
    guide = guide_names(program)
    return {name: value for name, value in program.state_dict().items() if name not in guide}


def guide_training(program: Program) -> None:
    """Put the modules of the guide into training mode, and everything else into evaluation mode."""
    program.eval()
    names = guide_names(program)
    for name, module in program.named_modules():
        inside = [f"{name}.{n}" for n, _ in (*module.named_parameters(), *module.named_buffers())]
        if name and (name.startswith(program.guide_modules) or (inside and names.issuperset(inside))):
            module.train()


@contextmanager
def frozen_model(program: Program) -> Iterator[None]:
    """Keep every parameter outside the group ``phi`` as it is.

    Raises
    ------
    ValueError
        If there is no parameter in that group.
    """
    phi = {id(p) for p in program.groups().get("phi", [])}
    if not phi:
        raise ValueError(f"{type(program).__name__} has no parameters in the group 'phi': there is no guide to fit")
    frozen = [p for p in program.parameters() if p.requires_grad and id(p) not in phi]
    for parameter in frozen:
        parameter.requires_grad_(False)
    yield
    for parameter in frozen:
        parameter.requires_grad_(True)


def with_fresh_guide(
    program: Program,
    entry: Entry,
    schema: FittedSchema | None,
    arguments: dict[str, Any],
    initial: dict[str, Tensor],
    guide: str | Program | None,
) -> tuple[Program, dict[str, Any]]:
    """Return a program with the model of this one and a new guide, and its constructor arguments.

    Parameters
    ----------
    program : Program
        It stays as it is.
    entry, schema, arguments
        What it was built from.
    initial : dict of str to Tensor
        Where the parameters of a program that its user built started.
    guide : str or Program, optional
        See `fieldguide.inference.Fit.refit`.
    """
    arguments = dict(arguments)
    if isinstance(guide, Program):
        if type(guide).model is not type(program).model:
            raise TypeError(f"guide is a {type(guide).__name__}, whose model is not that of {type(program).__name__}")
        fresh = copy.deepcopy(guide)
    elif entry.built is not None:
        if guide is not None:
            raise TypeError(f"{entry.name} was built by you: pass guide= a program with another guide, not a name")
        fresh = copy.deepcopy(program)
        _reset(fresh, initial)
    else:
        arguments |= {} if guide is None else {"guide": guide}
        fresh, arguments = entry.build(schema, arguments)
    wanted, given = model_state(program), model_state(fresh)
    for name in sorted(set(wanted) ^ set(given)) or [n for n in wanted if wanted[n].shape != given[n].shape]:
        said = f"'{name}' of the model differs between the fit and the program with the new guide"
        raise ValueError(said + "".join(f"; {remark}" for remark in program.remarks() if program.unfinished()))
    fresh.load_state_dict(wanted, strict=False)
    return fresh, arguments


def _reset(program: Program, initial: dict[str, Tensor]) -> None:
    """Give the guide of a program that was built by its user new initial values.

    Torch's own layers draw them anew; a bare parameter starts where it started before.
    """
    names, done = guide_names(program), set()
    for prefix, module in program.named_modules():
        inside = {
            f"{prefix}.{n}" for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        }
        reset: Any = getattr(module, "reset_parameters", None)
        if isinstance(module, nn.Module) and reset is not None and inside and inside <= names:
            reset()
            done |= inside
    missing = sorted(names - done - set(initial))
    if missing:
        raise ValueError(
            f"the initial value of '{missing[0]}' is not known (the fit was loaded): pass guide= a program built anew"
        )
    program.load_state_dict({name: initial[name] for name in names - done}, strict=False)
