"""Labels as users write them: 1, "1" and 1.0 are one label, and an exact match comes first."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

GAPS = frozenset(("", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "NaT", "<NA>", "None", "null", "NULL"))
"""What a missing label becomes as text."""
UNKNOWN = frozenset(("unknown", "unlabelled", "unlabeled", "unassigned"))
"""Labels, in small letters, of cells that have none."""


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
    codes, known = _distinct(values)
    texts = np.array([*map(label_text, known), None], dtype=object)  # -1 is the last
    return texts[codes]


def says_missing(label: str) -> bool:
    """Whether a label is what a missing value becomes when it is made text, or a word for a cell without a label.

    Examples
    --------
    >>> [says_missing(label) for label in ("nan", "Unknown", "", "unknown receptor", "none")]
    [True, True, True, False, False]
    """
    return label.strip() in GAPS or label.strip().lower() in UNKNOWN


def label_codes(name: str, values: Any, known: Sequence[str]) -> np.ndarray:
    """Return the place of each label among known ones, int64 [N], as `find_label` does; -1 where it is none of them.

    Raises
    ------
    ValueError
        If a label may be several of the known ones.

    Examples
    --------
    >>> label_codes("batch", [1.0, None, 2.0, 7.0], ["1", "2.0"]).tolist()
    [0, -1, 1, -1]
    """
    codes, distinct = _distinct(values)
    exact = {label: k for k, label in reversed([*enumerate(known)])}
    alike: dict[str, list[int]] = {}
    for k, label in enumerate(known):
        alike.setdefault(_written(label), []).append(k)
    places = np.full(len(distinct) + 1, -1, dtype=np.int64)
    for at, label in enumerate(distinct):
        texts = [str(label), label_text(label)]
        if isinstance(label, bool | np.bool_):
            texts.append(str(int(label)))  # what labels of True and False were called before
        matches = [exact[text] for text in texts if text in exact][:1]
        matches = matches or alike.get(_written(label), [])
        if len(matches) > 1:
            raise ValueError(f"{name}: several labels are written {label_text(label)!r}; make them differ")
        places[at] = matches[0] if matches else -1
    return places[codes]


def _distinct(values: Any) -> tuple[np.ndarray, list]:
    """Codes int64 [N], -1 where a label is missing, and the distinct labels; 1, True and 1.0 are distinct."""
    if isinstance(values, pd.MultiIndex):
        values = values.to_flat_index()
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    if series.dtype != object:
        codes, distinct = pd.factorize(series)
        return codes, list(distinct)
    known: dict[Any, int] = {}
    missing, codes = series.isna().to_numpy(), np.full(len(series), -1, dtype=np.int64)
    for row, value in enumerate(series.to_numpy()):
        if not missing[row]:
            if not isinstance(value, Hashable):
                raise TypeError(f"a label is text or a number, and that of row {row} is {value!r:.60}")
            codes[row] = known.setdefault((type(value), value), len(known))
    return codes, [value for _, value in known]


def given_labels(name: str, labels: Any) -> tuple[str, ...]:
    """Return one label or several as text, each once.

    Raises
    ------
    TypeError
        For what is no label, naming the argument.

    Examples
    --------
    >>> given_labels("control", 3), given_labels("control", ["a", "b", "a"])
    (('3',), ('a', 'b'))
    """
    single = isinstance(labels, str | Mapping) or not isinstance(labels, Iterable)
    several = [labels] if single else list(labels)
    for label in several:
        if label is None or isinstance(label, float) and label != label or isinstance(label, Mapping | list | set):
            raise TypeError(f"{name} must be a label or a list of labels, not {labels!r}")
    return tuple(dict.fromkeys(label_text(label) for label in several))


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
