"""The cells of a posterior: which of them are asked about, their names, their annotation, and fields by their kind."""

from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.posterior import Posterior


def chosen_rows(posterior: Posterior, cells: np.ndarray | None) -> np.ndarray:
    """Return the row numbers that were asked for, int64 [n]; all by default."""
    return np.arange(posterior.n_cells) if cells is None else np.asarray(cells, dtype=np.int64)


def cell_names(posterior: Posterior, rows: np.ndarray) -> pd.Index:
    """Return the names of some cells [n]; their row numbers where the data has no obs."""
    return pd.RangeIndex(posterior.n_cells)[rows] if posterior.obs is None else posterior.obs.index[rows]


def column(obs: pd.DataFrame | None, name: str, argument: str) -> pd.Series:
    """Return a column of the cells' annotation.

    Raises
    ------
    ValueError
        Naming the argument and the columns there are.
    """
    if obs is None:
        raise ValueError(f"{argument}={name!r} names an obs column, but the data has no obs: pass an array of labels")
    if name not in obs:
        raise ValueError(f"{argument}={name!r} is not an obs column; there are {', '.join(map(str, obs.columns))}")
    return pd.Series(obs[name])


def fields_of_kind(posterior: Posterior, kind: type) -> dict[str, Any]:
    """Return, by name, what the fields of this kind learnt when the program was fitted; empty without a schema."""
    if posterior.schema is None:
        return {}
    fields = posterior.schema.schema.fields
    return {name: state for name, state in posterior.schema.states.items() if isinstance(fields[name], kind)}


def numbered(count: int) -> list[str]:
    """Return names of categories that have none: their numbers."""
    return [str(code) for code in range(count)]
