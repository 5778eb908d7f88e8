"""Kinds of argument: which values of each are wrong, and which are right, whatever their type.

A wrong value is wrong for every argument of its kind, so an argument is described by its kind and its limits alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from generated.world import World

Values = list[tuple[str, Any]]
"""Values, each with the words that name it in a case."""


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    ``wrong`` and ``right`` give values of a world, as many in every one; ``says`` is a pattern that a message may hold
    in place of the argument's name.
    """

    wrong: Callable[[World], Values]
    right: Callable[[World], Values]
    says: str = ""

    def but(self, *names: str) -> "Kind":
        """The same kind, of which some wrong values are right: for an argument that reads them as well."""
        return Kind(lambda world: [pair for pair in self.wrong(world) if pair[0] not in names], self.right, self.says)


def _without(values: Values, optional: bool, *right: Any) -> Values:
    """Leave out None where it is a choice, and what is right after all."""
    kept = [(name, value) for name, value in values if not (value is None and optional)]
    return [(name, value) for name, value in kept if not any(value is known for known in right)]


def count(least: int = 1, most: int | None = None, right: tuple = (), optional: bool = False, says: str = "") -> Kind:
    """A whole number of at least ``least``."""

    def wrong(world: World) -> Values:
        far = int(world.rng.integers(1, 50))
        values = [("too small", least - 1), ("far too small", least - far - 1), ("a fraction", least + far + 0.5)]
        values += [("text", "three"), ("nan", math.nan), ("inf", math.inf), ("True", True), ("None", None)]
        values += [("a list", [least]), ("a small integer of NumPy", np.int8(least - 1)), ("complex", 2 + 1j)]
        if most is not None:
            values += [("too large", most + 1), ("far too large", most + far * 10**6)]
        return _without(values, optional)

    def fine(world: World) -> Values:
        chosen = right or (least, least + 1)
        types = (np.int64, np.int32, np.uint16, int)
        return [(f"{types[k % 4].__name__} {value}", types[k % 4](value)) for k, value in enumerate((*chosen, *chosen))]

    return Kind(wrong, fine, says)


def real(
    right: tuple[float, ...],
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
    infinite: bool = False,
    flag: bool = False,
    says: str = "",
) -> Kind:
    """A number between limits."""

    def wrong(world: World) -> Values:
        far = float(world.rng.exponential(10)) + 0.01
        values: Values = [
            ("text", "much"),
            ("nan", math.nan),
            ("nan of NumPy", np.float32(math.nan)),
            ("-inf", -math.inf),
        ]
        values += [("a dict", {}), ("complex", 1 + 1j), ("None", None)]
        values += [] if infinite else [("inf", math.inf)]
        values += [] if flag else [("True", True)]
        if above is not None or at_least is not None:
            low = above if at_least is None else at_least
            values += [("too small", low - far), ("far too small", low - far * 1e6)]
            values += [("at the limit below", low)] if above is not None else [("just too small", low - 1e-6)]
        if below is not None or at_most is not None:
            high = below if at_most is None else at_most
            values += [("too large", high + far), ("far too large", high + far * 1e6)]
            values += [("at the limit above", high)] if below is not None else [("just too large", high + 1e-6)]
        return _without(values, optional)

    def fine(world: World) -> Values:
        types = (float, np.float64, np.float32)
        values = [(f"{kind.__name__} {value:g}", kind(value)) for value in right for kind in types]
        return values + [(f"int {value:g}", int(value)) for value in right if float(value).is_integer()]

    return Kind(wrong, fine, says)


def share(*right: float, optional: bool = False, says: str = "") -> Kind:
    """A probability that is neither 0 nor 1."""
    return real(right or (0.5, 0.9), above=0, below=1, optional=optional, says=says)


def seed() -> Kind:
    """What a stream of random numbers starts from."""
    return count(0, 2**63 - 1, right=(0, 3, 17))


def flag() -> Kind:
    """True or False."""
    wrong = [("text", "no"), ("2", 2), ("a fraction", 0.5), ("None", None), ("a list", [True])]
    right = [("True", True), ("False", False), ("a flag of NumPy", np.bool_(True))]
    return Kind(lambda world: wrong, lambda world: right)


def option(*right: Any, optional: bool = False, says: str = "", words: bool = False) -> Kind:
    """One of a few words; any word, if ``words``."""
    values = [
        ("a word", "nonsense"),
        ("a number", 3),
        ("nothing", ""),
        ("None", None),
        ("bytes", b"x"),
        ("a list", ["a"]),
    ]
    values += [("other case", right[0].swapcase())] if isinstance(right[0], str) else []
    values = [pair for pair in values if not (words and pair[0] in ("a word", "other case"))]
    return Kind(lambda world: _without(values, optional), lambda world: [(str(value), value) for value in right], says)


def label(*right: Any, says: str = "", several: bool = False, optional: bool = True) -> Kind:
    """One of the labels that there are."""
    values: Values = [("unknown", "nope"), ("a fraction", 0.25), ("nan", math.nan)]
    values += [] if optional else [("None", None)]
    values += [("unknown among known ones", [right[0], "nope"]), ("empty", [])] if several else [("a list", [])]
    return Kind(
        lambda world: values, lambda world: [(repr(value), value) for value in right], says or "nope|0.25|label"
    )


def rows(says: str = "") -> Kind:
    """Row numbers or a mask, of the cells of the world."""

    def wrong(world: World) -> Values:
        n = world.n
        mask = world.rng.random(n) < 0.3
        values = [("one beyond", [n]), ("far beyond", np.array([0, n + 10**6])), ("negative", [-1])]
        values += [
            ("negative among others", np.array([3, -2], dtype="int8")),
            ("fractions", [0.5, 1.5]),
            ("nan", [math.nan]),
        ]
        values += [("names", list(world.names[:3])), ("a short mask", mask[:-1]), ("a long mask", [*mask, True])]
        values += [("two dimensions", [[0, 1], [2, 3]]), ("text", "all"), ("complex", np.ones(2, complex))]
        values += [("times", pd.to_datetime(["2020-01-01"])), ("ragged", [[0], [1, 2]]), ("a dict", {0: 1})]
        return values + [("no one in a mask", np.zeros(n, bool))]

    def right(world: World) -> Values:
        mask = world.rng.random(world.n) < 0.3
        mask[:2] = True
        chosen = np.flatnonzero(mask)
        values = [
            ("list", chosen.tolist()),
            ("mask", mask),
            ("list of flags", mask.tolist()),
            ("uint8", chosen.astype("uint8")),
        ]
        values += [
            ("whole floats", chosen.astype(float)),
            ("in another order", chosen[::-1]),
            ("int32", chosen.astype("int32")),
        ]
        return [*values, ("a range", range(3))]

    return Kind(wrong, right, says or "row|cell|mask")


def column(*right: Any, optional: bool = False, says: str = "") -> Kind:
    """A column of obs, or one value for each cell."""

    def wrong(world: World) -> Values:
        values = [("no such column", "nope"), ("a number", 3), ("too few", np.arange(world.n - 1) % 2)]
        values += [("two dimensions", np.ones((world.n, 2))), ("None", None), ("a mapping", {"a": 1})]
        strangers = pd.Series(np.arange(world.n) % 2, index=[f"stranger{k}" for k in range(world.n)])
        twice = pd.Series(np.arange(world.n) % 2, index=[world.names[0], *world.names[:-1]])
        return _without([*values, ("names of others", strangers), ("a name twice", twice)], optional)

    return Kind(wrong, lambda world: [(str(value), value) for value in right], says or "nope|column|stranger")


def series(make: Callable[[World], np.ndarray], numbers: bool = True, optional: bool = False, says: str = "") -> Kind:
    """One value for each cell, by name where there are names."""

    def wrong(world: World) -> Values:
        values = make(world)
        other = pd.Series(values, index=[f"stranger{k}" for k in range(len(values))])
        twice = pd.Series(values, index=[world.names[0], *world.names[: len(values) - 1]])
        made = [("too few", values[:-1]), ("too many", [*values, values[0]]), ("one", values[0]), ("None", None)]
        made += [("names of others", other), ("a name twice", twice), ("two dimensions", np.stack([values, values], 1))]
        if numbers:
            holed = np.array(values, dtype=float)
            holed[world.rng.integers(len(holed))] = math.nan
            made += [("nan", holed), ("text", ["a"] * len(values)), ("complex", np.asarray(values) * 1j)]
        return _without(made, optional)

    def right(world: World) -> Values:
        values = make(world)
        named = pd.Series(values, index=world.names[: len(values)])
        shuffled = named.iloc[world.rng.permutation(len(values))]
        return [("array", values), ("list", values.tolist()), ("Series", named), ("another order", shuffled)]

    return Kind(wrong, right, says)


def matrix(make: Callable[[World], np.ndarray], ndim: int = 2, says: str = "") -> Kind:
    """Numbers in two or three dimensions, none of them missing."""

    def put(world: World, value: Any, dtype: Any = float) -> np.ndarray:
        values = np.array(make(world), dtype=dtype)
        values[tuple(world.rng.integers(0, size) for size in values.shape)] = value
        return values

    def wrong(world: World) -> Values:
        values = [("nan", put(world, math.nan)), ("words", np.array(make(world)).astype(str).astype(object) + "x")]
        values += [("inf", put(world, math.inf)), ("fewer dimensions", make(world)[0]), ("one number", 3.0)]
        values += [
            ("more dimensions", make(world)[None]),
            ("None", None),
            ("a word", "x"),
            ("complex", make(world) * 1j),
        ]
        return values + [("ragged", [[1.0, 2.0], [3.0]])]

    def right(world: World) -> Values:
        values = make(world)
        wide = np.repeat(values, 2, axis=-1)[..., ::2]
        return [
            ("float64", values),
            ("Fortran order", np.asfortranarray(values)),
            ("strided", wide),
            ("list", values.tolist()),
        ]

    return Kind(wrong, right, says)


def output() -> Kind:
    """Where a file is to be written."""

    def wrong(world: World) -> Values:
        values = [("no such folder", world.folder / "none" / "x"), ("a folder", world.folder), ("a number", 3)]
        return [*values, ("nothing", ""), ("a list", ["x"])]

    def right(world: World) -> Values:
        return [("path", world.path(".made")), ("text", str(world.path(".made")))]

    return Kind(wrong, right, "path|folder|director")


def source() -> Kind:
    """A file that is read."""

    def file(world: World, name: str, content: bytes) -> Path:
        path = world.folder / name
        path.write_bytes(content)
        return path

    def wrong(world: World) -> Values:
        noise = file(world, "noise.bin", world.rng.bytes(500))
        values = [
            ("no such file", world.folder / "absent.bin"),
            ("a folder", world.folder),
            ("a number", 3),
            ("None", None),
        ]
        return values + [
            ("noise", noise),
            ("empty", file(world, "void.bin", b"")),
            ("text", file(world, "words.bin", b"hello")),
        ]

    return Kind(wrong, lambda world: [], "absent|noise|void|words|path|folder|file")


def thing(right: Callable[[World], Any], says: str = "") -> Kind:
    """An object of ours: a posterior, a fit, a decision."""
    values = [("None", None), ("a number", 3), ("text", "x"), ("a list", [1]), ("a frame", pd.DataFrame({"a": [1.0]}))]
    values += [("a dict", {}), ("an array", np.ones(3)), ("a class", dict)]
    return Kind(lambda world: values, lambda world: [("right", right(world))], says)
