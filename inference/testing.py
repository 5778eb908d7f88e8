"""Conjugate programs with every bound in closed form, to test an objective or a gradient estimator of your own.

`conjugate_programs` is a hypothesis strategy: it makes random linear Gaussian programs, whose posterior, evidence,
ELBO, Renyi and chi bounds are known, as functions of the parameters that can be differentiated. `gradient_samples`
draws the gradients of an objective, and `assert_mean` compares their mean with what it should be.
"""

from math import inf, log, sqrt
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fieldguide.inference.program import Batch, Program
from fieldguide.inference.step import Step


class Conjugate(Program):
    """A linear Gaussian program, with a diagonal Gaussian guide and closed forms.

    For each cell with features x [F] and latent z [D]::

        z ~ Normal(0, I)
        x ~ Normal(offset + loadings @ z, noise ** 2 I)
        guide: z ~ Normal(guide_intercept + guide_slope @ x, diag(exp(guide_log_scale)) ** 2)

    Everything is in double precision. All methods take a batch with ``x`` [B, F] and return one number a cell [B], in
    nats; they can be differentiated with respect to every parameter.

    Parameters
    ----------
    loadings : Tensor [F, D]
    noise : float
        Standard deviation.
    offset : Tensor [F], optional
    """

    def __init__(self, loadings: Tensor, noise: float = 1.0, offset: Tensor | None = None) -> None:
        super().__init__()
        loadings = loadings.double()
        features, latents = loadings.shape
        self.loadings = nn.Parameter(loadings.clone())
        self.offset = nn.Parameter(torch.zeros(features).double() if offset is None else offset.double().clone())
        self.log_noise = nn.Parameter(torch.tensor(log(noise)).double())
        self.guide_slope = nn.Parameter(torch.zeros(latents, features).double())
        self.guide_intercept = nn.Parameter(torch.zeros(latents).double())
        self.guide_log_scale = nn.Parameter(torch.zeros(latents).double())

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.guide_intercept), 1.0).to_event(1))
            loc = z @ self.loadings.T + self.offset
            pyro.sample("x", dist.Normal(loc, self.log_noise.exp()).to_event(1), obs=batch["x"])

    def guide(self, batch: Batch) -> None:
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.guide_mean(batch), self.guide_log_scale.exp()).to_event(1))

    def guide_mean(self, batch: Batch) -> Tensor:
        """Mean of the guide [B, D]."""
        return self.guide_intercept + batch["x"] @ self.guide_slope.T

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean [B, D] and covariance [D, D] of the posterior of z."""
        variance = (2 * self.log_noise).exp()
        eye = torch.eye(self.loadings.shape[1], dtype=torch.float64)
        covariance = torch.linalg.inv(eye + self.loadings.T @ self.loadings / variance)
        return (batch["x"] - self.offset) @ self.loadings @ covariance / variance, covariance

    def log_evidence(self, batch: Batch) -> Tensor:
        """Log p(x)."""
        diagonal = (2 * self.log_noise).exp().expand(len(self.loadings))
        return dist.LowRankMultivariateNormal(self.offset, self.loadings, diagonal).log_prob(batch["x"])

    def elbo(self, batch: Batch) -> Tensor:
        """E_q log w: log p(x) minus the divergence from guide to posterior."""
        return self.log_evidence(batch) - torch.distributions.kl_divergence(self._guide(batch), self._exact(batch))

    def eubo(self, batch: Batch) -> Tensor:
        """E_p log w, over the posterior: log p(x) plus the divergence from posterior to guide."""
        return self.log_evidence(batch) + torch.distributions.kl_divergence(self._exact(batch), self._guide(batch))

    def renyi(self, batch: Batch, alpha: float) -> Tensor:
        """1/(1 - alpha) log E_q w^(1 - alpha), the limit of many particles; infinite where the mean does not exist."""
        if alpha == 1:
            return self.elbo(batch)
        return self.log_evidence(batch) + self._log_moment(batch, 1 - alpha) / (1 - alpha)

    def cubo(self, batch: Batch, order: float = 2) -> Tensor:
        """1/n log E_q w^n: the Renyi bound of order 1 - n."""
        return self.renyi(batch, 1 - order)

    def tail(self, batch: Batch) -> float:
        """Tail index k of the weights, which k-hat estimates: w^n has a mean where k < 1/n."""
        _, covariance = self.posterior(batch)
        root = torch.linalg.cholesky(covariance)
        excess = root.T @ torch.diag((-2 * self.guide_log_scale).exp()) @ root - torch.eye(len(root)).double()
        largest = float(torch.linalg.eigvalsh(excess.detach())[-1])
        return max(0.0, largest / (1 + largest))

    def set_guide(self, batch: Batch, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> None:
        """Put the guide at the posterior's mean and marginal standard deviations, times ``scale`` plus ``shift``.

        Parameters
        ----------
        batch : dict of Tensor
        scale : float or Tensor [D]
            Factor of the posterior's standard deviations.
        shift : float or Tensor [D]
            Added to the mean, in posterior standard deviations.
        """
        with torch.no_grad():
            mean, covariance = self.posterior(batch)
            gain = covariance @ self.loadings.T / (2 * self.log_noise).exp()
            deviation = covariance.diagonal().sqrt()
            self.guide_slope.copy_(gain)
            self.guide_intercept.copy_(shift * deviation - gain @ self.offset)
            self.guide_log_scale.copy_((deviation * scale).log())

    def _guide(self, batch: Batch) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(self.guide_mean(batch), torch.diag((2 * self.guide_log_scale).exp()))

    def _exact(self, batch: Batch) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(*self.posterior(batch))

    def _log_moment(self, batch: Batch, a: float) -> Tensor:
        """Log of the integral of p^a q^(1 - a) over z, for Gaussian posterior p and guide q [B]."""
        p, q = self._exact(batch), self._guide(batch)
        joint = a * p.precision_matrix + (1 - a) * q.precision_matrix
        if torch.linalg.eigvalsh(joint.detach())[..., 0].min() <= 0:
            return torch.full((len(batch["x"]),), inf, dtype=torch.float64)
        pull = a * _apply(p.precision_matrix, p.loc) + (1 - a) * _apply(q.precision_matrix, q.loc)
        squares = a * _square(p) + (1 - a) * _square(q) - (pull * torch.linalg.solve(joint, pull)).sum(-1)
        return -(a * _log_det(p) + (1 - a) * _log_det(q) + torch.logdet(joint) + squares) / 2


def conjugate_programs(
    *,
    latents: tuple[int, int] = (1, 3),
    cells: tuple[int, int] = (1, 6),
    exact: bool = False,
    order: float = 2.0,
) -> Any:
    """Return a hypothesis strategy for pairs (program, batch) of random `Conjugate` programs and data.

    Parameters
    ----------
    latents, cells : (int, int)
        Fewest and most latents D and cells B.
    exact : bool
        Orthogonal loadings, and the guide set to the posterior. Otherwise the guide is shifted and has other scales.
    order : float
        The chi bound of this order is finite, with some room: the guide is as wide as that takes.

    Raises
    ------
    ImportError
        If hypothesis is not installed.
    """
    try:
        from hypothesis import strategies as st
    except ImportError as error:
        raise ImportError("fieldguide.inference.testing makes hypothesis strategies: pip install hypothesis") from error

    @st.composite
    def programs(draw) -> tuple[Conjugate, Batch]:
        size = draw(st.integers(*latents))
        features, number = draw(st.integers(size, size + 2)), draw(st.integers(*cells))
        random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        loadings = torch.randn(features, size, generator=random, dtype=torch.float64)
        if exact:
            loadings = torch.linalg.qr(loadings)[0] * (0.2 + torch.rand(size, generator=random, dtype=torch.float64))
        offset = torch.randn(features, generator=random, dtype=torch.float64)
        program = Conjugate(loadings, draw(st.floats(0.4, 2.0)), offset)
        batch = {"x": offset + torch.randn(number, features, generator=random, dtype=torch.float64)}
        if exact:
            program.set_guide(batch)
        else:
            scale = 0.8 + 0.6 * torch.rand(size, generator=random, dtype=torch.float64)
            shift = 0.4 * torch.randn(size, generator=random, dtype=torch.float64)
            program.set_guide(batch, scale, shift)
            while program.tail(batch) > 0.8 / order:
                scale = 1.1 * scale
                program.set_guide(batch, scale, shift)
        return program, batch

    return programs()


def gradient_samples(
    objective, program: Program, batch: Batch, replicates: int = 30, group: str = "phi", repeats: int = 1
) -> np.ndarray:
    """Return gradients of an objective's loss for repeated draws, float64 [replicates, P]; P parameters of the group.

    Parameters
    ----------
    objective : callable
        From a Step to a loss, or to a dict with a loss for the group.
    replicates : int
        Number of gradients; seeds 0, 1, ... of torch.
    group : str
        Parameter group.
    repeats : int
        Each cell is put into the minibatch so many times, which averages that many draws in each gradient.
    """
    parameters = program.groups()[group]
    batch = {name: torch.cat([values] * repeats) for name, values in batch.items()}
    rows = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(replicates):
            torch.manual_seed(seed)
            loss = objective(Step(program, batch))
            loss = loss[group] if isinstance(loss, dict) else loss
            rows.append(_flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters))
    return np.stack(rows)


def gradient_of(value: Tensor, program: Program, group: str = "phi") -> np.ndarray:
    """Return the gradient of a closed form with respect to the parameters of a group, float64 [P]."""
    parameters = program.groups()[group]
    return _flat(torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True), parameters)


def assert_mean(samples: np.ndarray, expected: Any, errors: float = 5.0, floor: float = 1e-9) -> None:
    """Assert that the mean of samples [R, ...] is within some standard errors of what is expected [...].

    ``floor`` is the difference that is always allowed, for samples without noise.
    """
    samples, expected = np.asarray(samples, dtype=float), np.asarray(expected, dtype=float)
    error = samples.std(0, ddof=1) / sqrt(len(samples))
    distance = np.abs(samples.mean(0) - expected)
    worst = float(np.max((distance - floor) / np.maximum(error, 1e-300)))
    assert np.all(distance <= errors * error + floor), (
        f"the mean of {len(samples)} samples is {worst:.1f} standard errors off: {samples.mean(0)} for {expected}"
    )


def _flat(gradients, parameters) -> np.ndarray:
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([g.flatten() for g in filled]).double().numpy()


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _square(normal: dist.MultivariateNormal) -> Tensor:
    return (normal.loc * _apply(normal.precision_matrix, normal.loc)).sum(-1)


def _log_det(normal: dist.MultivariateNormal) -> Tensor:
    return 2 * normal.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
