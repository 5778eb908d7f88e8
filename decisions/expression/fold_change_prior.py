"""A prior on fold changes that all genes share, learnt from the genes themselves (empirical Bayes).

Draws of a gene's fold change that look at this gene alone let noise pass for effect: of a thousand unchanged genes
with few counts, some have a large fold change by chance, and a false discovery rate has to know that most genes do not
change. The prior is a mixture of Gaussians with one centre and a grid of standard deviations; its proportions maximise
the likelihood of all genes (Stephens 2017, "False discovery rates: a new deal"). The centre is the fold change of a
typical gene: zero, but for the shift of all proportions when a few strong genes of one group take a large share. Each
gene's draws serve as its likelihood, of whatever shape, and come back with weights; genes with precise fold changes
hardly notice.
"""

import numpy as np

NARROWEST = 0.05
"""Least standard deviation of the grid, in log2 units: fold changes that nobody would call a change."""
COMPONENTS = 12
STEPS = 300
TINY = 1e-30
"""Density that no draw falls below, so that every gene's weights have a sum."""


def shared_prior(lfc: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Learn the prior from draws of all genes' fold changes under a flat prior.

    Parameters
    ----------
    lfc : array [R, G]
        Draws of the log2 fold changes.

    Returns
    -------
    weights : ndarray [R, G]
        Weights of the draws under the learnt prior, summing to one for each gene.
    scales, proportions : ndarray [K]
        The mixture.
    """
    mean = lfc.mean(0)
    centre = _weighted_median(mean, 1 / lfc.var(0).clip(NARROWEST**2))
    widest = max(1.0, 1.5 * float(np.abs(mean - centre).max()))
    scales = np.geomspace(NARROWEST, widest, COMPONENTS)
    square = -0.5 * (lfc - centre) ** 2
    likelihood = np.stack([_density(square, scale).mean(0, dtype=np.float64) for scale in scales], 1) + 1e-300
    proportions = np.full(COMPONENTS, 1 / COMPONENTS)
    for _ in range(STEPS):
        share = likelihood * proportions
        proportions = (share / share.sum(1, keepdims=True)).mean(0)
    density = np.full_like(square, TINY)
    for proportion, scale in zip(proportions, scales, strict=True):
        density += proportion * _density(square, scale)
    return (density / density.sum(0, dtype=np.float64)).astype(np.float32), scales, proportions


def _density(square: np.ndarray, scale: float) -> np.ndarray:
    return np.exp(square / scale**2) / scale


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Half way between the lower and the upper weighted median, so that negated values have the negated median."""
    ends = []
    for sign in (1, -1):
        order = np.argsort(sign * values)
        total = weights[order].cumsum()
        ends.append(values[order][np.searchsorted(total, 0.5 * total[-1])])
    return float(np.mean(ends))
