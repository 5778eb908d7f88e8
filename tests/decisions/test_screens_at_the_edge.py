"""Screens that say little: cells that do not vary, no controls, doses never given, labels that shift nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

import fieldguide.inference as fi
from fieldguide.catalog import learn_perturbations
from fieldguide.catalog.data.factor_blocks import factor_sim
from fieldguide.catalog.data.sparse_shift import sparse_shift_sim
from fieldguide.catalog.data.two_populations import salient_sim
from fieldguide.decisions import (
    context_effects,
    context_responses,
    latent_genes,
    perturbation_targets,
    predicted_expression,
    salient_genes,
)
from fieldguide.decisions.decoding import proportions
from fieldguide.decisions.perturbations.effects import estimated_shifts
from fieldguide.decisions.perturbations.pairs import read_screen
from fieldguide.decisions.perturbations.targets import rotated_axes

QUICK = {"n_hidden": 16, "progress": False, "seed": 0}
SCREEN = {"perturbation": fi.Perturbations(control="control")}
PLACE = {"counts": None, "values": "X", "perturbation": fi.Perturbations("treatment", control="control")}


@pytest.fixture(scope="module")
def cells():
    data = sparse_shift_sim(0, n_cells=20, n_perturbations=12, n_latent=3, n_genes=40).data
    labels = data.obs["perturbation"].astype(str).to_numpy()
    data.obs["perturbation"] = np.where(labels == "p0", "control", labels)
    return data


@pytest.fixture(scope="module")
def fitted(cells):
    return fi.fit("svae", cells, fields=SCREEN, n_latent=3, max_epochs=40, **QUICK)


@pytest.fixture(scope="module")
def blocks():
    data = factor_sim(0, n_contexts=3, n_treatments=4, n_cells=30, n_genes=20).data
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1}
    return data, fi.fit("fcr", data, fields=PLACE, max_epochs=10, **sizes, **QUICK)


# ---- shifts -----------------------------------------------------------------------------------------------
def test_two_that_never_occur_apart_leave_the_others_as_they_are():
    """Without controls shifts are counted from those that can be told from one another."""
    rng = np.random.default_rng(0)
    codes = np.array([[0, -1], [1, -1], [2, -1], [3, 4]]).repeat(100, 0)
    truth = np.array([0.0, 2.0, -1.0, 5.0, 5.0])[:, None]
    z = np.where(codes >= 0, truth[codes, 0], 0).sum(1)[:, None] + rng.normal(size=(400, 1))
    shifts = estimated_shifts(z, codes, 5)
    assert np.isfinite(shifts.error).ravel().tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(shifts.estimate[:3].ravel(), [0, 2, -1], atol=0.4)  # the median is the first
    np.testing.assert_allclose(shifts.error[:3], np.sqrt(2 / 3 / 100), rtol=0.1)


@pytest.mark.parametrize("codes", [[0, 1, 2], [0, -1], [0, 0, 1, 1]])
def test_cells_that_do_not_vary_say_nothing(codes):
    z = np.array([1.0, 1, 2, 2])[: len(codes)][:, None]
    with pytest.raises(ValueError, match="do not say how much cells alike vary"):
        estimated_shifts(z, np.array(codes)[:, None], 3)


def test_a_latent_that_does_not_vary_is_shifted_by_nothing():
    codes = np.array([0, 1, -1]).repeat(20)[:, None]
    z = np.stack((np.random.default_rng(0).normal(size=60) + 3 * (codes[:, 0] == 0), np.full(60, 0.3)), 1)
    shifts = estimated_shifts(z, codes, 2)
    assert (
        np.isfinite(shifts.error[:, 0]).all() and np.isinf(shifts.error[:, 1]).all() and not shifts.estimate[:, 1].any()
    )


def test_dead_latents_are_named(cells, fitted, monkeypatch):
    latents = fitted.latent() * np.array([1.0, 0.0, 1.0], dtype=np.float32)
    monkeypatch.setattr(fi.Fit, "latent", lambda self, data=None, site=None: latents)
    answer = perturbation_targets(fitted)
    assert (answer.table.loc[answer.table["latent"] == 1, "probability"] == 0).all()
    assert any("Latents 1 do not vary" in note for note in answer.notes)


def test_no_least_effect_needs_a_null_of_zero(blocks, fitted):
    with pytest.raises(ValueError, match="min_shift=0 needs null='zero'"):
        perturbation_targets(fitted, min_shift=0)
    assert perturbation_targets(fitted, min_shift=0, null="zero").table["is_target"].any()
    with pytest.raises(ValueError, match="min_effect=0 needs null='zero'"):
        context_effects(blocks[1], min_effect=0)
    for decide, given in ((perturbation_targets, fitted), (context_effects, blocks[1])):
        with pytest.raises(ValueError, match="fdr must be"):
            decide(given, fdr=1)


# ---- genes of latents -------------------------------------------------------------------------------------
def test_genes_follow_the_axes_that_targets_are_told_in(cells, fitted):
    table = latent_genes(fitted, rotate="sparse", cells=60, step=1e-2)
    axes = rotated_axes(fitted, None, None, "sparse")
    plain = latent_genes(fitted, cells=60, step=1e-2)
    np.testing.assert_allclose(table, plain.to_numpy() @ np.linalg.inv(axes), atol=2e-4)  # a small step is linear
    with pytest.raises(TypeError, match="fitted must be a Fit, not int"):
        latent_genes(3)


def test_genes_are_averaged_over_cells_that_use_the_latent():
    data = salient_sim(0, 100, 300, 2, 1, 30, 20, 1500.0).data
    place = {"group": fi.Groups("population", background="background")}
    some = fi.fit("comparative", data, fields=place, n_latent=2, n_salient=1, dimensions="fixed", max_epochs=5, **QUICK)
    target = data[data.obs["population"] == "target"].copy()
    everything, alone = (latent_genes(some, d, site="s", cells=400) for d in (data, target))
    np.testing.assert_allclose(everything, alone, atol=0.02)


# ---- labels -----------------------------------------------------------------------------------------------
def test_labels_are_read_as_those_of_the_data(cells, fitted):
    for wrong, message in {
        None: "a label is missing",
        np.nan: "a label is missing",
        "NT": "no perturbation 'NT'",
    }.items():
        with pytest.raises(ValueError, match=f"perturbations: {message}"):
            predicted_expression(fitted, [wrong])
    same = predicted_expression(fitted, ["p1+ctrl", "p1"], draws=20)
    np.testing.assert_array_equal(same.iloc[0], same.iloc[1])
    with pytest.warns(UserWarning, match="there are no controls"):
        alone = fi.fit("svae", cells[cells.obs["perturbation"] != "control"].copy(), n_latent=3, max_epochs=1, **QUICK)
    with pytest.raises(ValueError, match="'control': the training data had no controls"):
        predicted_expression(alone, ["control"])


def test_a_label_that_shifts_nothing_is_told(cells):
    plain = fi.fit("svae", cells, fields=SCREEN, n_latent=3, prior="vae", max_epochs=1, **QUICK)
    with pytest.warns(UserWarning, match=r"'p1' is predicted to do nothing \(2 such labels\)"):
        table = predicted_expression(plain, ["p1", "p2", "control"], draws=20)
    assert (table.to_numpy() == table.to_numpy()[0]).all()


def test_what_was_learnt_before_stays(cells):
    known, new = (cells[(cells.obs["perturbation"] == "p3").to_numpy() == side].copy() for side in (False, True))
    stop = {"max_epochs": 20, "callbacks": [lambda program, row: row["epoch"] >= 2]}
    with pytest.warns(UserWarning, match="were not turned"):
        early = fi.fit("svae", known, fields=SCREEN, n_latent=3, **stop, **QUICK)
    grown = learn_perturbations(early, new)
    torch.testing.assert_close(grown.program.shifts.share[:-1], early.program.shifts.share, rtol=0, atol=0)
    for wrong, kind in ((None, TypeError), ("x.h5ad", TypeError)):
        with pytest.raises(kind, match="data must be an AnnData"):
            learn_perturbations(early, wrong)
    other = new.copy()
    other.obs["perturbation"] = "DMSO"
    assert learn_perturbations(early, other).schema.states["perturbation"]["perturbations"][-1] == "DMSO"


# ---- pairs ------------------------------------------------------------------------------------------------
def test_pairs_are_named_as_in_the_data(blocks):
    data, some = blocks
    answer = context_responses(some, [("c0", "t1+ctrl"), ("c0", "t1")], draws=4)
    assert answer.diagnostics["perturbation"].tolist() == ["t1", "t1"]


def test_a_combination_has_a_baseline(blocks):
    data, some = blocks
    answer = context_responses(some, [("c0", "t1+t2")], draws=4)
    screen = read_screen(some)
    parts = [screen.response(0, screen.codes_of("pairs", t), 1.0) for t in ("t1", "t2")]
    np.testing.assert_allclose(answer.table["additive"], np.sum(parts, 0))
    assert answer.diagnostics["extrapolated"].tolist() == [False] and any("no cell" in note for note in answer.notes)


@pytest.mark.parametrize("n_tx", [0, 1])
def test_what_training_had_not_is_extrapolated(n_tx):
    data = factor_sim(0, n_contexts=3, n_treatments=4, n_cells=20, n_genes=20).data
    pair = ((data.obs["context"] == "c2") & (data.obs["treatment"] == "t3")).to_numpy()
    sizes = {"n_latent_x": 1, "n_latent_tx": n_tx, "n_latent_t": 1}
    some = fi.fit("fcr", data[~pair].copy(), fields=PLACE, max_epochs=4, **sizes, **QUICK)
    said = context_responses(some, [("c2", "t3"), ("c2", "t2")], data, draws=4).diagnostics
    assert said["extrapolated"].tolist() == [True, False]
    controls = np.flatnonzero(data.obs["treatment"] == "control")
    with pytest.warns(UserWarning, match="no control of the context 'c0', 'c1', 'c2' is among the training cells"):
        none = fi.fit("fcr", data, fields=PLACE, max_epochs=4, validation=controls, **sizes, **QUICK)
    assert context_responses(none, [("c0", "t1")], data, draws=4).diagnostics["extrapolated"].tolist() == [True]


def test_a_dose_above_all_is_extrapolated():
    data = factor_sim(0, n_contexts=2, n_treatments=3, n_cells=20, n_genes=20).data
    data.obs["dose"] = np.where(data.obs["treatment"] == "control", 0.0, np.tile([1.0, 10.0], data.n_obs // 2))
    place = PLACE | {"dose": fi.Doses("dose", beside="treatment", control="control")}
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1}
    some = fi.fit("fcr", data, fields=place, max_epochs=4, **sizes, **QUICK)
    said = [context_responses(some, [("c0", "t1")], dose=dose, draws=4) for dose in (0.5, 1.0, 5.0)]
    assert [bool(s.diagnostics["extrapolated"].iloc[0]) for s in said] == [False, False, True]
    assert any("at 0.5 of the largest dose" in note for note in said[0].notes)


def test_a_context_without_training_cells_is_told_and_changes_nothing_else(blocks):
    data = blocks[0]
    first = np.flatnonzero(data.obs["context"] == "c0")
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1}
    with pytest.warns(UserWarning, match="field 'context': all cells of 'c0' are held out"):
        some = fi.fit("fcr", data, fields=PLACE, max_epochs=6, validation=first, **sizes, **QUICK)
    assert np.isfinite(some.latent()).all() and not some.program.unfinished()


def test_one_context_and_idle_critics_are_told(blocks):
    data = blocks[0]
    one = data[data.obs["context"] == "c0"].copy()
    with pytest.warns(UserWarning, match="there is one context"):
        fi.fit("fcr", one, fields=PLACE, max_epochs=4, n_latent_x=1, n_latent_tx=1, n_latent_t=1, **QUICK)
    with pytest.raises(ValueError, match="critic needs latents in z_tx and in another block"):
        fi.fit("fcr", data, fields=PLACE, max_epochs=1, critic=5.0, n_latent_tx=0, **QUICK)


def test_a_guide_of_an_unfinished_training_is_not_refitted(blocks):
    data = blocks[0]
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1}
    stop = {"max_epochs": 20, "callbacks": [lambda program, row: row["epoch"] >= 2]}
    with pytest.warns(UserWarning, match="were not turned"):
        early = fi.fit("fcr", data, fields=PLACE, **stop, **sizes, **QUICK)
    with pytest.raises(ValueError, match="the latents were not turned to the axes of blocks"):
        early.refit("elbo", progress=False)


# ---- groups -----------------------------------------------------------------------------------------------
def test_without_a_background_a_list_is_not_of_what_sets_a_group_apart():
    data = salient_sim(0, 100, 100, 2, 1, 30, 20, 1500.0).data
    data.obs["half"] = np.array(["one", "two"])[np.arange(200) % 2]
    sizes = {"n_latent": 2, "n_salient": 1, "dimensions": "fixed", "max_epochs": 4, "table": "multigroup"}
    some = fi.fit("comparative", data, fields={"group": "half"}, **sizes, **QUICK)
    with pytest.warns(UserWarning, match="no background is named: where every group has latents of its own"):
        salient_genes(some, "one")
    with pytest.raises(ValueError, match="delta"):
        salient_genes(some, "one", delta=0)


def test_groups_without_training_cells_do_not_blur_the_loss():
    data = salient_sim(0, 60, 60, 2, 1, 30, 20, 1500.0).data
    data.obs["population"] = data.obs["population"].astype(str)
    data.obs.iloc[5, 0] = "solo"
    place = {"group": fi.Groups("population", background="background")}
    sizes = {"n_latent": 2, "n_salient": 1, "dimensions": "fixed", "max_epochs": 2, "kl_warmup": 0}
    with pytest.warns(UserWarning, match="all cells of 'solo' are held out|group 'solo' has one cell"):
        some = fi.fit("comparative", data, fields=place, validation=[5], **sizes, **QUICK)
    assert some.history["validation"].iloc[-1] == pytest.approx(-float(some.bound(data)[5]), rel=0.05)


def test_predictions_start_from_proportions(cells, fitted):
    """What is predicted for a control is what its prior is decoded to."""
    table = predicted_expression(fitted, ["control"], draws=300)
    batch = fitted.read(cells).batch(np.sort(np.random.default_rng(0).choice(cells.n_obs, 300)))
    batch["perturbation"] = torch.full((300, 1), -1)
    np.testing.assert_allclose(table.iloc[0], proportions(fitted, batch, 0).mean(0), rtol=1e-4)
    assert isinstance(table, pd.DataFrame)
