"""What can be wrong with a program before it is trained, found by running it once on a few cells.

A site outside the data plate, or a parameter that nothing trains, makes no error of its own: the training goes on and
the numbers are wrong. `fieldguide.inference.fit` looks before the first epoch, and so does `check`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Unit

from fieldguide.inference.data.fields import SizeFactor
from fieldguide.inference.data.minibatches import Dataset
from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.messages import caution
from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.weights.tracing import in_plate, is_random, trace_program

CELLS = 32
"""Cells that a program is looked at with."""


def few_cells(dataset: Dataset, rows: np.ndarray, program: Program) -> Batch:
    """Return the first few of these cells as a minibatch where the parameters are."""
    device = next(iter(program.parameters()), torch.zeros(())).device
    return {name: values.to(device) for name, values in dataset.batch(rows[:CELLS]).items()}


def require_sound(program: Program, batch: Batch, observes: bool = True) -> None:
    """Raise if the program has sites where they are not counted, or parameters that are not trained.

    Parameters
    ----------
    program : Program
        Left as it was.
    batch : dict of str to Tensor
        A few cells, where the parameters are.
    observes : bool
        Whether the model has to observe something: an objective of one's own may read the data by itself.

    Raises
    ------
    ValueError
        Naming the site or parameter, with what to change.
    """
    cells = batch_size(batch)
    require_groups(program)
    with torch.no_grad(), _undisturbed(program):
        guide, model = _both(program, batch)
        require_no_store(guide)
        require_no_store(model)
        fewer = _both(program, {name: values[:-1] for name, values in batch.items()}) if cells > 3 else (guide, model)
    if observes:
        require_observed(program, model)
    require_in_plate(program, "guide", guide, fewer[0])
    require_in_plate(program, "model", model, fewer[1])
    for name, site in guide.nodes.items():
        if is_random(site) and name in model.nodes and in_plate(program, site) != in_plate(program, model.nodes[name]):
            where = "guide alone" if in_plate(program, site) else "model alone"
            raise ValueError(
                f"site '{name}' is inside the plate '{program.plate}' in the {where}: put it under "
                "`with self.cells(batch):` in both, or in neither"
            )


def warn_of_unread(program: Program, batch: Batch, schema: FittedSchema | None) -> None:
    """Warn of size factors that the model does not read, as where totals are latent or nothing is counted."""
    fields = {} if schema is None else schema.schema.fields
    named = [name for name, field in fields.items() if isinstance(field, SizeFactor) and name in batch]
    for name in named:
        watched = _Watched(batch)
        with torch.no_grad(), _undisturbed(program):
            guide = trace_program(program, "guide", watched, 1)
            trace_program(program, "model", watched, 1, replay=guide)
        if name not in watched.read:
            caution(
                f"field '{name}': {type(program).__name__} as it is set up does not read it; leave it out by "
                f"fields={{'{name}': None}}"
            )


class _Watched(dict):
    """A minibatch that notes which fields are read."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


def _both(program: Program, batch: Batch) -> tuple[Any, Any]:
    """Traces of the guide, and of the model at its draws."""
    with explained(program, "guide", batch):
        guide = trace_program(program, "guide", batch, 2)
    with explained(program, "model", batch):
        return guide, trace_program(program, "model", batch, 2, replay=guide)


@contextmanager
def explained(program: Program, role: str, batch: Batch) -> Iterator[None]:
    """Say what to change where a program asks for a field that is not read, or Pyro finds shapes that do not fit."""
    name = type(program).__name__
    try:
        yield
    except KeyError as error:
        field = error.args[0] if error.args else None
        if not isinstance(field, str) or field in batch:
            raise
        there = ", ".join(field for field in batch if field != "index")
        raise ValueError(
            f"the {role} of {name} reads '{field}', which is no field of the data: there are {there}"
        ) from error
    except RuntimeError as error:
        if "same dtype" not in str(error):
            raise
        types = sorted({str(v.dtype) for v in (*batch.values(), *program.parameters()) if v.is_floating_point()})
        raise ValueError(
            f"the {role} of {name} mixes numbers of {' and '.join(types)}: make parameters and data one type, by "
            "torch.set_default_dtype while it is built, or by casting the fields that it reads"
        ) from error
    except ValueError as error:
        said = str(error).partition("\n")[0]
        if "collide at dim" in said or "both vectorized and non-vectorized" in said:
            raise ValueError(
                f"the {role} of {name}: {said}: the plate '{program.plate}' is the innermost, dim=-1, others are "
                "outside of it, and the attribute `depth` of the program is the number of all of them"
            ) from error
        if not said.startswith("Shape mismatch inside plate"):
            raise
        raise ValueError(
            f"the {role} of {name}: {said}: inside the plate a site has one value a cell; where several numbers are "
            "the value of one cell, as in [cells, features], end the distribution by .to_event(1)"
        ) from error


def require_observed(program: Program, model: Any) -> None:
    """Raise if the model observes nothing, unless the program has a loss of its own: it would not learn from data."""
    if type(program).training_loss is Program.training_loss:
        if not any(is_random(site) and site["is_observed"] for site in model.nodes.values()):
            raise ValueError(
                f"the model of {type(program).__name__} observes nothing: give the site of the data obs=batch[FIELD], "
                "under `with self.cells(batch):`"
            )


def require_same_model(program: Program, other: Program, batch: Batch) -> None:
    """Raise ValueError unless two programs give the same draws the same density under their models."""
    with torch.no_grad(), _undisturbed(program), _undisturbed(other):
        guide = trace_program(other, "guide", batch, 2)
        model = trace_program(program, "model", batch, 2, replay=guide)
        again = trace_program(other, "model", batch, 2, replay=model)  # also what the model alone draws
        one, two = float(model.log_prob_sum()), float(again.log_prob_sum())
    if abs(one - two) > 1e-4 * max(abs(one), abs(two), 1.0):
        raise ValueError(
            f"the model of the program with the new guide is another one: it gives the same draws a log density of "
            f"{two:.6g}, and the model of the fit {one:.6g}; build it with the same arguments"
        )


def require_no_store(trace: Any) -> None:
    """Raise if a trace has parameters of Pyro's global store: the training does not know them."""
    for name in trace.param_nodes:
        module, dotted, _ = name.partition("$$$")
        if dotted:
            raise ValueError(
                f"pyro.module '{module}' would never be trained: make it an attribute of the program, and call that"
            )
        raise ValueError(f"pyro.param '{name}' would never be trained: make it an nn.Parameter of the program")


def require_in_plate(program: Program, role: str, trace: Any, fewer: Any) -> None:
    """Raise if a site has values for cells but is outside the data plate.

    Such a site is known by its shape: it is another in the trace of fewer cells.
    """
    plate = f"'{program.plate}'"
    for name, site in trace.nodes.items():
        if is_random(site) and in_plate(program, site):
            _require_vectorised(program, role, name, site)
            if not _has_globals(program, trace):
                _require_each(role, name, site, fewer.nodes.get(name, site))
        if not is_random(site) or in_plate(program, site) or name not in fewer.nodes:
            continue
        if _shapes(site) == _shapes(fewer.nodes[name]):
            continue  # one value for the whole data set
        others = [frame.name for frame in site["cond_indep_stack"] if frame.name != "particles"]
        where = f"under the plate '{others[-1]}', not {plate}" if others else f"outside the plate {plate}"
        what = "observed" if site["is_observed"] else "latent"
        raise ValueError(
            f"site '{name}' is {what} {where}, but has values for cells, which would not be counted one by one: put it "
            f"under `with self.cells(batch):` in the {role}"
        )


def _has_globals(program: Program, trace: Any) -> bool:
    """Whether there is a latent site of one value for all cells, of which factors of every cell may be alike."""
    return any(is_random(s) and not s["is_observed"] and not in_plate(program, s) for s in trace.nodes.values())


def _require_vectorised(program: Program, role: str, name: str, site: Any) -> None:
    """Raise for a site of a loop over the cells."""
    if any(frame.name == program.plate and not frame.vectorized for frame in site["cond_indep_stack"]):
        raise ValueError(
            f"site '{name}' of the {role} is in a loop over the plate '{program.plate}': write all cells at once, "
            "under `with self.cells(batch):`"
        )


def _require_each(role: str, name: str, site: Any, fewer: Any) -> None:
    """Raise for a factor that is one number for all cells together, and changes with their number."""
    if isinstance(site["fn"], Unit):
        many, few = site["fn"].log_factor, fewer["fn"].log_factor
        alike = all(bool((values == values[..., :1]).all()) for values in (many, few))
        if alike and not torch.equal(many[..., 0], few[..., 0]):
            raise ValueError(
                f"factor '{name}' of the {role} is one number for all cells, and would count once for each: leave out "
                "the sum over cells, or put it outside the plate"
            )


def _shapes(site: Any) -> tuple:
    return tuple(site["value"].shape), tuple(site["fn"].batch_shape), tuple(site["fn"].event_shape)


def require_groups(program: Program) -> None:
    """Raise if a parameter is in two groups, or in none; or if there is none at all."""
    if not any(True for _ in program.parameters()):
        raise ValueError(f"{type(program).__name__} has no parameter: there is nothing to train")
    groups = program.groups()
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"groups() of {type(program).__name__} must return a dict of lists of parameters, not {groups!r:.60}"
        )
    names = {id(p): n for n, p in program.named_parameters()}
    home: dict[int, str] = {}
    for group, members in groups.items():
        for parameter in members:
            name = names.get(id(parameter))
            if name is None:
                raise ValueError(f"group '{group}' holds a tensor that is no parameter of {type(program).__name__}")
            if id(parameter) in home:
                raise ValueError(f"parameter '{name}' is in two groups, '{home[id(parameter)]}' and '{group}'")
            home[id(parameter)] = group
    for name, parameter in program.named_parameters():
        if parameter.requires_grad and id(parameter) not in home:
            raise ValueError(
                f"parameter '{name}' is in no group, so it would never be trained: return it from groups() (which has "
                f"{', '.join(groups)}), or set requires_grad=False"
            )


@contextmanager
def _undisturbed(program: Program) -> Iterator[None]:
    """In evaluation mode, with a parameter store of its own; afterwards modes and buffers are what they were."""
    modes = {module: module.training for module in program.modules()}
    buffers = {buffer: buffer.clone() for buffer in program.buffers()}
    program.eval()
    try:
        with pyro.validation_enabled(False), pyro.get_param_store().scope():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers.items():
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def warn_of_absent(schema: FittedSchema, dataset: Dataset, rows: np.ndarray) -> None:
    """Say which categories of a field no training cell has: nothing is learnt about them."""
    for name, state in schema.states.items():
        labels = state.get("perturbations", state.get("categories"))
        store = dataset.stores[name]
        if not labels or isinstance(labels[0], list) or store.dtype != torch.int64:
            continue
        codes = store.gather(rows)
        seen = torch.zeros(len(labels) + 1, dtype=torch.bool)
        seen[codes.flatten().cpu()] = True  # -1, of none, is the last
        absent = torch.nonzero(~seen[:-1]).ravel().tolist()
        if absent:
            more = f" ({len(absent)} such)" if len(absent) > 1 else ""
            caution(
                f"field '{name}': all cells of {str(labels[absent[0]])!r} are held out{more}: nothing is learnt about "
                "it; validation=... says which cells to hold out"
            )
