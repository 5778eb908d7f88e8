"""Adapter to arviz: posterior draws as InferenceData (arviz 0.23) or DataTree (arviz 1), and their file."""

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


def netcdf_bytes(data: Any) -> bytes:
    """Return InferenceData or a DataTree as the content of a netCDF file, which `arviz.from_netcdf` of either reads.

    It is made in memory: the library of the format ends the process when a disk is full as it closes a file.
    """
    import xarray

    old = hasattr(data, "extend")  # InferenceData
    datasets = {name: data[name] if old else data[name].dataset for name in (data.groups() if old else data.children)}
    tree = xarray.DataTree.from_dict(datasets)
    packed = {f"/{name}": dict.fromkeys(dataset.data_vars, {"zlib": True}) for name, dataset in datasets.items()}
    return bytes(tree.to_netcdf(engine="h5netcdf", encoding=packed))
