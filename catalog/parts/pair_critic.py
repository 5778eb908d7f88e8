"""A critic that tells two blocks of latents of one cell from blocks of different cells of a group.

Where it does no better than chance, the blocks are independent given the group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 64


class PairCritic(nn.Module):
    """Network from two blocks of latents to the log odds that they are of one cell.

    Parameters
    ----------
    first, second : int
        Latents of the blocks.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(first + second, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return log odds [B] of blocks [B, D] and [B, E]."""
        return self.layers(torch.cat((first, second), -1)).squeeze(-1)

    def losses(self, first: Tensor, second: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of the critic, log 2 by chance, and that of its labels turned round.

        Parameters
        ----------
        first, second : Tensor [B, D] and [B, E]
            Blocks of the same cells.
        order : int64 [B]
            A permutation within groups (`within_groups`): cell b lends its second block to another of its group.
        """
        same, other = self(first, second), self(first, second[order])
        caught = (F.softplus(-same).mean() + F.softplus(other).mean()) / 2
        fooled = (F.softplus(same).mean() + F.softplus(-other).mean()) / 2
        return caught, fooled


def within_groups(groups: Tensor) -> Tensor:
    """Return a random permutation [B] of cells within their groups, int64 [B].

    Examples
    --------
    >>> groups = torch.tensor([0, 1, 0, 1, 1])
    >>> bool((groups[within_groups(groups)] == groups).all())
    True
    """
    drawn = torch.randperm(len(groups), device=groups.device)
    source = drawn[groups[drawn].sort(stable=True).indices]
    order = torch.empty_like(source)
    order[groups.sort(stable=True).indices] = source
    return order
