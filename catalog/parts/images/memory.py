"""Embeddings of earlier minibatches as further candidates, so that their number does not depend on the minibatch."""

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """The last M embeddings with their codes, oldest first out.

    Parameters
    ----------
    size : int
        M; 0 for none.
    n_latent : int
        d.
    n_codes : int
        Codes that are remembered with each.
    """

    z: Tensor
    codes: Tensor
    next: Tensor
    stored: Tensor

    def __init__(self, size: int, n_latent: int, n_codes: int = 2) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("z", torch.zeros(size, n_latent))
        self.register_buffer("codes", torch.zeros(n_codes, size, dtype=torch.int64))
        self.register_buffer("next", torch.tensor(0))
        self.register_buffer("stored", torch.tensor(0))

    def beside(self, z: Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
        """Return anchors [..., B, d] and their codes [B] with what is remembered after them: candidates."""
        stored = self.number()
        if not stored:
            return (z, *codes)
        earlier = self.z[:stored].expand(*z.shape[:-2], stored, z.shape[-1])
        known = (torch.cat((mine, past[:stored])) for mine, past in zip(codes, self.codes, strict=True))
        return (torch.cat((z, earlier), -2), *known)

    def number(self) -> int:
        """Return how many embeddings are remembered."""
        if self.size and torch.compiler.is_compiling():
            raise NotImplementedError("what a memory holds changes with each step: leave compile=True out, or memory=0")
        return int(self.stored) if self.size else 0

    @torch.no_grad()
    def push(self, z: Tensor, *codes: Tensor) -> None:
        """Remember embeddings [B, d] and their codes [B], of the last M where there are more."""
        if not self.size:
            return
        z, number = z[-self.size :], min(len(z), self.size)
        places = (int(self.next) + torch.arange(number, device=z.device)) % self.size
        self.z[places] = z.detach()
        for past, mine in zip(self.codes, codes, strict=True):
            past[places] = mine[-self.size :]
        self.next.copy_((self.next + number) % self.size)
        self.stored.copy_((self.stored + number).clamp(max=self.size))
