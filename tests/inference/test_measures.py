"""Estimators of HSIC against reference values, brute force and closed forms."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from fieldguide.inference import permutation_test
from fieldguide.inference.constraints import measures as m

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "hsic.json").read_text())["hsic"]
I = torch.arange(1, 9, dtype=torch.float64)  # noqa: E741
U = torch.stack((I.sin(), (2 * I).cos()), 1)
V = torch.stack((0.1 * I**1.5, (0.5 * I).sin(), I.cos()), 1)
W = (3 * I).cos()[:, None]
K, L, M = (m.gaussian_gram(x, m.analytic_gamma(x.shape[1])) for x in (U, V, W))


def test_estimators_equal_the_reference_values():
    for dimension, gamma in REFERENCE["gamma"].items():
        assert m.analytic_gamma(int(dimension)) == pytest.approx(gamma, rel=1e-9)
    assert m.dhsic(K, L).item() == pytest.approx(REFERENCE["hsic_v"], rel=1e-8)
    assert m.hsic_unbiased(K, L).item() == pytest.approx(REFERENCE["hsic_unbiased"], rel=1e-8)
    assert m.dhsic(K, L, M).item() == pytest.approx(REFERENCE["dhsic_3"], rel=1e-8)
    first = [g[:4, :4] for g in (K, L, M)]
    assert m.dhsic(*first).item() == pytest.approx(REFERENCE["dhsic_3_first4"], rel=1e-8)
    median = REFERENCE["median_pairwise_distance_u"]
    assert m.median_gamma(U) == pytest.approx(1 / (2 * median**2), rel=1e-6)


def test_the_unbiased_estimate_equals_the_sum_over_different_points():
    k, m_, n = K[:5, :5].numpy(), L[:5, :5].numpy(), 5
    quads = [q for q in product(range(n), repeat=4) if len(set(q)) == 4]
    brute = np.mean([k[i, j] * (m_[i, j] + m_[p, q] - 2 * m_[i, p]) for i, j, p, q in quads])
    assert m.hsic_unbiased(K[:5, :5], L[:5, :5]).item() == pytest.approx(brute, rel=1e-9)


def test_the_kernel_of_categories_gives_mmd():
    codes = torch.tensor([0] * 3 + [1] * 5)
    found = m.dhsic(K, m.delta_gram(codes)).item()
    assert found == pytest.approx(REFERENCE["delta_kernel"]["hsic_v"], rel=1e-8)
    assert found == pytest.approx(2 * 9 * 25 / 8**4 * m.mmd(K, codes).item(), rel=1e-9)
    assert m.mmd(K, codes).item() == pytest.approx(REFERENCE["delta_kernel"]["mmd2_v"], rel=1e-8)


def test_v_statistic_is_symmetric_never_negative_and_zero_for_a_constant():
    order = torch.from_numpy(np.random.default_rng(0).permutation(8))
    assert m.dhsic(K, L) >= 0
    torch.testing.assert_close(m.dhsic(L, K), m.dhsic(K, L))
    torch.testing.assert_close(m.dhsic(K[order][:, order], L[order][:, order]), m.dhsic(K, L))
    assert abs(m.dhsic(K, torch.ones_like(K)).item()) < 1e-15


def test_features_give_the_estimates_of_their_own_kernel():
    a, b = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    torch.testing.assert_close(m.hsic_features(a, b), m.dhsic(a @ a.T, b @ b.T))
    torch.testing.assert_close(m.hsic_features(a, b, unbiased=True), m.hsic_unbiased(a @ a.T, b @ b.T))


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.5, 0.9])
def test_estimates_average_to_the_population_value(rho):
    gamma, value = m.analytic_gamma(1), REFERENCE["population_gaussian_1d"]["values"][str(rho)]
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    assert m.population_hsic(covariance, (1, 1), (gamma, gamma)).item() == pytest.approx(value, abs=1e-9)
    noise = torch.randn((1000, 64, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, y = noise[..., :1], rho * noise[..., :1] + (1 - rho**2) ** 0.5 * noise[..., 1:]
    found = m.hsic_unbiased(m.gaussian_gram(x, gamma), m.gaussian_gram(y, gamma))
    assert abs(found.mean().item() - value) < 4 * found.std().item() / len(found) ** 0.5


def test_gradients_are_those_of_the_values():
    u = U.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: m.hsic_unbiased(m.gaussian_gram(x, 0.2), L), (u,))


def test_permutation_test_tells_dependence_from_independence():
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(80, 1)))
    for y, dependent in ((x**2, True), (torch.from_numpy(rng.normal(size=(80, 1))), False)):
        k, other = m.gaussian_gram(x, 0.4), m.gaussian_gram(y, 0.4)
        found = permutation_test(lambda order, k=k, other=other: m.hsic_unbiased(k, other[order][:, order]), 80)
        assert (found.p_value <= 0.05) == dependent == (found.value > found.threshold)
    with pytest.raises(ValueError, match="cannot reach level"):
        permutation_test(lambda order: torch.zeros(()), 5, permutations=5)
