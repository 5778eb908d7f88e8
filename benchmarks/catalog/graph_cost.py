"""Cost of a step of the graph models against the number of genes and of factors: seconds, memory, measured exponents.

    python -m benchmarks.catalog.graph_cost [--genes 20 100 500 2000] [--factors 5 20 80] [--steps 12] [--results DIR]

A step is one of `fit`, all included (loader, likelihood, constraint, gradients, Adam), of 64 cells on one thread; its
time is the median over steps of epochs of two, after the first. Memory: the peak of the process above what it had
before the fit. Each case runs in a process of its own, on cells drawn at random with one target each:

- ``factors``: `dcdfg` as it is by default, 20 factors, eight draws of masks a minibatch; ``factors, m``: at 500 genes;
- ``all pairs``: `dcdfg` with ``rank=None`` and linear equations, up to 500 genes;
- ``cyclic, linear``: `nodags`, one exact determinant a minibatch; ``cyclic, tanh``: one for each cell, up to 100 genes.

Exponents are slopes between the two largest sizes of log seconds against log size; by the operations of a step they are
1 in genes and in factors, 2 for all pairs, and 3 for determinants in the long run. Target: at 2,000 genes a step
through factors takes less than 1 s. ``--small`` measures single sizes, beside the official code: 30 / 200 / 500 /
1,000 genes through 10, 20, 20 and 20 factors with one draw of masks, target 2.5 / 6 / 12 / 25 ms (official 8 to 10, 90,
267, 550); `nodags`, tanh, 256 cells, 20 / 61 / 100 genes, target 6 / 55 / 150 ms (official 14 to 18, 93 to 103, 285).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import kept, show, verdict

ENTRIES = {
    "factors": ("dcdfg", {"rank": 20, "settle": 1.0}),
    "one draw": ("dcdfg", {"rank": 20, "settle": 1.0, "masks": 1}),
    "all pairs": ("dcdfg", {"rank": None, "mechanism": "linear", "settle": 1.0}),
    "cyclic, linear": ("nodags", {}),
    "cyclic, tanh": ("nodags", {"activation": "tanh"}),
}
LARGEST = {"factors": 10**9, "all pairs": 500, "cyclic, linear": 500, "cyclic, tanh": 100}
SMALL = [  # kind, genes, factors, cells, most milliseconds, the official code's
    ("one draw", 30, 10, 64, 2.5, "8 to 10"),
    ("one draw", 200, 20, 64, 6, "90"),
    ("one draw", 500, 20, 64, 12, "267"),
    ("one draw", 1000, 20, 64, 25, "550"),
    ("cyclic, tanh", 20, None, 256, 6, "14 to 18"),
    ("cyclic, tanh", 61, None, 256, 55, "93 to 103"),
    ("cyclic, tanh", 100, None, 256, 150, "285"),
]


def rss():
    """Peak memory of this process, MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(kind, genes, factors, cells, steps):
    """Print seconds and memory of one case as JSON; runs in a process of its own."""
    import warnings

    import torch

    from fieldguide.inference import fit

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    entry, arguments = ENTRIES[kind]
    if factors:
        arguments = arguments | {"rank": factors}
    rng = np.random.default_rng(0)
    n = 2 * cells
    data = {"x": rng.normal(size=(n, genes)).astype(np.float32), "targets": rng.integers(0, genes, n)}
    fit(entry, {"x": data["x"][:, :4]}, max_epochs=1, device="cpu", progress=False, **arguments)  # what any fit loads
    before = rss()
    settings = {"batch_size": cells, "max_epochs": 1 + steps // 2, "early_stopping": None, "validation": 0.0}
    fitted = fit(entry, data, device="cpu", progress=False, **settings, **arguments)
    seconds = float(np.median(fitted.history["seconds"].iloc[1:])) / 2
    print(
        json.dumps(
            {"kind": kind, "genes": genes, "factors": factors, "cells": cells, "seconds": seconds, "MB": rss() - before}
        )
    )


def case(a, kind, genes, factors, cells=64):
    """One row, measured in a fresh process or kept."""
    options = [kind, str(genes), str(factors or 0), str(cells), str(a.steps)]

    def run():
        command = [sys.executable, "-m", "benchmarks.catalog.graph_cost", "--case", *options]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{kind}, {genes} genes failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    return kept(a.results, "_".join(options).replace(", ", "_").replace(" ", "_"), run)


def exponent(rows, column):
    """Slope of log seconds against log size between the two largest sizes."""
    if len(rows) < 2:
        return np.nan
    low, high = sorted(rows, key=lambda r: r[column])[-2:]
    return float(np.log(high["seconds"] / low["seconds"]) / np.log(high[column] / low[column]))


def scaling(a):
    """Rows and verdicts of cost against size."""
    rows = {
        kind: [case(a, kind, d, 20 if kind == "factors" else None) for d in a.genes if d <= most]
        for kind, most in LARGEST.items()
    }
    middle = max((d for d in a.genes if d <= 500), default=min(a.genes))
    rows["factors, m"] = [case(a, "factors", middle, m) for m in a.factors]
    show("One step of 64 cells", [r | {"kind": k} for k, found in rows.items() for r in found])
    slopes = {k: exponent(v, "factors" if k == "factors, m" else "genes") for k, v in rows.items()}
    show(
        "Exponents",
        [{"kind": k, "of": "factors" if k == "factors, m" else "genes", "exponent": v} for k, v in slopes.items()],
    )
    ok = []
    for row in rows["factors"]:
        if row["genes"] == 2000:
            ok.append(verdict(f"2,000 genes: {row['seconds']:.3f} s a step < 1", row["seconds"] < 1))
    return ok


def small(a):
    """Rows and verdicts of single sizes beside the official code."""
    rows, ok = [], []
    for kind, genes, factors, cells, most, official in SMALL:
        found = case(a, kind, genes, factors, cells)
        ms = 1e3 * found["seconds"]
        rows.append(
            {"kind": kind, "genes": genes, "factors": factors, "cells": cells, "ms": ms, "official ms": official}
        )
        ok.append(verdict(f"{kind}, {genes} genes: {ms:.1f} ms <= {most}", ms <= most))
    show("Milliseconds a step, one thread", pd.DataFrame(rows).fillna("-").to_dict("records"))
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--genes", type=int, nargs="+", default=[20, 100, 500, 2000])
    p.add_argument("--factors", type=int, nargs="+", default=[5, 20, 80])
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--small", action="store_true", help="single sizes beside the official code instead")
    p.add_argument("--results", type=Path, help="folder: finished cases are kept there, and read again")
    p.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.case:
        measure(a.case[0], *map(int, a.case[1:]))
        return
    raise SystemExit(0 if all(small(a) if a.small else scaling(a)) else 1)


if __name__ == "__main__":
    main()
