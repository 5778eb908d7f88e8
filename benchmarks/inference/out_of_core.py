"""Training from disk: 200,000 cells x 2,000 genes in a backed h5ad file, against the same data in memory.

Targets: peak memory under 1.5 GB, at least 60 % of the in-memory rate. The file (about 260 MB) is written block by
block first; ``--file`` keeps it for the next time.
"""

from pathlib import Path

from benchmarks.common import Bench, parser, show, verdict
from benchmarks.inference import make_counts
from fieldguide.catalog.data.simulate import SparseCounts


def main():
    p = parser(__doc__)
    p.add_argument("--cells", type=int, default=200_000)
    p.add_argument("--epochs", type=int, default=2, help="the first is not timed")
    p.add_argument("--file", type=Path, help="where the simulated data is kept")
    a = p.parse_args()
    a.only = "ours"
    bench = Bench(a, "out_of_core")
    path = a.file or Path(bench.folder.name) / "large.h5ad"
    if not path.exists():
        make_counts.write(path, SparseCounts(a.cells))
    rows, rate = [], {}
    for backed in (True, False):
        name = "backed" if backed else "memory"
        options = {"batch_key": "batch", "epochs": a.epochs, "backed": backed}
        r = bench.run("ours", f"{name}_{a.cells}", str(path), **options).result
        rate[name] = r["cells"] / r["epoch_s"]
        row = {"counts": name, "cells per second": rate[name], "fit s": r["fit_s"], "fit CPU s": r["fit_cpu_s"]}
        rows.append(row | {"peak RSS MB": r["peak_rss_mb"]})
    show(f"{a.cells} cells x 2,000 genes, file of {path.stat().st_size / 1e6:.0f} MB", rows)
    ok = verdict(f"peak memory {rows[0]['peak RSS MB']:.0f} MB under 1,500 MB", rows[0]["peak RSS MB"] < 1500)
    share = rate["backed"] / rate["memory"]
    return verdict(f"{100 * share:.0f} % of the in-memory rate, at least 60 %", share >= 0.6) and ok


if __name__ == "__main__":
    raise SystemExit(not main())
