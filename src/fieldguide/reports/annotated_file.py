"""An AnnData as an h5ad file that appears complete or not at all, and that older readers can read."""

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

from fieldguide.inference.checks.files import write_bytes


def write_h5ad(data: anndata.AnnData, path: str | Path, compression: str | None = None) -> None:
    """Write an h5ad file; the data is as it was.

    The file is made in memory first: h5py ends the process when the disk is full as it closes a file. Text that may be
    missing, which pandas 3 has by default and anndata 0.12 does not write, becomes plain text or categories.

    Parameters
    ----------
    data : AnnData
    path : path
    compression : str, optional
        "gzip" for a smaller file.

    Raises
    ------
    OSError
        If it cannot be written; an older file there is as it was.
    """
    data = plain(data)
    settings = {} if compression is None else {"compression": compression}
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        write_elem(file, "/", data, dataset_kwargs=settings)
        file.flush()
        content = file.id.get_file_image()
    write_bytes(path, content)


def plain(data: anndata.AnnData) -> anndata.AnnData:
    """Return a copy whose tables hold text as plain text or categories, none of it of a type that can be missing."""
    data = data.to_memory() if data.isbacked else data.copy()
    data.obs, data.var = _plain_table(data.obs), _plain_table(data.var)
    for matrices in (data.obsm, data.varm, data.uns):
        for key, value in list(matrices.items()):
            matrices[key] = _plain_value(value)
    before: Any = data.raw
    if before is not None:
        raw = anndata.AnnData(before.X, obs=data.obs[[]], var=before.var, varm=dict(before.varm))
        raw.var = _plain_table(raw.var)  # afterwards: the constructor makes names anew
        data.raw = raw
    data.strings_to_categoricals()
    return data


def _plain_value(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return _plain_table(value)
    if isinstance(value, dict):
        return {key: _plain_value(part) for key, part in value.items()}
    return value.to_numpy(dtype=object) if _missable(getattr(value, "dtype", None)) else value


def _plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Columns, categories and names of text that may be missing, as text that is missing as None or nan."""
    table = table.copy()
    for position in range(table.shape[1]):
        column = table.iloc[:, position]
        if isinstance(column.dtype, pd.CategoricalDtype):
            if _missable(column.cat.categories.dtype):
                column = column.cat.rename_categories(column.cat.categories.astype(object))
        elif _missable(column.dtype):
            column = _plain_text(column)
        else:
            continue
        table.isetitem(position, column)
    table.index = _plain_names(table.index)
    return table.set_axis(_plain_names(table.columns), axis=1)


def _plain_names(names: pd.Index) -> pd.Index:
    return pd.Index(names.to_numpy(dtype=object), dtype=object, name=names.name) if _missable(names.dtype) else names


def _plain_text(values: pd.Series) -> pd.Series:
    """Text as objects, or where some is missing as categories: files have no missing text."""
    text, missing = values.to_numpy(dtype=object), values.isna().to_numpy()
    if not missing.any():
        return pd.Series(text, index=values.index, dtype=object)
    written: Any = np.where(missing, None, text)
    codes, known = pd.factorize(written)
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(known, dtype=object)), index=values.index)


def _missable(kind: Any) -> bool:
    """Whether this is the type of text that may be missing."""
    return isinstance(kind, pd.StringDtype)
