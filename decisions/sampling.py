"""Posterior draws of the expression of a group of cells, streamed: the mean over cells, or single random cells.

A program whose posterior is decided on has a deterministic site ``rho``: the proportion of each gene in the cell's
expression, [S, b, G]. Draws come from self-normalised importance weights ("snis": a particle is chosen with the
probability of its weight) or from the guide as it is ("plugin").

All randomness of a group comes from one generator that is seeded by ``seed`` and the group's first row. Two groups
without a common cell have independent draws, and the draws of a group do not depend on what it is compared with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fieldguide.decisions.counts import FIELD, mean_counts
from fieldguide.decisions.levels import Totals
from fieldguide.decisions.subjects import UnitWeights, concentration
from fieldguide.inference.posterior import Posterior, Values
from fieldguide.inference.weights import Weights

SITE = "rho"
LEAST = 3
"""Cells that a mean needs: with fewer, the spread between cells cannot be told."""


@dataclass
class Draws:
    """Draws of the expression of one group.

    Attributes
    ----------
    rho : ndarray float64 [R, G]
    log_weights : ndarray float64 [S, n]
        Importance weights of the cells that were visited.
    means : ndarray float64 [2, G]
        Mean over these cells of the posterior mean, with the weights and without.
    totals : Totals or None
        Observed and expected counts of the group, where the data has counts.
    """

    rho: np.ndarray
    log_weights: np.ndarray
    means: np.ndarray
    totals: Totals | None = None


def mean_draws(
    posterior: Posterior,
    rows: np.ndarray,
    draws: int,
    seed: int,
    estimator: str = "snis",
    batches: Sequence[int] | None = None,
    weights: UnitWeights | None = None,
) -> Draws:
    """Draw the mean proportions of a population of cells of which the group is a sample.

    In each draw every cell has one posterior draw of ``rho`` and a random weight: Dirichlet over the cells (Bayesian
    bootstrap, with :func:`fieldguide.decisions.subjects.concentration`), or the given ones.

    Parameters
    ----------
    posterior : Posterior
    rows : array of int [n]
    draws : int
        R.
    batches : sequence of int, optional
        Decode every cell under each of these batches and average; under its own by default.
    weights : UnitWeights, optional
        Such as those of :func:`fieldguide.decisions.subjects.subject_weights`.
    """
    rng = _stream(seed, rows)
    total, norm, log_weights, means, totals, start = 0.0, np.zeros(draws), [], 0.0, None, 0
    counted = FIELD in posterior.dataset.stores
    for seen, w, values in posterior.chunks(rows):
        stop = start + len(seen)
        if weights is None:
            share = rng.standard_gamma(concentration(len(rows)), (draws, len(seen)), dtype=np.float32)
        else:
            share = weights.values[:, weights.codes[start:stop]].astype(np.float32)
        chosen = _choose(w, draws, rng, estimator)
        table = _rho(posterior, seen, w, values, batches)
        flat = chosen * len(seen) + torch.arange(len(seen), device=chosen.device)
        per_cell = torch.from_numpy(share).to(table)
        part = embedding_bag(flat, table.reshape(-1, table.shape[-1]), per_sample_weights=per_cell, mode="sum")
        total = total + part.double().cpu().numpy()
        norm += share.sum(1, dtype=np.float64)
        means = means + _both_sums(w, table)
        if counted:
            here = _totals(posterior, seen, w, values, estimator)
            totals = here if totals is None else totals + here
        log_weights.append(w.log_w.double().cpu().numpy())
        start = stop
    return Draws(total / norm[:, None], np.concatenate(log_weights, 1), means / start, totals)


def cell_draws(
    posterior: Posterior,
    rows: np.ndarray,
    draws: int,
    seed: int,
    estimator: str = "snis",
    batches: Sequence[int] | None = None,
) -> Draws:
    """Draw the proportions of random cells of the group: R times a cell, and one posterior draw of its ``rho``.

    Cells are taken in random order, all equally often (but for one time). With ``batches``, draw r is decoded under
    batch r modulo their number, so that equal draws of two groups have equal batches.
    """
    rng = _stream(seed, rows)
    cycles = [rng.permutation(rows) for _ in range(-(-draws // len(rows)))]
    cell = np.concatenate(cycles)[:draws]
    codes = None if batches is None else np.resize(np.asarray(batches, dtype=np.int64), draws)
    rho, log_weights, means = None, [], 0.0
    for seen, w, values in posterior.chunks(np.unique(cell)):
        mine = np.flatnonzero(np.isin(cell, seen))
        where = torch.from_numpy(np.searchsorted(seen, cell[mine])).to(w.log_w.device)
        chosen = _choose(w, 1, rng, estimator, where)[0]
        table = values[_site(values)]
        if codes is None:
            found = table[chosen, where]
        else:
            latents = {name: values[name][chosen, where][None] for name in w.latents}
            found = posterior.decode(cell[mine], latents, {"batch": codes[mine]})[SITE][0]
        if rho is None:
            rho = np.empty((draws, found.shape[-1]))
        rho[mine] = found.double().cpu().numpy()
        means = means + _both_sums(w, table)
        log_weights.append(w.log_w.double().cpu().numpy())
    visited = np.concatenate(log_weights, 1)
    return Draws(rho, visited, means / visited.shape[1])


def normalised(weights: Weights, estimator: str) -> Tensor:
    """Return weights of the particles [S, b] that sum to one: importance weights ("snis"), or equal ("plugin")."""
    share = torch.softmax(weights.log_w.double(), 0)
    return torch.full_like(share, 1 / len(share)) if estimator == "plugin" else share


def averaged(posterior: Posterior, rows: np.ndarray, batches: Sequence[int] | None) -> Iterator:
    """Visit cells in chunks: yield (rows [b], weights, values, ``rho`` [S, b, G] averaged over the batches)."""
    for seen, w, values in posterior.chunks(rows):
        yield seen, w, values, _rho(posterior, seen, w, values, batches)


def _rho(
    posterior: Posterior, rows: np.ndarray, weights: Weights, values: Values, batches: Sequence[int] | None
) -> Tensor:
    if batches is None:
        return values[_site(values)]
    latents = {name: values[name] for name in weights.latents}
    total = sum(posterior.decode(rows, latents, {"batch": int(code)})[SITE] for code in batches)
    return total / len(batches)


def _choose(
    weights: Weights, draws: int, rng: np.random.Generator, estimator: str, where: Tensor | None = None
) -> Tensor:
    """Indices of particles [R, b] (or [R, len(where)], for cells that may repeat), by inversion."""
    steps = normalised(weights, estimator).cumsum(0).T.contiguous()
    steps = steps if where is None else steps[where]
    uniform = torch.from_numpy(rng.random((len(steps), draws))).to(steps)
    return torch.searchsorted(steps, uniform * steps[:, -1:], right=True).clamp(max=steps.shape[1] - 1).T


def _both_sums(weights: Weights, rho: Tensor) -> np.ndarray:
    """Sums over cells [2, G] of the means over particles of ``rho`` [S, b, G], weighted and plain."""
    both = torch.stack((normalised(weights, "snis"), normalised(weights, "plugin"))).to(rho.dtype)
    return (both.flatten(1) @ rho.flatten(0, 1)).double().cpu().numpy()


def _totals(posterior: Posterior, rows: np.ndarray, weights: Weights, values: Values, estimator: str) -> Totals:
    share = normalised(weights, estimator)
    expected = mean_counts(posterior, rows, share, values, values[SITE]).double()
    counts = posterior.dataset.stores[FIELD].gather(rows).to(expected)
    sums = (counts.sum(0), expected.sum(0), ((counts - expected) ** 2).sum(0))
    return Totals(*(total.cpu().numpy() for total in sums))


def _stream(seed: int, rows: np.ndarray) -> np.random.Generator:
    return np.random.default_rng([seed, int(rows[0])])


def _site(values: Values) -> str:
    if SITE not in values:
        raise ValueError(
            f"the program has no deterministic site '{SITE}' (expression as proportions); it has "
            f"{', '.join(sorted(values))}"
        )
    return SITE
