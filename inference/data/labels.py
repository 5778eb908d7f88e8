"""Fields of labels that are known for some cells, by one annotator or several, or in training alone."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fieldguide.inference.checks.labels import label_codes, label_texts
from fieldguide.inference.data.fields import Category, Field
from fieldguide.inference.data.reading import (
    SchemaError,
    cell_name,
    check_labels,
    column_of,
    has_column,
    listed,
    n_rows,
)
from fieldguide.inference.data.storage import DenseStore

UNLABELLED = -1
"""Code of a cell without a label."""


@dataclass(frozen=True)
class Labels(Field):
    """A categorical column that is known for some cells; each cell's code, int64 [N], and -1 where it is missing.

    Missing are NaN, None, and -1 in a column of integers. Numbers that are whole count as integers, so that a column
    that became floating point through its missing values has the labels it had before. New data may lack the column:
    then no cell is labelled.
    """

    expandable = True

    def learn(self, name, data, place):
        labels, known = _labels(column_of(name, data, place))
        used = pd.unique(labels[known])
        if len(used) < 2:
            few = f"only {used[0]!r}" if len(used) else "no label at all"
            raise SchemaError(f"field '{name}': column {place!r} has {few}; at least two classes are needed")
        check_labels(name, place, list(used))
        return {"categories": [str(v) for v in sorted(used, key=_in_order)]}

    def read(self, name, data, place, state):
        if not has_column(data, place):
            return DenseStore(np.full(n_rows(data), UNLABELLED, dtype=np.int64))
        column = column_of(name, data, place)
        labels, known = _labels(column)
        codes = np.where(known, label_codes(f"field '{name}'", column, state["categories"]), UNLABELLED)
        unseen = np.flatnonzero(known & (codes < 0))
        if unseen.size:
            raise SchemaError(
                f"field '{name}': label {str(labels[unseen[0]])!r} of cell {cell_name(data, unseen[0])!r} was not in "
                f"the training data ({unseen.size} cells); known: {', '.join(state['categories'])}. Leave the label of "
                "a cell of an unknown class missing"
            )
        return DenseStore(codes)

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"])}


@dataclass(frozen=True)
class Annotations(Labels):
    """Labels by one annotator or several, a column each; codes int64 [N, A], and -1 where an annotator gave no label.

    The classes are those that occur, by any annotator; categories of a column that no cell has are no classes. Missing
    is what is missing in `Labels`. New data may lack columns.
    """

    def learn(self, name, data, place):
        columns, values = listed(place), []
        if len(set(columns)) < len(columns):
            raise SchemaError(f"field '{name}': a column is given twice among {', '.join(columns)}")
        for column in columns:
            labels, known = _labels(column_of(name, data, column))
            used = pd.unique(labels[known])
            if len(used) < 2:
                few = f"only {used[0]!r}" if len(used) else "no label at all"
                raise SchemaError(
                    f"field '{name}': column {column!r} has {few}; an annotator must have used at least two classes"
                )
            values.append(used)
        classes = sorted({str(v) for used in values for v in used}, key=_in_order)
        check_labels(name, ", ".join(columns), classes)
        return {"categories": classes, "annotators": columns}

    def read(self, name, data, place, state):
        read = super().read
        return DenseStore(np.stack([read(name, data, c, state).values.numpy() for c in listed(place)], 1))

    def sizes(self, name, state):
        return super().sizes(name, state) | {"n_annotators": len(state["annotators"])}


@dataclass(frozen=True)
class Supervision(Category):
    """A categorical column that training is told, and new data need not have; each cell's code, int64 [N].

    Every training cell has one. New data may lack the column or values of it, and have categories that training did not
    see (another laboratory, a perturbation of a later screen): their code is -1.
    """

    def read(self, name, data, place, state):
        if not has_column(data, place):
            return DenseStore(np.full(n_rows(data), UNLABELLED, dtype=np.int64))
        column = column_of(name, data, place)
        codes = label_codes(f"field '{name}'", column, state["categories"])
        return DenseStore(np.where(column.notna().to_numpy(), codes, UNLABELLED))


def _labels(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Labels as text, and which cells have one."""
    labels, known = label_texts(column), column.notna().to_numpy()
    if _all_whole(column[known]):
        known = known & (labels != str(UNLABELLED))
    return labels, known


def _all_whole(column: pd.Series) -> bool:
    """Whether the labels are whole numbers, of whatever type."""
    return all(isinstance(v, int | float | np.number) and float(v).is_integer() for v in pd.unique(column))


def _in_order(label: str) -> tuple[float, str]:
    """Numbers by size, and before text."""
    try:
        return float(label), ""
    except ValueError:
        return float("inf"), label
