"""How errors name a row or a column."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fieldguide.inference.checks.arguments import first_masked


def named(index: pd.Index, place: int | np.integer) -> str:
    """Return the name at a place of an index, as Python writes it.

    Examples
    --------
    >>> named(pd.Index([3, 5]), 1), named(pd.Index(["ann"]), 0)
    ('5', "'ann'")
    """
    value = index[int(place)]
    return repr(value.item() if isinstance(value, np.generic) else value)


def refuse(wrong: np.ndarray, values: np.ndarray, where: Callable[[int, int], str], why: str = "") -> None:
    """Raise a ValueError for the first wrong value of a table, if there is one.

    Parameters
    ----------
    wrong : bool array [N, K]
    values : array [N, K]
    where : callable
        From row and column to the words that name the value.
    why : str
        What is wrong with it, after the value.
    """
    if wrong.any():
        row, column = map(int, np.argwhere(wrong)[0])
        more = f" ({wrong.sum()} such values)" if wrong.sum() > 1 else ""
        raise ValueError(f"{where(row, column)} is {values[row, column]}{why}{more}")


def real_array(name: str, values: Any) -> np.ndarray:
    """Return numbers as float64: of an array, a tensor, a table, or nested sequences of equal length.

    Raises
    ------
    TypeError
        Naming the argument and, of a table, row and column of the first value that is no number.
    ValueError
        For rows of different lengths, and a value that is masked.

    Examples
    --------
    >>> real_array("cost", [[0, 1], [2, 3]]).shape
    (2, 2)
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, pd.DataFrame | pd.Series):
        return _of_table(name, values)
    require_unmasked(name, values)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be numbers in rows of equal length: {error}") from error
    if array.dtype.kind in "cmM":
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}")
    if array.dtype == object and array.ndim == 0:
        raise TypeError(f"{name} must be numbers, not {type(values).__name__}")
    try:
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError):
        wrong = next(value for value in array.ravel().tolist() if not _is_number(value))
        raise TypeError(f"{name} must hold numbers; one value is {wrong!r:.60}") from None


def require_unmasked(name: str, values: Any) -> None:
    """Raise ValueError for an array in which a value is masked, which would be read as the number under the mask."""
    at = first_masked(values)
    if at is not None:
        raise ValueError(f"{name}: the value at {at} is masked; fill in what is masked, or leave its row out")


def _of_table(name: str, values: Any) -> np.ndarray:
    frame = values.to_frame() if isinstance(values, pd.Series) else values
    columns = []
    for place, column in enumerate(frame.columns):
        column = named(frame.columns, place) if isinstance(values, pd.DataFrame) else None
        part = frame.iloc[:, place]
        if isinstance(part.dtype, pd.CategoricalDtype):
            part = part.astype(part.cat.categories.dtype)
        try:
            if part.dtype.kind in "cmM":
                raise TypeError
            columns.append(part.to_numpy(dtype=np.float64, na_value=np.nan))
        except (TypeError, ValueError):
            wrong = next((k for k, value in enumerate(part) if not _is_number(value)), 0)
            where = f"row {named(frame.index, wrong)}" + ("" if column is None else f", column {column}")
            raise TypeError(f"{name} must hold numbers: {where} is {part.iloc[wrong]!r:.60}") from None
    table = np.stack(columns, 1) if columns else np.zeros(frame.shape)
    return table[:, 0] if isinstance(values, pd.Series) else table


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return value is pd.NA or value is None
    return not isinstance(value, complex)
