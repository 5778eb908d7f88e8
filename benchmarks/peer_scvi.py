"""Fit scvi-tools' SCVI as told by a JSON file of options; the other side of every comparison.

    $FIELDGUIDE_PEER_PYTHON benchmarks/peer_scvi.py options.json out/

Needs scvi-tools only. The options are those of `common.OPTIONS`; `ours_scvi.py` reads the same ones. Writes

* ``out/result.json``: times, memory, mean held-out bounds;
* ``out/arrays.npz``: z [N, D] posterior means; elbo and iwae [n held out]; rho [N, G] when asked;
* ``out/de_<name>.csv``: one table per comparison asked for.
"""

import json
import logging
import re
import sys
import time
import warnings
from pathlib import Path

import anndata
import lightning.pytorch as pl
import numpy as np
import scvi
import torch


def peak_rss_mb():
    """Largest resident memory of this program so far (Linux).

    Not getrusage: what that reports for a process includes the process that started it.
    """
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def per_epoch(marks):
    """Mean CPU and wall seconds of an epoch after the first, from the clocks at the end of each."""
    cpu, wall = ((last - first) / max(len(marks) - 1, 1) for first, last in zip(marks[0], marks[-1], strict=True))
    return {"epoch_cpu_s": cpu, "epoch_s": wall} if len(marks) > 1 else {}


class Clock(pl.Callback):
    """CPU and wall clock at the end of every epoch."""

    def __init__(self):
        self.marks = []

    def on_train_epoch_end(self, *_):
        self.marks.append((time.process_time(), time.perf_counter()))


@torch.inference_mode()
def bounds(model, rows, samples, particles):
    """Per-cell ELBO (mean over samples, analytic KL) and importance-weighted bound of the given rows."""
    module, parts = model.module.eval(), []
    per_pass = 25

    def log_weights(tensors, draws):
        inference, generative, losses = module(
            tensors,
            inference_kwargs={"n_samples": draws},
            get_inference_input_kwargs={"full_forward_pass": True},
        )
        kl, reconstruction = sum(losses.kl_local.values()), losses.dict_sum(losses.reconstruction_loss)
        log_w = (
            generative["pz"].log_prob(inference["z"]).sum(-1)
            - reconstruction
            - inference["qz"].log_prob(inference["z"]).sum(-1)
        )
        if not module.use_observed_lib_size:
            library = inference["library"]
            log_w = log_w + (generative["pl"].log_prob(library) - inference["ql"].log_prob(library)).sum(-1)
        return log_w.reshape(draws, -1), (-reconstruction - kl).reshape(draws, -1)

    for tensors in model._make_data_loader(model.adata, indices=rows, batch_size=128):
        elbo = log_weights(tensors, samples)[1].mean(0)
        log_w = torch.cat([log_weights(tensors, per_pass)[0] for _ in range(particles // per_pass)])
        parts.append(torch.stack([elbo, log_w.double().logsumexp(0) - np.log(len(log_w))]))
    return torch.cat(parts, 1).numpy()


def main(options_file, out):
    o, out = json.loads(Path(options_file).read_text()), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(o["threads"])
    scvi.settings.verbosity, scvi.settings.seed = 40, o["seed"]

    data = anndata.read_h5ad(o["h5ad"])
    held = np.asarray(o["held_out"], dtype=int)
    train = np.setdiff1d(np.arange(data.n_obs), held)
    scvi.model.SCVI.setup_anndata(data, batch_key=o["batch_key"])
    model = scvi.model.SCVI(
        data,
        n_latent=o["n_latent"],
        n_hidden=o["n_hidden"],
        n_layers=o["n_layers"],
        dropout_rate=o["dropout"],
        gene_likelihood=o["likelihood"],
        dispersion=o["dispersion"],
        use_observed_lib_size=o["library"] == "observed",
    )
    clock, wall, cpu = Clock(), time.perf_counter(), time.process_time()
    model.train(
        max_epochs=o["epochs"],
        accelerator=o["device"],
        devices=1,
        batch_size=o["batch_size"],
        plan_kwargs={"lr": o["learning_rate"], "n_epochs_kl_warmup": o["kl_warmup"]},
        datasplitter_kwargs={"external_indexing": [train, held]},
        callbacks=[clock],
        enable_progress_bar=False,
    )
    result = {
        "system": f"scvi-tools {scvi.__version__}",
        "fit_s": time.perf_counter() - wall,
        "fit_cpu_s": time.process_time() - cpu,
        "peak_rss_mb": peak_rss_mb(),
        "cells": len(train),
        "epochs": len(clock.marks),
    } | per_epoch(clock.marks)
    torch.manual_seed(o["seed"])
    arrays = {"z": model.get_latent_representation(batch_size=1024)}
    if len(held):
        arrays["elbo"], arrays["iwae"] = bounds(model, held, o["elbo_samples"], o["particles"])
        result |= {"elbo": float(arrays["elbo"].mean()), "iwae": float(arrays["iwae"].mean())}
    if o["rho"]:
        arrays["rho"] = model.get_normalized_expression(n_samples=25, return_numpy=True)
    np.savez_compressed(out / "arrays.npz", **arrays)
    for name, de in o["de"].items():
        start = time.perf_counter()
        rows = [np.asarray(de[side], dtype=int) for side in ("group", "reference")]
        table = model.differential_expression(
            idx1=rows[0],
            idx2=rows[1],
            mode=de["mode"],
            delta=de["delta"],
            fdr_target=de["fdr"],
            batch_correction=de["batch_correction"],
            silent=True,
        ).loc[list(data.var_names)]
        change = de["mode"] == "change"
        table["lfc"] = table["lfc_mean"] if change else np.log2(table["scale1"] / table["scale2"])
        table["probability"] = table["proba_de" if change else "proba_m1"]
        table["called"] = table[f"is_de_fdr_{de['fdr']}"] if change else table["bayes_factor"].abs() > 3
        table[["lfc", "probability", "bayes_factor", "called"]].to_csv(out / f"de_{name}.csv")
        result[f"de_{name}_s"] = time.perf_counter() - start
    (out / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
