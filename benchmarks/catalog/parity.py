"""Parity with scvi-tools: held-out bound per cell, same data, split, network, settings and epochs; three seeds.

Simulated sparse counts (10,000 x 2,000, two batches) and, when FIELDGUIDE_DATA is set, mouse cortex (3,005 x 558).
Target: our bound at most 0.5 % below the peer's.
"""

import os

from benchmarks.common import Bench, parser, show, split, verdict
from benchmarks.datasets import zeisel
from fieldguide.catalog.data.simulate import sparse_counts


def main():
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--likelihood", default="nb")
    a = p.parse_args()
    bench, rows, ok = Bench(a, "parity"), [], True
    problems = {"simulated": (sparse_counts(seed=0), {"batch_key": "batch", "epochs": 20})}
    if "FIELDGUIDE_DATA" in os.environ:
        problems["zeisel"] = (zeisel(), {"epochs": 100})
    for name, (data, options) in problems.items():
        h5ad = bench.file(data, name)
        for seed in range(a.seeds):
            held = split(data.n_obs, min(0.1, 500 / data.n_obs), seed)
            runs = {
                system: bench.run(
                    system,
                    f"{name}_{a.likelihood}_seed{seed}",
                    h5ad,
                    held_out=held,
                    seed=seed,
                    likelihood=a.likelihood,
                    particles=200,
                    **options,
                )
                for system in bench.systems
            }
            row = {"data": name, "seed": seed}
            for system, run in runs.items():
                row |= {f"{system} ELBO": run.result["elbo"], f"{system} IWAE": run.result["iwae"]}
            if len(runs) == 2:
                for bound in ("elbo", "iwae"):
                    peer = runs["peer"].result[bound]
                    gap = 100 * (peer - runs["ours"].result[bound]) / abs(peer)
                    row[f"{bound.upper()} behind %"] = gap
                    ok &= verdict(
                        f"{name}, seed {seed}: {bound} {gap:+.3f} % behind the peer, at most 0.5 %", gap <= 0.5
                    )
            rows.append(row)
    show(f"Held-out bound, nats per cell ({a.likelihood})", rows)
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
