"""Files that commands read, and files that they cannot."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from generated.kinds import (
    Values,
)
from generated.matrices import damaged, dense, with_matrix
from generated.world import World, assays

Word = Callable[[World], Any]
"""A word of a command line; a list of them where an option takes several."""


def cells(world: World) -> Path:
    """An h5ad file."""

    def write() -> Path:
        path = world.folder / "cells.h5ad"
        world.data("scvi").write_h5ad(path)
        return path

    return world.once("cells.h5ad", write)


def fit(world: World, entry: str = "scvi") -> Path:
    """The file of a fit."""

    def write() -> Path:
        path = world.folder / f"{entry}.safetensors"
        world.fit(entry).save(path)
        return path

    return world.once(f"{entry}.safetensors", write)


def joined(world: World) -> Path:
    """The h5ad file of two assays."""

    def write() -> Path:
        path = world.folder / "joined.h5ad"
        world.data("gimvi").write_h5ad(path)
        return path

    return world.once("joined.h5ad", write)


def assay(world: World, name: str) -> Path:
    """The h5ad file of one assay."""

    def write() -> dict[str, Path]:
        paths = {}
        for assay_name, data in assays(world).items():
            paths[assay_name] = world.folder / f"{assay_name}.h5ad"
            data.write_h5ad(paths[assay_name])
        return paths

    return world.once("assays.h5ad", write)[name]


def table(name: str, make: Callable[[World], pd.DataFrame]) -> Word:
    """A table in a CSV file."""

    def word(world: World) -> Path:
        def write() -> Path:
            path = world.folder / f"{name}.csv"
            make(world).to_csv(path, index_label=f"{name}_id")
            return path

        return world.once((name, "csv"), write)

    return word


def features(world: World) -> pd.DataFrame:
    return pd.DataFrame(
        np.random.default_rng(world.seed).normal(size=(world.n, 2)), index=world.names, columns=["f", "g"]
    )


def _bytes(name: str, content: bytes) -> Word:
    def word(world: World) -> Path:
        path = world.folder / name
        path.write_bytes(content)
        return path

    return word


def no_cells(world: World) -> Values:
    """What is no h5ad file of counts."""
    data = world.data("scvi")
    logarithms, holed = world.folder / "logarithms.h5ad", world.folder / "holed.h5ad"
    with_matrix(data, np.log1p(dense(data))).write_h5ad(logarithms)
    with_matrix(data, damaged(world, data, math.nan)[0]).write_h5ad(holed)
    short = world.folder / "short.h5ad"
    short.write_bytes(cells(world).read_bytes()[:2000])
    values = [("no such file", world.folder / "absent.h5ad"), ("a folder", world.folder), ("cut short", short)]
    values += [("text", _bytes("words.h5ad", b"hello")(world)), ("empty", _bytes("void.h5ad", b"")(world))]
    return [*values, ("logarithms", logarithms), ("nan", holed)]


def no_fit(world: World) -> Values:
    """What is no file of a fit."""
    values = [
        ("no such file", world.folder / "absent.safetensors"),
        ("the data", cells(world)),
        ("a folder", world.folder),
    ]
    return [*values, ("text", _bytes("words.safetensors", b"hello")(world)), ("of another entry", fit(world, "ppca"))]


def no_table(world: World) -> Values:
    """What is no table."""
    values = [("no such file", world.folder / "absent.csv"), ("a folder", world.folder)]
    values += [("empty", _bytes("void.csv", b"")(world)), ("noise", _bytes("noise.csv", bytes(range(256)))(world))]
    values += [("ragged", _bytes("ragged.csv", b"a,b\n1,2\n3,4,5,6\n")(world)), ("h5ad", cells(world))]
    return [
        *values,
        ("words", _bytes("words.csv", b"id,none,small\nx,y,z\n")(world)),
        ("no parquet", _bytes("no.parquet", b"x")(world)),
    ]


# ------------------------------------------------------------------------------------------------ kinds of option
