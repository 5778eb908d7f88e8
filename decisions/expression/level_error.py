"""The error of a group's level: how far its true mean expression may be from what the fitted model says.

A posterior over the latents of each cell takes the decoder as known. But the decoder learnt a gene's level in a group
from that group's counts of the gene, and where these are few (which is the rule in single cells) it learnt their
noise. Averaged over the cells the latents' own uncertainty vanishes, and what is left is far too narrow: on sparse
simulated data three of four 95 % intervals of fold changes missed the truth, and half of the genes called at an
expected FDR of 5 % were false (``benchmarks/decisions/sparse_de.py``).

So a group's level is compared with its counts once more. For each gene the true mean is the model's mean times an
unknown factor c with the prior Gamma(1/2, 1/2): mean one, and worth half a count, so that the model decides where
there are no counts and the counts decide where there are. With T observed and E expected counts in the group and
V the variance of the sum, the counts are worth E / V each, and

    c | T ~ Gamma(1/2 + T E / V, 1/2 + E² / V).

V is the sum of squared residuals, at least E (a Poisson's). A draw of the group's mean is multiplied by a draw of c.
"""

from dataclasses import dataclass

import numpy as np

PRIOR = 0.5
"""Counts that the model's mean is worth: Jeffreys' half."""


@dataclass(frozen=True)
class Totals:
    """Sums over the cells of a group for each gene [G].

    Attributes
    ----------
    observed, expected : ndarray
        Counts, and their posterior expectation.
    variance : ndarray
        Sum of squared residuals.
    """

    observed: np.ndarray
    expected: np.ndarray
    variance: np.ndarray


def level_draws(totals: Totals, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the factor between the true and the model's mean expression of a group, float32 [R, G]."""
    expected = np.maximum(totals.expected, 1e-12)
    worth = expected / np.maximum(totals.variance, expected)
    shape, rate = PRIOR + totals.observed * worth, PRIOR + expected * worth
    return rng.standard_gamma(shape, (draws, len(shape)), dtype=np.float32) / rate.astype(np.float32)
