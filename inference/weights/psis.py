"""Adapter to arviz: the Pareto diagnostic of importance weights, and InferenceData."""

import warnings
from math import log10
from typing import Any

import numpy as np

EQUAL = 1e-4
"""Log weights that differ by less (nats) are equal up to rounding in single precision: they have no tail."""


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Return the Pareto shape k-hat of each column of log weights [S, N].

    With fewer than about 25 draws a tail cannot be fitted, and the result is infinite.
    """
    import arviz

    log_weights = np.ascontiguousarray(np.asarray(log_weights, dtype=np.float64).T)
    infinite = np.flatnonzero(~np.isfinite(log_weights).all(1))
    if infinite.size:
        raise ValueError(f"log weights of cell {infinite[0]} are not finite")
    flat = np.ptp(log_weights, axis=1) < EQUAL
    khat = np.full(len(log_weights), 0.0)
    if (~flat).any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            khat[~flat] = np.atleast_1d(np.asarray(arviz.psislw(log_weights[~flat])[1]))
    return khat


def khat_limit(particles: int) -> float:
    """Return the largest k-hat at which estimates from S draws are usable: min(1 - 1/log10 S, 0.7).

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, JMLR 25(72), 2024.
    """
    return min(1 - 1 / log10(particles), 0.7) if particles > 10 else 0.0


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
