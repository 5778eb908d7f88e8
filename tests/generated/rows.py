"""A function is a row: how it is called, and of which kind each argument is. A case changes one argument of a row."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generated.cases import Case
from generated.kinds import Kind, Values
from generated.world import World

Recipe = Callable[[World], Case]
"""A case of a world; another world gives the same case with other numbers."""


@dataclass(frozen=True)
class Row:
    """A function that is put to the test.

    ``call(world, **given)`` calls it with its usual arguments and those given, and returns numbers; ``inputs`` are what
    it must leave as it was.
    """

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Kind]
    inputs: Callable[[World], tuple[Any, ...]] = lambda world: ()
    plain: bool = True
    """Whether the call without a change is a case of its own."""


PROBE = World(0)
"""Counts the values of a kind; their number is the same in every world."""


def recipes(area: str, rows: Iterable[Row]) -> list[Recipe]:
    """Return one recipe for each wrong and each right value of each argument of each row."""
    made: list[Recipe] = []
    for row in rows:
        if row.plain:
            made.append(lambda world, row=row: _case(area, row, world, "valid", "", "as it is"))
        for argument, kind in row.arguments.items():
            for word, values in (("invalid", kind.wrong), ("valid", kind.right)):
                for place in range(len(values(PROBE))):
                    made.append(_recipe(area, row, argument, word, values, place))
    return made


def _recipe(area: str, row: Row, argument: str, kind: str, values: Callable[[World], Values], place: int) -> Recipe:
    def recipe(world: World) -> Case:
        name, value = values(world)[place]
        return _case(area, row, world, kind, argument, name, value)

    return recipe


def _case(area: str, row: Row, world: World, kind: Any, argument: str, name: str, *value: Any) -> Case:
    given = {argument: value[0]} if value else {}
    inputs = (*row.inputs(world), *(part for part in value if not isinstance(part, Path)))

    def run() -> Any:
        return row.call(world, **given)

    said = f"{row.name}: {argument} {name}".replace(":  ", ": ")
    return Case(area, said, kind, run, culprit(argument, row.arguments.get(argument)), inputs)


def culprit(argument: str, kind: Kind | None = None) -> str:
    """Return the pattern of a message that names an argument: as it is written, or as it is said."""
    if not argument:
        return ""
    said = re.escape(argument).replace("_", "[ _]")
    return f"{said}|{kind.says}" if kind and kind.says else said


def union(*kinds: Kind) -> Kind:
    """What may be of one kind or another; the wrong values of each must be wrong for the others."""

    def wrong(world: World) -> Values:
        return [pair for kind in kinds for pair in kind.wrong(world)]

    def right(world: World) -> Values:
        return [pair for kind in kinds for pair in kind.right(world)]

    return Kind(wrong, right, "|".join(kind.says for kind in kinds if kind.says))
