"""Minibatches of a few labels with several cells of each, for programs in which the cells of a minibatch meet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldguide.inference.checks.arguments import checked_flag, checked_int, set_fields


@dataclass(frozen=True)
class Balanced:
    """How minibatches are drawn: labels first, then as many cells of each.

    A label is drawn at most once in a minibatch; where it has fewer cells than are asked for, all of them are taken.
    Where there are too few labels to fill a minibatch, more cells of each are. An epoch has as many minibatches as one
    of shuffled cells; some cells come twice in it, and others not at all.

    Attributes
    ----------
    by : str or sequence of str
        Fields of the program with one code a cell. Of several, each combination is a label.
    cells : int
        The least of each label in a minibatch, at least 2, so that none is alone.
    even : bool
        Whether labels are drawn evenly; otherwise in proportion to their cells.

    Examples
    --------
    >>> codes = np.array([[0], [0], [0], [1], [1], [2], [2]])
    >>> [len(rows) for rows in Balanced("label", 2).draw(codes, 4, np.random.default_rng(0))]
    [4, 4]
    """

    by: Any = "label"
    cells: Any = 8
    even: Any = False

    def __post_init__(self) -> None:
        names = (self.by,) if isinstance(self.by, str) else self.by
        if not isinstance(names, Iterable) or not list(names):
            raise TypeError(f"by is a field of the program or a list of them, not {self.by!r}")
        set_fields(
            self,
            by=tuple(str(name) for name in names),
            cells=checked_int("cells", self.cells, 2),
            even=checked_flag("even", self.even),
        )

    def draw(self, codes: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Return the rows of each minibatch of an epoch.

        Parameters
        ----------
        codes : int array [N, F]
            Of the fields.
        size : int
            Cells in a minibatch, at least those of one label.
        generator
        """
        labels = np.unique(codes, axis=0, return_inverse=True)[1].ravel()
        order = np.argsort(labels, kind="stable")
        inside = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        counts = np.array([len(rows) for rows in inside])
        chance = np.full(len(inside), 1 / len(inside)) if self.even else counts / counts.sum()
        number = min(max(size // self.cells, 1), len(inside))
        each = max(self.cells, size // number)
        batches = []
        for _ in range(max(1, -(-len(codes) // size))):
            chosen = generator.choice(len(inside), number, replace=False, p=chance)
            rows = [generator.choice(inside[k], min(each, counts[k]), replace=False) for k in chosen]
            batches.append(np.concatenate(rows))
        return batches
