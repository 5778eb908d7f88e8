"""What decisions on cells read: tables of probabilities, labels, latents and edges, right and wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from generated.kinds import (
    Kind,
    Values,
    option,
    real,
    thing,
)
from generated.world import World

ESTIMATOR = option("plugin", "snis")
COST = real((0.0, 0.25, 2.0), at_least=0)
RATE = real((0.0, 0.25), at_least=0, below=1)


def of(entry: str) -> Kind:
    """A posterior of an entry."""
    return thing(lambda world: world.posterior(entry))


def numbers(decision: Any) -> Any:
    """What must be finite in the table of a decision: numbers that are missing by design are left out."""
    found = getattr(decision, "table", decision)
    return found.select_dtypes("number").fillna(0) if isinstance(found, pd.DataFrame) else found


def probabilities(world: World) -> pd.DataFrame:
    values = np.random.default_rng(world.seed).dirichlet(np.ones(3), world.n)
    return pd.DataFrame(values, index=world.names, columns=list("ABC"))


def damaged(world: World) -> Values:
    values: Values = []
    for name, wrong in (("nan", math.nan), ("above 1", 1.5), ("negative", -0.2), ("inf", math.inf)):
        changed = probabilities(world)
        changed.iloc[int(world.rng.integers(world.n)), int(world.rng.integers(3))] = wrong
        values.append((name, changed))
    one = probabilities(world).iloc[:, 0]
    values += [
        ("one dimension", one.to_numpy()),
        ("words", probabilities(world).astype(str) + "x"),
        ("empty", probabilities(world)[:0]),
    ]
    return values + [
        ("None", None),
        ("a number", 3),
        ("a word", "x"),
        ("classes twice", probabilities(world).set_axis(["A", "A", "B"], axis=1)),
    ]


def tables(world: World) -> Values:
    one = probabilities(world)
    return [
        ("frame", one),
        ("array", one.to_numpy()),
        ("single", one.astype("float32")),
        ("list", one.values.tolist()),
    ]


PROBABILITIES = Kind(damaged, tables, "probab|posterior|class|cell|row")
NAMED = Kind(damaged, lambda world: tables(world)[:1], "probab|posterior|class|cell|row|label")
"""Probabilities that stand beside labels, whose classes have names."""


def vector(make: Callable[[World], np.ndarray], says: str = "") -> Kind:
    """One number for each thing, none of them named."""

    def wrong(world: World) -> Values:
        values = np.array(make(world), dtype=float)
        holed = values.copy()
        holed[int(world.rng.integers(len(values)))] = math.nan
        made: Values = [("nan", holed), ("words", ["x"] * len(values)), ("complex", values * 1j), ("None", None)]
        return [
            *made,
            ("two dimensions", np.stack([values, values], 1)),
            ("a word", "x"),
            ("ragged", [[1.0], [1.0, 2.0]]),
        ]

    def right(world: World) -> Values:
        values = make(world)
        return [("array", values), ("list", values.tolist()), ("Series", pd.Series(values, index=world.names))]

    return Kind(wrong, right, says)


def labels(world: World) -> np.ndarray:
    return np.array(list("ABC"), dtype=object)[np.random.default_rng(world.seed + 1).integers(0, 3, world.n)]


def unit_interval(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 2).random(world.n)


def flags(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 3).random(world.n) < 0.5


def latents(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 4).normal(size=(world.n, 2))


def edges(world: World) -> np.ndarray:
    found = np.random.default_rng(world.seed + 5).random((5, 5))
    return np.where(np.eye(5) > 0, 0.0, found)


def upper(world: World) -> np.ndarray:
    return np.triu(edges(world) > 0.4, 1).astype(float)


LOSS = Kind(
    lambda world: [
        ("two classes", np.ones((2, 2))),
        ("nan", np.full((3, 3), math.nan)),
        ("inf", np.full((3, 3), math.inf)),
        ("a number", 1.0),
        ("words", [["a"] * 3] * 3),
        ("ragged", [[1], [1, 2], [3]]),
    ],
    lambda world: [("zero and one", 1 - np.eye(3)), ("whole", 1 - np.eye(3, dtype=int)), ("None", None)],
)
