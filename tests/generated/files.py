"""Files of fits: saved and read again, damaged, of others, and where none can be written."""

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fieldguide import inference
from generated.cases import Case
from generated.kinds import output, source
from generated.rows import Recipe, Row, recipes
from generated.world import ENTRIES, World

LATENT = (
    "ppca",
    "scvi",
    "hcv",
    "m1m2",
    "mvae",
    "gimvi",
    "svae",
    "comparative",
    "fcr",
    "scbd",
    "image_ivae",
    "grape_vi",
    "grape",
)
HEADER = 8
"""Bytes of the length of the header, with which a safetensors file begins."""


def saved(world: World, entry: str) -> bytes:
    """The file of a fit."""

    def save() -> bytes:
        path = world.path(".safetensors")
        world.fit(entry).save(path)
        return path.read_bytes()

    return world.once(("saved", entry), save)


def _flip(world: World, content: bytes, low: int, high: int) -> bytes:
    place, bit = int(world.rng.integers(low, high)), int(world.rng.integers(8))
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def _end(content: bytes) -> int:
    return HEADER + int.from_bytes(content[:HEADER], "little")


DAMAGE: dict[str, Callable[[World, bytes], bytes]] = {
    "a bit of a tensor": lambda world, content: _flip(world, content, _end(content), len(content)),
    "a bit of the header": lambda world, content: _flip(world, content, HEADER, _end(content)),
    "a bit of the length": lambda world, content: _flip(world, content, 0, HEADER),
    "cut short": lambda world, content: content[: int(world.rng.integers(1, len(content)))],
    "longer": lambda world, content: content + world.rng.bytes(9),
    "two tensors changed places": lambda world, content: content[: _end(content)] + content[_end(content) :][::-1],
    "zeros": lambda world, content: content[: _end(content)] + bytes(len(content) - _end(content)),
    "nothing": lambda world, content: b"",
    "a pickle": lambda world, content: pickle.dumps({"a": 1}),
    "JSON": lambda world, content: json.dumps({"format": "fieldguide-fit-1"}).encode(),
    "noise": lambda world, content: world.rng.bytes(400),
}


def damaged(entry: str, name: str) -> Recipe:
    """A file of which something is wrong: load says so, and which file it is."""

    def recipe(world: World) -> Case:
        path = world.path(".damaged")
        path.write_bytes(DAMAGE[name](world, saved(world, entry)))
        return Case("files", f"{entry}: load, {name}", "invalid", lambda: inference.load(path), path.name, (path,))

    return recipe


def foreign(metadata: dict[str, str] | None) -> Recipe:
    """A file that another program wrote."""

    def recipe(world: World) -> Case:
        path = world.path(".foreign")
        save_file({"a": torch.ones(2)}, path, metadata=metadata)
        return Case("files", f"load, foreign {metadata}", "invalid", lambda: inference.load(path), path.name, (path,))

    return recipe


def round_trip(entry: str) -> Recipe:
    """A fit that is saved and read again is the same."""

    def recipe(world: World) -> Case:
        path, fit, data = world.path(".safetensors"), world.fit(entry), world.data(entry)

        def run() -> Any:
            fit.save(path)
            again = inference.load(path)
            for (name, one), other in zip(
                fit.program.state_dict().items(), again.program.state_dict().values(), strict=True
            ):
                assert torch.equal(one, other), name
            assert len(fit.history) == len(again.history)
            if entry in LATENT:
                np.testing.assert_array_equal(fit.latent(data), again.latent(data))
            return list(again.program.state_dict().values())

        return Case("files", f"{entry}: round trip", "valid", run, "", (data,))

    return recipe


def _other_program(world: World) -> Case:
    path = world.path(".safetensors")
    path.write_bytes(saved(world, "scvi"))
    other = type(world.fit("ppca").program)

    def run() -> Any:
        return inference.load(path, program=other)

    return Case("files", "load with another program", "invalid", run, "program|scvi|PPCA", (path,))


def _without_data(world: World) -> Case:
    path = world.path(".safetensors")
    path.write_bytes(saved(world, "scvi"))
    return Case("files", "a loaded fit without data", "invalid", lambda: inference.load(path).latent(), "data", (path,))


FILES: list[Row] = [
    Row("load", lambda world, **given: inference.load(**given), {"path": source()}, plain=False),
    Row("Fit.save", lambda world, **given: world.fit("scvi").save(**given) is None, {"path": output()}, plain=False),
]


def files() -> list[Recipe]:
    """Files of fits."""
    made = recipes("files", FILES)
    made += [damaged(entry, name) for entry in ("scvi", "ppca", "dcdfg") for name in DAMAGE]
    made += [round_trip(entry) for entry in ENTRIES]
    known = {"format": "fieldguide-fit-1"}
    made += map(
        foreign, (None, known, known | {"fit": "{}"}, known | {"fit": "[]"}, known | {"fit": "{"}, {"format": "pt"})
    )
    return [*made, _other_program, _without_data]
