"""One option for each customer under a budget, solved exactly (pure tensors, any device).

The problem is ``max sum_ia pi_ia r_ia`` over policies ``pi`` (rows are distributions) with ``sum_ia pi_ia c_ia <=
B``: the linear relaxation of the multiple-choice knapsack (Sinha and Zoltners 1979). Only the upper concave envelope
of a customer's options (cost, reward) can be optimal; its segments, taken over all customers by falling efficiency
(reward for cost), spend any budget best. One customer at most is left between two options.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fieldguide.inference.checks.rounding import SLACK, exceeds

ROUNDING = 1e-13
"""Share of a budget that a sum of costs may seem to leave by rounding."""


@dataclass
class Segments:
    """Segments of the envelopes: from which option to which, [M] each; those of a customer in falling efficiency."""

    customer: Tensor
    end: Tensor
    gain: Tensor
    cost: Tensor
    efficiency: Tensor
    sizes: list[int]
    """How many are the first, second, ... of their customer: they stand in this order."""
    start: Tensor
    """First point of each customer's envelope, [N]: the best of the cheapest options."""


@dataclass
class Solution:
    """An optimal policy: every customer one option, at most one of them two.

    Attributes
    ----------
    choice : int64 [N]
        The option of each customer; of the randomised one the cheaper.
    randomised, other, fraction
        Row of the customer with two options (-1 if there is none), the dearer one, and its probability.
    multiplier : float
        What another unit of budget would bring.
    value, spent : float
    dual : float
        Upper bound on the value of any policy, by `dual_value` at the multiplier: equal to the value at the optimum.
    path : tuple of Tensors [M + 1]
        Budget, value and efficiency at the vertices of the optimal value as a function of the budget.
    """

    choice: Tensor
    randomised: int
    other: int
    fraction: float
    multiplier: float
    value: float
    spent: float
    dual: float
    path: tuple[Tensor, Tensor, Tensor]

    def policy(self, width: int) -> Tensor:
        """Return the probabilities of the options, [N, width]."""
        chances = torch.nn.functional.one_hot(self.choice, width).double()
        if self.randomised >= 0:
            chances[self.randomised, self.choice[self.randomised]] = 1 - self.fraction
            chances[self.randomised, self.other] = self.fraction
        return chances


def segments(reward: Tensor, cost: Tensor) -> Segments:
    """Return the segments of every customer's upper concave envelope, by gift wrapping: K passes over what is left.

    Parameters
    ----------
    reward, cost : Tensor [N, K]
        float64; an option of infinite cost is not on offer.

    Examples
    --------
    >>> envelope = segments(torch.tensor([[0.0, 0.25, 1.0]]).double(), torch.tensor([[0.0, 1.0, 2.0]]).double())
    >>> envelope.end.tolist(), envelope.efficiency.tolist()  # the option in the middle is below the envelope
    ([2], [0.5])
    """
    cheapest = cost.min(1, keepdim=True).values
    start = now = reward.masked_fill(cost > cheapest, -torch.inf).argmax(1)
    rows = torch.arange(len(reward), device=reward.device)
    last = torch.full((len(rows),), torch.inf, dtype=reward.dtype, device=reward.device)
    names = ("customer", "end", "gain", "cost", "efficiency")
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    sizes = []
    r, c = reward, cost
    while len(rows):
        gain, extra = r - r.gather(1, now[:, None]), c - c.gather(1, now[:, None])
        slope = torch.where((gain > 0) & (extra > 0), gain / extra, 0)
        best = slope.max(1, keepdim=True).values
        to = extra.masked_fill(slope < best, -1).argmax(1)  # of equal slopes the farthest: ties make one segment
        go = (best[:, 0] > 0).nonzero()[:, 0]
        rows, r, c, now = rows[go], r[go], c[go], to[go]
        gain, extra = (values[go, now] for values in (gain, extra))
        last = torch.minimum(best[go, 0], last[go])  # an envelope that rounding bends is straightened
        for name, values in zip(names, (rows, now, gain, extra, last), strict=True):
            parts[name].append(values)
        sizes.append(len(rows))
    return Segments(**{name: torch.cat(part) for name, part in parts.items()}, sizes=sizes, start=start)


def solve(reward: Tensor, cost: Tensor, budget: float) -> Solution:
    """Return the optimal policy under one budget.

    Parameters
    ----------
    reward, cost : Tensor [N, K]
        float64, costs at least 0; an option of infinite cost is not on offer.
    budget : float
        For all customers together.

    Raises
    ------
    ValueError
        If even the cheapest options cost more than the budget.
    """
    envelopes = segments(reward, cost)
    start = envelopes.start[:, None]
    base = float(cost.gather(1, start).sum())
    if exceeds(base, budget):
        cheapest = f"infeasible: the cheapest options cost {base:.6g} in all"
        raise ValueError(f"{cheapest}, more than the budget of {budget:.6g}")
    order = torch.sort(envelopes.efficiency, descending=True, stable=True).indices
    spending = envelopes.cost[order].cumsum(0)
    room = max(budget - base, 0.0)
    taken = int(torch.searchsorted(spending, spending.new_tensor(room), right=True))
    choice, chosen = envelopes.start.clone(), torch.zeros_like(order, dtype=torch.bool)
    chosen[order[:taken]] = True
    at = 0
    for size in envelopes.sizes:  # the first segment of every customer, then the second: later ones overwrite
        level = slice(at, at + size)
        choice[envelopes.customer[level][chosen[level]]] = envelopes.end[level][chosen[level]]
        at += size
    spent = float(cost.gather(1, choice[:, None]).sum())
    value = float(reward.gather(1, choice[:, None]).sum())
    randomised, other, fraction, multiplier = -1, -1, 0.0, 0.0
    left = max(budget - spent, 0.0)
    if taken < len(order) and left >= (1 - SLACK) * float(envelopes.cost[order[taken]]):  # rounding alone cuts it off
        following = int(order[taken])
        choice[envelopes.customer[following]] = envelopes.end[following]
        value, spent = value + float(envelopes.gain[following]), spent + float(envelopes.cost[following])
        taken, left = taken + 1, 0.0
    if taken < len(order):
        following = int(order[taken])
        multiplier = float(envelopes.efficiency[following])
        fraction = left / float(envelopes.cost[following])
        if fraction <= SLACK or left <= ROUNDING * budget:
            fraction = 0.0
        else:
            randomised, other = int(envelopes.customer[following]), int(envelopes.end[following])
            value += fraction * float(envelopes.gain[following])
            spent += fraction * float(envelopes.cost[following])
    zero = spending.new_zeros(1)
    path = (
        base + torch.cat([zero, spending]),
        float(reward.gather(1, start).sum()) + torch.cat([zero, envelopes.gain[order].cumsum(0)]),
        torch.cat([envelopes.efficiency[order], zero]),
    )
    dual = dual_value(reward, cost[None], [budget], [multiplier])
    return Solution(choice, randomised, other, fraction, multiplier, value, spent, dual, path)


def net(reward: Tensor, costs: Tensor, multipliers) -> Tensor:
    """Return reward minus the price of the costs, [N, K]; options that are not on offer are worth minus infinity."""
    price = torch.zeros_like(reward)
    for cost, multiplier in zip(costs, multipliers, strict=True):
        price += torch.where(torch.isinf(cost), torch.inf, cost * multiplier)
    return reward - price


def dual_value(reward: Tensor, costs: Tensor, budgets, multipliers) -> float:
    """Return the Lagrangian bound ``sum_i max_a (r - lam c) + lam B``: no policy within the budgets is worth more.

    Parameters
    ----------
    reward : Tensor [N, K]
    costs : Tensor [J, N, K]
    budgets, multipliers : sequences of J floats
    """
    best = float(net(reward, costs, multipliers).max(1).values.sum())
    return best + sum(float(b) * float(m) for b, m in zip(budgets, multipliers, strict=True))


def respond(reward: Tensor, costs: Tensor, multipliers) -> Tensor:
    """Return each customer's best option at given multipliers, int64 [N]; of equally good ones the cheapest."""
    worth = net(reward, costs, multipliers)
    tied = worth >= worth.max(1, keepdim=True).values
    return costs.sum(0).masked_fill(~tied, torch.inf).argmin(1)
