"""Decisions on expression and imputation: a row each."""

import math
from typing import Any

import numpy as np
import pandas as pd

from fieldguide import decisions, inference
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
from generated.tables import ESTIMATOR, RATE, labels, latents, numbers, of, unit_interval
from generated.world import World, assays


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
    by = given.get("groupby")
    if not isinstance(by, str):
        usual["group"] = "A" if by is None else 1
    elif by in ("number", "yes"):
        usual["group"] = {"number": 1, "yes": True}[by]

    return numbers(decisions.differential_expression(**usual | given))


def _by_mask(world: World, **given: Any) -> Any:
    return numbers(decisions.differential_expression(world.posterior("scvi"), None, draws=150, **given))


def _of_numbers(world: World, **given: Any) -> Any:
    return numbers(decisions.differential_expression(world.posterior("scvi"), "number", draws=150, **given))


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
SHARED = Kind(
    GENES.wrong,
    lambda world: [("in another order", list(world.genes[-4::-1])), ("an index", world.genes[:-3])],
    GENES.says,
)


def _joined(world: World, **given: Any) -> Any:
    return inference.join_modalities(**{"modalities": world.once("assays", lambda: assays(world))} | given).X.toarray()


EXPRESSION: list[Row] = [
    Row(
        "differential_expression",
        _expression,
        {
            "posterior": of("scvi"),
            "groupby": column("group", "number", "yes", says="groupby|stranger|nope"),
            "group": label("A", ["A", "B"], says="nope|group", several=True, optional=False),
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
                    "latents": pd.DataFrame(latents(world), index=world.names),
                    "nuisance": {"own": unit_interval(world)},
                    "trees": 2,
                    "permutations": 19,
                    "folds": 2,
                    "least": 4,
                }
                | given
            )
        ),
        {
            "latents": matrix(latents, says="latent|site|cell"),
            "folds": count(2, right=(2,)),
            "trees": count(1, right=(1, 2)),
            "permutations": count(19, right=(19,)),
            "seed": seed(),
            "cells": count(4, right=(30,)),
            "given": series(labels, numbers=False, optional=True),
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
                    ("numbers", {"own": unit_interval(world)}),
                    ("labels", {"kind": labels(world)}),
                    ("Series", {"own": pd.Series(unit_interval(world), index=world.names)}),
                ],
                "own|obs|q1",
            ),
        },
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
            "batch": option("batch", optional=True),
            "genes": SHARED,
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
]
"""A new decision joins the generated cases by a row here, or in the file of its question."""


def expression() -> list[Recipe]:
    """Decisions on expression and imputation."""
    return recipes("expression", EXPRESSION)
