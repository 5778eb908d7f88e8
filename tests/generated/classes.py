"""Decisions on labels: a row each."""

from fieldguide import decisions
from generated.kinds import (
    count,
    option,
    rows,
    seed,
    series,
    share,
    thing,
)
from generated.rows import Recipe, Row, recipes
from generated.tables import (
    COST,
    ESTIMATOR,
    LOSS,
    NAMED,
    PROBABILITIES,
    RATE,
    flags,
    labels,
    numbers,
    of,
    probabilities,
    unit_interval,
    vector,
)

CLASSES: list[Row] = [
    Row(
        "class_probabilities",
        lambda world, **given: decisions.class_probabilities(**{"posterior": world.posterior("m1m2")} | given),
        {"posterior": of("m1m2"), "estimator": ESTIMATOR, "site": option("c"), "cells": rows()},
        lambda world: (world.data("m1m2"),),
    ),
    Row(
        "reject_option",
        lambda world, **given: numbers(decisions.reject_option(**{"source": probabilities(world)} | given)),
        {"source": PROBABILITIES, "cost": COST, "loss": LOSS},
    ),
    Row(
        "reject_option of a posterior",
        lambda world, **given: numbers(decisions.reject_option(world.posterior("m1m2"), **given)),
        {"cost": COST, "estimator": ESTIMATOR, "site": option("c")},
    ),
    Row(
        "decide",
        lambda world, **given: decisions.decide(**{"probability": probabilities(world), "cost": 0.1} | given).astype(
            float
        ),
        {
            "probability": PROBABILITIES.but("classes twice"),
            "cost": COST,
            "loss": LOSS,
        },
    ),
    Row(
        "evaluate_rejection",
        lambda world, **given: numbers(
            decisions.evaluate_rejection(**{"source": probabilities(world), "truth": labels(world)} | given)
        ),
        {"source": NAMED, "truth": series(labels, numbers=False, says="truth|label|cell")},
    ),
    Row(
        "relabel",
        lambda world, **given: numbers(
            decisions.relabel(**{"source": probabilities(world), "labels": labels(world)} | given)
        ),
        {"source": NAMED, "fdr": RATE, "labels": series(labels, numbers=False, optional=True)},
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
            decisions.true_labels(**{"source": probabilities(world), "labels": labels(world)} | given)
        ),
        {"source": NAMED, "labels": series(labels, numbers=False, optional=True)},
    ),
    Row(
        "noise_matrix",
        lambda world, **given: numbers(
            decisions.noise_matrix(**{"source": probabilities(world), "labels": labels(world), "draws": 20} | given)
        ),
        {
            "source": NAMED,
            "labels": series(labels, numbers=False),
            "level": share(0.5),
            "diagonal": COST,
            "draws": count(2, right=(2, 30)),
            "seed": seed(),
        },
    ),
    Row(
        "suspects",
        lambda world, **given: numbers(
            decisions.suspects(**{"decision": decisions.relabel(probabilities(world), labels=labels(world))} | given)
        ),
        {
            "decision": thing(lambda world: decisions.relabel(probabilities(world), labels=labels(world)), "relabel"),
            "n": count(0, right=(0, 5)),
        },
    ),
    Row(
        "calls",
        lambda world, **given: decisions.calls(**{"probability": unit_interval(world)} | given),
        {"fdr": RATE, "probability": vector(unit_interval)},
    ),
    Row(
        "risk_coverage",
        lambda world, **given: decisions.risk_coverage(
            **{"certainty": unit_interval(world), "wrong": flags(world)} | given
        )[1],
        {
            "certainty": vector(unit_interval),
            "wrong": vector(flags),
        },
        plain=False,
    ),
]
"""A new decision on labels joins the generated cases by its row here."""


def classes() -> list[Recipe]:
    """Decisions on labels."""
    return recipes("labels", CLASSES)
