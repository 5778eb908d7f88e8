"""What the benchmark scripts share: options of a run, running ours and the peer on them, printing side by side."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd

HERE = Path(__file__).parent

OPTIONS = {
    "batch_key": None,  # obs column of the batch covariate
    "held_out": [],  # row numbers never trained on; bounds are reported on them
    "epochs": 100,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "kl_warmup": None,  # epochs over which the KL weight rises to 1; None: 1 from the first step
    "likelihood": "nb",
    "dispersion": "gene",
    "library": "observed",
    "n_latent": 10,
    "n_hidden": 128,
    "n_layers": 1,
    "dropout": 0.1,
    "seed": 0,
    "threads": 1,
    "device": "cpu",
    "elbo_samples": 25,
    "particles": 500,  # of the importance-weighted bound
    "rho": False,  # also write posterior mean proportions
    "de": {},  # name -> comparison(...)
    "backed": False,  # leave the counts on disk
    "objective": "elbo",
    "draws": 200,  # of the posterior behind differential expression
}


QUERY = {
    "mode": "change",
    "delta": 0.25,
    "fdr": 0.05,
    "batch_correction": False,
    "unit": "group",
    "estimator": "snis",
    "scale": "proportions",
}

OURS_ONLY = {"backed", "objective", "draws", "unit", "estimator", "scale"}


def comparison(group, reference, **query):
    """Options of one differential-expression query between two lists of row numbers."""
    rows = {"group": [int(i) for i in group], "reference": [int(i) for i in reference]}
    return rows | QUERY | query


@dataclass
class Run:
    """What a run wrote: the numbers of result.json, the arrays, the DE tables by name."""

    result: dict
    arrays: dict
    tables: dict


def parser(doc):
    """Command line common to all scripts."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer-results", type=Path, help="folder of earlier peer runs: read if there, else run and kept")
    p.add_argument("--our-results", type=Path, help="the same for our runs")
    p.add_argument("--only", choices=["ours", "peer"], help="run one side only")
    return p


class Bench:
    """Runs the systems of one script on prepared data.

    Parameters
    ----------
    arguments
        Parsed command line of `parser`.
    name
        Name of the script; results of a run are kept under ``<folder>/<name>_<run>``.
    """

    def __init__(self, arguments, name):
        self.name, self.folder = name, tempfile.TemporaryDirectory(prefix="fieldguide-bench-")
        self.kept = {"ours": arguments.our_results, "peer": arguments.peer_results}
        peer = os.environ.get("FIELDGUIDE_PEER_PYTHON")
        self.python = {"ours": sys.executable, "peer": peer}
        self.systems = [s for s in ("peer", "ours") if arguments.only in (None, s)]
        if "peer" in self.systems and not peer and not arguments.peer_results:
            print("FIELDGUIDE_PEER_PYTHON is not set (see benchmarks/README.md): the peer is left out")
            self.systems.remove("peer")

    def file(self, data: anndata.AnnData, name: str) -> str:
        """Write a data set where both systems can read it: counts as CSR float32, genes that have any."""
        path = Path(self.folder.name) / f"{name}.h5ad"
        if not path.exists():
            data = data[:, np.asarray(data.X.sum(0)).ravel() > 0]
            anndata.AnnData(data.X.astype(np.float32), obs=data.obs, var=data.var[[]]).write_h5ad(path)
        return str(path)

    def run(self, system: str, name: str, h5ad: str, *, fresh: bool = False, **options) -> Run:
        """Run one system, or read what an earlier run with equal options kept."""
        options = OPTIONS | options
        if unknown := options.keys() - OPTIONS.keys():
            raise ValueError(f"unknown options {sorted(unknown)}")
        options["held_out"] = [int(i) for i in options["held_out"]]
        options["data"] = _fingerprint(h5ad)
        if system == "peer":
            options = {k: v for k, v in options.items() if k not in OURS_ONLY}
            options["de"] = {
                name: {k: v for k, v in query.items() if k not in OURS_ONLY} for name, query in options["de"].items()
            }
        base = self.kept[system] or Path(self.folder.name) / system
        out = Path(base) / f"{self.name}_{name}"
        if fresh or not _same(out / "options.json", options):
            if self.python[system] is None:
                raise SystemExit(f"no kept result {out} for these options and FIELDGUIDE_PEER_PYTHON is not set")
            out.mkdir(parents=True, exist_ok=True)
            for old in ("options.json", "result.json"):
                (out / old).unlink(missing_ok=True)
            run_file = Path(self.folder.name) / "run.json"
            run_file.write_text(json.dumps(options | {"h5ad": h5ad}))
            script = HERE / {"ours": "ours_scvi.py", "peer": "peer_scvi.py"}[system]
            threads = {f"{lib}_NUM_THREADS": str(options["threads"]) for lib in ("OMP", "MKL", "OPENBLAS")}
            done = subprocess.run(
                [self.python[system], script, run_file, out],
                env=os.environ | threads,
                capture_output=True,
                text=True,
            )
            if done.returncode or not (out / "result.json").exists():  # an ended lightning run may return 0
                raise SystemExit(f"{system} failed on {self.name}_{name}:\n{done.stderr[-3000:]}")
            (out / "options.json").write_text(json.dumps(options))  # last: marks the result as whole
        arrays = out / "arrays.npz"
        return Run(
            json.loads((out / "result.json").read_text()),
            dict(np.load(arrays)) if arrays.exists() else {},
            {f.stem[3:]: pd.read_csv(f, index_col=0) for f in sorted(out.glob("de_*.csv"))},
        )


@cache
def _fingerprint(h5ad):
    """Size of the file's counts, with two sums: tells apart the data sets that kept results may come from."""
    with h5py.File(h5ad) as file:
        x = file["X"]
        return f"{x.attrs['shape'].tolist()} {x['data'][:].sum(dtype=float):.0f} {x['indices'][:].sum(dtype=float):.0f}"


def _same(file, options):
    return file.exists() and json.loads(file.read_text()) == json.loads(json.dumps(options))


def kept(folder, key, make):
    """One row of results (a dict) or a list: from ``<folder>/<key>.json``, or made, and kept if there is any."""
    path = Path(folder) / f"{key}.json" if folder else None
    if path and path.exists():
        return json.loads(path.read_text())
    row = make()
    for one in row if isinstance(row, list) else [row]:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in one.items()}, flush=True)
    if path and row:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row, default=float))
    return row


def split(n, share, seed):
    """Row numbers held out: a random `share` of n, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(n)[: round(share * n)])


def show(title, rows, note=""):
    """Print a list of dicts as a table, columns in the order they first appear."""
    table = pd.DataFrame(rows)
    print(f"\n## {title}\n")
    print(table.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.4g}" if abs(v) < 100 else f"{v:.2f}"))
    if note:
        print(f"\n{note}")


def verdict(claim, ok):
    """Print whether a target is met; returns it, so that scripts can exit with a status."""
    print(f"{'met    ' if ok else 'NOT met'}  {claim}")
    return bool(ok)
