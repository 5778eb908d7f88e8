"""Checks of arguments, written once: the message names the argument and says what it may be."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

LARGEST_SEED = 2**63 - 1


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError, naming the argument, unless its value is one of the allowed ones."""
    allowed = tuple(allowed)
    if not any(value is known or (type(value) is type(known) and value == known) for known in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")


def checked_int(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return a whole number as an int: of Python, of NumPy or of a tensor with one value; neither a bool nor a float.

    Parameters
    ----------
    name : str
        Of the argument, as its user wrote it.
    value : Any
    at_least, at_most : int, optional
        The range, both ends in it.

    Raises
    ------
    TypeError
        If it is no whole number.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> checked_int("n_latent", np.int64(10), at_least=1)
    10
    """
    asked = "a whole number" + _range(at_least=at_least, at_most=at_most)
    whole = None
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            whole = operator.index(value)
        except (TypeError, ValueError, RuntimeError):
            whole = None
    if whole is None or getattr(value, "dtype", None) in (bool, np.bool_):
        raise TypeError(f"{name} must be {asked}, not {_shown(value)}")
    if (at_least is not None and whole < at_least) or (at_most is not None and whole > at_most):
        raise ValueError(f"{name} must be {asked}, not {whole}")
    return whole


def checked_seed(value: Any, name: str = "seed") -> int:
    """Return a seed: a whole number in [0, 2^63)."""
    return checked_int(name, value, 0, LARGEST_SEED)


def checked_real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
) -> float:
    """Return a real number as a float; neither a bool nor text, never missing, and finite unless ``infinite``.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is missing (nan), infinite or out of range.

    Examples
    --------
    >>> checked_real("fdr", np.float32(0.5), at_least=0, below=1)
    0.5
    """
    asked = "a number" + _range(above=above, at_least=at_least, below=below, at_most=at_most)
    number = None
    if not isinstance(value, bool | np.bool_ | str | bytes | complex) and getattr(value, "shape", ()) == ():
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        except (TypeError, ValueError, RuntimeError):
            number = None
    if number is None or getattr(value, "dtype", None) in (bool, np.bool_):
        raise TypeError(f"{name} must be {asked}, not {_shown(value)}")
    outside = (
        math.isnan(number)
        or (math.isinf(number) and not infinite)
        or (above is not None and not number > above)
        or (at_least is not None and not number >= at_least)
        or (below is not None and not number < below)
        or (at_most is not None and not number <= at_most)
    )
    if outside:
        raise ValueError(f"{name} must be {asked}, not {number:g}")
    return number


def checked_flag(name: str, value: Any) -> bool:
    """Return True or False; TypeError for anything else, as a number or a word is easily the wrong argument."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {_shown(value)}")
    return bool(value)


def checked_text(name: str, value: Any) -> str:
    """Return text that is not empty; TypeError for anything that is no text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {_shown(value)}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return str(value)


def first_masked(values: Any) -> list[int] | None:
    """Return where the first masked value of a masked array stands; None where none is, and for all else.

    Examples
    --------
    >>> first_masked(np.ma.masked_array([[1.0, 2.0]], [[False, True]])), first_masked([1.0])
    ([0, 1], None)
    """
    masked = np.argwhere(np.ma.getmaskarray(values)) if isinstance(values, np.ma.MaskedArray) else np.zeros((0, 1))
    return masked[0].tolist() if len(masked) else None


def set_fields(instance: Any, **values: Any) -> None:
    """Set the fields of a frozen dataclass to their checked values, while it is made."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def plain_value(value: Any) -> Any:
    """Return single numbers and texts of NumPy as those of Python, also inside lists, tuples and dicts.

    Examples
    --------
    >>> plain_value((np.int64(2), {"a": np.float64(0.5)}))
    (2, {'a': 0.5})
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, dict):
        return {plain_value(key): plain_value(part) for key, part in value.items()}
    return type(value)(map(plain_value, value)) if type(value) in (list, tuple) else value


def _range(
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> str:
    low, high = at_least if above is None else above, at_most if below is None else below
    if low is not None and high is not None:
        return f" in {'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
    words = {"above": above, "of at least": at_least, "below": below, "of at most": at_most}
    given = [f" {word} {limit:g}" for word, limit in words.items() if limit is not None]
    return given[0] if given else ""


def _shown(value: Any) -> str:
    text = repr(value)
    kind = type(value).__name__
    if len(text) > 60 or "\n" in text:
        return f"a {kind}" + (f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else "")
    return f"{text} ({kind})"
