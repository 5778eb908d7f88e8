"""Probabilistic PCA: the linear Gaussian model whose posterior and evidence are known (Tipping and Bishop 1999)."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import guide_head
from fieldguide.inference import ELBO, Matrix, Program, Schema
from fieldguide.inference.checks.ranges import Size, checked
from fieldguide.inference.program import Batch


@entry(
    "ppca",
    title="Probabilistic PCA: linear Gaussian latents with known posterior and evidence, to check inference with",
    schema=Schema(x=Matrix("X")),
    objective=ELBO(),
    cite="""
@article{tipping1999probabilistic,
  title = {Probabilistic principal component analysis},
  author = {Tipping, Michael E. and Bishop, Christopher M.},
  journal = {Journal of the Royal Statistical Society: Series B},
  volume = {61},
  number = {3},
  pages = {611--622},
  year = {1999},
  doi = {10.1111/1467-9868.00196}
}""",
)
class PPCA(Program):
    """Probabilistic PCA.

    For each cell with features x [F] and latent z [D]::

        z ~ Normal(0, I)
        x ~ Normal(mean + loadings @ z, diag(noise ** 2))

    The guide is Normal(linear(x), diag(scale ** 2)) with one scale for all cells: the family of the exact
    posterior, but for the correlations between latents. Guides of the other families are linear in x throughout;
    ``full_covariance`` contains the exact posterior.

    Parameters
    ----------
    n_features : int
        F; filled in by ``fit``.
    n_latent : int
        D.
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
        Family of the guide, see `fieldguide.catalog.parts.guides`.
    """

    @checked
    def __init__(self, n_features: Size, n_latent: Size = 5, guide: str = "mean_field") -> None:
        super().__init__()
        self.loadings = nn.Parameter(torch.randn(n_features, n_latent) / n_latent**0.5)
        self.mean = nn.Parameter(torch.zeros(n_features))
        self.log_noise = nn.Parameter(torch.zeros(n_features))
        self.family = guide
        if guide == "mean_field":
            self.guide_loc = nn.Linear(n_features, n_latent)
            self.guide_log_scale = nn.Parameter(torch.zeros(n_latent))
        else:
            self.guide_head = guide_head(guide, n_features, n_latent)
        self.register_buffer("prior_loc", torch.zeros(n_latent))

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            loc = z @ self.loadings.T + self.mean
            pyro.sample("x", dist.Normal(loc, self.log_noise.exp()).to_event(1), obs=batch["x"])

    def guide(self, batch: Batch) -> None:
        x = batch["x"]
        if self.family == "mean_field":
            posterior = dist.Normal(self.guide_loc(x), self.guide_log_scale.exp()).to_event(1)
        else:
            posterior = self.guide_head(x)
        with self.cells(batch):
            pyro.sample("z", posterior)

    def exact_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean [B, D] and covariance [D, D] of the posterior of z."""
        scaled = self.loadings / self.log_noise.exp()[:, None] ** 2
        covariance = torch.linalg.inv(torch.eye(scaled.shape[1], dtype=x.dtype) + scaled.T @ self.loadings)
        return (x - self.mean) @ scaled @ covariance, covariance

    def exact_log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of each row [B], in nats."""
        diagonal = self.log_noise.exp() ** 2
        return dist.LowRankMultivariateNormal(self.mean, self.loadings, diagonal).log_prob(x)
