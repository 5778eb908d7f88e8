"""Fields of a log or a trial: ordered levels, outcomes and weights that only training needs, codes of items."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fieldguide.inference.checks.labels import label_text
from fieldguide.inference.data.fields import Field, Matrix, Positive
from fieldguide.inference.data.matrices import lacks_matrix, single, whole_numbers
from fieldguide.inference.data.reading import (
    SchemaError,
    check_labels,
    codes_of,
    column_of,
    has_column,
    n_rows,
    numbers,
    require_complete,
)
from fieldguide.inference.data.storage import DenseStore


@dataclass(frozen=True)
class Levels(Field):
    """A column of ordered levels, such as doses or incentives; each cell's code, int64 [N], from the lowest.

    Numbers are ordered by size, an ordered categorical as it says. New data may lack the column: then every code is -1.
    """

    expandable = True

    def learn(self, name, data, place):
        column = column_of(name, data, place)
        require_complete(name, place, column)
        if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
            levels = [label_text(c) for c in column.cat.categories if (column == c).any()]
        elif pd.api.types.is_numeric_dtype(column):
            levels = [label_text(v) for v in sorted(pd.unique(column))]
        else:
            raise SchemaError(
                f"field '{name}': column {place!r} has no order: make it numeric or an ordered categorical"
            )
        check_labels(name, place, levels)
        if len(levels) < 2:
            raise SchemaError(f"field '{name}': column {place!r} has one level only ({levels[0]})")
        return {"categories": levels}

    def read(self, name, data, place, state):
        if not has_column(data, place):
            return DenseStore(np.full(n_rows(data), -1, dtype=np.int64))
        return DenseStore(codes_of(name, place, column_of(name, data, place), state["categories"]))

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"])}


@dataclass(frozen=True)
class Outcome(Field):
    """A numeric column that only training needs, as it is; float32 [N]. New data may lack it: then it is 0."""

    def learn(self, name, data, place):
        column_of(name, data, place)  # training does need it
        return {}

    def read(self, name, data, place, state):
        if not has_column(data, place):
            return DenseStore(np.zeros(n_rows(data), dtype=np.float32))
        return DenseStore(single(name, place, data, numbers(name, data, place)))


@dataclass(frozen=True)
class RowWeight(Positive):
    """A positive column that says how much each row counts in training; float32 [N]. New data may lack it: then 1."""

    def learn(self, name, data, place):
        column_of(name, data, place)  # a place that was given is meant
        return {}

    def read(self, name, data, place, state):
        if not has_column(data, place):
            return DenseStore(np.ones(n_rows(data), dtype=np.float32))
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

    expandable = True
    of: str = ""
    later: bool = True

    def learn(self, name, data, place):
        values = whole_numbers(name, data, place)
        return {"size": int(values.max(initial=-1)) + 1, "width": int(values.shape[1])}

    def read(self, name, data, place, state):
        if not self.later and lacks_matrix(name, data, place):
            return DenseStore(np.full((n_rows(data), state["width"]), -1, dtype=np.int64))
        values = whole_numbers(name, data, place)
        if values.shape[1] != state["width"]:
            raise SchemaError(f"field '{name}': {values.shape[1]} columns, but {state['width']} were trained on")
        return DenseStore(values)

    def sizes(self, name, state):
        return {f"n_{self.of}": state["size"]} if self.of else {}


@dataclass(frozen=True)
class Items(Matrix):
    """A cells x items matrix of real numbers that only training needs, float32 [N, L]; new data may lack it."""

    def read(self, name, data, place, state):
        if lacks_matrix(name, data, place):
            return DenseStore(np.zeros((n_rows(data), state["n_features"]), dtype=np.float32))
        return super().read(name, data, place, state)

    def sizes(self, name, state):
        return {f"n_{name}": state["n_features"]}
