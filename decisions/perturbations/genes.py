"""Which genes follow which latent, by decoding."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decoding import proportions
from fieldguide.decisions.perturbations.axes import AXES
from fieldguide.decisions.perturbations.screen import PSEUDO
from fieldguide.decisions.perturbations.targets import rotated_axes
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, one_of
from fieldguide.inference.fitted import Fit


def latent_genes(
    fitted: Any,
    data=None,
    *,
    site: str | None = None,
    rotate: str = "none",
    step: Any = 2.0,
    cells: Any = 200,
    seed: Any = 0,
) -> pd.DataFrame:
    """Return how the proportion of each gene follows each latent: log2 fold changes, genes x latents.

    Each latent is moved from half a step below the means of the guide to half a step above, the others held where they
    are, and the fold change is averaged over the cells that use the latent. 1e-5 is added to proportions, so that genes
    with next to no counts do not stand first.

    Parameters
    ----------
    fitted : Fit
        Of a program with a deterministic site ``rho``, each gene's proportion.
    data : optional
        Cells to start from; the training data by default.
    site : str, optional
        A latent site; the program's main one by default. Other latents are drawn from their prior.
    rotate : {"none", "ica", "sparse"}
        Axes as in `perturbation_targets`, to which the columns belong then; a step is in standard deviations of cells
        alike.
    step : float
        In the units of the latent.
    cells : int
        How many cells to average over, drawn at random.
    seed : int

    Returns
    -------
    DataFrame [G, D]
        Rows by name where the data has names.

    Raises
    ------
    TypeError
        For what is no fit.
    """
    if not isinstance(fitted, Fit):
        raise TypeError(f"fitted must be a Fit, not {type(fitted).__name__}")
    step, seed = checked_real("step", step, above=0), checked_seed(seed)
    dataset, site = fitted.read(data), fitted.program.latent if site is None else site
    rows = np.random.default_rng(seed).permutation(dataset.n_cells)[: checked_int("cells", cells, 1)]
    rows.sort()
    batch = {name: values.to(fitted.device) for name, values in dataset.batch(rows).items()}
    middle = torch.as_tensor(fitted.latent(data, site)[rows], device=fitted.device)
    one_of("rotate", rotate, AXES)
    directions = torch.eye(middle.shape[-1])
    if rotate != "none":
        directions = torch.as_tensor(np.linalg.inv(rotated_axes(fitted, data, site, rotate)).T.copy())
    changes = []
    for direction in directions.to(middle):
        move = step / 2 * direction
        high, low = (proportions(fitted, batch, seed, {site: middle + sign * move}).double() for sign in (1, -1))
        uses = (high != low).any(-1, keepdim=True).double()  # a latent may be none of a cell's
        change = ((high + PSEUDO).log2() - (low + PSEUDO).log2()) * uses
        changes.append((change.sum(0) / uses.sum().clamp(min=1)).cpu().numpy())
    index = None if dataset.var_names is None else pd.Index(dataset.var_names, name="gene")
    return pd.DataFrame(np.stack(changes, 1), index=index, columns=pd.RangeIndex(len(changes), name="latent"))
