"""The command line: each command does what the API does, and every mistake is one clear line and exit code 1 or 2."""

import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide import inference
from fieldguide.catalog import citation, entries
from fieldguide.cli import main
from fieldguide.decisions import differential_expression
from fieldguide.reports import compare

QUICK = ["--max-epochs", "2", "--model", "n_latent=3", "n_hidden=16"]
FEW = ["--draws", "30", "--posterior-draws", "30", "--particles", "2"]
QUESTION = ["--groupby", "bulk_labels", "--group", "CD19+ B", "--reference", "Dendritic"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An h5ad file with the 40 genes of most counts, in every third of the embedded cells."""
    from fieldguide.catalog.data import pbmc68k_700

    data = pbmc68k_700()
    genes = np.sort(np.argsort(-np.asarray(data.X.sum(0)).ravel())[:40])
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    small = data[::3, genes].copy()
    small.obs["sample"] = np.where(np.arange(small.n_obs) % 2, "a", "b")
    small.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def fitted(file, tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "fit.safetensors"
    assert main(["fit", "scvi", str(file), "--output", str(path), *QUICK]) == 0
    return path


def fails(capsys, *arguments, code=1) -> str:
    """Run a command that must fail in the way a user can read; return the line."""
    assert main([str(a) for a in arguments]) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("fieldguide: error: ") == 1
    last = shown.splitlines()[-1]
    assert last.startswith("fieldguide: error: "), shown
    return last.removeprefix("fieldguide: error: ")


def test_version_and_help(capsys):
    from fieldguide import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fieldguide {__version__}\n"
    for words in ([], ["--help"], ["fit", "--help"], ["compare", "--help"], ["de", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        assert "usage: fieldguide" in capsys.readouterr().out


def test_a_usage_error_leaves_with_2(capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit"])
    assert left.value.code == 2
    assert "scvi" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_help_and_version_load_nothing_heavy(words, tmp_path):
    code = (
        "import sys\nfrom fieldguide.cli import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "print('LOADED', *[m for m in ('torch', 'pyro', 'numpy', 'anndata', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "LOADED", done.stdout + done.stderr


def test_python_m_fieldguide(tmp_path):
    run = [sys.executable, "-m", "fieldguide", "cite", "nothing"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("fieldguide: error: no catalog entry 'nothing'; there are ")


def test_list_and_cite(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in entries().index)
    assert main(["cite", "scvi"]) == 0
    assert capsys.readouterr().out.strip() == citation("scvi")


def test_fit_is_the_fit_of_the_api(file, fitted):
    direct = inference.fit("scvi", anndata.read_h5ad(file), max_epochs=2, n_latent=3, n_hidden=16, progress=False)
    saved = inference.load(fitted)
    assert saved.arguments == direct.arguments
    for name, value in direct.program.state_dict().items():
        np.testing.assert_array_equal(saved.program.state_dict()[name], value, err_msg=name)


def test_the_options_of_fit(file, tmp_path, capsys):
    path = tmp_path / "fit.safetensors"
    options = [
        "--fields",
        "batch=sample",
        "continuous=n_counts,percent_mito",
        "--objective",
        "iwae",
        "--particles",
        "3",
    ]
    options += ["--seed", "4", "--validation", "0.2", "--batch-size", "64", "--early-stopping", "None", "--backed"]
    options += ["--model", "n_latent=4", "likelihood=zinb", "--max-epochs", "1", "--device", "cpu"]
    assert main(["fit", "scvi", str(file), "--output", str(path), *options]) == 0
    saved = inference.load(path)
    assert saved.objective == inference.IWAE(3)
    assert saved.schema.places["batch"] == "sample" and saved.schema.places["continuous"] == [
        "n_counts",
        "percent_mito",
    ]
    assert saved.arguments["n_latent"] == 4 and saved.arguments["likelihood"] == "zinb"
    assert len(saved.validation_rows) == int(0.2 * 234) and len(saved.history) == 1
    assert f"saved to {path}" in capsys.readouterr().out


def test_de_is_the_decision_of_the_api(file, fitted, tmp_path, capsys):
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path in paths:
        words = ["de", str(fitted), str(file), *QUESTION, "--delta", "0.5", "--draws", "40", "--output", str(path)]
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert paths[0].read_bytes() == paths[1].read_bytes(), "equal seeds, equal tables"
    posterior = inference.load(fitted).posterior(anndata.read_h5ad(file), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = differential_expression(posterior, "bulk_labels", "CD19+ B", "Dendritic", delta=0.5)
    pd.testing.assert_frame_equal(pd.read_csv(paths[0], index_col=0), direct.table)
    assert f"CD19+ B against Dendritic: {direct.table['is_de'].sum()} of 40 genes are called" in shown
    assert direct.table.index[0] in shown and direct.notes[0] in shown
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["one.csv", "two.csv"]


def test_compare_is_the_comparison_of_the_api(file, tmp_path, capsys):
    before = file.read_bytes()
    words = ["compare", "scvi", str(file), "--objectives", "iwae", "elbo", *QUESTION, *QUICK, *FEW]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    shown = capsys.readouterr()
    assert f"report: {tmp_path / 'one' / 'report.html'}" in shown.out
    assert "[1/2] fitting under iwae: IWAE(particles=2" in shown.err, "progress is shown"
    settings = {"max_epochs": 2, "n_latent": 3, "n_hidden": 16, "draws": 30, "posterior_draws": 30, "particles": 2}
    question = {"groupby": "bulk_labels", "group": "CD19+ B", "reference": "Dendritic"}
    direct = compare("scvi", anndata.read_h5ad(file), ["iwae", "elbo"], **question, **settings, progress=False)
    table = pd.read_csv(tmp_path / "one" / "comparison.csv", index_col=0)
    pd.testing.assert_frame_equal(table, direct.table.drop(columns="seconds"), check_dtype=False)
    assert str(int(direct.table.loc["iwae", "de_genes"])) in shown.out
    assert "cells.h5ad: 234 cells" in (tmp_path / "one" / "report.html").read_text()
    assert file.read_bytes() == before, "the input is as it was"


def test_compare_goes_on_to_the_mixture(file, tmp_path, capsys):
    words = ["compare", "scvi", str(file), "--objectives", "elbo", "iwae", *QUICK, *FEW]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "three_step.csv", index_col=0)
    assert list(table.index) == ["elbo", "iwae", "mix"] and "seconds" not in table
    best = pd.read_csv(tmp_path / "out" / "comparison.csv", index_col=0)["bound"].idxmax()
    assert f"Guides fitted to the model of {best}" in shown and f"{table.loc['mix', 'bound']:.2f}" in shown


def test_an_older_report_needs_overwrite(file, tmp_path, capsys):
    words = ["compare", "scvi", str(file), "--objectives", "elbo", *QUICK, *FEW, "--output", str(tmp_path / "out")]
    assert main(words) == 0
    page = tmp_path / "out" / "report.html"
    first = page.stat().st_mtime_ns
    capsys.readouterr()
    assert re.search("out exists already: .*overwrite", fails(capsys, *words))
    assert page.stat().st_mtime_ns == first
    assert main([*words, "--overwrite"]) == 0
    assert page.stat().st_mtime_ns > first


def test_wrong_names_are_named(file, fitted, tmp_path, capsys):
    out = ["--output", tmp_path / "out"]
    said = fails(capsys, "fit", "scvj", file, *out)
    assert re.search("no catalog entry 'scvj'; there are .*ppca, .*scvi", said), "pages of the docs add entries"
    assert "no objective 'elbow'" in fails(capsys, "fit", "scvi", file, "--objective", "elbow", *out)
    assert "scvi has no argument 'n_latnt'; there are" in fails(
        capsys, "fit", "scvi", file, "--model", "n_latnt=3", *out
    )
    assert "--model takes NAME=VALUE, not 'n_latent'" in fails(
        capsys, "fit", "scvi", file, "--model", "n_latent", *out, code=2
    )
    assert "likelihood must be one of" in fails(capsys, "fit", "scvi", file, "--model", "likelihood=nbb", *out)
    assert "no column 'donor' in obs" in fails(capsys, "fit", "scvi", file, "--fields", "batch=donor", *out)
    assert "device 'gpu' is not known" in fails(capsys, "fit", "scvi", file, "--device", "gpu", *out)
    assert "'kind' is not an obs column" in fails(capsys, "de", fitted, file, "--groupby", "kind", "--group", "B")
    assert "no label 'B'" in fails(capsys, "de", fitted, file, "--groupby", "bulk_labels", "--group", "B")
    assert "no objective 'elbow'" in fails(capsys, "compare", "scvi", file, "--objectives", "elbow", *out)
    assert "ask for a --group" in fails(capsys, "compare", "scvi", file, "--groupby", "bulk_labels", *out, code=2)
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_named(file, fitted, tmp_path, capsys):
    out = ["--output", tmp_path / "fit.safetensors"]
    assert "no file nowhere.h5ad" in fails(capsys, "fit", "scvi", "nowhere.h5ad", *out)
    text = tmp_path / "text.h5ad"
    text.write_text("cell,gene\n")
    assert "text.h5ad is not an h5ad file" in fails(capsys, "fit", "scvi", text, *out)
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(file.read_bytes()[:3000])
    assert "cut.h5ad cannot be read as an h5ad file" in fails(capsys, "fit", "scvi", cut, *out)
    assert f"{tmp_path} is not an h5ad file" in fails(capsys, "fit", "scvi", tmp_path, *out)
    question = ["--groupby", "bulk_labels", "--group", "Dendritic"]
    assert "text.h5ad is not a readable safetensors file" in fails(capsys, "de", text, file, *question)
    assert "no file gone" in fails(capsys, "de", "gone", file, *question)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.h5ad", "text.h5ad"]


def test_wrong_data_are_named_and_nothing_is_written(file, tmp_path, capsys):
    data = anndata.read_h5ad(file)
    logged = data.copy()
    logged.X = logged.X.astype("float32").log1p()
    logged.write_h5ad(tmp_path / "logged.h5ad")
    for command, *more in (["fit"], ["compare", *QUESTION, *FEW]):
        line = fails(capsys, command, "scvi", tmp_path / "logged.h5ad", *QUICK, *more, "--output", tmp_path / "out")
        assert re.search(r"cell '\S+', gene '\S+' is .*counts must be non-negative integers", line)
    assert [p.name for p in tmp_path.iterdir()] == ["logged.h5ad"]


def test_places_that_cannot_be_written_are_named_before_the_work(file, fitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fieldguide.inference.fit", lambda *a, **k: pytest.fail("refused only after fitting"))
    monkeypatch.setattr("fieldguide.inference.compare", lambda *a, **k: pytest.fail("refused only after fitting"))
    for words in (["fit", "scvi", file], ["compare"], ["de", fitted, file, *QUESTION]):
        assert "there is no folder" in fails(capsys, *words, "--output", tmp_path / "nowhere" / "out")
    assert "is a folder: give the name of a file" in fails(capsys, "fit", "scvi", file, "--output", tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    line = fails(capsys, "compare", "--output", tmp_path / "thesis", "--overwrite")
    assert "not an older report" in line and (tmp_path / "thesis" / "chapter.txt").exists()
    monkeypatch.setattr(os, "access", lambda *a: False)
    assert "cannot be written" in fails(capsys, "fit", "scvi", file, "--output", tmp_path / "fit")


def test_a_failure_halfway_leaves_nothing(file, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fieldguide.reports.report_files.page", full)
    words = ["compare", "scvi", file, "--objectives", "elbo", *QUICK, *FEW, "--output", tmp_path / "out"]
    assert "No space left on device" in fails(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(file, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fieldguide.inference.compare", interrupted)
    assert main(["compare", "scvi", str(file), "--output", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_debug_shows_where():
    with pytest.raises(KeyError, match="no catalog entry"):
        main(["cite", "nothing", "--debug"])


def test_a_model_without_expression_says_so(file, tmp_path, capsys):
    path = tmp_path / "ppca.safetensors"
    assert main(["fit", "ppca", str(file), "--output", str(path), "--max-epochs", "1"]) == 0
    capsys.readouterr()
    assert "needs raw counts" in fails(capsys, "de", path, file, *QUESTION)
    assert "no deterministic site 'rho'" in fails(capsys, "de", path, file, *QUESTION, "--no-calibrate")


@pytest.mark.slow
def test_compare_without_arguments(tmp_path, monkeypatch, capsys):
    """The main job: under three minutes on two cores, and what it finds is known biology."""
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    assert main(["compare"]) == 0
    assert time.process_time() - start < 2 * 180
    assert f"report: {Path('fieldguide-compare/report.html')}" in capsys.readouterr().out
    table = pd.read_csv("fieldguide-compare/comparison.csv", index_col=0)
    assert table.loc["iwae", "bound"] > table.loc["elbo", "bound"] - 1 and (table["bound"] > -680).all()
    for label in table.index:
        genes = pd.read_csv(f"fieldguide-compare/de_{label}.csv", index_col=0)
        called = genes[genes["is_de"]]
        assert {"CD79A", "CD79B", "MS4A1", "IGLL5"} <= set(called.index[called["lfc"] > 1]), "genes of B cells"
        assert {"CST3", "LYZ", "FCER1G", "TYROBP"} <= set(called.index[called["lfc"] < -1]), "of dendritic cells"
        assert 100 < len(called) < 400
