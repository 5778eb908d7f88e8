"""How values are found in an AnnData, a DataFrame or a dict of arrays, and the checks that fields share."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from fieldguide.inference.data.storage import BackedStore


class SchemaError(ValueError):
    """The data does not fit what the program reads; the message names the field and the cell, gene or column."""


def listed(place) -> list[str]:
    """The columns that a place names: one, or several."""
    return [place] if isinstance(place, str) else list(place)


def is_present(data, place) -> bool:
    """Whether the data has every column of a place, or the matrix X."""
    columns = data.obs.columns if isinstance(data, anndata.AnnData) else getattr(data, "columns", list(data))
    return all(c in columns for c in listed(place)) or (place == "X" and isinstance(data, anndata.AnnData))


def column_of(name: str, data, column: str) -> pd.Series:
    """A column of the annotation, or of the frame or dict; SchemaError names the columns there are."""
    table = data.obs if isinstance(data, anndata.AnnData) else data
    if column not in table:
        raise SchemaError(f"field '{name}': no column {column!r} in obs; there are {', '.join(map(str, table))}")
    values: Any = table[column]
    return values if isinstance(table, pd.DataFrame) else pd.Series(np.asarray(values))


def dense(matrix: Any) -> Any:
    """The matrix without its sparse form."""
    return matrix.toarray() if sp.issparse(matrix) else matrix


def numbers(name: str, data, column: str) -> np.ndarray:
    """A column of finite numbers, float64 [N]."""
    series = column_of(name, data, column)
    try:
        values = series.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise SchemaError(f"field '{name}': column {column!r} is not numeric") from None
    infinite = np.flatnonzero(~np.isfinite(values))
    if infinite.size:
        cell = cell_name(data, infinite[0])
        raise SchemaError(f"field '{name}': column {column!r} of cell {cell!r} is not finite")
    return values


def categories_of(name: str, column: str, series: pd.Series) -> list[str]:
    """The sorted categories of a column without gaps, as text."""
    require_complete(name, column, series)
    return sorted(series.astype(str).unique())


def require_complete(name: str, column: str, series: pd.Series) -> None:
    """Raise SchemaError naming the first cell without a value."""
    missing = np.flatnonzero(series.isna())
    if missing.size:
        raise SchemaError(f"field '{name}': column {column!r} of cell {str(series.index[missing[0]])!r} is missing")


def codes_of(name: str, column: str, series: pd.Series, categories: list[str]) -> np.ndarray:
    """Codes int64 [N] among known categories; SchemaError names one that is not."""
    require_complete(name, column, series)
    codes = pd.Categorical(series.astype(str), categories=categories).codes.astype(np.int64)
    unseen = np.flatnonzero(codes < 0)
    if unseen.size:
        raise SchemaError(
            f"field '{name}': category {str(series.iloc[unseen[0]])!r} of column {column!r} was not in the training "
            f"data ({unseen.size} cells); known: {', '.join(categories)}"
        )
    return codes


def cell_name(data, row) -> str:
    """Name of a cell, or its row number."""
    if isinstance(data, anndata.AnnData):
        return str(data.obs_names[row])
    return str(data.index[row]) if isinstance(data, pd.DataFrame) else str(row)


def gene_name(data, column) -> str:
    """Name of a gene, or its column number."""
    return str(data.var_names[column]) if isinstance(data, anndata.AnnData) else str(column)


def matrix_of(name: str, data, place: str):
    """The matrix at a place: sparse, an array, or a store of a backed file."""
    if not isinstance(data, anndata.AnnData):
        if isinstance(data, Mapping) and place not in data and name in data:
            place = name
        if isinstance(data, pd.DataFrame):
            return data.to_numpy()
        if place not in data:
            raise SchemaError(f"field '{name}': no array {place!r} in the data; there are {', '.join(data)}")
        matrix = data[place]
        return matrix.tocsr() if sp.issparse(matrix) else np.asarray(matrix)
    if data.isbacked:
        return BackedStore.open(data, place)
    kind, _, key = place.partition("/")
    try:
        matrix = data.X if kind == "X" else {"layers": data.layers, "obsm": data.obsm}[kind][key]
    except KeyError:
        raise SchemaError(f"field '{name}': no {place!r} in the AnnData") from None
    if matrix is None:
        raise SchemaError(f"field '{name}': the AnnData has no X")
    return sp.csr_matrix(matrix) if sp.issparse(matrix) else np.asarray(matrix)


def gene_order(name: str, data, genes: list[str] | None, n_genes: int, width: int) -> np.ndarray | None:
    """Columns that put the genes into the order trained on, None where they are; SchemaError names a missing one."""
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


def check_counts(name: str, data, matrix) -> np.ndarray:
    """Raise on anything but non-negative integers and on empty cells; return the number of counts of each gene."""
    genes = np.zeros(matrix.shape[1])
    for start, block in _blocks(matrix):
        values: Any = block.data if sp.issparse(block) else block
        wrong = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
        if wrong.any():
            row, column, value = _first(block, wrong)
            where = f"cell {cell_name(data, start + row)!r}, gene {gene_name(data, column)!r}"
            raise SchemaError(
                f"field '{name}': {where} is {value:g}; counts must be non-negative "
                "integers (raw counts, not normalised or log values)"
            )
        totals = np.asarray(block.sum(1)).ravel()
        if (totals == 0).any():
            row = start + int(np.flatnonzero(totals == 0)[0])
            raise SchemaError(f"field '{name}': cell {cell_name(data, row)!r} has no counts; remove empty cells first")
        genes += np.asarray(block.sum(0)).ravel()
    return genes


def _blocks(matrix):
    if isinstance(matrix, BackedStore):
        yield from matrix.blocks()
    else:
        for start in range(0, matrix.shape[0], 8192):
            yield start, matrix[start : start + 8192]


def _first(block, wrong: np.ndarray) -> tuple[int, int, float]:
    if sp.issparse(block):
        at = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(block.indptr, at, side="right") - 1)
        return row, int(block.indices[at]), float(block.data[at])
    row, column = np.argwhere(wrong)[0]
    return int(row), int(column), float(block[row, column])


def has_column(data, place: str) -> bool:
    """Whether the data has this column."""
    if isinstance(data, anndata.AnnData):
        return place in data.obs
    return (
        place in (data.columns if isinstance(data, pd.DataFrame) else data)
        if isinstance(data, pd.DataFrame | Mapping)
        else False
    )


def lacks_matrix(name: str, data, place: str) -> bool:
    """Whether new data comes without the matrix of a field."""
    if isinstance(data, anndata.AnnData):
        kind, _, key = place.partition("/")
        return kind == "obsm" and key not in data.obsm
    return isinstance(data, Mapping) and place not in data and name not in data


def n_rows(data) -> int:
    """Number of cells."""
    return data.n_obs if isinstance(data, anndata.AnnData) else len(next(iter(dict(data).values())))


def whole_numbers(name: str, data, place: str) -> np.ndarray:
    """Whole numbers [N, M] of at least -1."""
    values = np.asarray(dense(matrix_of(name, data, place)))
    values = values[:, None] if values.ndim == 1 else values
    wrong = np.argwhere(~((values >= -1) & (values == np.floor(values))))
    if wrong.size:
        row, column = wrong[0]
        raise SchemaError(
            f"field '{name}': cell {cell_name(data, row)!r}, column {column} is {values[row, column]}, not a code"
        )
    return values.astype(np.int64)
