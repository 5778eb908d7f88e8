"""Settings of a fit."""

from typing import Any

import torch

from fieldguide import inference
from generated.kinds import Kind, count, flag, option, output, real, rows, seed
from generated.rows import Recipe, Row, recipes, union
from generated.world import ENTRIES, World, asked

HELD_OUT = union(
    real((0.0, 0.25), at_least=0, below=1, optional=True, says="validation"), rows("validation").but("no one in a mask")
)


FIT: dict[str, Kind] = {
    "max_epochs": count(1, right=(1, 2), optional=True),
    "batch_size": count(1, right=(8, 100)),
    "learning_rate": real((0.25, 0.0009765625), above=0, optional=True),
    "epsilon": real((0.5, 0.0009765625), above=0, optional=True),
    "cooldown": real((0.0, 0.5, 1.0), at_least=0, at_most=1, optional=True),
    "seed": seed(),
    "device": option("cpu", "auto"),
    "validation": HELD_OUT,
    "early_stopping": count(1, right=(1, 30), optional=True),
    "kl_warmup": count(0, right=(0, 5), optional=True),
    "progress": flag().but("None"),
    "compile": Kind(flag().but("None").wrong, lambda world: [("False", False)]),
    "checkpoint": output(),
    "objective": option("elbo", optional=True, says="objective|step"),
    "constraints": Kind(
        lambda world: [("a word", "nope"), ("a number", 3), ("a list of numbers", [3]), ("a class", dict)],
        lambda world: [("none", ()), ("None", None), ("hsic", [inference.hsic("z", "group", weight=1.0)])][:2],
        "constraint|hsic",
    ),
    "callbacks": Kind(
        lambda world: [("a number", 3), ("a list of numbers", [3]), ("a word", "stop"), ("None inside", [None])],
        lambda world: [("one that stops", [lambda *_: True]), ("none", ())],
    ),
    "fields": Kind(
        lambda world: [("a word", "batch"), ("a list", ["batch"]), ("a number", 3), ("unknown", {"nope": "q1"})],
        lambda world: [("None", None), ("empty", {})],
        "nope",
    ),
}


def _any_fit(world: World, **given: Any) -> Any:
    """Fit an entry that may have the setting, which one by lot."""
    entry = str(world.rng.choice([name for name in ENTRIES if name != "gimvi"]))
    if "batch_size" in given and not isinstance(given["batch_size"], str):
        entry = "ppca"
    return asked(entry, world.data(entry), **given)


def _loss(value: Any):
    def loss(step: Any) -> Any:
        return value

    return loss


def _own_objective(world: World, **given: Any) -> Any:
    return asked("ppca", world.data("ppca"), **given)


OWN = Row(
    "objectives of one's own",
    _own_objective,
    {
        "objective": Kind(
            lambda world: [
                ("nothing", _loss(None)),
                ("an empty dict", _loss({})),
                ("another group", _loss({"nope": torch.zeros(())})),
                ("a loss for each cell", _loss(torch.zeros(3))),
                ("a constant", _loss(torch.zeros(()))),
                ("a number", _loss(1.0)),
                ("an object", object()),
                ("a list", ["elbo"]),
                ("a class", inference.ELBO),
            ],
            lambda world: [(name, name) for name in ("elbo", "iwae", "renyi", "vrmax", "wake", "chi", "cubo")],
            "loss|gradient|step|theta|phi",
        )
    },
)


def _wrong_entry() -> Row:
    values = [
        ("unknown", "nope"),
        ("a number", 3),
        ("None", None),
        ("a class", object),
        ("a function", len),
        ("empty", ""),
    ]
    kind = Kind(lambda world: values, lambda world: [(name, name) for name in ("ppca",)], "program|catalog|nope")
    return Row(
        "fit",
        lambda world, **given: inference.fit(
            **{"data": world.data("ppca"), "max_epochs": 1, "progress": False} | given
        ),
        {"entry": kind},
        plain=False,
    )


def _unknown_argument() -> Row:
    kind = Kind(lambda world: [("given", 1)], lambda world: [])
    return Row("arguments", _any_fit, {"nope": kind, "n_cells": kind, "latent": kind}, plain=False)


def settings() -> list[Recipe]:
    """Settings of fits, and arguments of entries."""
    fits = Row("fit", _any_fit, FIT)
    return recipes("settings", [fits, OWN, _wrong_entry(), _unknown_argument()])
