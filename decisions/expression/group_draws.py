"""Posterior draws of the expression of a group of cells, streamed: the mean over cells, or single random cells.

All randomness of a group comes from one generator that is seeded by ``seed`` and the group's first row. Two groups
without a common cell have independent draws, and the draws of a group do not depend on what it is compared with.

A group takes chunks of its cells as the reader gives them, and at the end says its draws. Shapes: R draws, n cells of
the group, G genes, S particles.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from fieldguide.decisions.cells import Group
from fieldguide.decisions.expression.level_error import Totals
from fieldguide.decisions.expression.reader import Chunk, Expression, Observed
from fieldguide.decisions.expression.subjects import UnitWeights, concentration, subject_weights

LEAST = 3
"""Cells that a mean needs: with fewer, the spread between cells cannot be told."""


@dataclass
class Draws:
    """Draws of the expression of one group.

    Attributes
    ----------
    rho : ndarray float32 [R, G]
        In the scale that was asked for.
    log_weights : ndarray float64 [S, n]
        Importance weights of the cells that were visited.
    means : ndarray float64 [2, G]
        Mean over these cells of the posterior mean, with the weights and without.
    observed : Observed or None
        Summary of the group's raw counts, where the data has counts.
    totals : Totals or None
        Observed and expected counts of the group, where the data has counts; not for random cells.
    """

    rho: np.ndarray
    log_weights: np.ndarray
    means: np.ndarray
    observed: Observed | None = None
    totals: Totals | None = None


def group_draws(
    expression: Expression, groups: tuple[Group, Group], unit: str, scale: str, draws: int, seed: int
) -> list[Draws]:
    """Draw the expression of each group.

    Parameters
    ----------
    expression : Expression
    groups : pair of Group
    unit : {"cells", "group"} or obs column of subjects
        Single random cells, or the mean of a population of which the cells, or the subjects, are a sample.
    scale : {"proportions", "counts"}
        Shares of all molecules, or counts per cell.
    draws : int
        R.
    seed : int

    Raises
    ------
    ValueError
        For a group too small for its unit, and as `fieldguide.decisions.expression.subjects.subject_weights`.
    """
    if unit == "cells":
        return [RandomCells(expression, group, scale, draws, seed).draw() for group in groups]
    for group in groups:
        if len(group.rows) < LEAST:
            raise ValueError(
                f"{group.name!r} has {len(group.rows)} cell(s): a population's mean needs at least {LEAST}; "
                "unit='cells' compares the cells themselves"
            )
    shared = (None, None) if unit == "group" else subject_weights(expression, unit, groups, draws, seed, scale)
    pairs = zip(groups, shared, strict=True)
    return [Population(expression, group, scale, draws, seed, weights).draw() for group, weights in pairs]


class Population:
    """Draws of the mean expression of a population of cells of which the group is a sample.

    In each draw every cell has one posterior draw of ``rho`` and a random weight: Dirichlet over the cells (Bayesian
    bootstrap, with `fieldguide.decisions.expression.subjects.concentration`), or the given ones. Cells count by their
    size (total count, or size factor), so that the mean is a gene's share of all molecules of the group: where a strong
    gene varies, the shares of the others in single cells depend on the noise of the total, their pooled share does not.
    In the scale "counts" it is the mean count per cell: shares times the mean size of the cells.
    """

    def __init__(
        self,
        expression: Expression,
        group: Group,
        scale: str,
        draws: int,
        seed: int,
        weights: UnitWeights | None = None,
    ) -> None:
        self.expression, self.rows, self.scale, self.draws, self.weights = expression, group.rows, scale, draws, weights
        self.rng = _stream(seed, group)
        self.visited, self.sum, self.norm, self.means = 0, 0.0, np.zeros(draws), 0.0
        self.log_weights: list[np.ndarray] = []
        self.totals: list[tuple[np.ndarray, ...]] = []

    def draw(self) -> Draws:
        """Read all cells of the group."""
        for chunk in self.expression.chunks(self.rows):
            self.take(chunk)
        return Draws(
            (self.sum / self.norm[:, None]).astype(np.float32),
            np.concatenate(self.log_weights, 1),
            self.means / self.visited,
            self.expression.observed(self.rows),
            Totals(*(sum(parts) for parts in zip(*self.totals, strict=True))) if self.totals else None,
        )

    def take(self, chunk: Chunk) -> None:
        """Add the next cells of the group."""
        weight, count = self._weights(len(chunk.rows)), len(chunk.rows)
        particles, rho, sizes, totals = chunk.choose(self.draws, self.rng), chunk.rho, chunk.sizes, chunk.totals
        mass = weight * sizes.astype(np.float32)
        flat = particles * count + torch.arange(count, device=rho.device)
        per_cell = torch.from_numpy(mass).to(rho)
        part = embedding_bag(flat, rho.flatten(0, 1), per_sample_weights=per_cell, mode="sum")
        self.sum = self.sum + part.double().cpu().numpy()
        self.norm += (mass if self.scale == "proportions" else weight).sum(1, dtype=np.float64)
        self.means = self.means + chunk.sum_of_means(rho)
        self.totals += [] if totals is None else [totals]
        self.log_weights.append(chunk.log_weights)
        self.visited += count

    def _weights(self, count: int) -> np.ndarray:
        """Weights of the next cells [R, b]."""
        if self.weights is None:
            return self.rng.standard_gamma(concentration(len(self.rows)), (self.draws, count), dtype=np.float32)
        return self.weights.values[:, self.weights.codes[self.visited : self.visited + count]].astype(np.float32)


class RandomCells:
    """Draws of the expression of random cells of the group: R times a cell, and one posterior draw of its ``rho``.

    Cells are taken in random order, all equally often (but for one time). Under several batches, draw r is decoded
    under batch r modulo their number, so that equal draws of two groups have equal batches. With the scale "counts",
    ``rho`` is multiplied by the observed size of the cell.
    """

    def __init__(self, expression: Expression, group: Group, scale: str, draws: int, seed: int) -> None:
        self.expression, self.rows, self.scale = expression, group.rows, scale
        self.rng, batches = _stream(seed, group), expression.conditions.batches
        repeated = np.tile(group.rows, (-(-draws // len(group.rows)), 1))
        self.cells = self.rng.permuted(repeated, axis=1).ravel()[:draws]
        self.batches = None if batches is None else np.resize(np.asarray(batches, dtype=np.int64), draws)
        self.rho, self.means = np.empty((draws, 0), dtype=np.float32), 0.0
        self.log_weights: list[np.ndarray] = []

    def draw(self) -> Draws:
        """Read the cells that were drawn."""
        for chunk in self.expression.chunks(np.unique(self.cells)):
            self.take(chunk)
        visited = np.concatenate(self.log_weights, 1)
        return Draws(self.rho, visited, self.means / visited.shape[1], self.expression.observed(self.rows))

    def take(self, chunk: Chunk) -> None:
        """Fill the draws that are of these cells."""
        mine = np.flatnonzero(np.isin(self.cells, chunk.rows))
        places = np.searchsorted(chunk.rows, self.cells[mine])
        rho = chunk.draw(places, None if self.batches is None else self.batches[mine], self.rng).float().cpu().numpy()
        if not self.log_weights:
            self.rho = np.empty((len(self.cells), rho.shape[-1]), dtype=np.float32)
        self.rho[mine] = rho
        if self.scale == "counts":
            self.rho[mine] *= chunk.sizes[places][:, None]
        self.means = self.means + chunk.sum_of_means(chunk.own_rho)
        self.log_weights.append(chunk.log_weights)


def _stream(seed: int, group: Group) -> np.random.Generator:
    return np.random.default_rng([seed, int(group.rows[0])])
