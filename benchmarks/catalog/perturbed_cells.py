"""sVAE+ on real screens, beside plain baselines.

``papalexi``  CRISPR knock-outs in THP-1 cells, one perturbation a guide. Do guides of one gene shift cells alike? Pairs
              of guides are ranked by the cosine of their shifts: area under the ROC curve of "same gene" (and of that
              where one is of the pathway of interferon gamma), and of "both of the pathway". Baselines: mean
              differences of log-normalised expression, principal components, a VAE as it is and in sparse axes; with
              ``--drvi``, in an environment that has scvi-tools 1.5, also DRVI.
``norman``    CRISPR activation of pairs of genes, a third of the pairs held out at a time. The mean shift of log
              proportions under a held-out pair, R2 and correlation over genes. Baselines: no effect, the mean of the
              pairs that were seen, the sum of the shifts of both single genes.

Where a plain baseline wins, the documentation says so first.
"""

import time
import warnings

import anndata
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from benchmarks.common import parser, show
from benchmarks.datasets import folder
from benchmarks.metrics import log_normalised
from benchmarks.peer_drvi import drvi
from benchmarks.plain_counts import inverse_dispersions, log_likelihood
from fieldguide.decisions import perturbation_targets, predicted_expression
from fieldguide.decisions.perturbations.effects import estimated_shifts
from fieldguide.inference import IWAE, Fit, Perturbations, fit

PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1")
CLEAN = 0.8
"""Least share of a cell's guide molecules that are of its guide."""


def fitted_svae(cells: anndata.AnnData, place: str, control, seed: int, epochs: int, **options) -> tuple[Fit, float]:
    """Return a fit, and its CPU seconds."""
    start = time.process_time()
    places = {"perturbation": Perturbations(place, control=control), "size_factor": "size"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit("svae", cells, fields=places, seed=seed, max_epochs=epochs, progress=False, device="cpu", **options)
    return found, time.process_time() - start


def _sized(cells: anndata.AnnData) -> anndata.AnnData:
    """Cells with any count, and a size factor: all their molecules, times the share that these genes have of them."""
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    total = cells.obs["total_counts_all_genes"].astype(float)
    cells.obs["size"] = total * (cells.X.sum() / total.sum())
    cells.X = cells.X.astype(np.float32)
    return cells


def papalexi(seeds: list[int], epochs: int, with_drvi: bool) -> None:
    """Guides of one gene, and genes of one pathway."""
    cells = _sized(anndata.read_h5ad(folder("perturb_seq/papalexi_eccite.h5ad")))
    cells = cells[(cells.obs["guide_umi_share"] > CLEAN).to_numpy()].copy()
    cells.obs["batch"] = cells.obs["bio_rep"]
    for column in ("guide", "target"):
        cells.obs[column] = cells.obs[column].astype(str)
    sizes = cells.obs["guide"].value_counts()
    cells = cells[cells.obs["guide"].isin(sizes.index[sizes >= 20])].copy()
    gene_of = cells.obs.drop_duplicates("guide").set_index("guide")["target"]
    controls = sorted(gene_of.index[gene_of == "non-targeting"])
    codes, names = _codes(cells.obs["guide"], controls)
    values = log_normalised(cells.X.toarray())
    values = values - pd.DataFrame(values).groupby(cells.obs["batch"].to_numpy()).transform("mean").to_numpy()
    rows = []

    def judge(method: str, shift: np.ndarray, order: list[str], **more) -> None:
        rows.append({"method": method} | _alike(shift, [gene_of[name] for name in order]) | more)

    judge("mean differences of log expression", estimated_shifts(values, codes, len(names)).estimate, names)
    components = PCA(15, random_state=0).fit_transform(values)
    judge("15 principal components", estimated_shifts(components, codes, len(names)).estimate, names)
    for seed in seeds if with_drvi else []:
        latents, seconds = drvi(cells, 15, seed, epochs, batch="batch")
        judge(f"DRVI, seed {seed}", estimated_shifts(latents, codes, len(names)).estimate, names, **{"CPU s": seconds})
    for seed in seeds:
        for prior in ("vae", "ivae", "svae+"):
            found, seconds = fitted_svae(cells, "guide", controls, seed, epochs, prior=prior)
            for axes in ("none", "sparse") if prior == "vae" else ("none",):
                decision = perturbation_targets(found, rotate=axes)
                table = decision.table.pivot(index="perturbation", columns="latent", values="shift")
                more = {
                    "targets": int(decision.table["is_target"].sum()),
                    "largest shift": float(decision.table["shift"].abs().max()),
                    "validation": found.history["validation"].iloc[-1],
                    "CPU s": seconds,
                }
                label = f"{prior}{'' if axes == 'none' else ' in sparse axes'}, seed {seed}"
                judge(label, table.to_numpy(), list(table.index), **more)
    show(f"papalexi: {cells.n_obs} cells, {len(names)} guides, {epochs} epochs", rows)


def _codes(labels: pd.Series, controls: list[str]) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(labels) - set(controls))
    place = {name: k for k, name in enumerate(names)}
    return np.array([[place.get(label, -1)] for label in labels]), names


def _alike(shifts: np.ndarray, genes: list[str]) -> dict:
    """Return how well the cosine of shifts tells guides of one gene, and genes of the pathway, from other pairs."""
    unit = shifts / np.maximum(np.linalg.norm(shifts, axis=1, keepdims=True), 1e-12)
    cosine, gene = unit @ unit.T, np.array(genes)
    pairs = np.triu_indices(len(gene), 1)
    same = (gene[:, None] == gene)[pairs]
    active = np.isin(gene, PATHWAY)
    one = active[:, None] & np.ones_like(active)
    of_active = (one | one.T)[pairs]
    both = (active[:, None] & active)[pairs] & ~same
    known = of_active & ~same
    return {
        "AUC same gene": roc_auc_score(same, cosine[pairs]),
        "AUC same gene, pathway": roc_auc_score(same[of_active], cosine[pairs][of_active]),
        "AUC pathway": roc_auc_score(both[known], cosine[pairs][known]),
    }


def norman(seeds: list[int], epochs: int) -> None:
    """Pairs of genes that were never seen together."""
    cells = _sized(anndata.read_h5ad(folder("perturb_seq/norman19_mini.h5ad")))
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str)
    labels = cells.obs["perturbation"]
    doubles = sorted(label for label in set(labels) if "+" in label)
    singles = {label for label in set(labels) if "+" not in label}
    whole = [d for d in doubles if set(d.split("+")) <= singles]
    rows = []
    for seed in seeds:
        order = list(np.random.default_rng(seed).permutation(whole))
        found: dict[str, list[np.ndarray]] = {}
        nats: dict[str, list[float]] = {}
        truth = []
        for part in range(3):
            held = order[part::3]
            train, new = cells[~labels.isin(held)].copy(), cells[labels.isin(held)].copy()
            mean = _profiles(cells)
            shift = mean - mean.loc["control"]
            seen = [d for d in doubles if d not in held]
            truth += [shift.loc[d].to_numpy() for d in held]
            predicted = {"no effect": [np.zeros(cells.n_vars)] * len(held)}
            predicted["mean of seen pairs"] = [shift.loc[seen].mean().to_numpy()] * len(held)
            predicted["sum of single shifts"] = [shift.loc[d.split("+")].sum().to_numpy() for d in held]
            noise = inverse_dispersions(*_counts_and_means(train, mean))
            for method, values in predicted.items():
                guess = pd.DataFrame(mean.loc["control"].to_numpy() + np.array(values), index=held)
                of_cells = -log_likelihood(*_counts_and_means(new, guess), noise).sum(1)
                nats.setdefault(method, []).extend(_by_label(of_cells, new, held))
            for prior in ("vae", "ivae", "svae+"):
                fitted, _ = fitted_svae(train, "perturbation", "control", seed, epochs, prior=prior, n_latent=10)
                name, asked = "VAE" if prior == "vae" else f"{prior}, shifts added", new.copy()
                if prior == "vae":
                    asked.obs["perturbation"] = "control"  # it is told none
                values = -fitted.bound(asked, IWAE(1000), seed=seed)
                nats.setdefault(name, []).extend(_by_label(values, new, held))
                if prior != "vae":
                    table = _logs(predicted_expression(fitted, ["control", *held], draws=2000, seed=seed))
                    predicted[name] = [(table.loc[d] - table.loc["control"]).to_numpy() for d in held]
            for method, values in predicted.items():
                found.setdefault(method, []).extend(values)
        for method, of_pairs in nats.items():
            scores = _agreement(np.array(truth), np.array(found[method])) if method in found else {}
            rows.append({"method": method, "seed": seed} | scores | {"nats a cell": float(np.mean(of_pairs))})
    show(f"norman: {len(whole)} pairs, each held out once, {epochs} epochs", rows)


def _counts_and_means(cells: anndata.AnnData, profiles: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return counts [N, G], and what is expected of them by the profile of each cell's label."""
    proportions = np.maximum(2 ** profiles.loc[cells.obs["perturbation"]].to_numpy() - 0.5, 1e-4) / 1e3
    return np.asarray(cells.X.todense()), proportions * cells.obs["size"].to_numpy()[:, None]


def _by_label(values: np.ndarray, cells: anndata.AnnData, labels: list[str]) -> list[float]:
    return [values[(cells.obs["perturbation"] == label).to_numpy()].mean() for label in labels]


def _profiles(cells: anndata.AnnData) -> pd.DataFrame:
    """Mean expression of each label: log2 of mean counts per 100,000 of all molecules, plus one half."""
    scaled = cells.X.multiply(1 / cells.obs["size"].to_numpy()[:, None]).toarray()
    return _logs(pd.DataFrame(scaled).groupby(cells.obs["perturbation"].to_numpy()).mean())


def _logs(proportions: pd.DataFrame) -> pd.DataFrame:
    return np.log2(1e3 * proportions + 0.5)


def _agreement(truth: np.ndarray, values: np.ndarray) -> dict:
    error = ((truth - values) ** 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        correlation = [np.corrcoef(t, v)[0, 1] if v.std() > 0 else 0.0 for t, v in zip(truth, values, strict=True)]
    r2 = 1 - error / (truth**2).sum(1)
    return {"R2 of the shift": r2.mean(), "worst": r2.min(), "correlation": float(np.mean(correlation))}


def main():
    p = parser(__doc__)
    p.add_argument("--parts", nargs="*", default=["papalexi", "norman"])
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--drvi", action="store_true", help="DRVI of scvi-tools 1.5, too")
    a = p.parse_args()
    for part in a.parts:
        if part == "papalexi":
            papalexi(a.seeds, a.epochs, a.drvi)
        else:
            norman(a.seeds, a.epochs)
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
