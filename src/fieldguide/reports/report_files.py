"""A study as a folder: a page to read, tables, the data with the results in it, and the posterior draws."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.files import write_bytes, write_text
from fieldguide.inference.comparison import TIMES
from fieldguide.inference.messages import caution
from fieldguide.inference.weights.arviz_data import netcdf_bytes
from fieldguide.reports.annotated_file import write_h5ad
from fieldguide.reports.complete_folder import MARK, complete_folder
from fieldguide.reports.study import DEFINITIONS, Study
from fieldguide.reports.study_figures import OF_DECISIONS, OF_FITS, svg
from fieldguide.reports.study_page import page

CELLS_KEPT = 500
"""Cells whose posterior draws are kept in the InferenceData file: 500 cells x 200 draws x 10 latents are 4 MB."""


def report(study: Study, path: str | Path, overwrite: bool = False) -> Path:
    """Write the study to a folder, which appears complete or not at all, and return its page.

    Parameters
    ----------
    study : Study
        From `fieldguide.reports.compare`.
    path : path
        The folder; it must not exist, or be empty.
    overwrite : bool
        Replace an older report at that place (never another folder).

    Raises
    ------
    OSError
        If the folder exists already or cannot be written, naming it.

    Examples
    --------
    ``report(compare(), "fieldguide-compare")``
    """
    with complete_folder(path, overwrite) as folder:
        write(study, folder)
    return Path(path).expanduser().resolve() / MARK


def write(study: Study, folder: Path) -> None:
    """Write all files of the study into an empty folder.

    Warns
    -----
    UserWarning
        If posterior draws or the annotated data cannot be written: tables and page are there without them.
    """
    files = dict(_tables(study, folder))
    figures = OF_FITS | OF_DECISIONS if study.decisions else OF_FITS
    drawn = {name: svg(draw, study) for name, draw in figures.items()}
    files |= _if_possible("posterior draws", _posteriors, study, folder)
    files |= _if_possible("the data with the results in it", _annotated, study, folder)
    entry = next(iter(study.fits.values())).entry
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    write_text(folder / MARK, page(study, drawn, files, getattr(entry, "cite", "").strip(), date))


def _if_possible(
    what: str, files: Callable[[Study, Path], Mapping[str, str]], study: Study, folder: Path
) -> Mapping[str, str]:
    """What large files there are; a failure must not cost the tables, which took all the fits."""
    try:
        return files(study, folder)
    except Exception as error:
        caution(f"{what} could not be written, the report is there without: {type(error).__name__}: {error}")
        return {}


def _write_table(table: pd.DataFrame, path: Path) -> None:
    write_text(path, table.to_csv())


def _tables(study: Study, folder: Path) -> Mapping[str, str]:
    """CSV files. Times are in one of their own, so that equal seeds give equal files but for that one."""
    _write_table(study.table.drop(columns=TIMES), folder / "comparison.csv")
    _write_table(study.table[TIMES], folder / "times.csv")
    meanings = {"definition": [DEFINITIONS[column] for column in study.table]}
    _write_table(pd.DataFrame(meanings, index=pd.Index(study.table.columns, name="column")), folder / "definitions.csv")
    if study.steps is not None:
        _write_table(study.steps.table.drop(columns=TIMES), folder / "three_step.csv")
    write_text(folder / "settings.json", json.dumps(study.settings, indent=2, default=str) + "\n")
    for label, fit in study.fits.items():
        _write_table(fit.history.drop(columns=TIMES), folder / f"history_{label}.csv")
    for label, decision in study.decisions.items():
        _write_table(decision.table, folder / f"de_{label}.csv")
    files = {
        "comparison.csv": "the table above",
        "times.csv": "seconds of training",
        "definitions.csv": "what the columns of the table mean",
        "settings.json": "everything that is needed to repeat the comparison",
        "history_….csv": "loss on training and held-out cells after each epoch",
    }
    files |= {"three_step.csv": "guides to the best model, and their mixture"} if study.steps is not None else {}
    return files | ({"de_….csv": "differential expression of every gene"} if study.decisions else {})


def _posteriors(study: Study, folder: Path) -> Mapping[str, str]:
    """InferenceData of each fit, for arviz; of some of the cells where there are many."""
    cells, what = np.arange(next(iter(study.posteriors.values())).n_cells), "all cells"
    if len(cells) > CELLS_KEPT:
        what = f"{CELLS_KEPT} random cells"
        cells = np.sort(np.random.default_rng(study.settings["seed"]).choice(cells, CELLS_KEPT, replace=False))
    for label, posterior in study.posteriors.items():
        write_bytes(folder / f"posterior_{label}.nc", netcdf_bytes(posterior.to_arviz(cells)))
    text = f"posterior draws of the latents of {what}, with log likelihood and log weights: arviz.from_netcdf reads it"
    return {"posterior_….nc": text}


def _annotated(study: Study, folder: Path) -> Mapping[str, str]:
    """A copy of the data with the results in it."""
    if study.data is None:
        return {}
    result: anndata.AnnData = study.data.to_memory() if study.data.isbacked else study.data.copy()
    held_out = np.zeros(result.n_obs, dtype=bool)
    held_out[next(iter(study.fits.values())).validation_rows] = True
    result.obs["held_out"] = held_out
    for label, fit in study.fits.items():
        result.obsm[f"X_{fit.name}_{label}"] = fit.latent()
        if label in study.decisions:
            table = study.decisions[label].table.reindex(result.var_names)
            for column in ("lfc", "probability", "fdr", "is_de"):
                result.var[f"{label}_{column}"] = table[column]
    result.uns["fieldguide"] = json.dumps(study.settings, default=str)
    write_h5ad(result, folder / "results.h5ad", compression="gzip")
    text = "a copy of the data: latent means in obsm, held-out cells in obs, differential expression in var"
    return {"results.h5ad": text}
