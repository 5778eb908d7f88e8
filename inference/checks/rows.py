"""Rows that a user names: whole numbers in range, or a mask with one value for each row."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.inference.checks.aligning import aligned


def row_numbers(
    name: str, rows: Any, n_rows: int, what: str = "cells", empty: bool = False, names: pd.Index | None = None
) -> np.ndarray:
    """Return row numbers int64 [n] from row numbers or from a mask, in the order given.

    Parameters
    ----------
    name : str
        Of the argument, as its user wrote it.
    rows : array-like of int [n], or of bool [N]
        A mask becomes the rows where it is true; floats are taken where they are whole.
    n_rows : int
        N, how many rows there are.
    what : str
        What a row is, for the message.
    empty : bool
        Whether no row at all is a choice.
    names : Index [N], optional
        Of the rows: a mask that is a Series is put into their order.

    Raises
    ------
    TypeError
        If these are no numbers (one number alone, text).
    ValueError
        If a row is not whole, negative or beyond the last; a mask has another length, or is one of zeros and ones;
        there is none.

    Examples
    --------
    >>> row_numbers("cells", [True, False, True], 3).tolist(), row_numbers("cells", [2, 0], 3).tolist()
    ([0, 2], [2, 0])
    """
    asked = f"row numbers in [0, {n_rows}) or a mask with one value for each of {n_rows} {what}"
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().numpy()
    try:
        values = np.zeros(()) if isinstance(rows, str | bytes | dict | set | pd.DataFrame) else np.asarray(rows)
    except ValueError:  # a list of lists of different lengths
        values = np.zeros(())
    if values.ndim == 0:
        raise TypeError(f"{name} must be {asked}, not {type(rows).__name__} {rows!r:.60}")
    if values.ndim != 1:
        raise ValueError(f"{name} must be {asked}, not an array of shape {values.shape}")
    if values.size == 0:
        if empty:
            return np.zeros(0, dtype=np.int64)
        raise ValueError(f"{name} is empty: it must be {asked}")
    if values.dtype == object or isinstance(rows, list | tuple):
        flags = np.array([isinstance(v, bool | np.bool_) for v in rows])
        if flags.any() and not flags.all():
            at = int(np.argmin(flags))
            raise ValueError(f"{name} must be {asked}; value {at} of it is {values[at]!r} among True and False")
        values = values.astype(bool) if flags.all() else values
    if values.dtype == bool:
        if len(values) != n_rows:
            raise ValueError(f"{name} is a mask of length {len(values)}, but there are {n_rows} {what}")
        if isinstance(rows, pd.Series):
            values = aligned(name, pd.Series(values, index=rows.index), names).to_numpy()
        if not (empty or values.any()):
            raise ValueError(f"{name} is a mask that holds none of the {n_rows} {what}")
        return np.flatnonzero(values)
    if values.dtype.kind in "iuf" and len(values) == n_rows > 2 and np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{name} is {n_rows} zeros and ones, one for each of the {what}: make it a mask, .astype(bool)"
        )
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be {asked}; its first value is {values[0]!r}")
    wrong = np.flatnonzero(~((values >= 0) & (values < n_rows) & (values == np.floor(values))))
    if wrong.size:
        raise ValueError(
            f"{name} must be {asked}; value {wrong[0]} of it is {values[wrong[0]].item()!r}, and there is no such row"
        )
    return values.astype(np.int64)
