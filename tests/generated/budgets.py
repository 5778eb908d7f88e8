"""Allocations under budgets, and responses to what is paid: a row for each function."""

import math
from typing import Any

import numpy as np
import pandas as pd

from fieldguide import catalog, decisions
from generated.kinds import (
    Kind,
    Values,
    count,
    flag,
    matrix,
    option,
    real,
    seed,
    share,
    thing,
)
from generated.policies import bad_tables, good_tables
from generated.rows import Recipe, Row, recipes
from generated.tables import numbers
from generated.world import World

OPTIONS = ["none", "small", "large"]


def rewards(world: World) -> pd.DataFrame:
    """The reward of each option for each customer."""
    table = np.random.default_rng(world.seed + 13).random((12, len(OPTIONS))).cumsum(1)
    return pd.DataFrame(table, index=world.names[:12], columns=OPTIONS)


def costs(world: World) -> pd.DataFrame:
    """What each option costs each customer."""
    return rewards(world) * 0 + [0.0, 1.0, 2.5]


def _named(table: pd.DataFrame, world: World) -> Values:
    turned = table.iloc[world.rng.permutation(len(table))][table.columns[::-1]]
    return [("frame", table), ("single", table.astype("float32")), ("another order", turned)]


def _draws(world: World) -> np.ndarray:
    return rewards(world).to_numpy() + np.random.default_rng(world.seed + 14).random((5, 12, len(OPTIONS)))


BUDGET = Kind(
    real((0.0, 5.0, 7.5), at_least=0).wrong,
    real((0.0, 5.0, 7.5), at_least=0).right,
)
REWARDS = Kind(bad_tables(rewards, whole=False), lambda world: _named(rewards(world), world), "reward|option|customer")
COSTS = Kind(
    lambda world: [*bad_tables(costs, whole=False)(world), ("negative", costs(world) - 1), ("too few", [0.0, 1.0])],
    lambda world: [
        *good_tables(costs)(world),
        ("for all", [0, 1, 2]),
        ("a Series", pd.Series([0.0, 1.0, 2.0], index=OPTIONS)),
    ],
    "cost|option|customer",
)
CHANCES = Kind(
    lambda world: [
        ("above 1", costs(world) + 1),
        ("negative", costs(world) - 5),
        ("nan", costs(world) * math.nan),
        ("a word", "x"),
    ],
    lambda world: [("half", costs(world) * 0 + 0.5), ("None", None), ("an array", np.full((12, 3), 0.25))],
    "redeem|option|customer|probab",
)


def _allocate(world: World, **given: Any) -> Any:
    return numbers(decisions.allocate(**{"reward": rewards(world), "cost": costs(world), "budget": 6.0} | given))


def _allocated(world: World) -> decisions.Allocation:
    return world.once("allocation", lambda: decisions.allocate(rewards(world), costs(world), 6.0))


def _curve(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 15).random((5, 4, 3))


BUDGETS: list[Row] = [
    Row(
        "allocate",
        _allocate,
        {
            "reward": REWARDS,
            "cost": COSTS,
            "budget": BUDGET,
            "integer": flag(),
            "increasing": flag(),
            "redeemed": CHANCES,
            "risk": option("mean"),
            "level": share(0.25),
            "seconds": real((5.0, 60.0), above=0, infinite=True),
        },
        lambda world: (rewards(world), costs(world)),
    ),
    Row(
        "allocate under draws",
        lambda world, **given: numbers(
            decisions.allocate(**{"reward": _draws(world), "cost": [0, 1, 2], "budget": 6} | given)
        ),
        {
            "reward": matrix(_draws, says="option|customer|draw").but("fewer dimensions"),
            "risk": option("mean", "quantile", "cvar"),
            "level": share(0.25, 0.5),
        },
    ),
    Row(
        "Allocation.predict",
        lambda world, **given: _allocated(world).predict(**{"reward": rewards(world), "cost": costs(world)} | given),
        {"reward": REWARDS, "cost": COSTS},
    ),
    Row(
        "Allocation.outcomes",
        lambda world, **given: numbers(_allocated(world).outcomes(**{"reward": _draws(world)} | given)),
        {"reward": matrix(_draws, says="draw|customer|option"), "seed": seed()},
    ),
    Row(
        "response_curve",
        lambda world, **given: numbers(decisions.response_curve(**{"draws": _curve(world)} | given)),
        {
            "draws": matrix(_curve, says="draw|level|customer"),
            "level": share(0.5),
            "cost": Kind(
                lambda world: [
                    ("nan", [0, 1, math.nan]),
                    ("too few", [0, 1]),
                    ("words", list("abc")),
                    ("a number", 3),
                    ("two dimensions", np.ones((2, 3))),
                ],
                lambda world: [("list", [0, 1, 2]), ("array", np.array([0.0, 0.5, 1.0])), ("None", None)],
            ),
            "names": Kind(
                lambda world: [("too few", ["a"]), ("twice", ["a", "a", "b"]), ("a number", 3)],
                lambda world: [("list", list("abc")), ("index", pd.Index(OPTIONS)), ("None", None)],
            ),
        },
    ),
    Row(
        "response",
        lambda world, **given: catalog.response(**{"fitted": world.fit("incentives")} | given),
        {
            "fitted": thing(lambda world: [world.fit("incentives")] * 2, "fit|incentives"),
            "data": Kind(
                lambda world: [
                    ("a number", 3),
                    ("a word", "x"),
                    ("too few features", world.data("incentives")[:, :3].copy()),
                    ("no one", world.data("incentives")[:0].copy()),
                ],
                lambda world: [
                    ("the same", world.data("incentives")),
                    ("another order", world.data("incentives")[::-1].copy()),
                    ("None", None),
                ],
                "AnnData|gene|feature|cell|row",
            ),
        },
        lambda world: (world.data("incentives"),),
    ),
    Row(
        "response_draws",
        lambda world, **given: catalog.response_draws(**{"fitted": world.fit("incentives"), "draws": 3} | given),
        {
            "draws": count(1, right=(1, 4)),
            "seed": seed(),
            "fitted": thing(lambda world: world.fit("incentives"), "fit|incentives"),
        },
    ),
    Row(
        "response_ensemble",
        lambda world, **given: len(
            catalog.response_ensemble(
                **{"data": world.data("incentives"), "members": 2, "max_epochs": 1, "progress": False, "n_hidden": 4}
                | given
            )
        ),
        {"members": count(2, right=(2,)), "seed": seed()},
        lambda world: (world.data("incentives"),),
    ),
]


def budgets() -> list[Recipe]:
    """Allocations and responses."""
    return recipes("budgets", BUDGETS)
