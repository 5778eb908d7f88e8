"""Labels that may be wrong: the true label of each cell, which labels to change at a stated FDR, and the noise matrix.

P(wrong) of a label y is ``1 - P(c = y | x, labels)``: the posterior of the true class c has seen the label too, as one
piece of evidence. Labels are changed by the rule of `fieldguide.decisions.fdr`: the longest list of most probable
mistakes whose expected share of right labels is at most the target.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.cells import fields_of_kind
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.fdr import calls, fdr_values
from fieldguide.decisions.labels.classes import NOTES, probabilities
from fieldguide.decisions.labels.figures import matrices, suspicion
from fieldguide.inference.checks.aligning import aligned
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.checks.labels import label_texts
from fieldguide.inference.data.labels import Annotations
from fieldguide.inference.posterior import Posterior

CLASSIFIER = (
    "Classes are uncertain by the model's probabilities; its parameters, the classifier's too, are taken as known."
)


def true_labels(
    source: Posterior | pd.DataFrame | ArrayLike, labels: ArrayLike | None = None, estimator: str = "plugin"
) -> Decision:
    """Return the most probable true label of each cell, and how probable its given labels are to be wrong.

    Parameters
    ----------
    source : Posterior, DataFrame or array [N, C]
        A posterior of ``mvae``: cells without a label, such as new ones, have the classifier's probabilities q(c | z),
        and labelled ones those that are corrected by their labels. Or probabilities of the true class given
        data *and* labels from anywhere, the names of the classes as columns.
    labels : array [N] or DataFrame [N, A], optional
        Given labels by name, missing where there is none; a posterior has its own. A Series or frame whose index holds
        names is put into the order of the cells. 1, "1" and 1.0 are one label.
    estimator : {"plugin", "snis"}
        For a posterior; see `class_probabilities`.

    Returns
    -------
    Decision
        ``table``, one row a cell: label, probability, second, margin (probability minus the runner-up's), entropy
        (nats); for each annotator ``given`` and ``p_wrong`` (with several: ``given_NAME``, ``p_wrong_NAME``), missing
        where it gave no label. ``diagnostics``: of the importance weights, for a posterior.

    Raises
    ------
    ValueError
        If the number of labels is not that of the cells, or a label is no class, naming the row.

    Examples
    --------
    >>> table = pd.DataFrame({"B": [0.9, 0.2], "T": [0.1, 0.8]})
    >>> true_labels(table, ["T", "T"]).table[["label", "p_wrong"]].round(2).values.tolist()
    [['B', 0.9], ['T', 0.2]]
    """
    table, diagnostics, given = _read(source, labels, estimator)
    values, names = table.to_numpy(), table.columns.astype(str).to_numpy()
    rows, order = np.arange(len(values)), np.argsort(-values, axis=1, kind="stable")
    best, second = order[:, 0], order[:, 1]
    positive = np.where(values > 0, values, 1.0)
    answer = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(best, list(names)),
            "probability": values[rows, best],
            "second": names[second],
            "margin": values[rows, best] - values[rows, second],
            "entropy": -(positive * np.log(positive)).sum(1),
        },
        index=table.index,
    )
    for name, codes in given.items():
        end = f"_{name}" if len(given) > 1 else ""
        answer[f"given{end}"] = pd.Categorical.from_codes(codes, list(names))
        answer[f"p_wrong{end}"] = np.where(codes >= 0, 1 - values[rows, codes.clip(min=0)], np.nan)
    settings = {"classes": names.tolist(), "annotators": list(given), "estimator": _estimator(source, estimator)}
    return Decision(answer, diagnostics, settings, (CLASSIFIER, NOTES["closed"]))


def relabel(
    source: Posterior | pd.DataFrame | ArrayLike,
    fdr: float = 0.1,
    labels: ArrayLike | None = None,
    annotator: str | None = None,
    estimator: str = "plugin",
) -> Decision:
    """Find the labels that are wrong, at a target false discovery rate, and say what they should be.

    Parameters
    ----------
    source, labels, estimator
        As in `true_labels`.
    fdr : float
        Expected share of right labels among those that are changed, in [0, 1).
    annotator : str, optional
        Whose labels; needed where there are several.

    Returns
    -------
    Decision
        ``table``, one row a labelled cell, by name and in the order of the data:

        - given, p_wrong: the label, and the posterior probability that it is wrong
        - fdr: expected FDR of the shortest list of suspects that contains the cell
        - rank: 1 for the most suspect; equal probabilities share the best rank
        - wrong: whether the label is called wrong
        - suggestion, p_suggestion: the most probable other class, and its probability
        - new_label: the suggestion where the label is called wrong, else the label

        Nothing is written into the data: ``adata.obs["label"].update(decision.table["new_label"])`` would.

    Raises
    ------
    ValueError
        If no cell is labelled, if it is not said whose labels among several, and as `true_labels`.

    Examples
    --------
    >>> table = pd.DataFrame({"B": [0.97, 0.2, 0.6], "T": [0.03, 0.8, 0.4]})
    >>> relabel(table, fdr=0.05, labels=["T", "T", "B"]).table["new_label"].tolist()
    ['B', 'T', 'B']
    """
    table, diagnostics, given = _read(source, labels, estimator)
    name = _annotator(annotator, list(given))
    rows = np.flatnonzero(given[name] >= 0)
    if not len(rows):
        raise ValueError(f"no cell has a label of annotator '{name}': there is nothing to relabel")
    values, codes = table.to_numpy()[rows], given[name][rows]
    names, cells = table.columns.astype(str).to_numpy(), np.arange(len(rows))
    p_wrong = (1 - values[cells, codes]).clip(0, 1)
    others = values.copy()
    others[cells, codes] = -1
    other, wrong = others.argmax(1), calls(p_wrong, fdr)
    answer = pd.DataFrame(
        {
            "given": pd.Categorical.from_codes(codes, list(names)),
            "p_wrong": p_wrong,
            "fdr": fdr_values(p_wrong),
            "rank": pd.Series(-p_wrong).rank(method="min").astype(int).to_numpy(),
            "wrong": wrong,
            "suggestion": pd.Categorical.from_codes(other, list(names)),
            "p_suggestion": others[cells, other],
            "new_label": pd.Categorical.from_codes(np.where(wrong, other, codes), list(names)),
        },
        index=table.index[rows],
    )
    settings = {
        "fdr": fdr,
        "annotator": name,
        "changed": int(wrong.sum()),
        "expected_fdr": float((1 - p_wrong[wrong]).mean()) if wrong.any() else 0.0,
        "expected_wrong": float(p_wrong.sum()),
        "classes": names.tolist(),
        "estimator": _estimator(source, estimator),
    }
    return Decision(answer, diagnostics, settings, (CLASSIFIER, NOTES["closed"]), suspicion)


def suspects(decision: Decision, n: int = 20) -> pd.DataFrame:
    """Return the n rows of a `relabel` whose labels are most probably wrong, most suspect first.

    Examples
    --------
    >>> table = pd.DataFrame({"B": [0.97, 0.2], "T": [0.03, 0.8]}, index=["x", "y"])
    >>> suspects(relabel(table, labels=["T", "T"]), 1).index.tolist()
    ['x']
    """
    if "rank" not in getattr(decision, "table", ()):
        raise ValueError("decision must be what relabel returns: suspects are read from it")
    return decision.table.sort_values("rank", kind="stable").head(checked_int("n", n, 0))


def noise_matrix(
    source: Posterior | pd.DataFrame | ArrayLike,
    labels: ArrayLike | None = None,
    level: float = 0.9,
    diagonal: float = 1.0,
    draws: int = 500,
    estimator: str = "plugin",
    seed: int = 0,
) -> Decision:
    """Estimate how each annotator labels the cells of each true class, with credible intervals.

    The true class of every labelled cell is drawn from its probabilities, then the rows of the matrix from their
    Dirichlet posterior given those classes; quantiles are over such draws. The matrix that was learnt as a parameter
    of a program is ``fit.program.noise()``.

    Parameters
    ----------
    source, labels, estimator
        As in `true_labels`.
    level : float
        Posterior probability of the intervals, in (0, 1).
    diagonal : float
        The prior of a row is Dirichlet(1, ..., 1 + diagonal, ..., 1).
    draws, seed : int

    Returns
    -------
    Decision
        ``table``, one row an entry: annotator, true, given, estimate (posterior mean), low, high, and cells (expected
        number of that annotator's labels of cells of the true class).

    Raises
    ------
    ValueError
        If an annotator has no label, or an argument is out of range.

    Examples
    --------
    >>> table = pd.DataFrame({"B": [1.0] * 20 + [0.0] * 20, "T": [0.0] * 20 + [1.0] * 20})
    >>> matrix = noise_matrix(table, ["B"] * 38 + ["T"] * 2).table
    >>> matrix.query("true == 'T' and given == 'T'")["high"].item() < 0.35
    True
    """
    level, draws = checked_real("level", level, above=0, below=1), checked_int("draws", draws, 2)
    diagonal, seed = checked_real("diagonal", diagonal, at_least=0), checked_seed(seed)
    table, diagnostics, given = _read(source, labels, estimator)
    if not given:
        raise ValueError("there are no labels: pass labels=")
    names, rng = table.columns.astype(str).to_numpy(), np.random.default_rng(seed)
    size, parts = len(names), []
    for name, codes in given.items():
        rows = np.flatnonzero(codes >= 0)
        if not len(rows):
            raise ValueError(f"annotator '{name}' has given no label: there is nothing to estimate")
        values = table.to_numpy()[rows]
        drawn = _draw_matrices(values, codes[rows], diagonal, draws, rng)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        columns = {
            "annotator": name,
            "true": np.repeat(names, size),
            "given": np.tile(names, size),
            "estimate": drawn.mean(0).ravel(),
            "low": low.ravel(),
            "high": high.ravel(),
            "cells": np.repeat(values.sum(0), size),
        }
        parts.append(pd.DataFrame(columns))
    settings = {"level": level, "diagonal": diagonal, "draws": draws, "seed": seed, "classes": names.tolist()}
    settings |= {"annotators": list(given), "estimator": _estimator(source, estimator)}
    return Decision(pd.concat(parts, ignore_index=True), diagnostics, settings, (CLASSIFIER,), matrices)


def _draw_matrices(
    values: np.ndarray, codes: np.ndarray, diagonal: float, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws of the noise matrix [R, C, C] of one annotator, from class probabilities [n, C] and codes of labels [n]."""
    size, steps = values.shape[1], values.cumsum(1)
    drawn = np.empty((draws, size, size))
    prior = np.ones((size, size)) + diagonal * np.eye(size)
    for number in range(draws):
        classes = (steps < rng.random((len(values), 1)) * steps[:, -1:]).sum(1)
        counts = np.bincount(classes * size + codes, minlength=size**2).reshape(size, size)
        drawn[number] = rng.standard_gamma(prior + counts)
    return drawn / drawn.sum(-1, keepdims=True)


def _read(source: Any, labels: Any, estimator: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, np.ndarray]]:
    """Class probabilities, diagnostics, and the codes of each annotator's labels (-1 for none) [N]."""
    if not isinstance(source, Posterior):
        table, diagnostics = probabilities(source, estimator, "c")
        if labels is None:
            return table, diagnostics, {}
        labels = aligned("labels", labels, table.index)
        single = labels if isinstance(labels, pd.Series) else np.asarray(labels, object)
        if np.ndim(single) != 1 and not isinstance(labels, pd.DataFrame):
            raise ValueError(f"labels must be one a cell, or a DataFrame of several, not of shape {np.shape(single)}")
        frame = labels if isinstance(labels, pd.DataFrame) else pd.DataFrame({"labels": single})
        return table, diagnostics, {str(name): _codes(str(name), frame[name], table) for name in frame}
    if labels is not None:
        raise ValueError("labels= goes with probabilities; a posterior has the labels that it was conditioned on")
    fitted = fields_of_kind(source, Annotations)
    if not fitted:
        raise ValueError("the posterior is not of a program whose labels may be wrong, such as mvae")
    field, state = next(iter(fitted.items()))
    table, diagnostics = probabilities(source, estimator, "c")
    codes = source.dataset.batch(np.arange(source.n_cells))[field].cpu().numpy()
    return table, diagnostics, dict(zip(state["annotators"], codes.T, strict=True))


def _codes(annotator: str, column: pd.Series, table: pd.DataFrame) -> np.ndarray:
    names, texts = pd.Index(label_texts(table.columns)), label_texts(column)
    missing = pd.isna(texts)
    codes = names.get_indexer(np.where(missing, "", texts))
    unknown = np.flatnonzero((codes < 0) & ~missing)
    if unknown.size:
        raise ValueError(
            f"label {column.iloc[unknown[0]]!r} of row {unknown[0]} (annotator '{annotator}') is no class; "
            f"there are {', '.join(map(str, names))}"
        )
    return np.where(missing, -1, codes)


def _annotator(name: str | None, known: list[str]) -> str:
    if not known:
        raise ValueError("there are no labels: pass labels=")
    if name is None and len(known) > 1:
        raise ValueError(f"say whose labels: annotator= one of {', '.join(known)}")
    if name is not None and name not in known:
        raise ValueError(f"no annotator '{name}'; there are {', '.join(known)}")
    return known[0] if name is None else name


def _estimator(source: Any, estimator: str) -> str | None:
    return estimator if isinstance(source, Posterior) else None
