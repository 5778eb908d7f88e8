"""Counts as negative binomials around given profiles, one dispersion a gene: what a likelihood is worth."""

import numpy as np
from scipy.stats import nbinom

SIZES = np.logspace(-2, 4, 61)
"""Inverse dispersions that are tried."""


def log_likelihood(counts: np.ndarray, mean: np.ndarray, inverse_dispersion: np.ndarray) -> np.ndarray:
    """Return the log probability of counts [N, G], by gene and cell [N, G]."""
    return nbinom.logpmf(
        counts, inverse_dispersion, inverse_dispersion / (inverse_dispersion + np.maximum(mean, 1e-12))
    )


def inverse_dispersions(counts: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return for each gene the one of `SIZES` under which the counts [N, G] with these means are most likely."""
    value = np.array([log_likelihood(counts, mean, np.array(size)).sum(0) for size in SIZES])
    return SIZES[value.argmax(0)]
