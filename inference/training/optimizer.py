"""The optimiser of the training loop: Adam, and its sparse form for embeddings of which a minibatch names a few."""

from collections.abc import Iterable

import torch
from torch import nn

DECAY = 1e-6
"""Weight decay, as published for scVI; embeddings with sparse gradients have none."""


class Optimizer:
    """Adam over all parameters of a program.

    Parameters
    ----------
    program : Module
        Weights of its ``nn.Embedding(sparse=True)`` are updated where they are used only, so that a step costs what the
        minibatch names and not what the table holds.
    parameters : iterable of Parameter
        Those to be trained.
    rate, epsilon : float
    fused : bool
    cooldown : float
        Share of the training, its end, over which the step size falls linearly to zero.
    """

    def __init__(
        self,
        program: nn.Module,
        parameters: Iterable[nn.Parameter],
        rate: float,
        epsilon: float,
        fused: bool,
        cooldown: float = 0.0,
    ) -> None:
        self.rate, self.cooldown = rate, cooldown
        tables = {id(m.weight) for m in program.modules() if isinstance(m, nn.Embedding) and m.sparse}
        dense, sparse = [], []
        for parameter in parameters:
            (sparse if id(parameter) in tables else dense).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        if dense:
            self.parts.append(torch.optim.Adam(dense, lr=rate, eps=epsilon, weight_decay=DECAY, fused=fused))
        if sparse:
            self.parts.append(torch.optim.SparseAdam(sparse, lr=rate, eps=epsilon))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, progress: float = 0.0) -> None:
        """Move along the gradients; ``progress`` is the share of the training's steps that came before this one."""
        if self.cooldown and progress > 1 - self.cooldown:
            for part in self.parts:
                for group in part.param_groups:
                    group["lr"] = self.rate * (1 - progress) / self.cooldown
        for part in self.parts:
            part.step()
