"""What a program reads from the user's data: fields, where they live, and the checks that they must pass.

A `Schema` names the fields. Fitted on one data set (`Schema.learn`) it remembers categories, gene names
and scales, and applies them unchanged to new data, so that a mistake is an error with a name and not a wrong number.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from fieldguide.inference.data.storage import BackedStore, DenseStore, SparseStore, Store


class SchemaError(ValueError):
    """The data does not fit what the program reads; the message names the field and the cell, gene or column."""


@dataclass(frozen=True)
class Field:
    """One field of a schema.

    Attributes
    ----------
    place : str
        Where the field lives unless ``fit(..., fields=...)`` says otherwise: a column of ``obs``, or ``"X"``,
        ``"layers/NAME"``, ``"obsm/NAME"``.
    optional : bool
        Whether the field may be absent from its default place.
    """

    place: str = ""
    optional: bool = False

    def learn(self, name: str, data, place) -> dict[str, Any]:
        """Return what has to be remembered of the training data (plain JSON values)."""
        return {}

    def read(self, name: str, data, place, state: dict[str, Any]) -> Store:
        """Check and return the values of the field for every cell."""
        raise NotImplementedError

    def sizes(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor arguments that the field implies, such as ``n_genes``."""
        return {}


@dataclass(frozen=True)
class Counts(Field):
    """A cells x genes matrix of non-negative integer counts (dense, sparse, or backed on disk)."""

    place: str = "X"

    def learn(self, name, data, place):
        genes = [str(g) for g in data.var_names] if isinstance(data, anndata.AnnData) else None
        matrix = _matrix(name, data, place)
        check = _check_counts(name, data, matrix)
        empty = np.flatnonzero(check == 0)
        if empty.size:
            warnings.warn(
                f"field '{name}': gene {_gene(data, empty[0])!r} has no count in any cell ({empty.size} such genes): "
                "nothing can be learnt about it; consider adata[:, adata.X.sum(0) > 0]",
                stacklevel=2,
            )
        return {"genes": genes, "n_genes": int(matrix.shape[1])}

    def read(self, name, data, place, state):
        matrix = _matrix(name, data, place)
        order = _gene_order(name, data, state["genes"], state["n_genes"], matrix.shape[1])
        if order is not None:
            if isinstance(matrix, BackedStore):
                raise SchemaError(f"field '{name}': a backed file must have the training genes in the training order")
            matrix = matrix[:, order]
        _check_counts(name, data, matrix)
        if isinstance(matrix, BackedStore):
            return matrix
        return SparseStore(matrix) if sp.issparse(matrix) else DenseStore(np.asarray(matrix, dtype=np.float32))

    def sizes(self, name, state):
        return {"n_genes": state["n_genes"]}


@dataclass(frozen=True)
class Category(Field):
    """A categorical column of ``obs``; each cell's code, int64 [N]."""

    def learn(self, name, data, place):
        return {"categories": _categories(name, place, _column(name, data, place))}

    def read(self, name, data, place, state):
        return DenseStore(_codes(name, place, _column(name, data, place), state["categories"]))

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"])}


@dataclass(frozen=True)
class Categories(Field):
    """Several categorical columns of ``obs``; codes, int64 [N, C]."""

    def learn(self, name, data, place):
        return {"categories": [_categories(name, c, _column(name, data, c)) for c in _listed(place)]}

    def read(self, name, data, place, state):
        columns = zip(_listed(place), state["categories"], strict=True)
        return DenseStore(np.stack([_codes(name, c, _column(name, data, c), k) for c, k in columns], 1))

    def sizes(self, name, state):
        return {f"n_{name}": tuple(len(c) for c in state["categories"])}


@dataclass(frozen=True)
class Continuous(Field):
    """One or several numeric columns of ``obs``, standardised on the training data; float32 [N, C]."""

    def learn(self, name, data, place):
        values = np.stack([_numbers(name, data, c) for c in _listed(place)], 1)
        deviation = values.std(0)
        for column, spread in zip(_listed(place), deviation, strict=True):
            if not spread > 0:
                raise SchemaError(f"field '{name}': column {column!r} is constant")
        return {"mean": values.mean(0).tolist(), "deviation": deviation.tolist()}

    def read(self, name, data, place, state):
        values = np.stack([_numbers(name, data, c) for c in _listed(place)], 1)
        return DenseStore(((values - state["mean"]) / state["deviation"]).astype(np.float32))

    def sizes(self, name, state):
        return {f"n_{name}": len(state["mean"])}


@dataclass(frozen=True)
class Positive(Field):
    """One numeric column of ``obs`` that must be positive (a size factor); float32 [N]."""

    def read(self, name, data, place, state):
        values = _numbers(name, data, place)
        bad = np.flatnonzero(values <= 0)
        if bad.size:
            raise SchemaError(f"field '{name}': column {place!r} of cell {_cell(data, bad[0])!r} is not positive")
        return DenseStore(values.astype(np.float32))


@dataclass(frozen=True)
class Matrix(Field):
    """A cells x features matrix of finite real numbers; float32 [N, F]."""

    place: str = "X"

    def learn(self, name, data, place):
        return {"n_features": int(_matrix(name, data, place).shape[1])}

    def read(self, name, data, place, state):
        matrix = _matrix(name, data, place)
        if isinstance(matrix, BackedStore):
            return matrix
        values = np.asarray(_dense(matrix), dtype=np.float32)
        if values.shape[1] != state["n_features"]:
            raise SchemaError(f"field '{name}': {values.shape[1]} features, but {state['n_features']} were trained on")
        bad = np.argwhere(~np.isfinite(values))
        if bad.size:
            raise SchemaError(f"field '{name}': cell {_cell(data, bad[0, 0])!r}, column {bad[0, 1]} is not finite")
        return DenseStore(values)

    def sizes(self, name, state):
        return {"n_features": state["n_features"]}


class Schema:
    """The named fields that a program reads.

    Parameters
    ----------
    **fields : Field
        The key is the name of the field in a minibatch.

    Examples
    --------
    >>> schema = Schema(counts=Counts(), batch=Category("batch", optional=True))
    >>> sorted(schema.fields)
    ['batch', 'counts']
    """

    def __init__(self, **fields: Field) -> None:
        self.fields = fields

    def learn(self, data, places: Mapping[str, Any] | None = None) -> "FittedSchema":
        """Check ``data`` and remember what new data will have to match.

        Parameters
        ----------
        data : AnnData, DataFrame or dict of arrays
        places : mapping of str to str or list of str, optional
            Where a field lives, when it is not at its default place; None for a field switches it off.

        Raises
        ------
        SchemaError
            Naming the field and the cell, gene or column that does not fit.
        """
        places = dict(places or {})
        unknown = sorted(set(places) - set(self.fields))
        if unknown:
            raise SchemaError(f"no field '{unknown[0]}'; this program reads {', '.join(self.fields)}")
        used: dict[str, Any] = {}
        for name, field in self.fields.items():
            place = places.get(name, field.place)
            if name in places and place is None and not field.optional:
                raise SchemaError(f"field '{name}' cannot be switched off")
            absent = not place or (name not in places and field.optional and not _present(data, place))
            if not absent:
                used[name] = place
        states = {name: self.fields[name].learn(name, data, place) for name, place in used.items()}
        return FittedSchema(self, used, states)


@dataclass
class FittedSchema:
    """A schema with what it learnt from the training data.

    Attributes
    ----------
    places : dict
        Where each field in use lives.
    states : dict
        Categories, gene names and scales of each field, as plain JSON values.
    """

    schema: Schema
    places: dict[str, Any]
    states: dict[str, dict[str, Any]]

    def read(self, data) -> dict[str, Store]:
        """Return the checked values of every field for (new) data; raises SchemaError when they do not fit."""
        return {n: self.schema.fields[n].read(n, data, p, self.states[n]) for n, p in self.places.items()}

    def sizes(self) -> dict[str, Any]:
        """Return the constructor arguments that the data implies."""
        found: dict[str, Any] = {}
        for name, state in self.states.items():
            found |= self.schema.fields[name].sizes(name, state)
        return found

    def describe(self) -> dict[str, Any]:
        """Return places and states as JSON values, for checkpoints."""
        kinds = {n: {"kind": type(f).__name__, **asdict(f)} for n, f in self.schema.fields.items()}
        return {"fields": kinds, "places": self.places, "states": self.states}


def _listed(place) -> list[str]:
    return [place] if isinstance(place, str) else list(place)


def _present(data, place) -> bool:
    columns = data.obs.columns if isinstance(data, anndata.AnnData) else getattr(data, "columns", list(data))
    return all(c in columns for c in _listed(place)) or (place == "X" and isinstance(data, anndata.AnnData))


def _column(name: str, data, column: str) -> pd.Series:
    table = data.obs if isinstance(data, anndata.AnnData) else data
    if column not in table:
        raise SchemaError(f"field '{name}': no column {column!r} in obs; there are {', '.join(map(str, table))}")
    found: Any = table[column]
    return found if isinstance(table, pd.DataFrame) else pd.Series(np.asarray(found))


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if sp.issparse(matrix) else matrix


def _numbers(name: str, data, column: str) -> np.ndarray:
    series = _column(name, data, column)
    try:
        values = series.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise SchemaError(f"field '{name}': column {column!r} is not numeric") from None
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise SchemaError(f"field '{name}': column {column!r} of cell {_cell(data, bad[0])!r} is not finite")
    return values


def _categories(name: str, column: str, series: pd.Series) -> list[str]:
    _no_missing(name, column, series)
    return sorted(series.astype(str).unique())


def _no_missing(name: str, column: str, series: pd.Series) -> None:
    missing = np.flatnonzero(series.isna())
    if missing.size:
        raise SchemaError(f"field '{name}': column {column!r} of cell {str(series.index[missing[0]])!r} is missing")


def _codes(name: str, column: str, series: pd.Series, categories: list[str]) -> np.ndarray:
    _no_missing(name, column, series)
    codes = pd.Categorical(series.astype(str), categories=categories).codes.astype(np.int64)
    unseen = np.flatnonzero(codes < 0)
    if unseen.size:
        raise SchemaError(
            f"field '{name}': category {str(series.iloc[unseen[0]])!r} of column {column!r} was not in the training "
            f"data ({unseen.size} cells); known: {', '.join(categories)}"
        )
    return codes


def _cell(data, row) -> str:
    if isinstance(data, anndata.AnnData):
        return str(data.obs_names[row])
    return str(data.index[row]) if isinstance(data, pd.DataFrame) else str(row)


def _gene(data, column) -> str:
    return str(data.var_names[column]) if isinstance(data, anndata.AnnData) else str(column)


def _matrix(name: str, data, place: str):
    if not isinstance(data, anndata.AnnData):
        if isinstance(data, Mapping) and place not in data and name in data:
            place = name
        if isinstance(data, pd.DataFrame):
            return data.to_numpy()
        if place not in data:
            raise SchemaError(f"field '{name}': no array {place!r} in the data; there are {', '.join(data)}")
        found = data[place]
        return found.tocsr() if sp.issparse(found) else np.asarray(found)
    if data.isbacked:
        return BackedStore.open(data, place)
    kind, _, key = place.partition("/")
    try:
        found = {"X": lambda: data.X, "layers": lambda: data.layers[key], "obsm": lambda: data.obsm[key]}[kind]()
    except KeyError:
        raise SchemaError(f"field '{name}': no {place!r} in the AnnData") from None
    if found is None:
        raise SchemaError(f"field '{name}': the AnnData has no X")
    return sp.csr_matrix(found) if sp.issparse(found) else np.asarray(found)


def _gene_order(name: str, data, genes: list[str] | None, n_genes: int, width: int) -> np.ndarray | None:
    if genes is None or not isinstance(data, anndata.AnnData):
        if width != n_genes:
            raise SchemaError(f"field '{name}': {width} genes, but {n_genes} were trained on")
        return None
    here = pd.Index(data.var_names.astype(str))
    if list(here) == genes:
        return None
    missing = [g for g in genes if g not in here]
    if missing:
        raise SchemaError(
            f"field '{name}': gene {missing[0]!r} of the training data is missing ({len(missing)} of {len(genes)})"
        )
    return here.get_indexer(genes)


def _check_counts(name: str, data, matrix) -> np.ndarray:
    """Raise on anything but non-negative integers and on empty cells; return the number of counts of each gene."""
    genes = np.zeros(matrix.shape[1])
    for start, block in _blocks(matrix):
        values: Any = block.data if sp.issparse(block) else block
        bad = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
        if bad.any():
            row, column, value = _first(block, bad)
            raise SchemaError(
                f"field '{name}': cell {_cell(data, start + row)!r}, gene {_gene(data, column)!r} is {value:g}; "
                "counts must be non-negative integers (raw counts, not normalised or log values)"
            )
        totals = np.asarray(block.sum(1)).ravel()
        if (totals == 0).any():
            row = start + int(np.flatnonzero(totals == 0)[0])
            raise SchemaError(f"field '{name}': cell {_cell(data, row)!r} has no counts; remove empty cells first")
        genes += np.asarray(block.sum(0)).ravel()
    return genes


def _blocks(matrix):
    if isinstance(matrix, BackedStore):
        yield from matrix.blocks()
    else:
        for start in range(0, matrix.shape[0], 8192):
            yield start, matrix[start : start + 8192]


def _first(block, bad: np.ndarray) -> tuple[int, int, float]:
    if sp.issparse(block):
        at = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(block.indptr, at, side="right") - 1)
        return row, int(block.indices[at]), float(block.data[at])
    row, column = np.argwhere(bad)[0]
    return int(row), int(column), float(block[row, column])
