"""What every decision returns: a table, the diagnostics that say how far to trust it, and the settings that made it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


class UntrustworthyWeights(UserWarning):
    """The importance weights of a group of cells are too uneven for its estimates to be trusted."""


class WeakDesign(UserWarning):
    """There are too few cells or subjects for the stated uncertainty to mean much."""


@dataclass
class Decision:
    """A decision with its uncertainty and its diagnostics.

    Attributes
    ----------
    table : DataFrame
        The result, one row an item (gene, statistic).
    diagnostics : DataFrame
        How far the posterior behind it can be trusted, one row a group of cells.
    settings : dict
        Everything that is needed to repeat it, with the values that defaults took.
    notes : tuple of str
        What the numbers do not include.
    """

    table: pd.DataFrame
    diagnostics: pd.DataFrame
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    draw: Callable[["Decision"], Any] | None = field(default=None, repr=False)

    def plot(self) -> Any:
        """Return a matplotlib figure of the result."""
        if self.draw is None:
            raise NotImplementedError("this decision has no figure")
        return self.draw(self)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return self.table.head(20).to_html() + self.diagnostics.to_html() + notes
