"""What the processes of one fit have in common: gradients and running statistics."""

import torch
import torch.distributed as dist
from torch import Tensor

from fieldguide.inference.program import Program


def mean_over_processes(*values: Tensor) -> None:
    """Set values to their mean over all processes, in place, before something is decided by them; one keeps its own."""
    if dist.is_available() and dist.is_initialized():
        for value in values:
            dist.all_reduce(value)
            value /= dist.get_world_size()


def average_gradients(fabric, parameters: list[Tensor]) -> None:
    """Give every process the mean of the gradients, so that all take the same step."""
    present = [p for p in parameters if p.grad is not None]
    flat = fabric.all_reduce(torch.cat([p.grad.flatten() for p in present]), reduce_op="mean")
    for parameter, gradient in zip(present, flat.split([p.numel() for p in present]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def average_buffers(fabric, program: Program) -> None:
    """Give every process the same running statistics, so that all see the same held-out loss and stop together."""
    for buffer in program.buffers():
        if buffer.is_floating_point():
            buffer.copy_(fabric.all_reduce(buffer.clone(), reduce_op="mean"))
