"""What a budget is spent on: rewards and costs of the options of each customer, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.decisions.messages import named, real_array, refuse
from fieldguide.inference.checks.aligning import missing, order_of, unnamed
from fieldguide.inference.checks.arguments import checked_real

DEFAULT = "budget"


@dataclass
class Options:
    """Rewards [N, K] and costs [J, N, K], float64; the names of customers and options, and the budgets."""

    reward: Tensor
    costs: Tensor
    budgets: dict[str, float]
    customers: pd.Index
    names: pd.Index

    def scaled(self) -> "tuple[Options, Units]":
        """Return the same in units in which the largest reward and the largest cost of each budget are near 1.

        The units are powers of two, so that nothing is rounded; a budget above all costs together is just that.
        """
        missing = torch.isinf(self.costs)
        closed = bool(missing.any())
        gained, paid = self.reward, self.costs
        if closed:  # what is not on offer is of no size
            gained, paid = gained.masked_fill(missing.any(0), 0), paid.masked_fill(missing, 0)
        reward, costs = _unit(gained), [_unit(cost) for cost in paid]
        limits = {
            name: min(limit / unit, 2.0 * len(gained))
            for (name, limit), unit in zip(self.budgets.items(), costs, strict=True)
        }
        price = self.costs / torch.tensor(costs, dtype=torch.float64, device=self.costs.device)[:, None, None]
        return Options(gained / reward, price, limits, self.customers, self.names), Units(reward, costs)


@dataclass
class Units:
    """What 1 stands for, of rewards and of each budget, [J]."""

    reward: float
    costs: list[float]

    def prices(self, multipliers: Any) -> list[float]:
        """Return multipliers in rewards for money, from scaled ones."""
        return [float(m) * self.reward / cost for m, cost in zip(multipliers, self.costs, strict=True)]


def _unit(values: Tensor) -> float:
    low, high = values.aminmax()
    largest = max(-float(low), float(high))
    return 2.0 ** (int(np.frexp(largest)[1]) - 1) if largest else 1.0


def read_options(reward: Any, cost: Any, budget: Any, increasing: bool = False) -> Options:
    """Return checked rewards and costs; see `fieldguide.decisions.allocate` for what they may be."""
    device = reward.device if isinstance(reward, Tensor) else None
    values = real_array("reward", reward)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"reward must be customers x options, not of shape {values.shape}")
    if not len(values):
        raise ValueError("reward is empty: there are no customers")
    frame = isinstance(reward, pd.DataFrame)
    customers, names = (reward.index, reward.columns) if frame else map(pd.RangeIndex, values.shape)
    for index, what in ((customers, "customer"), (names, "option")):
        if not index.is_unique:
            raise ValueError(f"reward: {what} {index[index.duplicated()][0]!r} is there more than once")
    refuse(~np.isfinite(values), values, _place("reward", customers, names))
    costs, budgets = _by_budget(cost, budget)
    parts = []
    for name in costs:
        what = f"cost {name!r}" if isinstance(cost, Mapping) else "cost"
        parts.append(_cost(costs[name], values.shape, customers, names, what))
        if increasing:
            _rising(parts[-1], customers, names)
    tensor = torch.tensor(np.stack(parts), dtype=torch.float64, device=device)
    rewards = torch.tensor(values, dtype=torch.float64, device=device)
    return Options(rewards, tensor, budgets, customers, names)


def _by_budget(cost: Any, budget: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Costs and budgets by name, in the order of the costs."""
    several = isinstance(cost, Mapping)
    if several != isinstance(budget, Mapping) and not (isinstance(budget, Mapping) and len(budget) == 1):
        raise ValueError("several costs need several budgets: give both as dicts with the same names")
    budgets = dict(budget) if isinstance(budget, Mapping) else {DEFAULT: budget}
    costs = dict(cost) if several else {next(iter(budgets)): cost}
    if not costs:
        raise ValueError("cost names no budget")
    if set(costs) != set(budgets):
        raise ValueError(f"costs are for {sorted(costs, key=str)}, budgets for {sorted(budgets, key=str)}")
    named_budget = isinstance(budget, Mapping)
    return costs, {
        name: checked_real(f"budget {name!r}" if named_budget else "budget", budgets[name], at_least=0)
        for name in costs
    }


def _rising(cost: np.ndarray, customers: pd.Index, names: pd.Index) -> None:
    with np.errstate(invalid="ignore"):
        rises = np.diff(cost, axis=1) > 0
    if not rises.all():
        row, column = np.argwhere(~rises)[0]
        low, high = cost[row, column : column + 2]
        raise ValueError(
            f"cost of option {named(names, column + 1)} ({high:.6g}) is not above that of {named(names, column)} "
            f"({low:.6g}) for customer {named(customers, row)}: levels must be in the order of their costs"
        )


def read_redeemed(values: Any, options: Options) -> Tensor:
    """Return checked probabilities that options are redeemed, [N, K], or posterior draws of them, [S, N, K].

    Those of options [K] are of all customers.
    """
    shape = tuple(options.reward.shape)
    array = in_order("redeemed", values, options.customers, options.names)
    if array.shape == shape[1:]:
        array = np.broadcast_to(array, shape)
    if array.shape[-2:] != shape or array.ndim > 3 or not array.size:
        raise ValueError(f"redeemed must be of shape {shape[1:]}, {shape}, or draws of that, not {array.shape}")
    place = _place("redeemed", options.customers, options.names)
    for part in array.reshape(-1, *shape):
        refuse(~((part >= 0) & (part <= 1)), part, place, ", not a probability")
    return torch.tensor(array, dtype=torch.float64, device=options.reward.device)


def in_order(what: str, values: Any, customers: pd.Index, names: pd.Index) -> np.ndarray:
    """Return numbers in the order of customers and options: a table by its names, a Series by those of options.

    A table of one row, where there are more customers, is of them all, and becomes numbers [K].
    """
    array = real_array(what, values)
    if isinstance(values, pd.Series):
        _no_others(what, values.index, names)
        return array[order_of(what, values.index, names, "options")]
    if isinstance(values, pd.DataFrame):
        _no_others(what, values.columns, names)
        columns = order_of(what, values.columns, names, "options")
        if len(values) == 1 < len(customers):
            return array[0, columns]
        return array[order_of(what, values.index, customers, "customers")][:, columns]
    return array


def _no_others(what: str, given: pd.Index, names: pd.Index) -> None:
    """An option that rewards do not have is more likely a slip than a spare one."""
    if unnamed(given):
        return
    odd = missing(given, names).append(missing(names, given))
    if len(odd):
        raise ValueError(f"{what} names options other than those of reward, such as {named(odd, 0)}")


def _cost(values: Any, shape: tuple[int, ...], customers: pd.Index, names: pd.Index, what: str) -> np.ndarray:
    array = in_order(what, values, customers, names)
    if array.shape not in {shape, shape[1:]}:
        raise ValueError(f"{what} must be of shape {shape[1:]} or {shape}, not {array.shape}")
    array = np.broadcast_to(array, shape)
    refuse(~(array >= 0), array, _place(what, customers, names))
    closed = np.flatnonzero(np.isinf(array).all(1))
    if closed.size:
        raise ValueError(f"{what}: no option is on offer to customer {named(customers, closed[0])}")
    return array


def _place(what: str, customers: pd.Index, names: pd.Index):
    return lambda row, column: f"{what} of option {named(names, column)} for customer {named(customers, row)}"
