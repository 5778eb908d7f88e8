"""Objectives: callables from a Step to a loss, or to one loss for each parameter group."""

from collections.abc import Callable

from torch import Tensor

from fieldguide.inference.objectives.bounds import ELBO, IWAE, Renyi, VRMax
from fieldguide.inference.objectives.chi import CUBO, RELEASED, Chi
from fieldguide.inference.objectives.off_policy import OffPolicyValue
from fieldguide.inference.objectives.several import Several
from fieldguide.inference.objectives.wake import ForwardKL, SleepPhi, WakeWake
from fieldguide.inference.step import Step

Objective = Callable[[Step], Tensor | dict[str, Tensor]]

SHORT_NAMES: dict[str, Callable[[], Objective]] = {
    "elbo": ELBO,
    "iwae": IWAE,
    "renyi": Renyi,
    "vrmax": VRMax,
    "wake": WakeWake,
    "chi": Chi,
    "forward_kl": ForwardKL,
    "cubo": CUBO,
}
"""The objectives by short name. The last two train the guide alone: for a model that is kept as it is."""

REPLICATIONS: dict[str, Callable[[], Objective]] = {RELEASED: lambda: Chi(gradient=RELEASED)}
"""Published forms that are wrong, by the name that asks for them."""


def resolve(objective: "str | Objective") -> Objective:
    """Return the objective itself, or the one that a short name stands for.

    Examples
    --------
    >>> resolve("iwae")
    IWAE(particles=25, gradient='dreg')
    """
    if isinstance(objective, str):
        known = SHORT_NAMES | REPLICATIONS
        if objective not in known:
            raise ValueError(f"no objective '{objective}'; short names are {', '.join(SHORT_NAMES)}")
        return known[objective]()
    if isinstance(objective, type):
        raise TypeError(f"objective must be an object, not a class: {objective.__name__}(), say")
    if not callable(objective):
        raise TypeError(f"an objective is a name or a callable of a Step, not {type(objective).__name__}")
    return objective


__all__ = [
    "CUBO",
    "ELBO",
    "IWAE",
    "REPLICATIONS",
    "SHORT_NAMES",
    "Chi",
    "ForwardKL",
    "Objective",
    "OffPolicyValue",
    "Renyi",
    "Several",
    "SleepPhi",
    "VRMax",
    "WakeWake",
    "resolve",
]
