"""The forward Kullback-Leibler family: a guide that covers the posterior, from weighted draws or from simulations.

KL(posterior || guide) is lowered on the importance-weighted draws of the current guide (the wake phase: consistent,
with a bias of order 1/K), or on pairs (x, z) simulated from the model (the sleep phase: unbiased, for the model's x).
With w~ the normalised weights, the wake phase moves the guide along d = w~ (score) or c = w~ - w~^2 (path).

As in `chi`, what the wake losses report is minus the importance-weighted bound of the same draws, since the
self-normalised estimate of the divergence is lowest for guides that miss most of the posterior.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, set_fields
from fieldguide.inference.objectives.surrogate import (
    check,
    guide_loss,
    iwelbo,
    local_weights,
    path_loss,
    score_loss,
)
from fieldguide.inference.step import Losses, Step, add_term
from fieldguide.inference.weights.simulate import simulated_log_q
from fieldguide.inference.weights.weigh import Weights

KINDS = {"dreg": "path", "score": "score"}


@dataclass(frozen=True)
class ForwardKL:
    """Forward Kullback-Leibler divergence from posterior to guide, lowered by the guide alone (wake-phi).

    For a model that is kept as it is (a refit); `WakeWake` trains both sides.

    Parameters
    ----------
    particles : int
        K > 1, draws for each cell: with one draw the expected gradient is zero.
    gradient : {"score", "dreg"}
        ``score``: reweighted wake-sleep (Bornschein and Bengio 2015), for any guide. ``dreg``: the same expectation
        with less noise (Tucker et al. 2019), for guides that can be reparameterised.

    Examples
    --------
    >>> ForwardKL(particles=50, gradient="dreg")
    ForwardKL(particles=50, gradient='dreg')
    """

    particles: int = 25
    gradient: str = "score"

    def __post_init__(self) -> None:
        check(self, tuple(KINDS), several=tuple(KINDS))

    def __call__(self, step: Step) -> dict[str, Tensor]:
        weights = _weights(self, step)
        log_w = weights.log_w.detach()
        share = torch.softmax(log_w, 0)
        step.log("eubo", eubo(log_w).mean())
        return guide_loss(weights, iwelbo(log_w), share if self.gradient == "score" else share - share**2)

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the evidence upper bound [B] of each cell: an upper bound as K grows, biased down before."""
        return eubo(weights.log_w)


@dataclass(frozen=True)
class SleepPhi:
    """Forward Kullback-Leibler divergence on simulated pairs, lowered by the guide alone: -E log q(z | x) (sleep-phi).

    Data and latents are drawn from the model, with the covariates of the cells at hand, and the guide is shown the
    simulated data. The gradient is unbiased, for x as the *model* has it: no use while the model is far from the data.

    Parameters
    ----------
    particles : int
        Simulated pairs for each cell of the minibatch.

    Raises
    ------
    ValueError
        If the program cannot be simulated from: each observed site has to be in the data plate alone, and observe the
        field that has its name, as it is (site "counts" observes ``batch["counts"]``).
    """

    particles: int = 1

    def __post_init__(self) -> None:
        set_fields(self, particles=checked_int("SleepPhi: particles", self.particles, 1))

    @property
    def gradient(self) -> str:
        """Always "score": simulated pairs are constants."""
        return "score"

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {"phi": -simulated_log_q(step.program, step.batch, self.particles).mean()}

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the evidence upper bound [B] of each cell, as for `ForwardKL`."""
        return eubo(weights.log_w)


@dataclass(frozen=True)
class WakeWake:
    """Reweighted wake-sleep: the model by the importance-weighted bound, the guide by the forward divergence.

    Both from the same draws, with weights of each cell on its own (Bornschein and Bengio 2015; Le et al. 2019).

    Parameters
    ----------
    particles : int
        K > 1, draws for each cell.
    gradient : {"score", "dreg"}
        The guide's estimator, see `ForwardKL`.
    sleep : float
        Share of the sleep phase in the guide's loss, in [0, 1]: 0 is wake-wake, 1 is wake-sleep; see `SleepPhi`.

    Examples
    --------
    >>> WakeWake(particles=10, gradient="dreg", sleep=0.5)
    WakeWake(particles=10, gradient='dreg', sleep=0.5)
    """

    particles: int = 25
    gradient: str = "score"
    sleep: float = 0.0

    def __post_init__(self) -> None:
        check(self, tuple(KINDS), several=tuple(KINDS))
        set_fields(self, sleep=checked_real("WakeWake: sleep", self.sleep, at_least=0, at_most=1))

    def __call__(self, step: Step) -> Losses:
        weights = _weights(self, step)
        log_w = weights.log_w.detach()
        share, value, wake = torch.softmax(log_w, 0), iwelbo(log_w), 1 - self.sleep
        step.log("eubo", eubo(log_w).mean())
        if self.gradient == "dreg":
            losses = path_loss(weights, value, share, wake * (1 - share))
        else:
            losses = score_loss(weights, value, share, wake * share)
        if not self.sleep or not torch.is_grad_enabled():
            return losses
        asleep = -self.sleep * simulated_log_q(step.program, step.batch).mean()
        asleep = asleep - asleep.detach()  # a gradient for the guide; the value stays that of the bound
        return add_term(losses, asleep, "phi")

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the importance-weighted bound [B] of each cell: what the model is fitted by."""
        return iwelbo(weights.log_w)


def eubo(log_w: Tensor) -> Tensor:
    """Return the self-normalised posterior mean of log w of each cell [B], from log weights [K, B]."""
    return (torch.softmax(log_w, 0) * log_w).sum(0)


def _weights(objective: ForwardKL | WakeWake, step: Step) -> Weights:
    weights = local_weights(objective, step, KINDS[objective.gradient])
    summed = [name for name in weights.enumerated if f"{name}_guide" in weights.draws]
    if summed and objective.gradient == "dreg" and torch.is_grad_enabled():
        raise ValueError(
            f"{type(objective).__name__}: gradient='dreg' would not train the guide's probabilities of the enumerated "
            f"site '{summed[0]}', which are in the divergence; use gradient='score'"
        )
    return weights
