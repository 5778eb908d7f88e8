"""How sure value and spending of an allocation are: their distribution over posterior draws and what customers do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.budgets.figures import distribution
from fieldguide.decisions.budgets.options import in_order
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.arguments import checked_seed
from fieldguide.inference.checks.rounding import exceeds


def outcomes(
    policy: pd.DataFrame,
    budgets: Mapping[str, float],
    reward: Any,
    cost: Any = None,
    redeemed: Any = None,
    seed: Any = 0,
) -> Decision:
    """Return the distribution of value and spending of a policy [N, K]; see `Allocation.outcomes`.

    Of ``cost`` and ``redeemed`` each may be draws [S, N, K] or one table for all draws.
    """
    seed = checked_seed(seed)
    names, shares = (policy.index, policy.columns), policy.to_numpy()
    draws = real_array("reward", reward)
    if draws.ndim != 3 or draws.shape[1:] != shares.shape or not draws.size:
        raise ValueError(f"reward must be draws [S, {shares.shape[0]}, {shares.shape[1]}], not of shape {draws.shape}")
    missing = np.argwhere(~np.isfinite(draws))
    if missing.size:
        raise ValueError(f"reward is {draws[tuple(missing[0])]} in draw, customer and option {missing[0].tolist()}")
    if cost is None and redeemed is not None:
        raise ValueError("redeemed needs cost, what is paid then")
    size = len(draws)
    if cost is not None:
        if len(budgets) != 1:
            raise ValueError(f"spending is one number a draw: there are budgets {', '.join(map(str, budgets))}")
        costs = _table("cost", in_order("cost", cost, *names), shares.shape)
        chance = (
            np.ones(())
            if redeemed is None
            else _table("redeemed", in_order("redeemed", redeemed, *names), shares.shape)
        )
        if not ((chance >= 0) & (chance <= 1)).all():
            raise ValueError("redeemed must hold probabilities, in [0, 1]")
        if not (costs >= 0).all():
            raise ValueError(f"cost must be at least 0; one value is {costs[~(costs >= 0)][0]}")
        sizes = {len(values) for values in (draws, costs, chance) if values.ndim == 3 and len(values) > 1}
        if len(sizes) > 1:
            raise ValueError(f"reward, cost and redeemed have {sorted(sizes)} draws: give equally many, or one table")
        size = max(sizes, default=1)
        costs, chance = (np.broadcast_to(values, (size, *shares.shape)) for values in (costs, chance))
    table = pd.DataFrame({"value": np.broadcast_to(np.einsum("snk,nk->s", draws, shares), size)})
    if cost is not None and redeemed is None:
        table["spent"] = [np.where(shares > 0, paid * shares, 0).sum() for paid in costs]
    elif cost is not None:
        table["spent"] = _spendings(shares, costs, chance, np.random.default_rng(seed))
    settings: dict[str, Any] = {}
    for name, values in table.items():
        settings |= {f"{name}": values.mean(), f"{name}_sd": values.std()}
        settings |= {f"{name}_low": values.quantile(0.05), f"{name}_high": values.quantile(0.95)}
    if cost is not None:
        settings["p_overspent"] = float(exceeds(table["spent"], next(iter(budgets.values()))).mean())
    return Decision(table, pd.DataFrame(), settings, (), distribution)


def _table(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    draws = values.ndim == 3 and values.shape[1:] == shape and values.size
    if not draws and values.shape not in {shape[1:], shape, (1, shape[1])}:
        raise ValueError(f"{name} must be of shape {shape[1:]}, {shape} or draws of that, not {values.shape}")
    return values


def _spendings(policy: np.ndarray, costs: np.ndarray, chance: np.ndarray, rng: np.random.Generator) -> list[float]:
    """What is really spent in each draw [S]: every customer is given an option, and redeems it or not."""
    edges, rows, sums = policy.cumsum(1), np.arange(len(policy)), []
    edges /= edges[:, -1:]  # so that rounding gives nobody an option of probability 0
    for paid, likely in zip(costs, chance, strict=True):
        given = (rng.random(len(policy))[:, None] >= edges).sum(1).clip(max=policy.shape[1] - 1)
        used = rng.random(len(policy)) < likely[rows, given]
        sums.append(float(paid[rows, given][used].sum()))
    return sums
