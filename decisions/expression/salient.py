"""Which genes the salient latents of a group change: cells decoded with and without them."""

from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.decoding import TINY, proportions
from fieldguide.decisions.expression.figures import volcano
from fieldguide.decisions.fdr import calls, fdr_values
from fieldguide.inference import Fit, Groups
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, checked_text
from fieldguide.inference.checks.labels import find_label, label_text
from fieldguide.inference.messages import caution
from fieldguide.inference.program import Batch
from fieldguide.inference.randomness import isolated, stream

BLOCK = 512
"""Cells decoded at once."""
FOLDS = 5
TOLD_APART = 0.65
PARTS = 10
"""Draws of the latents; each serves several draws of the bootstrap."""


def salient_genes(
    fitted: Fit,
    group: Any,
    data=None,
    *,
    site: str = "s",
    delta: Any = 0.25,
    fdr: Any = 0.05,
    draws: Any = 500,
    cells: Any = 2000,
    seed: Any = 0,
) -> Decision:
    """Say which genes are higher or lower in the cells of a group than they would be without its salient latents.

    Each cell is decoded twice from the same draw of the guide, with its salient latents and with zeros for them. The
    fold change of a gene is that of the mean proportions of the cells; its uncertainty is that of the draws and of
    which cells there are (Bayesian bootstrap). Unlike a comparison with the background, it is not moved by cell types
    that are more or less frequent in the group.

    Parameters
    ----------
    fitted : Fit
        Of a program with a field of groups and a deterministic site ``rho``, such as "comparative".
    group : str
        A group that has salient latents.
    data : optional
        Cells, among them those of the group; the training data by default.
    site : str
        The site of the salient latents.
    delta : float
        Least log2 fold change of interest, above 0: no salient latents leave a gene exactly as it was.
    fdr : float
        Target of the posterior expected FDR.
    draws : int
        Of cells and latents together.
    cells : int
        At most so many cells of the group, drawn at random.
    seed : int

    Returns
    -------
    Decision
        ``table``, one row a gene, most certain first: ``lfc`` (log2), ``lfc_sd``, ``lfc_low`` and ``lfc_high`` (95 %),
        ``probability`` (of a change by more than ``delta``), ``fdr`` (of the list down to this row), ``is_de``,
        ``with_salient`` and ``without`` (mean proportions). ``diagnostics``: the number of ``cells``, and
        ``told_apart``, the balanced accuracy (.5 by chance) by which the shared latents tell the group from all other
        cells, out of fold and by a linear rule. Where they do, part of what sets it apart is not in the list.

    Warns
    -----
    UserWarning
        If shared latents tell the group apart in more than 65 % of the cells (balanced), so that fold changes are drawn
        towards 0; and if there is no background, so that a group's own latents hold ordinary variation too.

    Raises
    ------
    TypeError
        If the program reads no groups.
    ValueError
        For a group that was not fitted or has fewer than two cells, and a site that there is not.
    """
    delta, fdr = checked_real("delta (log2 units)", delta, above=0), checked_real("fdr", fdr, at_least=0, below=1)
    draws, cells, seed = checked_int("draws", draws, 20), checked_int("cells", cells, 2), checked_seed(seed)
    site = checked_text("site", site)
    label, column, inside, dataset = cells_of_group(fitted, group, data)
    if site == fitted.program.latent:
        raise ValueError(f"site {site!r} holds the latents that all groups share: name that of the salient ones, 's'")
    rows = np.flatnonzero(inside)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(rows)[:cells])
    weights = rng.standard_exponential((draws, len(rows)))
    weights /= weights.sum(1, keepdims=True)
    sums: Any = 0.0
    for begin in range(0, len(rows), BLOCK):
        batch = {name: v.to(fitted.device) for name, v in dataset.batch(rows[begin : begin + BLOCK]).items()}
        sums = sums + _weighted(fitted, batch, site, weights[:, begin : begin + BLOCK], stream(seed, "decoding", begin))
    totals = np.maximum(sums, TINY)
    lfc = np.log2(totals[0]) - np.log2(totals[1])
    probability = (np.abs(lfc) > delta).mean(0)
    low, high = np.quantile(lfc, [0.025, 0.975], axis=0)
    table = pd.DataFrame(
        {
            "lfc": lfc.mean(0),
            "lfc_sd": lfc.std(0),
            "lfc_low": low,
            "lfc_high": high,
            "probability": probability,
            "fdr": fdr_values(probability),
            "is_de": calls(probability, fdr),
            "with_salient": totals[0].mean(0),
            "without": totals[1].mean(0),
        },
        index=None if dataset.var_names is None else pd.Index(dataset.var_names, name="gene"),
    )
    order = np.lexsort((-np.abs(table["lfc"].to_numpy()), -probability))
    notes = ["Cells are taken as independent, and the networks as known: donors and refits are not in the errors."]
    apart, shared = _told_apart(fitted, inside, data, site), fitted.program.latent
    if apart > TOLD_APART:
        said = (
            f"the shared latents tell {label!r} from the other cells (balanced accuracy {apart:.2f}): part of what "
            f"sets it apart is in '{shared}', and not in the list. If the groups have the same types of cells, hold it "
            f"alike: fit(..., constraints=[hsic('{shared}', {column!r}, bound='independent')])"
        )
        caution(said)
        notes.append(said)
    states = {} if fitted.schema is None else fitted.schema.states
    if not any(state.get("n_background") for state in states.values()):
        said = (
            "no background is named: where every group has latents of its own, these hold ordinary variation of its "
            f"cells too, and the list is not of what sets {label!r} apart; Groups({column!r}, background=...) names one"
        )
        caution(said)
        notes.append(said)
    if not lfc.any():
        said = f"group {label!r} has no salient latents in use: nothing is its own"
        caution(said)
        notes.append(said)
    settings = {
        "group": label,
        "reference": "without",
        "site": site,
        "delta": delta,
        "fdr": fdr,
        "draws": draws,
        "seed": seed,
    }
    diagnostics = pd.DataFrame({"cells": [len(rows)], "told_apart": [apart]}, index=pd.Index([label], name="group"))
    return Decision(table.iloc[order], diagnostics, settings, tuple(notes), volcano)


def _told_apart(fitted: Fit, inside: np.ndarray, data: Any, site: str) -> float:
    """Balanced accuracy by which latents that all groups share tell a group from the others; nan without others."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if fitted.program.latent == site or min(inside.sum(), (~inside).sum()) < FOLDS:
        return float("nan")
    latents = np.asarray(fitted.latent(data), dtype=float).reshape(len(inside), -1)
    rule = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return float(balanced_accuracy_score(inside, cross_val_predict(rule, latents, inside, cv=folds)))


def _weighted(fitted: Fit, batch: Batch, site: str, weights: np.ndarray, seed: int) -> np.ndarray:
    """Return sums of proportions over the cells of a minibatch, with and without the site [2, draws, G]."""
    program, sums = fitted.program.eval(), []
    for part in range(PARTS):
        with torch.no_grad(), pyro.validation_enabled(False), isolated(fitted.device, stream(seed, "decoding", part)):
            trace = poutine.trace(program.guide).get_trace(batch)
        latents: dict[str, Any] = {n: trace.nodes[n]["value"] for n in trace.stochastic_nodes if n != program.plate}
        if site not in latents:
            raise ValueError(f"no latent site {site!r}: {fitted.name} has {', '.join(latents)}")
        ways = (latents, latents | {site: torch.zeros_like(latents[site])})
        rates = [proportions(fitted, batch, seed, way).double().cpu().numpy() for way in ways]
        sums.append(np.stack([weights[part::PARTS] @ rate for rate in rates]))
    return np.concatenate(sums, 1)


def cells_of_group(fitted: Fit, group: Any, data: Any) -> tuple[str, str, np.ndarray, Any]:
    """Return the label of a group, the column of the groups, which cells are of it, bool [N], and the data set.

    Raises
    ------
    TypeError
        For what is no fit, or a fit of a program without a field of groups.
    ValueError
        For a group that was not fitted, or with fewer than two cells.
    """
    if not isinstance(fitted, Fit):
        raise TypeError(f"fitted must be a Fit, not {type(fitted).__name__}")
    fields = {} if fitted.schema is None else fitted.schema.schema.fields
    name = next((n for n, f in fields.items() if isinstance(f, Groups) and n in fitted.schema.states), None)
    if fitted.schema is None or name is None:
        raise TypeError(f"{fitted.name} reads no groups: fit an entry with a field Groups, such as 'comparative'")
    known = fitted.schema.states[name]["categories"]
    code = find_label("group", group, known, "group of the training data")
    label, dataset = label_text(known[code]), fitted.read(data)
    inside = dataset.stores[name].gather(np.arange(dataset.n_cells)).numpy() == code
    if "counts" not in dataset.stores:
        raise TypeError(
            f"this fit of {fitted.name} is of {', '.join(dataset.stores)}: genes are told from a fit of counts"
        )
    if inside.sum() < 2:
        raise ValueError(f"group {label!r} has {inside.sum()} cells in the data: at least two are needed")
    return label, str(fitted.schema.places[name]), inside, dataset
