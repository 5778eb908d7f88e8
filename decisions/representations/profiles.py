"""From cells to one profile a perturbation: wells are brought to their controls, guides count alike."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fieldguide.decisions.cells import column
from fieldguide.decisions.messages import real_array
from fieldguide.inference import Fit
from fieldguide.inference.checks.aligning import aligned
from fieldguide.inference.checks.arguments import checked_flag
from fieldguide.inference.checks.labels import given_labels
from fieldguide.inference.data.interventions import says_none
from fieldguide.inference.messages import caution

LEAST = 3
"""Controls that a well needs for a standard deviation of its own."""


def perturbation_profiles(
    cells: "Fit | npt.ArrayLike",
    perturbation: str,
    *,
    well: str | None = None,
    guide: str | None = None,
    control: Any = None,
    obs: Any = None,
    site: str | None = None,
    standardise: bool = True,
) -> pd.DataFrame:
    """Return one profile for each perturbation, from features of cells.

    In each well the mean of its controls is subtracted, and features are divided by their standard deviation among
    them. Cells are averaged in each guide, guides in each perturbation; then features are standardised over
    perturbations. Controls have no row.

    Parameters
    ----------
    cells : Fit or array [N, D]
        Of a fit, the guide's mean of a latent site.
    perturbation, well, guide : str
        Columns of the cells' annotation: what was perturbed (a gene), in which well or batch, by which reagent. Without
        wells all cells are one.
    control : str or sequence of str, optional
        Labels of controls among the perturbations; by default those with a usual word for them, with a warning.
    obs : DataFrame, optional
        The annotation; by default that of the fit's data.
    site : str, optional
        Of a fit; the program's main latent site by default.
    standardise : bool
        Whether features have mean 0 and standard deviation 1 over perturbations in the end.

    Returns
    -------
    DataFrame [perturbations, D]
        Sorted by name. Features that do not vary are 0.

    Raises
    ------
    ValueError
        For an unknown column, missing labels, no control (saying which labels there are), or wells without controls.

    Examples
    --------
    >>> obs = pd.DataFrame({"gene": ["a", "a", "b", "b", "ctrl", "ctrl"]})
    >>> values = [[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 0.1], [0.1, 0]]
    >>> perturbation_profiles(values, "gene", obs=obs, control="ctrl").round(3).values.tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    standardise = checked_flag("standardise", standardise)
    if isinstance(cells, Fit):
        own = cells.read().obs
        obs = own if obs is None else aligned("obs", obs, own.index) if own is not None else obs
        values = cells.latent(site=site).astype(np.float64)
    else:
        values = real_array("cells (a Fit or numbers)", cells)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"cells must be finite numbers [cells, features], not of shape {values.shape}")
    if not isinstance(obs, pd.DataFrame) or len(obs) != len(values):
        rows = f"of {len(obs)} rows" if isinstance(obs, pd.DataFrame) else f"not {type(obs).__name__}"
        raise ValueError(f"obs must be a DataFrame with one row for each of the {len(values)} cells, {rows}")
    label = _texts(obs, perturbation, "perturbation")
    controls = _controls(label, control, perturbation)
    place = _texts(obs, well, "well") if well is not None else np.full(len(values), "all")
    reagent = _texts(obs, guide, "guide") if guide is not None else label
    centred = np.empty_like(values)
    pooled = values[controls].std(0)
    for name in np.unique(place):
        rows = place == name
        reference = values[rows & controls]
        if not len(reference):
            raise ValueError(
                f"well {name!r} has no control cell among its {rows.sum()}: leave it out, or give well=None"
            )
        spread = reference.std(0) if len(reference) >= LEAST else pooled
        centred[rows] = (values[rows] - reference.mean(0)) / np.where(spread > 1e-12, spread, 1.0)
    frame = pd.DataFrame(centred[~controls])
    keys = [pd.Series(label[~controls], name="perturbation"), pd.Series(reagent[~controls], name="guide")]
    profiles = frame.groupby(keys).mean().groupby(level="perturbation").mean().sort_index()
    if standardise:
        spread = profiles.std(ddof=0)
        profiles = (profiles - profiles.mean()) / spread.where(spread > 1e-12, 1.0)
    return profiles


def _texts(obs: pd.DataFrame, name: str, argument: str) -> np.ndarray:
    series = column(obs, name, argument)
    missing = np.flatnonzero(series.isna())
    if missing.size:
        raise ValueError(f"column {name!r} of cell {str(obs.index[missing[0]])!r} is missing ({missing.size} such)")
    return series.astype(str).to_numpy()


def _controls(label: np.ndarray, control: Any, name: str) -> np.ndarray:
    """Which cells are controls, bool [N]."""
    there = sorted(set(label))
    said = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    if control is None:
        found = [text for text in there if says_none(text)]
        if not found:
            raise ValueError(f"column {name!r} has no usual word for a control; give control=..., one of {said}")
        caution(f"{', '.join(map(repr, found))} of column {name!r} are taken for controls; control=... says which are")
    else:
        found = given_labels("control", control)
        absent = [text for text in found if text not in there]
        if absent:
            raise ValueError(f"control {absent[0]!r} is not in column {name!r}; there are {said}")
    if len(found) == len(there):
        raise ValueError(f"column {name!r} has controls only: there is no perturbation to have a profile")
    return np.isin(label, found)
