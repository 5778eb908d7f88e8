"""What a budget is spent on: rewards and costs of the options of each customer, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.decisions.messages import named, refuse

DEFAULT = "budget"


@dataclass
class Options:
    """Rewards [N, K] and costs [J, N, K], float64; the names of customers and options, and the budgets."""

    reward: Tensor
    costs: Tensor
    budgets: dict[str, float]
    customers: pd.Index
    names: pd.Index


def read_options(reward: Any, cost: Any, budget: Any, increasing: bool = False) -> Options:
    """Return checked rewards and costs; see `fieldguide.decisions.allocate` for what they may be."""
    device = reward.device if isinstance(reward, Tensor) else None
    values, customers, names = _frame(reward)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"reward must be customers x options, not of shape {values.shape}")
    if not len(values):
        raise ValueError("there are no customers")
    for index, what in ((customers, "customer"), (names, "option")):
        if not index.is_unique:
            raise ValueError(f"{what} {index[index.duplicated()][0]!r} is there more than once")
    refuse(~np.isfinite(values), values, _place("reward", customers, names))
    several = isinstance(cost, Mapping)
    if several != isinstance(budget, Mapping) and not (isinstance(budget, Mapping) and len(budget) == 1):
        raise ValueError("several costs need several budgets: give both as dicts with the same names")
    budgets = dict(budget) if isinstance(budget, Mapping) else {DEFAULT: budget}
    costs = dict(cost) if isinstance(cost, Mapping) else {next(iter(budgets)): cost}
    if not costs:
        raise ValueError("cost names no budget")
    if set(costs) != set(budgets):
        raise ValueError(f"costs are for {sorted(costs)}, budgets for {sorted(budgets)}")
    parts = []
    for name in costs:
        parts.append(_cost(costs[name], values.shape, customers, names, "cost" if not several else f"cost {name!r}"))
        if increasing:
            rises = np.diff(parts[-1], axis=1) > 0
            if not rises.all():
                row, column = np.argwhere(~rises)[0]
                low, high = parts[-1][row, column : column + 2]
                raise ValueError(
                    f"cost of option {named(names, column + 1)} ({high:.6g}) is not above that of "
                    f"{named(names, column)} "
                    f"({low:.6g}) for customer {named(customers, row)}: levels must be in the order of their costs"
                )
        if not budgets[name] >= 0:
            raise ValueError(f"budget must be at least 0, not {budgets[name]}")
    tensor = torch.tensor(np.stack(parts), dtype=torch.float64, device=device)
    rewards = torch.tensor(values, dtype=torch.float64, device=device)
    return Options(rewards, tensor, {name: float(budgets[name]) for name in costs}, customers, names)


def read_redeemed(values: Any, options: Options) -> Tensor:
    """Return checked probabilities that options are redeemed, [N, K], or posterior draws of them, [S, N, K]."""
    shape = tuple(options.reward.shape)
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if isinstance(values, pd.DataFrame):
        _same(values.columns, options.names, "redeemed names options")
        _same(values.index, options.customers, "redeemed names customers")
        array = values.loc[options.customers, options.names].to_numpy(dtype=np.float64)
    if array.shape[-2:] != shape or array.ndim > 3:
        raise ValueError(f"redeemed must be of shape {shape}, or draws of that, not {array.shape}")
    place = _place("redeemed", options.customers, options.names)
    for part in array.reshape(-1, *shape):
        refuse(~((part >= 0) & (part <= 1)), part, place, ", not a probability")
    return torch.tensor(array, dtype=torch.float64, device=options.reward.device)


def _frame(values: Any) -> tuple[np.ndarray, pd.Index, pd.Index]:
    if isinstance(values, pd.DataFrame):
        return values.to_numpy(dtype=np.float64), values.index, values.columns
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    shape = array.shape if array.ndim == 2 else (0, 0)
    return array, pd.RangeIndex(shape[0]), pd.RangeIndex(shape[1])


def _cost(values: Any, shape: tuple[int, ...], customers: pd.Index, names: pd.Index, what: str) -> np.ndarray:
    if isinstance(values, pd.Series):
        _same(values.index, names, f"{what} names options")
        values = values.reindex(names)
    if isinstance(values, pd.DataFrame):
        _same(values.columns, names, f"{what} names options")
        _same(values.index, customers, f"{what} names customers")
        values = values.loc[customers, names]
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.shape not in {shape, shape[1:]}:
        raise ValueError(f"{what} must be of shape {shape[1:]} or {shape}, not {array.shape}")
    array = np.broadcast_to(array, shape)
    refuse(~(array >= 0), array, _place(what, customers, names))
    closed = np.flatnonzero(np.isinf(array).all(1))
    if closed.size:
        raise ValueError(f"{what}: no option is on offer to customer {named(customers, closed[0])}")
    return array


def _same(given: pd.Index, wanted: pd.Index, what: str) -> None:
    odd = wanted.difference(given).append(given.difference(wanted))
    if len(odd):
        raise ValueError(f"{what} other than those of reward, such as {odd[0]!r}")
    if len(given) != len(wanted):
        raise ValueError(f"{what} twice")


def _place(what: str, customers: pd.Index, names: pd.Index):
    return lambda row, column: f"{what} of option {named(names, column)} for customer {named(customers, row)}"
