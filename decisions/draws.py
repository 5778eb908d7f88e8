"""How much each of a cell's weighted draws counts in a decision."""

import torch
from torch import Tensor

from fieldguide.inference.weights.weigh import Weights

ESTIMATORS = ("snis", "plugin")


def shares(weights: Weights, estimator: str) -> Tensor:
    """Return the share of each of S particles of b cells [S, b], float64, summing to one over particles.

    "snis": normalised importance weights, for the posterior; "plugin": equal shares, for the guide as it is.
    """
    share = torch.softmax(weights.log_w.double(), 0)
    return torch.full_like(share, 1 / len(share)) if estimator == "plugin" else share
