"""Fit fieldguide's scVI as told by a JSON file of options; the twin of `peer_scvi.py`.

    python -m benchmarks.ours_scvi options.json out/

Reads the options of `common.OPTIONS` and writes the files that `peer_scvi.py` describes, and importance-sampling
diagnostics where a posterior was asked for.
"""

import json
import re
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch

from fieldguide.inference import ELBO, IWAE, fit

OBJECTIVES = {"elbo": ELBO(kl="analytic"), "iwae": IWAE(5, gradient="dreg")}


def peak_rss_mb():
    """Largest resident memory of this program so far (Linux).

    Not getrusage: what that reports for a process includes the process that started it.
    """
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def per_epoch(marks):
    """Mean CPU and wall seconds of an epoch after the first, from the clocks at the end of each."""
    cpu, wall = ((last - first) / max(len(marks) - 1, 1) for first, last in zip(marks[0], marks[-1], strict=True))
    return {"epoch_cpu_s": cpu, "epoch_s": wall} if len(marks) > 1 else {}


def decide(found, data, o, out):
    """Write one table for each comparison asked for; return the seconds each took."""
    from fieldguide.decisions import differential_expression

    for name, de in o["de"].items():
        sides = np.full(data.n_obs, "other", dtype=object)
        sides[de["group"]], sides[de["reference"]] = "group", "reference"
        data.obs[name] = pd.Categorical(sides)
    posterior, seconds = found.posterior(data, particles=o["draws"], seed=o["seed"]), {}
    for name, de in o["de"].items():
        start = time.perf_counter()
        rules = {k: de[k] for k in ("mode", "delta", "fdr", "estimator", "scale", "batch_correction")}
        rules |= {"unit": de["unit"]} if de["mode"] == "change" else {}
        decision = differential_expression(posterior, name, "group", "reference", seed=o["seed"], **rules)
        table = decision.table.loc[list(data.var_names)].rename(columns={"is_de": "called"})
        table.to_csv(out / f"de_{name}.csv")
        seconds[f"de_{name}_s"] = time.perf_counter() - start
    return seconds


def main(options_file, out):
    o, out = json.loads(Path(options_file).read_text()), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(o["threads"])

    data = anndata.read_h5ad(o["h5ad"], backed="r" if o["backed"] else None)
    # The schema finds a batch covariate in obs["batch"]: leave there what the options name, and nothing else.
    key = o["batch_key"]
    data.obs = data.obs[[key]].rename(columns={key: "batch"}) if key else data.obs[[]]
    held = np.asarray(o["held_out"], dtype=int)
    marks = []
    wall, cpu = time.perf_counter(), time.process_time()
    found = fit(
        "scvi",
        data,
        objective=OBJECTIVES[o["objective"]],
        max_epochs=o["epochs"],
        batch_size=o["batch_size"],
        learning_rate=o["learning_rate"],
        seed=o["seed"],
        device={"gpu": "cuda"}.get(o["device"], o["device"]),
        validation=held,
        early_stopping=None,
        kl_warmup=o["kl_warmup"] or 0,
        progress=False,
        callbacks=[lambda *_: marks.append((time.process_time(), time.perf_counter()))],
        n_latent=o["n_latent"],
        n_hidden=o["n_hidden"],
        n_layers=o["n_layers"],
        dropout=o["dropout"],
        likelihood=o["likelihood"],
        dispersion=o["dispersion"],
        library=o["library"],
    )
    result = {
        "system": "fieldguide",
        "fit_s": time.perf_counter() - wall,
        "fit_cpu_s": time.process_time() - cpu,
        "peak_rss_mb": peak_rss_mb(),
        "cells": data.n_obs - len(held),
        "epochs": len(marks),
    } | per_epoch(marks)
    arrays = {"z": found.latent()} if not o["backed"] else {}
    if len(held):
        arrays["elbo"] = found.bound(data[held], ELBO(particles=o["elbo_samples"], kl="analytic"))
        arrays["iwae"] = found.bound(data[held], IWAE(particles=o["particles"]))
        result |= {"elbo": float(arrays["elbo"].mean()), "iwae": float(arrays["iwae"].mean())}
    if o["rho"]:
        arrays["rho"] = found.posterior(particles=25).expect(lambda v: v["rho"], estimator="plugin")
    np.savez_compressed(out / "arrays.npz", **arrays)

    if o["de"]:
        result |= decide(found, data, o, out)
    (out / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
