"""Capture one training step as a graph and compile it, or say why not and go on without.

``torch.compile`` on a Pyro program directly breaks the graph at every handler; exporting first gives one graph whose
parameters are still those of the program. A graph is made for each size of minibatch in turn: the common size is
compiled, other sizes (a last minibatch) run eagerly.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.step import Step

Losses = Tensor | dict[str, Tensor]


class _Losses(nn.Module):
    """The losses of a step as a module, so that they can be exported."""

    def __init__(self, program: Program, objective, total: int) -> None:
        super().__init__()
        self.program, self.objective, self.total = program, objective, total

    def forward(self, batch: Batch, kl_weight: Tensor) -> Losses:
        step = Step(self.program, batch, self.total, {"kl_weight": kl_weight})
        return self.program.training_loss(step, self.objective)


def export_step(program: Program, objective, batch: Batch, total: int) -> nn.Module:
    """Return the exported training step: a module from (batch, kl_weight) to the losses, sharing parameters.

    Raises whatever ``torch.export`` raises for a program or objective that it cannot trace.
    """
    first = next(iter(batch.values()))
    module = _Losses(program.train(), objective, total)
    exported = torch.export.export(module, (batch, torch.ones((), device=first.device)), strict=False)
    return exported.module()


def capture(program: Program, objective, total: int) -> Callable[[Batch, float | Tensor], Losses]:
    """Return a function from (batch, KL weight) to losses that compiles itself at the first minibatch."""
    eager = _Losses(program, objective, total)
    compiled: dict[int, Callable] = {}

    def losses(batch: Batch, kl_weight: float | Tensor) -> Losses:
        size = batch_size(batch)
        weight = torch.as_tensor(kl_weight, dtype=torch.float32, device=next(iter(batch.values())).device)
        if not compiled:
            try:
                step = torch.compile(export_step(program, objective, batch, total))
                step(batch, weight)
                compiled[size] = step
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                warnings.warn(f"the step of {type(program).__name__} cannot be captured ({reason}); "
                              "training goes on without compilation", stacklevel=2)  # fmt: skip
                compiled[-1] = eager
        return compiled.get(size, eager)(batch, weight)

    return losses
