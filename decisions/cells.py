"""Which cells a question is about: rows, names and annotation, and the two groups that are compared."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.posterior import Posterior


@dataclass(frozen=True)
class Group:
    """A named group of cells: sorted row numbers [n]."""

    name: str
    rows: np.ndarray


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


def two_groups(obs: pd.DataFrame | None, n_cells: int, groupby, group, reference=None) -> tuple[Group, Group]:
    """Return the group and the reference, which share no cell.

    Parameters
    ----------
    obs : DataFrame or None
    n_cells : int
        N.
    groupby : str, array [N] or None
        Labels of the cells, or the obs column that holds them; None when groups are masks. Cells without a label
        (missing values) belong to no group.
    group, reference : label, list of labels, or bool array [N]
        The reference is all other (labelled) cells by default.

    Raises
    ------
    ValueError
        For an unknown column or label, masks of a wrong length, an empty group, or groups that overlap.
    """
    labels = None
    if groupby is not None:
        labels = column(obs, groupby, "groupby") if isinstance(groupby, str) else pd.Series(np.asarray(groupby))
        if len(labels) != n_cells:
            raise ValueError(f"groupby has {len(labels)} labels for {n_cells} cells")
        labels = labels.reset_index(drop=True)
    inside = _mask(labels, n_cells, group, "group")
    if reference is None:
        outside = ~inside if labels is None else ~inside & labels.notna().to_numpy()
        name = "all other cells"
        if not outside.any():
            raise ValueError("there is only one group: no other cell is left as a reference")
    else:
        outside, name = _mask(labels, n_cells, reference, "reference"), _name(reference, "reference")
    both = np.flatnonzero(inside & outside)
    if both.size:
        raise ValueError(f"group and reference share {both.size} cells, such as {_cell(obs, int(both[0]))}")
    return Group(_name(group, "group"), np.flatnonzero(inside)), Group(name, np.flatnonzero(outside))


def _mask(labels: pd.Series | None, n_cells: int, wanted, argument: str) -> np.ndarray:
    if _is_mask(wanted):
        mask = np.asarray(wanted)
        if mask.shape != (n_cells,):
            raise ValueError(f"{argument} is a mask of shape {mask.shape} for {n_cells} cells")
        if not mask.any():
            raise ValueError(f"{argument} holds no cell")
        return mask
    if labels is None:
        raise ValueError(f"{argument} must be a bool array with one value a cell when groupby is None")
    known = labels.dropna().unique()
    for label in _listed(wanted):
        if label not in known:
            raise ValueError(f"{argument}: no cell has the label {label!r}; labels are {', '.join(map(str, known))}")
    return labels.isin(_listed(wanted)).to_numpy()


def _is_mask(wanted) -> bool:
    return isinstance(wanted, np.ndarray | pd.Series) and np.asarray(wanted).dtype == bool


def _listed(wanted) -> list:
    return list(wanted) if isinstance(wanted, list | tuple | set | np.ndarray | pd.Index) else [wanted]


def _name(wanted, argument: str) -> str:
    return argument if _is_mask(wanted) else ", ".join(map(str, _listed(wanted)))


def _cell(obs: pd.DataFrame | None, row: int) -> str:
    return f"row {row}" if obs is None else repr(str(obs.index[row]))
