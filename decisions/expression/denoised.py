"""Denoised expression and imputed counts: what the model says a cell expresses, with its uncertainty."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fieldguide.decisions.cells import cell_names, chosen_rows, require_posterior
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.diagnostics import diagnose_cells
from fieldguide.decisions.expression.figures import uncertainty
from fieldguide.decisions.expression.reader import Chunk, Expression, read_expression
from fieldguide.inference.checks.arguments import checked_int, checked_real
from fieldguide.inference.posterior import Posterior

NOTE = "The parameters of the model are taken as known."


@dataclass
class CellEstimates(Decision):
    """Estimates for every cell and gene.

    Attributes
    ----------
    table : DataFrame [n, G]
        Posterior means, cells in rows.
    sd : DataFrame [n, G]
        Posterior standard deviations.
    low, high : DataFrame [n, G] or None
        Central interval, where one was asked for.
    """

    sd: pd.DataFrame = field(default_factory=pd.DataFrame)
    low: pd.DataFrame | None = None
    high: pd.DataFrame | None = None


def denoised_expression(
    posterior: Posterior,
    scale: float | str = 1.0,
    batch: str | bool | Sequence | None = None,
    estimator: str = "snis",
    cells: ArrayLike | None = None,
    nuisance: bool | str | Sequence[str] = False,
) -> CellEstimates:
    """Return posterior mean and standard deviation of each cell's expression.

    Parameters
    ----------
    posterior : Posterior
    scale : float or "library"
        1: proportions, which sum to one in a cell. 1e4: counts per ten thousand. "library": the cell's own library
        size, so that the mean is comparable with its counts.
    batch : label, list of labels or True, optional
        Decode every cell under this batch, or under several (True: all) with equal weights; by default under its own.
    estimator : {"snis", "plugin"}
    cells : array of int, optional
        Row numbers; all cells by default. The result holds n x G values in single precision.
    nuisance : bool, site or list of sites
        Latent sites to draw anew from their prior and average over, see `differential_expression`; True: those that
        the program declares. By default each cell keeps its own.

    Raises
    ------
    ValueError
        For an unknown batch or scale.
    """
    require_posterior(posterior)
    if isinstance(scale, str) and scale != "library":
        raise ValueError(f"scale must be a number or 'library', not {scale!r}")
    if not isinstance(scale, str):
        scale = checked_real("scale, unless it is 'library',", scale, above=0)
    expression = read_expression(posterior, estimator, False if batch is None else batch, nuisance)
    rows, conditions = chosen_rows(posterior, cells), expression.conditions
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for chunk in expression.chunks(rows):
        rho = chunk.rho
        factor = chunk.library if scale == "library" else torch.full_like(chunk.share[:1], float(scale))
        _add_moments(parts, chunk, factor.to(rho), rho)
    settings = {"scale": scale, "batches": conditions.batches, "nuisance": list(conditions.redrawn)}
    return _estimates(expression, rows, parts, settings)


def impute(
    posterior: Posterior,
    estimator: str = "snis",
    cells: ArrayLike | None = None,
    interval: float = 0.9,
    draws: int = 100,
) -> CellEstimates:
    """Return the expected count of each gene in each cell, library * rho, with a predictive interval of the count.

    Parameters
    ----------
    posterior : Posterior
        Of a program with a site ``rho`` and an observed site ``counts``.
    estimator : {"snis", "plugin"}
    cells : array of int, optional
        Row numbers; all cells by default.
    interval : float
        Probability of the central predictive interval of a count measured anew in the same cell; 0 leaves it out.
    draws : int
        Replicated counts from which the interval is read.

    Notes
    -----
    Under a zero-inflated likelihood the expected count is that without the inflation; the interval includes it. The
    interval is the model's: check it with `fieldguide.decisions.posterior_predictive_check`.
    """
    require_posterior(posterior)
    interval, draws = checked_real("interval", interval, at_least=0, below=1), checked_int("draws", draws, 1)
    expression, rows = read_expression(posterior, estimator), chosen_rows(posterior, cells)
    ends = [max(0, ceil(q * draws - 1e-9) - 1) for q in ((1 - interval) / 2, 1 - (1 - interval) / 2)]
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for chunk in expression.chunks(rows):
        rho = chunk.rho
        _add_moments(parts, chunk, chunk.library.to(rho), rho)
        if interval:
            counts = chunk.replicate(draws).cpu().numpy()
            counts.partition(ends, axis=0)
            for name, end in zip(("low", "high"), ends, strict=True):
                parts[name].append(counts[end].copy())
    return _estimates(expression, rows, parts, {"interval": interval, "draws": draws})


def _add_moments(parts: dict[str, list[np.ndarray]], chunk: Chunk, factor: Tensor, rho: Tensor) -> None:
    """Add mean and standard deviation over particles of factor [S or 1, b] * rho [S, b, G], and the log weights."""
    share, values = chunk.share.to(rho.dtype), factor.unsqueeze(-1) * rho
    mean = torch.einsum("sb,sbg->bg", share, values)
    variance = torch.einsum("sb,sbg->bg", share, (values - mean) ** 2)
    parts["mean"].append(mean.cpu().numpy())
    parts["sd"].append(variance.sqrt().cpu().numpy())
    parts["log_weights"].append(chunk.log_weights)


def _estimates(
    expression: Expression, rows: np.ndarray, parts: dict[str, list[np.ndarray]], settings: dict[str, Any]
) -> CellEstimates:
    posterior, diagnostics = expression.posterior, diagnose_cells(parts.pop("log_weights"))
    names = {"index": cell_names(posterior, rows), "columns": posterior.var_names}
    frames = {name: pd.DataFrame(np.concatenate(values), **names) for name, values in parts.items()}
    settings = settings | {"estimator": expression.estimator, "posterior_seed": posterior.seed}
    return CellEstimates(frames.pop("mean"), diagnostics, settings, (NOTE,), uncertainty, **frames)
