"""Posterior predictive checks: does data drawn from the fitted model look like the data?

Counts are replicated for the same cells: a posterior draw of the cell's latents, then counts from the likelihood.
Three questions: are there as many zeros; do counts vary as much, over the cells of a gene and over the genes of a cell;
and do central intervals hold the share of counts that they claim?

Coverage of intervals is read from the ranks of a count among its replicates, with ties split evenly, which is exact
for discrete data: a replicate checked against others would have coverage equal to the nominal one (Czado et al. 2009).
The usual closed interval between two quantiles is given beside it; counts near zero fall into it too often.
The latents of a cell have seen its counts, so the checks are slightly too favourable, the less so the more genes.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fieldguide.decisions.cells import chosen_rows, require_posterior
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.diagnostics import diagnose_cells
from fieldguide.decisions.expression.figures import predictive
from fieldguide.decisions.expression.reader import COUNTS, read_expression
from fieldguide.inference.checks.arguments import checked_int
from fieldguide.inference.checks.rounding import reaches
from fieldguide.inference.posterior import Posterior

LEVELS = np.arange(65, 100, 5) / 100
"""Nominal probabilities of the nested central intervals."""


@dataclass
class Check(Decision):
    """A posterior predictive check.

    Attributes
    ----------
    table : DataFrame
        For each statistic its observed value, the mean and standard deviation over replicates, the share of replicates
        at least as large, and the mean absolute error over genes, cells or interval levels.
    genes : DataFrame [G]
        Observed and replicated zero fraction and coefficient of variation of each gene.
    calibration : DataFrame
        Nominal probability and observed coverage of central intervals.
    """

    genes: pd.DataFrame = field(default_factory=pd.DataFrame)
    calibration: pd.DataFrame = field(default_factory=pd.DataFrame)


def posterior_predictive_check(
    posterior: Posterior, draws: int = 25, estimator: str = "snis", cells: ArrayLike | None = None
) -> Check:
    """Compare the counts with counts drawn from the fitted model.

    Parameters
    ----------
    posterior : Posterior
        Of a program with an observed site ``counts``.
    draws : int
        R, replicated data sets.
    estimator : {"snis", "plugin"}
        Whether latents come from the posterior (importance resampling), or from the guide.
    cells : array of int, optional
        Row numbers; all cells by default. Cells that were held out from training make a stricter check.

    Raises
    ------
    ValueError
        When there are no counts, or fewer than two replicates or cells.
    """
    require_posterior(posterior)
    draws = checked_int("draws", draws, 2)
    if COUNTS not in posterior.dataset.stores:
        raise ValueError(f"the check needs a field '{COUNTS}'; data has {', '.join(posterior.dataset.stores)}")
    expression, rows = read_expression(posterior, estimator), chosen_rows(posterior, cells)
    if len(rows) < 2:
        raise ValueError(f"cells holds {len(rows)} cell: the check needs at least two")
    sums, cv_cells, coverage, log_weights = 0.0, [], 0.0, []
    for chunk in expression.chunks(rows):
        replicated = chunk.replicate(draws)
        counts = torch.cat((chunk.counts.to(replicated.device)[None], replicated))
        sums = sums + _sums(counts)
        cv_cells.append((counts.std(-1, correction=0) / counts.mean(-1)).double().cpu().numpy())
        coverage = coverage + _coverage(counts)
        log_weights.append(chunk.log_weights)

    total, square, zeros = np.asarray(sums) / len(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        cv_genes = np.sqrt(np.maximum(square - total**2, 0)) / total
    statistics = {"zero_fraction": zeros, "cv_genes": cv_genes, "cv_cells": np.concatenate(cv_cells, 1)}
    table = pd.DataFrame({name: _compare(values, name) for name, values in statistics.items()}).T
    calibration = pd.DataFrame(coverage / (len(rows) * zeros.shape[1]), columns=["coverage", "coverage_closed"])
    calibration.insert(0, "nominal", LEVELS)
    error = (calibration["coverage"] - LEVELS).abs().mean()
    table.loc["coverage"] = [calibration["coverage"].mean(), LEVELS.mean(), np.nan, np.nan, error]
    genes = {}
    for name, values in (("zero_fraction", zeros), ("cv", cv_genes)):
        genes |= {name: values[0], f"{name}_replicated": values[1:].mean(0), f"{name}_sd": values[1:].std(0, ddof=1)}
    return Check(
        table,
        diagnose_cells(log_weights),
        {"draws": draws, "estimator": estimator, "posterior_seed": posterior.seed},
        ("Latents of a cell have seen its counts: the check is slightly too favourable.",),
        predictive,
        genes=pd.DataFrame(genes, index=posterior.var_names),
        calibration=calibration,
    )


def _sums(counts: Tensor) -> np.ndarray:
    """Sums over cells of counts, squares and zeros, [3, 1 + R, G]."""
    values = counts.double()
    return torch.stack((values.sum(1), (values**2).sum(1), (values == 0).double().sum(1))).cpu().numpy()


def _coverage(counts: Tensor) -> np.ndarray:
    """Number of counts inside each central interval, [levels, 2]: by ranks with ties split, and by closed intervals."""
    observed, replicated = counts[0], counts[1:]
    draws = len(replicated)
    less = (replicated < observed).sum(0).double()
    upto = (replicated <= observed).sum(0).double()
    start, stop = less / (draws + 1), (upto + 1) / (draws + 1)
    inside = []
    for level in LEVELS:
        tail = (1 - level) / 2
        overlap = (stop.clamp(max=1 - tail) - start.clamp(min=tail)).clamp(min=0) / (stop - start)
        closed = (upto / draws >= tail) & (less / draws < 1 - tail)
        inside.append([float(overlap.sum()), float(closed.sum())])
    return np.asarray(inside)


def _compare(values: np.ndarray, name: str) -> pd.Series:
    """Compare one statistic of the data (row 0 of [1 + R, items]) with that of the replicates.

    Items without a count in the data or in a replicate have no coefficient of variation and are left out.
    """
    values = values[:, np.isfinite(values).all(0)]
    if not values.size:
        return pd.Series(np.nan, ["observed", "replicated", "sd", "share_above", "error"])
    summary = values.mean(1) if name == "zero_fraction" else np.median(values, 1)
    observed, replicated = summary[0], summary[1:]
    return pd.Series(
        {
            "observed": observed,
            "replicated": replicated.mean(),
            "sd": replicated.std(ddof=1),
            "share_above": (1 + reaches(replicated, observed).sum()) / (1 + len(replicated)),
            "error": np.abs(values[1:].mean(0) - values[0]).mean(),
        }
    )
