"""Adapter to arviz: InferenceData."""

from typing import Any

import numpy as np


def inference_data(
    latents: dict[str, np.ndarray], log_likelihood: np.ndarray, log_weights: np.ndarray, cells: np.ndarray
) -> Any:
    """Return InferenceData with posterior draws [S, N, ...], log likelihood and weights [S, N] (one chain).

    ``cells`` are the names [N].
    """
    groups = {
        "posterior": {name: values[None] for name, values in latents.items()},
        "log_likelihood": {"observed": log_likelihood[None]},
        "sample_stats": {"log_weight": log_weights[None]},
    }
    dims = {"observed": ["cell"], "log_weight": ["cell"]}
    dims |= {n: ["cell", *(f"{n}_dim{i}" for i in range(v.ndim - 2))] for n, v in latents.items()}
    return from_groups(groups, {"cell": cells}, dims)


def from_groups(groups: dict[str, Any], coords: dict[str, Any], dims: dict[str, list[str]]) -> Any:
    """Return InferenceData of groups of arrays [chain, draw, ...], whichever way arviz takes them."""
    import arviz

    try:
        return arviz.from_dict(**groups, coords=coords, dims=dims)
    except TypeError:
        return arviz.from_dict(groups, coords=coords, dims=dims)
