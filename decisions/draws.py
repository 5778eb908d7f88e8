"""What decisions do with the weighted draws of a chunk of cells: normalise, choose, decode, replicate.

A program whose posterior is decided on has a deterministic site ``rho``, each gene's proportion of the cell's
expression [S, b, G]; for replicated data, an observed site ``counts``. Shapes: S particles, b cells of the chunk,
G genes, R draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fieldguide.inference.posterior import Posterior, Values
from fieldguide.inference.weights.weigh import Weights

SITE = "rho"
OBSERVED = "counts"
KEPT = "kept"
ESTIMATORS = ("snis", "plugin")
REDRAWS = 10
"""Draws of the nuisance sites, over which expression is averaged for each draw of the others (Lopez et al. 2018)."""


def shares(weights: Weights, estimator: str) -> Tensor:
    """Return the share of each particle [S, b], float64, summing to one over particles.

    "snis": normalised importance weights, for the posterior; "plugin": equal shares, for the guide as it is.
    """
    share = torch.softmax(weights.log_w.double(), 0)
    return torch.full_like(share, 1 / len(share)) if estimator == "plugin" else share


def choose(share: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    """Return indices of particles [R, b], each drawn with the probability of its share."""
    cells = torch.arange(share.shape[1], device=share.device).repeat(draws)
    return choose_for(share, cells, rng).view(draws, -1)


def choose_for(share: Tensor, cells: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the index of one particle for each of the given cells [R], which may repeat.

    By inversion, for all at once: the cumulated shares of cell i fill the interval from i to i + 1.
    """
    particles = len(share)
    steps = share.cumsum(0).T
    steps = steps / steps[:, -1:] + torch.arange(len(steps), device=share.device)[:, None]
    uniform = torch.from_numpy(rng.random(len(cells))).to(steps)
    found = torch.searchsorted(steps.flatten(), cells + uniform, right=True) - cells * particles
    return found.clamp(0, particles - 1)


def proportions(
    posterior: Posterior,
    rows: np.ndarray,
    weights: Weights,
    values: Values,
    batches: Sequence[int] | None = None,
    redrawn: Sequence[str] = (),
) -> Tensor:
    """Return ``rho`` [S, b, G] of the cells as they are, or averaged over decodings under other conditions.

    Those are the given batches, and draws from the prior of the ``redrawn`` latent sites.
    """
    if SITE not in values:
        raise ValueError(
            f"the program has no deterministic site '{SITE}' (expression as proportions); it has "
            f"{', '.join(sorted(values))}"
        )
    if batches is None and not redrawn:
        return values[SITE]
    latents = {name: values[name] for name in weights.latents}
    conditions = [{}] if batches is None else [{"batch": int(code)} for code in batches]
    found = [decoded(posterior, rows, latents, overrides, redrawn) for overrides in conditions]
    return sum(found[1:], start=found[0]) / len(found)


def decoded(
    posterior: Posterior,
    rows: np.ndarray,
    latents: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
    redrawn: Sequence[str] = (),
) -> Tensor:
    """Return ``rho`` [S, b, G] at these latents [S, b, ...]; the mean over `REDRAWS` draws of the redrawn sites."""
    if not redrawn:
        return posterior.decode(rows, latents, overrides)[SITE]
    kept = {name: value for name, value in latents.items() if name not in redrawn}
    total = posterior.decode(rows, kept, overrides)[SITE]
    for repeat in range(1, REDRAWS):
        total = total + posterior.decode(rows, kept, overrides, repeat=repeat)[SITE]
    return total / REDRAWS


def replicate(
    posterior: Posterior, rows: np.ndarray, weights: Weights, values: Values, draws: int, estimator: str
) -> Tensor:
    """Return counts drawn anew for the same cells [R, b, G], each from one posterior draw of the cell's latents."""
    rng = np.random.default_rng([posterior.seed, int(rows[0])])
    chosen = choose(shares(weights, estimator), draws, rng)
    cells = torch.arange(len(rows), device=chosen.device)
    found = posterior.decode(rows, {n: values[n][chosen, cells] for n in weights.latents}, replicate=True)
    if OBSERVED not in found:
        raise ValueError(f"the program has no observed site '{OBSERVED}'; it has {', '.join(sorted(found))}")
    return found[OBSERVED]
