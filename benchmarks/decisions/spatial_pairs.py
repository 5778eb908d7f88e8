"""Pairs of sequencing and spatial data with genes hidden, baselines, and scores of imputed genes.

A *made* pair splits the cells of one spatial set: half become the reference, thinned binomially with an efficiency for
each gene, sigmoid(Normal(logit 0.3, 0.8)), and for each cell, exp(Normal(0, 0.3)). One fifth of the genes is hidden
from the spatial cells. Everything is drawn from one NumPy generator.
"""

from dataclasses import dataclass

import anndata
import numpy as np
from scipy.linalg import fractional_matrix_power
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors

from benchmarks.datasets import folder

PAIRS = {
    "hypothalamus": ("spatial/hypothalamus_merfish.h5ad", "spatial/hypothalamus_scrna.h5ad"),
    "osmFISH": ("spatial/osmfish_cortex.h5ad", None),
    "starMAP": ("spatial/starmap_mpfc.h5ad", None),
}


@dataclass
class Pair:
    """Counts of reference [n, G] and spatial cells [m, G], the hidden columns, and the names of the genes."""

    reference: np.ndarray
    spatial: np.ndarray
    hidden: np.ndarray
    genes: list[str]

    @property
    def shared(self):
        return np.setdiff1d(np.arange(len(self.genes)), self.hidden)

    def annotated(self):
        """Both sides as AnnData; the hidden genes are left out of the spatial side."""
        names = np.array(self.genes)
        sides = []
        for counts, columns in ((self.reference, np.arange(len(names))), (self.spatial, self.shared)):
            side = anndata.AnnData(counts[:, columns].astype(np.float32))
            side.var_names = names[columns]
            sides.append(side)
        return sides


def _read(path):
    data = anndata.read_h5ad(folder(path))
    x = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    return np.asarray(x, dtype=np.float32), list(data.var_names)


def pair(name, seed, hidden=None, efficiency=0.3, efficiency_sd=0.8, share=0.2):
    """One pair; ``hidden`` names the hidden columns instead of drawing them."""
    spatial_file, reference_file = PAIRS[name]
    x, genes = _read(spatial_file)
    rng = np.random.default_rng(seed)
    if reference_file:
        reference, names = _read(reference_file)
        column = {gene: i for i, gene in enumerate(names)}
        keep = [i for i, gene in enumerate(genes) if gene in column]
        reference, spatial = reference[:, [column[genes[i]] for i in keep]], x[:, keep]
        genes = [genes[i] for i in keep]
    else:
        order = rng.permutation(len(x))
        reference, spatial = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    gene = 1 / (1 + np.exp(-(np.log(efficiency / (1 - efficiency)) + rng.normal(0, efficiency_sd, len(genes)))))
    cell = np.exp(rng.normal(0, 0.3, len(reference)))
    if not reference_file:
        reference = rng.binomial(reference.astype(np.int64), np.minimum(1, cell[:, None] * gene)).astype(np.float32)
    drawn = np.sort(rng.choice(len(genes), int(round(share * len(genes))), replace=False))
    hidden = drawn if hidden is None else np.sort(np.asarray(hidden))
    shared = np.setdiff1d(np.arange(len(genes)), hidden)
    reference, spatial = (m[m[:, shared].sum(1) > 0] for m in (reference, spatial))
    return Pair(reference, spatial, hidden, genes)


def gene_scores(found, predicted, normalised=None):
    """For each hidden gene: raw Spearman, Spearman of shares of the shared total, whether it counts (detected).

    ``normalised`` predicts the shares where it is given; otherwise they are those of the predicted counts.
    """
    total = found.spatial[:, found.shared].sum(1)
    shares = predicted / total[:, None] if normalised is None else normalised
    rows = []
    for t, p, share in zip(found.spatial[:, found.hidden].T, predicted.T, shares.T, strict=True):
        rows.append([_spearman(t, p), _spearman(t / total, share), (t > 0).mean() > 0.005])
    return np.array(rows, dtype=float)


def score(found, predicted, normalised=None):
    """Medians over the hidden genes that are detected: raw, depth removed."""
    rows = gene_scores(found, predicted, normalised)
    return tuple(np.median(rows[rows[:, 2] > 0, :2], axis=0))


def _spearman(a, b):
    if np.ptp(b) == 0 or np.ptp(a) == 0:
        return 0.0
    return float(np.nan_to_num(spearmanr(a, b)[0]))


def baselines(found):
    """Predicted counts [m, hidden] by name: depth, CORAL and nearest neighbours, neighbours on PCA, ridge.

    "supervised" is the same ridge on the hidden genes of the spatial cells themselves (5-fold): a mark, not a method.
    """
    ref, spa, shared, hidden = found.reference, found.spatial, found.shared, found.hidden
    total = spa[:, shared].sum(1)
    fraction = ref[:, hidden] / ref[:, shared].sum(1, keepdims=True)
    out = {"depth": total[:, None] * (ref[:, hidden].sum(0) / ref[:, shared].sum())[None]}
    whiten, colour = (np.cov(m[:, shared].T) + np.eye(len(shared)) for m in (ref, spa))
    aligned = ref[:, shared] @ np.real(fractional_matrix_power(whiten, -0.5))
    aligned = aligned @ np.real(fractional_matrix_power(colour, 0.5))
    out["CORAL"] = KNeighborsRegressor(10).fit(aligned, ref[:, hidden]).predict(spa[:, shared])
    zr, zs = (_standard(_log_shares(m[:, shared])) for m in (ref, spa))
    pca = PCA(min(20, len(shared) - 1), random_state=0).fit(np.vstack([zr, zs]))
    near = KNeighborsRegressor(30, weights="distance").fit(pca.transform(zr), fraction)
    out["kNN"] = near.predict(pca.transform(zs)) * total[:, None]
    y = np.log1p(fraction * np.median(total))
    out["ridge"] = np.expm1(Ridge(10.0).fit(zr, y).predict(zs)).clip(1e-9) * total[:, None]
    own = np.log1p(spa[:, hidden] / total[:, None] * np.median(total))
    best = np.column_stack([cross_val_predict(Ridge(10.0), zs, column, cv=5) for column in own.T])
    out["supervised"] = np.expm1(best).clip(1e-9) * total[:, None]
    return out


def _log_shares(counts):
    total = counts.sum(1, keepdims=True)
    return np.log1p(counts / total * np.median(total))


def _standard(values):
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def mixing_score(spatial, reference, k=50):
    """1 - median KL of the neighbours' modality shares from the overall ones (self included); 1 is perfect."""
    z, label = np.vstack([spatial, reference]), np.repeat([0.0, 1.0], [len(spatial), len(reference)])
    some = z[np.random.default_rng(12).choice(len(z), min(1000, len(z)), False)]
    near = NearestNeighbors(n_neighbors=min(k, len(z) - 1)).fit(z).kneighbors(some)[1]
    q, f = label[near].mean(1), label.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(q > 0, q * np.log(q / f), 0) + np.where(q < 1, (1 - q) * np.log((1 - q) / (1 - f)), 0)
    return float(1 - np.median(kl))
