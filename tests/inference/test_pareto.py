"""k-hat of all cells at once: as arviz has it where it has it, and finite, missing or infinite where that is right."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from scipy.stats import genpareto, hypergeom

from fieldguide.inference import permutation_test
from fieldguide.inference.weights.pareto import khat_limit, pareto_k


@pytest.mark.parametrize("draws", [25, 30, 100, 225, 1000, 4000])
def test_as_the_reference_of_arviz_for_every_number_of_draws(draws):
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("arviz 1.x has no psislw")
    rng = np.random.default_rng(draws)
    log_weights = np.concatenate([rng.normal(size=(draws, 20)) * s for s in (0.01, 0.3, 1, 5, 30)], 1)
    reference = np.asarray(arviz.psislw(log_weights.T.copy())[1])
    np.testing.assert_allclose(pareto_k(log_weights + 100), reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_the_shape_of_a_pareto_tail_is_recovered(shape):
    weights = genpareto(shape).rvs((40_000, 20), random_state=0)
    assert abs(pareto_k(np.log(weights)).mean() - shape) < 0.05


def test_weights_that_are_powers_of_an_exponential_have_that_shape():
    draws = np.random.default_rng(0).exponential(size=(40_000, 20))
    for shape in (0.3, 0.7, 1.2):
        assert abs(pareto_k(shape * draws).mean() - shape) < 0.05


@pytest.mark.parametrize("draws", [1, 2, 5, 24])
def test_few_draws_say_nothing_of_a_tail(draws):
    assert np.isnan(pareto_k(np.random.default_rng(0).normal(size=(draws, 3)))).all()


def test_ties_at_the_cut_and_weights_without_a_tail():
    rng, draws = np.random.default_rng(0), 1000
    equal = np.zeros(draws)
    bounded = np.where(rng.random(draws) < 0.5, 0.0, rng.normal(-3, 1, draws))  # half of them at the largest weight
    clipped = np.minimum(rng.normal(size=draws), 0.5)
    alone = np.r_[np.full(draws - 1, -800.0), 0.0]
    few = np.r_[np.zeros(draws - 3), 14, 14, 14]
    slight = np.r_[np.zeros(draws - 3), 0.1, 0.1, 0.1]
    found = pareto_k(np.stack([equal, bounded, clipped, alone, few, slight], 1))
    assert found[0] == 0 and (found[1:3] < 0.5).all() and np.isinf(found[3:5]).all() and found[5] == 0


def test_columns_do_not_depend_on_one_another_or_on_the_order_of_draws():
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=(200, 9000))
    together = pareto_k(log_weights)
    for column in (0, 4095, 4096, 8999):
        alone = pareto_k(rng.permutation(log_weights[:, [column]]))
        np.testing.assert_allclose(alone, together[column], rtol=1e-12)
    assert pareto_k(np.zeros((200, 0))).shape == (0,)


def test_what_is_no_matrix_of_finite_numbers_is_named():
    with pytest.raises(ValueError, match="cell 1 are not finite"):
        pareto_k(np.array([[0.0, np.nan]] * 30))
    with pytest.raises(ValueError, match="an array .S, N., not of shape"):
        pareto_k(np.zeros(30))
    assert khat_limit(1) == 0 and 0.69 < khat_limit(2000) <= 0.7


@hypothesis.given(st.integers(4, 9), st.integers(4, 9), st.integers(1, 8), st.integers(0, 10_000))
@hypothesis.settings(max_examples=25)
def test_permutation_p_values_of_ties_are_those_of_the_hypergeometric(ones, others, chosen, seed):
    """The number of ones among the chosen, measured in single precision and in another order of sums each time."""
    n = ones + others
    values = np.r_[np.ones(ones), np.zeros(others)].astype(np.float32) / np.float32(7)
    marked = np.zeros(n, dtype=np.float32)
    marked[np.random.default_rng(seed).permutation(n)[:chosen]] = 0.1

    def measure(order):
        order = order.numpy()
        shuffle = np.random.default_rng(int(order[0]) + 31 * int(order[-1])).permutation(n)
        return np.float32(sum((values[order] * marked)[shuffle].tolist()))

    permutations = 2000
    test = permutation_test(measure, n, permutations, seed=seed)
    together = int(round(float(measure(torch.arange(n))) * 70))
    exact = hypergeom(n, ones, chosen).sf(together - 1)
    spread = 5 * np.sqrt(exact * (1 - exact) / permutations) + 2 / permutations
    assert abs(test.p_value - exact) < spread
