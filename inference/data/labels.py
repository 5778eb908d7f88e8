"""Fields of data that are labelled in part, and of features with a range."""

from collections.abc import Mapping
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.data.schema import (
    Field,
    Matrix,
    Positive,
    SchemaError,
    _cell,
    _codes,
    _column,
    _dense,
    _listed,
    _matrix,
    _no_missing,
    _numbers,
)
from fieldguide.inference.data.storage import BackedStore, DenseStore

UNLABELLED = -1
"""Code of a cell without a label."""


@dataclass(frozen=True)
class Labels(Field):
    """A categorical column that is known for some cells; each cell's code, int64 [N], and -1 where it is missing.

    Missing are NaN, None, and -1 in a column of integers. Numbers that are whole count as integers, so that a column
    that became floating point through its missing values has the labels it had before. New data may lack the column:
    then no cell is labelled.
    """

    def learn(self, name, data, place):
        labels, known = _labels(_column(name, data, place))
        found = pd.unique(labels[known])
        if len(found) < 2:
            seen = f"only {found[0]!r}" if len(found) else "no label at all"
            raise SchemaError(f"field '{name}': column {place!r} has {seen}; at least two classes are needed")
        return {"categories": [str(v) for v in sorted(found, key=_in_order)]}

    def read(self, name, data, place, state):
        if not _has(data, place):
            return DenseStore(np.full(_rows(data), UNLABELLED, dtype=np.int64))
        column = _column(name, data, place)
        labels, known = _labels(column)
        codes = np.full(len(labels), UNLABELLED, dtype=np.int64)
        codes[known] = pd.Categorical(labels[known], categories=state["categories"]).codes
        unseen = np.flatnonzero(known & (codes < 0))
        if unseen.size:
            raise SchemaError(
                f"field '{name}': label {str(labels[unseen[0]])!r} of cell {_cell(data, unseen[0])!r} was not in the "
                f"training data ({unseen.size} cells); known: {', '.join(state['categories'])}. Leave the label of a "
                "cell of an unknown class missing"
            )
        return DenseStore(codes)

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"])}


@dataclass(frozen=True)
class Annotations(Labels):
    """Labels by one annotator or several, a column each; codes int64 [N, A], and -1 where an annotator gave no label.

    The classes are those that occur, by any annotator; categories of a column that no cell has are no classes. Missing
    is what is missing in `Labels`. New data may lack columns.
    """

    def learn(self, name, data, place):
        columns, values = _listed(place), []
        if len(set(columns)) < len(columns):
            raise SchemaError(f"field '{name}': a column is given twice among {', '.join(columns)}")
        for column in columns:
            labels, known = _labels(_column(name, data, column))
            found = pd.unique(labels[known])
            if len(found) < 2:
                seen = f"only {found[0]!r}" if len(found) else "no label at all"
                raise SchemaError(
                    f"field '{name}': column {column!r} has {seen}; an annotator must have used at least two classes"
                )
            values.append(found)
        classes = sorted({str(v) for found in values for v in found}, key=_in_order)
        return {"categories": classes, "annotators": columns}

    def read(self, name, data, place, state):
        read = super().read
        return DenseStore(np.stack([read(name, data, c, state).values.numpy() for c in _listed(place)], 1))

    def sizes(self, name, state):
        return super().sizes(name, state) | {"n_annotators": len(state["annotators"])}


@dataclass(frozen=True)
class Values(Matrix):
    """A cells x features matrix of real numbers beside another of features, float32 [N, F]."""

    def sizes(self, name, state):
        return {f"n_{name}": state["n_features"]}


@dataclass(frozen=True)
class Levels(Field):
    """A column of ordered levels, such as doses or incentives; each cell's code, int64 [N], from the lowest.

    Numbers are ordered by size, an ordered categorical as it says. New data may lack the column: then every code is -1.
    """

    def learn(self, name, data, place):
        column = _column(name, data, place)
        _no_missing(name, place, column)
        if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
            found = [str(c) for c in column.cat.categories if (column == c).any()]
        elif pd.api.types.is_numeric_dtype(column):
            found = [str(v) for v in sorted(pd.unique(column))]
        else:
            raise SchemaError(
                f"field '{name}': column {place!r} has no order: make it numeric or an ordered categorical"
            )
        if len(found) < 2:
            raise SchemaError(f"field '{name}': column {place!r} has one level only ({found[0]})")
        return {"categories": found}

    def read(self, name, data, place, state):
        if not _has(data, place):
            return DenseStore(np.full(_rows(data), -1, dtype=np.int64))
        return DenseStore(_codes(name, place, _column(name, data, place), state["categories"]))

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"])}


@dataclass(frozen=True)
class Outcome(Field):
    """A numeric column that only training needs, as it is; float32 [N]. New data may lack it: then it is 0."""

    def read(self, name, data, place, state):
        if not _has(data, place):
            return DenseStore(np.zeros(_rows(data), dtype=np.float32))
        return DenseStore(_numbers(name, data, place).astype(np.float32))


@dataclass(frozen=True)
class RowWeight(Positive):
    """A positive column that says how much each row counts in training; float32 [N]. New data may lack it: then 1."""

    def read(self, name, data, place, state):
        if not _has(data, place):
            return DenseStore(np.ones(_rows(data), dtype=np.float32))
        return super().read(name, data, place, state)


@dataclass(frozen=True)
class Codes(Field):
    """A matrix of codes of a fixed set, int64 [N, M]; -1 says that there is none.

    Attributes
    ----------
    of : str
        What the codes are of: their number is the argument ``n_<of>`` of the program, if that has one.
    later : bool
        False where new data may lack the matrix: then every code is -1.
    """

    of: str = ""
    later: bool = True

    def learn(self, name, data, place):
        values = _whole(name, data, place)
        return {"size": int(values.max(initial=-1)) + 1, "width": int(values.shape[1])}

    def read(self, name, data, place, state):
        if not self.later and _lacks(name, data, place):
            return DenseStore(np.full((_rows(data), state["width"]), -1, dtype=np.int64))
        values = _whole(name, data, place)
        if values.shape[1] != state["width"]:
            raise SchemaError(f"field '{name}': {values.shape[1]} columns, but {state['width']} were trained on")
        return DenseStore(values)

    def sizes(self, name, state):
        return {f"n_{self.of}": state["size"]} if self.of else {}


@dataclass(frozen=True)
class Items(Matrix):
    """A cells x items matrix of real numbers that only training needs, float32 [N, L]; new data may lack it."""

    def read(self, name, data, place, state):
        if _lacks(name, data, place):
            return DenseStore(np.zeros((_rows(data), state["n_features"]), dtype=np.float32))
        return super().read(name, data, place, state)

    def sizes(self, name, state):
        return {f"n_{name}": state["n_features"]}


@dataclass(frozen=True)
class UnitInterval(Matrix):
    """A cells x features matrix of numbers in [0, 1], such as grey values; float32 [N, F]."""

    def read(self, name, data, place, state):
        store = super().read(name, data, place, state)
        if isinstance(store, BackedStore):
            raise SchemaError(f"field '{name}': values in [0, 1] are read from memory only")
        bad = np.argwhere(((store.values < 0) | (store.values > 1)).numpy())
        if bad.size:
            row, column = bad[0]
            raise SchemaError(
                f"field '{name}': cell {_cell(data, row)!r}, column {column} is {float(store.values[row, column]):g}, "
                "outside [0, 1]; divide by the largest possible value"
            )
        return store


def _labels(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Labels as text, and which cells have one."""
    missing = column.isna().to_numpy()
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype if not missing.any() else object)
    numbers = pd.Series(pd.to_numeric(column, errors="coerce")) if _all_numbers(column) else None
    if numbers is not None and not (numbers[~missing] % 1).any():
        whole = numbers.fillna(UNLABELLED).to_numpy(dtype=np.int64)
        return whole.astype(str).astype(object), ~missing & (whole != UNLABELLED)
    return column.astype(str).to_numpy(dtype=object), ~missing


def _all_numbers(column: pd.Series) -> bool:
    if column.dtype == object:
        return all(isinstance(v, int | float | np.number) for v in column.dropna())
    return pd.api.types.is_numeric_dtype(column)


def _in_order(label: str) -> tuple[float, str]:
    """Numbers by size, and before text."""
    try:
        return float(label), ""
    except ValueError:
        return float("inf"), label


def _has(data, place: str) -> bool:
    if isinstance(data, anndata.AnnData):
        return place in data.obs
    return (
        place in (data.columns if isinstance(data, pd.DataFrame) else data)
        if isinstance(data, pd.DataFrame | Mapping)
        else False
    )


def _whole(name: str, data, place: str) -> np.ndarray:
    """Whole numbers [N, M] of at least -1."""
    values = np.asarray(_dense(_matrix(name, data, place)))
    values = values[:, None] if values.ndim == 1 else values
    bad = np.argwhere(~((values >= -1) & (values == np.floor(values))))
    if bad.size:
        row, column = bad[0]
        raise SchemaError(
            f"field '{name}': cell {_cell(data, row)!r}, column {column} is {values[row, column]}, not a code"
        )
    return values.astype(np.int64)


def _lacks(name: str, data, place: str) -> bool:
    if isinstance(data, anndata.AnnData):
        kind, _, key = place.partition("/")
        return kind == "obsm" and key not in data.obsm
    return isinstance(data, Mapping) and place not in data and name not in data


def _rows(data) -> int:
    return data.n_obs if isinstance(data, anndata.AnnData) else len(next(iter(dict(data).values())))
