"""How sure value and spending of an allocation are: their distribution over posterior draws and what customers do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.budgets.figures import distribution
from fieldguide.decisions.decision import Decision


def outcomes(
    policy: np.ndarray,
    budgets: Mapping[str, float],
    reward: ArrayLike,
    cost: ArrayLike | None = None,
    redeemed: ArrayLike | None = None,
    seed: int = 0,
) -> Decision:
    """Return the distribution of value and spending of a policy [N, K]; see `Allocation.outcomes`.

    Of ``reward``, ``cost`` and ``redeemed`` each may be draws [S, N, K] or one table for all draws.
    """
    draws = _draws(reward, policy.shape, "reward")
    size = len(draws)
    if cost is not None:
        if len(budgets) != 1:
            raise ValueError(f"spending is one number a draw: there are budgets {', '.join(budgets)}")
        costs = np.asarray(cost, dtype=np.float64)
        chance = np.ones(()) if redeemed is None else np.asarray(redeemed, dtype=np.float64)
        if not ((chance >= 0) & (chance <= 1)).all():
            raise ValueError("redeemed must hold probabilities, in [0, 1]")
        size = max(len(values) if values.ndim == 3 else 1 for values in (draws, costs, chance))
        costs, chance = (np.broadcast_to(values, (size, *policy.shape)) for values in (costs, chance))
    table = pd.DataFrame({"value": np.broadcast_to(np.einsum("snk,nk->s", draws, policy), size)})
    if cost is not None and redeemed is None:
        table["spent"] = [np.where(policy > 0, paid * policy, 0).sum() for paid in costs]
    elif cost is not None:
        table["spent"] = _spendings(policy, costs, chance, np.random.default_rng(seed))
    settings: dict[str, Any] = {}
    for name, values in table.items():
        settings |= {f"{name}": values.mean(), f"{name}_sd": values.std()}
        settings |= {f"{name}_low": values.quantile(0.05), f"{name}_high": values.quantile(0.95)}
    if cost is not None:
        settings["p_overspent"] = float((table["spent"] > next(iter(budgets.values()))).mean())
    return Decision(table, pd.DataFrame(), settings, (), distribution)


def _draws(values: ArrayLike, shape: tuple[int, ...], name: str) -> np.ndarray:
    draws = np.asarray(values, dtype=np.float64)
    if draws.ndim != 3 or draws.shape[1:] != shape:
        raise ValueError(f"{name} must be draws [S, {shape[0]}, {shape[1]}], not of shape {draws.shape}")
    return draws


def _spendings(policy: np.ndarray, costs: np.ndarray, chance: np.ndarray, rng: np.random.Generator) -> list[float]:
    """What is really spent in each draw [S]: every customer is given an option, and redeems it or not."""
    edges, rows, sums = policy.cumsum(1), np.arange(len(policy)), []
    for paid, likely in zip(costs, chance, strict=True):
        given = (rng.random(len(policy))[:, None] >= edges).sum(1).clip(max=policy.shape[1] - 1)
        used = rng.random(len(policy)) < likely[rows, given]
        sums.append(float(paid[rows, given][used].sum()))
    return sums
