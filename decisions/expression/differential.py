"""Differential expression between two groups of cells, with a stated false discovery rate.

Two questions go by this name, and they have different answers:

* ``unit="group"``: by how much does the expression of the two *populations* differ, as a gene's share of all their
  molecules? This is the usual question, and the default. The cells are a sample, so every draw weights them at random
  (Bayesian bootstrap) and takes one posterior draw for each: both the sampling of cells and the uncertainty about each
  cell are in the interval, which shrinks as cells are added. With ``unit="donor"`` (any obs column) the same over whole
  subjects, for statements about further subjects.
* ``unit="cells"``: by how much do two random *cells* differ, one of each group? (Lopez et al. 2018; Boyeau et al.
  2019.) The spread between cells is part of the answer and stays however many cells there are, so this is not a test
  for an effect of the group.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fieldguide.decisions.cells import Group, require_posterior, two_groups
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.diagnostics import diagnose, warn_if_untrustworthy
from fieldguide.decisions.expression.figures import volcano
from fieldguide.decisions.expression.fold_changes import effect_threshold, fold_changes
from fieldguide.decisions.expression.group_draws import Draws, group_draws
from fieldguide.decisions.expression.reader import COUNTS, read_expression
from fieldguide.decisions.fdr import calls, fdr_values
from fieldguide.inference.checks.arguments import (
    checked_flag,
    checked_int,
    checked_real,
    checked_seed,
    checked_text,
    one_of,
)
from fieldguide.inference.posterior import Posterior

MODES, TESTS, SCALES = ("change", "vanilla"), ("three", "two"), ("proportions", "counts")
FEWEST_DRAWS = 100
"""Draws that probabilities can be told from."""
BAYES_FACTOR = 3.0
"""Size of the log Bayes factor above which the vanilla mode calls a gene (Lopez et al. 2018)."""
NOTES: dict[str, str] = {
    "cells": "The question is about pairs of random cells: the FDR is that of statements about such pairs.",
    "group": "Cells are taken as a random sample of their population; subjects are not part of the uncertainty.",
    "subjects": "Subjects are taken as a random sample of theirs; each counts once, whatever its number of cells.",
    "three": "Three-way test: the FDR is that of signed calls (changed by delta or more, in the stated direction).",
    "two": "Two-way test: a wide posterior on both sides of zero counts as changed.",
    "raw": "The parameters of the model are taken as known: intervals are too narrow for genes with few counts.",
}


def differential_expression(
    posterior: Posterior,
    groupby,
    group,
    reference=None,
    mode: str = "change",
    delta: float | None = 0.25,
    fdr: float = 0.05,
    test: str = "three",
    estimator: str = "snis",
    unit: str | None = None,
    scale: str = "proportions",
    batch_correction: bool | Sequence | None = None,
    nuisance: bool | str | Sequence[str] | None = None,
    calibrate: bool = True,
    draws: int = 2000,
    pseudo: float | None = None,
    seed: int = 0,
) -> Decision:
    """Compare the expression of two groups of cells and call genes at a posterior expected false discovery rate.

    Parameters
    ----------
    posterior : Posterior
        Of a program with a site ``rho``: each gene's proportion of the cell's expression.
    groupby : str, array of labels [N], or None
        An obs column, or labels; None when groups are masks.
    group, reference : label, list of labels, or bool array [N]
        What is compared with what; the reference is all other labelled cells by default. Positive fold changes are
        higher in ``group``.
    mode : {"change", "vanilla"}
        "change": is the fold change at least ``delta`` (Boyeau et al. 2019)? "vanilla": which random cell has more,
        as a Bayes factor (Lopez et al. 2018)?
    delta : float, optional
        Least log2 fold change of interest; None reads it from the data (see ``fold_changes.effect_threshold``).
    fdr : float
        Target of the posterior expected FDR over the whole table.
    test : {"three", "two"}
        "three": the probability is the larger one of P(lfc >= delta) and P(lfc <= -delta), and the FDR is that of
        *signed* calls. "two": their sum, by which a wide posterior around zero counts as changed.
    estimator : {"snis", "plugin"}
        Importance-weighted draws, or draws of the guide as they are (biased; for comparison).
    unit : {"group", "cells"} or obs column of subjects
        The question (see above): "group" by default, "cells" in vanilla mode, which knows no other.
    scale : {"proportions", "counts"}
        Compare shares of a group's molecules, or counts per cell. Larger cells have more of most molecules: in
        "counts" that is a change, in "proportions" it is not.
    batch_correction : bool or list of batch labels, optional
        Decode both groups under the same batches: all, or those listed, averaged with equal weights. False takes every
        cell in its own batch. By default done where the program knows more than one batch; costs one decoding a batch.
    nuisance : bool, site or list of sites, optional
        Latent sites to draw anew from their prior and average over, so that the groups are compared at equal technical
        quality: by default those that the program declares (``u`` of `hcv`), none with False. Costs ten decodings.
    calibrate : bool
        For populations: add the error of each group's level (``level_error.py``) and share a prior on fold changes
        between genes (``fold_change_prior.py``). Needs raw counts. Without it the draws are the fitted model's own,
        whose intervals are too narrow for genes with few counts.
    draws : int
        R, posterior draws of the fold changes.
    pseudo : float, optional
        Added to the expression before the logarithm; read from the data by default (``fold_changes.pseudocount``).
    seed : int

    Returns
    -------
    Decision
        ``table``, one row a gene, most probable first, among equals by the interval's end nearest to zero:

        - lfc, lfc_sd, lfc_low/high: log2 fold change: posterior mean, sd, central 95 % interval
        - p_up, p_down: P(lfc >= delta), P(lfc <= -delta)
        - probability: what ``test`` asks for; vanilla: P(a cell of the group has more)
        - bayes_factor: natural log odds of ``probability``, clipped to ±log(draws)
        - fdr: expected FDR of the list down to this gene
        - is_de: ``fdr`` at most the target; vanilla: absolute Bayes factor above 3
        - expression_1, expression_2: posterior mean expression of group and reference, in the ``scale``
        - counts_1, counts_2: mean raw count per cell (where the data has counts)
        - nonzero_1, nonzero_2: share of cells with any count

        In vanilla mode ``fdr`` is the expected share of wrong signs. ``diagnostics``: one row a group, see
        ``diagnostics.diagnose``. ``settings``: everything above with the values that defaults took.

    Raises
    ------
    ValueError
        Naming the argument: unknown column, label, batch or option; overlapping or empty groups; a group too small for
        its unit.

    Warns
    -----
    UntrustworthyWeights
        When k-hat forbids to trust the importance weights of more than half of a group's cells.
    WeakDesign
        With fewer than five subjects in a group.
    """
    require_posterior(posterior)
    unit = ("cells" if mode == "vanilla" else "group") if unit is None else checked_text("unit", unit)
    _check(mode, delta, fdr, test, unit, scale, draws, pseudo)
    calibrate, seed = checked_flag("calibrate", calibrate), checked_seed(seed)
    groups = two_groups(posterior.obs, posterior.n_cells, groupby, group, reference)
    expression = read_expression(posterior, estimator, batch_correction, nuisance, "batch_correction")
    calibrate = calibrate and unit != "cells"
    if calibrate and COUNTS not in posterior.dataset.stores:
        raise ValueError("calibrate=True needs raw counts (a field 'counts'); calibrate=False does without")
    drawn = group_draws(expression, groups, unit, scale, draws, seed)
    change = fold_changes(drawn, groups, pseudo, calibrate, seed)
    if mode == "change" and delta is None:
        delta = effect_threshold((change.weights * change.lfc).sum(0), seed)

    table = _summary(change.lfc, change.weights, 0.0 if mode == "vanilla" else delta)
    certainty = _decide(table, change.lfc, mode, test, fdr, draws)
    for number, (level, part) in enumerate(zip(change.levels, drawn, strict=True), 1):
        table[f"expression_{number}"] = level.mean(0, dtype=np.float64)
        if part.observed is not None:
            table[f"counts_{number}"], table[f"nonzero_{number}"] = part.observed.mean, part.observed.nonzero
    if posterior.var_names is not None:
        table.index = pd.Index(posterior.var_names, name="gene")
    nearest_end = np.maximum(table["lfc_low"].to_numpy(), -table["lfc_high"].to_numpy())
    order = np.lexsort((-nearest_end, -certainty))

    settings = {
        "group": groups[0].name,
        "reference": groups[1].name,
        "mode": mode,
        "delta": delta if mode == "change" else None,
        "fdr": fdr,
        "test": test,
        "estimator": estimator,
        "unit": unit,
        "scale": scale,
        "batches": expression.conditions.batches,
        "nuisance": list(expression.conditions.redrawn),
        "calibrate": calibrate,
        "draws": draws,
        "pseudo": change.pseudo,
        "seed": seed,
        "posterior_seed": posterior.seed,
    }
    diagnostics = _diagnose(drawn, groups, change.pseudo, estimator)
    return Decision(table.iloc[order], diagnostics, settings, _notes(mode, test, unit, calibrate), volcano)


def _check(mode: str, delta, fdr: float, test: str, unit: str, scale: str, draws: int, pseudo) -> None:
    for name, value, allowed in (("mode", mode, MODES), ("test", test, TESTS), ("scale", scale, SCALES)):
        one_of(name, value, allowed)
    if mode == "vanilla" and unit != "cells":
        raise ValueError(f"mode='vanilla' compares random cells: unit must be 'cells', not {unit!r}")
    if delta is not None:
        checked_real("delta (log2 units)", delta, at_least=0)
    checked_real("fdr", fdr, at_least=0, below=1)
    checked_int("draws", draws, FEWEST_DRAWS)
    if pseudo is not None:
        checked_real("pseudo", pseudo, above=0)


def _summary(lfc: np.ndarray, weights: np.ndarray, delta: float) -> pd.DataFrame:
    """Posterior mean, spread, interval and probabilities of the fold changes [R, G] under weights [R, G]."""
    mean = (weights * lfc).sum(0, dtype=np.float64)
    order = np.argsort(lfc, axis=0)
    ordered = np.take_along_axis(lfc, order, 0)
    below = np.take_along_axis(weights, order, 0).cumsum(0, dtype=np.float64)
    low, high = (
        np.take_along_axis(ordered, np.minimum((below < q).sum(0), len(lfc) - 1)[None], 0)[0] for q in (0.025, 0.975)
    )
    return pd.DataFrame(
        {
            "lfc": mean,
            "lfc_sd": np.sqrt((weights * (lfc - mean) ** 2).sum(0)),
            "lfc_low": low.astype(np.float64),
            "lfc_high": high.astype(np.float64),
            "p_up": np.minimum((weights * (lfc >= delta)).sum(0, dtype=np.float64), 1.0),
            "p_down": np.minimum((weights * (lfc <= -delta)).sum(0, dtype=np.float64), 1.0),
        }
    )


def _decide(table: pd.DataFrame, lfc: np.ndarray, mode: str, test: str, fdr: float, draws: int) -> np.ndarray:
    """Add probability, Bayes factor, FDR and call to the table; return the certainty [G] they are ranked by."""
    if mode == "vanilla":
        probability = (lfc > 0).mean(0) + 0.5 * (lfc == 0).mean(0)
        certainty = np.maximum(probability, 1 - probability)
    else:
        up, down = table["p_up"].to_numpy(), table["p_down"].to_numpy()
        probability = certainty = np.maximum(up, down) if test == "three" else np.minimum(up + down, 1.0)
    with np.errstate(divide="ignore"):
        odds = np.log(probability) - np.log1p(-probability)
    table["probability"], table["bayes_factor"] = probability, np.clip(odds, -np.log(draws), np.log(draws))
    table["fdr"], called = fdr_values(certainty), calls(certainty, fdr)
    table["is_de"] = table["bayes_factor"].abs() > BAYES_FACTOR if mode == "vanilla" else called
    return certainty


def _diagnose(drawn: list[Draws], groups: tuple[Group, Group], pseudo: float, estimator: str) -> pd.DataFrame:
    rows = []
    for part, group in zip(drawn, groups, strict=True):
        shift = np.abs(np.diff(np.log2(part.means + pseudo), axis=0)[0])
        rows.append(diagnose(part.log_weights, group.name, len(group.rows), shift))
    diagnostics = pd.DataFrame(rows)
    if estimator == "snis":
        warn_if_untrustworthy(diagnostics)
    return diagnostics


def _notes(mode: str, test: str, unit: str, calibrate: bool) -> tuple[str, ...]:
    who = unit if unit in ("cells", "group") else "subjects"
    notes = (NOTES[who],) if mode == "vanilla" else (NOTES[who], NOTES[test])
    return notes if calibrate else (*notes, NOTES["raw"])
