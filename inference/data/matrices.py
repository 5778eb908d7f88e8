"""Matrices at a place of the data: found, refused where they are none, and put in the order that was trained on."""

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from fieldguide.inference.checks.aligning import unnamed
from fieldguide.inference.data.reading import (
    SchemaError,
    array_of_tensor,
    cell_name,
    check_unmasked,
    column_at,
    column_of,
    listed,
)
from fieldguide.inference.data.storage import BackedStore

LARGEST = 2**24
"""Counts are kept in single precision, which holds every whole number up to this one."""


@dataclass
class Table:
    """A matrix [N, F] with the names of its columns.

    Attributes
    ----------
    values : CSR matrix, array [N, F] or BackedStore
        Real numbers.
    names : list of str [F], or None
        Of the columns: names of genes, or of the columns of a frame; None where they have none.
    """

    values: Any
    names: list[str] | None

    @property
    def width(self) -> int:
        """F."""
        return int(self.values.shape[1])

    def called(self, column: Any) -> str:
        """Name of a column, or its number."""
        return str(column) if self.names is None else repr(self.names[column])


def table_of(name: str, data, place: Any, trained: list[str] | None = None, flat: bool = False) -> Table:
    """Return the matrix at a place of the data.

    Parameters
    ----------
    name : str
        Of the field.
    data : AnnData, DataFrame or dict of arrays
    place : str or list of str
        ``"X"`` (of a frame: all its columns), ``"layers/NAME"``, ``"obsm/NAME"``, the key of an array; or columns.
    trained : list of str, optional
        Names of the columns of the training data: those of ``data`` are put in this order, and others left out.
        Arrays are taken by position; so are columns that are numbered 0..n-1 in order here and were in training.
    flat : bool
        Whether an array [N] stands for [N, 1].

    Raises
    ------
    SchemaError
        Naming the field, and the place that is not there, the column that is missing or stands twice, or the entry
        that is no real number.
    """
    raw, names = _found(name, data, place)
    by_name = trained is not None and names is not None and not (_numbered(names) and _numbered(trained))
    if by_name and names != trained:
        order = _order(name, names, trained)
        if isinstance(raw, BackedStore):
            raise SchemaError(f"field '{name}': a backed file must have the training columns, in the training order")
        raw = raw.iloc[:, order] if isinstance(raw, pd.DataFrame) else raw[:, order]
        names = trained
    values = _frame_values(name, raw, names) if isinstance(raw, pd.DataFrame) else _real(name, raw, names, data, flat)
    return Table(values, names)


def learnt_names(name: str, table: Table) -> list[str] | None:
    """Return the names of the columns to remember; SchemaError for a matrix without columns, or a name twice."""
    if not table.width:
        raise SchemaError(f"field '{name}': the matrix has no columns: there is no gene or feature in it")
    twice = None if table.names is None else _twice(table.names)
    if twice is not None:
        raise SchemaError(
            f"field '{name}': {twice!r} is the name of several columns; give each its own "
            "(adata.var_names_make_unique() marks them) or add them up"
        )
    return table.names


def check_width(name: str, table: Table, width: int, what: str) -> None:
    """Raise SchemaError unless there are as many columns as were trained on."""
    if table.width != width:
        raise SchemaError(f"field '{name}': {table.width} {what}, but {width} were trained on")


def check_counts(name: str, data, table: Table, empty: bool = False) -> np.ndarray:
    """Raise on anything but whole numbers in [0, 2^24], and on cells without any unless these may be ``empty``.

    Returns the number of counts of each gene.
    """
    genes = np.zeros(table.width)
    for start, block in blocks_of(table.values):
        values: Any = block.data if sp.issparse(block) else block
        wrong = values < 0
        if values.dtype.itemsize > 2:  # smaller types cannot hold more
            wrong |= values > LARGEST
        if values.dtype.kind == "f":
            wrong |= (values != np.floor(values)) | np.isinf(values)  # nan is not its own floor
        if wrong.any():
            row, column, value = _first(block, wrong)
            where = f"cell {cell_name(data, start + row)!r}, gene {table.called(column)} is {shown(value)}"
            if LARGEST < value < np.inf:
                raise SchemaError(
                    f"field '{name}': {where}; counts above 2^24 = {LARGEST} would be rounded in single precision: "
                    "leave the gene or the cell out"
                )
            raise SchemaError(
                f"field '{name}': {where}; counts must be non-negative integers (raw counts, not normalised or log "
                "values)"
            )
        totals = np.asarray(block.sum(1)).ravel()
        if not empty and (totals == 0).any():
            row = start + int(np.flatnonzero(totals == 0)[0])
            raise SchemaError(f"field '{name}': cell {cell_name(data, row)!r} has no counts; remove empty cells first")
        genes += np.asarray(block.sum(0)).ravel()
    return genes


def check_finite(name: str, data, table: Table) -> None:
    """Raise SchemaError naming the first entry that is missing, infinite, or beyond single precision."""
    for start, block in blocks_of(table.values):
        values: Any = block.data if sp.issparse(block) else block
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(values.astype(np.float32, copy=False))
        if wrong.any():
            row, column, value = _first(block, wrong)
            where = f"cell {cell_name(data, start + row)!r}, column {table.called(column)}"
            beyond = f" in single precision: {shown(value)}" if np.isfinite(value) else ""
            raise SchemaError(f"field '{name}': {where} is not finite{beyond}")


def single(name: str, place: Any, data, values: np.ndarray) -> np.ndarray:
    """Return a column of numbers in single precision [N]; SchemaError names the cell of one that it does not hold."""
    with np.errstate(over="ignore", under="ignore"):
        short = values.astype(np.float32)
    lost = np.flatnonzero(~np.isfinite(short) | ((short == 0) & (values != 0)))
    if lost.size:
        cell, value = cell_name(data, lost[0]), shown(values[lost[0]])
        raise SchemaError(
            f"field '{name}': column {place!r} of cell {cell!r} is {value}, beyond single precision; use another unit"
        )
    return short


def dense(matrix: Any) -> Any:
    """Return the matrix without its sparse form."""
    return matrix.toarray() if sp.issparse(matrix) else matrix


def shown(value: Any) -> str:
    """Return a number as it is: with all the digits that tell it from others.

    Examples
    --------
    >>> shown(np.float64(1.000000001)), shown(np.float32(0.5)), shown(-1.0)
    ('1.000000001', '0.5', '-1')
    """
    return str(value).removesuffix(".0")


def _found(name: str, data, place: Any) -> tuple[Any, list[str] | None]:
    """What is at a place, as it is, and the names of its columns."""
    if isinstance(data, anndata.AnnData):
        return _of_anndata(name, data, place)
    if isinstance(data, pd.DataFrame):
        frame = data if place == "X" else _columns(name, data, listed(place))
        return frame, _names(frame.columns)
    key = name if name in data and (not isinstance(place, str) or place not in data) else place
    if not isinstance(key, str):
        frame = pd.DataFrame({c: column_of(name, data, c) for c in key})
        return frame, _names(frame.columns)
    if key not in data:
        raise SchemaError(f"field '{name}': no array {key!r} in the data; there are {', '.join(map(str, data))}")
    raw = data[key]
    return raw, _names(raw.columns) if isinstance(raw, pd.DataFrame) else None


def _of_anndata(name: str, data: anndata.AnnData, place: Any) -> tuple[Any, list[str] | None]:
    if not isinstance(place, str):
        frame = _columns(name, data.obs, place)
        return frame, _names(frame.columns)
    genes = [str(gene) for gene in data.var_names]
    kind, _, key = place.partition("/")
    there = key in data.layers if kind == "layers" else key in data.obsm if kind == "obsm" else place == "X"
    if place == "X" and not data.isbacked and data.X is None:
        raise SchemaError(f"field '{name}': the AnnData has no X; {_matrices(data)}")
    if not there:
        raise SchemaError(f"field '{name}': no {place!r} in the AnnData; {_matrices(data, place)}")
    if data.isbacked and kind != "obsm":
        try:
            return BackedStore.open(data, place), genes
        except ValueError as error:
            raise SchemaError(f"field '{name}': {error}") from None
    if kind != "obsm":
        return (data.X if kind == "X" else data.layers[key]), genes
    raw: Any = data.obsm[key]
    return raw, _names(raw.columns) if isinstance(raw, pd.DataFrame) else None


def _matrices(data: anndata.AnnData, place: str = "") -> str:
    """Where there are matrices, for a message."""
    places = [] if data.X is None else ["'X'"]
    places += [f"'layers/{key}'" for key in data.layers if key is not None] + [f"'obsm/{key}'" for key in data.obsm]
    said = f"matrices are at {', '.join(places) or 'no place'}; columns of obs are given as a list"
    if place.partition("/")[0] in ("raw", ".raw"):
        said += ". .raw is not read: adata.layers['counts'] = adata.raw[:, adata.var_names].X makes it 'layers/counts'"
    return said


def _columns(name: str, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """These columns of a frame, each of which is there once."""
    twice = _twice(columns)
    if twice is not None:
        raise SchemaError(f"field '{name}': column {twice!r} is given twice")
    return frame.iloc[:, [column_at(name, frame, column) for column in columns]]


def _names(columns: pd.Index) -> list[str] | None:
    """Names of columns as text; None for the numbers of tables beside each other (0, 1, 0, 1), which name nothing."""
    return None if columns.has_duplicates and unnamed(columns) else [str(column) for column in columns]


def _numbered(names: list[str]) -> bool:
    """Whether names are the numbers that pandas and AnnData give by themselves."""
    return names == [str(column) for column in range(len(names))]


def _twice(names: list[str]) -> str | None:
    index = pd.Index(names)
    return str(index[index.duplicated()][0]) if index.has_duplicates else None


def _order(name: str, names: list[str], trained: list[str]) -> np.ndarray:
    """Where the trained columns are; columns that were not trained on may stand there as often as they like."""
    here = pd.Index(names)
    missing = [gene for gene in trained if gene not in here]
    if missing:
        raise SchemaError(
            f"field '{name}': gene {missing[0]!r} of the training data is missing ({len(missing)} of {len(trained)}); "
            f"the data have {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            + ("; an array in a dict is taken by position" if _numbered(names) or _numbered(trained) else "")
        )
    known = here[here.isin(trained)]
    if known.has_duplicates:
        raise SchemaError(
            f"field '{name}': {known[known.duplicated()][0]!r}, which was trained on, is the name of several columns"
        )
    return np.flatnonzero(here.isin(trained))[known.get_indexer(trained)]


def _frame_values(name: str, frame: pd.DataFrame, names: list[str] | None) -> np.ndarray:
    """The numbers of a frame; SchemaError names a column that holds others."""
    kinds = {dtype.kind for dtype in frame.dtypes if isinstance(dtype, np.dtype)}
    if kinds <= set("iuf") and all(isinstance(dtype, np.dtype) for dtype in frame.dtypes):
        return frame.to_numpy()
    parts = []
    for at in range(frame.shape[1]):
        column = frame.iloc[:, at]
        called = repr(frame.columns[at]) if names is None else repr(names[at])
        number = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype)
        if column.dtype == object:
            number = all(isinstance(v, numbers.Real) for v in column.dropna())
        if not number:
            raise SchemaError(
                f"field '{name}': column {called} is not numeric ({column.dtype}); say which columns are features: "
                f"fields={{'{name}': [...]}}"
            )
        parts.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.stack(parts, 1) if parts else np.zeros(frame.shape)


def _real(name: str, raw: Any, names: list[str] | None, data, flat: bool) -> Any:
    """A matrix of real numbers: CSR, or an array [N, F], or as it is on disk."""
    values: Any = sp.csr_matrix(raw) if sp.issparse(raw) else raw
    if isinstance(values, BackedStore | sp.csr_matrix):
        kind = (values.stored if isinstance(values, BackedStore) else values.dtype).kind
        _require_real(name, kind, values.dtype)
        return values.astype(np.uint8) if kind == "b" and isinstance(values, sp.csr_matrix) else values
    values = real_array(name, values, data, names)
    if values.ndim == 1 and flat:
        values = values[:, None]
    if values.ndim != 2:
        raise SchemaError(
            f"field '{name}': a matrix has one row for each cell and one column for each feature, and this has the "
            f"shape {values.shape}"
        )
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def real_array(name: str, raw: Any, data: Any = None, names: list[str] | None = None) -> np.ndarray:
    """Return an array of real numbers, of any shape; SchemaError names what is none."""
    if isinstance(raw, torch.Tensor):
        return array_of_tensor(name, raw)
    check_unmasked(name, raw)
    try:
        values = np.asarray(raw)
    except ValueError:
        raise SchemaError(f"field '{name}': its rows differ in length: this is no matrix") from None
    if values.dtype.kind != "O":
        _require_real(name, values.dtype.kind, values.dtype)
        return values
    for at, value in np.ndenumerate(values):
        if not isinstance(value, numbers.Real | np.bool_):
            column = "" if len(at) < 2 else f", column {at[1] if names is None else repr(names[at[1]])}"
            cell = repr(cell_name(data, at[0])) if at else ""
            raise SchemaError(f"field '{name}': cell {cell}{column} is {value!r:.40}, which is no number")
    return values.astype(np.float64)


def _require_real(name: str, kind: str, dtype: Any) -> None:
    if kind not in "biuf":
        what = {"c": "complex numbers", "U": "text", "S": "text"}.get(kind, f"values of type {dtype}")
        raise SchemaError(f"field '{name}': it holds {what}, not real numbers")


def blocks_of(matrix: Any) -> Iterator[tuple[int, Any]]:
    """Yield (first row, rows) of a matrix in memory or on disk."""
    if isinstance(matrix, BackedStore):
        yield from matrix.blocks()
    else:
        for start in range(0, matrix.shape[0], 8192):
            yield start, matrix[start : start + 8192]


def _first(block: Any, wrong: np.ndarray) -> tuple[int, int, Any]:
    if sp.issparse(block):
        at = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(block.indptr, at, side="right") - 1)
        return row, int(block.indices[at]), block.data[at]
    row, column = np.argwhere(wrong)[0]
    return int(row), int(column), block[row, column]


def lacks_matrix(name: str, data, place: Any) -> bool:
    """Whether new data comes without the matrix of a field."""
    if isinstance(data, anndata.AnnData):
        kind, _, key = str(place).partition("/")
        return kind == "obsm" and key not in data.obsm
    return isinstance(data, Mapping) and place not in data and name not in data


def whole_numbers(name: str, data, place: Any) -> np.ndarray:
    """Return whole numbers [N, M] of at least -1."""
    table = table_of(name, data, place, flat=True)
    values = np.asarray(dense(table.values))
    wrong = np.argwhere(~((values >= -1) & (values == np.floor(values))))
    if wrong.size:
        row, column = wrong[0]
        cell, value = cell_name(data, row), shown(values[row, column])
        raise SchemaError(f"field '{name}': cell {cell!r}, column {table.called(column)} is {value}, not a code")
    return values.astype(np.int64)
