"""Posteriors against closed forms: weights, expectations, diagnostics, draws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import Posterior, fit
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.weights.pareto import pareto_k

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "objectives.json").read_text())
GAUSS = REFERENCE["gauss1d"]


def gauss1d(proposal):
    program = PPCA(n_features=1, n_latent=1)
    with torch.no_grad():
        program.loadings.fill_(1.0)
        program.log_noise.fill_(0.5 * np.log(GAUSS["lik_var"]))
        program.guide_loc.weight.zero_()
        program.guide_loc.bias.fill_(proposal["m"])
        program.guide_log_scale.fill_(0.5 * np.log(proposal["v"]))
    return program


def posterior(proposal, particles, cells=4000, seed=0):
    return Posterior(gauss1d(proposal), read({"x": np.full((cells, 1), GAUSS["x"])}, None), particles, seed)


@pytest.mark.parametrize("proposal", GAUSS["proposals"][:4], ids=lambda p: p["name"])
@pytest.mark.parametrize("particles", [1, 5, 25])
def test_snis_has_its_exact_finite_sample_bias_and_the_plug_in_the_guides_mean(proposal, particles):
    found = posterior(proposal, particles)
    snis = found.expect(lambda v: v["z"])[:, 0]
    error = snis.std() / np.sqrt(len(snis)) + 1e-6
    assert abs(snis.mean() - proposal["expected_snis_mean_z"][str(particles)]) < 5 * error
    plug_in = found.expect(lambda v: v["z"], estimator="plugin")[:, 0]
    assert abs(plug_in.mean() - proposal["m"]) < 5 * plug_in.std() / np.sqrt(len(plug_in)) + 1e-6


def test_evidence_and_weights():
    found = posterior(GAUSS["proposals"][2], 200, cells=500)
    assert found.log_weights.shape == (200, 500) and found.log_weights.dtype == np.float64
    ratio = np.exp(found.log_evidence - GAUSS["log_evidence"])
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(500)
    exact = posterior(GAUSS["proposals"][0], 50, cells=10)
    np.testing.assert_allclose(exact.log_evidence, GAUSS["log_evidence"], atol=1e-5)
    np.testing.assert_allclose(exact.ess, 50, rtol=1e-5)
    assert (exact.khat <= 0.5).all()


@given(st.integers(2, 40), st.integers(1, 5), st.floats(0.1, 30), st.floats(-1e3, 1e3))
def test_the_effective_sample_size_lies_between_one_and_s_and_ignores_constants(draws, cells, spread, shift):
    found = posterior(GAUSS["proposals"][0], draws, cells)
    log_w = np.random.default_rng(draws).normal(size=(draws, cells)) * spread
    found._log_weights = log_w
    ess = found.ess
    assert (ess >= 1 - 1e-9).all() and (ess <= draws + 1e-9).all()
    found._log_weights = log_w + shift
    np.testing.assert_allclose(found.ess, ess, rtol=1e-6)


@pytest.mark.parametrize("case", REFERENCE["psis"]["cases"], ids=str)
def test_pareto_k_is_that_of_the_reference(case):
    draws = case["S"]
    log_w = -case["pareto_shape"] * np.log1p(-(np.arange(1, draws + 1) - 0.5) / draws)
    order = np.random.default_rng(0).permutation(draws)
    found = pareto_k(np.stack([log_w, log_w[order] + 100], 1))
    np.testing.assert_allclose(found, case["khat_arviz"], rtol=1e-6)


def test_pareto_k_grows_as_the_guide_narrows_and_names_bad_weights():
    means = [
        posterior({"m": GAUSS["posterior_mean"], "v": v}, 1000, cells=40).khat.mean() for v in (0.5, 0.25, 0.15, 0.08)
    ]
    assert means == sorted(means) and means[0] < 0.3 and means[-1] > 0.6
    with pytest.raises(ValueError, match="log weights of cell 1 are not finite"):
        pareto_k(np.array([[0.0, np.nan]] * 30))


def test_resampled_draws_have_the_posterior_moments():
    found = posterior(GAUSS["proposals"][2], 400, cells=200)
    z = found.draw("z", 50)
    assert z.shape == (50, 200, 1)
    assert z.mean() == pytest.approx(GAUSS["posterior_mean"], abs=0.02)
    assert z.var() == pytest.approx(GAUSS["posterior_var"], abs=0.02)
    plain = found.draw("z", resample=False)
    assert plain.mean() == pytest.approx(0.6, abs=0.02) and plain.var() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="only 400 particles"):
        found.draw("z", 401, resample=False)
    with pytest.raises(KeyError, match="no site 'w'; there are z"):
        found.draw("w")
    with pytest.raises(ValueError, match="one of snis, plugin"):
        found.expect(lambda v: v["z"], estimator="mean")


def test_chunks_do_not_depend_on_how_often_they_are_visited_and_cells_can_be_chosen(monkeypatch):
    monkeypatch.setattr("fieldguide.inference.posterior.ELEMENTS", 1000)
    found = posterior(GAUSS["proposals"][1], 20, cells=300)
    assert len(list(found.chunks())) == 6
    np.testing.assert_array_equal(found.draw("z"), found.draw("z"))
    np.testing.assert_array_equal(
        found.log_weights, np.concatenate([w.log_w.double().numpy() for _, w, _ in found.chunks()], 1)
    )
    assert not np.array_equal(found.draw("z"), posterior(GAUSS["proposals"][1], 20, 300, seed=1).draw("z"))
    rows = np.array([5, 200, 7])
    assert np.concatenate([r for r, _, _ in found.chunks(rows)]).tolist() == [5, 200, 7]
    assert found.expect(lambda v: v["z"], cells=rows).shape == (3, 1)


def test_inference_data_has_draws_likelihood_and_weights():
    found = posterior(GAUSS["proposals"][1], 60, cells=7)
    data = found.to_arviz()
    assert data.posterior["z"].shape == (1, 60, 7, 1)
    assert data.log_likelihood["observed"].shape == data.sample_stats["log_weight"].shape == (1, 60, 7)
    np.testing.assert_array_equal(data.sample_stats["log_weight"][0], found.log_weights)


def test_a_posterior_of_counts_decodes_under_another_batch(pbmc):
    data = pbmc[:, :60]
    data = data[np.asarray(data.X.sum(1)).ravel() > 0].copy()
    data.obs["batch"] = np.where(np.arange(data.n_obs) % 2, "a", "b")
    found = fit("scvi", data, max_epochs=2, n_hidden=8, progress=False).posterior(particles=10)
    plain = found.expect(lambda v: v["rho"])
    swapped = found.expect(lambda v: v["rho"], overrides={"batch": 1})
    np.testing.assert_allclose(plain.sum(1), 1, rtol=1e-5)
    is_a = data.obs["batch"].eq("b").to_numpy()
    np.testing.assert_allclose(plain[is_a], swapped[is_a], rtol=1e-4)
    assert not np.allclose(plain[~is_a], swapped[~is_a], rtol=1e-3)
    with pytest.raises(KeyError, match="no field 'donor'"):
        found.expect(lambda v: v["rho"], overrides={"donor": 1})
