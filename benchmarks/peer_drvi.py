"""Latents of DRVI (Moinfar and Theis 2024), unsupervised and disentangled by its decoder, as scvi-tools has it.

Needs scvi-tools 1.5 or later (Python 3.12 or later) in the environment of the benchmark; other methods do not.
"""

import time
from typing import Any

import anndata
import numpy as np


def drvi(
    cells: anndata.AnnData, n_latent: int, seed: int, epochs: int, batch: str | None = None
) -> tuple[np.ndarray, float]:
    """Return means of the latents [N, D] and CPU seconds of a fit to counts, with its own defaults."""
    import scvi
    from scvi import external

    scvi.settings.seed = seed
    model: Any = external.DRVI
    cells = cells.copy()
    model.setup_anndata(cells, batch_key=batch)
    made, start = model(cells, n_latent=n_latent), time.process_time()
    made.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    return made.get_latent_representation(cells), time.process_time() - start
