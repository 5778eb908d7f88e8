"""What was done to each cell: a field of labels, several of which may stand together, with controls that have none."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import checked_flag, checked_text
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

    Where controls are named, a usual word is a perturbation like others, but for "KLF1+ctrl" where "ctrl" never stands
    alone. Other labels than these are passed with the place: ``fields={"perturbation": Perturbations("guide",
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
    needs_control: Any = False

    expandable = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", given_labels("control", self.control))
        checked_text("separator", self.separator)
        checked_flag("needs_control", self.needs_control)

    def as_given(self, given):
        needed = self.needs_control or getattr(given, "needs_control", False)
        return replace(given, needs_control=needed)  # pyright: ignore[reportCallIssue]

    def learn(self, name, data, place):
        column = column_of(name, data, place)
        require_complete(name, place, column)
        texts, sizes = np.unique(label_texts(column).astype(str), return_counts=True)
        labels = [str(label) for label in texts]
        control = self._controls(name, place, labels)
        alone = [label for label in labels if label not in control]
        parts = {label: self.parts(label, control, alone) for label in labels}
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
        found = {"perturbations": known, "control": control, "separator": self.separator}
        return found | {"named": bool(self.control)}

    def read(self, name, data, place, state):
        column = column_of(name, data, place)
        require_complete(name, place, column)
        learnt = replace(self, separator=state["separator"])
        codes = {label: k for k, label in enumerate(state["perturbations"])}
        texts = label_texts(column).astype(str)
        labels, which = np.unique(texts, return_inverse=True)
        rows = []
        for label in labels:
            parts = learnt.parts(label, state["control"], codes) if label not in codes else [label]
            named = state.get("named", False)  # then a usual word is none, unless it stands beside a perturbation
            unknown = [part for part in parts if part not in codes and (named or not says_none(part))]
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

    def parts(self, label: str, control: Sequence[str], known: Collection[str] = ()) -> list[str]:
        """The perturbations that a label names, each once; a part that is a control adds none.

        A usual word for a control is none beside others, unless it is ``known`` as a perturbation. A separator at an
        end, as in "Ca2+", belongs to the name.
        """
        if label in control:
            return []
        parts = [part.strip() for part in label.split(self.separator)]
        if not all(parts):
            return [label.strip()] if label.strip(f" {self.separator}") else []
        several = len(parts) > 1
        used = (p for p in parts if p not in control and (p in known or not (several and says_none(p))))
        return list(dict.fromkeys(used))

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
        if not control:
            said = (
                f"field '{name}': there are no controls: no label of column {place!r} is one of the usual words "
                f"(control, ctrl, non-targeting, DMSO, ...); there are {_some(labels)}. "
            )
            way = f"fields={{'{name}': Perturbations({place!r}, control=LABEL)}}"
            if self.needs_control:
                raise SchemaError(f"{said}Say which it is by {way}")
            caution(f"{said}If one of them is a control, say so by {way}")
        return control


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(str(label)) for label in labels[:10])
    return (shown + (", ..." if len(labels) > 10 else "")) or "none"
