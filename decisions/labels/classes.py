"""Labels from a posterior, with the option to reject: class probabilities, decisions, and how good they were."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions.cells import cell_names, chosen_rows, fields_of_kind, numbered, require_posterior
from fieldguide.decisions.decision import Decision, UntrustworthyWeights
from fieldguide.decisions.diagnostics import diagnose
from fieldguide.decisions.draws import ESTIMATORS, shares
from fieldguide.decisions.labels.figures import rejection, risk_and_recall
from fieldguide.decisions.labels.rejection import (
    REJECT,
    aurc,
    average_precision,
    checked,
    decide,
    expected_loss,
    rejection_curve,
    risk_coverage,
)
from fieldguide.inference.checks.aligning import aligned, order_of, shuffled, unnamed
from fieldguide.inference.checks.arguments import checked_real, checked_text, one_of
from fieldguide.inference.checks.labels import label_texts
from fieldguide.inference.data.labels import Labels
from fieldguide.inference.messages import caution
from fieldguide.inference.posterior import Posterior

NOTES = {
    "model": "Probabilities are those of the fitted model, whose parameters are taken as known.",
    "closed": "They are shared out among the modelled classes: a cell of no such class has probabilities too.",
    "plugin": "Plug-in probabilities are those of the guide's classifier, averaged over its draws.",
}


def class_probabilities(
    posterior: Posterior, estimator: str = "plugin", site: str = "c", cells: ArrayLike | None = None
) -> pd.DataFrame:
    """Return the probability of each class for each cell, [N, C], with the names of the classes as columns.

    Parameters
    ----------
    posterior : Posterior
        Of a program whose discrete site is summed out, such as ``m1m2``. Cells whose label the data gives have
        probability one there.
    estimator : {"plugin", "snis"}
        "plugin": q(c | z) averaged over draws of z from the guide: a trained classifier. "snis": p(c, x) is estimated
        for each class by importance sampling and normalised over classes: the model's own answer, for which the weights
        have to be good (`Posterior.khat`).
    site : str
        The discrete site.
    cells : array of int, optional
        Row numbers; all cells by default.

    Raises
    ------
    ValueError
        If the posterior has no such probabilities.
    """
    return _read(posterior, estimator, site, cells)[0]


def _read(
    posterior: Posterior, estimator: str, site: str, cells: ArrayLike | None = None
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Class probabilities [N, C], those of the other estimator (missing if there are none), log weights [S, N]."""
    require_posterior(posterior)
    one_of("estimator", estimator, ESTIMATORS)
    site = checked_text("site", site)
    sites = {"plugin": f"{site}_guide", "snis": f"{site}_posterior"}
    parts: dict[str, list[np.ndarray]] = {"plugin": [], "snis": [], "log_w": []}
    for _, weights, values in posterior.chunks(cells):
        if sites[estimator] not in values:
            raise ValueError(
                f"the posterior has no '{sites[estimator]}', the probabilities of an enumerated site; there are "
                f"{', '.join(sorted(values))}"
            )
        for kind, name in sites.items():
            if name in values:
                mean = torch.einsum("sb,sbc->bc", shares(weights, kind), values[name].double())
                parts[kind].append(mean.cpu().numpy())
        parts["log_w"].append(weights.log_w.double().cpu().numpy())
    values = checked(np.concatenate(parts[estimator]))
    rest = parts["plugin" if estimator == "snis" else "snis"]
    other = np.concatenate(rest) if rest else np.full_like(values, np.nan)
    names = pd.Index(_class_names(posterior, values.shape[1]), name="class")
    table = pd.DataFrame(values, index=cell_names(posterior, chosen_rows(posterior, cells)), columns=names)
    return table, other, np.concatenate(parts["log_w"], 1)


def reject_option(
    source,
    cost: float = 0.1,
    loss: ArrayLike | None = None,
    estimator: str = "plugin",
    site: str = "c",
) -> Decision:
    """Decide on the class of each cell, or reject it where no decision is worth its expected loss.

    Parameters
    ----------
    source : Posterior, DataFrame or array [N, C]
        A posterior (see `class_probabilities`), or probabilities from anywhere.
    cost : float
        Loss of rejecting, where a wrong class loses 1. With that loss, cells are rejected whose largest probability is
        at most ``1 - cost``.
    loss : array [C, C], optional
        Loss of deciding for the class of the row when that of the column is true, in place of 0 and 1.
    estimator, site
        For a posterior; see `class_probabilities`.

    Returns
    -------
    Decision
        ``table``, one row a cell:

        - decision: name of the class, missing where rejected
        - rejected: whether it is
        - best, probability: the most probable class, and its probability
        - second, margin: the runner-up, and by how much less probable it is
        - loss_best, loss_reject: posterior expected loss of deciding for the best class (by ``loss``) and of rejecting
        - expected_loss: of the action that was taken, the smaller one

        ``diagnostics``: of the importance weights, for a posterior. ``settings``: everything above, and ``threshold``,
        ``coverage`` and ``expected_loss`` over all cells.

    Raises
    ------
    ValueError
        Naming the argument, or the row and class of an impossible probability.

    Warns
    -----
    UntrustworthyWeights
        With ``estimator="snis"``, when k-hat is above its limit in more than half of the cells.

    Examples
    --------
    >>> decision = reject_option(pd.DataFrame({"cat": [0.95, 0.6], "dog": [0.05, 0.4]}), cost=0.1)
    >>> decision.table["decision"].tolist()
    ['cat', nan]
    """
    cost = checked_real("cost", cost, at_least=0)
    table, diagnostics = probabilities(source, estimator, site)
    values, names = table.to_numpy(), table.columns.astype(str).to_numpy()
    loss = _loss_by_name(loss, names)
    action, losses = decide(values, cost, loss), expected_loss(values, loss)
    order = np.argsort(-values, axis=1, kind="stable")
    rows = np.arange(len(values))
    best, second = order[:, 0], order[:, 1]
    decisions = pd.DataFrame(
        {
            "decision": pd.Categorical.from_codes(action, list(names)),  # -1 is missing
            "rejected": action == REJECT,
            "best": names[best],
            "probability": values[rows, best],
            "second": names[second],
            "margin": values[rows, best] - values[rows, second],
            "loss_best": losses.min(1),
            "loss_reject": float(cost),
            "expected_loss": np.minimum(losses.min(1), cost),
        },
        index=table.index,
    )
    settings = {
        "cost": cost,
        "threshold": 1 - cost if loss is None else None,
        "loss": None if loss is None else np.asarray(loss).tolist(),
        "estimator": estimator if isinstance(source, Posterior) else None,
        "classes": names.tolist(),
        "coverage": float((action != REJECT).mean()),
        "expected_loss": float(decisions["expected_loss"].mean()),
    }
    notes = (NOTES["model"], NOTES["closed"]) if isinstance(source, Posterior) else (NOTES["closed"],)
    notes += (NOTES["plugin"],) if settings["estimator"] == "plugin" else ()
    return Decision(decisions, diagnostics, settings, notes, rejection)


def evaluate_rejection(source, truth: ArrayLike, estimator: str = "plugin", site: str = "c") -> Decision:
    """Compare decisions at every threshold with true labels: risk against coverage, and who was rejected.

    Parameters
    ----------
    source : Posterior, DataFrame or array [N, C]
        As in `reject_option`.
    truth : array [N]
        True labels, by name. Labels that are no class of the model are *unknown*: such cells should be rejected, and
        any decision on them is wrong. A Series whose index holds names is put into the order of the cells.
    estimator, site
        For a posterior; see `class_probabilities`.

    Returns
    -------
    Decision
        ``table``, one row a cell, most certain first: threshold (its largest probability: to accept just the cells so
        far, reject what is below), coverage, risk (share of wrong decisions among the accepted), and, with unknown
        cells, precision and recall of rejecting all cells that come after it.

        ``diagnostics``: those of the weights, if any. ``settings``: accuracy (arg-max, on cells of known classes),
        aurc, and with unknown cells average_precision and auprc_20 (trapezoid over the published 20 thresholds), for
        rejecting by the largest probability; base_rate, their share.

    Raises
    ------
    ValueError
        If labels are missing (naming the row), of another number than the cells, or all unknown.

    Examples
    --------
    >>> table = pd.DataFrame({"cat": [0.95, 0.6, 0.2], "dog": [0.05, 0.4, 0.8]})
    >>> answer = evaluate_rejection(table, ["cat", "fish", "dog"])
    >>> answer.settings["accuracy"], answer.settings["average_precision"]
    (1.0, 1.0)
    """
    table, diagnostics = probabilities(source, estimator, site)
    values, names = table.to_numpy(), table.columns.astype(str).to_numpy()
    labels = _truth(truth, table.index)
    names = label_texts(names)
    known = np.isin(labels, names)
    if not known.any():
        raise ValueError(f"none of the true labels is a class of the model ({', '.join(names)})")
    certainty, right = values.max(1), names[values.argmax(1)] == labels
    coverage, risk = risk_coverage(certainty, ~right)
    order = np.argsort(-certainty, kind="stable")
    curve = pd.DataFrame({"threshold": certainty[order], "coverage": coverage, "risk": risk}, index=table.index[order])
    settings: dict[str, Any] = {
        "accuracy": float(right[known].mean()),
        "aurc": aurc(certainty, ~right),
        "estimator": estimator if isinstance(source, Posterior) else None,
        "classes": names.tolist(),
        "unknown": int((~known).sum()),
        "base_rate": float((~known).mean()),
    }
    if not known.all():
        caught = (~known).sum() - np.cumsum(~known[order])
        left = len(order) - np.arange(1, len(order) + 1)
        with np.errstate(invalid="ignore"):
            curve["precision"], curve["recall"] = caught / left, caught / (~known).sum()
        settings["average_precision"] = average_precision(certainty, ~known)
        settings["auprc_20"] = rejection_curve(certainty, ~known)[2]
    return Decision(curve, diagnostics, settings, (NOTES["closed"],), risk_and_recall)


def probabilities(source, estimator: str, site: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Class probabilities of a posterior or as they were given, and the diagnostics of the weights."""
    if isinstance(source, Posterior):
        table, other, log_weights = _read(source, estimator, site)
        shift = np.abs(table.to_numpy() - other).max(1)
        quality = diagnose(log_weights, "cells", source.n_cells, shift)
        if estimator == "snis" and quality["khat_above"] > 0.5:
            caution(
                f"k-hat is above {quality['khat_limit']:.2f} in {quality['khat_above']:.0%} of the cells (median "
                f"{quality['khat_median']:.2f}), so importance-weighted class probabilities are noisy; they differ "
                f"from the plug-in ones by {quality['shift_median']:.2f} in the median cell. More particles, a "
                "refitted guide or a mixture of guides help",
                UntrustworthyWeights,
            )
        return table, quality.to_frame().T
    if hasattr(source, "posterior"):
        require_posterior(source, "source")
    values = checked(source.to_numpy() if isinstance(source, pd.DataFrame) else source)
    frame = source if isinstance(source, pd.DataFrame) else pd.DataFrame(values)
    if frame.columns.astype(str).duplicated().any():
        repeated = frame.columns[frame.columns.astype(str).duplicated()][0]
        raise ValueError(f"class '{repeated}' has two columns of probabilities")
    return pd.DataFrame(values, index=frame.index, columns=frame.columns), pd.DataFrame({"cells": [len(frame)]})


def _truth(truth: ArrayLike, cells: pd.Index) -> np.ndarray:
    """True labels as text, in the order of the cells."""
    truth = aligned("truth", truth, cells)
    if np.ndim(truth) != 1:
        raise ValueError(f"truth must be one label a cell, not of shape {np.shape(truth)}")
    labels = label_texts(truth)
    missing = np.flatnonzero(pd.isna(labels))
    if missing.size:
        raise ValueError(f"the true label of row {missing[0]} is missing")
    return labels


def _loss_by_name(loss: Any, names: np.ndarray) -> Any:
    """A table of losses with decisions and true classes in the order of the classes, where it has their names."""
    if not isinstance(loss, pd.DataFrame):
        return loss
    classes = pd.Index(names)
    for index in (loss.index, loss.columns):
        if unnamed(index) and not (shuffled(classes) and len(index) == len(classes)):
            return loss
    rows = order_of("the rows of loss", loss.index, classes, "classes")
    return loss.iloc[rows, order_of("the columns of loss", loss.columns, classes, "classes")]


def _class_names(posterior: Posterior, n_classes: int) -> list[str]:
    """Names of the classes, from the labels that the program was fitted to."""
    fitted = [state["categories"] for state in fields_of_kind(posterior, Labels).values()]
    return next((list(names) for names in fitted if len(names) == n_classes), numbered(n_classes))
