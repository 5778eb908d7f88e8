"""Which cells a question is about: rows, names and annotation, and the two groups that are compared."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.inference.checks.aligning import aligned
from fieldguide.inference.checks.labels import find_label
from fieldguide.inference.posterior import Posterior

ARRAYS = np.ndarray | pd.Series | pd.api.extensions.ExtensionArray
"""What holds values of one type."""


@dataclass(frozen=True)
class Group:
    """A named group of cells: sorted row numbers [n]."""

    name: str
    rows: np.ndarray


def require_posterior(posterior: Any, argument: str = "posterior") -> Posterior:
    """Return a posterior; TypeError, naming the argument, for anything else, such as a fit."""
    if isinstance(posterior, Posterior):
        return posterior
    how = "; that of a fit is fit.posterior(adata)" if hasattr(posterior, "posterior") else ""
    raise TypeError(f"{argument} must be a Posterior, not {type(posterior).__name__}{how}")


def chosen_rows(posterior: Posterior, cells: Any = None) -> np.ndarray:
    """Return the row numbers that were asked for, by number or by a mask, int64 [n]; all by default."""
    return posterior.rows(cells)


def names_of(posterior: Posterior) -> pd.Index | None:
    """Return the names of all cells [N], or None where the data has no obs."""
    return None if posterior.obs is None else posterior.obs.index


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
    groupby : str, array [N], Series or None
        Labels of the cells, or the obs column that holds them; None when groups are masks. Cells without a label
        (missing values) belong to no group. A Series whose index holds names is put into the order of the cells.
    group, reference : label, list of labels, or bool array [N]
        The reference is all other (labelled) cells by default. Labels are found as they are, or else as they are
        written: 1, "1" and 1.0 are one label.

    Raises
    ------
    ValueError
        For an unknown column or label, masks of a wrong length or with a missing value, an empty group, or groups that
        overlap.
    """
    group, reference = _plain(group), _plain(reference)
    names = None if obs is None else obs.index
    labels = None if groupby is None else _labels(obs, n_cells, groupby)
    inside = _mask(labels, n_cells, names, group, "group")
    if reference is None:
        outside = ~inside if labels is None else ~inside & labels.notna().to_numpy()
        name = "all other cells"
        if not outside.any():
            raise ValueError("there is only one group: no other cell is left as a reference")
    else:
        outside, name = _mask(labels, n_cells, names, reference, "reference"), _name(reference, "reference")
    both = np.flatnonzero(inside & outside)
    if both.size:
        raise ValueError(f"group and reference share {both.size} cells, such as {_cell(obs, int(both[0]))}")
    return Group(_name(group, "group"), np.flatnonzero(inside)), Group(name, np.flatnonzero(outside))


def _labels(obs: pd.DataFrame | None, n_cells: int, groupby: Any) -> pd.Series:
    """One label a cell, in the order of the cells."""
    if isinstance(groupby, str):
        return column(obs, groupby, "groupby").reset_index(drop=True)
    if np.ndim(groupby) != 1:
        given = f"{groupby!r:.60}"
        if isinstance(groupby, pd.DataFrame):
            given = f"a DataFrame with the columns {', '.join(map(str, groupby.columns[:5]))}: pass one of them"
        raise TypeError(f"groupby must be an obs column or one label for each of {n_cells} cells, not {given}")
    values = aligned("groupby", groupby, None if obs is None else obs.index)
    if len(values) != n_cells:
        raise ValueError(f"groupby has {len(values)} labels for {n_cells} cells")
    return pd.Series(values).reset_index(drop=True)


def _mask(labels: pd.Series | None, n_cells: int, names: pd.Index | None, wanted, argument: str) -> np.ndarray:
    if _is_mask(wanted):
        mask = np.asarray(wanted)
        if mask.shape != (n_cells,):
            raise ValueError(f"{argument} is a mask of shape {mask.shape} for {n_cells} cells")
        mask = np.asarray(aligned(argument, wanted, names), dtype=object)
        missing = np.flatnonzero(pd.isna(mask))
        if missing.size:
            cell = repr(str(names[missing[0]])) if names is not None else f"row {missing[0]}"
            raise ValueError(f"{argument} is a mask without a value for {cell}: make it True or False, .fillna(False)")
        mask = mask.astype(bool)
        if not mask.any():
            raise ValueError(f"{argument} holds no cell")
        return mask
    if labels is None:
        raise ValueError(f"{argument} must be a bool array with one value a cell when groupby is None")
    if not _listed(wanted):
        raise ValueError(f"{argument} is empty: name a label, or several")
    known = labels.dropna().unique().tolist()
    chosen = [known[find_label(argument, label, known)] for label in _listed(wanted)]
    return labels.isin(chosen).to_numpy()


def _plain(wanted: Any) -> Any:
    """A tensor as an array, or as a number where it is one; anything else as it is."""
    if not isinstance(wanted, torch.Tensor):
        return wanted
    return wanted.item() if wanted.ndim == 0 else wanted.detach().cpu().numpy()


def _is_mask(wanted) -> bool:
    """Whether these are flags: of a type of flags (a nullable one may miss some), or several in a list."""
    if isinstance(wanted, list | tuple):
        return len(wanted) > 2 and all(isinstance(value, bool | np.bool_) for value in wanted)
    return isinstance(wanted, ARRAYS) and pd.api.types.is_bool_dtype(wanted.dtype)


def _listed(wanted) -> list:
    return list(wanted) if isinstance(wanted, list | tuple | set | pd.Index | ARRAYS) else [wanted]


def _name(wanted, argument: str) -> str:
    return argument if _is_mask(wanted) else ", ".join(map(str, _listed(wanted)))


def _cell(obs: pd.DataFrame | None, row: int) -> str:
    return f"row {row}" if obs is None else repr(str(obs.index[row]))
