"""A fresh guide for a model that stays as it is: step two of fitting by one objective and inferring by another.

The model's parameters and buffers (running means and variances of its batch normalisation) are frozen, and it runs in
evaluation mode, without dropout. The guide is new: new initial values, training mode, and, where asked, another family.
"""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from fieldguide.inference import fitting as loop
from fieldguide.inference.constraints import Active, Source
from fieldguide.inference.data.minibatches import Dataset, Loader
from fieldguide.inference.fitted import Fit
from fieldguide.inference.objectives import resolve
from fieldguide.inference.program import Program

if TYPE_CHECKING:
    from fieldguide.inference.objectives import Objective

FRESH = 104_729
"""Added to the seed, so that a guide that is fitted again with the same seed starts somewhere else."""


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


def refit(
    fit: Fit,
    objective: "str | Objective",
    *,
    guide: str | Program | None = None,
    data=None,
    constraints=None,
    seed: int = 0,
    max_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float | None = None,
    epsilon: float | None = None,
    cooldown: float | None = None,
    early_stopping: int | None = 30,
    kl_warmup: int = 0,
    device: str = "auto",
    compile: bool = False,
    callbacks=(),
    checkpoint=None,
    progress: bool = True,
) -> Fit:
    """See `fieldguide.inference.Fit.refit`."""
    dataset = fit.read(data)
    cells = len(fit.train_rows) + len(fit.validation_rows)
    if dataset.n_cells != cells:
        raise ValueError(
            f"the guide is fitted to the {cells} cells of the first fit, but the data has {dataset.n_cells}"
        )
    target = resolve(objective)
    fabric = loop._fabric(device)
    seeds = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=seeds), pyro.validation_enabled(False):
        torch.manual_seed(seed + FRESH)
        program, arguments = _with_fresh_guide(fit, guide)
        program.to(fabric.device)
        phi = {id(p) for p in program.groups().get("phi", [])}
        if not phi:
            raise ValueError(f"{type(program).__name__} has no parameters in the group 'phi': there is no guide to fit")
        frozen = [p for p in program.parameters() if p.requires_grad and id(p) not in phi]
        for parameter in frozen:
            parameter.requires_grad_(False)
        entry = fit.entry if not isinstance(fit.entry, Program) else program
        result = Fit(program, entry, fit.schema, target, arguments, dataset, fit.train_rows, fit.validation_rows)
        result.initial = fit.initial
        torch.manual_seed(seed + FRESH + 7919 * fabric.global_rank)
        resident: Dataset = dataset.to(fabric.device) if loop._fits(dataset, fabric.device) else dataset
        loader = Loader(resident, fit.train_rows, batch_size, True, seed, fabric.global_rank, fabric.world_size)
        held_out = Loader(dataset, fit.validation_rows, batch_size)
        result.constraints = fit.constraints if constraints is None else tuple(constraints)
        source = Source(fit.annotation if data is None else data, dataset, fit.train_rows, batch_size, program)
        result.annotation = source.table()
        active = Active(result.constraints, source)
        adam = loop.adam_settings(entry, learning_rate, epsilon, cooldown)
        trainer = loop._Trainer(result, fabric, loader, held_out, adam, compile, active, mode=guide_training)
        epochs = max(1, len(fit.history)) if max_epochs is None else max_epochs
        trainer.run(epochs, kl_warmup, early_stopping, tuple(callbacks), checkpoint, progress)
        for parameter in frozen:
            parameter.requires_grad_(True)
    return result


def _with_fresh_guide(fit: Fit, guide: str | Program | None) -> tuple[Program, dict[str, Any]]:
    """A program with the model of the fit and a new guide, and its constructor arguments."""
    arguments = dict(fit.arguments)
    if isinstance(guide, Program):
        if type(guide).model is not type(fit.program).model:
            raise TypeError(
                f"guide is a {type(guide).__name__}, whose model is not that of {type(fit.program).__name__}"
            )
        program = copy.deepcopy(guide)
    elif isinstance(fit.entry, Program):
        if guide is not None:
            raise TypeError(
                f"{type(fit.entry).__name__} was built by you: pass guide= a program with another guide, not a name"
            )
        program = copy.deepcopy(fit.program)
        _reset(program, fit.initial)
    else:
        arguments |= {} if guide is None else {"guide": guide}
        program, arguments = loop.build(fit.entry, fit.schema, arguments)
    wanted, found = model_state(fit.program), model_state(program)
    for name in sorted(set(wanted) ^ set(found)) or [n for n in wanted if wanted[n].shape != found[n].shape]:
        raise ValueError(f"'{name}' of the model differs between the fit and the program with the new guide")
    program.load_state_dict(wanted, strict=False)
    return program, arguments


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


def same_model(fits: list[Fit]) -> None:
    """Check that fits share one model, parameter by parameter and buffer by buffer.

    Raises
    ------
    ValueError
        Naming the first difference.
    """
    first = model_state(fits[0].program)
    for number, other in enumerate(fits[1:], 1):
        if type(other.program).model is not type(fits[0].program).model:
            raise ValueError(f"fit {number} is of {other.name}, fit 0 of {fits[0].name}: a mixture needs one model")
        state = model_state(other.program)
        for name in sorted(set(first) | set(state)):
            both = name in first and name in state and first[name].shape == state[name].shape
            if not both or not np.array_equal(first[name].cpu().numpy(), state[name].cpu().numpy()):
                raise ValueError(
                    f"the models of fit 0 and fit {number} differ in '{name}': fit the guides to one model (Fit.refit)"
                )
