"""The observed counts behind a group: plain summaries for the reader, and what the model expected of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fieldguide.decisions.draws import KEPT, OBSERVED, SITE
from fieldguide.inference.posterior import Posterior, Values

BLOCK = 2048


@dataclass(frozen=True)
class Observed:
    """Per gene [G]: mean count per cell, and share of cells with any."""

    mean: np.ndarray
    nonzero: np.ndarray


def observed(posterior: Posterior, rows: np.ndarray) -> Observed | None:
    """Summarise the raw counts of some cells; None when the data has no field ``counts``."""
    if OBSERVED not in posterior.dataset.stores:
        return None
    total, some = 0.0, 0.0
    for start in range(0, len(rows), BLOCK):
        counts = posterior.dataset.stores[OBSERVED].gather(rows[start : start + BLOCK])
        total = total + counts.double().sum(0).cpu().numpy()
        some = some + (counts > 0).double().sum(0).cpu().numpy()
    return Observed(total / len(rows), some / len(rows))


def sizes(posterior: Posterior, rows: np.ndarray) -> np.ndarray:
    """Return the observed size of each cell [n]: its size factor, or total count, or one when the data has neither."""
    parts = []
    for start in range(0, len(rows), BLOCK):
        batch = posterior.dataset.batch(rows[start : start + BLOCK])
        found = batch.get("size_factor", batch[OBSERVED].sum(-1) if OBSERVED in batch else None)
        parts.append(np.ones(len(batch["index"])) if found is None else found.double().reshape(-1).cpu().numpy())
    return np.concatenate(parts)


def library(posterior: Posterior, rows: np.ndarray, values: Values) -> Tensor:
    """Return the factor between proportions and expected counts: [S, b] when it is latent, else [1, b].

    It is the latent site ``log_library``, or the field ``size_factor``, or else the total count of the cell.
    """
    if "log_library" in values:
        return values["log_library"].exp()
    batch = posterior.dataset.batch(rows)
    if "size_factor" not in batch and OBSERVED not in batch:
        raise ValueError(
            f"expected counts need a site 'log_library', or a field 'size_factor' or '{OBSERVED}'; "
            f"the data has {', '.join(sorted(batch))}"
        )
    factor = batch["size_factor"] if "size_factor" in batch else batch[OBSERVED].sum(-1)
    return factor.reshape(1, -1).to(next(iter(values.values())).device)


def expected_counts(posterior: Posterior, rows: np.ndarray, share: Tensor, values: Values) -> Tensor:
    """Return the posterior mean of library * rho in the cells' own batches, [b, G], for shares [S, b] of particles.

    A program whose zero inflation depends on quality has a site ``kept``, by which the expectation is multiplied.
    """
    weighted = share * library(posterior, rows, values)
    expected = values[SITE] * values[KEPT] if KEPT in values else values[SITE]
    return torch.einsum("sb,sbg->bg", weighted.to(expected.dtype), expected)
