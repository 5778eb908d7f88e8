"""scvi-tools' GIMVI on one pair (npz), writing predicted counts of the hidden genes; run by gimvi_imputation.py."""

import json
import logging
import sys
import warnings

import anndata
import numpy as np

warnings.filterwarnings("ignore")


def main(pair, out, options):
    import scvi
    import torch

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    file, options = np.load(pair), json.loads(options)
    scvi.settings.verbosity, scvi.settings.seed = 40, options["seed"]
    hidden, genes = file["hidden"], file["spatial"].shape[1]
    shared = np.setdiff1d(np.arange(genes), hidden)
    names = np.array([f"g{i}" for i in range(genes)])
    reference, spatial = anndata.AnnData(file["reference"]), anndata.AnnData(file["spatial"][:, shared])
    reference.var_names, spatial.var_names = names, names[shared]
    for side in (reference, spatial):
        scvi.external.GIMVI.setup_anndata(side)
    model = scvi.external.GIMVI(reference, spatial, n_latent=8)
    model.train(
        max_epochs=options["epochs"],
        kappa=options["kappa"],
        accelerator="cpu",
        train_size=0.95,
        batch_size=128,
        enable_progress_bar=False,
        plan_kwargs={"n_epochs_kl_warmup": 400},
    )
    np.save(out, model.get_imputed_values(normalized=False)[1][:, hidden])


if __name__ == "__main__":
    main(*sys.argv[1:])
