"""How many latents a block needs: latents ranked by random truncation, and cut off where more of them gain little.

Latents that are always used together are free to spread what one says over several. If a random number of them is cut
off from each cell in training (nested dropout; Rippel, Gelbart and Adams 2014), the first says most, the second most of
the rest, and so on. The bound with the first k of them then rises with k up to the number there is, and no further.
"""

import torch
from torch import Tensor, nn

from fieldguide.inference.training.processes import mean_over_processes

WHOLE = 0.3
"""Share of the cells that keep all latents."""
CERTAIN = 3.0
"""Standard errors by which a gain has to exceed zero."""


class Ranking(nn.Module):
    """Which of the ranked latents of a block are in use.

    Parameters
    ----------
    size : int
        D.
    rounds : int
        Minibatches that can be judged, at most.

    Attributes
    ----------
    keep : Tensor [D]
        1 where a latent is in use.
    bounds : float64 [rounds, D + 1]
        Mean bound of a minibatch with the first 0, 1, ..., D latents.
    useless : bool Tensor
        Whether none of them gained anything when their number was chosen.
    """

    useless: Tensor
    keep: Tensor
    bounds: Tensor
    judged: Tensor

    def __init__(self, size: int, rounds: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keep", torch.ones(size))
        self.register_buffer("bounds", torch.zeros(rounds, size + 1, dtype=torch.float64))
        self.register_buffer("judged", torch.tensor(0))
        self.register_buffer("useless", torch.tensor(False))

    def first(self, count: int) -> Tensor:
        """Return the indicators [D] of the first latents."""
        return (torch.arange(self.size, device=self.keep.device) < count).to(self.keep)

    def random(self, cells: int) -> Tensor:
        """Return indicators [B, D] of the first k latents, k drawn anew for each cell; all of them in some cells."""
        count = torch.randint(1, self.size + 1, (cells,), device=self.keep.device)
        whole = torch.rand(cells, device=self.keep.device) < WHOLE
        count = torch.where(whole, self.size, count)
        return (torch.arange(self.size, device=self.keep.device) < count[:, None]).to(self.keep)

    def judge(self, bounds: Tensor) -> None:
        """Note the mean bounds [D + 1] of a minibatch, in nats a cell."""
        self.bounds[int(self.judged)] = bounds
        self.judged += 1

    def cut(self, least: float, fewest: int = 0) -> None:
        """Keep the fewest first latents that lack little, ``fewest`` at least.

        Little is the share ``least`` of what they gain over the first of them alone (without any, no network was
        trained), or what may be chance: three standard errors of the difference between minibatches. Nothing is cut off
        that was never judged.
        """
        self.agree()
        if not int(self.judged):
            return
        bounds = self.bounds[: int(self.judged)]
        mean = bounds.mean(0)
        best = int(mean.argmax())
        behind = bounds[:, [best]] - bounds
        allowed = least * (mean[best] - mean[min(best, 1)]).expand_as(mean)
        if len(bounds) > 1:
            allowed = torch.maximum(allowed, CERTAIN * behind.std(0) / len(bounds) ** 0.5)
        count = int((behind.mean(0) <= allowed).nonzero()[0])
        self.useless.fill_(count == 0)
        self.keep.copy_(self.first(max(count, fewest)))

    def agree(self) -> None:
        """Give every process of one fit the same bounds, so that all cut off the same."""
        judged = self.judged.double()
        mean_over_processes(self.bounds, judged)
        self.judged.copy_(judged.floor().long())  # a row that some lack is left out by all
