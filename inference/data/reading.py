"""How columns are found in an AnnData, a DataFrame or a dict of arrays, and the checks that fields share."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from fieldguide.inference.checks.aligning import shuffled, unnamed
from fieldguide.inference.checks.arguments import first_masked
from fieldguide.inference.checks.labels import label_codes, label_texts, says_missing
from fieldguide.inference.messages import caution


class SchemaError(ValueError):
    """The data does not fit what the program reads; the message names the field and the cell, gene or column."""


def check_data(data: Any) -> None:
    """Raise TypeError, saying what data may be, for anything else."""
    asked = "data must be an AnnData, a DataFrame or a dict of arrays"
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        raise TypeError(f"{asked}, not the path {str(data)!r}: read it first, as by anndata.read_h5ad")
    if not isinstance(data, anndata.AnnData | pd.DataFrame | Mapping):
        raise TypeError(f"{asked}, not {type(data).__name__}")


def check_lengths(data: Any, places: Mapping[str, Any]) -> None:
    """Raise SchemaError for data without cells, and for arrays of a dict that differ in their number of rows."""
    if isinstance(data, anndata.AnnData | pd.DataFrame):
        if not len(data):
            raise SchemaError("the data has no cells")
        return
    read = {key: data[key] for name, at in places.items() for key in (*listed(at), name) if key in data}
    sizes = {key: rows for key, values in read.items() if (rows := _rows(values)) is not None}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{key!r} has {rows}" for key, rows in sizes.items())
        raise SchemaError(f"the arrays differ in their number of rows: {said}")
    if 0 in sizes.values():
        raise SchemaError("the data has no cells")
    check_one_index(read)


def check_one_index(columns: Mapping[Any, Any]) -> None:
    """Raise SchemaError where Series and frames that are read together name their rows otherwise.

    Rows numbered 0..n-1 by themselves are taken by position, unless others have these numbers in another order.
    """
    indices = {k: values.index for k, values in columns.items() if isinstance(values, pd.Series | pd.DataFrame)}
    named = {key: index for key, index in indices.items() if not unnamed(index)}
    if any(shuffled(index) for index in named.values()):
        named = indices
    first = next(iter(named), None)
    for key, index in named.items():
        if index.equals(named[first]):
            continue
        if not np.array_equal(label_texts(index), label_texts(named[first])):
            raise SchemaError(
                f"{key!r} and {first!r} do not name their rows alike, in one order: put {key!r} in order by "
                f"{key}.loc[{first}.index], or pass arrays, which are taken by position"
            )


def _rows(values: Any) -> int | None:
    """Number of rows of what has any."""
    if hasattr(values, "shape"):
        return int(values.shape[0]) if values.shape else None
    return len(values) if isinstance(values, Sized) and not isinstance(values, str | bytes) else None


def listed(place: Any) -> list[str]:
    """The columns that a place names: one, or several."""
    return [place] if isinstance(place, str) else list(place)


def is_present(data, place) -> bool:
    """Whether the data has every column of a place, or the matrix X."""
    columns = data.obs.columns if isinstance(data, anndata.AnnData) else getattr(data, "columns", list(data))
    known = {str(column) for column in columns}
    return all(c in known for c in listed(place)) or (place == "X" and isinstance(data, anndata.AnnData))


def column_at(name: str, frame: pd.DataFrame, column: Any) -> int:
    """Return where a column stands in a frame; SchemaError names the columns there are."""
    if not isinstance(column, str):
        raise SchemaError(f"field '{name}' is read from one column, and {column!r} is not the name of one")
    at = [i for i, there in enumerate(frame.columns) if str(there) == column]
    if len(at) == 1:
        return at[0]
    if at:
        raise SchemaError(f"field '{name}': there are {len(at)} columns {column!r}; give each a name of its own")
    raise SchemaError(f"field '{name}': no column {column!r} in obs; there are {_some(frame.columns)}")


def column_of(name: str, data, column: Any) -> pd.Series:
    """A column of the annotation, or of the frame or dict; SchemaError names the columns there are."""
    table = data.obs if isinstance(data, anndata.AnnData) else data
    if isinstance(table, pd.DataFrame):
        return table.iloc[:, column_at(name, table, column)]
    if not isinstance(column, str):
        raise SchemaError(f"field '{name}' is read from one column, and {column!r} is not the name of one")
    if column not in table:
        raise SchemaError(f"field '{name}': no column {column!r} in the data; there are {_some(table)}")
    values = table[column]
    if isinstance(values, pd.Series):
        return values
    check_unmasked(name, values)
    values = array_of_tensor(name, values) if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim != 1:
        raise SchemaError(f"field '{name}': {column!r} must have one value for each cell, not the shape {values.shape}")
    return pd.Series(values)


def check_unmasked(name: str, values: Any) -> None:
    """Raise SchemaError for an array in which a value is masked, which would be read as the number under the mask."""
    at = first_masked(values)
    if at is not None:
        raise SchemaError(f"field '{name}': the value at {at} is masked; fill in what is masked, or leave its cell out")


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raise SchemaError for a tensor that is complex, sparse or quantised."""
    if tensor.is_complex():
        raise SchemaError(f"field '{name}': it holds complex numbers, not real numbers")
    if tensor.layout != torch.strided or tensor.is_quantized:
        form = f"layout {tensor.layout}" if tensor.layout != torch.strided else f"quantised, {tensor.dtype}"
        raise SchemaError(
            f"field '{name}': it is a tensor that is not dense ({form}): pass tensor.to_dense() or .dequantize(), or a "
            "sparse matrix of SciPy"
        )


def array_of_tensor(name: str, tensor: torch.Tensor) -> np.ndarray:
    """Return the real numbers of a tensor, those that NumPy has no type for in single precision."""
    check_tensor(name, tensor)
    values = tensor.detach().cpu().resolve_neg()
    known = (torch.float64, torch.float32, torch.float16)
    return (values.float() if values.is_floating_point() and values.dtype not in known else values).numpy()


def _some(columns: Any) -> str:
    texts = [str(column) for column in columns]
    return ", ".join(texts[:30]) + (", ..." if len(texts) > 30 else "") if texts else "none"


def numbers(name: str, data, column: Any) -> np.ndarray:
    """A column of finite numbers, float64 [N]."""
    series = column_of(name, data, column)
    try:
        if series.dtype.kind in "cmM":
            raise TypeError
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise SchemaError(f"field '{name}': column {column!r} is not numeric ({series.dtype})") from None
    infinite = np.flatnonzero(~np.isfinite(values))
    if infinite.size:
        cell = cell_name(data, infinite[0])
        raise SchemaError(f"field '{name}': column {column!r} of cell {cell!r} is not finite")
    return values


def categories_of(name: str, column: str, series: pd.Series) -> list[str]:
    """The sorted categories of a column without gaps, as text."""
    require_complete(name, column, series)
    categories = sorted(set(label_texts(series)))
    check_labels(name, column, categories)
    return categories


def check_labels(name: str, column: Any, labels: Sequence[str]) -> None:
    """Raise SchemaError where a label is also there as text with a decimal point, such as "1" and "1.0".

    A warning says which labels look like missing values, as they are taken for labels.
    """
    gaps = [label for label in labels if says_missing(label)]
    if gaps:
        caution(
            f"field '{name}': the label {gaps[0]!r} of column {column!r} is one like the others; if it means that a "
            "cell has none, make it missing, obs[column].mask(obs[column] == label), or leave these cells out"
        )
    pointed, plain = ([label for label in labels if ("." in label) == there] for there in (True, False))
    for label, at in zip(pointed, label_codes(f"field '{name}'", pointed, plain), strict=True):
        if at >= 0:
            raise SchemaError(
                f"field '{name}': column {column!r} has the labels {plain[at]!r} and {label!r}, which are one number "
                "written in two ways; write it in one, or make them differ"
            )


def require_complete(name: str, column: str, series: pd.Series) -> None:
    """Raise SchemaError naming the first cell without a value."""
    missing = np.flatnonzero(series.isna())
    if missing.size:
        raise SchemaError(f"field '{name}': column {column!r} of cell {str(series.index[missing[0]])!r} is missing")


def codes_of(name: str, column: str, series: pd.Series, categories: list[str]) -> np.ndarray:
    """Codes int64 [N] among known categories; SchemaError names one that is not."""
    require_complete(name, column, series)
    codes = label_codes(f"field '{name}'", series, categories)
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


def has_column(data, place: str) -> bool:
    """Whether the data has this column."""
    return is_present(data, place) if place != "X" else False


def n_rows(data) -> int:
    """Number of cells."""
    if isinstance(data, anndata.AnnData | pd.DataFrame):
        return len(data)
    return next((rows for values in data.values() if (rows := _rows(values)) is not None), 0)
