"""The expected false discovery rate: published numbers, and what must hold for any probabilities."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fieldguide.decisions import calls, expected_fdr, fdr_values

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "fdr.json").read_text())
probabilities = arrays(float, st.integers(1, 60), elements=st.floats(0, 1))


def test_the_path_and_the_number_of_calls_are_the_reference_ones():
    p = np.array(REFERENCE["p"])
    np.testing.assert_allclose(expected_fdr(p), REFERENCE["fdr_path"], atol=1e-9)
    np.testing.assert_allclose(fdr_values(p)[REFERENCE["order"]], REFERENCE["fdr_path"], atol=1e-9)
    for target, count in REFERENCE["k_star"].items():
        called = calls(p, float(target))
        assert called.sum() == count
        assert set(np.flatnonzero(called)) == set(REFERENCE["order"][:count])


@given(probabilities)
def test_the_path_never_falls_and_ends_at_the_mean_error(p):
    path = expected_fdr(p)
    assert (np.diff(path) >= -1e-12).all()
    assert path[-1] == pytest.approx((1 - p).mean())


@given(probabilities, st.floats(0, 0.99), st.floats(0, 0.99), st.randoms(use_true_random=False))
def test_calls_grow_with_the_target_and_follow_their_genes(p, low, high, random):
    low, high = sorted((low, high))
    assert not (calls(p, low) & ~calls(p, high)).any()
    order = np.array(random.sample(range(len(p)), len(p)))
    assert (calls(p[order], low) == calls(p, low)[order]).all()


@given(probabilities, st.floats(0, 0.99))
def test_the_list_keeps_its_target_and_ties_stand_or_fall_together(p, target):
    called = calls(p, target)
    if called.any():
        assert (1 - p[called]).mean() <= target + 1e-9
        assert not (~called & (p >= p[called].min())).any()


@given(arrays(bool, 30), st.floats(0, 0.5))
def test_certain_probabilities_give_no_false_call(truth, target):
    called = calls(truth.astype(float), 0.0)
    assert (called == truth).all()


@pytest.mark.parametrize("target", [0.01, 0.05, 0.2])
def test_calibrated_probabilities_keep_the_rate_on_average(target):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        p = rng.beta(0.3, 0.3, 100)
        truth, called = rng.random(100) < p, calls(p, target)
        shares.append((called & ~truth).sum() / max(called.sum(), 1))
    error = np.std(shares) / len(shares) ** 0.5
    assert np.mean(shares) <= target + 3 * error
    assert np.mean(shares) > target / 3, "the rule spends the error it is allowed"


def test_overconfident_probabilities_break_the_rate():
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 0.3, 20_000)
    truth = rng.random(20_000) < p
    called = calls(p**0.2, 0.05)
    assert (called & ~truth).sum() / called.sum() > 0.15


@pytest.mark.parametrize(
    "p, fdr, message",
    [
        ([0.5, np.nan], 0.05, "probability nan of gene 1"),
        ([0.5, 1.2], 0.05, "probability 1.2 of gene 1"),
        ([[0.5]], 0.05, "shape \\(1, 1\\)"),
        ([0.5], 1.0, "fdr must be a number in \\[0, 1\\), not 1"),
        ([0.5], -0.1, "fdr must be a number in"),
    ],
)
def test_bad_input_is_named(p, fdr, message):
    with pytest.raises(ValueError, match=message):
        calls(np.array(p), fdr)
