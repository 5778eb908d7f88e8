"""Series and frames in the order of the data by the names in their index, not by position where names differ."""

from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.checks.labels import label_text, label_texts


def unnamed(index: pd.Index) -> bool:
    """Whether an index holds row numbers that pandas gave by itself, which name nothing.

    So does that of several such tables that were concatenated: 0, 1, ..., 0, 1, ...
    """
    if isinstance(index, pd.RangeIndex):
        return index.start == 0 and index.step == 1
    if index.dtype.kind != "i" or not len(index):
        return False
    numbers = index.to_numpy()
    if index.is_unique:
        return bool((numbers == np.arange(len(numbers))).all())
    return bool(numbers[0] == 0 and ((numbers[1:] == 0) | (numbers[1:] == numbers[:-1] + 1)).all())


def shuffled(index: pd.Index) -> bool:
    """Whether an index holds the numbers 0 to n - 1 in another order, as numbers or as text: they then name rows.

    Examples
    --------
    >>> shuffled(pd.Index([2, 0, 1])), shuffled(pd.Index([0, 1, 2])), shuffled(pd.Index(["b", "a"]))
    (True, False, False)
    >>> shuffled(pd.Index(["2", "0", "1"])), shuffled(pd.Index(["10", "11"]))
    (True, False)
    """
    if unnamed(index):
        return False
    rows = spelled(index, len(index))
    return rows is not None and len(np.unique(rows)) == len(rows) and bool((np.diff(rows) < 0).any())


def spelled(names: pd.Index, n: int) -> np.ndarray | None:
    """Return the rows in [0, n) that names say by their numbers, as 1, "1" or 1.0; None where one says no such row.

    Examples
    --------
    >>> spelled(pd.Index(["2", "0"]), 3).tolist(), spelled(pd.Index(["2", "0"]), 2), spelled(pd.Index(["r1", "2"]), 3)
    ([2, 0], None, None)
    """
    if isinstance(names, pd.MultiIndex) or not len(names):
        return None
    if names.dtype.kind in "iu":
        rows = names.to_numpy()
    elif label_text(names[0]).isdecimal():  # names are seldom numbers: one look is enough
        rows = pd.Index([str(row) for row in range(n)], dtype=object).get_indexer(_texts(names))
    else:
        return None
    return rows if ((rows >= 0) & (rows < n)).all() else None


def missing(index: pd.Index, names: pd.Index) -> pd.Index:
    """Return those of ``names`` that an index does not have, however they are written: 1, "1" and 1.0 are one.

    Examples
    --------
    >>> missing(pd.Index(["1", "2"]), pd.Index([1.0, 3.0])).tolist()
    [3.0]
    """
    if index.equals(names):
        return names[:0]
    return names[~_texts(names).isin(_texts(index))]


def _texts(index: pd.Index) -> pd.Index:
    return pd.Index(label_texts(index), dtype=object)


def aligned(name: str, values: Any, names: pd.Index | None, what: str = "cells") -> Any:
    """Return values in the order of the data's names.

    A Series or DataFrame whose index holds names is aligned by them; one that is numbered 0..n-1, or an array or
    list, is taken by position. Numbers in another order are names: of the index of the values, or of the data.

    Parameters
    ----------
    name : str
        Of the argument.
    values : array-like [N, ...], Series or DataFrame
    names : Index [N], or None
        Of the data; None where its rows have no names.
    what : str
        What a row is, for the message.

    Returns
    -------
    The same kind: a Series or frame indexed by ``names``, anything else as it came.

    Raises
    ------
    ValueError
        Naming the first row that is missing, or that stands twice; or if the length is another.

    Examples
    --------
    >>> aligned("weights", pd.Series([1, 2], index=["b", "a"]), pd.Index(["a", "b"])).tolist()
    [2, 1]
    """
    frame = isinstance(values, pd.Series | pd.DataFrame)
    if names is None and not (frame and shuffled(values.index)):
        return values
    names = pd.RangeIndex(len(values)) if names is None else names
    named = frame and (not unnamed(values.index) or (names.dtype.kind == "i" and not unnamed(names)) or shuffled(names))
    if not named or values.index.equals(names):
        if np.ndim(values) == 0 or len(values) != len(names):
            given = "one value" if np.ndim(values) == 0 else f"{len(values)} values"
            raise ValueError(f"{name} has {given} for {len(names)} {what}")
        return values
    return values.iloc[places(name, values.index, names, what)]


def order_of(name: str, index: pd.Index, names: pd.Index, what: str = "cells") -> np.ndarray:
    """Return where each of ``names`` stands in the index of a table [N], which may hold more.

    By name where the index has them all, whatever its order; by position where it is numbered 0..n-1 by itself and
    as long. Where both are numbered by themselves, a table that is longer is refused: it may be of other rows.

    Raises
    ------
    ValueError
        As `places`; or if both are only numbered, and differ in length.

    Examples
    --------
    >>> order_of("cost", pd.Index(["b", "a", "c"]), pd.Index(["a", "b"])).tolist()
    [1, 0]
    >>> order_of("cost", pd.RangeIndex(2), pd.Index(["a", "b"])).tolist()
    [0, 1]
    """
    if index.equals(names):
        return np.arange(len(names))
    if unnamed(index) and len(index) == len(names):
        if spelled(names, len(index)) is None or len(missing(index, names)):
            return np.arange(len(names))
    elif unnamed(index) and isinstance(names, pd.RangeIndex) and unnamed(names):
        raise ValueError(
            f"{name} has {len(index)} rows or columns for {len(names)} {what}, and both are numbered by pandas, which "
            "says nothing of what they are: give both names, or the same number"
        )
    return places(name, index, names, what)


def places(name: str, index: pd.Index, names: pd.Index, what: str = "cells") -> np.ndarray:
    """Return where each of ``names`` stands in ``index`` [N]; names that are written the same are one.

    Raises
    ------
    ValueError
        Naming the first that is missing, or that stands twice.
    """
    for given in (index, names):
        if isinstance(given, pd.MultiIndex):
            raise TypeError(f"{name}: names of {what} of several levels (MultiIndex) cannot be matched: join them")
    here, wanted = _texts(index), _texts(names)
    absent = np.flatnonzero(~wanted.isin(here))
    if absent.size:
        raise ValueError(
            f"{name} has no row for {wanted[absent[0]]!r}, one of the {what} ({absent.size} of {len(wanted)} are "
            "missing); its index must hold their names, or be reset: values.reset_index(drop=True) is taken by position"
        )
    twice = here.duplicated() & here.isin(wanted)
    if twice.any():
        raise ValueError(f"{name} has several rows for {here[twice][0]!r}, one of the {what}")
    return here.get_indexer(wanted)
