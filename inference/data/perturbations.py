"""What was done to each cell: a field of labels, several of which may stand together, with controls that have none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import checked_text
from fieldguide.inference.checks.labels import given_labels, label_texts
from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.interventions import NONE, says_none
from fieldguide.inference.data.reading import SchemaError, cell_name, check_labels, column_of, require_complete
from fieldguide.inference.data.storage import DenseStore
from fieldguide.inference.messages import caution


@dataclass(frozen=True)
class Perturbations(Field):
    """The perturbations of each cell; their codes, int64 [N, M], in ascending order, then -1.

    A column of labels. Several perturbations of one cell are separated by ``separator``, as in "KLF1+BAK1"; M is the
    largest number of them, at least 1, and new data may have more. A control has none, and its row is -1 throughout.

    Controls are the cells with a label of ``control``. Where it is not given, they are those with a usual word for it,
    whatever its case and hyphens (control, ctrl, non-targeting, NT, DMSO, vehicle, unperturbed and the like), and a
    warning says which labels were taken so.

    Other labels than these are passed with the place: ``fields={"perturbation": Perturbations("guide",
    control="AAVS1")}``.

    Attributes
    ----------
    control : str or sequence of str
        Labels of cells without a perturbation. Each of them must be there, in the data that the field is fitted on.
    separator : str
    needs_control : bool
        Whether data without a control are refused.
    """

    place: str = "perturbation"
    control: Any = ()
    separator: str = "+"
    needs_control: bool = False

    expandable = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", given_labels("control", self.control))
        checked_text("separator", self.separator)

    def learn(self, name, data, place):
        column = column_of(name, data, place)
        require_complete(name, place, column)
        texts, sizes = np.unique(label_texts(column).astype(str), return_counts=True)
        labels = [str(label) for label in texts]
        control = self._controls(name, place, labels)
        parts = {label: self.parts(label, control) for label in labels}
        empty = next((label for label in labels if label not in control and not parts[label]), None)
        if empty is not None:
            raise SchemaError(
                f"field '{name}': label {empty!r} of column {place!r} names no perturbation; if it says that there is "
                f"none, pass fields={{'{name}': Perturbations({place!r}, control={empty!r})}}"
            )
        known = sorted({part for several in parts.values() for part in several})
        if not known:
            raise SchemaError(f"field '{name}': column {place!r} names no perturbation: it has {_some(labels)} alone")
        check_labels(name, place, known)
        cells = pd.Series(0, index=known)
        for label, size in zip(labels, sizes, strict=True):
            cells[parts[label]] += size
        single = cells.index[cells == 1]
        if len(single):
            caution(
                f"field '{name}': perturbation {single[0]!r} has one cell ({len(single)} such perturbations): what it "
                "does cannot be told from what that cell is"
            )
        return {"perturbations": known, "control": control, "separator": self.separator}

    def read(self, name, data, place, state):
        column = column_of(name, data, place)
        require_complete(name, place, column)
        learnt = replace(self, separator=state["separator"])
        codes = {label: k for k, label in enumerate(state["perturbations"])}
        texts = label_texts(column).astype(str)
        labels, which = np.unique(texts, return_inverse=True)
        rows = []
        for label in labels:
            parts = learnt.parts(label, state["control"]) if label not in codes else [label]
            unknown = [part for part in parts if part not in codes and not says_none(part)]
            if unknown or (not parts and label not in state["control"]):
                at = int(np.flatnonzero(texts == label)[0])
                raise SchemaError(
                    f"field '{name}': perturbation {(unknown or [label])[0]!r} of cell {cell_name(data, at)!r} was not "
                    f"in the training data ({int((texts == label).sum())} cells); known: "
                    f"{_some(state['perturbations'])}; controls: {_some(state['control'])}"
                )
            rows.append(sorted({codes[part] for part in parts if part in codes}))
        width = max([1, *map(len, rows)])
        table = np.array([row + [NONE] * (width - len(row)) for row in rows], dtype=np.int64)
        return DenseStore(table.reshape(-1, width)[which.ravel()])

    def sizes(self, name, state):
        return {f"n_{name}": len(state["perturbations"])}

    def parts(self, label: str, control: Sequence[str]) -> list[str]:
        """The perturbations that a label names, each once; a part that is a control adds none."""
        if label in control:
            return []
        parts = [part.strip() for part in label.split(self.separator)]
        several = len(parts) > 1
        return list(dict.fromkeys(p for p in parts if p and p not in control and not (several and says_none(p))))

    def _controls(self, name: str, place: str, labels: Sequence[str]) -> list[str]:
        """The labels of controls that the data have."""
        lacking = next((word for word in self.control if word not in labels), None)
        if lacking is not None:
            raise SchemaError(
                f"field '{name}': no cell has the control {lacking!r} in column {place!r}; there are {_some(labels)}"
            )
        usual = [] if self.control else [label for label in labels if says_none(label)]
        if usual:
            caution(
                f"field '{name}': {_some(usual)} in {place!r} is read as no perturbation; "
                f"Perturbations({place!r}, control=...) with these labels says so too, and without this warning"
            )
        control = [*self.control, *usual]
        if self.needs_control and not control:
            raise SchemaError(
                f"field '{name}': there are no controls: no label of column {place!r} is one of the usual words "
                f"(control, ctrl, non-targeting, DMSO, ...); there are {_some(labels)}. Say which it is by "
                f"fields={{'{name}': Perturbations({place!r}, control=LABEL)}}"
            )
        return control


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(str(label)) for label in labels[:10])
    return (shown + (", ..." if len(labels) > 10 else "")) or "none"
