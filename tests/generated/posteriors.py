"""What fits and posteriors are asked: a row for each method."""

import math
from typing import Any

import numpy as np
import torch

from fieldguide import inference
from generated.kinds import (
    Kind,
    count,
    flag,
    option,
    real,
    rows,
    seed,
    share,
    thing,
)
from generated.rows import Recipe, Row, recipes
from generated.settings import HELD_OUT
from generated.world import World


def _hsic(world: World, **given: Any) -> Any:
    return bool(inference.hsic("z", "group", **given))


def _permuted(world: World, **given: Any) -> float:
    values = torch.from_numpy(world.rng.normal(size=world.n))
    usual = {"measure": lambda turn: values[turn].sum(), "n": world.n, "permutations": 25}
    return inference.permutation_test(**usual | given).p_value


def _refit(world: World, **given: Any) -> Any:
    usual = {"objective": "iwae", "max_epochs": 1, "progress": False}
    return world.fit("ppca").refit(**usual | given).latent(world.data("ppca"))


def _study(world: World, **given: Any) -> inference.Comparison:
    usual = {"entry": "ppca", "data": world.data("ppca"), "objectives": ["elbo", "iwae"], "draws": 30}
    return inference.compare(**usual | {"max_epochs": 1, "progress": False} | given)


def _three_steps(world: World, **given: Any) -> Any:
    usual = {"study": world.once("study", lambda: _study(world)), "max_epochs": 1, "progress": False}
    return inference.three_step(**usual | given).table["bound"]


def _of_mixture(world: World, **given: Any) -> Any:
    mixture = inference.mix([world.fit("ppca")] * 2, [0.5, 0.5])
    return mixture.posterior(**{"data": world.data("ppca"), "particles": 20} | given).log_weights


FAMILY = Kind(
    lambda world: [("a word", "nope"), ("a number", 3), ("nothing", "")],
    lambda world: [("None", None), ("student", "student_t")],
    "guide|famil|nope",
)
OBJECTIVES = Kind(
    lambda world: [
        ("unknown", ["elbo", "nope"]),
        ("a number", 3),
        ("numbers", [3]),
        ("none", []),
        ("a dict of numbers", {"a": 3}),
    ],
    lambda world: [
        ("one", ["elbo"]),
        ("twice", ["elbo", "elbo"]),
        ("named", {"a": "elbo", "b": inference.IWAE(2)}),
        ("a tuple", ("elbo", "chi")),
    ],
    "nope|objective|3",
)


POSTERIOR: list[Row] = [
    Row(
        "Fit.refit",
        _refit,
        {
            "objective": option("iwae", "elbo", says="objective|step|loss"),
            "guide": FAMILY,
            "max_epochs": count(1, right=(1, 2), optional=True),
            "batch_size": count(1, right=(8,), optional=True),
            "learning_rate": real((0.25,), above=0, optional=True),
            "seed": seed().but("None"),
            "device": option("cpu", "auto"),
            "progress": flag().but("None"),
            "nope": Kind(lambda world: [("given", 1)], lambda world: []),
        },
    ),
    Row(
        "Fit.held_out_loss",
        lambda world, **given: world.fit("ppca").held_out_loss(**given),
        {"batch_size": count(1, right=(3,))},
    ),
    Row(
        "compare",
        lambda world, **given: _study(world, **given).table["bound"],
        {
            "objectives": OBJECTIVES,
            "particles": count(1, right=(2, 3), optional=True),
            "draws": count(1, right=(30, 40)),
            "cells": count(1, right=(5, 500)),
            "validation": Kind(HELD_OUT.wrong, real((0.125, 0.25), above=0).right),
            "seed": seed(),
            "progress": flag().but("None"),
            "max_epochs": count(1, right=(1, 2), optional=True),
        },
        lambda world: (world.data("ppca"),),
    ),
    Row(
        "three_step",
        _three_steps,
        {
            "study": thing(lambda world: world.once("study", lambda: _study(world)), "study|comparison"),
            "guide": FAMILY,
            "weights": option("optimised", "equal", optional=True),
            "prior": real((0.0, 0.25), at_least=0, below=1, flag=True),
            "progress": flag().but("None"),
            "max_epochs": count(1, right=(1, 2), optional=True),
        },
    ),
    Row(
        "Mixture.posterior",
        _of_mixture,
        {
            "particles": count(3, right=(3, 20)),
            "seed": seed(),
            "data": thing(lambda world: world.data("ppca")).but("None"),
        },
        lambda world: (world.data("ppca"),),
    ),
    Row(
        "Fit.posterior",
        lambda world, **given: world.fit("scvi").posterior(**{"particles": 5} | given).log_weights,
        {"particles": count(1, right=(1, 5)), "seed": seed()},
        lambda world: (world.data("scvi"),),
    ),
    Row(
        "Fit.latent",
        lambda world, **given: world.fit("scvi").latent(**given),
        {
            "site": option("z", optional=True),
            "batch_size": count(1, right=(7, 500)),
            "data": thing(lambda world: world.data("scvi")).but("None"),
        },
        lambda world: (world.data("scvi"),),
    ),
    Row(
        "Fit.bound",
        lambda world, **given: world.fit("scvi").bound(**given),
        {"objective": option("elbo", "iwae", optional=True), "seed": seed(), "batch_size": count(1, right=(7, 500))},
    ),
    Row(
        "Posterior.expect",
        lambda world, **given: world.posterior("scvi").expect(**{"function": lambda sites: sites["z"]} | given),
        {
            "function": thing(lambda world: lambda sites: sites["rho"], "function|callable"),
            "cells": rows(),
            "estimator": option("snis", "plugin"),
            "overrides": Kind(
                lambda world: [
                    ("an unknown field", {"nope": 1}),
                    ("a code beyond", {"batch": 7}),
                    ("a negative code", {"batch": -1}),
                    ("a fraction", {"batch": 0.5}),
                    ("nan", {"batch": math.nan}),
                    ("text", "batch"),
                    ("a list", ["batch"]),
                    ("a number", 3),
                    ("an unknown label", {"batch": "nope"}),
                ],
                lambda world: [("a code", {"batch": 1}), ("of NumPy", {"batch": np.int64(0)}), ("none", {})],
                "nope|batch",
            ),
        },
    ),
    Row(
        "Posterior.draw",
        lambda world, **given: world.posterior("scvi").draw(**{"site": "z"} | given),
        {
            "site": option("z", "rho"),
            "draws": count(1, right=(1, 9), optional=True),
            "resample": flag(),
            "cells": rows(),
        },
    ),
    Row(
        "Posterior.refine",
        lambda world, **given: (
            world.posterior("ppca").refine(**{"temperatures": 2, "leapfrog": 1, "progress": False} | given).log_weights
        ),
        {
            "leapfrog": count(1, right=(1, 2)),
            "temperatures": count(1, right=(2, 3)),
            "step_size": real((0.0625, 0.125), above=0),
            "limit": real((0.5, 0.75)).but("inf", "-inf"),
            "progress": flag(),
        },
    ),
    Row(
        "Posterior.to_arviz",
        lambda world, **given: world.posterior("scvi").to_arviz(**given) is not None,
        {"cells": rows()},
    ),
    Row(
        "mix",
        lambda world, **given: (
            inference.mix(**{"fits": [world.fit("scvi")] * 2, "data": world.data("scvi")} | given) is not None
        ),
        {
            "fits": thing(lambda world: [world.fit("ppca"), world.fit("ppca")], "fit"),
            "prior": real((0.0, 0.25), at_least=0, below=1, flag=True),
            "seed": seed(),
            "weights": Kind(
                lambda world: [
                    ("nan", [0.5, math.nan]),
                    ("negative", [1.5, -0.5]),
                    ("three", [0.2, 0.3, 0.5]),
                    ("a word", "nope"),
                ],
                lambda world: [("shares", [0.25, 0.75]), ("an array", np.array([0.5, 0.5])), ("None", None)],
            ),
        },
    ),
    Row(
        "fit_best",
        lambda world, **given: inference.fit_best(
            **{"restarts": 2, "entry": "ppca", "data": world.data("ppca"), "max_epochs": 1, "progress": False} | given
        ).latent(),
        {"restarts": count(1, right=(1, 2)), "seed": seed(), "validation": Kind(HELD_OUT.wrong, rows().right)},
    ),
    Row(
        "hsic",
        _hsic,
        {
            "weight": real((0.5, 1.0), at_least=0, optional=True),
            "estimator": option("unbiased", "v", "block", "rff"),
            "sqrt": Kind(flag().wrong, lambda world: [("False", False)]),
            "features": count(1),
            "seed": seed(),
            "given": option("batch", optional=True, words=True),
            "block": count(4, right=(8, 32)),
        },
    ),
    Row(
        "permutation_test",
        _permuted,
        {"permutations": count(19, right=(19, 30)), "level": share(0.25), "seed": seed(), "n": count(2, right=(20,))},
    ),
]


def posterior() -> list[Recipe]:
    """What fits and posteriors are asked."""
    return recipes("posterior", POSTERIOR)
