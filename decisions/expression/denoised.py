"""Denoised expression and imputed counts: what the model says a cell expresses, with its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.diagnostics import diagnose
from fieldguide.decisions.draws import ESTIMATORS, proportions, replicate, shares
from fieldguide.decisions.expression.conditions import batch_codes
from fieldguide.decisions.expression.counts import library
from fieldguide.decisions.expression.figures import uncertainty
from fieldguide.decisions.expression.nuisance import redrawn_sites
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
    cells: np.ndarray | None = None,
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
    _check(scale, estimator)
    batches = None if batch is None else batch_codes(posterior, batch, "batch")
    redrawn = redrawn_sites(posterior, nuisance, "nuisance")
    means, spreads, log_weights = [], [], []
    rows = _rows(posterior, cells)
    for seen, w, values in posterior.chunks(rows):
        rho, share = proportions(posterior, seen, w, values, batches, redrawn), shares(w, estimator)
        factor = library(posterior, seen, values) if scale == "library" else torch.full_like(share[:1], float(scale))
        mean, sd = _moments(share, factor.to(rho), rho)
        means.append(mean)
        spreads.append(sd)
        log_weights.append(w.log_w.double().cpu().numpy())
    settings = {
        "scale": scale,
        "batches": batches,
        "nuisance": list(redrawn),
        "estimator": estimator,
        "posterior_seed": posterior.seed,
    }
    return CellEstimates(
        _framed(posterior, rows, means),
        diagnose(np.concatenate(log_weights, 1), "cells", len(rows)).to_frame().T,
        settings,
        (NOTE,),
        uncertainty,
        sd=_framed(posterior, rows, spreads),
    )


def impute(
    posterior: Posterior,
    estimator: str = "snis",
    cells: np.ndarray | None = None,
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
    _check(1.0, estimator)
    if not 0 <= interval < 1:
        raise ValueError(f"interval must be a probability in [0, 1), not {interval}")
    rows, tail = _rows(posterior, cells), (1 - interval) / 2
    means, spreads, lows, highs, log_weights = [], [], [], [], []
    for seen, w, values in posterior.chunks(rows):
        rho = proportions(posterior, seen, w, values)
        mean, sd = _moments(shares(w, estimator), library(posterior, seen, values).to(rho), rho)
        means.append(mean)
        spreads.append(sd)
        if interval:
            counts = replicate(posterior, seen, w, values, draws, estimator).cpu().numpy()
            ends = [max(0, ceil(q * draws - 1e-9) - 1) for q in (tail, 1 - tail)]
            counts.partition(ends, axis=0)
            lows.append(counts[ends[0]].copy())
            highs.append(counts[ends[1]].copy())
        log_weights.append(w.log_w.double().cpu().numpy())
    settings = {"interval": interval, "draws": draws, "estimator": estimator, "posterior_seed": posterior.seed}
    return CellEstimates(
        _framed(posterior, rows, means),
        diagnose(np.concatenate(log_weights, 1), "cells", len(rows)).to_frame().T,
        settings,
        (NOTE,),
        uncertainty,
        sd=_framed(posterior, rows, spreads),
        low=_framed(posterior, rows, lows) if interval else None,
        high=_framed(posterior, rows, highs) if interval else None,
    )


def _moments(share: Tensor, factor: Tensor, rho: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over particles of factor [S or 1, b] * rho [S, b, G], each [b, G]."""
    share, values = share.to(rho.dtype), factor.unsqueeze(-1) * rho
    mean = torch.einsum("sb,sbg->bg", share, values)
    variance = torch.einsum("sb,sbg->bg", share, (values - mean) ** 2)
    return mean.cpu().numpy(), variance.sqrt().cpu().numpy()


def _framed(posterior: Posterior, rows: np.ndarray, parts: list[np.ndarray]) -> pd.DataFrame:
    index = pd.RangeIndex(posterior.n_cells)[rows] if posterior.obs is None else posterior.obs.index[rows]
    return pd.DataFrame(np.concatenate(parts), index=index, columns=posterior.var_names)


def _rows(posterior: Posterior, cells: np.ndarray | None) -> np.ndarray:
    return np.arange(posterior.n_cells) if cells is None else np.asarray(cells, dtype=np.int64)


def _check(scale: float | str, estimator: str) -> None:
    if isinstance(scale, str) and scale != "library":
        raise ValueError(f"scale must be a number or 'library', not {scale!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}")
