"""How much was given of each perturbation of a cell: a field beside that of the perturbations."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import checked_text
from fieldguide.inference.checks.labels import given_labels, label_texts
from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.interventions import says_none
from fieldguide.inference.data.perturbations import Perturbations
from fieldguide.inference.data.reading import SchemaError, cell_name, column_of, require_complete
from fieldguide.inference.data.storage import DenseStore


@dataclass(frozen=True)
class Doses(Field):
    """The dose of each perturbation of a cell, as a share of the largest of that perturbation; float32 [N, M].

    A column of numbers, or of text with one for each perturbation in the order of the label: "10+0.5" beside "A+B".
    Doses stand in the order of the codes of `Perturbations`, 0 where a cell has no further one. Of a control nothing
    is read. Each perturbation has its own unit: its largest dose in the training data is 1, and new data may exceed it.

    Attributes
    ----------
    beside : str
        The column of the perturbations.
    control : str or sequence of str
        Labels of cells without a perturbation, besides the usual words, as of `Perturbations`.
    separator : str
        Of labels and of doses.
    """

    place: str = "dose"
    beside: str = "perturbation"
    control: Any = ()
    separator: str = "+"

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", given_labels("control", self.control))
        checked_text("separator", self.separator)
        checked_text("beside", self.beside)

    def learn(self, name, data, place):
        largest: dict[str, float] = {}
        for parts, doses in self.labelled(name, data, place)[0]:
            for part, dose in zip(parts, doses, strict=True):
                largest[part] = max(largest.get(part, 0.0), dose)
        nothing = next((part for part, dose in largest.items() if dose == 0), None)
        if nothing is not None:
            raise SchemaError(
                f"field '{name}': perturbation {nothing!r} has the dose 0 in every cell; call these cells controls"
            )
        settings = {"beside": self.beside, "control": list(self.control), "separator": self.separator}
        return {"largest": dict(sorted(largest.items()))} | settings

    def read(self, name, data, place, state):
        learnt = replace(self, beside=state["beside"], control=state["control"], separator=state["separator"])
        pairs, which = learnt.labelled(name, data, place)
        width = max([1, *(len(parts) for parts, _ in pairs)])
        table = np.zeros((len(pairs), width), dtype=np.float32)
        for row, (parts, doses) in enumerate(pairs):
            share = {
                part: dose / state["largest"].get(part, dose or 1.0) for part, dose in zip(parts, doses, strict=True)
            }
            table[row, : len(share)] = [share[part] for part in sorted(share)]
        return DenseStore(table[which])

    def labelled(self, name: str, data, place) -> tuple[list[tuple[list[str], list[float]]], np.ndarray]:
        """Return parts and doses of each different pair of label and dose, and which of them each cell has."""
        labels, doses = (column_of(name, data, column) for column in (self.beside, place))
        require_complete(name, self.beside, labels)
        labels = label_texts(labels).astype(str)
        texts = np.where(doses.isna(), "", doses.astype(str))
        both = pd.MultiIndex.from_arrays([labels, texts])
        which, kinds = pd.factorize(both)
        field = Perturbations(self.beside, separator=self.separator)
        control = [label for label in np.unique(labels) if label in self.control or says_none(label)]
        pairs = []
        for number, (label, text) in enumerate(kinds):
            parts = field.parts(label, control)
            at = int(np.flatnonzero(which == number)[0])
            pairs.append((parts, self._numbers(name, data, place, label, text, parts, at, control)))
        return pairs, which

    def _numbers(self, name, data, place, label: str, text: str, parts: list[str], at: int, control) -> list[float]:
        """Return the doses of the parts of a label."""
        if not parts:
            return []
        words = [word.strip() for word in str(text).split(self.separator)]
        named = [part.strip() for part in label.split(self.separator)]
        if len(words) == len(named) != len(parts):  # a part that is a control has a dose, too
            words = [word for word, part in zip(words, named, strict=True) if part in parts][: len(parts)]
        cell = cell_name(data, at)
        if len(words) != len(parts):
            raise SchemaError(
                f"field '{name}': cell {cell!r} has {len(parts)} perturbations, {label!r}, and {len(words)} doses, "
                f"{text!r}, in column {place!r}; give one for each, such as {self.separator.join(['1'] * len(parts))!r}"
            )
        numbers = []
        for word in words:
            try:
                number = float(word)
            except ValueError:
                said = f"is {word!r}, not a number"
                if not word:
                    said = f"is missing; if {label!r} is a control, say so: Doses({place!r}, control={label!r})"
                raise SchemaError(f"field '{name}': the dose of cell {cell!r} in column {place!r} {said}") from None
            if not 0 <= number < np.inf:
                raise SchemaError(
                    f"field '{name}': the dose of cell {cell!r} in column {place!r} is {word}; doses are at least 0"
                )
            numbers.append(number)
        return numbers
