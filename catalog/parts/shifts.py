"""Sparse shifts of latents by perturbations: which latents each moves, by how much, and how sure that is.

A cell under perturbations a has latents ``z_i ~ Normal(sum_a gamma_ai mu_ai, 1)`` with a mask gamma of zeros and ones
over all cells. Given probabilities psi of the mask, the expectation of the log prior over masks is exact::

    E log Normal(z; gamma mu, 1) = log Normal(z; psi mu, 1) - psi (1 - psi) mu^2 / 2

so neither is a mask drawn nor is it relaxed. `ExactShifts` sets mu and psi in closed form from the cells that it has
seen. `SampledShifts` is the published form: masks drawn for each cell, straight-through gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_GAIN = 1e-12
"""What a shift explains at least, against division by zero."""


class ExactShifts(nn.Module):
    r"""Shifts and the probabilities of their mask, set in closed form; K perturbations, D latents.

    Given the cells of a perturbation, the best shift is their mean, what the other perturbations of the same cell
    explain taken out. The probability of an entry of the mask is the maximum of::

        psi gain + price log(1 - psi),    gain = mu^2 / 2

    which is ``1 - price / gain`` where that is positive, and 0 elsewhere. The second term is the published prior
    Beta(1, alpha) of the inclusion probability, tied to psi, with ``price = (alpha - 1) / cells of the perturbation``.
    A price that is the same for all perturbations makes the rule free of scale: a shift counts from
    ``sqrt(2 price)`` standard deviations of the latent on, however many cells there are.

    Parameters
    ----------
    n_perturbation, n_latent : int
    price : float, optional
        In place of alpha.
    alpha : float, optional
    masked : bool
        Whether there is a mask; without one every perturbation shifts every latent.
    """

    mean: Tensor
    share: Tensor
    n_cells: Tensor

    def __init__(
        self, n_perturbation: int, n_latent: int, price: float = 0.0, alpha: float | None = None, masked: bool = True
    ) -> None:
        super().__init__()
        self.price, self.alpha, self.masked = price, alpha, masked
        self.register_buffer("mean", torch.zeros(n_perturbation, n_latent))
        self.register_buffer("share", torch.ones(n_perturbation, n_latent))
        self.register_buffer("n_cells", torch.zeros(n_perturbation))

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the latents [B, D] and the variance that the mask adds, summed [B], of codes [B, M]."""
        moved = _gather(self.share * self.mean, codes).sum(-2)
        return moved, _gather((self.share * (1 - self.share) * self.mean**2).sum(-1, True), codes).sum((-2, -1))

    def turn(self, axes: Tensor, origin: Tensor) -> None:
        """Write the shifts in other axes [D, D] of the latents, after taking the origin [D] from them."""
        self.mean.copy_((self.mean - origin) @ axes.T)
        self.settle()

    def settle(self, first: int = 0) -> None:
        """Set the probabilities of the mask to what is best for the shifts, of perturbations from ``first`` on."""
        if self.masked:
            price = self.price if self.alpha is None else (self.alpha - 1) / self.n_cells[first:].clamp(min=1)[:, None]
            self.share[first:] = (1 - price / (self.mean[first:] ** 2 / 2).clamp(min=LEAST_GAIN)).clamp(min=0)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor, settle: bool = True) -> None:
        """Move the shifts to the means of latents z [B, D], by the part of all cells that the minibatch is.

        ``settle=False`` leaves the mask as it is.
        """
        size = len(self.mean)
        moved = _gather(self.share * self.mean, codes)
        explained = (z - moved.sum(-2)).unsqueeze(-2) + moved  # by each perturbation of the cell, beside the others
        rows = torch.where(codes < 0, size, codes).flatten()
        cells = z.new_zeros(size + 1).index_add_(0, rows, z.new_ones(len(rows)))[:size, None]
        total = z.new_zeros(size + 1, z.shape[-1]).index_add_(0, rows, explained.flatten(0, 1))[:size]
        part = (cells / self.n_cells.clamp(min=1)[:, None]).clamp(max=1)
        self.mean.add_(part * (total / cells.clamp(min=1) - self.mean))
        if settle:
            self.settle()

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor, first: int) -> None:
        """Set the shifts of perturbations from ``first`` on by least squares to latents z [N, D]; others stay.

        Raises
        ------
        ValueError
            If several of them never occur apart, so that only the sum of their shifts is known.
        """
        alone = z - _gather((self.share * self.mean)[:first], torch.where(codes < first, codes, -1)).sum(-2)
        cells, at = torch.nonzero(codes >= first, as_tuple=True)
        which = z.new_zeros(len(z), len(self.mean) - first)
        which[cells, codes[cells, at] - first] = 1
        products = which.T @ which
        if torch.linalg.matrix_rank(products.double()) < len(products):
            raise ValueError(
                "new perturbations that occur together alone cannot be told apart: add cells with one of them"
            )
        self.mean[first:] = torch.linalg.solve(products.double(), (which.T @ alone).double()).to(z.dtype)
        self.n_cells[first:] = products.diagonal()
        self.settle(first)


class SampledShifts(nn.Module):
    """The published form: shifts and logits of the mask are parameters, and a mask is drawn for each cell.

    The mask is the rounded binary concrete variable at temperature 1, whose gradient is that of the unrounded one. In
    evaluation the mask is not drawn: its probabilities are used as `ExactShifts` does.

    Parameters
    ----------
    n_perturbation, n_latent : int
    masked : bool
    """

    START = 5.0
    """Logit of the mask: all entries are on."""

    def __init__(self, n_perturbation: int, n_latent: int, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.mean = nn.Parameter(torch.randn(n_perturbation, n_latent))
        self.logits = nn.Parameter(torch.full((n_perturbation, n_latent), self.START), requires_grad=masked)

    @property
    def share(self) -> Tensor:
        """Probability of each entry of the mask [K, D]."""
        return torch.sigmoid(self.logits) if self.masked else torch.ones_like(self.mean)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """As `ExactShifts`; in training by masks that are drawn, so that these add no variance."""
        share, mean = self.share, self.mean
        if not (self.training and self.masked):
            spread = _gather((share * (1 - share) * mean**2).sum(-1, True), codes).sum((-2, -1))
            return _gather(share * mean, codes).sum(-2), spread
        logits = _gather(self.logits, codes)
        soft = torch.sigmoid(logits + torch.logit(torch.rand_like(logits), eps=1e-7))
        hard = soft + ((soft > 0.5).to(soft.dtype) - soft).detach()
        moved = (hard * _gather(mean, codes)).sum(-2)
        return moved, moved.new_zeros(moved.shape[:-1])


def _gather(table: Tensor, codes: Tensor) -> Tensor:
    """Rows of a table [K, D] for codes [B, M]: [B, M, D], zeros where a code is -1."""
    return F.pad(table, (0, 0, 0, 1))[codes]
