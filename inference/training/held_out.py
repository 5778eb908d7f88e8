"""The loss on cells that were held out."""

from typing import Any

import torch
from torch import Tensor

from fieldguide.inference.data.minibatches import Loader
from fieldguide.inference.program import Batch, Program
from fieldguide.inference.randomness import isolated
from fieldguide.inference.step import Step


@torch.no_grad()
def mean_loss(program: Program, objective: Any, loader: Loader, total: int, device: torch.device) -> float:
    """Loss per cell of the loader's, at full KL weight and with the same random numbers each time.

    Parameters
    ----------
    program, objective
        The program is left in evaluation mode.
    loader : Loader
    total : int
        Number of training cells that a minibatch stands for.
    device : torch.device
    """
    program.eval()
    total_loss: Any = 0.0
    with isolated(device, 0):
        for batch in loader:
            batch = to_device(batch, device)
            losses = program.training_loss(Step(program, batch, total, {}), objective)
            total_loss = total_loss + first_loss(losses) * len(batch["index"])
    return float(total_loss) / len(loader.rows)


@torch.no_grad()
def first_non_finite(program: Program, objective: Any, loader: Loader, total: int, device: torch.device) -> Batch:
    """The first minibatch of the loader's whose loss is not finite, or else the last; arguments as for `mean_loss`."""
    program.eval()
    batch: Batch = {}
    with isolated(device, 0):
        for batch in loader:
            batch = to_device(batch, device)
            if not torch.isfinite(first_loss(program.training_loss(Step(program, batch, total, {}), objective))):
                break
    return batch


def first_loss(losses: Any) -> Tensor:
    """The loss, or the first of those by parameter group, which is the one that is reported."""
    return losses.detach() if isinstance(losses, Tensor) else next(iter(losses.values())).detach()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A minibatch where the parameters are."""
    return batch if device.type == "cpu" else {k: v.to(device, non_blocking=True) for k, v in batch.items()}
