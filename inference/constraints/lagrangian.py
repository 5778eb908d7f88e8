"""A price that rises until the bound holds: the augmented Lagrangian method."""

from dataclasses import dataclass

from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, set_fields


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Add ``(max(0, multiplier + rho * excess)^2 - multiplier^2) / (2 rho)`` to the loss; excess = measure - bound.

    After an epoch the multiplier becomes ``max(0, multiplier + rho * mean excess)``, and rho grows by the factor
    ``growth`` when the violation, the positive part of the mean excess, is above ``shrink`` times the one before.

    Parameters
    ----------
    rho : float
        Where the quadratic price starts, in nats per cell and squared unit of the measure. HSIC is 0.01 or less, so its
        prices are large numbers.
    multiplier : float
        Where the linear price starts.
    growth, shrink : float
    largest : float
        Limit of rho.
    every : int
        Epochs between two updates.
    """

    rho: float = 1e4
    multiplier: float = 0.0
    growth: float = 2.0
    shrink: float = 0.9
    largest: float = 1e10
    every: int = 1

    def __post_init__(self) -> None:
        set_fields(
            self,
            rho=checked_real("rho", self.rho, above=0),
            multiplier=checked_real("multiplier", self.multiplier, at_least=0),
            growth=checked_real("growth", self.growth, at_least=1),
            shrink=checked_real("shrink", self.shrink, above=0, at_most=1),
            largest=checked_real("largest", self.largest, above=0, infinite=True),
            every=checked_int("every", self.every, 1),
        )

    def start(self) -> dict[str, float]:
        """Return the state at the start of training, which the history shows."""
        return {"multiplier": float(self.multiplier), "rho": float(self.rho)}

    def term(self, value: Tensor, bound: float | None, state: dict[str, float]) -> Tensor:
        """Return what is added to the loss of one minibatch with this measure; a bound of None is zero."""
        price, rho, excess = state["multiplier"], state["rho"], value - (bound or 0.0)
        return ((price + rho * excess).clamp(min=0) ** 2 - price**2) / (2 * rho)

    def update(self, excess: float, state: dict[str, float]) -> dict[str, float]:
        """Return the state after an epoch with this mean excess."""
        epochs = state.get("_epochs", 0) + 1
        if epochs % self.every:
            return state | {"_epochs": epochs}
        violation, before = max(0.0, excess), state.get("_violation", float("inf"))
        rho = state["rho"]
        multiplier = max(0.0, state["multiplier"] + rho * excess)
        if violation > self.shrink * before:
            rho = min(self.growth * rho, self.largest)
        return {"multiplier": multiplier, "rho": rho, "_epochs": epochs, "_violation": violation}
