"""Which latents each perturbation shifts, with probabilities and a stated false discovery rate."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.fdr import calls, fdr_values
from fieldguide.decisions.perturbations.axes import AXES, chosen_axes
from fieldguide.decisions.perturbations.effects import Shifts, checked_least, estimated_shifts, shift_probabilities
from fieldguide.decisions.perturbations.figures import shift_map
from fieldguide.inference.checks.arguments import checked_real, one_of
from fieldguide.inference.checks.labels import find_label, label_text
from fieldguide.inference.data.interventions import says_none
from fieldguide.inference.data.perturbations import Perturbations
from fieldguide.inference.fitted import Fit

CONTROL = "control"
"""Name of what is done to cells without a perturbation, unless a perturbation is called so."""
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
    least, fdr = checked_least("min_shift", min_shift, null), checked_real("fdr", fdr, at_least=0, below=1)
    one_of("rotate", rotate, AXES)
    codes, names, latents = _cells(fitted, data, site)
    n_cells = np.bincount(codes[codes >= 0], minlength=len(names))
    if not (codes < 0).all(1).any() and len(names) < 2:
        raise ValueError(
            "there are no controls, and one perturbation alone: nothing to count its shifts from; add cells with others"
        )
    shifts = estimated_shifts(latents, codes, len(names))
    there = np.isfinite(shifts.error).any(1)
    if rotate != "none":
        axes = _axes(rotate, shifts, n_cells)
        shifts = estimated_shifts(latents @ axes.T, codes, len(names))
    scaled, error = shifts.estimate / shifts.deviation, shifts.error / shifts.deviation
    probability, prior = shift_probabilities(scaled, error, least, null, shifts.freedom)
    dead = np.flatnonzero(~np.isfinite(error).any(0) & there.any())
    probability[:, dead] = 0.0
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
    notes = _notes(settings, n_cells, there, dead)
    return Decision(table.iloc[order].reset_index(drop=True), diagnostics, settings, notes, shift_map)


def rotated_axes(fitted: Any, data: Any, site: str | None, rotate: str) -> np.ndarray:
    """Return the axes [D, D] in which `perturbation_targets` writes latents; each row is one, in their units."""
    one_of("rotate", rotate, AXES)
    codes, names, latents = _cells(fitted, data, site)
    n_cells = np.bincount(codes[codes >= 0], minlength=len(names))
    return _axes(rotate, estimated_shifts(latents, codes, len(names)), n_cells)


def _axes(rotate: str, shifts: Shifts, n_cells: np.ndarray) -> np.ndarray:
    there = np.isfinite(shifts.error).any(1)
    scaled = (shifts.estimate / shifts.deviation)[there]
    return chosen_axes(rotate, scaled, n_cells[there].astype(float)) / shifts.deviation


def codes_of_label(fitted: Any, argument: str, wanted: Any) -> np.ndarray:
    """Return the codes of what a user calls for, as labels of the data are read; -1 for a control.

    Raises
    ------
    ValueError
        Naming the argument, for a missing label, a part that was not in the training data, and a control where there
        was none.
    """
    _, field, state = perturbation_field(fitted)
    known, control = state["perturbations"], state["control"]
    if wanted is None or wanted is pd.NA or (isinstance(wanted, float) and np.isnan(wanted)):
        raise ValueError(f"{argument}: a label is missing")
    text = label_text(wanted)
    if text in control:
        return np.array([-1])
    usual = text == CONTROL or (says_none(text) and not state.get("named", False))
    if text not in known and usual:
        if not control:
            raise ValueError(f"{argument}: {text!r}: the training data had no controls")
        return np.array([-1])
    parts = [text] if text in known else replace(field, separator=state["separator"]).parts(text, control, known)
    return np.unique([find_label(argument, part, known, "perturbation") for part in parts or [text]])


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


def _notes(settings: dict[str, Any], n_cells: np.ndarray, there: np.ndarray, dead: np.ndarray) -> tuple[str, ...]:
    notes = ["Cells are taken as independent given their perturbation: batches and guides are not part of the errors."]
    if not settings["controls"]:
        notes.append("There are no controls: shifts are counted from the median perturbation.")
    if not there.all():
        notes.append(
            f"{int((~there).sum())} perturbations never occur apart from others: the cells do not say which of them "
            "does what, and their errors are infinite."
        )
    if dead.size:
        notes.append(f"Latents {', '.join(map(str, dead))} do not vary among cells alike: nothing shifts them.")
    few = int((n_cells < FEW_CELLS).sum())
    if few:
        notes.append(f"{few} perturbations have fewer than {FEW_CELLS} cells.")
    return tuple(notes)
