"""Decisions on perturbed cells from the command line: tables and figures of the functions, mistakes in one line."""

import numpy as np
import pandas as pd
import pytest

import fieldguide.inference as fi
from fieldguide.catalog.data.factor_blocks import factor_sim
from fieldguide.catalog.data.sparse_shift import sparse_shift_sim
from fieldguide.catalog.data.two_populations import salient_sim
from fieldguide.cli import main
from fieldguide.decisions import context_effects, context_responses, perturbation_targets, salient_genes

QUICK = {"n_hidden": 16, "progress": False, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("screens")


def saved(folder, entry, data, **given):
    fitted = fi.fit(entry, data, **QUICK | given)
    files = [str(folder / f"{entry}.safetensors"), str(folder / f"{entry}.h5ad")]
    fitted.save(files[0])
    data.write_h5ad(files[1])
    return fitted, files


def test_targets_are_those_of_the_function(folder, capsys):
    data = sparse_shift_sim(0, n_cells=20, n_perturbations=12, n_latent=3, n_genes=40).data
    labels = data.obs["perturbation"].astype(str).to_numpy()
    data.obs["perturbation"] = np.where(labels == "p0", "control", labels)
    place = {"perturbation": fi.Perturbations(control="control")}
    fitted, files = saved(folder, "svae", data, fields=place, n_latent=3, max_epochs=30)
    output, plot = folder / "targets.csv", folder / "targets.png"
    assert main(["targets", *files, "--output", str(output), "--plot", str(plot), "--rotate", "ica", "--top", "3"]) == 0
    wanted = perturbation_targets(fitted, rotate="ica")
    pd.testing.assert_frame_equal(pd.read_csv(output)[list(wanted.table)], wanted.table, check_dtype=False, rtol=1e-4)
    said = capsys.readouterr().out
    assert f"{int(wanted.table['is_target'].sum())} of 33 pairs are called targets" in said
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert main(["targets", *files, "--plot", str(folder / "a.txt")]) == 2
    assert ".png, .svg, .pdf files, not a.txt" in capsys.readouterr().err
    assert main(["targets", *files, "--output", files[1]]) == 1
    assert main(["salient", *files, "--group", "p1"]) == 1
    assert "reads no groups" in capsys.readouterr().err


def test_contexts_are_predicted_and_compared(folder, capsys):
    data = factor_sim(0, n_contexts=3, n_treatments=4, n_cells=30, n_genes=20).data
    place = {"counts": None, "values": "X", "perturbation": fi.Perturbations("treatment", control="control")}
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1, "max_epochs": 8}
    fitted, files = saved(folder, "fcr", data, fields=place, **sizes)
    output = folder / "responses.csv"
    assert main(["contexts", *files, "--pairs", "c0=t1", "c2=t1+t2", "--draws", "4", "--output", str(output)]) == 0
    wanted = context_responses(fitted, [("c0", "t1"), ("c2", "t1+t2")], draws=4)
    table = pd.read_csv(output)
    np.testing.assert_allclose(table["response"], wanted.table["response"], rtol=1e-3, atol=1e-4)
    assert "2 pairs; R2 is of the response" in capsys.readouterr().out
    assert main(["contexts", *files, "--effects", "--output", str(output)]) == 0
    effects = context_effects(fitted).table
    np.testing.assert_allclose(pd.read_csv(output)["probability"], effects["probability"], atol=1e-4)
    for wrong in (["--pairs", "c0"], ["--pairs", "c0=t1", "--effects"]):
        assert main(["contexts", *files, *wrong]) == 2


def test_salient_genes_are_those_of_the_function(folder):
    data = salient_sim(0, 100, 100, 2, 1, 30, 20, 1500.0).data
    place = {"group": fi.Groups("population", background="background")}
    sizes = {"n_latent": 2, "n_salient": 1, "dimensions": "fixed", "max_epochs": 10}
    fitted, files = saved(folder, "comparative", data, fields=place, **sizes)
    output, plot = folder / "salient.csv", folder / "salient.svg"
    given = ["--draws", "100", "--delta", "0.1", "--output", str(output), "--plot", str(plot)]
    assert main(["salient", *files, "--group", "target", *given]) == 0
    wanted = salient_genes(fitted, "target", delta=0.1, draws=100).table
    table = pd.read_csv(output, index_col=0)
    assert list(table.index) == list(wanted.index)
    np.testing.assert_allclose(table["lfc"], wanted["lfc"], rtol=1e-3, atol=1e-4)
    assert "<svg" in plot.read_text()
