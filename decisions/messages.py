"""How errors name a row or a column."""

from collections.abc import Callable

import numpy as np
import pandas as pd


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
