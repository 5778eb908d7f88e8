"""Arguments of every entry, and of objectives and constraints."""

from typing import Any

from fieldguide import inference
from generated.kinds import Kind, count, flag, option, real, share
from generated.rows import Recipe, Row, recipes
from generated.world import asked, fitted

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
    "svae": PLAN
    | {
        "n_layers": count(1, right=(1, 2)),
        "dropout": DROPOUT,
        "prior": option("svae+", "ivae", "vae"),
        "mask": option("exact"),
        "sparsity": WEIGHT,
        "alpha": real((1.0, 9.0), at_least=1, optional=True),
        "rotate": option("none", "ica", "sparse"),
        "guide": GUIDE,
    },
    "fcr": {
        "n_latent_x": count(0, right=(0, 2)),
        "n_latent_tx": count(0, right=(1, 3)),
        "n_latent_t": count(0, right=(0, 2)),
        "n_hidden": SIZE,
        "n_layers": count(1, right=(1, 2)),
        "dropout": DROPOUT,
        "axes": option("turned", "free"),
        "interaction": option("free", "centred"),
        "labels": Kind(flag().wrong, lambda world: [("no", False)]),
        "critic": WEIGHT,
    },
    "comparative": PLAN
    | {
        "n_salient": SIZE,
        "n_layers": count(1, right=(1, 2)),
        "dropout": DROPOUT,
        "table": Kind(
            lambda world: [("a word", "pairs"), ("a number", 3), ("None", None), ("flat", [1, 1]), ("no rows", [])],
            lambda world: [("multigroup", "multigroup"), ("three groups", [[1, 0], [1, 1], [1, 1]])],
        ),
        "dimensions": option("learned", "fixed"),
        "least": real((0.0, 0.25), at_least=0, below=1),
        "balance": flag(),
        "likelihood": option("nb", "zinb", "poisson"),
    },
    "scbd": {
        "n_latent": count(1, right=(2, 5)),
        "depth": count(1, right=(1, 2)),
        "stem": option("small", "imagenet"),
        "alpha": WEIGHT,
        "invariance": option("ce", "count", "batch"),
        "within": flag(),
        "spurious": option("environment", "both"),
        "tau": real((0.1, 1.0), above=0),
        "itself": flag(),
        "partners": count(0, right=(0, 2, 5)),
        "memory": count(0, right=(0, 7)),
        "decoder": option("none", "cut", "joint"),
        "likelihood": option("normal", "bernoulli"),
        "stochastic": flag(),
        "augment": flag(),
    },
    "grape": {
        "n_row": SIZE,
        "n_noise": SIZE,
        "n_style": SIZE,
        "width": SIZE,
        "halvings": count(0, right=(0, 1, 2)),
        "mapping_width": SIZE,
        "mapping_layers": count(1, right=(1, 3)),
        "style": WEIGHT,
        "cycle": WEIGHT,
        "diversity": WEIGHT,
        "penalty": WEIGHT,
        "averaging": DROPOUT,
        "partners": count(0, right=(0, 2, 5)),
        "augment": flag(),
    },
    "grape_vi": {
        "n_latent": SIZE,
        "n_style": SIZE,
        "n_embedding": SIZE,
        "depth": count(1, right=(1, 2)),
        "stem": option("small", "imagenet"),
        "alpha": WEIGHT,
        "likelihood": option("normal", "bernoulli"),
        "partners": count(0, right=(0, 2, 5)),
        "augment": flag(),
    },
    "image_ivae": {
        "n_latent": SIZE,
        "n_spurious": count(0, right=(0, 3)),
        "prior": option("labels", "standard"),
        "sees_environment": flag(),
        "depth": count(1, right=(1, 2)),
        "stem": option("small", "imagenet"),
        "likelihood": option("normal", "bernoulli"),
    },
    "poxm": {"n_hidden": SIZE, "start": option("uniform", "logging")},
    "incentives": {
        "n_hidden": SIZE,
        "n_representation": SIZE,
        "n_head": SIZE,
        "shape": option("concave", "monotone", "plain"),
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


def _objectives() -> list[Row]:
    """The dataclasses of objectives, rules and measures: made, not used."""
    particles, order = count(1, right=(1, 5)), real((1.5, 2.0), above=1)
    tables: dict[Any, dict[str, Kind]] = {
        inference.ELBO: {
            "particles": particles,
            "gradient": option("reparam"),
            "kl": option("sampled", "analytic"),
        },
        inference.IWAE: {"particles": count(1, right=(2, 5)), "gradient": option("dreg", "reparam")},
        inference.Renyi: {"particles": count(1, right=(2, 5)), "alpha": real((0.25, 0.5, 2.0))},
        inference.VRMax: {"particles": count(1, right=(2, 5))},
        inference.CUBO: {"order": order, "particles": count(1, right=(2, 5)), "anneal": flag(), "fallback": WEIGHT},
        inference.Chi: {
            "order": order,
            "particles": count(1, right=(2, 5)),
            "smooth": option("none"),
            "fallback": WEIGHT,
        },
        inference.ForwardKL: {"particles": count(1, right=(2, 5)), "gradient": option("score")},
        inference.SleepPhi: {"particles": particles},
        inference.WakeWake: {
            "particles": count(1, right=(2, 5)),
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


def arguments() -> list[Recipe]:
    """Arguments of entries, objectives and constraints."""
    return recipes("arguments", [*_entries(), _sizes(), *_objectives()])


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


def _sizes() -> Row:
    wrong = Kind(lambda world: [("another", 3), ("none", 0), ("a word", "x"), ("many", 10**6)], lambda world: [])
    return Row(
        "sizes", lambda world, **given: fitted("scvi", world.data("scvi"), **given), {"n_genes": wrong}, plain=False
    )
