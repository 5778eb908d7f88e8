"""Decisions on perturbed cells, contexts and groups: a row each."""

from typing import Any

from fieldguide import decisions
from generated.kinds import Kind, Values, count, label, option, real, seed
from generated.rows import Recipe, Row, recipes
from generated.tables import RATE, numbers
from generated.world import World


def _fits(entry: str) -> Kind:
    wrong = [("None", None), ("a word", "fit"), ("a number", 3)]

    def others(world: World) -> Values:
        return [*wrong, ("a posterior", world.posterior(entry)), ("of another entry", world.fit("scvi"))]

    return Kind(others, lambda world: [("a fit", world.fit(entry))], "fit|Fit|scvi|perturbations|groups|rho")


def _labels(world: World) -> Values:
    return [("unknown", ["nope"]), ("none", []), ("a word", "p1"), ("a part unknown", ["p1+nope"]), ("None", None)]


LABELS = Kind(
    _labels,
    lambda world: [
        ("one", ["p1"]),
        ("both", ["p1+p2"]),
        ("in another order", ["p2+p1", "control"]),
        ("tuple", ("p2",)),
    ],
    "perturbation|nope",
)
PAIRS = Kind(
    lambda world: [
        ("unknown", [("nope", "p1")]),
        ("an unknown part", [("c1", "p1+nope")]),
        ("a control", [("c1", "control")]),
        ("none", []),
        ("a word", "p1"),
        ("words", ["c1", "p1"]),
        ("three", [("c1", "p1", "p2")]),
        ("a number", 3),
        ("numbers", [1, 2]),
    ],
    lambda world: [("one", [("c1", "p1")]), ("a pair", [("c2", "p1+p2")]), ("lists", [["c1", "p2"], ["c2", "p1"]])],
    "pair|nope",
)
NULL, LEAST = option("empirical", "zero"), real((0.1, 0.5), at_least=0)


def _responses(world: World, **given: Any) -> Any:
    usual = {"fitted": world.fit("fcr"), "pairs": [("c1", "p1")], "draws": 3, "cells": 5}
    return numbers(decisions.context_responses(**usual | given))


def _salient(world: World, **given: Any) -> Any:
    usual = {"fitted": world.fit("comparative"), "group": "B", "draws": 20, "cells": 20}
    return numbers(decisions.salient_genes(**usual | given))


SCREENS: list[Row] = [
    Row(
        "perturbation_targets",
        lambda world, **given: numbers(decisions.perturbation_targets(**{"fitted": world.fit("svae")} | given)),
        {
            "fitted": _fits("svae"),
            "site": option("z", optional=True),
            "rotate": option("none", "ica", "sparse"),
            "min_shift": LEAST,
            "null": NULL,
            "fdr": RATE,
        },
        lambda world: (world.data("svae"),),
    ),
    Row(
        "latent_genes",
        lambda world, **given: decisions.latent_genes(**{"fitted": world.fit("svae"), "cells": 10} | given),
        {"step": real((1.0, 2.0), above=0), "cells": count(1, right=(1, 9)), "seed": seed()},
        lambda world: (world.data("svae"),),
    ),
    Row(
        "predicted_expression",
        lambda world, **given: decisions.predicted_expression(
            **{"fitted": world.fit("svae"), "perturbations": ["p1"], "draws": 10} | given
        ),
        {"perturbations": LABELS, "draws": count(1, right=(1, 9)), "seed": seed()},
        lambda world: (world.data("svae"),),
    ),
    Row(
        "additive_expression",
        lambda world, **given: decisions.additive_expression(
            **{"fitted": world.fit("svae"), "perturbations": ["p1"]} | given
        ),
        {"perturbations": LABELS, "fitted": _fits("svae")},
        lambda world: (world.data("svae"),),
    ),
    Row(
        "context_responses",
        _responses,
        {
            "fitted": _fits("fcr"),
            "pairs": PAIRS,
            "dose": Kind(real((1.0,), at_least=0).wrong, lambda world: [("the largest", 1.0)]),
            "draws": count(2, right=(2, 3)),
            "cells": count(1, right=(1, 9)),
            "seed": seed(),
        },
        lambda world: (world.data("fcr"),),
    ),
    Row(
        "context_effects",
        lambda world, **given: numbers(decisions.context_effects(**{"fitted": world.fit("fcr")} | given)),
        {
            "fitted": _fits("fcr"),
            "site": option("z_tx", "z_t", optional=True),
            "min_effect": LEAST,
            "null": NULL,
            "fdr": RATE,
        },
        lambda world: (world.data("fcr"),),
    ),
    Row(
        "salient_genes",
        _salient,
        {
            "fitted": _fits("comparative"),
            "group": label("A", "B"),
            "site": option("s"),
            "delta": real((0.1, 0.5), above=0),
            "fdr": RATE,
            "draws": count(20, right=(20, 30)),
            "cells": count(2, right=(2, 9)),
            "seed": seed(),
        },
        lambda world: (world.data("comparative"),),
    ),
]


def screens() -> list[Recipe]:
    """Recipes of all rows."""
    return recipes("screens", SCREENS)
