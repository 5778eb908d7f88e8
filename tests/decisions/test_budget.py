"""Allocation under budgets: exact against HiGHS and brute force, its laws, and errors that name what is wrong."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fieldguide.decisions import allocate
from fieldguide.decisions.budgets.knapsack import dual_value, segments, solve

F3_COST, F3_REWARD = [0, 1, 2], [[0.1, 0.3, 0.35], [0.2, 0.25, 0.6], [0.0, 0.4, 0.5]]
"""Three customers whose optimum was enumerated by hand; the second one's middle level is below its envelope."""


def lp(reward, costs, budgets):
    """The linear relaxation by HiGHS: value, or None when infeasible."""
    n, k = reward.shape
    equal = np.kron(np.eye(n), np.ones(k))
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(
        -reward.ravel(),
        np.reshape(costs, (len(budgets), -1)),
        budgets,
        equal,
        np.ones(n),
        method="highs",
        options=tight,
    )
    return -found.fun if found.status == 0 else None


def brute(reward, cost, budget):
    """The best integer choice by enumeration."""
    n, k = reward.shape
    best = -np.inf
    for choice in itertools.product(range(k), repeat=n):
        if sum(cost[i, a] for i, a in enumerate(choice)) <= budget + 1e-12:
            best = max(best, sum(reward[i, a] for i, a in enumerate(choice)))
    return best


def problem(seed, most=6):
    """A small random problem: rewards that rise or not, costs with ties, a budget from the cheapest to the dearest."""
    rng = np.random.default_rng(seed)
    n, k = rng.integers(1, most + 1), rng.integers(1, 5)
    reward = rng.random((n, k)) if rng.random() < 0.5 else np.sort(rng.random((n, k)), 1)
    cost = rng.integers(0, 4, (n, k)).astype(float) if rng.random() < 0.5 else rng.random((n, k))
    if rng.random() < 0.3:
        reward = reward.round(1)
    low, high = cost.min(1).sum(), cost.max(1).sum()
    return reward, cost, low + rng.random() * (high - low) * 1.1


@pytest.mark.parametrize("seed", range(5))
def test_equals_highs(seed):
    for number in range(100):
        reward, cost, budget = problem(1000 * seed + number)
        found = allocate(reward, cost, budget)
        assert found.value == pytest.approx(lp(reward, cost, [budget]), abs=1e-9)
        spent, value = (float((found.policy.to_numpy() * part).sum()) for part in (cost, reward))
        assert spent <= budget + 1e-9 and value == pytest.approx(found.value, abs=1e-12)
        assert found.diagnostics["gap"].iloc[0] == pytest.approx(0, abs=1e-9)  # the certificate
        assert found.diagnostics["randomised"].iloc[0] <= 1
        if reward.shape[1] ** len(reward) <= 300:
            best = brute(reward, cost, budget)
            assert best <= found.value + 1e-9
            cheap = found.policy.to_numpy().copy()
            price = found.multipliers["budget"]
            mixed = np.flatnonzero((cheap > 0).sum(1) > 1)
            if not len(mixed):
                assert best == pytest.approx(found.value, abs=1e-9)
            else:  # rounding down loses at most the price of the segment
                row = mixed[0]
                ends = np.flatnonzero(cheap[row])
                loss = price * np.ptp(cost[row, ends])
                assert found.value - loss <= best + 1e-9


def test_worked_example():
    for budget, value in ((2, 0.9), (3, 1.1), (3.5, 1.2), (4, 1.3)):
        assert allocate(F3_REWARD, F3_COST, budget).value == pytest.approx(value, abs=1e-12)
    found = allocate(F3_REWARD, F3_COST, 3.5)
    assert found.multipliers["budget"] == pytest.approx(0.2)
    reward, cost = torch.tensor(F3_REWARD).double(), torch.tensor([F3_COST] * 3).double()
    assert dual_value(reward, cost[None], [3.5], [0.2]) == pytest.approx(1.2)
    assert found.policy.iloc[1, 1] == 0  # below the envelope: never chosen
    assert allocate(F3_REWARD, F3_COST, 3.5, integer=True).value == pytest.approx(1.1)
    assert allocate(F3_REWARD, F3_COST, 100).multipliers["budget"] == 0  # money is left: no spending is forced
    assert allocate(F3_REWARD, F3_COST, 100).diagnostics["spent"].iloc[0] == 6


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_laws(seed):
    reward, cost, budget = problem(seed, most=12)
    steps = np.linspace(cost.min(1).sum() + 1e-9, cost.max(1).sum() + 1, 7)
    found = [allocate(reward, cost, float(b)) for b in steps]
    values = np.array([f.value for f in found])
    prices = np.array([f.multipliers["budget"] for f in found])
    assert (np.diff(values) >= -1e-9).all() and (np.diff(values, 2) <= 1e-9).all()  # rising and concave
    assert (np.diff(prices) <= 1e-12).all()
    one = allocate(reward, cost, budget)
    scaled = allocate(reward, cost * 8, budget * 8)
    assert scaled.multipliers["budget"] == pytest.approx(one.multipliers["budget"] / 8)
    assert scaled.value == pytest.approx(one.value, abs=1e-9)
    shifted = allocate(reward + np.arange(len(reward))[:, None], cost, budget)
    assert shifted.value - np.arange(len(reward)).sum() == pytest.approx(one.value, abs=1e-9)
    # a dominated option changes nothing and is not chosen
    worse = allocate(np.c_[reward, reward[:, 0] - 0.1], np.c_[cost, cost[:, 0]], budget)
    assert worse.value == pytest.approx(one.value, abs=1e-9) and (worse.policy.iloc[:, -1] == 0).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_envelope_is_the_least_concave_bound(seed):
    reward, cost, _ = problem(seed)
    found = segments(torch.tensor(reward), torch.tensor(cost))
    for row in range(len(reward)):
        own = found.customer == row
        assert (np.diff(found.efficiency[own].numpy()) <= 1e-12).all()
        start = int(found.start[row])
        x = cost[row, start] + np.append(0, found.cost[own].cumsum(0).numpy())
        y = reward[row, start] + np.append(0, found.gain[own].cumsum(0).numpy())
        over = np.interp(cost[row], x, y)  # constant to the right of the last point
        assert (reward[row] <= over + 1e-9).all()


@pytest.mark.parametrize("seed", range(4))
def test_several_budgets_equal_highs(seed):
    rng = np.random.default_rng(seed)
    for _ in range(15):
        n, k, j = rng.integers(2, 30), rng.integers(2, 6), rng.integers(2, 4)
        reward, costs = rng.random((n, k)), rng.random((j, n, k))
        costs[:, :, 0] = 0
        budgets = costs.max(2).sum(1) * rng.uniform(0.05, 0.6, j)
        names = [f"b{i}" for i in range(j)]
        found = allocate(reward, dict(zip(names, costs, strict=True)), dict(zip(names, budgets, strict=True)))
        assert found.value == pytest.approx(lp(reward, costs, budgets), rel=1e-7)
        assert (found.diagnostics["spent"] <= found.diagnostics["budget"] * (1 + 1e-7)).all()
        assert found.diagnostics["randomised"].iloc[0] <= j


def test_no_more_customers_between_options_than_budgets():
    rng = np.random.default_rng(0)
    reward, costs = rng.random((20_000, 5)), rng.random((3, 20_000, 5))
    costs[:, :, 0] = 0
    budgets = costs.max(2).sum(1) * [0.2, 0.3, 0.25]
    names = ["a", "b", "c"]
    found = allocate(reward, dict(zip(names, costs, strict=True)), dict(zip(names, budgets, strict=True)))
    row = found.diagnostics
    assert row["randomised"].iloc[0] <= 3 and abs(row["gap"].iloc[0]) <= 2e-9 * found.value
    assert (row["spent"] <= row["budget"] * (1 + 1e-9)).all()
    same = allocate(np.tile([0.0, 1.0, 1.5], (40, 1)), {"a": [0, 1, 2], "b": [0, 2, 1]}, {"a": 31.0, "b": 29.5})
    assert same.diagnostics["randomised"].iloc[0] <= 2  # all customers are tied


def test_a_ceiling_on_an_option_is_a_budget():
    reward = np.tile([0.0, 1.0, 2.0], (10, 1))
    costs = {"money": [0, 1, 1], "second": [0, 0, 1]}
    found = allocate(reward, costs, {"money": 8.0, "second": 3.0})
    assert found.value == pytest.approx(3 * 2 + 5 * 1)
    assert found.policy.sum().tolist() == pytest.approx([2, 5, 3])
    with pytest.raises(ValueError, match="infeasible"):
        allocate(reward, {"a": [1, 0, 0], "b": [0, 1, 1]}, {"a": 2.0, "b": 3.0})


def test_integer_equals_brute_force():
    for seed in range(25):
        reward, cost, budget = problem(seed, most=4)
        whole = allocate(reward, cost, budget, integer=True)
        assert whole.value == pytest.approx(brute(reward, cost, budget), abs=1e-7)
        assert set(np.unique(whole.policy)) <= {0, 1} and whole.diagnostics["gap"].iloc[0] >= -1e-7


def test_new_customers_are_decided_on_by_the_price():
    rng = np.random.default_rng(0)
    reward = pd.DataFrame(np.sort(rng.random((400, 4)), 1), columns=["none", "one", "two", "three"])
    cost = pd.Series({"three": 3.0, "none": 0.0, "one": 1.0, "two": 2.0})  # read by name, not by position
    found = allocate(reward, cost, 300.0)
    again = found.predict(reward, cost)
    outright = found.table["other"].isna()
    assert (again == found.table["option"])[outright].all() and outright.sum() >= 399
    new = found.predict(pd.DataFrame(np.sort(rng.random((4000, 4)), 1), columns=reward.columns), cost)
    assert cost[new].mean() == pytest.approx(300 / 400, rel=0.1)
    with pytest.raises(ValueError, match="options are"):
        found.predict(reward[["none", "one"]], cost[["none", "one"]])


def test_draws_risk_and_outcomes():
    rng = np.random.default_rng(1)
    mean = np.tile([0.0, 0.5, 0.6], (50, 1))
    draws = mean + rng.normal(size=(400, 50, 3)) * [0, 0.05, 1.0]
    neutral = allocate(draws, [0, 1, 1], 20.0)
    assert neutral.value == pytest.approx(allocate(draws.mean(0), [0, 1, 1], 20.0).value)
    for risk in ("quantile", "cvar"):
        careful = allocate(draws, [0, 1, 1], 20.0, risk=risk)
        assert careful.policy[2].sum() == 0 and careful.policy[1].sum() == pytest.approx(20)
    low = allocate(draws, [0, 1, 1], 20.0, risk="cvar").value, allocate(draws, [0, 1, 1], 20.0, risk="quantile").value
    assert low[0] < low[1]  # the mean below a quantile is below it
    spread = neutral.outcomes(draws, cost=np.abs(draws))
    assert spread.settings["value"] == pytest.approx(neutral.value)
    assert 0 <= spread.settings["p_overspent"] <= 1 and len(spread.table) == 400
    draws[3, 2, 1] = np.nan
    for risk in ("mean", "quantile", "cvar"):
        with pytest.raises(ValueError, match="reward of option 1 for customer 2 is nan in draw 3"):
            allocate(draws, [0, 1, 1], 20.0, risk=risk)
    with pytest.raises(ValueError, match="needs posterior draws"):
        allocate(mean, [0, 1, 1], 20.0, risk="cvar")
    with pytest.raises(ValueError, match="must be draws"):
        neutral.outcomes(draws[:, :10])


def test_options_that_are_not_on_offer():
    cost = np.array([[0, 1.0], [0, np.inf]])
    found = allocate([[0, 1.0], [0, 9.0]], cost, 5.0)
    assert found.table["option"].tolist() == [1, 0] and found.diagnostics["gap"].iloc[0] == 0
    assert allocate([[0, 1.0], [0, 9.0]], cost, 5.0, integer=True).value == 1
    assert found.predict([[0, 9.0]], [[0, np.inf]]).tolist() == [0]


NAMED = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=["ann", "bob"], columns=["none", "coupon"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": NAMED.replace(0.4, np.nan)}, "reward of option 'coupon' for customer 'bob' is nan"),
        ({"cost": [0, -1]}, "cost of option 'coupon' for customer 'ann' is -1.0"),
        ({"cost": [0, np.nan]}, "cost of option 'coupon' for customer 'ann' is nan"),
        ({"cost": [0, 1, 2]}, r"cost must be of shape \(2,\) or \(2, 2\), not \(3,\)"),
        ({"cost": [1, 1], "budget": 1.0}, "infeasible: the cheapest options cost 2 in all, more than the budget of 1"),
        ({"cost": [1, 1], "budget": 1.0, "integer": True}, "infeasible: the cheapest options cost 2 in all"),
        ({"cost": [[1, 2], [0, 3]], "budget": 0.5, "integer": True}, "infeasible: the cheapest options cost 1 in all"),
        ({"budget": -1.0}, "budget must be a number of at least 0, not -1"),
        ({"budget": float("nan")}, "budget must be a number of at least 0, not nan"),
        (
            {"cost": pd.Series({"none": 0, "voucher": 1})},
            "cost has no option 'coupon'; it has 'voucher', which reward does not have",
        ),
        ({"reward": NAMED.iloc[:0]}, "there are no customers"),
        ({"reward": NAMED.set_axis(["ann", "ann"])}, "customer 'ann' is there more than once"),
        ({"cost": [1, 0], "increasing": True}, r"cost of option 'coupon' \(0\) is not above that of 'none' \(1\)"),
        ({"cost": [[0, 1], [np.inf, np.inf]]}, "no option is on offer to customer 'bob'"),
        ({"cost": {"a": [0, 1], "b": [0, 1]}}, "several costs need several budgets"),
        (
            {"cost": {"a": [0, 1], "b": [0, 1]}, "budget": {"a": 1.0, "c": 1.0}},
            r"costs are for \['a', 'b'\], budgets for",
        ),
        ({"risk": "none"}, "risk must be one of mean, quantile, cvar"),
        ({"level": 0.0}, "level must be a number in .0, 1., not 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(change, message):
    arguments = {"reward": NAMED, "cost": [0, 1], "budget": 1.0} | change
    with pytest.raises(ValueError, match=message):
        allocate(**arguments)


def test_figure_and_shape_of_the_table():
    found = allocate(NAMED, [0, 1], 0.5)
    assert found.table.loc[found.table["other"].notna(), "probability"].tolist() == [0.5]
    assert len(found.plot().axes) == 2
    one = solve(torch.tensor([[0.5]]).double(), torch.tensor([[1.0]]).double(), 1.0)
    assert one.choice.tolist() == [0] and one.multiplier == 0
