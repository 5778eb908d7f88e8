"""Which genes follow which latent, by decoding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.fitted import Fit
from fieldguide.inference.program import Batch
from fieldguide.inference.randomness import isolated, stream

SITE = "rho"
TINY = 1e-12
"""Least proportion of a gene, before the logarithm."""


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


def proportions(fitted: Fit, batch: Batch, seed: int, latents: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return each gene's proportion [B, G] in cells whose latents are given, or else drawn from their prior.

    Raises
    ------
    TypeError
        If the program has no deterministic site ``rho``.
    """
    program = fitted.program.eval()
    model = poutine.condition(program.model, data=dict(latents or {}))
    with torch.no_grad(), pyro.validation_enabled(False), isolated(fitted.device, stream(seed, "decoding")):
        trace = poutine.trace(model).get_trace(batch)
    if SITE not in trace.nodes:
        raise TypeError(f"{fitted.name} has no deterministic site '{SITE}' (each gene's proportion)")
    value: Any = trace.nodes[SITE]["value"]
    return value
