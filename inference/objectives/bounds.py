"""Bounds on the log evidence: ELBO and the importance-weighted bound (IWAE).

An objective is a callable ``Step -> loss``. The value of the loss is minus the bound, per cell; its gradient is an
estimate of the gradient of that value, by one of several estimators. Particles are reduced for each cell first, then
cells are averaged, so that a minibatch is an unbiased stand-in for the data set whatever the bound.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from fieldguide.inference.step import Step
from fieldguide.inference.weights import Weights


def loss_per_cell(bound: Tensor, weights: Weights) -> Tensor:
    """Return minus the mean over cells of ``bound`` [B], plus the share of the sites outside the data plate."""
    total = weights.scale * bound.shape[0]
    return -(bound.mean() + weights.globals.mean() / total)


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return a tensor that has the value of the first and the gradient of the second."""
    return surrogate + (value - surrogate).detach()


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
        _check(self, ("reparam", "stl", "score"))
        if self.kl not in ("sampled", "analytic"):
            raise ValueError(f"kl must be 'sampled' or 'analytic', not {self.kl!r}")
        if self.kl == "analytic" and self.gradient != "reparam":
            raise ValueError("kl='analytic' goes with gradient='reparam' only")

    def __call__(self, step: Step) -> Tensor:
        kind = {"reparam": "reparam", "stl": "path", "score": "score"}[self.gradient]
        weights = step.weights(self.particles, "analytic" if self.kl == "analytic" else kind)
        if self.gradient == "score":
            require_local(self, step, weights)
        loss = loss_per_cell(self.per_cell(weights), weights)
        if self.gradient == "score" and torch.is_grad_enabled():
            return _score_elbo(weights, loss)
        return loss

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the bound [B] of each cell."""
        return weights.log_w.mean(0)


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
    """

    particles: int = 25
    gradient: str = "dreg"

    def __post_init__(self) -> None:
        _check(self, ("dreg", "reparam", "score"))

    def __call__(self, step: Step) -> Tensor:
        kind = {"reparam": "reparam", "dreg": "path", "score": "score"}[self.gradient]
        weights = step.weights(self.particles, kind)
        require_local(self, step, weights)
        loss = loss_per_cell(self.per_cell(weights), weights)
        if not torch.is_grad_enabled() or self.gradient == "reparam":
            return loss
        normalised = torch.softmax(weights.log_w.detach(), 0)
        if self.gradient == "dreg":
            weights.scale_path(normalised)
            return with_gradient_of(loss, loss_per_cell((normalised * weights.log_w).sum(0), weights))
        learning = (_leave_one_out_evidence(weights.log_w.detach()) - normalised) * weights.log_q
        surrogate = loss_per_cell((normalised * weights.log_p + learning).sum(0), weights)
        return with_gradient_of(loss, surrogate)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the bound [B] of each cell."""
        return torch.logsumexp(weights.log_w, 0) - log(weights.log_w.shape[0])


def require_local(objective, step: Step, weights: Weights) -> None:
    """Refuse programs for which a K-sample bound does not split into one term per cell."""
    name = type(objective).__name__
    if weights.global_latents:
        raise ValueError(
            f"{name} needs every latent site inside the plate '{step.program.plate}'; outside it: "
            f"{', '.join(weights.global_latents)}. Use ELBO, or make the site a parameter"
        )
    if not step.program.independent:
        raise ValueError(f"{name} needs cells that are independent given the parameters; use ELBO for this program")


def _check(objective, gradients: tuple[str, ...]) -> None:
    name = type(objective).__name__
    if objective.gradient not in gradients:
        raise ValueError(f"{name}: gradient must be one of {', '.join(gradients)}, not {objective.gradient!r}")
    if not isinstance(objective.particles, int) or objective.particles < 1:
        raise ValueError(f"{name}: particles must be a positive integer, not {objective.particles!r}")
    if objective.gradient == "score" and objective.particles < 2:
        raise ValueError(f"{name}: gradient='score' needs at least 2 particles for its baseline")


def _score_elbo(weights: Weights, loss: Tensor) -> Tensor:
    signal = weights.log_w.detach()
    particles = signal.shape[0]
    learning = (signal - signal.mean(0)) / (particles - 1) * weights.log_q
    return with_gradient_of(loss, loss_per_cell(weights.log_p.mean(0) + learning.sum(0), weights))


def _leave_one_out_evidence(log_w: Tensor) -> Tensor:
    """log mean w minus the same with w_k replaced by the geometric mean of the others [K, B]."""
    particles = log_w.shape[0]
    others = (log_w.sum(0) - log_w) / (particles - 1)
    eye = torch.eye(particles, dtype=torch.bool, device=log_w.device)[:, :, None]
    replaced = torch.where(eye, others[:, None], log_w[None])
    return torch.logsumexp(log_w, 0) - torch.logsumexp(replaced, 1)
