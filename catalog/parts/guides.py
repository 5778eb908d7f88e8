"""Families of guides by name: from the hidden values of an encoder to a distribution of the latents.

A head is a module from hidden values [..., H] to a distribution with batch shape [...] and event shape [D]. All are
reparameterised, take a leading particle dimension, and can be trained by every objective. What they differ in is the
posteriors that they can match:

``mean_field``
    Gaussian with independent coordinates. Too narrow under the ELBO where latents are correlated.
``student_t``
    Elliptical Student t: one heavy-tailed scale shared by all coordinates, whose degrees of freedom are learned for
    each cell. Its tails keep importance weights bounded where a Gaussian's would not be (Lopez et al. 2020).
``full_covariance``
    Gaussian with correlated coordinates: D (D - 1) / 2 further outputs.
``flow``
    Neural spline coupling flow (Durkan et al. 2019, by zuko) around a mean-field Gaussian: any shape, several times
    the cost of the others, and no closed form for its mean.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from fieldguide.catalog.parts.networks import Layers, bounded_exp
from fieldguide.inference.checks.arguments import one_of


class MeanField(nn.Linear):
    """Gaussian with independent coordinates.

    The log variance is clamped to [-15, 15] and a variance of 1e-4 is added, against overflow and collapse.
    """

    def __init__(self, n_hidden: int, n_out: int) -> None:
        super().__init__(n_hidden, 2 * n_out)

    def loc_scale(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale [..., D]."""
        loc, log_variance = nn.functional.linear(hidden, self.weight, self.bias).chunk(2, dim=-1)
        return loc, bounded_exp(log_variance, -15, 15, 1e-4).sqrt()

    def forward(self, hidden: Tensor) -> Distribution:
        return dist.Normal(*self.loc_scale(hidden)).to_event(1)


class StudentT(MeanField):
    """Elliptical Student t with ``1 + exp(linear(hidden))`` degrees of freedom, at most 1e5; 2 at the start."""

    def __init__(self, n_hidden: int, n_out: int) -> None:
        super().__init__(n_hidden, n_out)
        self.degrees = nn.Linear(n_hidden, 1)
        nn.init.zeros_(self.degrees.weight)
        nn.init.zeros_(self.degrees.bias)

    def forward(self, hidden: Tensor) -> Distribution:
        df = 1 + self.degrees(hidden).squeeze(-1).clamp(max=math.log(1e5)).exp()
        return EllipticalStudentT(df, *self.loc_scale(hidden))


class FullCovariance(MeanField):
    """Gaussian whose Cholesky factor is diag(scale) (I + L), L strictly lower triangular and linear in the input."""

    def __init__(self, n_hidden: int, n_out: int) -> None:
        super().__init__(n_hidden, n_out)
        self.lower = nn.Linear(n_hidden, n_out * n_out)

    def forward(self, hidden: Tensor) -> Distribution:
        loc, scale = self.loc_scale(hidden)
        size = loc.shape[-1]
        lower = self.lower(hidden).unflatten(-1, (size, size)).tril(-1)
        factor = torch.eye(size, dtype=loc.dtype, device=loc.device) + lower
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * factor)


class Flow(MeanField):
    """Coupling flow of two rational-quadratic spline transforms around a mean-field Gaussian."""

    def __init__(self, n_hidden: int, n_out: int) -> None:
        super().__init__(n_hidden, n_out)
        from zuko.flows import NSF  # imported here: only this family needs it

        self.flow = NSF(n_out, n_hidden, transforms=2, passes=2, hidden_features=(64,))

    def forward(self, hidden: Tensor) -> Distribution:
        return FlowAround(*self.loc_scale(hidden), self.flow.transform(hidden))


FAMILIES: dict[str, Callable[[int, int], nn.Module]] = {
    "mean_field": MeanField,
    "student_t": StudentT,
    "full_covariance": FullCovariance,
    "flow": Flow,
}
"""The heads by name."""


def guide_head(guide: str, n_hidden: int, n_out: int) -> nn.Module:
    """Return a new head of the named family, from hidden values [..., H] to a distribution of [..., D].

    Raises
    ------
    ValueError
        Listing the families, if there is none of that name.

    Examples
    --------
    >>> guide_head("student_t", 8, 3)(torch.zeros(5, 8)).df
    tensor([2., 2., 2., 2., 2.], grad_fn=<AddBackward0>)
    """
    one_of("guide", guide, FAMILIES)
    return FAMILIES[guide](n_hidden, n_out)


class Encoder(nn.Module):
    """Network from inputs [..., I] to a distribution of latents [..., D], of a family given by name.

    Parameters
    ----------
    n_in, n_out, n_hidden : int
        I, D and the width H of the hidden layers.
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
    **layers
        Arguments of `fieldguide.catalog.parts.networks.Layers`.
    """

    def __init__(self, n_in: int, n_out: int, n_hidden: int, guide: str = "mean_field", **layers) -> None:
        super().__init__()
        self.layers = Layers(n_in, n_hidden, **layers)
        self.head = guide_head(guide, n_hidden, n_out)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Distribution:
        return self.head(self.layers(x, covariates))


class ScalarEncoder(Encoder):
    """Network from inputs [..., I] to the Gaussian of one latent [...], such as the log library size of a cell."""

    head: MeanField

    def __init__(self, n_in: int, n_hidden: int, **layers) -> None:
        super().__init__(n_in, 1, n_hidden, **layers)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Distribution:
        loc, scale = self.head.loc_scale(self.layers(x, covariates))
        return dist.Normal(loc.squeeze(-1), scale.squeeze(-1))


class SeluEncoder(nn.Module):
    """Like `Encoder`, by two layers, each linear - SELU with dropout between them; a body may come before them."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_hidden: int,
        dropout: float = 0.0,
        guide: str = "mean_field",
        body: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            body or nn.Identity(),
            nn.Linear(n_in, n_hidden),
            nn.SELU(),
            nn.Dropout(dropout),
            nn.Linear(n_hidden, n_hidden),
            nn.SELU(),
        )
        self.head = guide_head(guide, n_hidden, n_out)

    def forward(self, x: Tensor) -> Distribution:
        return self.head(self.layers(x))


class EllipticalStudentT(TorchDistribution):
    """Multivariate Student t with a diagonal scale matrix: all coordinates share one chi-square variable.

    Parameters
    ----------
    df : Tensor [...]
        Degrees of freedom.
    loc, scale : Tensor [..., D]
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = df, loc, scale
        batch = torch.broadcast_shapes(df.shape, loc.shape[:-1], scale.shape[:-1])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "EllipticalStudentT":
        return _wider(self, batch_shape, ("df", "loc", "scale"))

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        finite = torch.where(self.df > 2, self.df / (self.df - 2), torch.inf).unsqueeze(-1)
        return (self.scale**2 * finite).expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        chi2 = dist.Chi2(self.df.expand(shape[:-1])).rsample()
        return self.loc + self.scale * noise * (self.df / chi2).sqrt().unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        size = self.event_shape[0]
        squares = (((value - self.loc) / self.scale) ** 2).sum(-1)
        constant = torch.lgamma((self.df + size) / 2) - torch.lgamma(self.df / 2)
        constant = constant - size / 2 * (self.df * math.pi).log() - self.scale.log().sum(-1)
        return constant - (self.df + size) / 2 * torch.log1p(squares / self.df)


class FlowAround(TorchDistribution):
    """``loc + scale * v`` where the ``transform`` of v is a standard Gaussian."""

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, transform) -> None:
        self.loc, self.scale, self.transform = loc, scale, transform
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None) -> "FlowAround":
        return _wider(self, batch_shape, ("loc", "scale", "transform"))

    @property
    def mean(self) -> Tensor:
        """Average of 64 antithetic pairs of draws: there is no closed form."""
        noise = torch.randn((64, *self.batch_shape, *self.event_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self._push(torch.cat((noise, -noise))).mean(0)

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self._push(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        noise, log_slope = self.transform.call_and_ladj((value - self.loc) / self.scale)
        density = -0.5 * (noise**2).sum(-1) - 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return density + log_slope - self.scale.log().sum(-1)

    def _push(self, noise: Tensor) -> Tensor:
        return self.loc + self.scale * self.transform.inv(noise)


def _wider(distribution, batch_shape, names: tuple[str, ...]):
    """The distribution with a wider batch shape; its parameters stay as they are and broadcast."""
    new = object.__new__(type(distribution))
    for name in names:
        setattr(new, name, getattr(distribution, name))
    event = distribution.event_shape
    TorchDistribution.__init__(new, torch.Size(batch_shape), event, validate_args=False)
    new._validate_args = distribution._validate_args
    return new
