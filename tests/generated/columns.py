"""Columns of cells, field by field, and the places where fields may live."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from fieldguide import catalog
from generated.cases import Case
from generated.rows import Recipe
from generated.world import ENTRIES, World, asked

Column = tuple[str, str, Callable[[World, int], Any]]
"""Valid, invalid or either; what it holds; and its values in so many cells."""


def _some(values: np.ndarray, missing: Any, dtype: Any = object) -> Any:
    """Values of which the fourth is missing."""
    changed = list(values)
    changed[3] = missing
    return pd.array(changed, dtype=dtype) if isinstance(dtype, str) else pd.Series(changed, dtype=dtype).to_numpy()


def _halves(world: World, n: int) -> np.ndarray:
    return world.rng.permutation(np.arange(n) % 2)


def _words(world: World, n: int) -> np.ndarray:
    return np.array(["left", "right"], dtype=object)[_halves(world, n)]


def _numbers(world: World, n: int) -> np.ndarray:
    return world.rng.normal(size=n) + 5


WAYS: list[Column] = [
    ("valid", "text", _words),
    ("valid", "categories", lambda world, n: pd.Categorical(_words(world, n), categories=["right", "left", "never"])),
    ("valid", "ordered", lambda world, n: pd.Categorical(_words(world, n), categories=["right", "left"], ordered=True)),
    ("valid", "whole numbers", _halves),
    ("valid", "int8", lambda world, n: _halves(world, n).astype("int8")),
    ("valid", "floats", lambda world, n: _halves(world, n) + 0.5),
    ("valid", "flags", lambda world, n: _halves(world, n) == 1),
    ("valid", "numbers as categories", lambda world, n: pd.Categorical(_halves(world, n))),
    ("valid", "nullable numbers", lambda world, n: pd.array(_halves(world, n), dtype="Int64")),
    ("valid", "nullable text", lambda world, n: pd.array(_words(world, n), dtype="string")),
    ("valid", "signs", lambda world, n: np.array(["β, <b>", "x\ny"], dtype=object)[_halves(world, n)]),
]
"""How categories are written."""
MISSING: list[Column] = [
    ("invalid", "None", lambda world, n: _some(_words(world, n), None)),
    ("invalid", "nan", lambda world, n: _some(_halves(world, n), math.nan, float)),
    ("invalid", "a missing category", lambda world, n: pd.Categorical(_some(_words(world, n), None))),
    ("invalid", "NA of numbers", lambda world, n: _some(_halves(world, n), pd.NA, "Int64")),
    ("invalid", "NA of text", lambda world, n: _some(_words(world, n), pd.NA, "string")),
]
MEASURES: list[Column] = [
    ("valid", "floats", _numbers),
    ("valid", "single", lambda world, n: _numbers(world, n).astype("float32")),
    ("valid", "whole numbers", lambda world, n: world.rng.integers(1, 9, n)),
    ("valid", "nullable", lambda world, n: pd.array(_numbers(world, n), dtype="Float64")),
    ("invalid", "nan", lambda world, n: _some(_numbers(world, n), math.nan, float)),
    ("invalid", "inf", lambda world, n: _some(_numbers(world, n), math.inf, float)),
    ("invalid", "NA", lambda world, n: _some(_numbers(world, n), pd.NA, "Float64")),
    ("invalid", "a word", lambda world, n: _some(_numbers(world, n), "x")),
    ("invalid", "words", _words),
    ("invalid", "complex", lambda world, n: _numbers(world, n) * 1j),
    ("invalid", "infinite in single precision", lambda world, n: _some(_numbers(world, n), 1e300, float)),
]
CONSTANT: list[Column] = [("invalid", "a constant", lambda world, n: np.full(n, 3.0))]
NOT_POSITIVE: list[Column] = [
    ("invalid", "zero", lambda world, n: _some(np.abs(_numbers(world, n)), 0.0, float)),
    ("invalid", "negative", lambda world, n: _some(np.abs(_numbers(world, n)), -2.0, float)),
]
ONE: list[Column] = [("invalid", "one value", lambda world, n: ["same"] * n)]
NONE: list[Column] = [("invalid", "all missing", lambda world, n: np.full(n, math.nan))]
TARGETS: list[Column] = [
    ("valid", "missing is control", lambda world, n: _some(_genes(world, n), None)),
    ("valid", "NA is control", lambda world, n: _some(_genes(world, n), pd.NA, "string")),
    ("valid", "two genes", lambda world, n: _some(_genes(world, n), f"{world.genes[0]},{world.genes[1]}")),
    ("valid", "the word control", lambda world, n: _some(_genes(world, n), "control")),
    ("valid", "categories", lambda world, n: pd.Categorical(_genes(world, n))),
    ("invalid", "an unknown gene", lambda world, n: _some(_genes(world, n), "nope")),
    ("invalid", "a number", lambda world, n: np.arange(n) % 3 + 0.5),
]


def _genes(world: World, n: int) -> np.ndarray:
    return np.array(["", *world.genes[:3]], dtype=object)[world.rng.permutation(n) % 4]


CATEGORY, PARTLY = WAYS + MISSING + NONE, WAYS + ONE + NONE
SCREENED: list[Column] = [
    *CATEGORY,
    ("valid", "two at once", lambda world, n: np.array(["a", "b", "a+b"], dtype=object)[world.rng.permutation(n) % 3]),
    ("invalid", "a plus sign", lambda world, n: _some(_words(world, n), "+")),
]
CONTROLLED: list[Column] = [
    *MISSING,
    *NONE,
    (
        "valid",
        "controls",
        lambda world, n: np.array(["ctrl", "a", "a+b", "b"], dtype=object)[world.rng.permutation(n) % 4],
    ),
    ("invalid", "no control", lambda world, n: np.array(["a", "b"], dtype=object)[world.rng.permutation(n) % 2]),
]
COLUMNS: dict[tuple[str, str], list[Column]] = {
    ("scvi", "batch"): CATEGORY,
    ("scvi", "labels"): CATEGORY,
    ("scvi", "categorical"): CATEGORY,
    ("scvi", "continuous"): MEASURES + CONSTANT,
    ("scvi", "size_factor"): MEASURES + NOT_POSITIVE,
    ("hcv", "quality"): MEASURES + CONSTANT,
    ("gimvi", "batch"): CATEGORY,
    ("m1m2", "labels"): PARTLY,
    ("mvae", "labels"): PARTLY,
    ("incentives", "level"): MISSING + ONE + NONE,
    ("incentives", "weight"): MEASURES + NOT_POSITIVE,
    ("svae", "perturbation"): SCREENED,
    ("svae", "batch"): CATEGORY,
    ("fcr", "perturbation"): CONTROLLED,
    ("fcr", "context"): CATEGORY,
    ("comparative", "group"): CATEGORY + ONE,
    ("comparative", "batch"): CATEGORY,
    ("scbd", "label"): CATEGORY + ONE,
    ("scbd", "environment"): CATEGORY + ONE,
    ("image_ivae", "label"): CATEGORY,
    ("grape", "label"): CATEGORY + ONE,
    ("grape_vi", "label"): CATEGORY,
    ("grape_vi", "environment"): CATEGORY,
    ("image_ivae", "environment"): CATEGORY,
    ("nodags", "targets"): TARGETS,
    ("dcdfg", "targets"): TARGETS,
}
"""The fields of the entries: a new one joins by its row."""


def _column(entry: str, field: str, column: Column) -> Recipe:
    kind, name, values = column

    def recipe(world: World) -> Case:
        data = world.new(entry)
        data.obs["own"] = values(world, data.n_obs)
        culprit = f"own|{re.escape(field)}|{re.escape(data.obs_names[3])}"
        return Case(
            "columns", f"{entry}: {field} of {name}", kind, lambda: asked(entry, data, {field: "own"}), culprit, (data,)
        )

    return recipe


def places(entry: str) -> list[Recipe]:
    """Where a field may not live."""
    fields = catalog.get(entry).schema.fields
    first = next((name for name, field in fields.items() if not field.optional), next(iter(fields)))
    wrong: dict[str, tuple[Any, str]] = {
        "an unknown field": ({"nope": "q1"}, "nope"),
        "no such layer": ({first: "layers/none"}, "layers|none"),
        "no such obsm": ({first: "obsm/none"}, "obsm|none"),
        "no such column": ({first: "nope"}, "nope"),
        "gibberish": ({first: "a/b/c"}, f"a/b/c|{first}"),
        "a number": ({first: 3}, first),
        "numbers": ({first: [1, 2]}, first),
        "nothing": ({first: ""}, first),
        "needed, and off": ({first: None}, first),
        "a word": ("batch", "fields"),
        "a list": (["batch"], "fields"),
        "a key that is no word": ({3: "q1"}, "3|fields"),
    }

    def recipe(name: str) -> Recipe:
        given, culprit = wrong[name]
        return lambda world: Case(
            "columns",
            f"{entry}: place, {name}",
            "invalid",
            lambda: asked(entry, world.data(entry), given),
            culprit,
            (world.data(entry),),
        )

    return [recipe(name) for name in wrong if not (entry == "mvae" and name == "needed, and off" and first != "labels")]


def columns() -> list[Recipe]:
    """Every column of every field, and every place."""
    made = [_column(*key, column) for key, kinds in COLUMNS.items() for column in kinds]
    return made + [recipe for entry in ENTRIES for recipe in places(entry)]
