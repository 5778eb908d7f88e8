"""Labels as users write them: 1, "1" and 1.0 are one label, and an exact match comes first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def label_text(value: Any) -> str:
    """Return how a label is written: whole numbers without a decimal point, whatever their type.

    Examples
    --------
    >>> [label_text(v) for v in (1, 1.0, np.int64(1), "1", "1.0", True, 0.5, "B cell")]
    ['1', '1', '1', '1', '1.0', 'True', '0.5', 'B cell']
    """
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def label_texts(values: Any) -> np.ndarray:
    """Return labels as text, object [N]; None where a label is missing (None, nan, NA, NaT)."""
    series = pd.Series(values) if not isinstance(values, pd.Series) else values
    array = series.to_numpy(dtype=object)
    missing = series.isna().to_numpy()
    known: dict[Any, str] = {}
    texts = np.empty(len(array), dtype=object)
    for row, (value, absent) in enumerate(zip(array, missing, strict=True)):
        if absent:
            texts[row] = None
            continue
        key = (type(value), value)
        if key not in known:
            known[key] = label_text(value)
        texts[row] = known[key]
    return texts


def find_label(name: str, wanted: Any, known: Sequence[Any], what: str = "label") -> int:
    """Return the place of a label among those there are: an exact match first, else one that is written the same.

    Parameters
    ----------
    name : str
        Of the argument.
    wanted : label
    known : sequence of labels
    what : str
        What the labels are of, for the message.

    Raises
    ------
    ValueError
        Naming the argument, the label and the labels there are; also where two of them are written the same.

    Examples
    --------
    >>> find_label("group", "1", [0, 1, 2]), find_label("group", 1.0, ["1", "2"])
    (1, 0)
    """
    exact = [k for k, label in enumerate(known) if type(label) is type(wanted) and label == wanted]
    alike = exact or [k for k, label in enumerate(known) if _written(label) == _written(wanted)]
    if len(alike) == 1 or (exact and alike):
        return alike[0]
    there = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
    if alike:
        raise ValueError(f"{name}: several labels are written {label_text(wanted)!r}; make them differ")
    raise ValueError(f"{name}: no {what} {wanted!r}; there are {there}")


def _written(label: Any) -> str:
    """As `label_text`, and text that is a whole number ("1.0") as that number."""
    text = label_text(label)
    whole, point, rest = text.partition(".")
    return whole if point and rest.strip("0") == "" and whole.lstrip("-").isdigit() else text
