"""Warnings that point at the line of the user's code."""

import sys
import warnings


def caution(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("fieldguide.", "jaxtyping")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
