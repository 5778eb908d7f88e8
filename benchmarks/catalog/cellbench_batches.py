"""Batch removal with certain labels: three cell lines (told apart by their SNPs) measured by two protocols.

499 cells, the 2,000 most variable genes. With the protocol as batch covariate the protocols should mix while the lines
stay apart; without it the protocols separate. Deterministic mixing (entropy among 50 neighbours, all cells, nats).
"""

from sklearn.decomposition import PCA

from benchmarks.common import Bench, parser, show, split, verdict
from benchmarks.datasets import cellbench
from benchmarks.metrics import batch_mixing, clustering, log_normalised, most_mixing


def main():
    p = parser(__doc__)
    p.add_argument("--epochs", type=int, default=400)
    p.add_argument("--seeds", type=int, default=1)
    a = p.parse_args()
    bench, data = Bench(a, "cellbench"), cellbench()
    h5ad, lines, protocols = bench.file(data, "cellbench"), data.obs["cell_line"], data.obs["protocol"]
    pca = PCA(10, random_state=0).fit_transform(log_normalised(data.X.toarray()))
    rows = [
        {"method": "PCA of log-normalised counts"} | clustering(pca, lines) | {"mixing": batch_mixing(pca, protocols)}
    ]
    ok = True
    for system in bench.systems:
        for seed in range(a.seeds):
            found = {}
            for key in ("protocol", None):
                name = "with" if key else "without"
                run = bench.run(
                    system,
                    f"{name}_seed{seed}",
                    h5ad,
                    batch_key=key,
                    held_out=split(data.n_obs, 0.1, seed),
                    epochs=a.epochs,
                    seed=seed,
                )
                z = run.arrays["z"]
                found[name] = clustering(z, lines) | {
                    "mixing": batch_mixing(z, protocols),
                    "held-out ELBO": run.result["elbo"],
                }
                rows.append({"method": f"{system}, {name} batch", "seed": seed} | found[name])
            if system == "ours":
                ok &= verdict(f"seed {seed}: line ARI {found['with']['ARI']:.3f} >= 0.95", found["with"]["ARI"] >= 0.95)
                more = found["with"]["mixing"] > found["without"]["mixing"] + 0.1
                ok &= verdict(f"seed {seed}: the covariate mixes the protocols", more)
    show("CellBench, two protocols", rows, f"mixing of batches that do not differ: {most_mixing(protocols):.3f}")
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
