"""Matrices of cells: how they may be stored, which numbers in them are wrong, and new data for a fit."""

import math
import re
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from generated.cases import Case
from generated.rows import Recipe
from generated.world import ENTRIES, World, asked


def dense(data: ad.AnnData) -> np.ndarray:
    """The matrix as an array of its own."""
    return np.array(data.X.toarray() if sp.issparse(data.X) else data.X)


def compressed(world: World, matrix: np.ndarray, *, shuffled: bool = False, zeros: int = 0, split: bool = False) -> Any:
    """CSR that is allowed and seldom met: columns in no order, zeros that are stored, entries in two parts."""
    rng = world.rng
    row, column = np.nonzero(matrix)
    value = matrix[row, column]
    if zeros:
        empty = np.argwhere(matrix == 0)[:zeros]
        row, column = np.r_[row, empty[:, 0]], np.r_[column, empty[:, 1]]
        value = np.r_[value, np.zeros(len(empty), matrix.dtype)]
    if split:
        large = value > 1
        row, column = np.r_[row, row[large]], np.r_[column, column[large]]
        value = np.r_[np.where(large, value - 1, value), np.ones(large.sum(), matrix.dtype)].astype(matrix.dtype)
    order = np.lexsort((rng.random(len(row)) if shuffled else column, row))
    starts = np.r_[0, np.bincount(row, minlength=len(matrix)).cumsum()]
    return sp.csr_matrix((value[order], column[order], starts), shape=matrix.shape)


FORMS: dict[str, Callable[[World, np.ndarray], Any]] = {
    "dense": lambda world, x: x,
    "Fortran order": lambda world, x: np.asfortranarray(x),
    "CSR": lambda world, x: sp.csr_matrix(x),
    "CSC": lambda world, x: sp.csc_matrix(x),
    "CSR array": lambda world, x: sp.csr_array(x),
    "unsorted CSR": lambda world, x: compressed(world, x, shuffled=True),
    "stored zeros": lambda world, x: compressed(world, x, zeros=5),
    "entries in two parts": lambda world, x: compressed(world, x, split=True),
}
COUNTS = ("float32", "float64", "int64", "int32", "uint8", "uint16", "int16", "uint64")
REAL = ("float32", "float64", "float16")
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "infinite in single precision": 1e39}
BAD_COUNTS = {
    "negative": -1,
    "a fraction": 0.5,
    "almost whole": 1.000001,
    "beyond what single precision counts": 2.0**24 + 1,
}
IN_MEMORY = ("m1m2", "mvae")
"""Their fields are not read from a file: the limits of the whole matrix are needed."""
IN_ORDER = ("nodags", "dcdfg")
"""Genes that are targets are not put in order, but refused."""
BAD_SHARES = {"negative": -0.5, "above one": 1.5}


def with_matrix(data: ad.AnnData, matrix: Any) -> ad.AnnData:
    """The same cells with another matrix, of whatever type."""
    made = ad.AnnData(X=matrix, obs=data.obs.copy(), var=data.var.copy(), obsm=dict(data.obsm), varm=dict(data.varm))
    made.uns = dict(data.uns)
    return made


def damaged(world: World, data: ad.AnnData, value: Any) -> tuple[np.ndarray, str]:
    """The matrix with one wrong number, and the pattern of a message that says where."""
    matrix = dense(data).astype(np.float64)
    row, column = int(world.rng.integers(data.n_obs)), int(world.rng.integers(data.n_vars))
    if "measured" in data.varm:  # a gene that every assay measures
        column = int(np.flatnonzero(data.varm["measured"].to_numpy().all(1))[0])
    matrix[row, column] = value
    return matrix, f"{re.escape(data.obs_names[row])}|{re.escape(data.var_names[column])}"


def written(world: World, data: ad.AnnData) -> ad.AnnData:
    """The same data, backed by a file."""
    path = world.path(".h5ad")
    data.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


def _case(name: str, kind: Any, entry: str, data: Any, culprit: str = "", fields: dict | None = None) -> Case:
    inputs = (data,) if isinstance(data, ad.AnnData | dict | pd.DataFrame) else ()
    return Case("matrices", f"{entry}: {name}", kind, lambda: asked(entry, data, fields), culprit, inputs)


def stored(entry: str) -> list[Recipe]:
    """Ways to store a matrix, that of an entry: all are read alike."""
    counts = ENTRIES[entry].counts
    made: list[Recipe] = []
    for form, store in FORMS.items():
        if form == "entries in two parts" and not counts:
            continue
        for dtype in COUNTS if counts else REAL:
            if dtype == "float16" and form not in ("dense", "Fortran order"):
                continue

            def recipe(world: World, form=form, store=store, dtype=dtype) -> Case:
                data = world.new(entry)
                matrix = dense(data).astype(dtype)
                return _case(f"{form} {dtype}", "valid", entry, with_matrix(data, store(world, matrix)))

            made.append(recipe)
    return made


def wrong_numbers(entry: str) -> list[Recipe]:
    """One number that is wrong, wherever it is stored: the message says in which cell or gene."""
    counts, values = ENTRIES[entry].counts, dict(BAD)
    values |= BAD_COUNTS if counts else BAD_SHARES if entry in ("m1m2", "mvae") else {}
    made: list[Recipe] = []
    for name, value in values.items():
        for place in ("dense", "sparse", "view") if entry in IN_MEMORY else ("dense", "sparse", "backed", "view"):

            def recipe(world: World, name=name, value=value, place=place) -> Case:
                data = world.new(entry)
                matrix, culprit = damaged(world, data, value)
                changed = with_matrix(data, sp.csr_matrix(matrix) if place == "sparse" else matrix)
                if place == "backed":
                    changed = written(world, changed)
                elif place == "view":
                    changed = changed[world.rng.permutation(changed.n_obs)]
                return _case(f"{name}, {place}", "invalid", entry, changed, culprit)

            made.append(recipe)
    return made


def wrong_matrices(entry: str) -> list[Recipe]:
    """Matrices that are wrong as a whole."""
    shapes: dict[str, tuple[Callable[[World, ad.AnnData], Any], str]] = {
        "no cells": (lambda world, data: data[:0].copy(), "cell|row|label|class|target|level"),
        "no genes": (lambda world, data: data[:, :0].copy(), "gene|feature|column|cell|candidate|target"),
        "no matrix": (lambda world, data: with_matrix(data, None), r"\bX\b"),
        "complex": (lambda world, data: with_matrix(data, dense(data).astype(complex)), "complex"),
        "words": (
            lambda world, data: with_matrix(data, dense(data).astype(str).astype(object) + "x"),
            "number|numeric|text",
        ),
        "genes twice": (_twice, "twice|several|duplicate|more than once"),
    }
    if ENTRIES[entry].counts:
        shapes["logarithms"] = (lambda world, data: with_matrix(data, np.log1p(dense(data))), "count|whole|integer")
        shapes["an empty cell"] = (_empty_cell, "cell")
    made: list[Recipe] = []
    for name, (change, culprit) in shapes.items():

        def recipe(world: World, name=name, change=change, culprit=culprit) -> Case:
            return _case(name, "invalid", entry, change(world, world.new(entry)), culprit)

        made.append(recipe)
    return made


def _twice(world: World, data: ad.AnnData) -> ad.AnnData:
    data.var_names = [data.var_names[0], *data.var_names[:-1]]
    return data


def _empty_cell(world: World, data: ad.AnnData) -> ad.AnnData:
    matrix = dense(data)
    matrix[int(world.rng.integers(data.n_obs))] = 0
    return with_matrix(data, matrix)


def containers(entry: str) -> list[Recipe]:
    """What holds the data: an AnnData, a file behind it, a view, a layer, a dict of arrays; or nothing of the kind."""
    small = ENTRIES[entry]
    matrix = "counts" if small.counts else "x"

    def backed(world: World) -> Case:
        data = world.new(entry)
        kind = "either" if entry in IN_MEMORY else "valid"
        return _case("backed", kind, entry, written(world, data))

    def view(world: World) -> Case:
        data = world.new(entry)
        return _case("a view", "valid", entry, data[world.rng.permutation(data.n_obs)])

    def layer(world: World) -> Case:
        data = world.new(entry)
        data.X = np.full(data.shape, math.nan, dtype="float32")
        return _case("a layer", "valid", entry, data, fields={matrix: "layers/raw"})

    wrong = {
        "None": None,
        "a number": 3,
        "a path": "cells.h5ad",
        "an array": np.ones((9, 3)),
        "a list": [[1, 2], [3, 4]],
        "an empty dict": {},
        "one dimension": {matrix: np.arange(5.0)},
        "three dimensions": {matrix: np.ones((4, 3, 2))},
        "ragged": {matrix: [[1, 2], [3]]},
        "a number in a dict": {matrix: 3},
        "an empty frame": pd.DataFrame(),
        "a frame of words": pd.DataFrame({"a": ["x"] * 9, "b": ["y"] * 9}),
        "another field": {"nope": np.ones((9, 3))},
    }

    def refused(name: str) -> Recipe:
        said = f"data|AnnData|field|{matrix}|\\bX\\b|column|gene|cell|feature|column|nope"
        return lambda world: _case(f"data is {name}", "invalid", entry, wrong[name], said)

    made = [backed, view, *map(refused, wrong)]
    return [*made, layer] if small.layers and entry != "mvae" else made


def plain(world: World) -> list[Case]:
    """Data without an AnnData."""
    x, rng = world.rng.poisson(3.0, (world.n, 5)) + 1, world.rng
    batch = np.array(["b0", "b1"])[rng.permutation(world.n) % 2]
    frame = pd.DataFrame(x, index=world.names, columns=list("abcde"))
    made = {
        "arrays": {"counts": x, "batch": batch},
        "lists": {"counts": x.tolist(), "batch": batch.tolist()},
        "tensors": {"counts": torch.from_numpy(x)},
        "sparse": {"counts": sp.csr_matrix(x)},
        "columns": {"counts": x, "batch": pd.Series(batch)},
        "frame": frame,
        "frame with a column of batches": frame.assign(batch=batch),
    }
    cases = [_case(f"{name} without an AnnData", "valid", "scvi", data) for name, data in made.items()]
    short = {"counts": x, "batch": batch[:-1]}
    return [*cases, _case("a short column", "invalid", "scvi", short, "batch")]


def _turned_genes(world: World, data: ad.AnnData) -> ad.AnnData:
    return data[:, world.rng.permutation(data.n_vars)].copy()


def _more_genes(world: World, data: ad.AnnData) -> ad.AnnData:
    more = with_matrix(data, dense(data))
    other = ad.AnnData(np.ones((data.n_obs, 2), "float32"), obs=data.obs[[]], var=pd.DataFrame(index=["new1", "new2"]))
    wide = ad.concat([more, other], axis=1, merge="same")
    wide.obs = data.obs.copy()
    return wide[:, world.rng.permutation(wide.n_vars)].copy()


def _other_genes(world: World, data: ad.AnnData) -> ad.AnnData:
    data.var_names = [f"other{k}" for k in range(data.n_vars)]
    return data


def _nan(world: World, data: ad.AnnData) -> ad.AnnData:
    return with_matrix(data, damaged(world, data, math.nan)[0])


NEW_DATA: dict[str, tuple[str, Callable[[World, ad.AnnData], Any], str]] = {
    "genes in another order": ("valid", _turned_genes, ""),
    "more genes": ("valid", _more_genes, ""),
    "sparse": ("valid", lambda world, data: with_matrix(data, sp.csr_matrix(dense(data))), ""),
    "float64": ("valid", lambda world, data: with_matrix(data, dense(data).astype(float)), ""),
    "backed": ("valid", lambda world, data: written(world, data), ""),
    "a gene less": ("invalid", lambda world, data: data[:, 1:].copy(), "gene|feature|column"),
    "other genes": ("invalid", _other_genes, "gene|feature|column"),
    "nan": ("invalid", _nan, "cell|s1|AACG|nan|finite"),
    "no cells": ("invalid", lambda world, data: data[:0].copy(), "cell|row"),
    "a number": ("invalid", lambda world, data: 3, "data|AnnData"),
    "a path": ("invalid", lambda world, data: "cells.h5ad", "data|AnnData"),
}


def new_data(entry: str) -> list[Recipe]:
    """New data for a fit: read by the names of the genes, with the same latents for the same cells."""

    def recipe(name: str) -> Recipe:
        kind, change, culprit = NEW_DATA[name]
        if (entry in IN_MEMORY and name == "backed") or (entry in IN_ORDER and name.endswith(("order", "more genes"))):
            kind, culprit = "either", "memory|genes"

        def made(world: World) -> Case:
            fit, data = world.fit(entry), world.data(entry)
            new = change(world, data.copy())

            def run() -> Any:
                if entry in ("poxm", "incentives", "nodags", "dcdfg"):
                    return bool(fit.read(new))
                found = fit.latent(new)
                if kind == "valid":
                    np.testing.assert_allclose(found, world.once(("latent", entry), fit.latent), rtol=1e-3, atol=1e-4)
                return found

            inputs = (new,) if isinstance(new, ad.AnnData) else ()
            return Case("matrices", f"{entry}: new data, {name}", kind, run, culprit, inputs)

        return made

    return [recipe(name) for name in NEW_DATA if not (entry in ("gimvi", "poxm") and name == "more genes")]


def _nth_plain(place: int) -> Recipe:
    return lambda world: plain(world)[place]


def matrices() -> list[Recipe]:
    """All of these, for each entry."""
    made: list[Recipe] = [_nth_plain(place) for place in range(len(plain(World(0))))]
    for entry in [name for name, small in ENTRIES.items() if small.matrix]:
        for part in (stored, wrong_numbers, wrong_matrices, containers, new_data):
            made += part(entry)
    return made
