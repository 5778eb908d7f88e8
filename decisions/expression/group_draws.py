"""Posterior draws of the expression of a group of cells, streamed: the mean over cells, or single random cells.

All randomness of a group comes from one generator that is seeded by ``seed`` and the group's first row. Two groups
without a common cell have independent draws, and the draws of a group do not depend on what it is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fieldguide.decisions.draws import OBSERVED, choose, choose_for, decoded, proportions, shares
from fieldguide.decisions.expression.counts import expected_counts, sizes
from fieldguide.decisions.expression.level_error import Totals
from fieldguide.decisions.expression.subjects import UnitWeights, concentration
from fieldguide.inference.posterior import Posterior, Values
from fieldguide.inference.weights.weigh import Weights

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
    scale: str = "proportions",
    redrawn: Sequence[str] = (),
) -> Draws:
    """Draw the mean expression of a population of cells of which the group is a sample.

    In each draw every cell has one posterior draw of ``rho`` and a random weight: Dirichlet over the cells (Bayesian
    bootstrap, with `fieldguide.decisions.expression.subjects.concentration`), or the given ones. Cells count by their
    size (total count, or size factor), so that the mean is a gene's share of all molecules of the group: where a strong
    gene varies, the shares of the others in single cells depend on the noise of the total, their pooled share does not.

    Parameters
    ----------
    posterior : Posterior
    rows : array of int [n]
    draws : int
        R.
    batches : sequence of int, optional
        Decode every cell under each of these batches and average; under its own by default.
    weights : UnitWeights, optional
        Such as those of `fieldguide.decisions.expression.subjects.subject_weights`.
    scale : {"proportions", "counts"}
        Shares of all molecules, or counts per cell (shares times the mean size of the cells).
    redrawn : sequence of str
        Latent sites that are drawn anew from their prior.
    """
    rng = _stream(seed, rows)
    total, norm, means, start = 0.0, np.zeros(draws), 0.0, 0
    log_weights, totals = [], []
    for seen, w, values in posterior.chunks(rows):
        if weights is None:
            size = rng.standard_gamma(concentration(len(rows)), (draws, len(seen)), dtype=np.float32)
        else:
            size = weights.values[:, weights.codes[start : start + len(seen)]].astype(np.float32)
        mass = size * sizes(posterior, seen).astype(np.float32)
        share = shares(w, estimator)
        rho = proportions(posterior, seen, w, values, batches, redrawn)
        flat = choose(share, draws, rng) * len(seen) + torch.arange(len(seen), device=rho.device)
        per_cell = torch.from_numpy(mass).to(rho)
        part = embedding_bag(flat, rho.flatten(0, 1), per_sample_weights=per_cell, mode="sum")
        total = total + part.double().cpu().numpy()
        norm += (mass if scale == "proportions" else size).sum(1, dtype=np.float64)
        means = means + _both_sums(w, rho)
        if OBSERVED in posterior.dataset.stores:
            totals.append(_totals(posterior, seen, share, values))
        log_weights.append(w.log_w.double().cpu().numpy())
        start += len(seen)
    return Draws(
        (total / norm[:, None]).astype(np.float32),
        np.concatenate(log_weights, 1),
        means / start,
        Totals(*(sum(parts) for parts in zip(*totals, strict=True))) if totals else None,
    )


def cell_draws(
    posterior: Posterior,
    rows: np.ndarray,
    draws: int,
    seed: int,
    estimator: str = "snis",
    batches: Sequence[int] | None = None,
    scale: str = "proportions",
    redrawn: Sequence[str] = (),
) -> Draws:
    """Draw the expression of random cells of the group: R times a cell, and one posterior draw of its ``rho``.

    Cells are taken in random order, all equally often (but for one time). With ``batches``, draw r is decoded under
    batch r modulo their number, so that equal draws of two groups have equal batches. With the scale "counts",
    ``rho`` is multiplied by the observed size of the cell.
    """
    rng = _stream(seed, rows)
    cell = rng.permuted(np.tile(rows, (-(-draws // len(rows)), 1)), axis=1).ravel()[:draws]
    codes = None if batches is None else np.resize(np.asarray(batches, dtype=np.int64), draws)
    rho, log_weights, means = None, [], 0.0
    for seen, w, values in posterior.chunks(np.unique(cell)):
        mine = np.flatnonzero(np.isin(cell, seen))
        where = torch.from_numpy(np.searchsorted(seen, cell[mine])).to(w.log_w.device)
        chosen = choose_for(shares(w, estimator), where, rng)
        table = proportions(posterior, seen, w, values)
        if codes is None and not redrawn:
            found = table[chosen, where]
        else:
            latents = {name: values[name][chosen, where][None] for name in w.latents}
            overrides = {} if codes is None else {"batch": codes[mine]}
            found = decoded(posterior, cell[mine], latents, overrides, redrawn)[0]
        if rho is None:
            rho = np.empty((draws, found.shape[-1]), dtype=np.float32)
        rho[mine] = found.float().cpu().numpy()
        if scale == "counts":
            rho[mine] *= sizes(posterior, cell[mine])[:, None]
        means = means + _both_sums(w, table)
        log_weights.append(w.log_w.double().cpu().numpy())
    visited = np.concatenate(log_weights, 1)
    return Draws(rho, visited, means / visited.shape[1])


def _both_sums(weights: Weights, rho: Tensor) -> np.ndarray:
    """Sums over cells [2, G] of the means over particles of ``rho`` [S, b, G], weighted and plain."""
    both = torch.stack((shares(weights, "snis"), shares(weights, "plugin"))).to(rho.dtype)
    return (both.flatten(1) @ rho.flatten(0, 1)).double().cpu().numpy()


def _totals(posterior: Posterior, rows: np.ndarray, share: Tensor, values: Values) -> tuple[np.ndarray, ...]:
    """Observed counts, expected counts and squared residuals [G], summed over the cells of a chunk."""
    expected = expected_counts(posterior, rows, share, values).double()
    counts = posterior.dataset.stores[OBSERVED].gather(rows).to(expected)
    sums = (counts.sum(0), expected.sum(0), ((counts - expected) ** 2).sum(0))
    return tuple(total.cpu().numpy() for total in sums)


def _stream(seed: int, rows: np.ndarray) -> np.random.Generator:
    return np.random.default_rng([seed, int(rows[0])])
