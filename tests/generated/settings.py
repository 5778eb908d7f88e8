"""Settings of a fit, arguments of every entry, objectives and constraints, and what a posterior is asked."""

import math
from typing import Any

import numpy as np
import torch

from fieldguide import inference
from generated.kinds import Kind, count, flag, option, output, real, rows, seed, share, thing
from generated.rows import Recipe, Row, recipes, union
from generated.world import World, asked, fitted

SIZE = count(1, right=(1, 5))
PLAN = {"n_latent": SIZE, "n_hidden": SIZE}
DROPOUT = real((0.0, 0.25), at_least=0, below=1)
WEIGHT = real((0.0, 2.0), at_least=0)
GUIDE = option("mean_field", "full_covariance", "student_t")

ARGUMENTS: dict[str, dict[str, Kind]] = {
    "ppca": {"n_latent": SIZE, "guide": GUIDE},
    "scvi": PLAN
    | {
        "n_layers": count(1, right=(1, 2)),
        "dropout": DROPOUT,
        "likelihood": option("nb", "zinb", "poisson"),
        "dispersion": option("gene", "gene-batch", "gene-cell"),
        "library": option("observed", "latent"),
        "guide": GUIDE,
        "encode_covariates": flag(),
    },
    "hcv": PLAN | {"n_nuisance": SIZE, "likelihood": option("zinb", "nb"), "library": option("observed", "latent")},
    "gimvi": PLAN
    | {
        "masking": DROPOUT,
        "kappa": WEIGHT,
        "efficiency": WEIGHT,
        "encoder": option("common", "by_modality"),
        "features": option("standardised", "log1p"),
        "mixing": option("critic", "mmd", "none"),
        "balance": flag(),
        "n_layers": count(0, right=(0, 1)),
    },
    "m1m2": PLAN
    | {
        "dropout": DROPOUT,
        "classes": option("enumerated", "relaxed"),
        "labelled": real((0.0, 0.05), at_least=0, optional=True),
        "classification": WEIGHT,
        "n_decoder": count(1, right=(3,), optional=True),
        "encoder": option("dense"),
    },
    "mvae": PLAN
    | {
        "n_latent": count(1, right=(2, 3), optional=True),
        "n_second": count(1, right=(2, 3), optional=True),
        "form": option("A", "B", "C"),
        "weight": real((0.0, 1.0), at_least=0, optional=True),
        "speed": real((0.0, 1.0), at_least=0, optional=True),
        "initial": real((0.75, 0.9), above=1 / 3, below=1),
        "diagonal": WEIGHT,
        "classes": option("learned", "uniform"),
    },
    "poxm": {"n_hidden": SIZE, "start": option("uniform", "logging")},
    "incentives": {
        "n_hidden": SIZE,
        "n_representation": SIZE,
        "n_head": SIZE,
        "shape": option("concave", "free"),
        "outcome": option("bernoulli", "normal"),
    },
    "nodags": {
        "activation": option("none", "tanh"),
        "n_hidden": count(0, right=(0, 4)),
        "contraction": share(0.5, 0.75, optional=True),
        "precondition": flag(),
        "log_det": option("exact", "series"),
        "terms": SIZE,
        "stop": real((0.5, 1.0), above=0, at_most=1, optional=True),
        "sparsity": WEIGHT,
    },
    "dcdfg": {
        "rank": count(1, right=(2, 4), optional=True),
        "mechanism": option("mlp", "linear"),
        "interventions": option("perfect", "imperfect"),
        "n_hidden": SIZE,
        "masks": count(1, right=(1, 4), optional=True),
        "prior": share(0.25, 0.5, optional=True),
    },
}
"""What the entries of `world.ENTRIES` are made with: a new entry has a row here too."""

HELD_OUT = union(
    real((0.0, 0.25), at_least=0, below=1, optional=True, says="validation"),
    rows("validation"),
    without=("no one in a mask",),
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
    "progress": flag(),
    "compile": Kind(flag().wrong, lambda world: [("False", False)]),
    "checkpoint": output(),
    "objective": option("elbo", says="objective|step"),
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
    entry = str(world.rng.choice(["ppca", "scvi", "hcv", "m1m2", "mvae", "poxm", "incentives", "nodags", "dcdfg"]))
    if "batch_size" in given and not isinstance(given["batch_size"], str):
        entry = "ppca"
    return asked(entry, world.data(entry), **given)


def _loss(value: Any):
    def loss(step: Any) -> Any:
        return value

    return loss


def _objectives() -> list[Row]:
    """The dataclasses of objectives, rules and measures: made, not used."""
    particles, order = count(1, right=(1, 5)), real((1.5, 2.0), above=1)
    tables: dict[Any, dict[str, Kind]] = {
        inference.ELBO: {
            "particles": particles,
            "gradient": option("reparam", "score"),
            "kl": option("sampled", "analytic"),
        },
        inference.IWAE: {"particles": count(2, right=(2, 5)), "gradient": option("dreg", "reparam")},
        inference.Renyi: {"particles": count(2, right=(2, 5)), "alpha": real((0.25, 0.5, 2.0))},
        inference.VRMax: {"particles": count(2, right=(2, 5))},
        inference.CUBO: {"order": order, "particles": count(2, right=(2, 5)), "anneal": flag(), "fallback": WEIGHT},
        inference.Chi: {
            "order": order,
            "particles": count(2, right=(2, 5)),
            "smooth": option("none"),
            "fallback": WEIGHT,
        },
        inference.ForwardKL: {"particles": count(2, right=(2, 5)), "gradient": option("score")},
        inference.SleepPhi: {"particles": particles},
        inference.WakeWake: {
            "particles": count(2, right=(2, 5)),
            "sleep": real((0.0, 0.5, 1.0), at_least=0, at_most=1),
        },
        inference.OffPolicyValue: {
            "translation": real((-1.0, 0.5)),
            "distinct": count(1),
            "cap": real((1.0, 5.0), above=0, optional=True),
            "variance": WEIGHT,
            "kl": WEIGHT,
        },
        inference.Penalty: {"weight": WEIGHT},
        inference.AugmentedLagrangian: {
            "rho": real((1.0, 0.5), above=0),
            "multiplier": WEIGHT,
            "growth": real((1.0, 2.0), at_least=1),
            "shrink": real((0.5, 1.0), above=0, at_most=1),
            "every": count(1),
        },
        inference.Acyclicity: {
            "kind": option("spectral"),
            "exclusive": flag(),
            "warmup": real((0.0, 0.5), at_least=0, below=1),
        },
        inference.EdgeCount: {"warmup": real((0.0, 0.5, 1.0), at_least=0, at_most=1)},
    }
    return [
        Row(made.__name__, lambda world, made=made, **given: bool(made(**given)), arguments)
        for made, arguments in tables.items()
    ]


def _hsic(world: World, **given: Any) -> Any:
    return bool(inference.hsic("z", "group", **given))


def _own_objective(world: World, **given: Any) -> Any:
    return asked("ppca", world.data("ppca"), **given)


def _permuted(world: World, **given: Any) -> float:
    values = torch.from_numpy(world.rng.normal(size=world.n))
    usual = {"measure": lambda turn: values[turn].sum(), "n": world.n, "permutations": 25}
    return inference.permutation_test(**usual | given).p_value


POSTERIOR: list[Row] = [
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
            "data": thing(lambda world: world.data("scvi")),
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
            "limit": real((0.5, 0.75), infinite=True),
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
            "prior": union(real((0.0, 0.25), at_least=0, below=1, flag=True), without=()),
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
        {"restarts": count(1, right=(1, 2)), "seed": seed(), "validation": HELD_OUT},
    ),
    Row(
        "hsic",
        _hsic,
        {
            "weight": real((0.5, 1.0), at_least=0, optional=True),
            "estimator": option("unbiased", "biased"),
            "sqrt": flag(),
            "features": count(1),
            "seed": seed(),
            "given": option("batch", optional=True),
            "block": count(4, right=(8, 32)),
        },
    ),
    Row(
        "permutation_test",
        _permuted,
        {"permutations": count(19, right=(19, 30)), "level": share(0.25), "seed": seed(), "n": count(2, right=(20,))},
    ),
    Row(
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
    ),
]


def _entries() -> list[Row]:
    return [
        Row(
            entry,
            lambda world, entry=entry, **given: asked(entry, world.data(entry), **given),
            arguments,
            lambda world, entry=entry: (world.data(entry),),
        )
        for entry, arguments in ARGUMENTS.items()
    ]


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


def _sizes() -> Row:
    wrong = Kind(lambda world: [("another", 3), ("none", 0), ("a word", "x"), ("many", 10**6)], lambda world: [])
    return Row(
        "sizes", lambda world, **given: fitted("scvi", world.data("scvi"), **given), {"n_genes": wrong}, plain=False
    )


def settings() -> list[Recipe]:
    """Settings of fits, and arguments of entries."""
    fits = Row("fit", _any_fit, FIT)
    return recipes("settings", [fits, *_entries(), _wrong_entry(), _unknown_argument(), _sizes(), *_objectives()])


def posterior() -> list[Recipe]:
    """What fits and posteriors are asked."""
    return recipes("posterior", POSTERIOR)
