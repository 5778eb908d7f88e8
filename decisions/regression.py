"""Genes from other genes, across assays: a ridge regression on standardised log shares, and how well it should do.

Plain arrays: n cells of the reference, m of the target, P genes that both measure (predictors), H genes to predict.
"""

import numpy as np
from scipy.stats import rankdata

PENALTY = 10.0


def log_shares(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return log(1 + counts per median total) [n, G]; ``total`` [n] is that of the genes both assays measure."""
    return np.log1p(counts / total[:, None] * np.median(total))


def standardised(values: np.ndarray) -> np.ndarray:
    """Return columns of mean 0 and standard deviation 1; constant ones become 0."""
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Return predictions [m, H] at ``new`` [m, P] of the ridge regression of y [n, H] on x [n, P], with intercept."""
    centre, level = x.mean(0), y.mean(0)
    x = x - centre
    slope = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - level))
    return level + (new - centre) @ slope


def within(x: np.ndarray, y: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Return predictions [n, H] of each cell of the reference by a ridge regression on the cells of the other folds."""
    fold = np.random.default_rng(seed).permutation(len(x)) % folds
    out = np.empty_like(y)
    for k in range(folds):
        out[fold == k] = ridge(x[fold != k], y[fold != k], x[fold == k])
    return out


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation of each pair of columns [n, H], as [H]; 0 where one is constant."""
    ra, rb = (rankdata(v, axis=0) for v in (a, b))
    ra, rb = ra - ra.mean(0), rb - rb.mean(0)
    norm = np.sqrt((ra**2).sum(0) * (rb**2).sum(0))
    return np.divide((ra * rb).sum(0), norm, out=np.zeros(a.shape[1]), where=norm > 0)


def across(reference: np.ndarray, target: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Return, for each gene that both assays measure, how well the others predict it across assays, [P].

    Genes are left out in groups: their columns in the target are predicted from the columns that remain, by a
    regression trained in the reference, and compared by Spearman's correlation of shares (depth removed).

    Parameters
    ----------
    reference, target : arrays [n, P], [m, P]
        Counts of the genes that both measure.
    """
    genes = reference.shape[1]
    fold = np.random.default_rng(seed).permutation(genes) % min(folds, genes)
    out = np.zeros(genes)
    for k in np.unique(fold):
        left, kept = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        if not len(kept):
            continue
        sums = [np.maximum(m[:, kept].sum(1), 1) for m in (reference, target)]
        x, new = (standardised(log_shares(m[:, kept], t)) for m, t in zip((reference, target), sums, strict=True))
        predicted = ridge(x, log_shares(reference[:, left], sums[0]), new)
        out[left] = spearman(target[:, left] / sums[1][:, None], predicted)
    return out


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
