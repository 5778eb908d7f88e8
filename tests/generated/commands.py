"""Commands, called as a shell does: exit code 0, or 1 and 2 with one line on stderr that names what is wrong."""

import contextlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldguide.cli import main
from generated.budgets import costs, rewards
from generated.cases import Case, Refused
from generated.kinds import (
    Values,
)
from generated.on_disk import assay, cells, features, fit, joined, no_cells, no_fit, no_table, table
from generated.policies import logged, shares
from generated.rows import Recipe
from generated.world import World


@dataclass(frozen=True)
class Command:
    """A command: its words, and of which kind its options are."""

    words: Callable[[World], list[Any]]
    options: dict[str, Callable[[World], Values]] = field(default_factory=dict)
    places: dict[str, Callable[[World], Values]] = field(default_factory=dict)
    """Positional arguments that may be wrong: the text of the place in ``words``, such as DATA."""
    good: tuple[tuple[str, ...], ...] = ()
    """Further options with which it works."""


def called(words: list[Any]) -> float:
    """Run a command; raise what it said, unless it left with 0."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:  # of the parser
            code = left.code if isinstance(left.code, int) else 1
    if code:
        text = said.getvalue()
        if "unexpected error" in text:
            raise Refused(f"Traceback: {text}")
        raise Refused(text)
    return 0.0


def whole(least: int) -> Callable[[World], Values]:
    """A whole number."""
    return lambda world: [
        ("too small", least - 1),
        ("a fraction", "1.5"),
        ("a word", "many"),
        ("negative", -7),
        ("nan", "nan"),
    ]


def number(low: float, high: float) -> Callable[[World], Values]:
    """A number between limits, neither of which it may reach."""
    values = [("below", low - 1), ("a word", "much"), ("nan", "nan"), ("inf", "inf")]
    return lambda world: values + ([("above", high + 1)] if high < math.inf else [])


def word(world: World) -> Values:
    """One of a few words."""
    return [("unknown", "nope"), ("a number", 3)]


def unwritable(world: World) -> Values:
    """Where nothing can be written."""
    return [("no such folder", world.folder / "none" / "x.csv"), ("a folder", world.folder)]


def _over(world: World) -> Values:
    return [*unwritable(world), ("the input", cells(world))]


QUICK = ["--max-epochs", "1", "--model", "n_hidden=4", "n_latent=2", "--device", "cpu"]
COMMANDS: dict[str, Command] = {
    "fit": Command(
        lambda world: ["fit", "scvi", cells(world), "--output", world.path(".safetensors"), *QUICK],
        {
            "--max-epochs": whole(1),
            "--batch-size": whole(1),
            "--learning-rate": number(0, math.inf),
            "--seed": whole(0),
            "--validation": number(0, 1),
            "--early-stopping": whole(1),
            "--objective": word,
            "--device": word,
            "--particles": whole(1),
            "--output": _over,
            "--fields": lambda world: [("no place", "batch"), ("unknown", "nope=q1"), ("no column", "batch=nope")],
            "--model": lambda world: [
                ("unknown", "nope=1"),
                ("a word", "n_hidden=a"),
                ("zero", "n_latent=0"),
                ("code", "n_hidden=open(1)"),
            ],
            "--constraint": lambda world: [
                ("unknown", "nope"),
                ("no column", "hsic(z,nope)"),
                ("no site", "hsic(nope,batch)"),
            ],
            "--nope": lambda world: [("given", 1)],
        },
        {"scvi": lambda world: [("unknown", "nope"), ("of other data", "hcv")], "DATA": no_cells},
        (("--backed",), ("--objective", "iwae", "--particles", "3"), ("--fields", "batch=group"), ("--seed", "7")),
    ),
    "de": Command(
        lambda world: [
            "de",
            fit(world),
            cells(world),
            "--groupby",
            "group",
            "--group",
            "A",
            "--output",
            world.path(".csv"),
            "--draws",
            20,
        ],
        {
            "--groupby": word,
            "--group": lambda world: [("unknown", "nope")],
            "--reference": lambda world: [("unknown", "nope"), ("the group", "A")],
            "--mode": word,
            "--delta": number(0, math.inf),
            "--fdr": number(0, 1),
            "--unit": word,
            "--estimator": word,
            "--draws": whole(1),
            "--seed": whole(0),
            "--top": whole(0),
            "--output": _over,
        },
        {"FIT": no_fit, "DATA": no_cells},
        (("--reference", "B"), ("--groupby", "number", "--group", "1"), ("--unit", "cells"), ("--mode", "vanilla")),
    ),
    "join": Command(
        lambda world: [
            "join",
            f"seq={assay(world, 'seq')}",
            f"spatial={assay(world, 'spatial')}",
            "--output",
            world.path(".h5ad"),
        ],
        {"--batch": word, "--output": lambda world: [*unwritable(world), ("an input", assay(world, "seq"))]},
        {
            "seq=": lambda world: [
                ("no name", assay(world, "seq")),
                ("no such file", f"seq={world.folder}/absent.h5ad"),
                ("a name twice", f"spatial={assay(world, 'seq')}"),
            ]
        },
        (("--batch", "batch"),),
    ),
    "impute": Command(
        lambda world: ["impute", fit(world, "gimvi"), joined(world), "--output", world.path(".h5ad"), "--draws", 5],
        {
            "--modality": word,
            "--head": word,
            "--interval": number(0, 1),
            "--draws": whole(1),
            "--seed": whole(0),
            "--top": whole(0),
            "--output": lambda world: [*unwritable(world), ("the input", joined(world))],
        },
        {"FIT": no_fit, "DATA": no_cells},
        (("--head", "model"),),
    ),
    "policy evaluate": Command(
        lambda world: [
            "policy",
            "evaluate",
            table("log", logged)(world),
            table("policy", shares)(world),
            "--output",
            world.path(".csv"),
        ],
        {
            "--action": word,
            "--reward": word,
            "--propensity": word,
            "--id": word,
            "--level": number(0, 1),
            "--interval": word,
            "--seed": whole(0),
            "--logging": no_table,
            "--output": lambda world: [*unwritable(world), ("an input", table("log", logged)(world))],
            "--report": unwritable,
        },
        {"LOG": no_table, "POLICY": no_table},
        (("--interval", "bernstein"),),
    ),
    "policy learn": Command(
        lambda world: [
            *(
                "policy",
                "learn",
                table("log", logged)(world),
                table("context", features)(world),
                table("chance", shares)(world),
            ),
            *("--top", 2, "--max-epochs", 1, "--output", world.path(".csv")),
        ],
        {
            "--action": word,
            "--reward": word,
            "--propensity": word,
            "--top": lambda world: [("none", 0), ("negative", -1), ("a word", "many"), ("above one", "q2")],
            "--max-epochs": whole(1),
            "--seed": whole(0),
            "--output": unwritable,
            "--report": unwritable,
        },
        {"LOG": no_table, "CONTEXT": no_table, "LOGGING": no_table},
    ),
    "allocate": Command(
        lambda world: [
            "allocate",
            table("reward", rewards)(world),
            table("cost", costs)(world),
            6,
            "--output",
            world.path(".csv"),
        ],
        {
            "--id": word,
            "--redeemed": no_table,
            "--overspend": number(0, 1),
            "--draws": no_table,
            "--output": lambda world: [*unwritable(world), ("an input", table("reward", rewards)(world))],
            "--report": unwritable,
        },
        {
            "REWARD": no_table,
            "COST": no_table,
            "BUDGET": lambda world: [("negative", -3), ("nan", "nan"), ("a word", "much"), ("two", "1,2")],
        },
        (("--integer",),),
    ),
    "cite": Command(lambda world: ["cite", "scvi"], {}, {"scvi": lambda world: [("unknown", "nope"), ("empty", "")]}),
    "list": Command(lambda world: ["list"], {"--nope": lambda world: [("given", 1)]}),
    "compare": Command(
        lambda world: [
            *("compare", "scvi", cells(world), "--objectives", "elbo", "--max-epochs", 1, "--draws", 25),
            *("--posterior-draws", 20, "--no-mix", "--output", world.path(), "--model", "n_hidden=4", "n_latent=2"),
        ],
        {
            "--objectives": word,
            "--groupby": word,
            "--group": lambda world: [("without groupby", "A")],
            "--max-epochs": whole(1),
            "--validation": number(0, 1),
            "--draws": whole(1),
            "--posterior-draws": whole(1),
            "--seed": whole(0),
            "--output": lambda world: [("the folder of others", world.folder), ("a file", cells(world))],
        },
        {"scvi": lambda world: [("unknown", "nope")], "DATA": no_cells},
    ),
}
"""A new command joins the generated cases by its row here."""
PLACES = {"FIT": 1, "DATA": 2, "LOG": 2, "POLICY": 3, "CONTEXT": 3, "LOGGING": 4, "REWARD": 1, "COST": 2, "BUDGET": 3}
PLACES |= {"scvi": 1, "seq=": 1}

SAYS = {
    ("DATA", ""): "|s1:|cell|AACG|counts|column|assay",
    ("FIT", "of another entry"): "|counts|gimvi",
    ("scvi", "of other data"): "|quality",
    ("--model", "a word"): "|n_hidden",
    ("--model", "code"): "|n_hidden",
    ("LOG", "words"): "|'x'|action",
    ("POLICY", "words"): "|'x'",
}
"""What else names the culprit: a cell of the data, an argument inside the value."""


def _wrong(name: str, command: Command, argument: str, values: Callable[[World], Values], place: int) -> Recipe:
    def recipe(world: World) -> Case:
        text, value = values(world)[place]
        words = command.words(world)
        if argument.startswith("--"):
            if argument in words:
                words[words.index(argument) + 1] = value
            else:
                words += [argument, value]
            option = argument.removeprefix("--").replace("-", "[-_ ]")
            own, _, rest = str(value).partition("=")
            said = "|".join([option, re.escape(Path(own).name), *([re.escape(rest)] if rest else [])])
            said += "|nope" if "nope" in own else ""
        else:
            words[PLACES[argument]] = value
            said = f"{argument.strip('=')}|{re.escape(Path(str(value)).name)}"
        said += SAYS.get((argument, text), "") or SAYS.get((argument, ""), "")
        inputs = tuple(word for word in words if isinstance(word, Path) and word.is_file())
        return Case("commands", f"{name}: {argument} {text}", "invalid", lambda: called(words), said, inputs)

    return recipe


def _works(name: str, command: Command, more: tuple[str, ...]) -> Recipe:
    def recipe(world: World) -> Case:
        words = [*command.words(world), *more]
        inputs = tuple(word for word in words if isinstance(word, Path) and word.is_file())
        return Case("commands", f"{name} {' '.join(more)}", "valid", lambda: called(words), "", inputs)

    return recipe


def commands() -> list[Recipe]:
    """Every command, with every option wrong once in every way."""
    made: list[Recipe] = []
    probe = World(0)
    for name, command in COMMANDS.items():
        made += [_works(name, command, more) for more in ((), *command.good)]
        for argument, values in (command.options | command.places).items():
            made += [_wrong(name, command, argument, values, place) for place in range(len(values(probe)))]
    return made
