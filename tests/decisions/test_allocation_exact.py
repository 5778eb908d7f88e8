"""Allocations against enumeration and rational arithmetic, over eighteen orders of magnitude of money and reward."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from fieldguide.decisions import allocate
from fieldguide.inference.checks.rounding import exceeds

SIZES = (0.0, -9.0, 9.0)


def instance(seed):
    """Rewards [n, k], costs [j, n, k] and budgets [j] in units of their own, with ties, free and missing options."""
    rng = np.random.default_rng(seed)
    n, k, j = int(rng.integers(1, 6)), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    kind = rng.integers(4)
    reward = [
        rng.random((n, k)),
        np.sort(rng.random((n, k)), 1),
        rng.integers(0, 4, (n, k)) / 10,
        rng.normal(size=(n, k)),
    ][kind]
    costs = rng.integers(0, 5, (j, n, k)) / 10 if rng.random() < 0.4 else rng.random((j, n, k))
    if rng.random() < 0.5:
        costs[:, :, 0] = 0.0
    if rng.random() < 0.3 and k > 1:
        costs[:, rng.integers(n), rng.integers(1, k)] = np.inf
    choice = [int(rng.choice(np.flatnonzero(np.isfinite(costs[0, i])))) for i in range(n)]
    own = np.array([sum(costs[b, i, choice[i]] for i in reversed(range(n))) for b in range(j)])
    loose = own * rng.uniform(1.0, 1.6, j)
    budgets = np.where(rng.random(j) < 0.4, own, loose)  # exactly what some choice costs, summed the other way round
    if rng.random() < 0.1:
        budgets[rng.integers(j)] *= 0.3  # often too little
    money, worth = 10.0 ** rng.uniform(*SIZES[1:], j), 10.0 ** rng.uniform(*SIZES[1:])
    return reward * worth, costs * money[:, None, None], budgets * money


def enumerated(reward, costs, budgets):
    """Value of the best choice that keeps within all budgets, or None."""
    n, k = reward.shape
    choices = np.array(list(itertools.product(range(k), repeat=n)))
    rows = np.arange(n)
    spent = costs[:, rows, choices].sum(2)
    kept = ~exceeds(spent, budgets[:, None]).any(0)
    return reward[rows, choices].sum(1)[kept].max() if kept.any() else None


def certified(found, reward, costs, budgets):
    """Exact value of a policy, its exact spending, and the exact bound at its multipliers."""
    n, k = reward.shape
    names = list(found.multipliers)
    policy = found.policy.to_numpy()
    open_ = np.isfinite(costs).all(0)
    exact = [[Fraction(float(v)) for v in row] for row in policy]
    value = sum(exact[i][a] * Fraction(reward[i, a]) for i in range(n) for a in range(k) if policy[i, a] > 0)
    spent = [
        sum(exact[i][a] * Fraction(costs[b, i, a]) for i in range(n) for a in range(k) if policy[i, a] > 0)
        for b in range(len(budgets))
    ]
    prices = [Fraction(found.multipliers[name]) for name in names]
    bound = sum(p * Fraction(b) for p, b in zip(prices, budgets, strict=True))
    for i in range(n):
        bound += max(
            Fraction(reward[i, a]) - sum(p * Fraction(costs[b, i, a]) for b, p in enumerate(prices))
            for a in range(k)
            if open_[i, a]
        )
    return value, spent, bound


def asked(costs, budgets):
    if len(budgets) == 1:
        return {"cost": costs[0], "budget": float(budgets[0])}
    names = [f"b{i}" for i in range(len(budgets))]
    return {"cost": dict(zip(names, costs, strict=True)), "budget": dict(zip(names, map(float, budgets), strict=True))}


def worst_of(seeds):
    """Largest relative errors over some instances, and how many there were of each kind."""
    worst = {"whole value": 0.0, "whole spent": 0.0, "whole bound": 0.0, "gap": 0.0, "spent": 0.0, "bound": 0.0}
    count = {"whole": 0, "infeasible": 0, "mixed": 0}
    for seed in seeds:
        reward, costs, budgets = instance(seed)
        best = enumerated(reward, costs, budgets)
        question = asked(costs, budgets)
        size = max(np.abs(reward[np.isfinite(costs).all(0)]).max(), 1e-300)
        if best is None:
            with pytest.raises(ValueError, match="infeasible"):
                allocate(reward, **question, integer=True)
            count["infeasible"] += 1
        else:
            whole = allocate(reward, **question, integer=True)
            assert whole.settings["status"] == "optimal", seed
            row = whole.diagnostics.iloc[0]
            own = max(abs(best), 1e-3 * size)  # a sum of rewards that cancel has lost as much
            for name, off in (
                ("whole value", abs(whole.value - best) / own),
                ("whole bound", max(best - row["dual"], row["dual"] - best) / own),
                ("whole spent", _over(whole.diagnostics)),
            ):
                assert off <= 1e-9, (seed, name, off)
                worst[name] = max(worst[name], off)
            count["whole"] += 1
        try:
            mixed = allocate(reward, **question)
        except ValueError as error:
            assert "infeasible" in str(error) and best is None, seed
            continue
        value, spent, bound = certified(mixed, reward, costs, budgets)
        own = max(abs(float(value)), 1e-3 * size)
        row = mixed.diagnostics.iloc[0]
        over = max((float(s / Fraction(b)) - 1 if b > 0 else float(s > 0)) for s, b in zip(spent, budgets, strict=True))
        for name, off in (
            ("gap", float(bound - value) / own),
            ("spent", over),
            ("bound", max(float(value) - row["dual"], row["dual"] - float(bound)) / own),
            ("bound", 0.0 if best is None else (best - row["dual"]) / own),
        ):
            assert off <= 1e-9, (seed, name, off)
            worst[name] = max(worst[name], off)
        count["mixed"] += 1
    return worst, count


def _over(diagnostics):
    spent, budget = diagnostics["spent"].to_numpy(), diagnostics["budget"].to_numpy()
    return float(np.where(budget > 0, spent / np.where(budget > 0, budget, 1) - 1, spent > 0).max())


def test_equals_enumeration_in_any_unit():
    worst, count = worst_of(range(80))
    assert count["whole"] > 50 and count["mixed"] > 50 and count["infeasible"] > 0, count


@pytest.mark.slow
def test_two_thousand_instances_equal_enumeration():
    worst, count = worst_of(range(10_000, 12_000))
    print("\ninstances", count, "\nlargest relative errors", {name: f"{off:.1e}" for name, off in worst.items()})
