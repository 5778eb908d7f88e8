"""Which treatments do something in one context that they do not do in the others, with probabilities."""

from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.fdr import calls, fdr_values
from fieldguide.decisions.perturbations.effects import checked_least, dead_latents, shift_probabilities
from fieldguide.decisions.perturbations.figures import effect_map
from fieldguide.decisions.perturbations.screen import Screen, read_screen
from fieldguide.inference.checks.arguments import checked_real

RIDGE = 1e-9
ALONE = 1e-6
LEAST_CELLS = 2
"""Cells that a pair needs to have a mean with an error."""


def context_effects(
    fitted: Any,
    data=None,
    *,
    site: str | None = None,
    min_effect: Any = 0.5,
    null: str = "empirical",
    fdr: Any = 0.05,
) -> Decision:
    """Return the effects of treatments that are particular to a context, with the probability of each.

    The means of the guide under each pair of context and treatment are compared with an additive fit: one part for the
    context, one for the treatment. What is left is the interaction, in standard deviations of a latent among cells
    alike. Its prior, a share of interactions among small leaks, is estimated from all pairs
    (`effects.shift_probabilities`).

    Parameters
    ----------
    fitted : Fit
        Of a program with contexts and perturbations, such as "fcr".
    data : optional
        Cells to compare; the training data by default.
    site : str, optional
        A latent site; the program's main one by default, in "fcr" that of the interactions.
    min_effect : float
        Least interaction of interest, in standard deviations.
    null : {"empirical", "zero"}
        What is no interaction: a small one, of a width that is estimated from all pairs, or none at all.
    fdr : float
        Target of the posterior expected FDR over the whole table.

    Returns
    -------
    Decision
        ``table``, one row a pair and latent, most probable first: ``context``, ``perturbation`` (at its dose, where it
        has several, which are treatments of their own here), ``latent``,
        ``effect``, ``error`` (standard error), ``probability`` (that its size is at least ``min_effect``), ``fdr`` (of
        the list down to this row), ``is_specific``, ``n_cells``. ``diagnostics``, one row a pair: ``n_cells``,
        ``n_specific`` and ``distance``, the length of its interaction. ``plot`` draws the latents by pair.

    Raises
    ------
    TypeError
        For a fit without contexts or perturbations.
    ValueError
        With one context or one treatment alone, where nothing is particular.
    """
    least, fdr = checked_least("min_effect", min_effect, null), checked_real("fdr", fdr, at_least=0, below=1)
    screen = read_screen(fitted, data)
    latents = np.asarray(fitted.latent(data, site), dtype=np.float64)
    latents = latents.reshape(len(latents), -1)
    n_cells = screen.n_cells
    used = n_cells >= LEAST_CELLS
    if (used.sum(0) > 1).sum() < 2 or (used.sum(1) > 1).sum() < 2:
        raise ValueError(
            "there is nothing to compare: two contexts with two treatments in common are needed, the control counted"
        )
    context, label = np.nonzero(used)
    mean, variance = _moments(latents, screen.context, screen.kind, n_cells)
    freedom = (n_cells[used] - 1).sum()  # of cells in pairs that count
    deviation = np.sqrt((n_cells[used][:, None] * variance[used]).sum(0) / max(freedom, 1))
    dead = dead_latents(deviation, int(freedom))
    deviation[dead] = 1.0
    effect, error = interactions(mean[used] / deviation, n_cells[used], context, label)
    treated = ~screen.control[label]
    effect, error = effect[treated], error[treated]
    error[:, dead] = np.inf
    probability, prior = shift_probabilities(effect, error, least, null, float(freedom))
    probability[:, dead] = 0.0
    rows, columns = np.divmod(np.arange(effect.size), effect.shape[1])
    names = [np.asarray(v, dtype=object) for v in (screen.contexts, _names(screen))]
    pair = {"context": names[0][context[treated]], "perturbation": names[1][label[treated]]}
    flat, cells = probability.ravel(), n_cells[used][treated]
    table = pd.DataFrame(
        {
            **{name: values[rows] for name, values in pair.items()},
            "latent": columns,
            "effect": effect.ravel(),
            "error": error.ravel(),
            "probability": flat,
            "fdr": fdr_values(flat),
            "is_specific": calls(flat, fdr),
            "n_cells": cells[rows],
        }
    )
    order = np.lexsort((columns, rows, -np.abs(effect.ravel()), -flat))
    diagnostics = pd.DataFrame(
        {
            **pair,
            "n_cells": cells,
            "n_specific": table["is_specific"].to_numpy().reshape(effect.shape).sum(1),
            "distance": np.sqrt((effect**2).sum(1)),
        }
    )
    settings = {
        "site": fitted.program.latent if site is None else site,
        "min_effect": least,
        "null": null,
        "fdr": fdr,
        "share_specific": prior["share"],
        "size_of_effects": prior["size"],
        "size_of_leaks": prior["null"],
    }
    notes = ["Cells are taken as independent given context and treatment: batches and guides are not in the errors."]
    lacking = int((~used).sum())
    if lacking:
        notes.append(f"{lacking} pairs of context and label have fewer than {LEAST_CELLS} cells and are left out.")
    if not screen.control.any():
        notes.append("There are no controls: effects are counted from the average of all treatments.")
    return Decision(table.iloc[order].reset_index(drop=True), diagnostics, settings, tuple(notes), effect_map)


def interactions(
    mean: np.ndarray, n_cells: np.ndarray, context: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what an additive fit of context and label leaves of the means [P, D] of pairs, and its errors.

    Parameters
    ----------
    mean : float array [P, D]
        In units in which cells have variance one.
    n_cells, context, label : int arrays [P]

    Examples
    --------
    >>> context, label = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    >>> effect, error = interactions(np.array([[0.0], [1], [2], [5]]), np.full(4, 4), context, label)
    >>> effect.ravel().round(2).tolist(), error.ravel().round(2).tolist()
    ([0.5, -0.5, -0.5, 0.5], [0.25, 0.25, 0.25, 0.25])
    """
    design = np.concatenate((np.eye(context.max() + 1)[context], np.eye(label.max() + 1)[label]), 1)
    weight = n_cells.astype(float)
    gram = (design.T * weight) @ design
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved = np.linalg.solve(gram, design.T * weight)
    left = mean - design @ (solved @ mean)
    lever = np.einsum("pk,kp->p", design, solved)
    alone = 1 - lever < ALONE  # a pair that its own parts fit by itself says nothing of an interaction
    error = np.where(alone, np.inf, np.sqrt(np.clip(1 - lever, 0, None) / weight))
    return left, error[:, None].repeat(mean.shape[1], 1)


def _names(screen: Screen) -> list[str]:
    """Names of the kinds of treatment, with their doses where there are several."""
    names = [screen.name(codes) for codes in screen.codes]
    several = {name for name in names if names.count(name) > 1}
    said = []
    for name, codes, doses in zip(names, screen.codes, screen.doses, strict=True):
        given = "+".join(f"{dose:g}" for dose in doses[codes >= 0])
        said.append(f"{name} at {given}" if name in several else name)
    return said


def _moments(
    latents: np.ndarray, context: np.ndarray, label: np.ndarray, n_cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances [C, L, D] of the latents of each pair; zero without cells."""
    shape = (*n_cells.shape, latents.shape[1])
    mean, variance, count = np.zeros(shape), np.zeros(shape), np.maximum(n_cells, 1)[..., None]
    np.add.at(mean, (context, label), latents)
    mean /= count
    np.add.at(variance, (context, label), (latents - mean[context, label]) ** 2)
    return mean, variance / count
