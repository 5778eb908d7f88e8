"""What is observed of a cell: counts of its genes, or real numbers, given what the decoder says of each gene."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
from fieldguide.catalog.parts.mixed_counts import mixed_counts, one_each
from fieldguide.inference.program import Batch

LEAST_NOISE = 1e-3


def observed_size(n_genes: int, n_values: int) -> int:
    """Return the number of genes G, of counts or of values.

    Raises
    ------
    ValueError
        If there are neither counts nor values, or both.
    """
    if bool(n_genes) == bool(n_values):
        raise ValueError(
            "there must be counts or values, one of them: fields={'counts': None, 'values': 'X'} for real numbers"
        )
    return n_genes or n_values


class Observation(nn.Module):
    """Counts (negative binomial, zero-inflated or Poisson) of proportions softmax(u), or values Normal(u, noise).

    The proportions of a cell are multiplied by its size factor, or else by its total count.

    Parameters
    ----------
    n_genes, n_values : int
        One of them is 0.
    n_hidden : int
        Of the decoder, from which the probability of structural zeros is read.
    likelihood : {"nb", "zinb", "poisson"}, or a sequence of them
        Of counts: for all cells, or for each row.
    n_rows : int
        How many dispersions (or noises) each gene has, such as one for each group.
    """

    def __init__(self, n_genes: int, n_values: int, n_hidden: int, likelihood: Any = "nb", n_rows: int = 1) -> None:
        super().__init__()
        self.kinds = one_each("likelihood", likelihood, n_rows, LIKELIHOODS, "groups")
        self.counted = bool(n_genes)
        self.head = nn.Linear(n_hidden, observed_size(n_genes, n_values))
        if self.counted and "zinb" in self.kinds:
            self.head_gate = nn.Linear(n_hidden, n_genes)
        if not self.counted:
            self.log_noise = nn.Parameter(torch.zeros(n_rows, n_values))
        elif set(self.kinds) != {"poisson"}:
            self.log_dispersion = nn.Parameter(torch.randn(n_rows, n_genes))

    def features(self, batch: Batch) -> Tensor:
        """What an encoder sees of each cell, [B, G]."""
        return batch["counts"].log1p() if self.counted else batch["values"]

    def forward(self, hidden: Tensor, batch: Batch, row: Tensor | None = None) -> None:
        """State the observed site, and outside training what is expected of each gene: ``rho``, or ``mean``.

        Parameters
        ----------
        hidden : Tensor [..., B, H]
        batch : dict of Tensor
        row : int64 [B], optional
            Whose dispersions a cell has.
        """
        u = self.head(hidden)

        def own(table: Tensor) -> Tensor:
            return table[0] if row is None else table[row]

        if not self.counted:
            if not self.training:
                pyro.deterministic("mean", u, event_dim=1)
            noise = own(self.log_noise).exp() + LEAST_NOISE
            pyro.sample("values", dist.Normal(u, noise).to_event(1), obs=batch["values"])
            return
        if not self.training:
            pyro.deterministic("rho", torch.softmax(u, -1), event_dim=1)
        library = batch["size_factor"] if "size_factor" in batch else batch["counts"].sum(-1)
        dispersion = own(self.log_dispersion) if hasattr(self, "log_dispersion") else None
        gate = self.head_gate(hidden) if hasattr(self, "head_gate") else None
        group = torch.zeros_like(batch["index"]) if row is None else row
        counts = mixed_counts(self.kinds, group, u, library.log().unsqueeze(-1), dispersion, gate)
        pyro.sample("counts", counts, obs=batch["counts"])
