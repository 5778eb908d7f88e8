"""Intervals where next to nothing was rewarded: exact for shares, wide enough for weights, and said in a note."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fieldguide.decisions import BanditLog, evaluate_policy
from fieldguide.decisions.policies.rare import clopper_pearson


def few(n, clicks, actions=2, seed=0):
    """A log of n rows with so many clicks, drawn with equal probabilities."""
    reward = np.zeros(n)
    reward[:clicks] = 1
    action = np.random.default_rng(seed).integers(actions, size=n)
    return BanditLog.of(action, reward, np.full(n, 1 / actions), actions)


@given(st.integers(2, 400), st.integers(0, 9), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_interval_of_a_share_is_exact(n, clicks, level):
    clicks = min(clicks, n)
    low, high = clopper_pearson(clicks, n, level)
    tail = (1 - level) / 2  # at the ends so many, or so few, have just the probability of a tail
    assert low == 0 if clicks == 0 else binom.sf(clicks - 1, n, low) == pytest.approx(tail, rel=1e-6)
    assert high == 1 if clicks == n else binom.cdf(clicks, n, high) == pytest.approx(tail, rel=1e-6)
    log = BanditLog.of(np.arange(n) % 2, few(n, clicks).reward, np.full(n, 0.5), 2)
    row = evaluate_policy(log, [0.5, 0.5], estimators=["ips", "snips"], level=level, resamples=10).table
    for name in ("logging", "ips", "snips"):
        assert row.loc[name, ["low", "high"]].tolist() == pytest.approx([low, high], abs=1e-12)


@given(st.integers(20, 200), st.floats(0.001, 0.05))
def test_it_holds_the_share_as_often_as_it_says(n, share):
    ends = np.array([clopper_pearson(k, n, 0.9) for k in range(n + 1)])
    held = (ends[:, 0] <= share) & (share <= ends[:, 1])
    assert binom.pmf(np.arange(n + 1), n, share)[held].sum() >= 0.9


@pytest.mark.parametrize("method", ["bootstrap", "normal", "bernstein"])
def test_no_click_is_no_certainty(method):
    found = evaluate_policy(few(200, 0), [0.9, 0.1], interval=method)
    assert found.table.loc["logging", "high"] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert (found.table["low"] == 0).all() and (found.table["high"] > 0.015).all() and (found.table["high"] <= 1).all()
    assert any("only 0 contexts" in note and "Clopper-Pearson" in note and "0 to 1" in note for note in found.notes)


def test_weighted_intervals_hold_a_rare_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        action = rng.integers(2, size=300)
        reward = (rng.random(300) < np.where(action == 1, 0.01, 0.002)).astype(float)
        log = BanditLog.of(action, reward, np.full(300, 0.5), 2)
        row = evaluate_policy(log, [0.1, 0.9], estimators=["ips"], resamples=20).table.loc["ips"]
        held += row["low"] <= 0.1 * 0.002 + 0.9 * 0.01 <= row["high"]
    assert held >= 190


def test_the_other_end_and_other_ranges():
    always = few(100, 100)
    found = evaluate_policy(always, [0.5, 0.5], estimators=["snips"])
    assert (
        found.table.loc["snips", "low"] == pytest.approx(0.025 ** (1 / 100)) and found.table.loc["snips", "high"] == 1
    )
    paid = BanditLog.of([0, 1] * 50, [0.0] * 97 + [5.0] * 3, [0.5] * 100, 2)
    seen = evaluate_policy(paid, [0.5, 0.5], estimators=["ips"])
    wide = evaluate_policy(paid, [0.5, 0.5], estimators=["ips"], reward_range=(0, 50))
    assert wide.table.loc["ips", "high"] > seen.table.loc["ips", "high"]
    assert any("as far as the log shows" in note for note in seen.notes) and "as said" in wide.notes[0]
    same = BanditLog.of([0, 1] * 50, [5.0] * 100, [0.5] * 100, 2)
    assert any("nothing says what others could be" in n for n in evaluate_policy(same, [0.5, 0.5]).notes)
    with pytest.raises(ValueError, match="reward_range is 0 to 2, and the log has rewards from 0 to 5"):
        evaluate_policy(paid, [0.5, 0.5], reward_range=(0, 2))
    with pytest.raises(TypeError, match="reward_range must be the smallest and the largest"):
        evaluate_policy(paid, [0.5, 0.5], reward_range=3)


def test_enough_rewards_are_left_to_the_method_that_was_asked_for():
    found = evaluate_policy(few(400, 60), [0.7, 0.3], interval="normal")
    assert not any("Clopper" in note for note in found.notes)
    row = found.table.loc["ips"]
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.96 * row["se"], rel=1e-3)


def test_a_policy_that_hardly_occurs_has_few_rewards_of_its_own():
    """Half of all rows click, but of the policy's own action there are five rows, all without."""
    action, reward = np.r_[np.zeros(95, int), np.ones(5, int)], np.r_[np.arange(95) % 2, np.zeros(5)]
    log = BanditLog.of(action, reward, np.r_[np.full(95, 0.95), np.full(5, 0.05)], 2)
    found = evaluate_policy(log, [0.0, 1.0], estimators=["ips", "snips"])
    assert found.table.loc["ips", "value"] == 0 and (found.table.loc[["ips", "snips"], "high"] > 0.3).all()
    assert found.table.loc["logging", "low"] > 0.3  # the log's own mean is well known
