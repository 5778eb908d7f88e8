"""What decisions do with the weighted draws of a chunk of cells: normalise their weights, choose among them.

Shapes: S particles, b cells of the chunk, R draws.
"""

import numpy as np
import torch
from torch import Tensor

from fieldguide.inference.weights.weigh import Weights

ESTIMATORS = ("snis", "plugin")


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
    place = torch.searchsorted(steps.flatten(), cells + uniform, right=True) - cells * particles
    return place.clamp(0, particles - 1)
