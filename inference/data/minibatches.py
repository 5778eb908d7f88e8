"""From a data set to minibatches: deterministic, without leftovers of one cell, from memory or from disk."""

from collections.abc import Iterator, Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from fieldguide.inference.checks.arguments import checked_int
from fieldguide.inference.data.balanced import Balanced
from fieldguide.inference.data.matrices import dense, real_array
from fieldguide.inference.data.reading import check_one_index, check_tensor
from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.data.storage import BLOCK, DenseStore, Store
from fieldguide.inference.program import Batch


class Dataset:
    """The checked fields of N cells.

    Attributes
    ----------
    stores : dict of str to Store
    obs : DataFrame or None
        Annotation of the cells, when the data came with one.
    var_names : Index or None
        Names of the genes.
    """

    def __init__(self, stores: dict[str, Store], obs: pd.DataFrame | None, var_names: pd.Index | None) -> None:
        self.stores = stores
        self.obs = obs
        self.var_names = var_names
        lengths = {name: store.shape[0] for name, store in stores.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"fields differ in their number of rows: {lengths}")
        self.n_cells = next(iter(lengths.values()))
        if self.n_cells == 0:
            raise ValueError("the data has no cells")
        self.marks: dict[str, int] | None = None

    def remember(self) -> "Dataset":
        """Note what the values are, for `require_unchanged`: they may be those of the user's own arrays."""
        self.marks = {name: store.mark() for name, store in self.stores.items()}
        return self

    def require_unchanged(self) -> None:
        """Raise ValueError, naming the field, where values were changed in place since they were read."""
        for name, mark in (self.marks or {}).items():
            if self.stores[name].mark() != mark:
                raise ValueError(
                    f"field '{name}': the data were changed in place since they were read (as sc.pp.log1p does): pass "
                    "them as they were, or fit on a copy"
                )

    @property
    def backed(self) -> bool:
        """Whether any field is read from disk."""
        return any(store.backed for store in self.stores.values())

    @property
    def window(self) -> int:
        """Rows that are held in memory and shuffled together, where they are read from disk."""
        return min(store.window for store in self.stores.values())

    @property
    def width(self) -> int:
        """The largest number of features of a field: what a draw of the observations costs."""
        return max(int(np.prod(store.shape[1:], dtype=int)) for store in self.stores.values())

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the given cells as tensors, with their row numbers under ``index``."""
        fields = {name: store.gather(rows) for name, store in self.stores.items()}
        device = next(iter(fields.values())).device
        return fields | {"index": torch.from_numpy(rows).to(device)}

    def to(self, device: torch.device) -> "Dataset":
        """Return the data set with its values on the device."""
        return Dataset({n: s.to(device) for n, s in self.stores.items()}, self.obs, self.var_names)

    def load(self, rows: np.ndarray) -> "Dataset":
        """Return these cells only, in memory."""
        return Dataset({n: s.load(rows) for n, s in self.stores.items()}, None, self.var_names)


def read(data, schema: FittedSchema | None) -> Dataset:
    """Return the `Dataset` that a program reads from AnnData, DataFrame or dict of arrays.

    Without a schema, a dict of arrays passes through, ``{"x": X}`` arriving as ``batch["x"]``, and a DataFrame gives
    one field for each column.

    Raises
    ------
    SchemaError
        Naming what does not fit the schema.
    TypeError
        If the data is of none of these kinds.
    """
    if schema is None:
        if isinstance(data, anndata.AnnData) or not isinstance(data, pd.DataFrame | Mapping):
            raise TypeError(f"a program without a schema reads a dict of arrays, not {type(data).__name__}")
        if not len(data):
            raise ValueError("the data has no cells: there is no array in it")
        check_one_index(dict(data))
        return Dataset({name: _array(name, values) for name, values in _named(data)}, None, None).remember()
    stores = schema.read(data)
    labelled = isinstance(data, anndata.AnnData)
    obs = data.obs if labelled else data if isinstance(data, pd.DataFrame) else None
    genes = next((s["genes"] for s in schema.states.values() if s.get("genes")), None)
    names = pd.Index(genes) if genes else None
    return Dataset(stores, obs, names).remember()


def _named(data: Any) -> Iterator[tuple[str, Any]]:
    """Fields by name as text, each of which is there once."""
    names = pd.Index([str(name) for name in data])
    if names.has_duplicates:
        raise ValueError(f"several fields are called {names[names.duplicated()][0]!r}")
    if "index" in names:
        raise ValueError("field 'index' has the name of the numbers of the cells: call it something else")
    return zip(names, (values for _, values in data.items()), strict=True)


def _array(name: str, values: Any) -> Store:
    """Numbers of any shape, one row a cell."""
    if isinstance(values, torch.Tensor):
        check_tensor(name, values)
        array = values
    else:
        plain = real_array(name, dense(values))
        if plain.dtype == np.uint64 and plain.size and plain.max() > np.iinfo(np.int64).max:
            raise ValueError(f"field '{name}': {plain.max()} is beyond the whole numbers of 64 bits")
        array = DenseStore(plain.astype(np.int64) if plain.dtype.kind == "u" else plain).values
    if array.dim() == 0:
        raise TypeError(f"field '{name}' is a single number, not an array with one row a cell")
    if array.is_floating_point():
        array = array.to(torch.get_default_dtype())
        infinite = torch.nonzero(~torch.isfinite(array))
        if len(infinite):
            raise ValueError(f"field '{name}': row {int(infinite[0, 0])} is not finite")
    return DenseStore(array)


class Loader:
    """Minibatches of some rows of a data set.

    Parameters
    ----------
    dataset : Dataset
    rows : array of int
        The cells to visit.
    batch_size : int
        A last minibatch of one cell is joined to the one before it (batch normalisation needs two).
    shuffle : bool
        Visit the rows in an order that depends on ``seed`` and on `epoch` alone. Data in memory is shuffled
        as a whole; a backed file by blocks of 512 rows, and within windows of 32 blocks (fewer of large images).
    rank, world : int
        This process and the number of processes that share the rows.
    balanced : Balanced, optional
        How minibatches are drawn, where they are shuffled and not every cell comes once.

    Raises
    ------
    ValueError
        For a field of ``balanced`` that is not there, or has more than one code a cell.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        batch_size: Any,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        balanced: Balanced | None = None,
    ) -> None:
        self.dataset, self.rows = dataset, np.sort(np.asarray(rows, dtype=np.int64))
        self.batch_size = checked_int("batch_size", batch_size, at_least=1)
        self.shuffle, self.seed, self.rank, self.world = shuffle, seed, rank, world
        self.balanced, self.epoch = balanced, 0
        for name in () if balanced is None else balanced.by:
            store = dataset.stores.get(name)
            if store is None or len(store.shape) != 1 or store.dtype != torch.int64:
                raise ValueError(f"minibatches are balanced by {name!r}, which is no field of one code a cell")

    def __iter__(self) -> Iterator[Batch]:
        generator = np.random.default_rng([self.seed, self.epoch])
        for window in self._windows(generator):
            source, names = self.dataset, window
            if self.dataset.backed:
                window = np.sort(window)
                source, names = self.dataset.load(window), np.arange(len(window))
            for chunk in self._drawn(source, names, generator):
                mine = chunk[self.rank :: self.world]
                batch = source.batch(names[mine])
                if source is not self.dataset:
                    batch["index"] = torch.from_numpy(window[mine])
                yield batch

    def __len__(self) -> int:
        windows = self._windows(np.random.default_rng(0))
        if self.balanced is not None and self.shuffle:
            return sum(max(1, -(-len(window) // (self.batch_size * self.world))) for window in windows)
        return sum(len(self._chunks(window)) for window in windows)

    def _drawn(self, source: Dataset, names: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Places in a window [n] of the cells of each minibatch."""
        if self.balanced is None or not self.shuffle:
            return self._chunks(generator.permutation(len(names)) if self.shuffle else np.arange(len(names)))
        codes = np.stack([source.stores[name].gather(names).cpu().numpy() for name in self.balanced.by], 1)
        return self.balanced.draw(codes, self.batch_size * self.world, generator)

    def _chunks(self, order: np.ndarray) -> list[np.ndarray]:
        size = self.batch_size * self.world
        chunks = [order[k : k + size] for k in range(0, len(order), size)]
        if len(chunks) > 1 and len(chunks[-1]) < 2 * self.world:
            chunks[-2:] = [np.concatenate(chunks[-2:])]
        return chunks

    def _windows(self, generator: np.random.Generator) -> list[np.ndarray]:
        if not self.dataset.backed:
            return [self.rows]
        blocks = np.split(self.rows, np.flatnonzero(np.diff(self.rows // BLOCK)) + 1)
        order = generator.permutation(len(blocks)) if self.shuffle else np.arange(len(blocks))
        size = self.dataset.window // BLOCK
        return [np.concatenate([blocks[i] for i in order[k : k + size]]) for k in range(0, len(order), size)]
