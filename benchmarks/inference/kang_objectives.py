"""Which objective should a user choose? scVI on real cells under every objective, then guides to one model, then MIS.

Kang's control cells: all B and dendritic, all CD8 and 2,000 CD4 T cells of eight donors, 1,287 genes. Every objective
from one start and on one split; the model with the best held-out bound is kept, fresh guides are fitted to it by each
objective (the chi one with a Student t) and mixed with the prior. For each: held-out importance-weighted bound with
1,000 draws, k-hat, effective sample size, and differential expression against microarrays of sorted cells (Spearman of
fold changes, AUROC of their size for the genes that the microarrays call; see ``kang_de.py``), all at 200 draws a cell.

    python -m benchmarks.inference.kang_objectives [--epochs 40] [--particles 5]

No published number: the paper's real-data experiment used other cells.
"""

import argparse

import numpy as np
import torch

from benchmarks.common import show
from benchmarks.datasets import kang
from benchmarks.decisions.kang_de import PAIRS
from benchmarks.metrics import against_reference
from fieldguide.decisions import differential_expression
from fieldguide.inference import ELBO, IWAE, Chi, Renyi, VRMax, WakeWake, compare, three_step

CD4 = 2_000
"""CD4 T cells that are kept, of 5,154."""


def cells():
    """The cells and the microarray tables."""
    data, reference = kang()
    names = [name for pair in PAIRS.values() for name in pair[:2]]
    rows = np.flatnonzero(data.obs["cell_type"].isin(names))
    many = np.flatnonzero(data.obs["cell_type"] == "CD4 T cells")
    dropped = np.random.default_rng(0).permutation(many)[CD4:]
    data = data[np.setdiff1d(rows, dropped)].copy()
    data.obs["batch"] = data.obs["donor"]
    return data, reference


def against_arrays(posterior, reference):
    """Agreement of the fold changes of both comparisons with the microarrays."""
    found, genes = {}, list(reference.index)
    for name, (group, other, prefix) in PAIRS.items():
        de = differential_expression(
            posterior, "cell_type", group, other, scale="counts", batch_correction=False
        ).table.loc[genes]
        significant = reference[f"{prefix}_adj.P.Val"] < 0.05
        scores = against_reference(de["lfc"], reference[f"{prefix}_logFC"], significant)
        found |= {f"{score}, {name}": value for score, value in scores.items()}
        found[f"called, {name}"] = int(de["is_de"].sum())
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--particles", type=int, default=5)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    torch.set_num_threads(1)
    data, reference = cells()
    k = a.particles
    objectives = {
        "elbo": ELBO(kl="analytic"),
        "iwae": IWAE(k),
        "renyi": Renyi(0.5, k),
        "vrmax": VRMax(k),
        "wake": WakeWake(k),
        "chi": Chi(k),
    }
    study = compare(
        "scvi", data, objectives, max_epochs=a.epochs, kl_warmup=0, cells=300, seed=a.seed, draws=1000, progress=False
    )
    steps = three_step(study, {"chi": "student_t"}, max_epochs=a.epochs, kl_warmup=0, progress=False)
    columns = ["bound", "behind", "behind_se", "khat_median", "khat_above", "ess_median", "seconds"]
    for title, found in (
        (f"{data.n_obs} cells, every objective, K = {k}, {a.epochs} epochs", study),
        (f"Guides fitted to the model of {steps.model}, and their mixture", steps),
    ):
        rows = []
        for label, row in found.table.iterrows():
            source = steps.mixture if found is steps and label == "mix" else found.fits[label]
            agreement = against_arrays(source.posterior(particles=200, seed=a.seed), reference)
            rows.append({"objective": label} | row[columns].to_dict() | agreement)
        show(title, rows)
    shares = ", ".join(f"{n} {s:.0%}" for n, s in zip(steps.mixture.names, steps.mixture.shares, strict=True))
    print(f"\nshares of the mixture: {shares}")
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
