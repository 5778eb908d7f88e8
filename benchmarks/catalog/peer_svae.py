"""CPU seconds of the published modules of sVAE+ (Genentech/sVAE 0.4.0), beside which `sparse_shifts.py` is judged.

    PYTHON benchmarks/catalog/peer_svae.py --cells 100 --epochs 3

Needs an environment with scvi-tools 0.18.0 and that package; nothing of this library. The published simulator makes the
cells, of which 80 of 100 perturbations are trained on; the training loop is ours, with the settings of scvi-tools
(minibatches of 128, Adam of 1e-3 and eps 0.01, nine cells of ten), without Lightning, and takes no time for validation.
"""

import argparse
import time

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from svae._module import SpikeSlabVAEModule
from svae.simulation import sparse_shift


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cells", type=int, default=100, help="of each perturbation")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    data = sparse_shift(a.cells, 100, 15, 100)
    labels = data.obs.iloc[:, 0].astype("category").cat.codes.to_numpy()
    rows = np.flatnonzero(labels < 80)
    rows = rows[: int(0.9 * len(rows))]
    counts = torch.as_tensor(np.asarray(data.X)[rows].astype(np.float32))
    codes = torch.as_tensor(labels[rows].astype(np.float32))[:, None]
    program = SpikeSlabVAEModule(100, n_batch=1, n_labels=100, n_latent=15, n_layers=2)
    program.sparse_mask_penalty = 20.0
    adam = torch.optim.Adam(program.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)
    program.train()
    start = time.process_time()
    for epoch in range(a.epochs):
        order = torch.randperm(len(rows))
        for chosen in order.split(128):
            if len(chosen) < 3:
                continue
            tensors = {
                REGISTRY_KEYS.X_KEY: counts[chosen],
                REGISTRY_KEYS.BATCH_KEY: torch.zeros(len(chosen), 1),
                REGISTRY_KEYS.LABELS_KEY: codes[chosen],
            }
            options = {"loss_kwargs": {"kl_weight": min(1.0, epoch / 50), "n_obs": len(rows)}}
            loss = program(tensors, **options)[-1].loss
            adam.zero_grad()
            loss.backward()
            adam.step()
    seconds = time.process_time() - start
    print(f"{len(rows)} cells, {a.epochs} epochs: {seconds:.1f} CPU s, {seconds / a.epochs:.2f} an epoch")


if __name__ == "__main__":
    main()
