"""What the objectives share: a loss that has the value of one thing and the gradient of another.

With r, c and d the coefficients of the particles [K, B] (constants), an objective moves

- the model along sum_k r_k grad log p(x, z_k),
- the guide along sum_k c_k times the path gradient of log w_k (through the draw z_k, the parameters inside log q held
  fixed: the doubly reparameterised form), or along sum_k d_k grad log q(z_k) (the score form, draws held fixed).

One backward pass gives both. Everything is reduced over particles for each cell first; then cells are averaged, so that
a minibatch is an unbiased stand-in for the data set whatever the bound.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, set_fields
from fieldguide.inference.step import Losses, Step
from fieldguide.inference.weights.weigh import Weights


def loss_per_cell(bound: Tensor, weights: Weights) -> Tensor:
    """Return minus the mean over cells of ``bound`` [B], plus the share of the sites outside the data plate."""
    total = weights.scale * bound.shape[0]
    return -(bound.mean() + weights.globals.mean() / total)


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return a tensor that has the value of the first and the gradient of the second."""
    return surrogate + (value - surrogate).detach()


def path_loss(weights: Weights, value: Tensor, r: Tensor, ratio: Tensor | None = None) -> Losses:
    """Return minus the mean of ``value`` [B], to be minimised along r (model) and c = r * ratio (guide).

    ``weights`` are of kind "path". The ratio c / r is passed rather than c, because it has a closed form that neither
    overflows nor divides by zero. None stands for 1.
    """
    loss = loss_per_cell(value.detach(), weights)
    if not torch.is_grad_enabled():
        return loss

    def along(coefficients: Tensor) -> Tensor:
        return with_gradient_of(loss, loss_per_cell((coefficients * weights.log_w).sum(0), weights))

    if ratio is None:
        return along(r)
    if torch.compiler.is_exporting():  # a captured step keeps no hooks: there, each group has a loss of its own
        return {"theta": along(r), "phi": along(r * ratio)}
    weights.scale_path(ratio)
    return along(r)


def score_loss(weights: Weights, value: Tensor, r: Tensor, d: Tensor) -> Tensor:
    """Return minus the mean of ``value`` [B], to be minimised along r (model) and d (guide); kind "score"."""
    loss = loss_per_cell(value.detach(), weights)
    if not torch.is_grad_enabled():
        return loss
    return with_gradient_of(loss, loss_per_cell((r * weights.log_p + d * weights.log_q).sum(0), weights))


def guide_loss(weights: Weights, value: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
    """Return the loss of the group "phi" alone, for c (weights of kind "path") or d (weights of kind "score")."""
    loss = loss_per_cell(value.detach(), weights)
    if not torch.is_grad_enabled():
        return {"phi": loss}
    moved = weights.log_q if weights.kind == "score" else weights.log_w
    return {"phi": with_gradient_of(loss, loss_per_cell((coefficients * moved).sum(0), weights))}


def iwelbo(log_w: Tensor) -> Tensor:
    """Log of the mean weight of each cell [B], from log weights [K, B]."""
    return torch.logsumexp(log_w, 0) - log(log_w.shape[0])


def leave_one_out(log_w: Tensor, evidence: Callable[[Tensor], Tensor]) -> Tensor:
    """Return evidence(log w) minus the same with log w_k replaced by the mean of the others [K, B] (as in VIMCO).

    ``evidence`` reduces the first dimension.
    """
    particles = log_w.shape[0]
    others = (log_w.sum(0) - log_w) / (particles - 1)
    eye = torch.eye(particles, dtype=torch.bool, device=log_w.device)[:, :, None]
    replaced = torch.where(eye, others, log_w[:, None])  # [K, K, B]: the second index is the particle left out
    return evidence(log_w) - evidence(replaced)


def local_weights(objective, step: Step, kind) -> Weights:
    """Return the step's weights for an objective that needs one term for each cell.

    Raises
    ------
    ValueError
        If latents outside the data plate, or a likelihood that couples cells, leave no such terms.
    """
    weights = step.weights(objective.particles, kind)
    require_local(objective, step, weights)
    return weights


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


def check(objective, gradients: tuple[str, ...], several: tuple[str, ...] = ("score",)) -> None:
    """Check ``gradient`` and ``particles``; the gradients in ``several`` need two particles or more."""
    name = type(objective).__name__
    if objective.gradient not in gradients:
        raise ValueError(f"{name}: gradient must be one of {', '.join(gradients)}, not {objective.gradient!r}")
    set_fields(objective, particles=checked_int(f"{name}: particles", objective.particles, 1))
    if objective.gradient in several and objective.particles < 2:
        raise ValueError(f"{name}: gradient={objective.gradient!r} needs at least 2 particles")
