"""Which latents perturbations shift: estimates against least squares, probabilities against integrals, FDR, figures."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

import fieldguide.inference as fi
from fieldguide.catalog.data.sparse_shift import sparse_shift_sim
from fieldguide.decisions import additive_expression, latent_genes, perturbation_targets, predicted_expression
from fieldguide.decisions.fdr import calls
from fieldguide.decisions.perturbations.effects import estimated_shifts, shift_probabilities


@pytest.fixture(scope="module")
def world():
    world = sparse_shift_sim(0, n_cells=20, n_perturbations=24, n_latent=4, n_genes=50)
    labels = world.data.obs["perturbation"].astype(str).to_numpy()
    world.data.obs["perturbation"] = np.where(labels == "p23", "control", labels)
    return world


@pytest.fixture(scope="module")
def fitted(world):
    field = {"perturbation": fi.Perturbations(control="control")}
    sizes = {"n_latent": 4, "n_hidden": 32, "max_epochs": 60, "progress": False}
    return fi.fit("svae", world.data, fields=field, **sizes)


# ---- estimates --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("several", [False, True])
def test_shifts_are_those_of_least_squares(several):
    rng = np.random.default_rng(0)
    kinds = [[0, -1], [1, -1], [2, -1], [-1, -1]] + ([[0, 2], [1, 2]] if several else [])
    codes = np.array(kinds)[rng.integers(0, len(kinds), 300)]
    design = np.stack([(codes == k).any(1) for k in range(3)], 1).astype(float)
    z = 1 + design @ rng.normal(size=(3, 2)) + rng.normal(size=(300, 2)) * [1.0, 2.0]
    shifts = estimated_shifts(z, codes, 4)
    full = np.hstack((np.ones((300, 1)), design))
    np.testing.assert_allclose(shifts.estimate[:3], np.linalg.lstsq(full, z, rcond=None)[0][1:], atol=1e-10)
    variance = np.linalg.inv(full.T @ full).diagonal()[1:, None] * shifts.deviation**2
    np.testing.assert_allclose(shifts.error[:3], np.sqrt(variance), rtol=1e-10)
    np.testing.assert_allclose(shifts.deviation, [1, 2], rtol=0.15)
    assert np.isinf(shifts.error[3]).all() and not shifts.estimate[3].any(), "no cell has it"


def test_errors_cover_the_truth():
    rng, codes = np.random.default_rng(0), np.repeat([0, 1, 2, -1], 30)[:, None]
    truth, within = np.array([[1.0], [0.0], [-2.0], [0.0]]), []
    for _ in range(400):
        shifts = estimated_shifts(truth.repeat(30, 0) + rng.normal(size=(120, 1)), codes, 3)
        within.append(np.abs(shifts.estimate - truth[:3]) < 1.96 * shifts.error)
    assert np.mean(within) == pytest.approx(0.95, abs=0.02)


def test_differences_are_known_where_every_cell_has_two_and_none_is_a_control():
    """The intercept cannot be told from what all have in common; what perturbations differ by can."""
    rng = np.random.default_rng(0)
    codes = np.array([[0, 1], [1, 2], [0, 2]]).repeat(400, 0)
    truth = np.array([[0.0, 1.0], [2.0, 0.0], [-1.0, 3.0]])
    shifts = estimated_shifts(truth[codes].sum(1) + rng.normal(size=(1200, 2)), codes, 3)
    away = truth - truth.mean(0)  # of balanced pairs: (X'X)^-1 of three effects that sum to nothing
    np.testing.assert_allclose(shifts.estimate - shifts.estimate.mean(0), away, atol=0.2)
    np.testing.assert_allclose(shifts.error, np.sqrt(2 / 3 / 400), rtol=0.1)


def test_without_controls_the_median_perturbation_is_the_origin():
    z = np.array([[5.0], [5.0], [5.0], [9.0]]).repeat(10, 0) + np.tile([-0.1, 0.1], 20)[:, None]
    shifts = estimated_shifts(z, np.arange(4).repeat(10)[:, None], 4)
    np.testing.assert_allclose(shifts.estimate[:, 0], [0, 0, 0, 4], atol=1e-12)


def test_pairs_without_controls_are_counted_from_the_median_too():
    rng = np.random.default_rng(0)
    codes = np.array([[0, -1], [1, -1], [2, -1], [0, 1], [1, 2]]).repeat(400, 0)
    design = np.stack([(codes == k).any(1) for k in range(3)], 1).astype(float)
    shifts = estimated_shifts(10 + design @ [[1.0], [2.0], [0.0]] + 0.1 * rng.normal(size=(2000, 1)), codes, 3)
    np.testing.assert_allclose(shifts.estimate[:, 0], [0, 1, -1], atol=0.02)
    assert shifts.deviation[0] == pytest.approx(0.1, rel=0.05) and (shifts.error < 0.02).all()


def test_what_never_occurs_apart_is_not_told_apart():
    codes = np.array([[-1, -1], [0, -1], [1, 2]]).repeat(50, 0)
    z = np.array([[0.0], [1.0], [4.0]]).repeat(50, 0) + np.random.default_rng(0).normal(0, 0.1, (150, 1))
    shifts = estimated_shifts(z, codes, 3)
    assert np.isfinite(shifts.error[0]) and np.isinf(shifts.error[1:]).all()
    assert shifts.estimate[1:].sum() == pytest.approx(4, abs=0.1)


def test_errors_of_pairs_are_those_of_repeated_experiments():
    codes, rng = np.array([[1, -1]] * 400 + [[0, 1]] * 400 + [[-1, -1]] * 50), np.random.default_rng(0)
    runs = [estimated_shifts(rng.normal(size=(850, 1)), codes, 2) for _ in range(300)]
    seen, stated = np.std([r.estimate[:, 0] for r in runs], 0), np.mean([r.error[:, 0] for r in runs], 0)
    np.testing.assert_allclose(stated, seen, rtol=0.12)


# ---- probabilities ----------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(st.lists(st.floats(-4, 4), min_size=8, max_size=20), st.floats(0.05, 1.0), st.floats(0, 1))
def test_probabilities_are_the_integrals(values, error, least):
    """Of the prior that was found: P(a shift of the wide component, larger than the least, given the estimate)."""
    estimate, errors = np.array(values), np.full(len(values), error)
    probability, prior = shift_probabilities(estimate, errors, least)
    slab, spike = prior["size"], prior["null"]
    for value, found in list(zip(estimate, probability, strict=True))[:3]:
        wide = prior["share"] * norm.pdf(value, scale=np.hypot(slab, error))
        narrow = (1 - prior["share"]) * norm.pdf(value, scale=np.hypot(spike, error))
        centre, width = value * slab**2 / (slab**2 + error**2), slab * error / np.hypot(slab, error)
        beyond = sum(quad(norm.pdf, a, b, args=(centre, max(width, 1e-7)))[0] for a, b in _sides(least, centre, width))
        assert found == pytest.approx(wide / (wide + narrow) * beyond, abs=1e-5)


def _sides(least, centre, width):
    far = max(abs(centre) + 12 * width, least) + 1e-6
    points = np.sort(np.clip([centre - 8 * width, centre, centre + 8 * width], -far, far))
    for low, high in ((least, far), (-far, -least)):
        inside = [low, *(p for p in points if low < p < high), high]
        yield from zip(inside, inside[1:], strict=False)


def test_the_prior_is_found_and_the_stated_fdr_holds():
    rng = np.random.default_rng(0)
    shares, false, nulls = [], [], []
    for _ in range(30):
        on = rng.random(2000) < 0.15
        truth = np.where(on, rng.normal(0, 3, 2000), rng.normal(0, 0.3, 2000))
        probability, prior = shift_probabilities(truth + rng.normal(0, 0.2, 2000), np.full(2000, 0.2), 0.0)
        listed = calls(probability, 0.1)
        shares.append(prior["share"]), nulls.append(prior["null"])
        false.append((~on[listed]).mean())
    assert np.mean(shares) == pytest.approx(0.15, abs=0.01) and np.mean(nulls) == pytest.approx(0.3, abs=0.02)
    assert np.mean(false) == pytest.approx(0.1, abs=0.02), "the expected FDR is the one there is"
    zero = shift_probabilities(np.array([0.0, 0.0, 5.0]), np.full(3, 0.1), null="zero")
    assert zero[1]["null"] < 1e-5 and zero[0][2] > 0.99
    unknown, prior = shift_probabilities(np.zeros(3), np.full(3, np.inf))
    np.testing.assert_allclose(unknown, prior["share"])


# ---- the decision -----------------------------------------------------------------------------------------
def test_targets_of_a_fit(fitted, world):
    decision = perturbation_targets(fitted, fdr=0.05)
    table = decision.table
    assert len(table) == 23 * 4 and table["probability"].is_monotonic_decreasing
    assert (table["fdr"][table["is_target"]] <= 0.05).all() and decision.settings["controls"] == 20
    np.testing.assert_allclose(decision.diagnostics["n_targets"].sum(), table["is_target"].sum())
    latent, labels = fitted.latent(), world.data.obs["perturbation"].astype(str).to_numpy()
    first = table.iloc[0]
    moved = latent[labels == first["perturbation"], first["latent"]].mean()
    control = latent[labels == "control", first["latent"]].mean()
    assert np.sign(moved - control) == np.sign(first["shift"])
    assert decision.plot().axes and "control" not in set(table["perturbation"])
    order = world.data[::-1].copy()
    turned = perturbation_targets(fitted, order).table
    first, second = (t.set_index(["perturbation", "latent"]).sort_index() for t in (table, turned))
    numbers = ["shift", "error", "probability", "fdr"]
    pd.testing.assert_frame_equal(first[numbers], second[numbers], check_exact=False, rtol=1e-3, atol=1e-5)


def test_rotation_names_other_axes(fitted):
    plain, turned = perturbation_targets(fitted), perturbation_targets(fitted, rotate="ica")
    assert len(plain.table) == len(turned.table) and turned.settings["rotate"] == "ica"
    assert not np.allclose(plain.table["shift"], turned.table["shift"])


def test_genes_follow_latents(fitted, world):
    genes = latent_genes(fitted, step=1.0)
    assert genes.shape == (50, 4) and list(genes.index) == list(world.data.var_names)
    twice = latent_genes(fitted, step=2.0)
    assert np.corrcoef(genes.to_numpy().ravel(), twice.to_numpy().ravel())[0, 1] > 0.95
    assert np.abs(twice.to_numpy()).mean() > 1.5 * np.abs(genes.to_numpy()).mean()


def test_expression_is_predicted_for_combinations(fitted, world):
    table = predicted_expression(fitted, ["control", "p0", "p0+p1"], draws=200)
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-5)
    labels = world.data.obs["perturbation"].astype(str).to_numpy()
    shares = pd.DataFrame(world.data.X / world.data.X.sum(1, keepdims=True), columns=world.data.var_names)
    seen = np.log2(shares[labels == "p0"].mean() / shares[labels == "control"].mean())
    assert np.corrcoef(seen, np.log2(table.loc["p0"] / table.loc["control"]))[0, 1] > 0.8
    pd.testing.assert_frame_equal(table, predicted_expression(fitted, ["control", "p0", "p0+p1"], draws=200))
    with pytest.raises(ValueError, match="perturbations: no perturbation 'p99'; there are p0, p1"):
        predicted_expression(fitted, ["p99"])
    with pytest.raises(TypeError, match="is a list of labels"):
        predicted_expression(fitted, "p0")


def test_the_additive_baseline_is_the_sum_of_log_differences(world, fitted):
    table = additive_expression(fitted, ["p0+p1", "p0", "control"])
    labels = world.data.obs["perturbation"].astype(str).to_numpy()
    sums = {label: world.data.X[labels == label].astype(float).sum(0) for label in ("p0", "p1", "control")}
    logs = {label: np.log(total / total.sum() + 1e-5) for label, total in sums.items()}
    both = np.exp(logs["p0"] + logs["p1"] - logs["control"])
    np.testing.assert_allclose(table.loc["p0+p1"], both / both.sum(), rtol=1e-5)
    np.testing.assert_allclose(table.loc["p0"], sums["p0"] / sums["p0"].sum(), rtol=0.01)
    assert list(table.columns) == list(world.data.var_names) and np.allclose(table.sum(1), 1)
    with pytest.warns(UserWarning, match="no cells with 'p1' alone"):
        some = additive_expression(fitted, ["p0+p1", "p0"], world.data[labels != "p1"].copy())
    assert some.isna().all(axis=1).tolist() == [True, False]
    with pytest.raises(ValueError, match="the data have no controls"):
        additive_expression(fitted, ["p0"], world.data[labels != "control"].copy())


def test_what_has_no_perturbations_is_refused():
    plain = fi.fit(
        "ppca", {"x": np.random.default_rng(0).normal(size=(8, 3))}, n_latent=2, max_epochs=1, progress=False
    )
    with pytest.raises(TypeError, match="ppca reads no perturbations"):
        perturbation_targets(plain)
    bare: Any = "svae"
    with pytest.raises(TypeError, match="fitted must be a Fit, not str"):
        perturbation_targets(bare)
    with pytest.raises(TypeError, match="no deterministic site 'rho'"):
        latent_genes(plain)
