"""Steady states of a map between genes, x = f(x) + e: solved for, and their distribution where e is normal."""

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Normal

from fieldguide.catalog.parts.contractive import Mechanism, lipschitz
from fieldguide.catalog.parts.log_determinant import exact_log_det, minor_log_det, roulette_log_det, series_log_det
from fieldguide.inference.data.interventions import intervention_mask


class ConvergenceError(RuntimeError):
    """A fixed-point iteration did not reach its tolerance."""


def steady_state(
    mechanism: Mechanism,
    noise: Tensor,
    forced: Tensor | None = None,
    values: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
    implicit: bool = False,
) -> Tensor:
    """Solve ``x = f(x) + e``, where forced genes have given values instead, by fixed-point iteration in float64.

    Parameters
    ----------
    mechanism : Mechanism
    noise : Tensor [..., n]
        e.
    forced : bool Tensor [..., n], optional
    values : Tensor [..., n], optional
        Of the forced genes; zero by default.
    tolerance : float
        Largest error of any gene. By Banach's theorem the error after a step of length s is at most ``s c / (1 - c)``
        for the bound c of `lipschitz`, and iteration stops only when this is below. If c >= 1 there is no such bound:
        then it stops when a step is below a hundredth of the tolerance.
    max_iterations : int
    implicit : bool
        Make the result differentiable, by one linear solve with I - J at the solution (implicit function theorem).

    Returns
    -------
    Tensor [..., n]
        In the precision of ``noise``.

    Raises
    ------
    ConvergenceError
        If the tolerance is not reached within ``max_iterations``, with the cell and the error.
    """
    exact = noise.double()
    keep = torch.ones_like(exact) if forced is None else (~forced).to(exact)
    held = torch.zeros_like(exact) if values is None else (1 - keep) * values.to(exact)
    precise = mechanism.to(exact)
    with torch.no_grad():
        scale, inner = precise.scale(exact), precise.unscaled()
        slope = lipschitz(inner)[..., None]
        factor = torch.where(slope < 1, slope / (1 - slope), 100.0)
        within = tolerance * scale.min()
        shift = keep * exact * scale + held * scale
        u, error = shift, torch.full_like(exact, torch.inf)
        for _ in range(max_iterations):
            following = keep * inner.value(u) + shift
            error, u = (following - u).norm(dim=-1, keepdim=True) * factor, following
            if not torch.isfinite(error).all() or (error <= within).all():
                break
        if not (error <= within).all():
            flat = torch.nan_to_num(error.reshape(-1), nan=torch.inf)
            worst = int(flat.argmax())
            raise ConvergenceError(
                f"no steady state of cell {worst} within {max_iterations} iterations: its error may be "
                f"{float(flat[worst]):.2g}, above {float(within):.2g}; the map is "
                f"{'barely ' if (slope < 1).all() else 'not '}contractive (slope up to {float(slope.max()):.4g})"
            )
        x = u / scale
    if implicit:
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        with torch.no_grad():
            system = eye - keep[..., None] * precise.jacobian(x)
        residual = keep * (precise.value(x) + exact) + held - x
        x = x + torch.linalg.solve(system, residual[..., None])[..., 0]
    return x.to(noise)


class SteadyState(TorchDistribution):
    """The distribution of the solution of x = f(x) + e with independent normal e, where forced genes are given.

    Parameters
    ----------
    mechanism : Mechanism
        f.
    loc, scale : Tensor [n]
        Of e.
    targets : int64 Tensor [B, M]
        Codes of the forced genes, -1 for none. Their own terms are not part of the density.
    log_det : {"exact", "series", "roulette"}
    terms : int
        Of the series.
    stop : float
        Of the roulette.
    values : Tensor [B, n], optional
        What forced genes are forced to when sampling; 0 by default.
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self,
        mechanism: Mechanism,
        loc: Tensor,
        scale: Tensor,
        targets: Tensor,
        log_det: str = "exact",
        terms: int = 10,
        stop: float = 0.5,
        values: Tensor | None = None,
    ) -> None:
        self.mechanism, self.loc, self.scale, self.targets, self.values = mechanism, loc, scale, targets, values
        self.forced = intervention_mask(targets, len(loc))
        self.log_det, self.n_terms, self.stop = log_det, terms, stop
        self._known: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        super().__init__(targets.shape[:-1], loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        new = SteadyState.__new__(SteadyState)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return e [B, n], and log |det(I - U J(x))| [B] without the rows (and so the columns) of forced genes."""
        if self._known is None or self._known[0] is not x:
            self._known = (x, (x - self.mechanism.value(x), self._log_det(x)))
        return self._known[1]

    def _log_det(self, x: Tensor) -> Tensor:
        if self.log_det == "exact":
            if self.mechanism.constant:
                return minor_log_det(self.mechanism.jacobian(torch.zeros_like(self.loc)), self.targets)
            return exact_log_det(self.mechanism.jacobian(x).masked_fill(self.forced[..., None], 0.0))
        back = self.mechanism.pull(x)

        def pull(v: Tensor) -> Tensor:
            return back(v.masked_fill(self.forced, 0.0))

        if self.log_det == "series":
            return series_log_det(pull, x, self.n_terms)
        return roulette_log_det(pull, x, self.stop)

    def log_prob(self, value: Tensor) -> Tensor:
        noise, log_det = self.terms(value)
        each = Normal(self.loc, self.scale, validate_args=False).log_prob(noise)
        return each.masked_fill(self.forced, 0.0).sum(-1) + log_det

    def rsample(self, sample_shape=()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        values = None if self.values is None else self.values.expand(shape)
        return steady_state(self.mechanism, noise, self.forced.expand(shape), values, implicit=torch.is_grad_enabled())
