"""Capture one training step as a graph and compile it, or say why not and go on without.

``torch.compile`` on a Pyro program directly breaks the graph at every handler; exporting first gives one graph whose
parameters are still those of the program. A graph is made for each size of minibatch in turn: the common size is
compiled, other sizes (a last minibatch) run eagerly.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fieldguide.inference.messages import caution
from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.step import Losses, Step

Scalars = Mapping[str, float | Tensor]
Logs = dict[str, Tensor]
SCALARS = ("kl_weight", "progress")
"""What the loop tells a step about time."""


class _Losses(nn.Module):
    """The losses of a step, and what it logs, as a module, so that they can be exported."""

    def __init__(self, program: Program, objective, total: int) -> None:
        super().__init__()
        self.program, self.objective, self.total = program, objective, total

    def forward(self, batch: Batch, scalars: Scalars) -> tuple[Losses, Logs]:
        step = Step(self.program, batch, self.total, scalars)
        return self.program.training_loss(step, self.objective), step.logs


def export_step(program: Program, objective, batch: Batch, total: int) -> nn.Module:
    """Return the exported training step: a module from (batch, scalars) to losses and logs, sharing parameters.

    The mode of the program (training or evaluation) is captured as it is.

    Raises whatever ``torch.export`` raises for a program or objective that it cannot trace.
    """
    first = next(iter(batch.values()))
    module = _Losses(program, objective, total)
    scalars = {name: torch.ones((), device=first.device) for name in SCALARS}
    exported = torch.export.export(module, (batch, scalars), strict=False)
    return exported.module()


def capture(program: Program, objective, total: int) -> Callable[[Batch, Scalars], tuple[Losses, Logs]]:
    """Return a function from (batch, scalars) to losses and logs that compiles itself at the first minibatch."""
    eager = _Losses(program, objective, total)
    compiled: dict[int, Callable] = {}

    def losses(batch: Batch, scalars: Scalars) -> tuple[Losses, Logs]:
        size = batch_size(batch)
        device = next(iter(batch.values())).device
        scalars = {k: torch.as_tensor(v, dtype=torch.float32, device=device) for k, v in scalars.items()}
        if not compiled:
            try:
                step = torch.compile(export_step(program, objective, batch, total))
                step(batch, scalars)
                compiled[size] = step
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                caution(
                    f"the step of {type(program).__name__} cannot be captured ({reason}); training goes on without "
                    "compilation"
                )
                compiled[-1] = eager
        return compiled.get(size, eager)(batch, scalars)

    return losses
