"""What is observed of a cell: counts of its genes, or real numbers, given what the decoder says of each gene."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
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
    likelihood : {"nb", "zinb", "poisson"}
        Of counts.
    n_rows : int
        How many dispersions (or noises) each gene has, such as one for each group.
    """

    def __init__(self, n_genes: int, n_values: int, n_hidden: int, likelihood: str = "nb", n_rows: int = 1) -> None:
        super().__init__()
        self.likelihood = likelihood if n_genes else "normal"
        self.head = nn.Linear(n_hidden, observed_size(n_genes, n_values))
        if self.likelihood == "zinb":
            self.head_gate = nn.Linear(n_hidden, n_genes)
        if self.likelihood == "normal":
            self.log_noise = nn.Parameter(torch.zeros(n_rows, n_values))
        elif self.likelihood != "poisson":
            self.log_dispersion = nn.Parameter(torch.randn(n_rows, n_genes))

    def features(self, batch: Batch) -> Tensor:
        """What an encoder sees of each cell, [B, G]."""
        return batch["values"] if self.likelihood == "normal" else batch["counts"].log1p()

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

        if self.likelihood == "normal":
            if not self.training:
                pyro.deterministic("mean", u, event_dim=1)
            noise = own(self.log_noise).exp() + LEAST_NOISE
            pyro.sample("values", dist.Normal(u, noise).to_event(1), obs=batch["values"])
            return
        if not self.training:
            pyro.deterministic("rho", torch.softmax(u, -1), event_dim=1)
        library = batch["size_factor"] if "size_factor" in batch else batch["counts"].sum(-1)
        parameters: list[Any] = [u, library.log().unsqueeze(-1)]
        if self.likelihood != "poisson":
            parameters.append(own(self.log_dispersion))
        if self.likelihood == "zinb":
            parameters.append(self.head_gate(hidden))
        pyro.sample("counts", LIKELIHOODS[self.likelihood].from_logits(*parameters), obs=batch["counts"])
