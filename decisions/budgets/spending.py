"""What incentives cost when they are redeemed at random: bounds on what is really spent (pure tensors, any device).

Customer i gets option a with probability ``pi_ia``, redeems it with probability ``q_ia``, and costs ``c_ia`` then, and
nothing otherwise; independently of the others. So the spending is a sum of N independent terms, which exceeds its mean
about every other time, and each bound here is exceeded with a probability of at most delta, at every N.
"""

from math import exp, log
from typing import Any

import torch
from torch import Tensor

from fieldguide.decisions.budgets.knapsack import Solution, solve
from fieldguide.inference.checks.arguments import checked_real, one_of
from fieldguide.inference.checks.rounding import exceeds

BOUNDS = ("chernoff", "bernstein", "hoeffding")

HALVINGS = 14
"""Of the interval for the expected spending that keeps the bound within the budget: it is found to 1e-4 of that."""


def spending_bound(policy: Tensor, cost: Tensor, redeemed: Tensor, delta: Any, method: Any = "chernoff") -> float:
    """Return an amount that the spending exceeds with a probability of at most delta.

    Parameters
    ----------
    policy, cost : Tensor [N, K]
        Probabilities of the options, and what each costs when it is redeemed; infinite where it is not on offer.
    redeemed : Tensor [N, K], or [S, N, K] for "chernoff"
        Probability that it is; S posterior draws of it give the bound under their mixture, in which the customers are
        dependent.
    delta : float
    method : {"chernoff", "bernstein", "hoeffding"}
        "chernoff": the smallest bound by the moment generating function (Chernoff 1952); never above the others.
        "bernstein": by variance and largest cost. "hoeffding": by the largest costs alone (Hoeffding 1963).

    Examples
    --------
    A thousand coupons of 1 that are redeemed independently by every tenth customer:

    >>> one = torch.ones(1000, 1).double()
    >>> [round(spending_bound(one, one, 0.1 * one, 0.05, method), 1) for method in BOUNDS]
    [124.0, 124.2, 138.7]
    """
    one_of("method", method, BOUNDS)
    checked_real("delta", delta, above=0, below=1)
    paid = torch.where(policy > 0, cost, 0.0)
    largest = paid.max(1).values
    if not float(largest.max()) > 0:
        return 0.0
    share = policy * redeemed
    if method == "chernoff":
        return min(_chernoff(share, paid, delta), float(largest.sum()))
    if redeemed.ndim == 3:
        raise ValueError(f"method={method!r} is for probabilities that are known, not for draws of them")
    mean, logs = (share * paid).sum(1), log(1 / delta)
    if method == "hoeffding":
        return float(mean.sum()) + float(0.5 * logs * (largest**2).sum()) ** 0.5
    variance, tail = float(((share * paid**2).sum(1) - mean**2).sum()), logs * float(largest.max()) / 3
    return float(mean.sum()) + tail + (tail**2 + 2 * variance * logs) ** 0.5


def expected_cost(price: Tensor, redeemed: Tensor) -> Tensor:
    """Return the expected cost of each option, [..., N, K]; infinite where it is not on offer."""
    chance = redeemed.mean(0) if redeemed.ndim == 3 else redeemed
    return torch.where(torch.isinf(price), price, price * chance)


def solve_within(
    reward: Tensor, price: Tensor, redeemed: Tensor, budget: float, delta: float, unit: float = 1.0
) -> tuple[Solution, float]:
    """Return the best policy by expected spending whose `spending_bound` is within the budget, and that bound.

    Of the optimal policies for budgets up to this one, it is the one for the largest budget that keeps to the bound.

    Parameters
    ----------
    reward, price : Tensor [N, K]
    redeemed : Tensor [N, K] or [S, N, K]
    budget, delta : float
    unit : float
        What 1 of prices and budget stands for; the bound that is returned is in that.

    Raises
    ------
    ValueError
        If no expected spending is small enough.
    """
    cost = expected_cost(price, redeemed)

    def attempt(target: float) -> tuple[Solution, float]:
        best = solve(reward, cost, target)
        return best, spending_bound(best.policy(reward.shape[1]), price, redeemed, delta) * unit

    low, high, most = float(cost.min(1).values.sum()), budget, budget * unit
    whole = attempt(high)
    if not exceeds(whole[1], most):
        return whole
    best = attempt(low)
    if exceeds(best[1], most):
        raise ValueError(
            f"infeasible: even the options of smallest expected cost, {low * unit:.6g} in all, are bounded by "
            f"{best[1]:.6g} only (at probability {1 - delta:g}), more than the budget of {most:.6g}"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = attempt(middle)
        if not exceeds(tried[1], most):
            low, best = middle, tried
        else:
            high = middle
    return best


def _chernoff(share: Tensor, paid: Tensor, delta: float) -> float:
    """Smallest of the bounds ``(log E exp(t spending) + log 1/delta) / t``, each of which holds."""
    from scipy.optimize import minimize_scalar

    unit = float(paid.max())

    def bound(log_t: float) -> float:
        grown = torch.log1p((share * torch.expm1(exp(log_t) / unit * paid)).sum(-1)).sum(-1)
        if share.ndim == 3:
            grown = torch.logsumexp(grown, 0) - log(len(share))
        return (float(grown) + log(1 / delta)) * unit / exp(log_t)

    # a t of more than some hundreds over the largest cost would overflow, and the bound is near the sum of the costs
    ends = (log(1e-6), log(500.0))
    least: Any = minimize_scalar(bound, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return float(least.fun)
