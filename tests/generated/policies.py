"""Logs and policies: a row for each function."""

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
    rows,
    seed,
    share,
    thing,
)
from generated.rows import Recipe, Row, recipes
from generated.tables import numbers
from generated.world import World

ACTIONS = list("abcd")


def shares(world: World) -> pd.DataFrame:
    """The logging policy: a probability of each action in each context."""
    rng = np.random.default_rng(world.seed + 10)
    table = rng.dirichlet(np.full(len(ACTIONS), 3.0), world.n)
    return pd.DataFrame(table, index=world.names, columns=ACTIONS)


def logged(world: World) -> pd.DataFrame:
    """The log that it left."""
    rng, chance = np.random.default_rng(world.seed + 11), shares(world).to_numpy()
    taken = np.array([rng.choice(len(ACTIONS), p=row) for row in chance])
    drawn = chance[np.arange(world.n), taken]
    reward = rng.permutation(np.arange(world.n) % 2).astype(float)
    return pd.DataFrame({"action": np.array(ACTIONS)[taken], "reward": reward, "propensity": drawn}, index=world.names)


def log(world: World) -> decisions.BanditLog:
    """The same, read."""
    return world.once("log", lambda: decisions.BanditLog.read(logged(world), actions=ACTIONS))


def context(world: World) -> np.ndarray:
    """Features of each context."""
    return np.random.default_rng(world.seed + 12).normal(size=(world.n, 3))


def _cell(table: pd.DataFrame, world: World, column: str, value: Any) -> pd.DataFrame:
    changed = table.astype({column: object})
    changed.loc[table.index[world.rng.integers(len(table))], column] = value
    return changed


def _bad_logs(world: World) -> Values:
    table = logged(world)
    values: Values = [(f"no {column}", table.drop(columns=column)) for column in table.columns]
    for column, wrong in {
        "reward": (math.nan, math.inf, "x", None),
        "propensity": (math.nan, 0.0, 1.5, -0.1, "x", None, math.inf),
        "action": (None, "nope", math.nan),
    }.items():
        values += [(f"{column} of {value!r}", _cell(table, world, column, value)) for value in wrong]
    return [*values, ("no rows", table[:0]), ("None", None), ("an array", table.to_numpy()), ("a number", 3)]


def _good_logs(world: World) -> Values:
    table = logged(world)
    kind = pd.CategoricalDtype(ACTIONS)
    values = [
        ("as it is", table),
        ("categories", table.astype({"action": kind})),
        ("single", table.astype({"reward": "float32"})),
    ]
    values += [("whole rewards", table.astype({"reward": int})), ("flags", table.astype({"reward": bool}))]
    return [*values, ("more columns", table.assign(extra=1)), ("nullable", table.convert_dtypes())]


def _policies(world: World, *, one: bool = True) -> Values:
    table = shares(world)
    turned = table.iloc[world.rng.permutation(world.n)][ACTIONS[::-1]]
    values = [
        ("frame", table),
        ("another order", turned),
        ("array", table.to_numpy()),
        ("single", table.astype("float32")),
    ]
    return values + ([("Series", table.iloc[0]), ("list", table.iloc[0].tolist())] if one else [])


def _bad_policies(world: World) -> Values:
    table = shares(world)
    values = [("not summing to one", table * 2), ("negative", table - 0.5), ("an action missing", table[ACTIONS[:3]])]
    values += [
        ("a row missing", table[1:]),
        ("three columns", table.to_numpy()[:, :3]),
        ("None", None),
        ("a word", "x"),
    ]
    values += [
        ("words", table.astype(str) + "x"),
        ("an action twice", table.set_axis(list("aabc"), axis=1)),
        ("a number", 1.0),
    ]
    values += [
        ("nan", _cell(table, world, "a", math.nan)),
        ("inf", _cell(table, world, "b", math.inf)),
        ("a dict", {"a": 1.0}),
    ]
    return [*values, ("complex", table.to_numpy() * 1j), ("three dimensions", table.to_numpy()[None])]


def bad_tables(make: Any, whole: bool = True):
    def values(world: World) -> Values:
        table = make(world)
        name = str(table.columns[1])
        found: Values = [(f"{value!r}", _cell(table, world, name, value)) for value in (math.nan, "x", None)]
        found += [("one dimension less", 3.0), ("a word", "x"), ("None", None), ("complex", table.to_numpy() * 1j)]
        found += [("an option twice", table.set_axis([name] * table.shape[1], axis=1)), ("no rows", table[:0])]
        return found + ([("a row missing", table[1:])] if whole else [])

    return values


def good_tables(make: Any):
    def values(world: World) -> Values:
        table = make(world)
        return [
            ("frame", table),
            ("array", table.to_numpy()),
            ("single", table.astype("float32")),
            ("list", table.values.tolist()),
        ]

    return values


def _evaluate(world: World, **given: Any) -> Any:
    usual = {"log": log(world), "policy": shares(world), "resamples": 30}
    usual |= {"logging": shares(world)} if "top" in given else {}
    return numbers(decisions.evaluate_policy(**usual | given))


def _learn(world: World, **given: Any) -> Any:
    usual = {"log": log(world), "context": context(world), "logging": shares(world), "top": 2}
    quick = {"max_epochs": 1, "n_hidden": 4, "progress": False}
    return numbers(catalog.learn_policy(**usual | quick | given).table)


def slates(world: World) -> pd.DataFrame:
    """A log of two different actions a context, with the propensities of single draws."""
    rng, chance = np.random.default_rng(world.seed + 13), shares(world).to_numpy()
    taken = np.array([rng.choice(len(ACTIONS), 2, replace=False, p=row) for row in chance])
    drawn = np.take_along_axis(chance, taken, 1)
    reward = rng.integers(0, 2, taken.shape).astype(float)
    columns = {"a1": np.array(ACTIONS)[taken[:, 0]], "a2": np.array(ACTIONS)[taken[:, 1]]}
    columns |= {"r1": reward[:, 0], "r2": reward[:, 1], "p1": drawn[:, 0], "p2": drawn[:, 1]}
    return pd.DataFrame(columns, index=world.names)


def _of_slates(world: World, **given: Any) -> Any:
    usual = {"action": ["a1", "a2"], "reward": ["r1", "r2"], "propensity": ["p1", "p2"], "design": "plackett_luce"}
    log = decisions.BanditLog.read(**{"data": slates(world), "actions": ACTIONS} | usual | given)
    return numbers(decisions.evaluate_policy(log, shares(world), resamples=20))


def _bad_slates(world: World) -> Values:
    table = slates(world)
    values: Values = [(f"no {column}", table.drop(columns=column)) for column in table.columns]
    values += [("an action twice", table.assign(a2=table["a1"])), ("too probable", table.assign(p1=0.7, p2=0.7))]
    return [
        *values,
        ("a missing action", _cell(table, world, "a2", None)),
        ("nan", _cell(table, world, "r2", math.nan)),
    ]


def _columns(*right: str) -> Kind:
    wrong = [("one", right[0]), ("three", [*right, right[0]]), ("unknown", [right[0], "nope"]), ("a number", 3)]
    return Kind(lambda world: wrong, lambda world: [("a tuple", right)], "nope|action|reward|propensit|column|shape")


POLICIES: list[Row] = [
    Row(
        "slates",
        _of_slates,
        {
            "data": Kind(
                _bad_slates,
                lambda world: [("another order", slates(world)[["p2", "a1", "r1", "a2", "p1", "r2"]])],
                "a1|a2|r1|r2|p1|p2|action|propensit|reward",
            ),
            "design": option("plackett_luce"),
            "action": _columns("a1", "a2"),
            "reward": _columns("r1", "r2"),
            "propensity": _columns("p1", "p2"),
        },
        lambda world: (slates(world),),
    ),
    Row("BanditLog.take", lambda world, **given: log(world).take(**{"rows": [0]} | given).reward, {"rows": rows()}),
    Row(
        "BanditLog.read",
        lambda world, **given: decisions.BanditLog.read(**{"data": logged(world), "actions": ACTIONS} | given).reward,
        {
            "data": Kind(_bad_logs, _good_logs, "reward|propensity|action|row|rows|log"),
            "design": option("iid", "plackett_luce"),
            "actions": Kind(
                lambda world: [
                    ("too few", ["a", "b"]),
                    ("twice", ["a", *ACTIONS]),
                    ("others", list("wxyz")),
                    ("a number", 3),
                ],
                lambda world: [("None", None), ("an index", pd.Index(ACTIONS)), ("more", [*ACTIONS, "e"])],
                "action",
            ),
            "reward": option("reward"),
            "action": option("action"),
            "propensity": option("propensity"),
        },
        lambda world: (logged(world),),
    ),
    Row(
        "evaluate_policy",
        _evaluate,
        {
            "log": thing(log, "log"),
            "policy": Kind(_bad_policies, _policies, "policy|row|action"),
            "logging": Kind(
                lambda world: [pair for pair in _bad_policies(world) if pair[1] is not None],
                lambda world: _policies(world, one=False),
                "logging|row|action|propensit",
            ),
            "top": count(1, right=(1, 3), optional=True),
            "level": share(0.5, 0.9),
            "interval": option("bootstrap", "bernstein", "normal"),
            "resamples": count(1, right=(20, 30)),
            "seed": seed(),
            "estimators": Kind(
                lambda world: [
                    ("unknown", ["nope"]),
                    ("a number", 3),
                    ("numbers", [3]),
                    ("what needs a model", ["dm"]),
                ],
                lambda world: [("two", ["ips", "snips"]), ("None", None)],
                "nope|dm|estimator",
            ),
            "reward_model": Kind(bad_tables(shares), good_tables(shares), "reward.model|action|row").but("None"),
        },
        lambda world: (log(world).reward, shares(world)),
    ),
    Row(
        "predict_rewards",
        lambda world, **given: decisions.predict_rewards(**{"log": log(world), "context": context(world)} | given),
        {
            "log": thing(log, "log"),
            "context": matrix(context, says="context|row|feature"),
            "folds": count(2, right=(2, 3)),
            "seed": seed(),
        },
    ),
    Row(
        "learn_policy",
        _learn,
        {
            "log": thing(log, "log"),
            "context": matrix(context, says="context|row|feature"),
            "logging": Kind(
                _bad_policies, lambda world: _policies(world, one=False)[:2], "logging|row|action|propensit"
            ),
            "top": Kind(
                lambda world: [
                    ("none", 0),
                    ("negative", -1),
                    ("a word", "nope"),
                    ("a share", "q2"),
                    ("nan", math.nan),
                    ("a fraction", 1.5),
                ],
                lambda world: [("one", 1), ("of NumPy", np.int64(2))],
            ),
            "held_out": share(0.25, 0.5),
            "estimator": option("snips", "ips"),
            "self_normalise": flag(),
            "level": share(0.5),
            "seed": seed(),
            "max_epochs": count(1, right=(1,), optional=True),
            "nope": Kind(lambda world: [("given", 1)], lambda world: []),
        },
        lambda world: (context(world), shares(world)),
    ),
]


def policies() -> list[Recipe]:
    """Logs and policies."""
    return recipes("policies", POLICIES)
