"""Estimators of HSIC at work: random features, bias of the V-statistic, blocks; and the worked linear Gaussian case."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fieldguide.catalog.data.quality import TwoFactors
from fieldguide.inference import fit, hsic
from fieldguide.inference.constraints import measures as m

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "hsic.json").read_text())
I = torch.arange(1, 9, dtype=torch.float64)  # noqa: E741
U = torch.stack((I.sin(), (2 * I).cos()), 1)
V = torch.stack((0.1 * I**1.5, (0.5 * I).sin(), I.cos()), 1)
GAMMA = m.analytic_gamma(1)


def pairs(rho, replicates, n, seed):
    noise = torch.randn((replicates, n, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = noise[..., :1]
    return x, rho * x + (1 - rho**2) ** 0.5 * noise[..., 1:]


def test_two_thousand_random_features_are_within_a_tenth_of_the_exact_value():
    exact = REFERENCE["hsic"]["hsic_v"]
    gammas = [m.analytic_gamma(x.shape[1]) for x in (U, V)]
    found = []
    for seed in range(40):
        drawn = [m.draw_features(x.shape[1], g, 2000, 2 * seed + i) for i, (x, g) in enumerate(zip((U, V), gammas))]  # noqa: B905
        features = [m.random_features(x, *(t.double() for t in d)) for x, d in zip((U, V), drawn, strict=True)]
        found.append(m.hsic_features(*features).item())
    error = np.abs(np.array(found) / exact - 1)
    assert np.quantile(error, 0.9) < 0.1, "in nine draws of ten"
    assert abs(np.mean(found) / exact - 1) < 0.03


@pytest.mark.parametrize("n", [32, 128])
def test_the_bias_of_the_v_statistic_is_that_of_the_formula(n):
    """E[V] = (1 - E k)(1 - E l) / n + O(1 / n^2) under independence; E k = 1 / sqrt(1 + 4 gamma) for a Gaussian."""
    x, y = pairs(0.0, 2000, n, 1)
    found = m.dhsic(m.gaussian_gram(x, GAMMA), m.gaussian_gram(y, GAMMA))
    expected = (1 - (1 + 4 * GAMMA) ** -0.5) ** 2 / n
    assert abs(found.mean().item() - expected) < 4 * found.std().item() / 2000**0.5 + 2 / n**2
    assert found.mean().item() > 0.9 * expected, "the bias is there"


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_blocks_average_to_the_population_value(rho):
    value = REFERENCE["hsic"]["population_gaussian_1d"]["values"][str(rho)]
    x, y = pairs(rho, 400, 70, 2)  # four blocks of sixteen; six points are left out
    k, other = (m.gaussian_gram(torch.stack([m.blocks(r, 16) for r in v]), GAMMA) for v in (x, y))
    found = m.hsic_unbiased(k, other).mean(-1)
    assert k.shape == (400, 4, 16, 16)
    assert abs(found.mean().item() - value) < 4 * found.std().item() / 20
    assert found.std().item() > m.hsic_unbiased(m.gaussian_gram(x, GAMMA), m.gaussian_gram(y, GAMMA)).std().item()


# ---- the worked case --------------------------------------------------------------------------------------
def worked(exact=False):
    i, j, k = np.arange(1, 7)[:, None], np.arange(1, 3)[None], np.arange(6)
    g = np.cos(k[:, None] - 2 * k[None])
    return TwoFactors(np.cos(i * j), np.sin(i * (j + 1)), 0.5 * np.eye(6) + g @ g.T / 6, exact)


def test_the_closed_forms_are_those_of_the_reference():
    r, program = REFERENCE["hcv_linear_gaussian"], worked()
    covariance = program.posterior_covariance()
    np.testing.assert_allclose(covariance, r["posterior_cov"], rtol=2e-6)
    with torch.no_grad():
        program.guide_loc.weight.copy_(program.posterior_map())
        program.guide_loc.bias.zero_()
        program.guide_log_scale.copy_(-0.5 * torch.linalg.inv(covariance).diagonal().log())
    assert program.expected_gap() == pytest.approx(r["elbo_gap_mean_field"], abs=1e-6)
    aggregated = program.aggregated_covariance()
    np.testing.assert_allclose(aggregated, r["aggregated_cov_mean_field"], atol=1e-6)
    np.testing.assert_allclose(aggregated[:2, 2:], -covariance[:2, 2:], atol=1e-6)
    found = m.population_hsic(aggregated, (2, 2), (m.analytic_gamma(2),) * 2).item()
    assert found == pytest.approx(r["population_hsic_mean_field_bandwidth_rule"], rel=1e-3)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(6).double(), program.marginal_covariance())
    assert -marginal.entropy().item() == pytest.approx(r["expected_log_evidence"], abs=1e-5)


@pytest.mark.slow
def test_a_fitted_guide_has_the_gap_of_the_theory_and_the_constraint_takes_the_correlation():
    """Mean field, full batch: gap 0.0447, cross-covariance -V_uv; a guide of full covariance has neither."""
    r, rng = REFERENCE["hcv_linear_gaussian"], np.random.default_rng(0)
    truth = worked()
    x = rng.normal(size=(5000, 4)) @ truth.loadings.numpy().T
    data = {"x": x + rng.normal(size=(5000, 6)) @ torch.linalg.cholesky(truth.noise).numpy().T}
    wanted = -truth.posterior_covariance()[:2, 2:]

    def fitted(exact, constraints=()):
        torch.manual_seed(0)
        program = worked(exact)
        for rate, epochs in ((0.05, 150), (0.01, 150)):
            fit(
                program,
                data,
                constraints=constraints,
                batch_size=5000,
                learning_rate=rate,
                max_epochs=epochs,
                validation=0.0,
                kl_warmup=0,
                progress=False,
            )
        return program

    mean_field, full, held = fitted(False), fitted(True), fitted(False, [hsic("v", "u", weight=3e4, estimator="rff")])
    assert mean_field.expected_gap() == pytest.approx(r["elbo_gap_mean_field"], abs=0.006)
    assert (mean_field.aggregated_covariance()[:2, 2:] - wanted).abs().max() < 0.02
    assert full.expected_gap() < 0.006
    assert full.aggregated_covariance()[:2, 2:].abs().max() < 0.02
    strength = [p.aggregated_covariance()[:2, 2:].abs().sum().item() for p in (mean_field, held)]
    assert strength[1] < 0.5 * strength[0], "independence, at a price in the bound"
    assert held.expected_gap() > mean_field.expected_gap()
