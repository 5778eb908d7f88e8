"""What an allocation takes: numbers in any unit, tables in any order, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fieldguide.decisions import allocate, response_curve
from fieldguide.decisions.budgets.allocation import smallest_mean
from fieldguide.decisions.budgets.outcomes import outcomes

NAN, INF = float("nan"), float("inf")


def problem(seed, n=7, k=4):
    """Rewards and costs of named customers and options, and a budget that binds."""
    rng = np.random.default_rng(seed)
    names = {"index": [f"u{i}" for i in range(n)], "columns": list("abcd")[:k]}
    cost = pd.DataFrame(rng.random((n, k)) * (np.arange(k) > 0), **names)
    return pd.DataFrame(rng.random((n, k)), **names), cost, 0.4 * float(cost.max(axis=1).sum())


@given(st.integers(1, 60), st.floats(1e-9, 1e9))
def test_a_sum_at_the_budget_is_not_above_it(n, price):
    everyone, nothing = pd.DataFrame(np.ones((n, 1))), np.zeros((1, n, 1))
    for budget, above in ((n * price, 0.0), (n * price * (1 - 1e-6), 1.0)):
        for redeemed in (None, np.ones((n, 1))):
            found = outcomes(everyone, {"budget": budget}, nothing, [price], redeemed)
            assert found.settings["p_overspent"] == above
    found = allocate(np.tile([0.0, 1.0], (n, 1)), [0.0, price], n * price)
    assert found.policy[1].sum() == n and found.diagnostics["randomised"].iloc[0] == 0


def test_thirteen_dimes():
    found = allocate(np.ones((13, 1)), [0.1], 1.3)
    assert found.outcomes(np.ones((1, 13, 1)), [0.1]).settings["p_overspent"] == 0
    assert allocate(np.ones((13, 1)), [0.1], 1.3, integer=True).value == 13


@settings(max_examples=30)
@given(st.integers(5, 40), st.floats(0.05, 0.9), st.integers(0, 3))
def test_overspending_is_a_binomial_tail(n, chance, seed):
    limit = int(n * chance)
    found = outcomes(
        pd.DataFrame(np.ones((n, 1))), {"b": 0.1 * limit}, np.zeros((4000, n, 1)), [0.1], np.full((n, 1), chance), seed
    )
    exact = binom.sf(limit, n, chance)
    assert found.settings["p_overspent"] == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 4000) ** 0.5 + 1e-9)


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_conditional_value_at_risk_is_exact(size, level, seed):
    draws = np.random.default_rng(seed).normal(size=(size, 2, 3))
    found = smallest_mean(draws, level)
    # Rockafellar and Uryasev (2000): the largest of t - E max(t - x, 0) / level, which is at one of the draws
    value = np.max([t - np.maximum(t - draws, 0).mean(0) / level for t in draws], axis=0)
    np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("whole", [False, True])
def test_units_of_money_and_reward_do_not_matter(whole):
    for seed in range(12):
        reward, cost, budget = problem(seed)
        first = allocate(reward, cost, budget, integer=whole)
        for money, worth in ((1e-9, 1.0), (1e9, 1e-9), (3.7, 1e9), (1e-150, 1e-150), (1e150, 1e200)):
            again = allocate(reward * worth, cost * money, budget * money, integer=whole)
            np.testing.assert_allclose(again.policy, first.policy, atol=1e-9)
            assert again.value == pytest.approx(first.value * worth, rel=1e-12)
            row = again.diagnostics.iloc[0]
            assert row["gap"] <= 1e-9 * again.value and row["spent"] <= row["budget"] * (1 + 1e-9)
            if not whole:
                assert row["multiplier"] == pytest.approx(first.multipliers["budget"] * worth / money, rel=1e-9)
                np.testing.assert_allclose(again.curve["value"], first.curve["value"] * worth, rtol=1e-9)


@pytest.mark.parametrize("whole", [False, True])
def test_order_of_customers_and_options_does_not_matter(whole):
    for seed in range(12):
        reward, cost, budget = problem(seed)
        first = allocate(reward, cost, budget, integer=whole)
        mixed = reward.sample(frac=1, random_state=seed)[list("dbca")]
        again = allocate(mixed, cost, budget, integer=whole)  # costs in the old order, found by name
        np.testing.assert_allclose(again.policy.loc[reward.index, reward.columns], first.policy, atol=1e-12)
        if not whole:
            pd.testing.assert_series_equal(first.predict(mixed, cost).loc[reward.index], first.predict(reward, cost))


def test_several_budgets_in_units_of_their_own():
    reward, cost, budget = problem(3, n=30)
    heads = {"a": 0.0, "b": 1.0, "c": 1.0, "d": 1.0}
    first = allocate(reward, {"money": cost, "heads": pd.Series(heads)}, {"money": budget, "heads": 12.0})
    for unit in (1e-9, 1e9):
        costs = {"money": cost * unit, "heads": pd.Series(heads)[::-1] / unit}
        again = allocate(reward * unit, costs, {"money": budget * unit, "heads": 12.0 / unit})
        assert again.value == pytest.approx(first.value * unit, rel=1e-9)
        assert again.multipliers["heads"] == pytest.approx(first.multipliers["heads"] * unit**2, rel=1e-6)
    none = allocate(reward, {"money": cost, "heads": pd.Series(heads)}, {"money": budget, "heads": 0.0})
    assert (none.table["option"] == "a").all() and none.diagnostics["gap"].iloc[0] == pytest.approx(0, abs=1e-12)
    assert (none.predict(reward, {"money": cost, "heads": pd.Series(heads)}) == "a").all()  # priced out, not free


def test_small_ones():
    for whole in (False, True):
        one = allocate([[2.0]], [0.0], 0.0, integer=whole)
        assert one.value == 2 and one.diagnostics["gap"].iloc[0] == 0
        free = allocate([[1.0, 3.0, 2.0]] * 4, [0.0, 0.0, 1.0], 0.0, integer=whole)
        assert (free.table["option"] == 1).all()
        ties = allocate(np.ones((5, 3)), [0.0, 1.0, 1.0], 2.0, integer=whole)
        assert ties.value == 5 and (ties.table["option"] == 0).all()
    named = allocate(pd.DataFrame([[0.0, 1.0]] * 2, columns=["x", "y"]), pd.DataFrame([[0, 1]] * 2), 1.0)
    assert named.value == 1  # a table that is numbered by pandas is taken by position


def test_the_example_of_half_a_unit():
    whole = allocate([[0.0, 1.0], [0.0, 1.0]], [[0, 0.5], [0, 0.5000005]], 1.0, integer=True)
    assert whole.value == 1 and whole.diagnostics["spent"].iloc[0] <= 1 and whole.diagnostics["dual"].iloc[0] == 1


def test_whole_options_of_many_customers():
    rng = np.random.default_rng(0)
    reward, cost = rng.random((20_000, 10)), rng.random((20_000, 10)) * (np.arange(10) > 0)
    whole = allocate(reward, cost, 3000.0, integer=True)
    row = whole.diagnostics.iloc[0]
    assert whole.settings["status"] == "optimal" and row["spent"] <= 3000 * (1 + 1e-9)
    assert whole.value <= allocate(reward, cost, 3000.0).value * (1 + 1e-12) and row["gap"] <= 1e-9 * whole.value


def test_where_the_search_is_too_long_the_bound_holds(monkeypatch):
    import fieldguide.decisions.budgets.integer as integer

    rng = np.random.default_rng(2)
    reward, costs = rng.random((40, 4)), {name: rng.random((40, 4)) * [0, 1, 1, 1] for name in "ab"}
    best = allocate(reward, costs, {"a": 6.0, "b": 5.0}, integer=True)
    assert best.settings["status"] == "optimal"
    monkeypatch.setattr(integer, "STATES", 3)
    found = allocate(reward, costs, {"a": 6.0, "b": 5.0}, integer=True)
    row = found.diagnostics.iloc[0]
    assert found.settings["status"] == "tolerance" and found.value == pytest.approx(best.value, rel=1e-6)
    assert best.value <= row["dual"] <= best.value + 1e-4
    assert (found.diagnostics["spent"] <= found.diagnostics["budget"] * (1 + 1e-9)).all()


REWARD = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=["ann", "bob"], columns=["none", "coupon"])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"budget": INF}, ValueError, "budget must be a number of at least 0, not inf"),
        ({"budget": "much"}, TypeError, "budget must be a number"),
        ({"budget": None}, TypeError, "budget must be a number"),
        ({"budget": True}, TypeError, "budget must be a number"),
        (
            {"cost": {"a": [0, 1]}, "budget": {"a": NAN}},
            ValueError,
            "budget 'a' must be a number of at least 0, not nan",
        ),
        (
            {"reward": REWARD.assign(coupon="x")},
            TypeError,
            "reward must hold numbers: row 'ann', column 'coupon' is 'x'",
        ),
        ({"reward": "many"}, TypeError, "reward must hold numbers"),
        ({"reward": None}, TypeError, "reward must be numbers, not NoneType"),
        ({"reward": [[1, 2], [3]]}, ValueError, "reward must be numbers in rows of equal length"),
        ({"reward": REWARD.to_numpy() * 1j}, TypeError, "reward must hold real numbers, not complex128"),
        ({"cost": [0, "one"]}, TypeError, "cost must hold numbers; one value is 'one'"),
        ({"cost": REWARD.set_axis(["ann", "eve"])}, ValueError, "cost has no row for 'bob', one of the customers"),
        ({"cost": REWARD.set_axis(["none", "none"], axis=1)}, ValueError, "cost has no option 'coupon'"),
        ({"level": "low"}, TypeError, "level must be a number in .0, 1., not 'low'"),
        ({"integer": 1}, TypeError, "integer must be True or False"),
        ({"increasing": "yes"}, TypeError, "increasing must be True or False"),
        ({"seconds": 0}, ValueError, "seconds must be a number above 0"),
        ({"overspend": "rarely"}, TypeError, "overspend must be a number"),
        ({"reward": np.zeros((0, 2, 2))}, ValueError, "reward is empty"),
        ({"redeemed": np.zeros((0, 2, 2))}, ValueError, "redeemed must be of shape"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_what_is_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        allocate(**({"reward": REWARD, "cost": [0, 1], "budget": 1.0} | change))


def test_numbers_of_numpy_and_text_columns_of_numbers_are_read():
    question = {"reward": REWARD, "cost": np.array([0, 1], dtype=np.int8), "budget": np.int64(1)}
    first = allocate(**question)
    assert allocate(**(question | {"reward": REWARD.astype("Float64"), "seconds": np.float32(2)})).value == first.value
    assert first.outcomes(REWARD.to_numpy()[None], [0, 1], seed=np.int64(3)).settings["spent"] == 1


def test_one_row_and_a_series_are_of_all_customers():
    cost, chance = pd.Series({"coupon": 1.0, "none": 0.0}), pd.Series({"coupon": 0.5, "none": 1.0})
    wide = pd.DataFrame(np.tile(chance[REWARD.columns], (2, 1)), index=REWARD.index, columns=REWARD.columns)
    plain = allocate(REWARD, [0, 1], 0.7, redeemed=wide)
    for costs in (cost, cost.to_frame("any").T):
        for redeemed in (chance, chance.to_frame("any").T, [1.0, 0.5]):
            assert allocate(REWARD, costs, 0.7, redeemed=redeemed).policy.equals(plain.policy)
    assert allocate(REWARD[:1], cost.to_frame(REWARD.index[0]).T, 0.7).settings["budget"]
    with pytest.raises(ValueError, match="cost has no row for"):
        allocate(REWARD[:1], cost.to_frame("any").T, 0.7)


def test_outcomes_and_predictions_refuse_what_they_cannot_read():
    found = allocate(REWARD, [0, 1], 1.0)
    draws = np.stack([REWARD.to_numpy()] * 3)
    turned = pd.DataFrame([[0.0, 1.0], [0.0, 3.0]], index=["bob", "ann"], columns=["none", "coupon"])[
        ["coupon", "none"]
    ]
    assert (
        found.outcomes(draws, turned).settings["spent"]
        == found.policy.loc["ann", "coupon"] * 3 + (found.policy.loc["bob", "coupon"])
    )
    for arguments, message in (
        ((draws, [0, 1, 2]), r"cost must be of shape \(2,\), \(2, 2\) or draws of that, not \(3,\)"),
        ((draws, [0, -1]), "cost must be at least 0"),
        ((draws * NAN,), "reward is nan in draw, customer and option"),
        ((draws, np.zeros((2, 2, 2))), r"reward, cost and redeemed have \[2, 3\] draws"),
        ((draws, [0, 1], None, -1), "seed must be a whole number"),
        ((draws, None, [0.1, 0.1]), "redeemed needs cost"),
    ):
        with pytest.raises(ValueError, match=message):
            found.outcomes(*arguments)
    with pytest.raises(ValueError, match=r"of whole options \(integer=True\) and has no price"):
        allocate(REWARD, [0, 1], 1.0, integer=True).predict(REWARD, [0, 1])


def test_curves_refuse_costs_that_are_none():
    draws = np.random.default_rng(0).random((5, 4, 3))
    table = response_curve(draws, pd.Series({"b": 1.0, "a": 0.0, "c": 4.0}), ["a", "b", "c"]).table
    assert table["cost"].tolist() == [0, 1, 4]  # found by the names of the levels
    for arguments, kind, message in (
        ((draws, [0, NAN, 1]), ValueError, "cost of level 1 is not finite"),
        ((draws, ["a", "b", "c"]), TypeError, "cost must hold numbers; one value is 'a'"),
        ((draws, None, ["a", "b", "a"]), ValueError, "names: level 'a' is there more than once"),
        ((draws, None, "abc"), TypeError, "names must be a name for each of 3 levels"),
        ((draws, None, None, "x"), TypeError, "level must be a number"),
    ):
        with pytest.raises(kind, match=message):
            response_curve(*arguments)


def test_options_and_customers_are_found_however_they_are_written():
    reward = pd.DataFrame([[0.1, 0.5, 0.9], [0.2, 0.8, 0.9]], columns=["0", "1", "2"])
    cost = pd.Series([0.0, 1.0, 2.0])
    wanted = allocate(reward, cost, 3.0)
    for rewards, prices in (
        (reward[["2", "0", "1"]], cost),  # "2", "0", "1" are names, and pandas' 0, 1, 2 are those
        (reward.set_axis([0.0, 1.0, 2.0], axis=1), cost.set_axis(["0", "1", "2"])[::-1]),
        (reward, cost.set_axis([0.0, 1.0, 2.0])[::-1]),
        (reward, pd.DataFrame([cost, cost]).set_axis([0.0, 1.0, 2.0], axis=1).set_axis([1.0, 0.0])),
    ):
        assert allocate(rewards, prices, 3.0).value == pytest.approx(wanted.value)
    assert (wanted.predict(reward.set_axis([0.0, 1.0, 2.0], axis=1), cost) == wanted.predict(reward, cost)).all()
    longer = pd.Series([0.0, 1.0, 2.0, 3.0])
    for call in (
        lambda: allocate(reward.to_numpy(), longer, 3.0),
        lambda: response_curve(np.ones((4, 2, 3)), longer),
        lambda: allocate(reward.to_numpy(), pd.DataFrame([cost] * 5).reset_index(drop=True), 3.0),
    ):
        with pytest.raises(
            ValueError, match="cost has [45] rows or columns for [32] .*, and both are numbered by pandas"
        ):
            call()
    with pytest.raises(ValueError, match=r"cost: the value at \[2\] is masked"):
        allocate([[1.0, 2.0, 3.0]], np.ma.masked_array([0.0, 1.0, 2.0], [0, 0, 1]), 5.0)
