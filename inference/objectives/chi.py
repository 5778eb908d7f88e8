"""The chi-square family: an upper bound that a guide lowers (CUBO), and the chi-VAE that joins it to a model (Chi).

CUBO_n = (1/n) log E_q w^n exceeds the log evidence by (1/n) log(1 + chi^n divergence from posterior to guide), so
lowering it widens a guide until its weights have moments. With v the softmax of n log w over the particles of a cell,
the guide moves along c = (n - 1) v (path) or d = (n - 1)/n v (score).

What a loss here *reports* is minus the importance-weighted bound of the same draws. A Monte-Carlo CUBO is biased down,
and lowest for the guides that miss most of the posterior: early stopping on it would choose those. It stands in the
history under ``cubo``.
"""

from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_flag, checked_real, one_of, set_fields
from fieldguide.inference.objectives.smoothing import PSIS_PARTICLES, SMOOTHINGS, smooth
from fieldguide.inference.objectives.surrogate import (
    Losses,
    check,
    guide_loss,
    iwelbo,
    local_weights,
    loss_per_cell,
    path_loss,
    score_loss,
    with_gradient_of,
)
from fieldguide.inference.step import Step
from fieldguide.inference.weights.pareto import pareto_k
from fieldguide.inference.weights.weigh import Weights

RELEASED = "vr_mc_alpha=-1"


@dataclass(frozen=True)
class CUBO:
    """The chi upper bound of order n, (1/n) log (1/K) sum_k w_k^n, lowered by the guide alone (Dieng et al. 2017).

    For a model that is kept as it is (a refit); `Chi` trains both sides.

    Parameters
    ----------
    order : float
        n > 1. The published chi-VAE has n = 2.
    particles : int
        K > 1, draws for each cell. Self-normalisation biases the gradient by O(1/K).
    gradient : {"path", "score"}
        ``path``: through the draws, the guide's parameters held fixed inside log q: no noise where the guide is the
        posterior. ``score``: draws held fixed; for guides that cannot be reparameterised.
    anneal : bool
        Raise the order from 1 (forward Kullback-Leibler) to n over the first third of the training.
    smooth : {"none", "truncate", "psis"}
        Truncate the weights at sqrt(K) times their mean, or smooth their tail, before they are raised to n.
    fallback : float
        Where the effective sample size of v is below this (5 is a good value; 0 switches it off), the cell follows
        the forward Kullback-Leibler divergence, whose weights are less extreme. The share of such cells stands in
        the history under ``fallback``.

    Notes
    -----
    `per_cell` is an upper bound only as K grows: at finite K it is biased down. It means something only where w^n has
    a mean, which is where k-hat < 1/n; `Fit.bound` warns of the cells where that fails.

    Examples
    --------
    >>> CUBO(particles=50, fallback=5)
    CUBO(order=2.0, particles=50, gradient='path', anneal=False, smooth='none', fallback=5.0)
    """

    order: float = 2.0
    particles: int = 25
    gradient: str = "path"
    anneal: bool = False
    smooth: str = "none"
    fallback: float = 0.0

    def __post_init__(self) -> None:
        check(self, ("path", "score"), several=("path", "score"))
        _check_options(self)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        weights = local_weights(self, step, self.gradient)
        log_w = weights.log_w.detach()
        step.log("cubo", cubo(log_w, self.order).mean())
        coefficients = torch.softmax(log_w, 0) * _ratio(self, step, log_w)
        return guide_loss(weights, iwelbo(log_w), coefficients)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the Monte-Carlo bound [B] of each cell."""
        return cubo(weights.log_w, self.order)

    def caveat(self, log_weights: np.ndarray) -> str | None:
        """Say for how many cells ``per_cell`` is no bound, from log weights [K, N]: those with k-hat >= 1/n."""
        beyond = int((pareto_k(log_weights) >= 1 / self.order).sum())
        if not beyond:
            return None
        return (
            f"CUBO of order {self.order:g} is not an upper bound for {beyond} of {log_weights.shape[1]} cells: k-hat "
            f"is at least 1/{self.order:g} there (with {self.particles} particles), so the mean of w^{self.order:g} "
            "may not exist"
        )


@dataclass(frozen=True)
class Chi:
    """The chi-VAE: the model by the importance-weighted bound, the guide by CUBO (Lopez et al. 2020).

    Both from the same draws and in one backward pass.

    Parameters
    ----------
    particles : int
        K > 1, draws for each cell.
    gradient : {"path", "score", "vr_mc_alpha=-1"}
        The guide's estimator, see `CUBO`. ``vr_mc_alpha=-1`` is not one: see the notes.
    order, anneal, smooth, fallback
        See `CUBO`.

    Notes
    -----
    ``gradient="vr_mc_alpha=-1"`` is kept to replicate published tables. The code released with the paper leaves the
    guide's parameters inside log q in the graph of its chi loss, which turns the descent on CUBO_2 into an *ascent* on
    the K-sample Renyi bound of order -1. For K > 2 the exact posterior is a local minimum of what that maximises: a
    narrow guide gets narrower, a wide one wider without end.

    Examples
    --------
    >>> Chi(particles=10)
    Chi(particles=10, gradient='path', order=2.0, anneal=False, smooth='none', fallback=0.0)
    """

    particles: int = 25
    gradient: str = "path"
    order: float = 2.0
    anneal: bool = False
    smooth: str = "none"
    fallback: float = 0.0

    def __post_init__(self) -> None:
        check(self, ("path", "score", RELEASED), several=("path", "score", RELEASED))
        _check_options(self)
        if self.gradient == RELEASED and (self.order != 2 or self.anneal or self.smooth != "none" or self.fallback):
            raise ValueError(f"Chi: gradient={RELEASED!r} is the released form as it is: no other options")

    def __call__(self, step: Step) -> Losses:
        weights = local_weights(self, step, "reparam" if self.gradient == RELEASED else self.gradient)
        log_w = weights.log_w.detach()
        step.log("cubo", cubo(log_w, self.order).mean())
        share, value = torch.softmax(log_w, 0), iwelbo(log_w)
        if self.gradient == RELEASED:
            v = torch.softmax(2 * log_w, 0)
            theta, phi = (loss_per_cell((r * weights.log_w).sum(0), weights) for r in (share, v))
            return {"theta": with_gradient_of(loss_per_cell(value, weights), theta), "phi": phi}
        ratio = _ratio(self, step, log_w)
        if self.gradient == "path":
            return path_loss(weights, value, share, ratio)
        return score_loss(weights, value, share, share * ratio)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the importance-weighted bound [B] of each cell: what the model is fitted by."""
        return iwelbo(weights.log_w)


def cubo(log_w: Tensor, order: float) -> Tensor:
    """Return (1/n) log (1/K) sum_k w_k^n of each cell [B], from log weights [K, B]."""
    return (torch.logsumexp(order * log_w, 0) - log(log_w.shape[0])) / order


def _ratio(objective: CUBO | Chi, step: Step, log_w: Tensor) -> Tensor:
    """Coefficients of the guide, c (path) or d (score), divided by the normalised weights [K, B].

    While the order is annealed, the factor (n - 1) keeps its final value: it is a step size, and would be 0 at first.
    """
    order = objective.order
    factor = order - 1 if objective.gradient == "path" else (order - 1) / order
    if objective.anneal:
        progress = torch.as_tensor(step.scalars.get("progress", 1.0)).to(log_w)
        order = 1 + (order - 1) * (3 * progress).clamp(max=1)
    log_v = torch.log_softmax(order * smooth(log_w, objective.smooth), 0)
    log_share = torch.log_softmax(log_w, 0)
    ratio = factor * (log_v - log_share).exp()
    if not objective.fallback:
        return ratio
    few = torch.logsumexp(2 * log_v, 0) > -log(objective.fallback)  # effective sample size 1 / sum v^2
    step.log("fallback", few.to(log_w).mean())
    return torch.where(few, 1 - log_share.exp() if objective.gradient == "path" else 1.0, ratio)


def _check_options(objective: CUBO | Chi) -> None:
    name = type(objective).__name__
    order = checked_real(f"{name}: order", objective.order, above=1)
    anneal = checked_flag(f"{name}: anneal", objective.anneal)
    fallback = checked_real(f"{name}: fallback", objective.fallback, at_least=0)
    set_fields(objective, order=order, anneal=anneal, fallback=fallback)
    one_of(f"{name}: smooth", objective.smooth, SMOOTHINGS)
    if objective.smooth == "psis" and objective.particles < PSIS_PARTICLES:
        raise ValueError(f"{name}: smooth='psis' needs at least {PSIS_PARTICLES} particles")
