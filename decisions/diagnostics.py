"""How far the importance weights of a group of cells can be trusted, and the warning when they cannot.

The Pareto shape k-hat says whether the weights of one cell have a usable tail; above min(1 - 1/log10 S, 0.7) the
cell's own expectations are unreliable (Vehtari et al. 2024). A group's estimate averages over its cells, which cancels
their noise but not their common bias. So both are reported: the share of cells above the limit, and how far weighting
moved the group's log2 expression away from what the guide alone says. A large share of such cells and a large shift
mean that neither figure is the posterior's; where the shift is small against the fold change of interest, the result
does not hang on the weights.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from fieldguide.decisions.decision import UntrustworthyWeights
from fieldguide.inference.messages import caution
from fieldguide.inference.weights.pareto import khat_limit, pareto_k


def diagnose(log_weights: np.ndarray, name: str, n_cells: int, shift: np.ndarray | None = None) -> pd.Series:
    """Return the diagnostics of one group, from log weights [S, n] of the cells that were visited.

    Returns
    -------
    Series
        ``cells``; ``visited``; ``particles`` S; ``ess_median`` effective sample size of the median cell, of S;
        ``khat_median``; ``khat_limit``; ``khat_above`` share of cells above it (missing below 25 particles);
        ``shift_median`` and ``shift_95``: over genes, the change in log2 expression by the weights.
    """
    particles, visited = log_weights.shape
    weights = softmax(log_weights, axis=0)
    khat = pareto_k(log_weights)
    limit = khat_limit(particles)
    summary = {
        "cells": n_cells,
        "visited": visited,
        "particles": particles,
        "ess_median": float(np.median(1 / (weights**2).sum(0))),
        "khat_median": float(np.median(khat)),
        "khat_limit": limit,
        "khat_above": float(np.mean(khat > limit)) if not np.isnan(khat).any() else np.nan,
    }
    if shift is not None:
        summary |= {"shift_median": float(np.median(shift)), "shift_95": float(np.quantile(shift, 0.95))}
    return pd.Series(summary, name=name)


def diagnose_cells(log_weights: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return the diagnostics of all cells that were visited, one row, from their chunks' log weights [S, b]."""
    joined = np.concatenate(log_weights, 1)
    return diagnose(joined, "cells", joined.shape[1]).to_frame().T


def warn_if_untrustworthy(diagnostics: pd.DataFrame) -> None:
    """Warn with `UntrustworthyWeights` when more than half of a group's cells are above the k-hat limit."""
    for name, row in diagnostics.iterrows():
        if row["khat_above"] > 0.5:
            caution(
                f"{name}: k-hat is above {row['khat_limit']:.2f} in {row['khat_above']:.0%} of the cells (median "
                f"{row['khat_median']:.2f}; effective sample size {row['ess_median']:.0f} of {row['particles']:.0f}), "
                "so the guide misses much of their posterior. Weighting moved the group's log2 expression by "
                f"{row['shift_median']:.2f} in the median gene and {row['shift_95']:.2f} in one of twenty: take "
                "differences of that size as undecided. Longer training, an importance-weighted objective or more "
                "particles help",
                UntrustworthyWeights,
            )
