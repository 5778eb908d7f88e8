"""Comparing objectives, and the folder that is written about it."""

import json
import re
import warnings
from base64 import b64decode
from html.parser import HTMLParser

import anndata
import arviz
import h5py
import numpy as np
import pandas as pd
import pytest

from fieldguide.decisions import differential_expression
from fieldguide.inference import ELBO, IWAE, Comparison, Program
from fieldguide.inference import compare as compare_fits
from fieldguide.inference.comparison import choose
from fieldguide.inference.objectives import SHORT_NAMES
from fieldguide.reports import compare, report
from fieldguide.reports.annotated_file import write_h5ad
from fieldguide.reports.report_files import CELLS_KEPT
from fieldguide.reports.study import DEFINITIONS, Study
from fieldguide.reports.summary import findings, shown

QUESTION = {"groupby": "bulk_labels", "group": "CD19+ B", "reference": "Dendritic"}
QUICK = {"max_epochs": 2, "particles": 2, "draws": 30, "posterior_draws": 30, "n_latent": 3, "n_hidden": 16}


@pytest.fixture(scope="module")
def cells():
    """The 40 genes of most counts, in every third of the embedded cells."""
    from fieldguide.catalog.data import pbmc68k_700

    data = pbmc68k_700()
    genes = np.sort(np.argsort(-np.asarray(data.X.sum(0)).ravel())[:40])
    return data[::3, genes].copy()


@pytest.fixture(scope="module")
def study(cells):
    return compare("scvi", cells, **QUESTION, **QUICK, progress=False)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "out"
    assert report(study, path) == path / "report.html"
    return path


def test_every_objective_is_compared_by_one_estimator(study):
    assert isinstance(study, Comparison)
    assert list(study.table.index) == ["elbo", "iwae", "wake", "chi"] == list(study.fits)
    for label, posterior in study.held_out.items():
        row = study.table.loc[label]
        np.testing.assert_array_equal(study.fits[label].validation_rows, study.fits["elbo"].validation_rows)
        assert posterior.n_cells == len(study.fits[label].validation_rows) == 23
        assert row["bound"] == pytest.approx(posterior.log_evidence.mean())
        assert row["khat_median"] == pytest.approx(np.median(posterior.khat))
        assert row["khat_above"] == pytest.approx(np.mean(posterior.khat > 1 - 1 / np.log10(30)))
        assert row["ess_median"] == pytest.approx(np.median(posterior.ess))
        assert row["de_genes"] == study.decisions[label].table["is_de"].sum()
    assert set(study.table) <= set(DEFINITIONS), "every number has its definition"


def test_differences_are_paired_over_cells(study):
    evidence = pd.DataFrame({k: p.log_evidence for k, p in study.held_out.items()})
    best = evidence.mean().idxmax()
    other = next(label for label in evidence if label != best)
    difference = evidence[best] - evidence[other]
    assert study.table.loc[best, "behind"] == study.table.loc[best, "behind_se"] == 0
    assert study.table.loc[other, "behind"] == pytest.approx(difference.mean())
    assert study.table.loc[other, "behind_se"] == pytest.approx(difference.std() / np.sqrt(23))
    apart = np.sqrt(evidence.var().sum() / 23)
    assert study.table.loc[other, "behind_se"] < apart / 3, "what cells have in common cancels"


def test_the_held_out_cells_are_those_of_the_data(cells, study):
    """The bound of the table is what anyone gets who passes these cells to the fit as new data."""
    fit = study.fits["iwae"]
    again = fit.posterior(cells[fit.validation_rows], particles=30, seed=0)
    assert study.table.loc["iwae", "bound"] == pytest.approx(again.log_evidence.mean(), rel=1e-9)


def test_decisions_are_those_of_the_api(study):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = differential_expression(study.fits["elbo"].posterior(particles=30, seed=0), **QUESTION)
    pd.testing.assert_frame_equal(study.decisions["elbo"].table, direct.table)


def test_labels_and_particles_of_objectives():
    assert choose("scvi") == {name: SHORT_NAMES[name]() for name in ("elbo", "iwae", "wake", "chi")}
    chosen = choose("scvi", ["elbo", "iwae"], particles=3)
    assert chosen == {"elbo": ELBO(), "iwae": IWAE(3)}, "the ELBO stays of one particle"
    chosen = choose("scvi", ["iwae", IWAE(7), "elbo", IWAE(9)])
    assert chosen == {"iwae": IWAE(), "iwae-2": IWAE(7), "elbo": ELBO(), "iwae-3": IWAE(9)}
    assert choose("scvi", {"K50": IWAE(50)}) == {"K50": IWAE(50)}
    with pytest.raises(ValueError, match="label 'a/b'"):
        choose("scvi", {"a/b": "elbo"})
    with pytest.raises(ValueError, match="no objective 'renyj'"):
        choose("scvi", ["renyj"])
    with pytest.raises(ValueError, match="no objective to compare"):
        choose("scvi", [])


def test_objectives_that_come_later_show_up_by_themselves(monkeypatch):
    monkeypatch.setitem(SHORT_NAMES, "later", lambda: ELBO(3))
    assert "later" not in choose("scvi"), "an entry says what it supports"
    assert choose(Program)["later"] == ELBO(3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"groupby": "celltype"}, "groupby='celltype' is not an obs column"),
        ({"group": "B cells"}, "group: no label 'B cells'"),
        ({"reference": "CD19+ B"}, "group and reference share"),
        ({"draws": 5}, "draws must be a whole number of at least 25"),
        ({"cells": 1}, "cells must be a whole number of at least 2"),
        ({"objectives": ["nothing"]}, "no objective 'nothing'"),
        ({"delta": float("nan")}, "delta must be a number of at least 0, not nan"),
        ({"fdr": 1}, "fdr must be a number in [0, 1), not 1"),
        ({"posterior_draws": 0}, "posterior_draws must be a whole number of at least 1, not 0"),
        ({"seed": -1}, "seed must be a whole number in [0, "),
        ({"particles": 0}, "particles must be a whole number of at least 1"),
        ({"unit": "donor"}, "unit='donor' is not an obs column"),
        ({"group": None}, "give group as well"),
        ({"validation": 0.0}, "0 held-out cell"),
    ],
)
def test_bad_questions_are_refused(cells, change, message, monkeypatch):
    import fieldguide.inference.comparison as module

    if "validation" not in change:  # only the split itself tells how many cells it holds out
        monkeypatch.setattr(module, "fit", lambda *a, **k: pytest.fail("refused only after fitting"))
    with pytest.raises(ValueError, match=re.escape(message)):
        compare("scvi", cells, **{**QUESTION, **QUICK, **change}, progress=False)


def test_equal_gene_names_are_refused(cells):
    twice = cells.copy()
    twice.var_names = ["SAME", "SAME", *cells.var_names[2:]]
    with pytest.raises(ValueError, match="'SAME' occurs twice"):
        compare("scvi", twice, **QUESTION, **QUICK, progress=False)


def test_without_a_question_there_are_no_decisions(cells, tmp_path):
    study = compare("scvi", cells, ["elbo"], **QUICK, progress=False)
    assert study.decisions == {} and "de_genes" not in study.table
    page = report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "Differential expression" not in page and not list((tmp_path / "out").glob("de_*"))


def test_a_program_of_ones_own_can_be_compared(tmp_path):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(60, 5)) @ rng.normal(size=(5, 6))}
    comparison = compare_fits("ppca", data, {"one": "elbo", "ten": IWAE(10)}, max_epochs=3, draws=40, progress=False)
    assert list(comparison.table.index) == ["one", "ten"] and np.isfinite(comparison.table["bound"]).all()
    study = compare("ppca", data, ["elbo"], max_epochs=3, draws=40, posterior_draws=30, progress=False)
    report(study, tmp_path / "out")
    assert not (tmp_path / "out" / "results.h5ad").exists(), "a dict of arrays has no annotation to add to"


def test_few_held_out_cells_are_evaluated_when_there_are_many(cells):
    comparison = compare_fits("scvi", cells, ["elbo"], max_epochs=1, draws=30, cells=10, progress=False)
    assert comparison.held_out["elbo"].n_cells == comparison.settings["cells"] == 10


def test_the_folder_is_complete(folder, study):
    names = {p.name for p in folder.iterdir()}
    each = {f"{kind}_{label}.{end}" for label in study.fits for kind, end in _KINDS}
    single = {"report.html", "comparison.csv", "times.csv", "definitions.csv", "settings.json", "results.h5ad"}
    assert names == each | single | {"three_step.csv", "de_mix.csv"}
    assert [p.name for p in folder.parent.iterdir()] == ["out"], "nothing is left beside it"
    assert folder.stat().st_mode & 0o077, "others may read it as the umask lets them"


_KINDS = (("de", "csv"), ("history", "csv"), ("posterior", "nc"))


def test_the_tables_are_those_of_the_study(folder, study):
    table = pd.read_csv(folder / "comparison.csv", index_col=0)
    pd.testing.assert_frame_equal(table, study.table.drop(columns="seconds"), check_dtype=False)
    de = pd.read_csv(folder / "de_iwae.csv", index_col=0)
    pd.testing.assert_frame_equal(de, study.decisions["iwae"].table)
    history = pd.read_csv(folder / "history_elbo.csv", index_col=0)
    pd.testing.assert_frame_equal(history, study.fits["elbo"].history.drop(columns="seconds"))
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["seed"] == 0 and settings["objectives"]["iwae"] == "IWAE(particles=2, gradient='dreg')"
    definitions = pd.read_csv(folder / "definitions.csv", index_col=0)
    assert set(table) | {"seconds"} == set(definitions.index)


def test_the_data_with_results(folder, study, cells):
    result = anndata.read_h5ad(folder / "results.h5ad")
    assert (result.X != cells.X).nnz == 0 and list(result.obs_names) == list(cells.obs_names)
    for label, fit in study.fits.items():
        np.testing.assert_allclose(result.obsm[f"X_scvi_{label}"], fit.latent(), rtol=1e-6)
        table = study.decisions[label].table
        np.testing.assert_allclose(result.var[f"{label}_lfc"], table["lfc"].reindex(cells.var_names))
        assert result.var[f"{label}_is_de"].sum() == table["is_de"].sum()
    held_out = np.flatnonzero(result.obs["held_out"])
    np.testing.assert_array_equal(held_out, study.fits["elbo"].validation_rows)
    assert set(cells.obs) == {"bulk_labels", "n_counts", "n_genes", "percent_mito"}, "the user's data is as it was"
    assert not cells.obsm and not cells.uns and list(cells.var) == list(study.data.var)


def test_the_posterior_draws(folder, study, cells):
    inference_data = arviz.from_netcdf(str(folder / "posterior_elbo.nc"))
    z = inference_data["posterior"]["z"]
    assert z.shape == (1, 30, len(cells), 3) and len(cells) < CELLS_KEPT
    assert list(z["cell"].values) == list(cells.obs_names)
    log_weight = inference_data["sample_stats"]["log_weight"].values[0]
    np.testing.assert_allclose(log_weight, study.posteriors["elbo"].log_weights)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids, self.images, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [attributes[k] for k in ("href", "src") if k in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.images += [attributes] if tag == "img" else []


def test_the_page_needs_no_other_file(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text and "url(" not in text
    assert page.links and all(link.startswith(("#", "data:image/")) for link in page.links)
    assert len(page.images) == 5 and all(image["alt"] for image in page.images)
    assert len(page.ids) == len(set(page.ids)), "an id names one place"
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids), "every link leads somewhere"
    for image in page.images:
        head, _, body = image["src"].partition(",")
        assert head == "data:image/svg+xml;base64" and b"</svg>" in b64decode(body)
        assert b"<image" not in b64decode(body)


def test_the_page_says_what_the_study_says(folder, study):
    text = (folder / "report.html").read_text(encoding="utf-8")
    for value in shown(study).to_numpy().ravel():
        assert f"<td>{value}</td>" in text
    for name in shown(study):
        assert f'href="#def-{name}"' in text and f'id="def-{name}"' in text, (
            "each number's definition is one click away"
        )
    assert "@article{lopez2018deep" in text and "torch" in text
    assert all(topic in text for topic, _ in findings(study))


def test_names_from_the_data_cannot_break_the_page(cells, tmp_path):
    odd = cells.copy()
    names = {"CD19+ B": "<script>B</script>", "Dendritic": 'D & "C"'}
    odd.obs["kind"] = odd.obs["bulk_labels"].astype(str).replace(names)
    odd.var_names = [f"<b>{name}" for name in odd.var_names]
    question = {"groupby": "kind", "group": names["CD19+ B"], "reference": names["Dendritic"]}
    study = compare("scvi", odd, ["elbo"], **question, **QUICK, progress=False)
    text = report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;B" in text


def test_equal_seeds_give_equal_files(folder, cells, tmp_path):
    again = compare("scvi", cells, **QUESTION, **QUICK, progress=False)
    report(again, tmp_path / "out")
    for path in folder.glob("*.csv"):
        if path.name != "times.csv":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    other = compare("scvi", cells, ["elbo"], **QUESTION, **QUICK, seed=1, progress=False)
    assert other.table.loc["elbo", "bound"] != again.table.loc["elbo", "bound"]


def test_nothing_is_left_when_writing_fails(study, tmp_path, monkeypatch):
    import fieldguide.reports.report_files as module

    monkeypatch.setattr(module, "page", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(study, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_tables_and_page_are_there_when_the_data_cannot_be_written(study, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fieldguide.reports.report_files.write_h5ad", full)
    with pytest.warns(UserWarning, match="data with the results .* could not be written.*No space left"):
        page = report(study, tmp_path / "out")
    names = {p.name for p in page.parent.iterdir()}
    assert "results.h5ad" not in names and {"comparison.csv", "posterior_elbo.nc", "de_elbo.csv"} <= names
    assert "results.h5ad" not in page.read_text(encoding="utf-8")


def test_text_that_may_be_missing_is_written_for_every_reader(cells, tmp_path):
    odd = cells.copy()
    odd.obs["kind"] = pd.array(odd.obs["bulk_labels"].astype(str), dtype="string")
    odd.obs.loc[odd.obs_names[0], "kind"] = pd.NA
    odd.var["symbol"] = pd.array(odd.var_names, dtype="string")
    odd.uns["notes"] = {"table": pd.DataFrame({"text": pd.array(["a", None], dtype="string")})}
    odd.raw = odd.copy()
    before = {name: str(kind) for name, kind in odd.obs.dtypes.items()}
    write_h5ad(odd, tmp_path / "odd.h5ad")
    assert {name: str(kind) for name, kind in odd.obs.dtypes.items()} == before, "the data is as it was"
    with h5py.File(tmp_path / "odd.h5ad") as file:
        kinds = []
        file.visititems(lambda _, part: kinds.append(part.attrs.get("encoding-type")))
    assert "nullable-string-array" not in kinds and "categorical" in kinds
    again = anndata.read_h5ad(tmp_path / "odd.h5ad")
    assert again.obs["kind"].isna().sum() == 1 and list(again.raw.var["symbol"]) == list(odd.var_names)


def test_findings_do_not_claim_more_than_the_numbers(study):
    table = study.table.loc[["elbo", "iwae"]].copy()
    table.loc["iwae", ["bound", "behind", "behind_se", "khat_above"]] = [-10.0, 0.0, 0.0, 0.1]
    table.loc["elbo", ["bound", "behind", "behind_se", "khat_above"]] = [-10.5, 0.5, 0.4, 0.9]
    settings = study.settings | {"draws": 1000}
    said = dict(findings(Study(table, study.fits, study.held_out, settings)))
    assert "elbo cannot be told from it" in said["Fit"] and "usable under iwae." in said["Trust"]
    table["khat_above"] = 0.9
    table.loc["elbo", "behind_se"] = 0.1
    said = dict(findings(Study(table, study.fits, study.held_out, settings)))
    assert "cannot be told" not in said["Fit"] and "Do not trust expectations of single cells" in said["Trust"]


def test_the_figure_of_khat_states_the_medians_of_the_table(study, monkeypatch):
    from fieldguide.inference import Posterior
    from fieldguide.reports import study_figures as figures

    monkeypatch.setattr(Posterior, "khat", np.array([0.1, 3.0, 5.0]))  # beyond the histogram
    assert figures.khat(study).axes[0].get_title() == "elbo: median 3.00"
