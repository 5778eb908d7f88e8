"""Which latents each perturbation shifts, with probabilities and a stated false discovery rate."""

from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.fdr import calls, fdr_values
from fieldguide.decisions.perturbations.axes import AXES, chosen_axes
from fieldguide.decisions.perturbations.effects import estimated_shifts, shift_probabilities
from fieldguide.decisions.perturbations.figures import shift_map
from fieldguide.inference.checks.arguments import checked_real, one_of
from fieldguide.inference.data.perturbations import Perturbations
from fieldguide.inference.fitted import Fit

FEW_CELLS = 10
"""Below so many cells a perturbation is listed under the diagnostics as one of few."""


def perturbation_targets(
    fitted: Any,
    data=None,
    *,
    site: str | None = None,
    rotate: str = "none",
    min_shift: Any = 0.5,
    null: str = "empirical",
    fdr: Any = 0.05,
) -> Decision:
    """Return which latents each perturbation shifts, with the probability of each shift.

    The means of the guide are compared between cells: those of a perturbation with the controls, or with the median
    perturbation where there are none. Shifts are in standard deviations of a latent among cells alike. Their prior, a
    share of shifts among small leaks, is estimated from all pairs (`effects.shift_probabilities`).

    Parameters
    ----------
    fitted : Fit
        Of a program with a field of perturbations, such as "svae".
    data : AnnData, DataFrame or dict of arrays, optional
        Cells to compare; the training data by default.
    site : str, optional
        A latent site; the program's main one by default.
    rotate : {"none", "ica", "sparse"}
        Axes to write the shifts in, see `fieldguide.decisions.perturbations.axes`, for latents without axes of their
        own, such as those of a plain VAE.
    null : {"empirical", "zero"}
        What a latent that is not a target does: it moves little, by a width that is estimated from all pairs
        ("empirical"), or not at all ("zero").
    min_shift : float
        Least shift of interest, in standard deviations.
    fdr : float
        Target of the posterior expected FDR over the whole table.

    Returns
    -------
    Decision
        ``table``, one row a perturbation and latent, most probable first: ``perturbation``, ``latent`` (its number),
        ``shift``, ``error`` (standard error), ``probability`` (that its size is at least ``min_shift``), ``fdr``
        (expected FDR of the list down to this row), ``is_target``, ``n_cells``. ``diagnostics``, one row a
        perturbation: ``n_cells``, ``n_targets`` and ``distance``, the length of its shift. ``plot`` draws both.

    Raises
    ------
    TypeError
        For a fit of a program without a field of perturbations.
    """
    least = checked_real("min_shift", min_shift, at_least=0)
    one_of("rotate", rotate, AXES)
    one_of("null", null, ("empirical", "zero"))
    codes, names, latents = _cells(fitted, data, site)
    n_cells = np.bincount(codes[codes >= 0], minlength=len(names))
    if not (codes < 0).all(1).any() and len(names) < 2:
        raise ValueError(
            "there are no controls, and one perturbation alone: nothing to count its shifts from; add cells with others"
        )
    shifts = estimated_shifts(latents, codes, len(names))
    there = np.isfinite(shifts.error[:, 0])
    scaled = shifts.estimate / shifts.deviation
    if rotate != "none":
        axes = chosen_axes(rotate, scaled[there], n_cells[there].astype(float)) / shifts.deviation
        shifts = estimated_shifts(latents @ axes.T, codes, len(names))
        scaled = shifts.estimate / shifts.deviation
    error = shifts.error / shifts.deviation
    probability, prior = shift_probabilities(scaled, error, least, null)
    rows, columns = np.divmod(np.arange(scaled.size), scaled.shape[1])
    flat = probability.ravel()
    table = pd.DataFrame(
        {
            "perturbation": np.asarray(names, dtype=object)[rows],
            "latent": columns,
            "shift": scaled.ravel(),
            "error": error.ravel(),
            "probability": flat,
            "fdr": fdr_values(flat),
            "is_target": calls(flat, fdr),
            "n_cells": n_cells[rows],
        }
    )
    order = np.lexsort((columns, rows, -np.abs(table["shift"].to_numpy()), -flat))
    diagnostics = pd.DataFrame(
        {
            "n_cells": n_cells,
            "n_targets": table["is_target"].to_numpy().reshape(scaled.shape).sum(1),
            "distance": np.sqrt((scaled**2).sum(1)),
        },
        index=pd.Index(names, name="perturbation"),
    )
    settings = {
        "site": fitted.program.latent if site is None else site,
        "rotate": rotate,
        "min_shift": least,
        "null": null,
        "fdr": fdr,
        "share_shifted": prior["share"],
        "size_of_shifts": prior["size"],
        "size_of_leaks": prior["null"],
        "controls": int((codes < 0).all(1).sum()),
    }
    return Decision(
        table.iloc[order].reset_index(drop=True), diagnostics, settings, _notes(settings, n_cells, there), shift_map
    )


def perturbation_field(fitted: Any) -> tuple[str, Perturbations, dict[str, Any]]:
    """Return the name of the field of perturbations of a fit, the field, and what it learnt from the training data.

    Raises
    ------
    TypeError
        If the program reads none.
    """
    if not isinstance(fitted, Fit):
        raise TypeError(f"fitted must be a Fit, not {type(fitted).__name__}")
    schema = fitted.schema
    for name, field in ({} if schema is None else schema.schema.fields).items():
        if isinstance(field, Perturbations) and schema is not None and name in schema.states:
            return name, field, schema.states[name]
    raise TypeError(f"{fitted.name} reads no perturbations: fit an entry with a field Perturbations, such as 'svae'")


def _cells(fitted: Any, data: Any, site: str | None) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Codes [N, M] and names of the perturbations that the cells have, and the means of the guide [N, D], float64."""
    name, _, state = perturbation_field(fitted)
    dataset = fitted.read(data)
    codes = dataset.stores[name].gather(np.arange(dataset.n_cells)).numpy()
    latents = np.asarray(fitted.latent(data, site), dtype=np.float64)
    present = np.unique(codes[codes >= 0])
    if not len(present):
        raise ValueError("the cells have no perturbation: there is no shift to count")
    recoded = np.where(codes < 0, -1, np.searchsorted(present, codes))
    names = list(state["perturbations"])
    return recoded, [names[code] for code in present], latents.reshape(len(latents), -1)


def _notes(settings: dict[str, Any], n_cells: np.ndarray, there: np.ndarray) -> tuple[str, ...]:
    notes = ["Cells are taken as independent given their perturbation: batches and guides are not part of the errors."]
    if not settings["controls"]:
        notes.append("There are no controls: shifts are counted from the median perturbation.")
    if not there.all():
        notes.append(
            f"{int((~there).sum())} perturbations never occur apart from others: the cells do not say which of them "
            "does what, and their errors are infinite."
        )
    few = int((n_cells < FEW_CELLS).sum())
    if few:
        notes.append(f"{few} perturbations have fewer than {FEW_CELLS} cells.")
    return tuple(notes)
