"""Objectives: callables from a Step to a loss, or to one loss for each parameter group."""

from collections.abc import Callable

from torch import Tensor

from fieldguide.inference.objectives.bounds import ELBO, IWAE
from fieldguide.inference.step import Step

Objective = Callable[[Step], Tensor | dict[str, Tensor]]

SHORT_NAMES: dict[str, Callable[[], Objective]] = {"elbo": ELBO, "iwae": IWAE}


def resolve(objective: "str | Objective") -> Objective:
    """Return the objective itself, or the one that a short name stands for.

    Examples
    --------
    >>> resolve("iwae")
    IWAE(particles=25, gradient='dreg')
    """
    if isinstance(objective, str):
        if objective not in SHORT_NAMES:
            raise ValueError(f"no objective '{objective}'; short names are {', '.join(SHORT_NAMES)}")
        return SHORT_NAMES[objective]()
    if not callable(objective):
        raise TypeError(f"an objective is a name or a callable of a Step, not {type(objective).__name__}")
    return objective


__all__ = ["ELBO", "IWAE", "SHORT_NAMES", "Objective", "resolve"]
