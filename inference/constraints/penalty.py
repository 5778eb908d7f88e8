"""A fixed price for the violation of a constraint."""

from dataclasses import dataclass

from torch import Tensor


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
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, not {self.weight}")

    def start(self) -> dict[str, float]:
        """Return the state at the start of training, which the history shows."""
        return {"weight": float(self.weight)}

    def term(self, excess: Tensor, bounded: bool, state: dict[str, float]) -> Tensor:
        """Return what is added to the loss.

        Parameters
        ----------
        excess : Tensor []
            Measure minus bound, of one minibatch.
        bounded : bool
            Whether there is a bound other than 0. Without one, an estimate below zero counts as it is: cutting it off
            would make an unbiased estimate biased.
        """
        return state["weight"] * (excess.clamp(min=0) if bounded else excess)

    def update(self, excess: float, state: dict[str, float]) -> dict[str, float]:
        """Return the state after an epoch with this mean excess: the same."""
        return state
