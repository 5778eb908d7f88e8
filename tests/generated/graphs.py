"""Decisions on graphs and their interventions: a row each."""

import math
from typing import Any

import numpy as np
import pandas as pd

from fieldguide import catalog, decisions, inference
from generated.kinds import (
    Kind,
    count,
    flag,
    matrix,
    option,
    real,
    seed,
    thing,
)
from generated.rows import Recipe, Row, recipes
from generated.tables import RATE, edges, numbers, upper
from generated.world import World


def _split(world: World, **given: Any) -> Any:
    return list(inference.split_interventions(world.data("dcdfg"), **given).train.astype(float))


def _under(entry: str):
    def call(world: World, **given: Any) -> Any:
        fit = world.fit(entry)
        genes = list(world.data(entry).var_names)
        usual = {"targets": genes[:1], "values": None if "targets" in given else [1.0], "n": 4}
        if isinstance(given.get("targets"), list | tuple | str | np.ndarray | pd.Index):
            usual["values"] = np.ones(np.size(given["targets"])).tolist()
        return catalog.sample_under(**{"fitted": fit} | usual | given)

    return call


TARGETS = Kind(
    lambda world: [
        ("unknown", ["nope"]),
        ("twice", [world.genes[0]] * 2),
        ("a number", 3),
        ("nested", [[world.genes[0]]]),
        ("None", None),
    ],
    lambda world: [
        ("one", world.genes[0]),
        ("a list", list(world.genes[:2])),
        ("an index", world.genes[:2]),
        ("none", []),
    ],
    "nope|target",
)
FORCED = Kind(
    lambda world: [
        ("nan", [math.nan]),
        ("two", [1.0, 2.0]),
        ("a word", ["x"]),
        ("inf", [math.inf]),
        ("None", None),
        ("ragged", [[1.0], [1.0, 2.0]]),
        ("of another", {"nope": 1.0}),
    ],
    lambda world: [
        ("a list", [0.5]),
        ("an array", np.array([2])),
        ("single", np.float32([2])),
        ("by name", {world.genes[0]: 0.5}),
    ],
    "target|nope",
)

GRAPHS: list[Row] = [
    Row(
        "causal_graph",
        lambda world, **given: numbers(decisions.causal_graph(**{"source": edges(world)} | given)),
        {
            "source": matrix(edges, says="edge|probab|source|genes|graph"),
            "threshold": real((0.0, 0.5, 1.0), at_least=0, at_most=1),
            "acyclic": flag(),
            "genes": Kind(
                lambda world: [
                    ("too few", ["a", "b"]),
                    ("twice", ["a", "a", "b", "c", "d"]),
                    ("a number", 3),
                    ("text", "abcd"),
                ],
                lambda world: [("list", list("abcde")), ("index", world.genes[:5])],
            ),
        },
    ),
    Row(
        "causal_graph of a fit",
        lambda world, **given: numbers(decisions.causal_graph(**{"source": world.fit("dcdfg")} | given)),
        {
            "threshold": real((0.0, 0.5, 1.0), at_least=0, at_most=1),
            "acyclic": flag(),
            "source": thing(lambda world: world.fit("dcdfg"), "graph|fit|edge|probab|source").but("a frame"),
        },
    ),
    Row(
        "graph_ensemble",
        lambda world, **given: numbers(decisions.graph_ensemble(**{"sources": [world.fit("dcdfg")] * 2} | given)),
        {
            "sources": thing(lambda world: [world.fit("dcdfg")] * 3, "graph|fit|source|member|edge"),
            "threshold": real((0.25, 0.5), at_least=0, at_most=1),
            "acyclic": flag(),
        },
    ),
    Row(
        "graph_scores",
        lambda world, **given: (
            numbers(decisions.graph_scores(**{"estimated": upper(world), "true": np.triu(np.ones((5, 5)), 1)} | given))
            is not None
        ),
        {
            "estimated": matrix(upper, says="graph|edge|genes|estimated"),
            "true": matrix(upper, says="graph|edge|genes|true"),
            "sid": Kind(
                lambda world: [("text", "yes"), ("2", 2)],
                lambda world: [("True", True), ("False", False), ("None", None)],
            ),
        },
    ),
    Row(
        "interventional_scores",
        lambda world, **given: numbers(decisions.interventional_scores(**{"fitted": world.fit("dcdfg")} | given)),
        {
            "fitted": thing(lambda world: world.fit("nodags"), "fit"),
            "data": thing(lambda world: world.data("dcdfg")).but("None"),
        },
        lambda world: (world.data("dcdfg"),),
    ),
    Row(
        "sample_under",
        _under("dcdfg"),
        {
            "fitted": thing(lambda world: world.fit("nodags"), "fit"),
            "targets": TARGETS,
            "values": FORCED,
            "n": count(1, right=(1, 5)),
            "seed": seed(),
        },
    ),
    Row(
        "sample_under of a graph with cycles",
        _under("nodags"),
        {
            "targets": TARGETS,
            "values": FORCED,
            "tolerance": real((0.5, 0.0009765625), above=0),
            "max_iterations": count(1, right=(5000,)),
        },
    ),
    Row(
        "edge_strengths",
        lambda world, **given: catalog.edge_strengths(**{"fitted": world.fit("nodags")} | given),
        {
            "fitted": thing(lambda world: world.fit("nodags"), "fit|nodags"),
            "kind": option("jacobian", "weights"),
            "batch_size": count(1, right=(7, 300)),
        },
    ),
    Row(
        "split_interventions",
        _split,
        {
            "held_out": Kind(
                lambda world: [
                    ("unknown", ["nope"]),
                    ("all", 1.0),
                    ("none", 0.0),
                    ("negative", -1),
                    ("many", 99),
                    ("text", "x"),
                    ("nan", math.nan),
                    ("None", None),
                ],
                lambda world: [("share", 0.5), ("one", 1), ("by name", [world.genes[1]]), ("of NumPy", np.int64(1))],
                "held.out|nope",
            ),
            "seed": seed(),
            "validation": RATE,
            "least": count(1, right=(1, 2)),
            "place": option("targets", optional=True, says="targets"),
            "separator": option(",", optional=True, words=True),
        },
        lambda world: (world.data("dcdfg"),),
    ),
]
"""A new decision on graphs joins the generated cases by its row here."""


def graphs() -> list[Recipe]:
    """Decisions on graphs."""
    return recipes("graphs", GRAPHS)
