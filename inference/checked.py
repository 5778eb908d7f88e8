"""Checks of arguments, written once: the message names the argument and says what it may be."""

from collections.abc import Iterable
from typing import Any


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError, naming the argument, unless its value is one of the allowed ones."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")
