"""A fixed price for the violation of a constraint."""

from dataclasses import dataclass

from torch import Tensor

from fieldguide.inference.checks.arguments import checked_real, set_fields


@dataclass(frozen=True)
class Penalty:
    """Add ``weight * measure`` to the loss; with a bound, ``weight * max(0, measure - bound)``.

    Parameters
    ----------
    weight : float
        In nats per cell and unit of the measure.
    """

    weight: float = 1000.0

    def __post_init__(self) -> None:
        set_fields(self, weight=checked_real("weight", self.weight, at_least=0))

    def start(self) -> dict[str, float]:
        """Return the state at the start of training, which the history shows."""
        return {"weight": float(self.weight)}

    def term(self, value: Tensor, bound: float | None, state: dict[str, float]) -> Tensor:
        """Return what is added to the loss.

        Parameters
        ----------
        value : Tensor []
            The measure of one minibatch.
        bound : float, optional
            None where the constraint has none but zero. Then an estimate below zero counts as it is: cutting it off
            would make an unbiased estimate biased.
        """
        return state["weight"] * (value if bound is None else (value - bound).clamp(min=0))

    def update(self, excess: float, state: dict[str, float]) -> dict[str, float]:
        """Return the state after an epoch with this mean excess: the same."""
        return state
