"""What a measure is bound to before training: columns of the user's data, cells, and sites of the program."""

from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from fieldguide.inference.data.minibatches import Dataset
from fieldguide.inference.program import Program
from fieldguide.inference.randomness import isolated
from fieldguide.inference.weights.tracing import guide_draws
from fieldguide.inference.weights.weigh import weigh


@dataclass
class Source:
    """What measures may read.

    Attributes
    ----------
    data : AnnData, DataFrame, dict of arrays or None
        As the user gave it; columns that the program does not read are there too.
    dataset : Dataset
        The fields that the program reads.
    rows : array of int
        The cells that are trained on.
    batch_size : int
        Cells in a minibatch.
    program : Program
    """

    data: Any
    dataset: Dataset
    rows: np.ndarray
    batch_size: int
    program: Program

    def sites(self) -> tuple[str, ...]:
        """Return the latent and deterministic sites of the program; random state and buffers stay as they are."""
        batch = self.dataset.batch(self.rows[: min(len(self.rows), 4)])
        device = next(self.program.parameters()).device
        batch = {k: v.to(device) for k, v in batch.items()}
        modes = {m: m.training for m in self.program.modules()}
        with torch.no_grad(), pyro.validation_enabled(False), isolated(device):
            draws = weigh(self.program.eval(), batch, 1, "score").draws | guide_draws(self.program, batch)
        for module, mode in modes.items():
            module.training = mode
        return tuple(draws)

    def table(self) -> Any:
        """Return where columns are looked up."""
        if self.data is None:
            return self.dataset.obs if self.dataset.obs is not None else self.fields()
        return self.data.obs if isinstance(self.data, anndata.AnnData) else self.data

    def fields(self) -> dict[str, np.ndarray]:
        """Return the fields of the program with one value a cell."""
        stores = self.dataset.stores.items()
        everything = np.arange(self.dataset.n_cells)
        return {n: s.gather(everything).cpu().numpy() for n, s in stores if len(s.shape) == 1 and not s.backed}

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        table = self.table()
        own = [str(c) for c in (table.columns if isinstance(table, pd.DataFrame) else table)]
        return [*own, *(name for name in self.coded() if name not in own)]

    def coded(self) -> list[str]:
        """Return the names of the fields of the program that are one category a cell."""
        return [n for n, s in self.dataset.stores.items() if len(s.shape) == 1 and s.dtype == torch.int64]

    def column(self, name: str) -> pd.Series:
        """Return a column, one value a cell of the data; or a field of categories of the program.

        Raises
        ------
        ValueError
            If a value is missing or not finite, naming the cell.
        """
        table = self.table()
        if name not in (table.columns if isinstance(table, pd.DataFrame) else table) and name in self.coded():
            codes = self.dataset.stores[name].gather(np.arange(self.dataset.n_cells))
            return pd.Series(codes.cpu().numpy().astype(str))
        values: Any = table[name]
        series = values if isinstance(values, pd.Series) else pd.Series(_flat(name, values))
        if len(series) != self.dataset.n_cells:
            raise ValueError(f"column {name!r} has {len(series)} values, but there are {self.dataset.n_cells} cells")
        missing = series.isna().to_numpy()
        if pd.api.types.is_float_dtype(series.dtype):
            missing = missing | ~np.isfinite(series.to_numpy(dtype=np.float64, na_value=np.nan))
        if missing.any():
            row = int(np.flatnonzero(missing)[0])
            raise ValueError(f"column {name!r} of cell {str(series.index[row])!r} is missing or not finite")
        return series


def is_categorical(series: pd.Series) -> bool:
    """Whether a column is one of categories: text, categorical or true/false. Numbers are continuous."""
    return not pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)


def _flat(name: str, values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"column {name!r} has shape {array.shape}: a constraint reads one value a cell")
    return array
