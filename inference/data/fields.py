"""The kinds of field: what each reads, the checks that the values must pass, and what is remembered of them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from fieldguide.inference.data.matrices import (
    blocks_of,
    check_counts,
    check_finite,
    check_width,
    dense,
    learnt_names,
    single,
    table_of,
)
from fieldguide.inference.data.reading import (
    SchemaError,
    categories_of,
    cell_name,
    codes_of,
    column_of,
    listed,
    numbers,
)
from fieldguide.inference.data.storage import BackedStore, DenseStore, SparseStore, Store
from fieldguide.inference.messages import caution

UNEVEN, OTHER_SCALE = 1e4, 10.0
"""Times the median that a size factor may be, and times what is expected that the counts of new data may be."""


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
    expandable: ClassVar[bool] = False
    """Whether a program may be built for more than the data has: categories can be few, columns of a matrix cannot."""

    def learn(self, name: str, data, place) -> dict[str, Any]:
        """Return what has to be remembered of the training data (plain JSON values)."""
        return {}

    def read(self, name: str, data, place, state: dict[str, Any]) -> Store:
        """Check and return the values of the field for every cell."""
        raise NotImplementedError

    def relate(self, name: str, data, place, others: dict[str, Any]) -> dict[str, Any]:
        """Return what has to be remembered besides, given where the other fields are."""
        return {}

    def compare(self, name: str, data, place, others: dict[str, Any], state: dict[str, Any]) -> None:
        """Warn where the values of the field do not go with those of the others, given where they are."""

    def as_given(self, given: "Field") -> "Field":
        """Return a field of the same kind that stands in the place of this one, as its user gave it."""
        return given

    def sizes(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor arguments that the field implies, such as ``n_genes``."""
        return {}


@dataclass(frozen=True)
class Counts(Field):
    """A cells x genes matrix of non-negative integer counts (dense, sparse, or backed on disk)."""

    place: str = "X"

    def learn(self, name, data, place):
        table = table_of(name, data, place)
        genes = learnt_names(name, table)
        totals = check_counts(name, data, table)
        empty = np.flatnonzero(totals == 0)
        if empty.size:
            gene = table.called(empty[0])
            caution(
                f"field '{name}': gene {gene} has no count in any cell ({empty.size} such genes): "
                "nothing can be learnt about it; consider adata[:, adata.X.sum(0) > 0]",
            )
        return {"genes": genes, "n_genes": table.width}

    def read(self, name, data, place, state):
        table = table_of(name, data, place, state["genes"])
        check_width(name, table, state["n_genes"], "genes")
        check_counts(name, data, table)
        matrix = table.values
        if isinstance(matrix, BackedStore):
            return matrix
        return SparseStore(matrix) if sp.issparse(matrix) else DenseStore(np.asarray(matrix, dtype=np.float32))

    def sizes(self, name, state):
        return {"n_genes": state["n_genes"]}


@dataclass(frozen=True)
class Category(Field):
    """A categorical column of ``obs``; each cell's code, int64 [N]."""

    expandable = True

    def learn(self, name, data, place):
        return {"categories": categories_of(name, place, column_of(name, data, place))}

    def read(self, name, data, place, state):
        return DenseStore(codes_of(name, place, column_of(name, data, place), state["categories"]))

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"])}


@dataclass(frozen=True)
class Categories(Field):
    """Several categorical columns of ``obs``; codes, int64 [N, C]."""

    def learn(self, name, data, place):
        return {"categories": [categories_of(name, c, column_of(name, data, c)) for c in listed(place)]}

    def read(self, name, data, place, state):
        columns = zip(listed(place), state["categories"], strict=True)
        return DenseStore(np.stack([codes_of(name, c, column_of(name, data, c), k) for c, k in columns], 1))

    def sizes(self, name, state):
        return {f"n_{name}": tuple(len(c) for c in state["categories"])}


@dataclass(frozen=True)
class Continuous(Field):
    """One or several numeric columns of ``obs``, standardised on the training data; float32 [N, C]."""

    def learn(self, name, data, place):
        values = np.stack([numbers(name, data, c) for c in listed(place)], 1)
        with np.errstate(over="ignore"):
            deviation = values.std(0)
        for column, spread in zip(listed(place), deviation, strict=True):
            if not spread > 0:
                raise SchemaError(f"field '{name}': column {column!r} is constant in the {len(values)} cells")
            if not np.isfinite(spread):
                raise SchemaError(f"field '{name}': column {column!r} has values too large to square; use another unit")
        return {"mean": values.mean(0).tolist(), "deviation": deviation.tolist()}

    def read(self, name, data, place, state):
        values = np.stack([numbers(name, data, c) for c in listed(place)], 1)
        scaled = (values - state["mean"]) / state["deviation"]
        return DenseStore(np.stack([single(name, c, data, v) for c, v in zip(listed(place), scaled.T, strict=True)], 1))

    def sizes(self, name, state):
        return {f"n_{name}": len(state["mean"])}


@dataclass(frozen=True)
class Positive(Field):
    """One numeric column of ``obs`` that must be positive (a size factor); float32 [N]."""

    def read(self, name, data, place, state):
        values = numbers(name, data, place)
        negative = np.flatnonzero(values <= 0)
        if negative.size:
            cell = cell_name(data, negative[0])
            raise SchemaError(f"field '{name}': column {place!r} of cell {cell!r} is not positive")
        return DenseStore(single(name, place, data, values))


@dataclass(frozen=True)
class SizeFactor(Positive):
    """One positive column of ``obs``: how many counts to expect of a cell, up to a factor; float32 [N].

    Size factors of any scale, and totals over more genes than are modelled, are brought to the scale of the counts: all
    training cells together have as many as their counts. So a batch has expected totals.
    """

    def relate(self, name, data, place, others):
        if "counts" not in others:
            return {}
        return {"scale": _total(data, others["counts"]) / float(numbers(name, data, place).sum())}

    def compare(self, name, data, place, others, state):
        sizes = numbers(name, data, place)
        largest = int(sizes.argmax())
        if sizes[largest] > UNEVEN * np.median(sizes):
            caution(
                f"field '{name}': column {place!r} of cell {cell_name(data, largest)!r} is {sizes[largest]:g}, "
                f"{sizes[largest] / np.median(sizes):.3g} times the median: is it right?"
            )
        if "counts" in others and "scale" in state:
            off = _total(data, others["counts"]) / (float(sizes.sum()) * state["scale"])
            if not 1 / OTHER_SCALE < off < OTHER_SCALE:
                caution(
                    f"field '{name}': these cells have {off:.3g} times the counts that column {place!r} lets expect: "
                    "it is not on the scale of the training data"
                )

    def read(self, name, data, place, state):
        sizes = super().read(name, data, place, state).values
        return DenseStore((sizes.double() * state.get("scale", 1.0)).to(sizes.dtype))


def _total(data: Any, place: Any) -> float:
    """All counts of all cells."""
    blocks = blocks_of(table_of("counts", data, place).values)
    return sum(float(block.sum(dtype=np.float64)) for _, block in blocks)


@dataclass(frozen=True)
class Matrix(Field):
    """A cells x features matrix of finite real numbers; float32 [N, F].

    Names of features (``var_names``, or those of a frame's columns) are remembered, numbers too: new data have them in
    any order, and others beside them. Arrays are taken by position, and so are columns that are numbered 0..n-1 in
    order where those of the training data were.
    """

    place: str = "X"

    def learn(self, name, data, place):
        table = table_of(name, data, place)
        return {"n_features": table.width, "features": learnt_names(name, table)}

    def read(self, name, data, place, state):
        table = table_of(name, data, place, state.get("features"))
        check_width(name, table, state["n_features"], "features")
        check_finite(name, data, table)
        if isinstance(table.values, BackedStore):
            return table.values
        return DenseStore(np.asarray(dense(table.values), dtype=np.float32))

    def sizes(self, name, state):
        return {"n_features": state["n_features"]}


@dataclass(frozen=True)
class Values(Matrix):
    """A cells x features matrix of real numbers beside another of features, float32 [N, F]."""

    def sizes(self, name, state):
        return {f"n_{name}": state["n_features"]}


@dataclass(frozen=True)
class UnitInterval(Matrix):
    """A cells x features matrix of numbers in [0, 1], such as grey values; float32 [N, F]."""

    def read(self, name, data, place, state):
        store = super().read(name, data, place, state)
        if isinstance(store, BackedStore):
            raise SchemaError(f"field '{name}': values in [0, 1] are read from memory only")
        outside = np.argwhere(((store.values < 0) | (store.values > 1)).numpy())
        if outside.size:
            row, column = outside[0]
            value = float(store.values[row, column])
            raise SchemaError(
                f"field '{name}': cell {cell_name(data, row)!r}, column {column} is {value:g}, outside "
                "[0, 1]; divide by the largest possible value"
            )
        return store
