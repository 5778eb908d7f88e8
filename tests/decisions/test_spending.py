"""What is really spent when incentives are redeemed at random: bounds against binomials, and allocations within."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fieldguide.decisions import allocate
from fieldguide.decisions.budgets.outcomes import outcomes
from fieldguide.decisions.budgets.spending import BOUNDS, spending_bound


@pytest.mark.parametrize("method", BOUNDS)
def test_bounds_hold_for_binomials(method):
    for n in (1, 7, 60, 2000):
        one = torch.ones(n, 1).double()
        for p in (0.001, 0.02, 0.3, 0.5, 0.97):
            for delta in (0.3, 0.05, 0.001):
                found = spending_bound(one, 3 * one, p * one, delta, method) / 3
                assert binom.sf(np.floor(found + 1e-9), n, p) <= delta  # P(spending > bound), exactly


def test_the_bound_is_not_far_from_the_exact_quantile():
    for n, p, delta in ((200, 0.3, 0.05), (2000, 0.05, 0.01), (20_000, 0.5, 0.001)):
        one = torch.ones(n, 1).double()
        exact = binom.isf(delta, n, p) - n * p
        assert exact <= spending_bound(one, one, p * one, delta) - n * p <= 1.65 * exact


def exact_spending(policy, cost, redeemed):
    """Distribution of the spending by convolution; costs are integers."""
    chance = np.ones(1)
    for row, paid, likely in zip(policy, cost, redeemed, strict=True):
        one = np.zeros(int(paid.max()) + 1)
        np.add.at(one, paid.astype(int), row * likely)
        one[0] += 1 - (row * likely).sum()
        chance = np.convolve(chance, one)
    return chance


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.001, 0.5))
def test_bounds_hold_for_any_policy_and_are_ordered(seed, delta):
    rng = np.random.default_rng(seed)
    n, k = rng.integers(1, 40), rng.integers(1, 5)
    policy, cost, redeemed = rng.dirichlet(np.full(k, 0.3), n), rng.integers(0, 9, (n, k)), rng.beta(0.4, 0.7, (n, k))
    chance = exact_spending(policy, cost.astype(float), redeemed)
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (policy, cost, redeemed)]
    found = {m: spending_bound(*tensors, delta, m) for m in BOUNDS}
    for bound in found.values():
        assert chance[int(np.floor(bound + 1e-9)) + 1 :].sum() <= delta + 1e-12
    assert found["chernoff"] <= min(found["bernstein"], found["hoeffding"]) * (1 + 1e-9) + 1e-12
    scaled = spending_bound(tensors[0], 10 * tensors[1], tensors[2], delta)
    assert scaled == pytest.approx(10 * found["chernoff"], rel=1e-6)


def coupons(n=300, seed=0):
    """Responses that rise with the level, which are also what coupons cost."""
    rng = np.random.default_rng(seed)
    base, slope = rng.normal(-1.5, 1, n), rng.gamma(1, 1, n)
    response = 1 / (1 + np.exp(-base[:, None] - slope[:, None] * np.log1p(np.arange(4))))
    return response, np.arange(4.0)


def test_an_allocation_that_may_overspend_rarely():
    response, cost = coupons()
    free = allocate(response, cost, 150.0, redeemed=response)
    assert free.diagnostics["spent"].iloc[0] == pytest.approx(150)
    prices = np.tile(cost, (300, 1))
    above = exact_spending(free.policy.to_numpy(), prices, response)[151:].sum()
    assert 0.4 < above < 0.6  # expected spending at the budget: overspent about every other time
    for delta in (0.2, 0.05, 0.01):
        held = allocate(response, cost, 150.0, redeemed=response, overspend=delta)
        above = exact_spending(held.policy.to_numpy(), prices, response)[151:].sum()
        assert delta / 12 < above <= delta  # kept, and not by spending next to nothing
        bound = held.diagnostics["spending_bound"].iloc[0]
        assert 149.8 <= bound <= 150 and held.diagnostics["spent"].iloc[0] < 150
        assert held.value > 0.9 * free.value and held.settings["overspend"] == delta
    assert allocate(response, cost, 1e4, redeemed=response, overspend=0.05).value == pytest.approx(
        allocate(response, cost, 1e4, redeemed=response).value
    )


def test_probabilities_that_are_not_known_well_cost_more():
    response, cost = coupons()
    rng = np.random.default_rng(1)
    common = rng.normal(0, 0.3, (80, 1, 1))  # an error that all customers share
    draws = 1 / (1 + np.exp(-np.log(response / (1 - response)) - common))
    known = allocate(response, cost, 150.0, redeemed=draws.mean(0), overspend=0.1)
    doubtful = allocate(response, cost, 150.0, redeemed=draws, overspend=0.1)
    assert doubtful.diagnostics["spent"].iloc[0] < known.diagnostics["spent"].iloc[0] - 5
    prices = np.tile(cost, (300, 1))
    above = [exact_spending(doubtful.policy.to_numpy(), prices, d)[151:].sum() for d in draws]
    assert np.mean(above) <= 0.1
    with pytest.raises(ValueError, match="is for probabilities that are known"):
        spending_bound(*(torch.tensor(v) for v in (known.policy.to_numpy(), prices, draws)), 0.1, "bernstein")


def test_outcomes_simulate_what_is_really_spent():
    response, cost = coupons()
    found = allocate(response, cost, 150.0, redeemed=response)
    draws = np.repeat(response[None], 4000, 0)
    spread = found.outcomes(draws, cost, redeemed=response, seed=3)
    chance = exact_spending(found.policy.to_numpy(), np.tile(cost, (300, 1)), response)
    at = np.arange(len(chance))
    sd = np.sqrt(chance @ at**2 - (chance @ at) ** 2)
    assert spread.settings["spent"] == pytest.approx(150, abs=4 * sd / 4000**0.5)
    assert spread.settings["spent_sd"] == pytest.approx(sd, rel=0.06)
    assert spread.settings["p_overspent"] == pytest.approx(chance[151:].sum(), abs=0.035)
    assert spread.settings["value"] == pytest.approx(found.value) and spread.settings["value_sd"] < 1e-9
    assert spread.settings["spent_low"] < 150 < spread.settings["spent_high"]
    assert len(spread.plot().axes) == 2 and len(found.outcomes(draws[:5]).plot().axes) == 1
    expected = found.outcomes(draws[:5], cost * response)
    assert expected.settings["spent"] == pytest.approx(150)


def test_customers_between_options_are_drawn():
    policy, nothing = np.full((400, 2), 0.5), np.zeros((2000, 400, 2))
    spent = outcomes(pd.DataFrame(policy), {"budget": 200.0}, nothing, [0.0, 1.0], redeemed=np.ones((400, 2))).settings
    assert spent["spent"] == pytest.approx(200, abs=1) and spent["spent_sd"] == pytest.approx(10, rel=0.08)


def test_a_report_of_draws_has_the_spread_of_value_and_spending():
    response, cost = coupons()
    rng = np.random.default_rng(2)
    draws = 1 / (1 + np.exp(-np.log(response / (1 - response)) - rng.normal(0, 0.4, (300, 1, 1))))
    found = allocate(draws, cost, 150.0, redeemed=draws)
    row, spread = found.diagnostics.iloc[0], found.spread
    assert row["value_low"] < found.value < row["value_high"] and row["spent_low"] < 150 < row["spent_high"]
    paid = found.policy.to_numpy() * cost * draws  # by the law of total variance, with one option for each customer
    chosen = (found.policy.to_numpy()[None] * cost**2 * draws * (1 - draws)).sum((1, 2)).mean()
    assert spread.settings["spent_sd"] == pytest.approx((paid.sum((1, 2)).var() + chosen) ** 0.5, rel=0.1)
    assert row["p_overspent"] == pytest.approx((spread.table["spent"] > 150).mean()) and len(found.plot().axes) == 4
    sure = allocate(draws[:, :, :1], [0.0], 150.0)  # without redemption spending is known: value alone
    assert "spent_low" not in sure.diagnostics and len(sure.plot().axes) == 3
    certain = allocate(response, cost, 150.0, redeemed=draws)
    assert len(certain.spread.table) == 300 and certain.spread.settings["value_sd"] < 1e-9
    assert allocate(response, cost, 150.0).spread is None


def test_new_customers_and_names():
    response, cost = coupons()
    names = ["none", "one", "two", "three"]
    table = pd.DataFrame(response, columns=names)
    found = allocate(
        table, pd.Series(cost, index=names), 150.0, redeemed=table[names[::-1]].sample(frac=1, random_state=0)
    )
    again = found.predict(table, cost, redeemed=table)
    outright = found.table["other"].isna()
    assert (again == found.table["option"])[outright].all()
    closed = np.tile(cost, (300, 1))
    closed[5, 3] = np.inf
    part = allocate(response, closed, 150.0, redeemed=response, overspend=0.05)
    assert part.policy.iloc[5, 3] == 0 and part.diagnostics["spending_bound"].iloc[0] <= 150


GOOD = {"reward": [[0.1, 0.5], [0.2, 0.6]], "cost": [0.0, 1.0], "budget": 1.0, "redeemed": [[0.0, 0.5], [0.0, 0.6]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"redeemed": None, "overspend": 0.1}, "overspend needs redeemed"),
        ({"overspend": 0.0}, "overspend must be a number in .0, 1., not 0"),
        ({"overspend": 0.1, "integer": True}, "overspend is not for integer=True"),
        (
            {"cost": {"a": [0, 1], "b": [0, 1]}, "budget": {"a": 1.0, "b": 1.0}},
            "redeemed is for one budget, not for a, b",
        ),
        ({"redeemed": [[0.0, 0.5], [0.0, 1.6]]}, "redeemed of option 1 for customer 1 is 1.6, not a probability"),
        ({"redeemed": [[0.0, 0.5], [0.0, np.nan]]}, "redeemed of option 1 for customer 1 is nan, not a probability"),
        ({"redeemed": [0.0, 0.5, 0.5]}, r"redeemed must be of shape \(2,\), \(2, 2\), or draws of that, not \(3,\)"),
        ({"cost": [1.0, 1.0], "redeemed": np.full((2, 2), 0.4), "overspend": 0.1}, "infeasible: even the options of"),
    ],
    ids=["probabilities", "delta", "integer", "several", "above one", "missing", "shape", "budget"],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        allocate(**(GOOD | change))


def test_bad_bounds():
    one = torch.ones(2, 1).double()
    with pytest.raises(ValueError, match="method must be one of chernoff, bernstein, hoeffding"):
        spending_bound(one, one, one, 0.1, "markov")
    with pytest.raises(ValueError, match="delta must be a number in .0, 1., not 1"):
        spending_bound(one, one, one, 1.0)
    assert spending_bound(one, 0 * one, one, 0.1) == 0
    found = allocate(**GOOD)
    with pytest.raises(ValueError, match="redeemed must hold probabilities"):
        found.outcomes(np.zeros((3, 2, 2)), [0.0, 1.0], redeemed=[[0.0, 2.0], [0.0, 1.0]])
