"""Decisions on expression, labels, imputation and graphs: a row each."""

import math
from typing import Any

import numpy as np
import pandas as pd

from fieldguide import catalog, decisions, inference
from generated.kinds import (
    Kind,
    Values,
    column,
    count,
    flag,
    label,
    matrix,
    option,
    real,
    rows,
    seed,
    series,
    share,
    thing,
)
from generated.rows import Recipe, Row, recipes
from generated.world import World, assays

ESTIMATOR = option("plugin", "snis")
COST = real((0.0, 0.25, 2.0), at_least=0)
RATE = real((0.0, 0.25), at_least=0, below=1)


def of(entry: str) -> Kind:
    """A posterior of an entry."""
    return thing(lambda world: world.posterior(entry))


def numbers(decision: Any) -> Any:
    """What must be finite in the table of a decision: numbers that are missing by design are left out."""
    table = getattr(decision, "table", decision)
    return table.select_dtypes("number").fillna(0) if isinstance(table, pd.DataFrame) else table


def _groups(world: World) -> Values:
    n, rng = world.n, world.rng
    mask = rng.random(n) < 0.4
    wrong = [("a short mask", mask[:-1]), ("row numbers", np.arange(5)), ("a label", "A"), ("all", np.ones(n, bool))]
    return [*wrong, ("none", np.zeros(n, bool)), ("numbers", mask * 2.0), ("None", None), ("a number", 3)]


def _masks(world: World) -> Values:
    mask = world.rng.random(world.n) < 0.4
    mask[:3], mask[3:6] = True, False
    turned = pd.Series(mask, index=world.names).iloc[world.rng.permutation(world.n)]
    return [("mask", mask), ("list", mask.tolist()), ("Series", turned)]


def _expression(world: World, **given: Any) -> Any:
    usual = {"posterior": world.posterior("scvi"), "groupby": "group", "group": "A", "draws": 150}
    if "groupby" in given and given["groupby"] in ("number", "yes"):
        usual["group"] = {"number": 1, "yes": True}[given["groupby"]]
    elif isinstance(given.get("groupby"), np.ndarray | list | pd.Series):
        usual["group"] = 1
    return numbers(decisions.differential_expression(**usual | given))


def _by_mask(world: World, **given: Any) -> Any:
    return numbers(decisions.differential_expression(world.posterior("scvi"), None, draws=150, **given))


def _of_numbers(world: World, **given: Any) -> Any:
    return numbers(decisions.differential_expression(world.posterior("scvi"), "number", draws=150, **given))


def _table(world: World) -> pd.DataFrame:
    values = np.random.default_rng(world.seed).dirichlet(np.ones(3), world.n)
    return pd.DataFrame(values, index=world.names, columns=list("ABC"))


def _damaged(world: World) -> Values:
    values: Values = []
    for name, wrong in (("nan", math.nan), ("above 1", 1.5), ("negative", -0.2), ("inf", math.inf)):
        table = _table(world)
        table.iloc[int(world.rng.integers(world.n)), int(world.rng.integers(3))] = wrong
        values.append((name, table))
    one = _table(world).iloc[:, 0]
    values += [
        ("one dimension", one.to_numpy()),
        ("words", _table(world).astype(str) + "x"),
        ("empty", _table(world)[:0]),
    ]
    return values + [
        ("None", None),
        ("a number", 3),
        ("a word", "x"),
        ("classes twice", _table(world).set_axis(["A", "A", "B"], axis=1)),
    ]


def _tables(world: World) -> Values:
    table = _table(world)
    return [
        ("frame", table),
        ("array", table.to_numpy()),
        ("single", table.astype("float32")),
        ("list", table.values.tolist()),
    ]


PROBABILITIES = Kind(_damaged, _tables, "probab|posterior|class|cell|row")


def _labels(world: World) -> np.ndarray:
    return np.array(list("ABC"), dtype=object)[np.random.default_rng(world.seed + 1).integers(0, 3, world.n)]


def _unit_interval(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 2).random(world.n)


def _flags(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 3).random(world.n) < 0.5


def _latents(world: World) -> np.ndarray:
    return np.random.default_rng(world.seed + 4).normal(size=(world.n, 2))


def _edges(world: World) -> np.ndarray:
    found = np.random.default_rng(world.seed + 5).random((5, 5))
    return np.where(np.eye(5) > 0, 0.0, found)


def _upper(world: World) -> np.ndarray:
    return np.triu(_edges(world) > 0.4, 1).astype(float)


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
GENES = Kind(
    lambda world: [
        ("unknown", ["nope"]),
        ("empty", []),
        ("twice", [world.genes[-1]] * 2),
        ("a number", 3),
        ("numbers", [0, 1]),
    ],
    lambda world: [
        ("one", [world.genes[-1]]),
        ("an index", world.genes[-2:]),
        ("an array", world.genes[-2:].to_numpy()),
    ],
    "nope|gene",
)


def _split(world: World, **given: Any) -> Any:
    return list(inference.split_interventions(world.data("dcdfg"), **given).train.astype(float))


def _joined(world: World, **given: Any) -> Any:
    return inference.join_modalities(**{"modalities": world.once("assays", lambda: assays(world))} | given).X.toarray()


def _under(entry: str):
    def call(world: World, **given: Any) -> Any:
        fit = world.fit(entry)
        genes = list(world.data(entry).var_names)
        usual = {"targets": genes[:1], "values": None if "targets" in given else [1.0], "n": 4}
        if isinstance(given.get("targets"), list | tuple | str | np.ndarray | pd.Index):
            usual["values"] = np.ones(np.size(given["targets"])).tolist()
        return catalog.sample_under(fit, **usual | given)

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
    "nope",
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

DECISIONS: list[Row] = [
    Row(
        "differential_expression",
        _expression,
        {
            "posterior": of("scvi"),
            "groupby": column("group", "number", "yes", says="groupby|stranger|nope"),
            "group": label("A", ["A", "B"], says="nope|group", several=True),
            "reference": label("B", ["B", "C"], says="nope|reference"),
            "mode": option("change", "vanilla"),
            "delta": real((0.0, 0.5), at_least=0, optional=True),
            "fdr": RATE,
            "test": option("three", "two"),
            "estimator": ESTIMATOR,
            "unit": option("group", "cells", "donor", optional=True),
            "scale": option("proportions", "counts"),
            "batch_correction": Kind(
                lambda world: [("unknown", ["nope"]), ("a number", 3), ("a fraction", 0.5), ("a dict", {"b": 1})],
                lambda world: [("True", True), ("False", False), ("one", ["b0"]), ("a label", "b1"), ("None", None)],
                "batch|nope",
            ),
            "nuisance": Kind(
                lambda world: [("unknown", "nope"), ("a number", 3), ("unknown among", ["nope"])],
                lambda world: [("None", None), ("False", False)],
                "nope|site",
            ),
            "calibrate": flag(),
            "draws": count(100, right=(100, 150)),
            "pseudo": real((0.25, 0.0009765625), above=0, optional=True),
            "seed": seed(),
        },
        lambda world: (world.data("scvi"),),
    ),
    Row(
        "differential_expression of a mask", _by_mask, {"group": Kind(_groups, _masks, "group|mask|cell")}, plain=False
    ),
    Row(
        "differential_expression of numbers",
        _of_numbers,
        {
            "group": Kind(
                lambda world: [("unknown", 7), ("a fraction", 0.5), ("nan", math.nan), ("text", "x")],
                lambda world: [("int", 1), ("text", "1"), ("float", 1.0), ("of NumPy", np.int8(2))],
                "group|label",
            )
        },
        plain=False,
    ),
    Row(
        "denoised_expression",
        lambda world, **given: decisions.denoised_expression(**{"posterior": world.posterior("scvi")} | given).table,
        {
            "posterior": of("scvi"),
            "scale": real((1.0, 0.5, 10000.0), above=0),
            "batch": label("b0", ["b0", "b1"], says="batch|nope"),
            "estimator": ESTIMATOR,
            "cells": rows(),
            "nuisance": Kind(
                lambda world: [("unknown", "nope"), ("a number", 3)], lambda world: [("False", False)], "nope|site"
            ),
        },
    ),
    Row(
        "impute",
        lambda world, **given: decisions.impute(**{"posterior": world.posterior("scvi"), "draws": 5} | given).table,
        {
            "posterior": of("scvi"),
            "estimator": ESTIMATOR,
            "cells": rows(),
            "interval": RATE,
            "draws": count(1, right=(1, 5)),
        },
    ),
    Row(
        "posterior_predictive_check",
        lambda world, **given: numbers(
            decisions.posterior_predictive_check(**{"posterior": world.posterior("scvi"), "draws": 4} | given)
        ),
        {"posterior": of("scvi"), "draws": count(2, right=(2, 4)), "estimator": ESTIMATOR, "cells": rows()},
    ),
    Row(
        "independence",
        lambda world, **given: numbers(
            decisions.independence(
                **{
                    "latents": _latents(world),
                    "nuisance": {"own": _unit_interval(world)},
                    "trees": 2,
                    "permutations": 19,
                    "folds": 2,
                    "least": 4,
                }
                | given
            )
        ),
        {
            "latents": matrix(_latents, says="latent|site|cell"),
            "folds": count(2, right=(2,)),
            "trees": count(1, right=(1, 2)),
            "permutations": count(19, right=(19,)),
            "seed": seed(),
            "cells": count(4, right=(30,)),
            "given": series(_labels, numbers=False, optional=True),
            "nuisance": Kind(
                lambda world: [
                    ("nan", {"own": np.full(world.n, math.nan)}),
                    ("constant", {"own": np.ones(world.n)}),
                    ("too few", {"own": np.arange(world.n - 1.0)}),
                    ("a column without obs", ["q1"]),
                    ("a number", 3),
                    ("None", None),
                    ("empty", {}),
                ],
                lambda world: [
                    ("numbers", {"own": _unit_interval(world)}),
                    ("labels", {"kind": _labels(world)}),
                    ("Series", {"own": pd.Series(_unit_interval(world))}),
                ],
                "own|obs|q1",
            ),
        },
    ),
    Row(
        "class_probabilities",
        lambda world, **given: decisions.class_probabilities(**{"posterior": world.posterior("m1m2")} | given),
        {"posterior": of("m1m2"), "estimator": ESTIMATOR, "site": option("c"), "cells": rows()},
        lambda world: (world.data("m1m2"),),
    ),
    Row(
        "reject_option",
        lambda world, **given: numbers(decisions.reject_option(**{"source": _table(world)} | given)),
        {"source": PROBABILITIES, "cost": COST, "loss": LOSS},
    ),
    Row(
        "reject_option of a posterior",
        lambda world, **given: numbers(decisions.reject_option(world.posterior("m1m2"), **given)),
        {"cost": COST, "estimator": ESTIMATOR, "site": option("c")},
    ),
    Row(
        "decide",
        lambda world, **given: decisions.decide(**{"probability": _table(world), "cost": 0.1} | given).astype(float),
        {"probability": PROBABILITIES, "cost": COST, "loss": LOSS},
    ),
    Row(
        "evaluate_rejection",
        lambda world, **given: numbers(
            decisions.evaluate_rejection(**{"source": _table(world), "truth": _labels(world)} | given)
        ),
        {"source": PROBABILITIES, "truth": series(_labels, numbers=False, says="truth|label|cell")},
    ),
    Row(
        "relabel",
        lambda world, **given: numbers(
            decisions.relabel(**{"source": _table(world), "labels": _labels(world)} | given)
        ),
        {"source": PROBABILITIES, "fdr": RATE, "labels": series(_labels, numbers=False)},
    ),
    Row(
        "relabel of a posterior",
        lambda world, **given: numbers(decisions.relabel(world.posterior("mvae"), **given)),
        {"fdr": RATE, "estimator": ESTIMATOR, "annotator": option("labels", optional=True)},
        lambda world: (world.data("mvae"),),
    ),
    Row(
        "true_labels",
        lambda world, **given: numbers(
            decisions.true_labels(**{"source": _table(world), "labels": _labels(world)} | given)
        ),
        {"source": PROBABILITIES, "labels": series(_labels, numbers=False)},
    ),
    Row(
        "noise_matrix",
        lambda world, **given: numbers(
            decisions.noise_matrix(**{"source": _table(world), "labels": _labels(world), "draws": 20} | given)
        ),
        {
            "source": PROBABILITIES,
            "labels": series(_labels, numbers=False),
            "level": share(0.5),
            "diagonal": COST,
            "draws": count(2, right=(2, 30)),
            "seed": seed(),
        },
    ),
    Row(
        "suspects",
        lambda world, **given: numbers(
            decisions.suspects(**{"decision": decisions.relabel(_table(world), labels=_labels(world))} | given)
        ),
        {
            "decision": thing(lambda world: decisions.relabel(_table(world), labels=_labels(world)), "relabel"),
            "n": count(0, right=(0, 5)),
        },
    ),
    Row("calls", lambda world, **given: decisions.calls(_unit_interval(world), **given), {"fdr": RATE}),
    Row(
        "risk_coverage",
        lambda world, **given: decisions.risk_coverage(
            **{"certainty": _unit_interval(world), "wrong": _flags(world)} | given
        )[1],
        {
            "certainty": series(_unit_interval),
            "wrong": Kind(
                lambda world: [
                    ("too few", _flags(world)[:-1]),
                    ("nan", np.full(world.n, math.nan)),
                    ("words", ["no"] * world.n),
                    ("None", None),
                ],
                lambda world: [("flags", _flags(world)), ("list", _flags(world).tolist())],
            ),
        },
        plain=False,
    ),
    Row(
        "impute_genes",
        lambda world, **given: numbers(
            decisions.impute_genes(**{"posterior": world.posterior("gimvi"), "draws": 5, "trust": False} | given)
        ),
        {
            "posterior": of("gimvi"),
            "modality": label("spatial", says="modalit|nope"),
            "genes": GENES,
            "head": option("blend", "model", "kernel"),
            "interval": share(0.5),
            "draws": count(2, right=(2, 5)),
            "efficiency": real((0.0, 0.5), at_least=0, optional=True),
            "estimator": ESTIMATOR,
            "trust": flag(),
        },
        lambda world: (world.data("gimvi"),),
    ),
    Row(
        "join_modalities",
        _joined,
        {
            "modalities": thing(assays, "modalit|AnnData"),
            "batch": column("batch", optional=True, says="batch|nope"),
            "genes": GENES,
            "hide": Kind(
                lambda world: [
                    ("unknown gene", {"seq": ["nope"]}),
                    ("unknown assay", {"nope": [world.genes[0]]}),
                    ("a list", ["x"]),
                    ("a word", "x"),
                ],
                lambda world: [("one", {"spatial": [world.genes[0]]}), ("none", {}), ("None", None)],
                "nope|hide",
            ),
        },
        lambda world: tuple(world.once("assays", lambda: assays(world)).values()),
    ),
    Row(
        "causal_graph",
        lambda world, **given: numbers(decisions.causal_graph(**{"source": _edges(world)} | given)),
        {
            "source": matrix(_edges, says="edge|probab|source|genes|graph"),
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
            "source": thing(lambda world: world.fit("dcdfg"), "graph|fit|edge|probab|source"),
        },
    ),
    Row(
        "graph_ensemble",
        lambda world, **given: numbers(decisions.graph_ensemble(**{"sources": [world.fit("dcdfg")] * 2} | given)),
        {
            "sources": thing(lambda world: [world.fit("dcdfg")] * 3, "graph|fit|source|member"),
            "threshold": real((0.25, 0.5), at_least=0, at_most=1),
            "acyclic": flag(),
        },
    ),
    Row(
        "graph_scores",
        lambda world, **given: (
            numbers(decisions.graph_scores(**{"estimated": _upper(world), "true": np.triu(np.ones((5, 5)), 1)} | given))
            is not None
        ),
        {
            "estimated": matrix(_upper, says="graph|edge|genes|estimated"),
            "true": matrix(_upper, says="graph|edge|genes|true"),
            "sid": Kind(
                lambda world: [("text", "yes"), ("2", 2)],
                lambda world: [("True", True), ("False", False), ("None", None)],
            ),
        },
    ),
    Row(
        "interventional_scores",
        lambda world, **given: numbers(decisions.interventional_scores(**{"fitted": world.fit("dcdfg")} | given)),
        {"fitted": thing(lambda world: world.fit("nodags"), "fit"), "data": thing(lambda world: world.data("dcdfg"))},
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
            "separator": option(",", optional=True),
        },
        lambda world: (world.data("dcdfg"),),
    ),
]
"""A new decision joins the generated cases by its row here; those on policies and budgets are in `money.py`."""


def decisions_on_cells() -> list[Recipe]:
    """Decisions on expression, labels, imputation and graphs."""
    return recipes("decisions", DECISIONS)
