"""Genes from other genes, across assays: a kernel regression on standardised log shares, and how well genes did.

Plain arrays: n cells of the reference, m of the target, P genes that both measure (predictors), H genes to predict.
"""

import numpy as np
from scipy.linalg import solve
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

GAMMA, PENALTY, LANDMARKS = 0.4, 10.0, 1000
"""Of the kernel regression; the first two were chosen on gene sets of three pairs of assays that no figure is of."""
LARGE, MOST = 300.0, 5000
"""Means beyond which, and counts up to which, `expected_log` does not sum."""


def log_shares(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return log(1 + counts per median total) [n, G]; ``total`` [n] is that of the genes both assays measure."""
    return np.log1p(counts / total[:, None] * np.median(total))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each cell within its column [n, G], over n; ties share their mean rank."""
    return rankdata(values, axis=0) / len(values)


def standardised(values: np.ndarray) -> np.ndarray:
    """Return columns of mean 0 and standard deviation 1; constant ones become 0."""
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def kernel(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return predictions [m, H] at ``new`` [m, P] of the kernel ridge regression of y [n, H] on x [n, P].

    The kernel is exp(-0.4 |a - b|^2 / P). The function is a sum of kernels around at most `LANDMARKS` cells, drawn at
    random (a subset of regressors), so that the cost is linear in the cells.
    """
    rng = np.random.default_rng(0)
    centres = x if len(x) <= LANDMARKS else x[rng.choice(len(x), LANDMARKS, replace=False)]
    level, gamma = y.mean(0), GAMMA / x.shape[1]
    near, among, there = (np.exp(-gamma * cdist(points, centres, "sqeuclidean")) for points in (x, centres, new))
    left = near.T @ near + PENALTY * among + 1e-8 * len(x) * np.eye(len(centres))
    return level + there @ solve(left, near.T @ (y - level), assume_a="pos")


def within(x: np.ndarray, y: np.ndarray, folds: int = 3, seed: int = 0) -> np.ndarray:
    """Return predictions [n, H] of each cell of the reference by a regression on the cells of the other folds."""
    fold = np.random.default_rng(seed).permutation(len(x)) % folds
    out = np.empty_like(y)
    for number in np.unique(fold):
        held_out = fold == number
        out[held_out] = kernel(x[~held_out], y[~held_out], x[held_out])
    return out


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation of each pair of columns [n, H], as [H]; 0 where one is constant."""
    ra, rb = (rankdata(values, axis=0) for values in (a, b))
    ra, rb = ra - ra.mean(0), rb - rb.mean(0)
    norm = np.sqrt((ra**2).sum(0) * (rb**2).sum(0))
    return np.divide((ra * rb).sum(0), norm, out=np.zeros(a.shape[1]), where=norm > 0)


def groups_of(genes: int, folds: int, seed: int = 0) -> list[np.ndarray]:
    """Return the genes in groups of equal size, at random, as indices; no group holds all of them."""
    fold = np.random.default_rng(seed).permutation(genes) % min(folds, genes)
    return [np.flatnonzero(fold == number) for number in np.unique(fold)] if genes > 1 else []


def across(reference: np.ndarray, target: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return predictions [m, L] of the ranks of the genes ``left`` in the target, from the other shared genes.

    Parameters
    ----------
    reference, target : arrays [n, P], [m, P]
        Counts of the genes that both measure. The columns ``left`` of the target are not used.
    left : array of int [L]
    """
    others = np.setdiff1d(np.arange(reference.shape[1]), left)
    both = [counts[:, others] for counts in (reference, target)]
    sums = [np.maximum(counts.sum(1), 1) for counts in both]
    x, new = (standardised(log_shares(*pair)) for pair in zip(both, sums, strict=True))
    return kernel(x, ranks(reference[:, left] / sums[0][:, None]), new)


def expected_scores(known: np.ndarray, scores: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the scores [H] to expect of new genes, and their standard error, from those of known genes.

    Parameters
    ----------
    known, new : arrays [P, F], [H, F]
        What the reference says of each gene.
    scores : array [P]
        What was found for the known genes; regressed linearly on their features.
    """
    x = np.column_stack([np.ones(len(known)), known])
    slope = np.linalg.lstsq(x, scores, rcond=None)[0]
    freedom = max(1, len(known) - x.shape[1])
    error = float(np.sqrt(((scores - x @ slope) ** 2).sum() / freedom))
    return np.clip(np.column_stack([np.ones(len(new)), new]) @ slope, -1, 1), error


def expected_log(mean: np.ndarray, theta: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return E log(1 + scale * x) [m, H] of counts x of this mean and inverse dispersion [m, H]; ``scale`` [m].

    Summed over the negative binomial's counts, up to where less than one in a million is left; beyond a mean of 300 by
    the logarithm of the mean and its second-order correction.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> round(expected_log(2 * one, 1e8 * one, np.ones(1)).item(), 3)  # Poisson
    0.978
    """
    mean, theta = mean.clip(1e-12), theta.clip(1e-8, 1e8)
    size = scale[:, None]
    out = np.log1p(size * mean) - 0.5 * (size / (1 + size * mean)) ** 2 * (mean + mean**2 / theta)
    for gene in range(mean.shape[1]):
        rows = mean[:, gene] <= LARGE
        if not rows.any():
            continue
        m, t, s = mean[rows, gene], theta[rows, gene], scale[rows]
        step, log_p = -np.log1p(t / m), -t * np.log1p(m / t)
        total, left = np.zeros(len(m)), -np.expm1(log_p)
        for k in range(1, MOST + 1):
            log_p = log_p + np.log1p((t - 1) / k) + step
            p = np.exp(log_p)
            total, left = total + p * np.log1p(k * s), left - p
            if left.max() < 1e-6:
                break
        out[rows, gene] = total
    return out
