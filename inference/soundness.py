"""What can be wrong with a program before it is trained, found by running it once on a few cells.

A site outside the data plate, or a parameter that nothing trains, makes no error of its own: the training goes on and
the numbers are wrong. `fieldguide.inference.fit` looks before the first epoch, and so does `check`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Unit

from fieldguide.inference.data.minibatches import Dataset
from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.weights.tracing import in_plate, is_random, trace_program

CELLS = 32
"""Cells that a program is looked at with."""


def few_cells(dataset: Dataset, rows: np.ndarray, device: torch.device) -> Batch:
    """Return the first few of these cells as a minibatch on the device."""
    return {name: values.to(device) for name, values in dataset.batch(rows[:CELLS]).items()}


def require_sound(program: Program, batch: Batch) -> None:
    """Raise if the program has sites where they are not counted, or parameters that are not trained.

    Parameters
    ----------
    program : Program
        Left as it was.
    batch : dict of str to Tensor
        A few cells, where the parameters are.

    Raises
    ------
    ValueError
        Naming the site or parameter, with what to change.
    """
    with torch.no_grad(), _undisturbed(program):
        guide = trace_program(program, "guide", batch, 2)
        require_no_store(guide)
        model = trace_program(program, "model", batch, 2, replay=guide)
    require_no_store(model)
    require_in_plate(program, model, batch_size(batch))
    require_groups(program)


def require_no_store(trace: Any) -> None:
    """Raise if a trace has parameters of Pyro's global store: the training does not know them."""
    for name in trace.param_nodes:
        module, dotted, _ = name.partition("$$$")
        if dotted:
            raise ValueError(
                f"pyro.module '{module}' would never be trained: make it an attribute of the program, and call that"
            )
        raise ValueError(f"pyro.param '{name}' would never be trained: make it an nn.Parameter of the program")


def require_in_plate(program: Program, trace: Any, cells: int) -> None:
    """Raise if an observed site of the model has values for cells but is outside the data plate."""
    plate = f"'{program.plate}'"
    for name, site in trace.nodes.items():
        if not (is_random(site) and site["is_observed"]) or in_plate(program, site):
            continue
        factor = isinstance(site["fn"], Unit)
        own = site["fn"].batch_shape[-1:] if factor else ()
        if factor and not (cells > 1 and own == (cells,)):
            continue  # one number for the whole data set
        others = [frame.name for frame in site["cond_indep_stack"] if frame.name != "particles"]
        where = f"under the plate '{others[-1]}', not {plate}" if others else f"outside the plate {plate}"
        raise ValueError(
            f"site '{name}' is observed {where}, so its cells would not be counted one by one: put it under "
            "`with self.cells(batch):` (a number that belongs to the whole data set is a scalar pyro.factor)"
        )


def require_groups(program: Program) -> None:
    """Raise if a parameter is in two groups, or in none."""
    groups = program.groups()
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
                f"parameter '{name}' is in no group ({', '.join(groups)}), so it would never be trained: return it "
                "from groups(), or set requires_grad=False"
            )


@contextmanager
def _undisturbed(program: Program) -> Iterator[None]:
    """In evaluation mode, with a parameter store of its own; afterwards each module is in the mode it was in."""
    modes = {module: module.training for module in program.modules()}
    program.eval()
    try:
        with pyro.validation_enabled(False), pyro.get_param_store().scope():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
