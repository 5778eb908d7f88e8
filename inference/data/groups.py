"""Groups of cells to compare, those that the others are compared with first."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldguide.inference.checks.labels import given_labels
from fieldguide.inference.data.fields import Category
from fieldguide.inference.data.interventions import says_none
from fieldguide.inference.data.reading import SchemaError, column_of
from fieldguide.inference.messages import caution


@dataclass(frozen=True)
class Groups(Category):
    """A column of groups; the code of each cell's, int64 [N]. Those of the background have the lowest codes.

    The background are the groups named so, ``fields={"group": Groups("condition", background="ctrl")}``. Where none is
    named it is the group with a usual word for it, whatever its case and hyphens (control, non-targeting, NT, DMSO,
    vehicle, untreated and the like), and a warning says which.

    Attributes
    ----------
    background : str or sequence of str
        Each must be there, in the data that the field is fitted on.
    """

    place: str = "group"
    background: Any = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", given_labels("background", self.background))

    def learn(self, name, data, place):
        column = column_of(name, data, place)
        groups = super().learn(name, data, place)["categories"]
        if len(groups) == 1:
            raise SchemaError(
                f"field '{name}': column {place!r} has one group, {groups[0]!r}: there is nothing to compare"
            )
        lacking = next((b for b in self.background if b not in groups), None)
        if lacking is not None:
            raise SchemaError(
                f"field '{name}': no cell is of the background {lacking!r} in column {place!r}; there are "
                f"{', '.join(map(repr, groups[:10]))}"
            )
        background = list(self.background) or [g for g in groups if says_none(str(g)) or str(g).lower() == "background"]
        if background and not self.background:
            caution(
                f"field '{name}': {', '.join(map(repr, background))} of column {place!r} is read as the background; "
                f"Groups({place!r}, background=...) says so too, and without this warning"
            )
        if len(groups) == len(background):
            raise SchemaError(
                f"field '{name}': column {place!r} has the background {', '.join(map(repr, background))} alone: there "
                "is no group to compare with it"
            )
        texts = np.asarray(column).astype(str)
        single = next((g for g in groups if (texts == str(g)).sum() == 1), None)
        if single is not None:
            caution(f"field '{name}': group {single!r} has one cell: what is its own cannot be told from chance")
        others = [g for g in groups if g not in background]
        return {"categories": [*background, *others], "n_background": len(background)}

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"]), "n_background": state["n_background"]}
