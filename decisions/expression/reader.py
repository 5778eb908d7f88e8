"""The one reader of expression: what a posterior says of the expression of some cells, chunk by chunk.

Differential expression, denoising and predictive checks all read from here. A chunk knows its rows and gives each of
its quantities when it is asked for, so that several groups can be fed from the same chunks.

A program whose expression is read has a deterministic site ``rho``, each gene's proportion of the cell's expression;
for counts, an observed site ``counts``; where zero inflation depends on quality, a site ``kept``, by which expected
counts are multiplied. Shapes: S particles, b cells of the chunk, G genes, R draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fieldguide.decisions.draws import ESTIMATORS, shares
from fieldguide.decisions.expression.conditions import Conditions, read_conditions
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.posterior import Posterior, Values
from fieldguide.inference.program import Batch
from fieldguide.inference.weights.weigh import Weights

SITE, COUNTS, KEPT = "rho", "counts", "kept"
REDRAWS = 10
"""Draws of the nuisance sites, over which expression is averaged for each draw of the others (Lopez et al. 2018)."""
BLOCK = 2048
"""Cells whose data are read at a time, where no draws are."""


@dataclass(frozen=True)
class Observed:
    """Per gene [G]: mean count per cell, and share of cells with any."""

    mean: np.ndarray
    nonzero: np.ndarray


@dataclass(frozen=True)
class Expression:
    """Expression as a posterior has it.

    Attributes
    ----------
    posterior : Posterior
    estimator : {"snis", "plugin"}
        Whether draws count by their importance weights, or equally.
    conditions : Conditions
        What the cells are decoded under.
    """

    posterior: Posterior
    estimator: str
    conditions: Conditions

    @property
    def as_is(self) -> bool:
        """Whether every cell is taken under its own conditions."""
        return self.conditions.batches is None and not self.conditions.redrawn

    def chunks(self, rows: np.ndarray) -> Iterator["Chunk"]:
        """Visit cells [n] in chunks, in their order."""
        for some, weights, values in self.posterior.chunks(rows):
            yield Chunk(self, some, weights, values)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return the observed size of each cell [n]: its size factor, or total count, or one when there is neither."""
        dataset, starts = self.posterior.dataset, range(0, len(rows), BLOCK)
        return np.concatenate([_sizes(dataset.batch(rows[start : start + BLOCK])) for start in starts])

    def observed(self, rows: np.ndarray) -> Observed | None:
        """Summarise the raw counts of some cells; None when the data has none."""
        if COUNTS not in self.posterior.dataset.stores:
            return None
        total, some = 0.0, 0.0
        for start in range(0, len(rows), BLOCK):
            counts = self.posterior.dataset.stores[COUNTS].gather(rows[start : start + BLOCK])
            total = total + counts.double().sum(0).cpu().numpy()
            some = some + (counts > 0).double().sum(0).cpu().numpy()
        return Observed(total / len(rows), some / len(rows))


def read_expression(
    posterior: Posterior,
    estimator: str = "snis",
    batch: bool | str | Sequence | None = False,
    nuisance: bool | str | Sequence[str] | None = False,
    argument: str = "batch",
) -> Expression:
    """Return the reader of a posterior's expression, by default of the cells as they are.

    Parameters
    ----------
    posterior : Posterior
    estimator : {"snis", "plugin"}
    batch, nuisance, argument
        See `fieldguide.decisions.expression.conditions.read_conditions`.

    Raises
    ------
    ValueError
        For an unknown estimator, batch or site.
    """
    one_of("estimator", estimator, ESTIMATORS)
    return Expression(posterior, estimator, read_conditions(posterior, batch, nuisance, argument))


@dataclass(frozen=True)
class Chunk:
    """Some cells of an `Expression`: their rows [b], weights, and the values of all sites [S, b, ...]."""

    source: Expression
    rows: np.ndarray
    weights: Weights
    values: Values

    @cached_property
    def share(self) -> Tensor:
        """Share of each particle [S, b], float64, by the estimator."""
        return shares(self.weights, self.source.estimator)

    @property
    def log_weights(self) -> np.ndarray:
        """Log importance weights, float64 [S, b]."""
        return self.weights.log_w.double().cpu().numpy()

    @cached_property
    def fields(self) -> Batch:
        """The data of the cells."""
        return self.source.posterior.dataset.batch(self.rows)

    @property
    def counts(self) -> Tensor:
        """Observed counts [b, G]."""
        return self.fields[COUNTS]

    @property
    def sizes(self) -> np.ndarray:
        """Observed size of each cell [b], see `Expression.sizes`."""
        return _sizes(self.fields)

    @property
    def library(self) -> Tensor:
        """Factor between proportions and expected counts: [S, b] when it is latent, else [1, b].

        It is the latent site ``log_library``, or the field ``size_factor``, or else the total count of the cell.
        """
        if "log_library" in self.values:
            return self.values["log_library"].exp()
        size = _size(self.fields)
        if size is None:
            raise ValueError(
                f"expected counts need a site 'log_library', or a field 'size_factor' or '{COUNTS}'; "
                f"the data has {', '.join(sorted(self.fields))}"
            )
        return size.reshape(1, -1).to(next(iter(self.values.values())).device)

    @property
    def own_rho(self) -> Tensor:
        """Proportions [S, b, G] of the cells as they are."""
        if SITE not in self.values:
            raise ValueError(
                f"the program has no deterministic site '{SITE}' (expression as proportions); it has "
                f"{', '.join(sorted(self.values))}"
            )
        return self.values[SITE]

    @cached_property
    def rho(self) -> Tensor:
        """Proportions [S, b, G], averaged over decodings under the conditions."""
        rho, batches = self.own_rho, self.source.conditions.batches
        if self.source.as_is:
            return rho
        latents = {name: self.values[name] for name in self.weights.latents}
        overrides = [{}] if batches is None else [{"batch": int(code)} for code in batches]
        decoded = [self._decode(self.rows, latents, fields) for fields in overrides]
        return sum(decoded[1:], start=decoded[0]) / len(decoded)

    def sum_of_means(self, rho: Tensor) -> np.ndarray:
        """Sums over the cells [2, G] of the means over particles of ``rho`` [S, b, G], weighted and plain."""
        both = torch.stack((shares(self.weights, "snis"), shares(self.weights, "plugin"))).to(rho.dtype)
        return (both.flatten(1) @ rho.flatten(0, 1)).double().cpu().numpy()

    @property
    def expected_counts(self) -> Tensor:
        """Posterior mean of library * rho in the cells' own batches, [b, G]."""
        weighted = self.share * self.library
        expected = self.own_rho * self.values[KEPT] if KEPT in self.values else self.own_rho
        return torch.einsum("sb,sbg->bg", weighted.to(expected.dtype), expected)

    @property
    def totals(self) -> tuple[np.ndarray, ...] | None:
        """Sums over the cells of counts, expected counts and squared residuals, each [G]; None without counts."""
        if COUNTS not in self.fields:
            return None
        expected = self.expected_counts.double()
        counts = self.counts.to(expected)
        sums = (counts.sum(0), expected.sum(0), ((counts - expected) ** 2).sum(0))
        return tuple(total.cpu().numpy() for total in sums)

    def choose(self, draws: int, rng: np.random.Generator) -> Tensor:
        """Return indices of particles [R, b], each drawn with the probability of its share."""
        cells = torch.arange(len(self.rows), device=self.share.device).repeat(draws)
        return self._choose_for(cells, rng).view(draws, -1)

    def draw(self, places: np.ndarray, batches: np.ndarray | None, rng: np.random.Generator) -> Tensor:
        """Return one posterior draw of ``rho`` [R, G] for each of the given places of the chunk [R], which may repeat.

        Parameters
        ----------
        places : array of int [R]
        batches : array of int [R], optional
            The batch to decode each of them under; its own by default.
        rng : Generator
        """
        cells = torch.from_numpy(places).to(self.share.device)
        particles = self._choose_for(cells, rng)
        if self.source.as_is:
            return self.own_rho[particles, cells]
        latents = {name: self.values[name][particles, cells][None] for name in self.weights.latents}
        return self._decode(self.rows[places], latents, {} if batches is None else {"batch": batches})[0]

    def replicate(self, draws: int) -> Tensor:
        """Return counts drawn anew for the same cells [R, b, G], each from one posterior draw of the cell's latents."""
        rng = np.random.default_rng([self.source.posterior.seed, int(self.rows[0])])
        particles = self.choose(draws, rng)
        cells = torch.arange(len(self.rows), device=particles.device)
        latents = {name: self.values[name][particles, cells] for name in self.weights.latents}
        sites = self.source.posterior.decode(self.rows, latents, replicate=True)
        if COUNTS not in sites:
            raise ValueError(f"the program has no observed site '{COUNTS}'; it has {', '.join(sorted(sites))}")
        return sites[COUNTS]

    def _choose_for(self, cells: Tensor, rng: np.random.Generator) -> Tensor:
        """Index of one particle for each of the given places of the chunk [R], which may repeat.

        By inversion, for all at once: the cumulated shares of cell i fill the interval from i to i + 1.
        """
        particles = len(self.share)
        steps = self.share.cumsum(0).T
        steps = steps / steps[:, -1:] + torch.arange(len(steps), device=steps.device)[:, None]
        uniform = torch.from_numpy(rng.random(len(cells))).to(steps)
        place = torch.searchsorted(steps.flatten(), cells + uniform, right=True) - cells * particles
        return place.clamp(0, particles - 1)

    def _decode(self, rows: np.ndarray, latents: Mapping[str, Tensor], fields: Mapping[str, Any]) -> Tensor:
        """``rho`` [S, b, G] at these latents [S, b, ...]; the mean over `REDRAWS` draws of the redrawn sites."""
        posterior, redrawn = self.source.posterior, self.source.conditions.redrawn
        latents = {name: value for name, value in latents.items() if name not in redrawn}
        total = posterior.decode(rows, latents, fields)[SITE]
        for repeat in range(1, REDRAWS if redrawn else 1):
            total = total + posterior.decode(rows, latents, fields, repeat=repeat)[SITE]
        return total / REDRAWS if redrawn else total


def _size(fields: Batch) -> Tensor | None:
    return fields.get("size_factor", fields[COUNTS].sum(-1) if COUNTS in fields else None)


def _sizes(fields: Batch) -> np.ndarray:
    size = _size(fields)
    return np.ones(len(fields["index"])) if size is None else size.double().reshape(-1).cpu().numpy()
