"""Lower bounds on the log evidence: ELBO, the importance-weighted bound (IWAE) and the Renyi bounds between them.

An objective is a callable ``Step -> loss``. The value of the loss is minus the bound, per cell; its gradient is an
estimate of the gradient of that value, by one of several estimators (see `surrogate`). All three bounds are one family:
with v the softmax of (1 - alpha) log w, the model moves along r = v and the guide along c = alpha v + (1 - alpha) v^2.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fieldguide.inference.checks.arguments import checked_real, one_of, set_fields
from fieldguide.inference.objectives.surrogate import (
    Losses,
    check,
    iwelbo,
    leave_one_out,
    local_weights,
    loss_per_cell,
    path_loss,
    require_local,
    score_loss,
)
from fieldguide.inference.step import Step
from fieldguide.inference.weights.weigh import Kind, Weights

KINDS: dict[str, Kind] = {"reparam": "reparam", "stl": "path", "dreg": "path", "score": "score"}


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound, E_q log w.

    Parameters
    ----------
    particles : int
        K, draws for each cell.
    gradient : {"reparam", "stl", "score"}
        ``reparam``: pathwise. ``stl``: pathwise with the guide's parameters fixed inside log q (sticking the
        landing, Roeder et al. 2017): unbiased, and free of variance where the guide is the posterior. ``score``:
        likelihood-ratio gradient with the leave-one-out baseline, for guides that cannot be reparameterised (K > 1).
    kl : {"sampled", "analytic"}
        ``analytic`` takes the Kullback-Leibler term of each latent site in closed form where there is one: the
        same bound with less noise. Only with ``gradient="reparam"``.

    Examples
    --------
    >>> ELBO(particles=5, gradient="stl")
    ELBO(particles=5, gradient='stl', kl='sampled')
    """

    particles: int = 1
    gradient: str = "reparam"
    kl: str = "sampled"

    def __post_init__(self) -> None:
        check(self, ("reparam", "stl", "score"))
        one_of("kl", self.kl, ("sampled", "analytic"))
        if self.kl == "analytic" and self.gradient != "reparam":
            raise ValueError("kl='analytic' goes with gradient='reparam' only")

    def __call__(self, step: Step) -> Losses:
        weights = step.weights(self.particles, "analytic" if self.kl == "analytic" else KINDS[self.gradient])
        if self.gradient == "score":
            require_local(self, step, weights)
            log_w = weights.log_w.detach()
            share = torch.full_like(log_w, 1 / self.particles)
            signal = (log_w - log_w.mean(0)) / (self.particles - 1)
            return score_loss(weights, self.per_cell(weights), share, signal)
        return loss_per_cell(self.per_cell(weights), weights)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the bound [B] of each cell."""
        return weights.log_w.mean(0)


@dataclass(frozen=True)
class Renyi:
    """The Renyi bound of order alpha, E 1/(1 - alpha) log (1/K) sum_k w_k^(1 - alpha) (Li and Turner 2016).

    At alpha = 1 it is the ELBO, at alpha = 0 the importance-weighted bound. For 0 <= alpha <= 1 it is a lower bound on
    the log evidence, and rises with K. For alpha < 0 it *passes* the evidence as K grows: a bound on nothing, to be
    used with care. For alpha > 1 it falls with K.

    Parameters
    ----------
    alpha : float
    particles : int
        K, draws for each cell.
    gradient : {"dreg", "reparam", "score"}
        As for `IWAE`.

    Notes
    -----
    Raising a Renyi bound of order alpha = -1 is *not* lowering the chi-square bound `CUBO` of order 2, although the
    two are the same number as K grows: one pushes an upper bound up, the other down.

    Examples
    --------
    >>> Renyi(0.5, particles=10)
    Renyi(alpha=0.5, particles=10, gradient='dreg')
    """

    alpha: float = 0.5
    particles: int = 25
    gradient: str = "dreg"

    def __post_init__(self) -> None:
        check(self, ("dreg", "reparam", "score"))
        set_fields(self, alpha=checked_real("Renyi: alpha", self.alpha))

    def __call__(self, step: Step) -> Losses:
        weights = local_weights(self, step, KINDS[self.gradient])
        if self.gradient == "reparam" or not torch.is_grad_enabled():
            return loss_per_cell(self.per_cell(weights), weights)
        log_w, alpha = weights.log_w.detach(), self.alpha
        v = torch.softmax((1 - alpha) * log_w, 0)
        value = renyi(log_w, alpha)
        if self.gradient == "dreg":
            return path_loss(weights, value, v, alpha + (1 - alpha) * v)
        return score_loss(weights, value, v, leave_one_out(log_w, lambda w: renyi(w, alpha)) - v)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the bound [B] of each cell."""
        return renyi(weights.log_w, self.alpha)


@dataclass(frozen=True)
class IWAE:
    """The importance-weighted bound, E log (1/K) sum_k w_k (Burda et al. 2016).

    It rises with K from the ELBO to the log evidence.

    Parameters
    ----------
    particles : int
        K, draws for each cell.
    gradient : {"dreg", "reparam", "score"}
        ``dreg``: doubly reparameterised (Tucker et al. 2019), whose signal-to-noise ratio for the guide grows with
        K. ``reparam``: the plain pathwise gradient, whose ratio falls as 1/sqrt(K). ``score``: likelihood-ratio
        gradient with the baseline of VIMCO (Mnih and Rezende 2016), for guides that cannot be reparameterised.

    Raises
    ------
    ValueError
        If the program has latent sites outside its data plate: their weights would couple all cells.

    Notes
    -----
    There is no ``gradient="stl"``: with the guide's parameters fixed inside log q and nothing else changed, the
    expected gradient is that of this bound *plus* that of the forward Kullback-Leibler divergence (`ForwardKL`).
    """

    particles: int = 25
    gradient: str = "dreg"

    def __post_init__(self) -> None:
        check(self, ("dreg", "reparam", "score"))

    def __call__(self, step: Step) -> Losses:
        weights = local_weights(self, step, KINDS[self.gradient])
        if self.gradient == "reparam" or not torch.is_grad_enabled():
            return loss_per_cell(self.per_cell(weights), weights)
        log_w = weights.log_w.detach()
        share = torch.softmax(log_w, 0)
        if self.gradient == "dreg":
            return path_loss(weights, iwelbo(log_w), share, share)
        return score_loss(weights, iwelbo(log_w), share, leave_one_out(log_w, iwelbo) - share)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the bound [B] of each cell."""
        return iwelbo(weights.log_w)


@dataclass(frozen=True)
class VRMax:
    """The largest of K log weights, E max_k log w_k: the Renyi bound as alpha falls without end.

    Only one particle of each cell carries a gradient. For K > 1 it is a bound on nothing: it lies between the
    importance-weighted bound of K particles and that plus log K, so it may exceed the log evidence by log K.

    Parameters
    ----------
    particles : int
        K, draws for each cell.
    gradient : {"reparam", "score"}
        As for `IWAE`; there is no doubly reparameterised form, since the weights of the particles are 0 and 1.
    """

    particles: int = 25
    gradient: str = "reparam"

    def __post_init__(self) -> None:
        check(self, ("reparam", "score"))

    def __call__(self, step: Step) -> Losses:
        weights = local_weights(self, step, KINDS[self.gradient])
        if self.gradient == "reparam":
            return loss_per_cell(self.per_cell(weights), weights)
        log_w = weights.log_w.detach()
        share = one_hot(log_w.argmax(0), len(log_w)).T.to(log_w.dtype)
        return score_loss(weights, log_w.amax(0), share, leave_one_out(log_w, lambda w: w.amax(0)) - share)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the largest log weight [B] of each cell."""
        return weights.log_w.amax(0)


def renyi(log_w: Tensor, alpha: float) -> Tensor:
    """Return 1/(1 - alpha) log (1/K) sum_k w_k^(1 - alpha), the mean of log w at alpha = 1; reduces the first axis."""
    power = 1 - alpha
    if abs(power) < 1e-6:
        return log_w.mean(0)
    return (torch.logsumexp(power * log_w, 0) - log(log_w.shape[0])) / power
