"""Metrics and baselines of the comparisons; definitions as published, made deterministic where they were sampled."""

import numpy as np
from scipy.stats import false_discovery_control, mannwhitneyu, rankdata, spearmanr
from sklearn.cluster import KMeans
from sklearn.decomposition import FactorAnalysis
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    roc_auc_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors


def clustering(z, labels, restarts=200, seed=0):
    """k-means with as many clusters as labels: ARI, NMI (geometric mean), and the silhouette of the labels (ASW)."""
    found = KMeans(len(set(labels)), n_init=restarts, random_state=seed).fit_predict(z)
    return {
        "ARI": adjusted_rand_score(labels, found),
        "NMI": normalized_mutual_info_score(labels, found, average_method="geometric"),
        "ASW": silhouette_score(z, labels),
    }


def batch_mixing(z, batches, neighbours=50):
    """Entropy of batch mixing (nats) of two batches: mean over all cells of the entropy among 50 neighbours.

    At most ln 2 = 0.693. Unequal batches cannot reach it; see `most_mixing`.
    """
    near = NearestNeighbors(n_neighbors=neighbours + 1).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    return float(_entropy(_codes(batches)[near].mean(1)).mean())


def most_mixing(batches):
    """Entropy of the batch shares themselves: the batch mixing of batches that do not differ."""
    return float(_entropy(_codes(batches).mean()))


def _codes(batches):
    names, codes = np.unique(np.asarray(batches), return_inverse=True)
    if len(names) != 2:
        raise ValueError(f"batch mixing is defined for two batches, not {len(names)}")
    return codes


def _entropy(share):
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return -share * np.log(share) - (1 - share) * np.log(1 - share)


def factor_analysis(train, test, n_latent=10):
    """Per-cell log density of test counts [n, G] under factor analysis of log(1 + counts).

    The Jacobian of log(1 + x), -sum log(1 + x), turns the density of the transformed values into one of the counts.
    """
    train, test = np.log1p(train), np.log1p(test)
    model = FactorAnalysis(n_latent, random_state=0).fit(train)
    return model.score_samples(test) - test.sum(1)


def log_normalised(counts, target=None):
    """log(1 + counts scaled to a common total): `target`, or the median total."""
    totals = counts.sum(1, keepdims=True)
    return np.log1p(counts / totals * (np.median(totals) if target is None else target))


def wilcoxon(group, reference):
    """Rank-sum p values [G] of log-normalised expression, and their Benjamini-Hochberg adjustment."""
    p = mannwhitneyu(group, reference, axis=0, method="asymptotic").pvalue
    p = np.nan_to_num(p, nan=1.0)
    return p, false_discovery_control(p)


def discoveries(called, truth):
    """False discovery proportion and power of a list of called genes."""
    called, truth = np.asarray(called, bool), np.asarray(truth, bool)
    return {
        "called": int(called.sum()),
        "FDP": float((called & ~truth).sum() / max(called.sum(), 1)),
        "power": float((called & truth).sum() / max(truth.sum(), 1)),
    }


def power_at(score, truth, fdp):
    """Largest power over all cut-offs of a score (higher is surer) whose false discovery proportion is at most fdp."""
    order = np.argsort(-np.asarray(score), kind="stable")
    hits = np.cumsum(np.asarray(truth)[order])
    length = np.arange(1, len(hits) + 1)
    good = 1 - hits / length <= fdp + 1e-12
    return float(hits[good].max(initial=0) / max(hits[-1], 1))


def against_reference(score, fold_change, significant):
    """Agreement with a reference experiment: Spearman with its fold changes, AUROC of |score| for its calls."""
    score = np.asarray(score)
    return {
        "Spearman": float(spearmanr(score, fold_change).statistic),
        "AUROC": float(roc_auc_score(significant, np.abs(score))),
    }


def spearman_rows(a, b):
    """Spearman correlation of every row of a [N, G] with the same row of b."""
    a, b = (rankdata(m, axis=1) for m in (a, b))
    a, b = (m - m.mean(1, keepdims=True) for m in (a, b))
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
