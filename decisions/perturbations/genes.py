"""Which genes follow which latent, by decoding."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decoding import TINY, proportions
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.fitted import Fit


def latent_genes(
    fitted: Fit, data=None, *, site: str | None = None, step: Any = 2.0, cells: Any = 200, seed: Any = 0
) -> pd.DataFrame:
    """Return how the proportion of each gene follows each latent: log2 fold changes, genes x latents.

    Each latent is moved from half a step below the means of the guide to half a step above, the others held where they
    are, and the fold change is averaged over cells.

    Parameters
    ----------
    fitted : Fit
        Of a program with a deterministic site ``rho``, each gene's proportion.
    data : optional
        Cells to start from; the training data by default.
    site : str, optional
        A latent site; the program's main one by default. Other latents are drawn from their prior.
    step : float
        In the units of the latent.
    cells : int
        How many cells to average over, drawn at random.
    seed : int

    Returns
    -------
    DataFrame [G, D]
        Rows by name where the data has names.
    """
    step, seed = checked_real("step", step, above=0), checked_seed(seed)
    dataset, site = fitted.read(data), fitted.program.latent if site is None else site
    rows = np.random.default_rng(seed).permutation(dataset.n_cells)[: checked_int("cells", cells, 1)]
    rows.sort()
    batch = {name: values.to(fitted.device) for name, values in dataset.batch(rows).items()}
    middle = torch.as_tensor(fitted.latent(data, site)[rows], device=fitted.device)
    changes = []
    for latent in range(middle.shape[-1]):
        move = torch.zeros_like(middle)
        move[..., latent] = step / 2
        high, low = (
            proportions(fitted, batch, seed, {site: middle + sign * move}).clamp(min=TINY).log2() for sign in (1, -1)
        )
        changes.append((high - low).double().mean(0).cpu().numpy())
    index = None if dataset.var_names is None else pd.Index(dataset.var_names, name="gene")
    return pd.DataFrame(np.stack(changes, 1), index=index, columns=pd.RangeIndex(len(changes), name="latent"))
