"""Where the values of a field are kept: a dense array, a sparse matrix, or a file on disk read by blocks.

A store answers two questions: the rows as a tensor on a device (`gather`), and which contiguous windows of
rows are cheap to read together (`windows`).
"""

from collections.abc import Iterator
from typing import Any
from zlib import crc32

import anndata
import h5py
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

BLOCK = 512
"""Rows that a backed file reads at once: large enough that disk access is sequential."""
WINDOW = 32 * BLOCK
"""Rows of a backed file that are held in memory and shuffled together."""

MARKED = 2**16
"""Values of a store that its mark is of."""


class Store:
    """Values of one field for all cells."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    backed = False

    @property
    def window(self) -> int:
        """Rows that are held in memory and shuffled together, where they are read from disk."""
        return WINDOW

    def gather(self, rows: np.ndarray) -> Tensor:
        """Return the given rows as a dense tensor [len(rows), ...] on the store's device."""
        raise NotImplementedError

    def to(self, device: torch.device) -> "Store":
        """Return the store with its values resident on the device."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the values take."""
        raise NotImplementedError

    def load(self, rows: np.ndarray) -> "Store":
        """Return a store of these rows only, in memory."""
        raise NotImplementedError

    def mark(self) -> int:
        """Return a digest of some of the values, by which a change of all of them is seen; 0 of what is on disk."""
        return 0


class DenseStore(Store):
    """A dense array [N, ...]."""

    def __init__(self, values: np.ndarray | Tensor) -> None:
        if isinstance(values, np.ndarray):
            values = np.require(values, requirements=["C", "W"])  # torch warns of what it cannot write to
        self.values = torch.as_tensor(values)
        self.shape, self.dtype = tuple(self.values.shape), self.values.dtype

    def gather(self, rows):
        return self.values[torch.from_numpy(rows).to(self.values.device)]

    @property
    def nbytes(self):
        return self.values.nbytes

    def to(self, device):
        return DenseStore(self.values.to(device))

    def load(self, rows):
        return DenseStore(self.values[torch.from_numpy(rows)])

    def mark(self):
        return _mark(self.values.reshape(-1))


class SparseStore(Store):
    """A CSR matrix [N, G]; rows come out dense, in float32.

    On an accelerator, row offsets stay in host memory, so that gathering needs no synchronisation.
    """

    def __init__(self, matrix: sp.csr_matrix, device: torch.device | str = "cpu") -> None:
        matrix = sp.csr_matrix(matrix, dtype=np.float32)  # shares what is float32 already, and never writes to it
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        self.matrix, self.device = matrix, torch.device(device)
        self.shape = (len(matrix.indptr) - 1, int(matrix.shape[-1]))
        if self.device.type != "cpu":
            self.columns = torch.from_numpy(matrix.indices).to(self.device)
            self.values = torch.from_numpy(matrix.data).to(self.device)

    def gather(self, rows):
        if self.device.type == "cpu":
            return torch.from_numpy(self.matrix[rows].toarray())
        return self.gather_resident(rows, self.columns, self.values)

    def gather_resident(self, rows: np.ndarray, columns: Tensor, values: Tensor) -> Tensor:
        """Return the rows from column numbers and values that lie on a device."""
        start = self.matrix.indptr[rows].astype(np.int64)
        length = self.matrix.indptr[rows + 1] - start
        offset = np.concatenate(([0], np.cumsum(length)[:-1]))
        position = torch.from_numpy(np.repeat(start - offset, length) + np.arange(length.sum())).to(values.device)
        row = torch.from_numpy(np.repeat(np.arange(len(rows)) * self.shape[1], length)).to(values.device)
        out = torch.zeros(len(rows) * self.shape[1], device=values.device)
        out[row + columns[position]] = values[position]
        return out.view(len(rows), self.shape[1])

    @property
    def nbytes(self):
        return self.matrix.indices.nbytes + self.matrix.data.nbytes

    def to(self, device):
        return self if device == self.device else SparseStore(self.matrix, device)

    def load(self, rows):
        return SparseStore(self.matrix[rows])

    def mark(self):
        return _mark(torch.from_numpy(self.matrix.data))


def _mark(values: Tensor) -> int:
    if len(values) > MARKED:  # at places without a stride, which might be that of the columns
        values = values[torch.from_numpy(np.random.default_rng(0).integers(0, len(values), MARKED)).to(values.device)]
    return crc32(values.detach().cpu().numpy().tobytes())


class BackedStore(Store):
    """A matrix in an h5ad file, read by contiguous blocks of rows.

    Row offsets are kept in memory and the value arrays are sliced directly; going through the matrix interface of
    a backed AnnData would read all offsets again for each access.
    """

    backed = True

    def __init__(self, group: Any) -> None:
        self.group = group
        if isinstance(group, h5py.Group):
            self.indptr = group["indptr"][:]
            self.shape = tuple(np.asarray(group.attrs["shape"]).tolist())
        else:
            self.indptr = None
            self.shape = group.shape

    @property
    def stored(self) -> np.dtype:
        """The type of the numbers in the file."""
        values: Any = self.group["data"] if isinstance(self.group, h5py.Group) else self.group
        return values.dtype

    @classmethod
    def open(cls, data: anndata.AnnData, place: str) -> "BackedStore":
        """Open the matrix at ``place`` of a backed AnnData."""
        if data.is_view:
            raise ValueError("a view of a backed AnnData cannot be read by blocks: use .to_memory(), or the whole file")
        if place != "X" and not place.startswith("layers/"):
            raise ValueError(f"a backed AnnData is read from 'X' or 'layers/NAME', not {place!r}")
        if place not in data.file._file:
            raise ValueError(f"there is no {place!r} in the backed file")
        matrix = data.file._file[place]
        if isinstance(matrix, h5py.Group) and matrix.attrs.get("encoding-type") != "csr_matrix":
            raise ValueError(f"{place!r} of the backed file is stored by columns (CSC): convert it to CSR first")
        return cls(matrix)

    def rows(self, start: int, stop: int) -> sp.csr_matrix | np.ndarray:
        """Read the rows from start to stop."""
        if self.indptr is None:
            return self.group[start:stop]
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        parts = (
            self.group["data"][first:last],
            self.group["indices"][first:last],
            self.indptr[start : stop + 1] - first,
        )
        return sp.csr_matrix(parts, shape=(stop - start, self.shape[1]))

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix | np.ndarray]]:
        """Yield (first row, rows) over the whole matrix."""
        for start in range(0, self.shape[0], WINDOW):
            yield start, self.rows(start, min(start + WINDOW, self.shape[0]))

    def load(self, rows):
        parts = []
        for block in np.unique(rows // BLOCK).tolist():
            inside = rows[rows // BLOCK == block] - block * BLOCK
            parts.append(self.rows(block * BLOCK, min((block + 1) * BLOCK, self.shape[0]))[inside])
        if self.indptr is None:
            return DenseStore(np.concatenate(parts).astype(np.float32))
        return SparseStore(sp.vstack(parts, format="csr"))

    def gather(self, rows):
        order = np.argsort(rows, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(rows))
        return self.load(rows[order]).gather(back)
