"""Cells whose quality metrics, zeros and expression share technical causes, with the truth beside them.

- `quality_counts`: counts, metrics and differential expression, from the model of `fieldguide.catalog.hcv`
- `linear_gaussian`: two groups of latents of a linear Gaussian model, whose posterior is known (`TwoFactors`)
"""

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from fieldguide.catalog.data.simulate import negative_binomial, softmax
from fieldguide.inference import Program
from fieldguide.inference.checks.ranges import Seed, Size, checked
from fieldguide.inference.program import Batch

__all__ = ["TwoFactors", "linear_gaussian", "quality_counts"]

TRUTH_DRAWS = 4000
"""Draws of u (and of z) behind the true mean expression of a type."""


@checked
def quality_counts(
    n_cells: Size = 3_000,
    n_genes: Size = 300,
    *,
    n_types: Size = 4,
    n_latent: Size = 5,
    n_nuisance: int = 3,
    n_metrics: int = 5,
    biological: float = 0.5,
    technical: float = 0.3,
    strength: float = 0.5,
    depth: float = 7.0,
    seed: Seed = 0,
) -> anndata.AnnData:
    """Draw counts of cell types under technical variation that also shows in quality metrics.

    - type: uniform; z given type t: Normal(centre_t, I) [D], centre_t ~ Normal(0, 4 I)
    - u: Normal(0, I) [E], independent of the type
    - rho: softmax(base + z A + u B); base ~ Normal(0, 1), A ~ Normal(0, 0.15²) for a share ``biological`` of the
      genes, B ~ Normal(0, strength²) for a share ``technical``, taken among the biological ones as far as these go, so
      that z and u are entangled given the counts
    - counts: zero with probability sigmoid(-2 + u C), C ~ Normal(0, 0.7²); else NB(library * rho, theta),
      log library ~ Normal(depth, 0.3²), log theta ~ Normal(1, 0.5²)
    - metrics: sigmoid(u M + 0.3 noise) [J], M ~ Normal(0, 1)

    Parameters
    ----------
    n_cells, n_genes, n_types, n_latent, n_nuisance, n_metrics
        N, G, T, D, E, J.
    biological, technical
        Shares of the genes that z and u drive.
    strength
        Standard deviation of the technical loadings.
    depth
        Mean of the log library size.
    seed
        Seed of the generator.

    Returns
    -------
    AnnData
        ``obs``: cell_type; metric_0 ... (in (0, 1)), logit_0 ... (their logits); ``obsm``: z, u;
        ``varm["expression"]`` [G, T], the true mean proportions of each type with u from its prior (by
        `TRUTH_DRAWS` draws, of u common to the types); ``var``: biological, technical (bool);
        ``uns["simulation"]``.

    Notes
    -----
    Stands in for the blood cells of Lopez et al. 2018, "Information constraints on auto-encoding variational Bayes",
    section 4.3, whose metrics are those of the sequencing pipeline. Cells without counts are left out.

    Examples
    --------
    >>> data = quality_counts(100, 50, seed=1)
    >>> data.shape, data.varm["expression"].shape
    ((100, 50), (50, 4))
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_genes)
    by_z, by_u = (np.isin(np.arange(n_genes), order[: round(share * n_genes)]) for share in (biological, technical))
    centres = 2 * rng.normal(size=(n_types, n_latent))
    base = rng.normal(size=n_genes)
    loadings = 0.15 * rng.normal(size=(n_latent, n_genes)) * by_z
    technical_loadings = strength * rng.normal(size=(n_nuisance, n_genes)) * by_u
    gates = 0.7 * rng.normal(size=(n_nuisance, n_genes))
    theta = np.exp(rng.normal(1, 0.5, n_genes))
    mixing = rng.normal(size=(n_nuisance, n_metrics))

    def rho(z: np.ndarray, u: np.ndarray) -> np.ndarray:
        return softmax(base + z @ loadings + u @ technical_loadings)

    types = rng.integers(n_types, size=n_cells)
    z, u = centres[types] + rng.normal(size=(n_cells, n_latent)), rng.normal(size=(n_cells, n_nuisance))
    library = np.exp(rng.normal(depth, 0.3, (n_cells, 1)))
    counts = negative_binomial(rng, library * rho(z, u), theta)
    counts[rng.random(counts.shape) < 1 / (1 + np.exp(2 - u @ gates))] = 0
    logits = u @ mixing + 0.3 * rng.normal(size=(n_cells, n_metrics))
    noise = rng.normal(size=(TRUTH_DRAWS, n_latent)), rng.normal(size=(TRUTH_DRAWS, n_nuisance))
    expression = np.stack([rho(centre + noise[0], noise[1]).mean(0) for centre in centres], 1)

    keep = counts.sum(1) > 0
    obs = pd.DataFrame(index=[f"cell_{i}" for i in np.flatnonzero(keep)])
    obs["cell_type"] = pd.Categorical.from_codes(types[keep], [f"type_{t}" for t in range(n_types)])
    for j in range(n_metrics):
        obs[f"metric_{j}"], obs[f"logit_{j}"] = 1 / (1 + np.exp(-logits[keep, j])), logits[keep, j]
    var = pd.DataFrame({"biological": by_z, "technical": by_u}, index=[f"gene_{g}" for g in range(n_genes)])
    data = anndata.AnnData(sp.csr_matrix(counts[keep], dtype=np.float32), obs=obs, var=var)
    data.obsm["z"], data.obsm["u"], data.varm["expression"] = z[keep], u[keep], expression
    data.uns["simulation"] = {"name": "quality_counts", "seed": seed, "centres": centres, "theta": theta}
    return data


@checked
def linear_gaussian(
    n_cells: Size = 5_000, n_features: Size = 20, *, n_v: int = 5, n_u: int = 5, noise: float = 0.5, seed: Seed = 0
) -> tuple[dict[str, np.ndarray], "TwoFactors"]:
    """Draw x ~ Normal(A v + B u, noise I + W) and return it with its truth and the true program.

    A, B ~ Normal(0, 1), W ~ Wishart(I / F, F); v, u ~ Normal(0, I). Of Lopez et al. 2018, section 4.1, whose sizes are
    not published.

    Parameters
    ----------
    n_cells, n_features, n_v, n_u
        N, F and the sizes of v and u.
    noise
        Variance that is added to the Wishart matrix.
    seed
        Seed of the generator.

    Returns
    -------
    dict of array
        ``x`` [N, F] as the program reads it.
    TwoFactors
        With the true parameters, which stay as they are, and an untrained guide. ``program.drawn`` holds the true
        latents [N, n_v + n_u].

    Examples
    --------
    >>> data, program = linear_gaussian(100, 6, n_v=2, n_u=2)
    >>> data["x"].shape, program.posterior_covariance().shape
    ((100, 6), torch.Size([4, 4]))
    """
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n_features, n_v)), rng.normal(size=(n_features, n_u))
    root = rng.normal(size=(n_features, n_features)) / np.sqrt(n_features)
    covariance = noise * np.eye(n_features) + root @ root.T
    program = TwoFactors(a, b, covariance)
    drawn = rng.normal(size=(n_cells, n_v + n_u))
    x = drawn @ np.hstack((a, b)).T + rng.normal(size=(n_cells, n_features)) @ np.linalg.cholesky(covariance).T
    program.drawn = torch.as_tensor(drawn)
    return {"x": x}, program


class TwoFactors(Program):
    """x ~ Normal(A v + B u, N) with v, u ~ Normal(0, I): model at the truth, and a linear guide to be fitted.

    The guide is Normal(linear(x), diagonal) of v and of u, or jointly of full covariance (``exact=True``), which
    contains the posterior. It knows the closed forms of what an unconstrained guide cannot match.

    Parameters
    ----------
    a, b : array [F, V], [F, U]
    covariance : array [F, F]
        N.
    exact : bool
    """

    latent = "v"
    drawn: Tensor
    loadings: Tensor
    noise: Tensor
    whitening: Tensor

    def __init__(self, a: np.ndarray, b: np.ndarray, covariance: np.ndarray, exact: bool = False) -> None:
        super().__init__()
        kind = torch.get_default_dtype()
        self.sizes, self.exact = (a.shape[1], b.shape[1]), exact
        latents = sum(self.sizes)
        self.register_buffer("loadings", torch.as_tensor(np.hstack((a, b)), dtype=kind))
        self.register_buffer("noise", torch.as_tensor(covariance, dtype=kind))
        self.register_buffer("whitening", torch.linalg.inv(torch.linalg.cholesky(self.noise)))
        self.register_buffer("origin", torch.zeros(latents))
        self.guide_loc = nn.Linear(a.shape[0], latents)
        self.guide_log_scale = nn.Parameter(torch.zeros(latents))
        if exact:
            self.guide_lower = nn.Parameter(torch.zeros(latents, latents))

    def model(self, batch: Batch) -> None:
        n_v, n_u = self.sizes
        with self.cells(batch):
            v = pyro.sample("v", dist.Normal(self.origin[:n_v], 1.0).to_event(1))
            u = pyro.sample("u", dist.Normal(self.origin[:n_u], 1.0).to_event(1))
            mean = torch.cat((v, u), -1) @ (self.whitening @ self.loadings).T
            # The density of x as that of x whitened: several times faster than with a matrix for each cell.
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=batch["x"] @ self.whitening.T)
            pyro.factor("jacobian", self.whitening.diagonal().log().sum().expand(len(batch["x"])))

    def guide(self, batch: Batch) -> None:
        n_v, factor = self.sizes[0], self.guide_factor()
        loc = self.guide_loc(batch["x"])
        v_loc, u_loc, first = loc[..., :n_v], loc[..., n_v:], factor[:n_v, :n_v]
        with self.cells(batch):
            if not self.exact:
                scale = factor.diagonal()
                pyro.sample("v", dist.Normal(v_loc, scale[:n_v]).to_event(1))
                pyro.sample("u", dist.Normal(u_loc, scale[n_v:]).to_event(1))
                return
            v = pyro.sample("v", dist.MultivariateNormal(v_loc, scale_tril=first))
            noise = torch.linalg.solve_triangular(first, (v - v_loc).unsqueeze(-1), upper=False).squeeze(-1)
            u_loc = u_loc + noise @ factor[n_v:, :n_v].T
            pyro.sample("u", dist.MultivariateNormal(u_loc, scale_tril=factor[n_v:, n_v:]))

    def guide_factor(self) -> Tensor:
        """Cholesky factor [L, L] of the guide's covariance."""
        diagonal = torch.diag(self.guide_log_scale.exp())
        return diagonal + self.guide_lower.tril(-1) if self.exact else diagonal

    def posterior_covariance(self) -> Tensor:
        """Covariance [L, L] of the exact posterior of (v, u), float64; the same for all cells."""
        loadings = self.loadings.double()
        precision = loadings.T @ torch.linalg.solve(self.noise.double(), loadings)
        return torch.linalg.inv(torch.eye(len(precision), dtype=precision.dtype) + precision)

    def posterior_map(self) -> Tensor:
        """The matrix [L, F] from x to the mean of the exact posterior, float64."""
        return self.posterior_covariance() @ torch.linalg.solve(self.noise.double(), self.loadings.double()).T

    def marginal_covariance(self) -> Tensor:
        """Covariance [F, F] of x, float64."""
        return self.noise.double() + self.loadings.double() @ self.loadings.double().T

    @torch.no_grad()
    def aggregated_covariance(self) -> Tensor:
        """Covariance [L, L] of (v, u) under the guide, averaged over the distribution of x; float64.

        That of the exact posterior is the identity.
        """
        weight, factor = self.guide_loc.weight.double(), self.guide_factor().double()
        return weight @ self.marginal_covariance() @ weight.T + factor @ factor.T

    @torch.no_grad()
    def expected_gap(self) -> float:
        """Mean over x of KL(guide || posterior): how far the ELBO is below the log evidence, in nats."""
        precision = torch.linalg.inv(self.posterior_covariance())
        factor = self.guide_factor().double()
        shift, offset = self.guide_loc.weight.double() - self.posterior_map(), self.guide_loc.bias.double()
        moved = shift @ self.marginal_covariance() @ shift.T + torch.outer(offset, offset) + factor @ factor.T
        log_ratio = -torch.logdet(precision) - 2 * factor.diagonal().log().sum()
        return float((torch.trace(precision @ moved) - len(precision) + log_ratio) / 2)
