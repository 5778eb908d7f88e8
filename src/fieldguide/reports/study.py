"""Compare objectives by what a biologist gets out of them: the same differential expression question under each."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anndata
import numpy as np
import pandas as pd

from fieldguide import inference
from fieldguide.catalog.data import pbmc68k_700
from fieldguide.decisions import Decision, UntrustworthyWeights, WeakDesign, differential_expression
from fieldguide.decisions.cells import column, two_groups
from fieldguide.decisions.expression.group_draws import LEAST
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, checked_text
from fieldguide.inference.comparison import DEFINITIONS as OF_THE_FIT
from fieldguide.inference.entry import as_entry
from fieldguide.inference.posterior import Posterior
from fieldguide.inference.three_steps import MIX

DEFINITIONS = OF_THE_FIT | {
    "de_genes": "Genes called differentially expressed at the stated posterior expected false discovery rate.",
    "de_khat_above": "Share of the cells of both groups whose k-hat, with the draws used for the decision, is above "
    "the limit for so many draws.",
    "de_ess_median": "Effective sample size of the median cell of the worse of the two groups, of the same draws.",
}
"""What each column of the table means."""

DEMONSTRATION = {
    "groupby": "bulk_labels",
    "group": "CD19+ B",
    "reference": "Dendritic",
    "delta": 1.0,
    "max_epochs": 50,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "particles": 5,
    "n_latent": 5,
    "dropout": 0.3,
}
"""Settings of scVI for the embedded cells, where none are given: 700 cells need few latents and more dropout, and
small minibatches with larger steps are soon trained. Latents and dropout were chosen after about a dozen trials on the
same 70 held-out cells, so the bounds of the demonstration are slightly optimistic, and which objective leads depends on
them; minibatches, step size and epochs were chosen on other splits (seeds 1 and 2), for a run of about two minutes.

The question is which genes differ at least twofold: a few genes take most counts, and shift the proportions of all.
"""
QUESTION = ("groupby", "group", "reference", "delta")


@dataclass
class Study(inference.Comparison):
    """A comparison with its data and its decisions.

    Attributes
    ----------
    data : AnnData or None
    posteriors : dict of str to Posterior
        Of all cells, which the decisions were made from.
    decisions : dict of str to Decision
        Differential expression under each objective (and by the mixture); empty when no groups were named.
    warnings : dict of str to list of str
        What the decision under each objective warned of.
    steps : ThreeStep or None
        Guides by every objective for the best model, and their mixture, whose decision stands under "mix".
    """

    data: anndata.AnnData | None = None
    posteriors: dict[str, Posterior] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    steps: inference.ThreeStep | None = None

    def called(self) -> pd.DataFrame:
        """Return which genes each objective calls: bool, genes x objectives, in the order of the data."""
        tables = {label: decision.table["is_de"] for label, decision in self.decisions.items()}
        called = pd.DataFrame(tables)
        return called if self.data is None else called.reindex(self.data.var_names)


def compare(
    entry: Any = "scvi",
    data: Any = None,
    objectives: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    groupby: Any = None,
    group: Any = None,
    reference: Any = None,
    delta: Any = None,
    fdr: Any = 0.05,
    unit: Any = "group",
    mix: bool = True,
    posterior_draws: Any = 200,
    seed: Any = 0,
    progress: bool = True,
    **settings,
) -> Study:
    """Fit an entry under each objective and answer one differential expression question with each fit.

    Parameters
    ----------
    entry : str, Entry or Program class
    data : AnnData, DataFrame or dict of arrays, optional
        Never changed. By default the 700 embedded blood cells; for scVI with `DEMONSTRATION` for settings that are not
        given, where the question is B cells against dendritic cells.
    objectives : sequence or mapping, optional
        See `fieldguide.inference.compare`.
    groupby, group, reference, delta, fdr, unit
        The question, see `fieldguide.decisions.differential_expression`; without ``group``, none is asked. The least
        log2 fold change ``delta`` is 0.25 by default, as there.
    mix : bool
        Whether to go on with the best model: fit a fresh guide to it by each objective, mix the guides with the prior
        (`fieldguide.inference.three_step`), and answer the question with the mixture too.
    posterior_draws : int
        S, draws for each cell in the decision.
    seed : int
        Seeds split, fits, evaluation and decisions.
    progress : bool
    **settings
        Passed to `fieldguide.inference.compare`, and on to `fit`.

    Raises
    ------
    TypeError, ValueError
        For an unknown column, label or objective, a setting of the question that is out of range, a model without
        counts, or gene names that occur twice: before anything is fitted.

    Examples
    --------
    ``compare().table`` is what ``fieldguide compare`` prints.
    """
    source = "the data"
    if data is None:
        data, source = pbmc68k_700(), "700 blood cells of one donor (10x Genomics, CC BY 4.0; Zheng et al. 2017)"
        if entry == "scvi":
            settings = {k: v for k, v in DEMONSTRATION.items() if k not in QUESTION} | settings
            if group is None and groupby is None:
                groupby, group, reference = (DEMONSTRATION[k] for k in ("groupby", "group", "reference"))
                delta = DEMONSTRATION["delta"] if delta is None else delta
    delta = checked_real("delta", 0.25 if delta is None else delta, at_least=0)
    fdr = checked_real("fdr", fdr, at_least=0, below=1)
    posterior_draws, seed = checked_int("posterior_draws", posterior_draws, at_least=1), checked_seed(seed)
    if group is not None:
        _check_question(entry, data, groupby, group, reference, unit)
    elif groupby is not None or reference is not None:
        raise ValueError("groupby and reference ask for a group to compare: give group as well")
    comparison = inference.compare(entry, data, objectives, seed=seed, progress=progress, **settings)
    annotated = data if isinstance(data, anndata.AnnData) else None
    study = Study(comparison.table, comparison.fits, comparison.held_out, comparison.settings, annotated)
    study.settings |= {"data": source, "posterior_draws": posterior_draws, "groupby": groupby}
    study.posteriors = {label: fit.posterior(particles=posterior_draws, seed=seed) for label, fit in study.fits.items()}
    question = {"delta": delta, "fdr": fdr, "unit": unit, "seed": seed}
    if group is not None:
        for label, posterior in study.posteriors.items():
            if progress:
                print(f"differential expression under {label}", file=sys.stderr, flush=True)
            study.decisions[label], study.warnings[label] = _decide(posterior, groupby, group, reference, question)
        study.table = _with_decisions(study)
    if mix and len(study.fits) > 1:
        study.steps = steps = inference.three_step(comparison, progress=progress)
        if group is not None and steps.mixture is not None:
            posterior = steps.mixture.posterior(particles=posterior_draws, seed=seed)
            study.decisions[MIX], study.warnings[MIX] = _decide(posterior, groupby, group, reference, question)
    return study


def _check_question(entry: Any, data: Any, groupby: Any, group: Any, reference: Any, unit: Any) -> None:
    """Raise on what the decision would refuse after minutes of fitting."""
    schema, name = as_entry(entry).schema, as_entry(entry).name
    there = schema.fields if schema is not None else data
    if isinstance(there, Mapping) and "counts" not in there:
        raise ValueError(f"differential expression needs raw counts (a field 'counts'), which {name} does not read")
    table = data.obs if isinstance(data, anndata.AnnData) else None
    if isinstance(data, anndata.AnnData) and not data.var_names.is_unique:
        twice = data.var_names[data.var_names.duplicated()][0]
        raise ValueError(f"gene name {str(twice)!r} occurs twice: call var_names_make_unique() first")
    groups = two_groups(table, _length(data), groupby, group, reference)
    if checked_text("unit", unit) == "cells":
        return
    for part in groups:
        if len(part.rows) < LEAST:
            raise ValueError(f"{part.name!r} has {len(part.rows)} cell(s): a population's mean needs at least {LEAST}")
        if unit != "group":
            subjects = column(table, unit, "unit").iloc[part.rows]
            if subjects.isna().any():
                raise ValueError(f"unit={unit!r}: cell {str(subjects.index[subjects.isna()][0])!r} has no subject")
            if subjects.nunique() < 2:
                raise ValueError(f"unit={unit!r}: all cells of {part.name!r} come from one subject; two are needed")


def _length(data: Any) -> int:
    """How many cells there are."""
    first: Any = next(iter(data.values()), ()) if isinstance(data, Mapping) else data
    return int(first.shape[0]) if hasattr(first, "shape") else len(first)


def _decide(posterior: Posterior, groupby, group, reference, question: dict[str, Any]) -> tuple[Decision, list[str]]:
    """Return the decision, and what it warned of: a report shows it in its place."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decision = differential_expression(posterior, groupby, group, reference, **question)
    ours = [w for w in caught if issubclass(w.category, UntrustworthyWeights | WeakDesign)]
    for other in (w for w in caught if w not in ours):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return decision, [str(w.message) for w in ours]


def _with_decisions(study: Study) -> pd.DataFrame:
    """The table with the columns on the decisions, before the times."""
    table = study.table.copy()
    place = table.columns.get_loc("epochs")
    diagnostics = {label: decision.diagnostics for label, decision in study.decisions.items()}
    table.insert(place, "de_genes", [int(d.table["is_de"].sum()) for d in study.decisions.values()])
    above = [np.average(d["khat_above"], weights=d["visited"]) for d in diagnostics.values()]
    table.insert(place + 1, "de_khat_above", above)
    table.insert(place + 2, "de_ess_median", [d["ess_median"].min() for d in diagnostics.values()])
    return table
