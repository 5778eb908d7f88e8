"""Fit one program under several objectives, from one start and on the same cells, and lay the results side by side."""

import copy
import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.data.reading import n_rows
from fieldguide.inference.entry import as_entry
from fieldguide.inference.fitted import Fit
from fieldguide.inference.fitting import fit, is_share
from fieldguide.inference.objectives import SHORT_NAMES, Objective, resolve
from fieldguide.inference.posterior import Posterior
from fieldguide.inference.training.settings import for_several
from fieldguide.inference.weights.pareto import khat_limit

DEFINITIONS = {
    "loss": "The objective that was minimised, with its number of particles K and its gradient estimator.",
    "bound": "The importance-weighted bound on log p(x) with S draws for each held-out cell, averaged "
    "over these cells, in nats per cell. The estimator is the same whatever the objective was; higher is better.",
    "behind": "How far the bound is behind that of the best objective, in nats per cell.",
    "behind_se": "Standard error of that difference: both objectives are evaluated on the same cells, so the "
    "differences are paired, and what cells have in common cancels.",
    "khat_median": "Pareto k-hat of the median held-out cell: the weight of the tail of its S importance weights. "
    "Below 0.5 estimates are reliable, below 0.7 usable, above it the guide misses too much of the posterior.",
    "khat_above": "Share of held-out cells whose k-hat is above min(1 - 1/log10 S, 0.7), the limit for S draws.",
    "ess_median": "Effective sample size of the median held-out cell, out of S draws: 1 / (sum of squared weights).",
    "epochs": "Passes over the training cells.",
    "seconds": "Wall-clock seconds of training, held-out evaluation after each epoch included.",
}
"""What each column of `Comparison.table` means."""

ON_REQUEST = ("renyi", "vrmax", "forward_kl", "cubo")
"""Objectives that are compared only when asked for: variants of others, and those that train no model."""

TIMES = ["seconds"]
"""Columns that differ between two runs of the same seed."""


@dataclass
class Comparison:
    """The same program under several objectives.

    Attributes
    ----------
    table : DataFrame
        One row an objective; ``DEFINITIONS`` says what each column means.
    fits : dict of str to Fit
    held_out : dict of str to Posterior
        Of the held-out cells (at most ``settings["cells"]`` of them), the same cells for each objective.
    settings : dict
        Everything that is needed to repeat it, with the values that defaults took.
    """

    table: pd.DataFrame
    fits: dict[str, Fit]
    held_out: dict[str, Posterior]
    settings: dict[str, Any] = field(default_factory=dict)


def compare(
    entry,
    data,
    objectives: Any = None,
    *,
    particles: Any = None,
    draws: Any = 1000,
    cells: Any = 500,
    validation: Any = 0.1,
    early_stopping: Any = None,
    seed: Any = 0,
    progress: bool = True,
    **settings,
) -> Comparison:
    """Fit an entry under each objective with the same seed and split, and evaluate all by one estimator.

    Parameters
    ----------
    entry : str, Entry, Program class or Program
        Of a program that is built, each objective fits a copy.
    data : AnnData, DataFrame or dict of arrays
        Never changed.
    objectives : sequence of str or objectives, or mapping of label to either, optional
        By default every short name that the entry supports, but for `ON_REQUEST`.
    particles : int, optional
        K of each objective that draws several particles; by default its own.
    draws : int
        S, draws for each cell in the evaluation.
    cells : int
        Evaluate on at most so many of the held-out cells, chosen by the seed.
    validation : float or array of int
        Share of the cells, or the row numbers, that are held out.
    early_stopping : int, optional
        Off by default: each objective trains for the same number of epochs, and the held-out cells have no part in
        what is evaluated on them.
    seed : int
    progress : bool
        Whether to show which fit is running, and how far it is.
    **settings
        Passed to `fit`: ``max_epochs``, ``fields``, arguments of the model.

    Raises
    ------
    ValueError
        For an unknown objective, or fewer than two held-out cells.

    Examples
    --------
    ``compare("scvi", adata, ["elbo", IWAE(5), IWAE(50)]).table`` has the rows elbo, iwae and iwae-2.
    """
    chosen, settings = choose(entry, objectives, particles), for_several("compare", settings)
    if "objective" in settings:
        raise TypeError("compare takes objectives, a list, and not objective")
    declared = as_entry(entry)
    draws = checked_int("draws", draws, at_least=25)  # a tail cannot be fitted to fewer
    cells, seed = checked_int("cells", cells, at_least=2), checked_seed(seed)
    known = n_rows(data) if isinstance(data, anndata.AnnData | pd.DataFrame | Mapping) else 0
    if known and validation is not None and is_share(validation):
        held = int(checked_real("validation", validation, at_least=0, below=1) * known)
        _evaluated(np.arange(held), cells, seed)
    fits: dict[str, Fit] = {}
    held_out: dict[str, Posterior] = {}
    for number, (label, objective) in enumerate(chosen.items(), 1):
        if progress:
            print(f"[{number}/{len(chosen)}] fitting under {label}: {objective}", file=sys.stderr, flush=True)
        fits[label] = fitted = fit(
            replace(declared, built=copy.deepcopy(declared.built)),
            data,
            objective=objective,
            validation=validation,
            early_stopping=early_stopping,
            seed=seed,
            progress=progress,
            **settings,
        )
        if fitted.interrupted:
            raise KeyboardInterrupt
        rows = _evaluated(fitted.validation_rows, cells, seed)
        held_out[label] = Posterior(fitted.program, fitted.dataset.load(rows), draws, seed, fitted.schema)
    if progress:
        print(f"evaluating on held-out cells, {draws} draws each", file=sys.stderr, flush=True)
    first = next(iter(fits.values()))
    used = {
        "entry": first.name,
        "objectives": {label: repr(objective) for label, objective in chosen.items()},
        "seed": seed,
        "draws": draws,
        "cells": next(iter(held_out.values())).n_cells,
        "cells_trained": len(first.train_rows),
        "cells_held_out": len(first.validation_rows),
        "early_stopping": early_stopping,
        "arguments": dict(first.arguments),
        "constraints": [repr(c) for c in first.constraints],
        "fit": {k: v for k, v in settings.items() if k not in first.arguments and k != "constraints"},
    }
    return Comparison(comparison_table(fits, held_out), fits, held_out, used)


def choose(entry, objectives=None, particles: Any = None) -> dict[str, Objective]:
    """Return the objectives by label, each with K particles where it draws several.

    Examples
    --------
    >>> choose(None, ["elbo", "iwae"], particles=5)["iwae"]
    IWAE(particles=5, gradient='dreg')
    """
    if objectives is None:
        supported = as_entry(entry).supports
        objectives = [name for name in SHORT_NAMES if name in supported and name not in ON_REQUEST]
    particles = None if particles is None else checked_int("particles", particles, at_least=1)
    if isinstance(objectives, str):
        objectives = [objectives]
    if not isinstance(objectives, Iterable):
        raise TypeError(f"objectives must be a list of objectives, or a dict by label, not {objectives!r:.60}")
    if not objectives:
        raise ValueError("there is no objective to compare")
    if isinstance(objectives, Mapping):
        odd = [label for label in map(str, objectives) if not re.fullmatch(r"[\w.+-]+", label)]
        if odd:
            raise ValueError(f"label {odd[0]!r} of an objective: letters, digits and . + - _ only (it names files)")
        twice = pd.Index([str(label) for label in objectives])
        if twice.has_duplicates:
            raise ValueError(f"two objectives have the label {twice[twice.duplicated()][0]!r}")
        return {str(label): _with_particles(resolve(wanted), particles) for label, wanted in objectives.items()}
    labelled: dict[str, Objective] = {}
    for wanted in objectives:
        name = wanted if isinstance(wanted, str) else getattr(wanted, "__name__", type(wanted).__name__).lower()
        count = sum(label.rpartition("-")[0] == name or label == name for label in labelled)
        labelled[f"{name}-{count + 1}" if count else name] = _with_particles(resolve(wanted), particles)
    return labelled


def _with_particles(objective: Any, particles: int | None) -> Any:
    if particles is None or not dataclasses.is_dataclass(objective) or getattr(objective, "particles", 1) < 2:
        return objective
    return dataclasses.replace(objective, particles=particles)  # type: ignore[type-var]


def _evaluated(rows: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """The held-out cells that are evaluated, sorted."""
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} held-out cell(s): a comparison needs at least 2, see validation")
    if len(rows) <= cells:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, cells, replace=False))


def comparison_table(fits: Mapping[str, Any], held_out: dict[str, Posterior]) -> pd.DataFrame:
    """Return the table of a `Comparison`; the columns are those of `DEFINITIONS`."""
    evidence = pd.DataFrame({label: posterior.log_evidence for label, posterior in held_out.items()})
    best = evidence.columns[evidence.to_numpy().mean(0).argmax()]
    rows = {}
    for label, posterior in held_out.items():
        behind, khat = evidence[best] - evidence[label], posterior.khat
        history = getattr(fits[label], "history", None)  # a mixture has none
        rows[label] = {
            "loss": repr(getattr(fits[label], "objective", fits[label])),
            "bound": evidence[label].mean(),
            "behind": behind.mean(),
            "behind_se": behind.std() / np.sqrt(len(behind)),
            "khat_median": np.median(khat),
            "khat_above": np.mean(khat > khat_limit(posterior.particles)),
            "ess_median": np.median(posterior.ess),
            "epochs": np.nan if history is None else len(history),
            "seconds": np.nan if history is None else history["seconds"].sum(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("objective")
