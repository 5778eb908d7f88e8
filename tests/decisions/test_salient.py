"""Genes that the salient latents of a group change: against the truth of a simulation, and what is refused."""

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

import fieldguide.inference as fi
from fieldguide.catalog.data.two_populations import salient_sim
from fieldguide.decisions import salient_genes

PLACE = {"group": fi.Groups("population", background="background")}


@pytest.fixture(scope="module")
def world():
    return salient_sim(0, 600, 600, 2, 1, 30, 20, 1500.0)


@pytest.fixture(scope="module")
def fitted(world):
    sizes = {"n_latent": 2, "n_salient": 1, "dimensions": "fixed", "likelihood": "poisson", "n_hidden": 32}
    training = {"max_epochs": 40, "learning_rate": 5e-3, "batch_size": 128, "validation": 0.0, "progress": False}
    return fi.fit("comparative", world.data, fields=PLACE, seed=0, **sizes, **training)


def test_changes_are_those_of_the_simulation(world, fitted):
    answer = salient_genes(fitted, "target", delta=0.1)
    table = answer.table.loc[list(world.data.var_names)]
    truth = np.log2(world.rates[:600].mean(0)) - np.log2(world.without[:600].mean(0))
    assert np.corrcoef(table["lfc"], truth)[0, 1] > 0.95
    called = table["is_de"].to_numpy()
    assert called.sum() >= 5 and (np.abs(truth[called]) > 0.05).mean() > 0.8  # the error of the network is not in it
    for column, rates in (("with_salient", world.rates), ("without", world.without)):
        assert np.corrcoef(np.log(table[column]), np.log(rates[:600].mean(0)))[0, 1] > 0.95
    np.testing.assert_allclose(np.log2(table["with_salient"] / table["without"]), table["lfc"], atol=0.01)
    assert list(answer.table["fdr"]) == sorted(answer.table["fdr"]) and answer.diagnostics.loc["target", "cells"] == 600
    assert "over without" in answer.plot().axes[0].get_xlabel()


def test_proportions_are_the_mean_of_the_decoder(world, fitted):
    """With the latents of many draws of the guide, and with zeros for the salient ones, by the networks themselves."""
    program, batch = fitted.program.eval(), fitted.read(world.data).batch(np.arange(600))
    sums = torch.zeros(2, 30)
    torch.manual_seed(0)
    with torch.no_grad():
        features = batch["counts"].log1p()
        for _ in range(50):
            z, s = program.encoder_z(features).sample(), program.encoder_s(features).sample()
            for row, salient in enumerate((s, 0 * s)):
                hidden = program.decoder(torch.cat((z, salient), -1), None)
                sums[row] += torch.softmax(program.observation.head(hidden), -1).mean(0) / 50
    table = salient_genes(fitted, "target").table.loc[list(world.data.var_names)]
    np.testing.assert_allclose(table["with_salient"], sums[0], rtol=0.01)
    np.testing.assert_allclose(table["without"], sums[1], rtol=0.01)


def test_the_error_is_that_of_drawing_other_cells(world, fitted):
    """The spread of fold changes between halves of the cells, against what one half says of itself."""
    target = world.data[:600]
    halves = [salient_genes(fitted, "target", target[k::2].copy(), seed=k).table.sort_index() for k in (0, 1)]
    z = (halves[0]["lfc"] - halves[1]["lfc"]) / np.hypot(halves[0]["lfc_sd"], halves[1]["lfc_sd"])
    assert 0.5 < np.sqrt((z**2).mean()) < 1.5


def test_the_same_seed_says_the_same_and_a_group_without_salient_latents_changes_nothing(fitted):
    one, two = (salient_genes(fitted, "target", draws=50, seed=3).table for _ in range(2))
    assert one.equals(two)
    none = salient_genes(fitted, "background", draws=50)
    assert not none.table["is_de"].any() and not none.table["lfc"].any()
    assert "has no salient latents in use" in none.notes[-1]


def test_what_is_wrong_is_named(world, fitted):
    with pytest.raises(ValueError, match="no group of the training data 'treated'; there are background, target"):
        salient_genes(fitted, "treated")
    with pytest.raises(ValueError, match="group 'target' has 1 cells in the data: at least two are needed"):
        salient_genes(fitted, "target", world.data[599:].copy())
    with pytest.raises(ValueError, match="no latent site 'w': comparative has z, s"):
        salient_genes(fitted, "target", site="w")
    for name, wrong in (("delta", -1), ("fdr", 2), ("draws", 3), ("cells", 1), ("seed", -1)):
        with pytest.raises(ValueError, match=name):
            salient_genes(fitted, "target", **{name: wrong})
    other = fi.fit("ppca", {"x": np.random.default_rng(0).normal(size=(30, 3))}, max_epochs=1, progress=False)
    with pytest.raises(TypeError, match="reads no groups: fit an entry with a field Groups, such as 'comparative'"):
        salient_genes(other, "a")
    nothing: Any = world.data
    with pytest.raises(TypeError, match="fitted"):
        salient_genes(nothing, "a")


def test_a_group_that_shared_latents_tell_apart_is_said():
    """Two epochs: the encoder of the shared latents has not yet learnt to leave the difference to the salient ones."""
    rng, n = np.random.default_rng(0), 400
    rates = np.where(np.arange(n)[:, None] % 2, [20.0, 5, 5, 5], [5.0, 20, 5, 5])
    obs = pd.DataFrame({"group": np.array(["A", "B"])[np.arange(n) % 2]}, index=[f"c{i}" for i in range(n)])
    data = anndata.AnnData(rng.poisson(rates).astype(np.float32), obs=obs)
    place = {"group": fi.Groups(background="A")}
    sizes = {"n_latent": 3, "n_salient": 1, "n_hidden": 16, "dimensions": "fixed"}
    fitted = fi.fit("comparative", data, fields=place, max_epochs=2, batch_size=50, progress=False, **sizes)
    with pytest.warns(UserWarning, match=r"tell 'B' from the other cells .balanced accuracy .*hsic\('z', 'group'"):
        answer = salient_genes(fitted, "B", draws=20)
    z, treated = np.asarray(fitted.latent(site="z"), dtype=float), (obs["group"] == "B").to_numpy()
    axis = np.linalg.solve(np.cov(z[treated].T) + np.cov(z[~treated].T), z[treated].mean(0) - z[~treated].mean(0))
    rule = (z - (z[treated].mean(0) + z[~treated].mean(0)) / 2) @ axis > 0
    assert answer.diagnostics["told_apart"].iloc[0] == pytest.approx(balanced_accuracy_score(treated, rule), abs=0.05)
    assert answer.diagnostics["told_apart"].iloc[0] > 0.85
