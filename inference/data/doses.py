"""How much was given of each perturbation of a cell: a field beside that of the perturbations."""

import re
from collections.abc import Iterable
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
from fieldguide.inference.messages import caution

OTHER_UNIT = 30.0
"""Times the largest dose of the training data that doses of new data may be."""


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
        Labels of cells without a perturbation, those of `Perturbations`; by default the usual words.
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
        for doses in self.labelled(name, data, place, ())[0]:
            for part, dose in doses.items():
                largest[part] = max(largest.get(part, 0.0), dose)
        nothing = next((part for part, dose in largest.items() if dose == 0), None)
        if nothing is not None:
            raise SchemaError(
                f"field '{name}': perturbation {nothing!r} has the dose 0 in every cell; if it is a control, say so "
                f"here too: {self.called(place, nothing)}"
            )
        settings = {"beside": self.beside, "control": list(self.control), "separator": self.separator}
        return {"largest": dict(sorted(largest.items()))} | settings

    def read(self, name, data, place, state):
        learnt = replace(self, beside=state["beside"], control=state["control"], separator=state["separator"])
        kinds, which = learnt.labelled(name, data, place, state["largest"])
        table = np.zeros((len(kinds), max([1, *map(len, kinds)])), dtype=np.float32)
        for row, doses in enumerate(kinds):
            table[row, : len(doses)] = [doses[part] / state["largest"].get(part, 1.0) for part in sorted(doses)]
        if table.max(initial=0) > OTHER_UNIT:
            caution(
                f"field '{name}': doses of column {place!r} are up to {table.max():.3g} times the largest of the "
                "training data: are they in its unit?"
            )
        return DenseStore(table[which])

    def labelled(self, name: str, data, place, known: Iterable[str]) -> tuple[list[dict[str, float]], np.ndarray]:
        """Return the dose of each part of each different pair of label and dose, and which of them each cell has.

        A usual word for a control is none where other controls are named, or where it is ``known`` as a perturbation.
        """
        try:
            labels = column_of(name, data, self.beside)
        except SchemaError as error:
            raise SchemaError(
                f"{error}. Doses stand beside perturbations: say where these are, Doses({str(place)!r}, beside=COLUMN)"
            ) from None
        require_complete(name, self.beside, labels)
        texts, doses = label_texts(labels).astype(str), column_of(name, data, place)
        numeric = doses.dtype.kind in "iuf"
        both = pd.MultiIndex.from_arrays([texts, np.where(doses.isna(), "", doses.astype(str))])
        which, kinds = pd.factorize(both)
        usual = [label for label in np.unique(texts) if says_none(label) and label not in known]
        control = [*self.control, *(() if self.control and not known else usual)]
        alone = list(known) or [label for label in np.unique(texts) if label not in control]
        first = np.unique(which, return_index=True)[1]
        read = []
        for (label, text), at in zip(kinds, first, strict=True):
            words = [str(text).strip()] if numeric else self.split(str(text))
            read.append(self.parts(name, cell_name(data, at), place, label, words, control, alone))
        return read, which

    def split(self, text: str) -> list[str]:
        """Doses as words; a sign that belongs to a number, as in 1e-05, is no separator."""
        return [word.strip() for word in re.split(rf"(?<![0-9.][eE]){re.escape(self.separator)}", text)]

    def parts(
        self, name: str, cell: str, place, label: str, words: list[str], control: list[str], alone: list[str]
    ) -> dict[str, float]:
        """Return the dose of each perturbation that a label names; of one that is named twice, both together."""
        several = Perturbations(self.beside, separator=self.separator).parts(label, control, alone)
        if not several:
            return {}
        named = [part.strip() for part in label.split(self.separator)]
        named = named if len(words) == len(named) else several
        if len(words) != len(named):
            raise SchemaError(
                f"field '{name}': cell {cell!r} has {len(several)} perturbations, {label!r}, and {len(words)} doses, "
                f"{self.separator.join(words)!r}, in column {place!r}; give one for each, such as "
                f"{self.separator.join(['1'] * len(several))!r}"
            )
        doses = dict.fromkeys(several, 0.0)
        for part, word in zip(named, words, strict=True):
            if part in doses:
                doses[part] += self.number(name, cell, place, label, word)
        return doses

    def number(self, name: str, cell: str, place, label: str, word: str) -> float:
        """Return a dose as a number of at least 0."""
        try:
            number = float(word)
        except ValueError:
            said = f"is {word!r}, not a number"
            if not word:
                said = f"is missing; if {label!r} is a control, say so: {self.called(place, label)}"
            raise SchemaError(f"field '{name}': the dose of cell {cell!r} in column {place!r} {said}") from None
        if not 0 <= number < np.inf:
            raise SchemaError(
                f"field '{name}': the dose of cell {cell!r} in column {place!r} is {word}; doses are at least 0"
            )
        return number

    def called(self, place, control: str) -> str:
        """The field with a further control, as it is written."""
        several = [*self.control, control]
        said = repr(several[0]) if len(several) == 1 else repr(several)
        return f"Doses({str(place)!r}, beside={self.beside!r}, control={said})"
