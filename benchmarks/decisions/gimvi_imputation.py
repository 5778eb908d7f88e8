"""Imputation of hidden genes: gimvi with its three heads beside depth, CORAL, neighbours, ridge, and scvi-tools' GIMVI.

Pairs and scores are those of `spatial_pairs`: medians over hidden genes of Spearman's correlation, raw (the published
metric, on which depth alone does well) and depth-removed, means over three sets of hidden genes. Ours predicts the
share of a gene, which the second score asks for, by `Imputed.normalised`; the column "count share" has what the
predicted counts over the total score, as for all others. `--folds`: five folds of genes on the real pair in place of
seeds. `--published`: the published model in our loop (400 epochs, KL ramp of 400), and its targets.

Settings are the entry's own; they were chosen on the gene sets of seeds 3 and 4. Targets: raw and depth-removed score
within 0.03 of the peer or better (of the published settings, 400 epochs, kappa 5, unless FIELDGUIDE_PEER_PYTHON runs it
anew); blend above ridge on the depth-removed score; coverage of the 80 % intervals 0.7 to 0.9 on the real pair.
"""

import argparse
import json
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.common import show, verdict
from benchmarks.decisions.spatial_pairs import PAIRS, baselines, gene_scores, mixing_score, pair, score
from fieldguide.decisions import impute_genes
from fieldguide.inference import fit, join_modalities

# scvi-tools 1.4.2, kappa 5, KL ramp of 400 epochs: mean over the seeds that were run (hypothalamus 0-2, osmFISH 0-1
# with 300 epochs, starMAP 0), raw and depth-removed
PEER = {"hypothalamus": (0.340, 0.203), "osmFISH": (0.431, 0.315), "starMAP": (0.282, 0.002)}


PUBLISHED = {
    "likelihood": ("zinb", "nb"),
    "library": ("latent", "observed"),
    "encoder": "by_modality",
    "masking": 0.0,
    "dropout": 0.2,
    "features": "log1p",
    "efficiency": 0.0,
    "n_latent": 8,
    "n_hidden": 64,
}


def joined(found):
    return join_modalities(dict(zip(("sequencing", "spatial"), found.annotated(), strict=True)))


def mixing_of(fitted, data):
    z, spatial = fitted.latent(), (data.obs["modality"] == "spatial").to_numpy()
    return mixing_score(z[spatial], z[~spatial])


def ours(a, found, seed):
    """Scores by head, coverage of the intervals, rank correlation of trust and truth, mixing."""
    data = joined(found)
    fitted = fit("gimvi", data, seed=seed, progress=False, device="cpu")
    posterior = fitted.posterior(particles=a.particles)
    rows, truth = {}, found.spatial[:, found.hidden]
    columns = [found.genes[i] for i in found.hidden]
    for head in ("model", "kernel", "blend"):
        imputed = impute_genes(posterior, "spatial", head=head, draws=100, trust=head == "blend")
        predicted, normalised = imputed.counts[columns].to_numpy(), imputed.normalised[columns].to_numpy()
        rows[f"ours, {head}"] = (*score(found, predicted, normalised), score(found, predicted)[1])
    genes = gene_scores(found, predicted, normalised)
    used = genes[:, 2] > 0
    inside = (truth >= imputed.low[columns].to_numpy()) & (truth <= imputed.high[columns].to_numpy())
    told = imputed.table.loc[columns][used]
    extra = {"coverage": inside[:, used].mean(), "weight": imputed.settings["weight"], "truth": genes[used, 1].mean()}
    for name in ("trust", "trust_model", "reference_score"):
        extra[f"{name}, rank corr."] = spearmanr(told[name], genes[used, 1])[0]
        extra[f"{name}, mean"] = told[name].mean()
    return rows, extra | {"mixing": mixing_of(fitted, data)}


def published(a):
    """The published model, of kappa 5 and none, by the published schedule; its own targets."""
    ok = True
    for name, seeds, epochs, least in (
        ("hypothalamus", a.seeds, 400, (0.32, 0.18)),
        ("osmFISH", [0], 300, (0.43, 0.24)),
    ):
        if name not in a.pairs:
            continue
        found, mixing = [], {5: [], 0: []}
        for seed in seeds:
            drawn = pair(name, seed)
            data = joined(drawn)
            for kappa in (5, 0) if name == "hypothalamus" else (5,):
                fitted = fit(
                    "gimvi",
                    data,
                    kappa=kappa,
                    max_epochs=epochs,
                    kl_warmup=400,
                    learning_rate=1e-3,
                    validation=0.05,
                    early_stopping=None,
                    seed=seed,
                    progress=False,
                    device="cpu",
                    **PUBLISHED,
                )
                mixing[kappa].append(mixing_of(fitted, data))
                if kappa:
                    posterior = fitted.posterior(data[data.obs["modality"] == "spatial"].copy(), particles=25)
                    counts = posterior.expect(lambda v: v["rho"] * v["log_library"].exp()[..., None], "plugin")
                    found.append(score(drawn, counts[:, drawn.hidden]))
                    print(name, seed, np.round(found[-1], 3), round(mixing[5][-1], 3), flush=True)
        raw, depth_removed = np.mean(found, 0)
        ok &= verdict(
            f"{name}, published: {raw:.3f} / {depth_removed:.3f}, at least {least[0]} / {least[1]}",
            raw >= least[0] and depth_removed >= least[1],
        )
        if mixing[0]:
            without, with_ = np.mean(mixing[0]), np.mean(mixing[5])
            ok &= verdict(
                f"{name}, published: mixing {without:.3f} without critic (under 0.85), {with_:.3f} with "
                "(at least 0.92)",
                without < 0.85 and with_ >= 0.92,
            )
    return ok


def peer(a, found, seed):
    """Scores of scvi-tools' GIMVI in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "pair.npz", Path(folder) / "out.npy"
        np.savez(path, reference=found.reference, spatial=found.spatial, hidden=found.hidden)
        options = json.dumps({"epochs": a.peer_epochs, "kappa": 5, "seed": seed})
        script = Path(__file__).with_name("peer_gimvi.py")
        command = [os.environ["FIELDGUIDE_PEER_PYTHON"], str(script), str(path), str(out), options]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return score(found, np.load(out))


def cases(a, name):
    """Seeds, or folds of genes on the real pair."""
    if not a.folds:
        return [(seed, pair(name, seed)) for seed in a.seeds]
    genes = len(pair(name, 0).genes)
    fold = np.random.default_rng(0).permutation(genes) % 5
    return [(k, pair(name, 0, hidden=np.flatnonzero(fold == k))) for k in range(5)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", nargs="*", default=list(PAIRS))
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--folds", action="store_true", help="five folds of genes in place of seeds")
    p.add_argument("--published", action="store_true", help="the published model and its targets only")
    p.add_argument("--peer-epochs", type=int, default=400)
    p.add_argument("--particles", type=int, default=25)
    a = p.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if a.published:
        return published(a)
    ok = True
    for name in a.pairs:
        table, extras = {}, []
        for seed, found in cases(a, name):
            rows = {k: (*score(found, v), np.nan) for k, v in baselines(found).items()}
            mine, extra = ours(a, found, seed)
            rows |= mine
            if os.environ.get("FIELDGUIDE_PEER_PYTHON"):
                rows["peer"] = (*peer(a, found, seed), np.nan)
            for key, value in rows.items():
                table.setdefault(key, []).append(value)
            extras.append(extra)
            print(name, seed, {k: tuple(np.round(v, 3)) for k, v in rows.items()}, extra, flush=True)
        mean = {k: np.mean(v, 0) for k, v in table.items()}
        show(
            name,
            [
                dict(zip(("method", "raw", "depth removed", "count share"), (k, *v), strict=True))
                for k, v in mean.items()
            ],
        )
        told = {k: np.mean([e[k] for e in extras]) for k in extras[0]}
        print({k: round(float(v), 3) for k, v in told.items()})
        there = mean["peer"][:2] if "peer" in mean else np.array(PEER[name])
        blend = mean["ours, blend"]
        ok &= verdict(
            f"{name}: blend within 0.03 of the peer ({there[0]:.3f} / {there[1]:.3f})", (blend[:2] > there - 0.03).all()
        )
        ok &= verdict(
            f"{name}: blend {blend[1]:.3f} above ridge {mean['ridge'][1]:.3f}, depth removed",
            blend[1] > mean["ridge"][1],
        )
        if name == "hypothalamus":
            ok &= verdict(f"{name}: 80 % intervals cover {told['coverage']:.2f}", 0.7 <= told["coverage"] <= 0.9)
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
