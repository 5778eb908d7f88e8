"""Posterior expected false discovery rate of a list of calls, from the probability of each call alone (pure arrays).

If p_g is the posterior probability that gene g is differential, a list of the k genes of largest p contains on average
the share ``mean(1 - p)`` of false ones. That average is the expected FDR of the list, and it can only grow with k, so
the longest list that keeps a target is found by counting (Müller et al. 2004; Lopez et al. 2020, section 5).
The figure is as good as the probabilities are: it holds on average over the posterior, not over repeated experiments.
"""

import numpy as np
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.arguments import checked_real

TOLERANCE = 1e-12
"""Rounding that a comparison with the target forgives."""


def expected_fdr(probability: ArrayLike) -> np.ndarray:
    """Return the expected FDR of the lists of the 1, 2, ..., G most probable genes, [G].

    Parameters
    ----------
    probability : array [G]
        Posterior probability of each gene to be differential, in any order.

    Returns
    -------
    ndarray [G]
        Non-decreasing; entry k - 1 belongs to the k largest probabilities.

    Raises
    ------
    ValueError
        If a probability is missing or outside [0, 1].

    Examples
    --------
    >>> expected_fdr([0.5, 0.99, 0.9]).round(4).tolist()
    [0.01, 0.055, 0.2033]
    """
    probability = _checked(probability)
    error = 1 - np.sort(probability)[::-1]
    return np.cumsum(error) / np.arange(1, len(error) + 1)


def fdr_values(probability: ArrayLike) -> np.ndarray:
    """Return for each gene the expected FDR of the shortest list that contains it, [G], in the given order.

    Genes of equal probability stand or fall together: each has the value of the whole tie, so that the result does
    not depend on the order of the genes.

    Examples
    --------
    >>> fdr_values([0.5, 0.99, 0.9]).round(4).tolist()
    [0.2033, 0.01, 0.055]
    """
    probability = _checked(probability)
    path = expected_fdr(probability)
    last = np.searchsorted(-np.sort(probability)[::-1], -probability, side="right") - 1
    return path[last]


def calls(probability: ArrayLike, fdr: float = 0.05) -> np.ndarray:
    """Return which genes are called, bool [G]: the longest list whose expected FDR is at most ``fdr``.

    Parameters
    ----------
    probability : array [G]
    fdr : float
        Target, in [0, 1).

    Examples
    --------
    >>> calls([0.5, 0.99, 0.9], fdr=0.06).tolist()
    [False, True, True]
    """
    fdr = checked_real("fdr", fdr, at_least=0, below=1)
    return fdr_values(probability) <= fdr + TOLERANCE


def _checked(probability: ArrayLike) -> np.ndarray:
    values = real_array("probability", probability)
    if values.ndim != 1:
        raise ValueError(f"probability must be one value a gene, not an array of shape {values.shape}")
    outside = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if outside.size:
        raise ValueError(f"probability {values[outside[0]]} of gene {outside[0]} is not in [0, 1]")
    return values
