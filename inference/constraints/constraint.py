"""What a constraint is, and how the loop holds it: measured in each step, priced by a rule, updated each epoch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_real, set_fields
from fieldguide.inference.constraints.lagrangian import AugmentedLagrangian
from fieldguide.inference.constraints.penalty import Penalty
from fieldguide.inference.constraints.source import Source
from fieldguide.inference.step import Step

INDEPENDENT = "independent"
Measure = Callable[[Step], Tensor]
Bound = float | str


@runtime_checkable
class Bindable(Protocol):
    """A measure that has to see the data before training."""

    def bind(self, source: Source) -> Measure:
        """Return the measure as a callable of a `Step`."""
        ...


@runtime_checkable
class Rule(Protocol):
    """How a violation is priced; see `Penalty` and `AugmentedLagrangian`.

    The state is a dict of numbers; those whose name has no leading underscore are shown in the history.
    """

    def start(self) -> dict[str, float]:
        """Return the state at the start of training."""
        ...

    def term(self, value: Tensor, bound: float | None, state: dict[str, float]) -> Tensor:
        """Return what is added to the loss of a minibatch with this measure; a bound of None is zero, see `Penalty`."""
        ...

    def update(self, excess: float, state: dict[str, float]) -> dict[str, float]:
        """Return the state after an epoch with this mean excess."""
        ...


@dataclass(frozen=True)
class Constraint:
    """A measure that training keeps at or below a bound.

    The gradient reaches one group of parameters only: the guide, unless ``group`` says otherwise.

    Parameters
    ----------
    measure : callable
        From a `Step` to a scalar Tensor. If it has a method ``bind``, it is called once before training with a `Source`
        (the user's data, the cells trained on, the sites of the program) and returns the callable.
    bound : float or "independent"
        The target. "independent": what the measure exceeds with probability 5 % when the variables are independent, by
        a permutation test on the draws of the epoch; the measure must have a method ``null``.
    rule : Penalty or AugmentedLagrangian
    name : str, optional
        Column of the history; by default that of the measure.
    group : str, optional
        Parameter group that the gradient reaches; None: all of them.

    Examples
    --------
    >>> Constraint(lambda step: step.value("z").pow(2).mean(), bound=1.0, rule=Penalty(10.0), name="size").name
    'size'
    """

    measure: Measure | Bindable
    bound: Bound = 0.0
    rule: Rule = field(default_factory=Penalty)
    name: str = ""
    group: str | None = "phi"

    def __post_init__(self) -> None:
        if isinstance(self.bound, str) and self.bound != INDEPENDENT:
            raise ValueError(f"bound must be a number or {INDEPENDENT!r}, not {self.bound!r}")
        if not isinstance(self.bound, str):
            set_fields(self, bound=checked_real("bound", self.bound))
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be a Penalty or an AugmentedLagrangian, not {self.rule!r}")
        if not callable(self.measure) and not isinstance(self.measure, Bindable):
            raise TypeError(f"measure must be a callable of a Step, not {type(self.measure).__name__}")
        if not self.name:
            name = getattr(self.measure, "name", None) or getattr(self.measure, "__name__", "constraint")
            set_fields(self, name=str(name).strip("<>"))


def checked_constraints(constraints) -> tuple[Constraint, ...]:
    """Return the constraints as a tuple; TypeError for what is no list of them."""
    if isinstance(constraints, Constraint | str) or not isinstance(constraints, Iterable):
        raise TypeError(f"constraints must be a list such as [hsic('z', 'n_genes')], not {constraints!r}")
    constraints = tuple(constraints)
    for constraint in constraints:
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraints must be Constraint objects such as hsic('z', 'n_genes'), not {constraint!r}")
    return constraints


class Active:
    """The constraints of one run of the loop.

    Parameters
    ----------
    constraints : iterable of Constraint
    source : Source
        What measures are bound to.
    """

    def __init__(self, constraints: Iterable[Constraint], source: Source) -> None:
        self.constraints = tuple(constraints)
        names = [c.name for c in self.constraints]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two constraints have the name '{twice[0]}': give one of them name=")
        self.measures: dict[str, Any] = {}
        self.states, self.bounds = {}, {}
        for constraint in self.constraints:
            measure: Any = constraint.measure
            measure = measure.bind(source) if isinstance(measure, Bindable) else measure
            if constraint.bound == INDEPENDENT and not hasattr(measure, "null"):
                raise ValueError(f"constraint '{constraint.name}': its measure has no permutation test (null)")
            self.measures[constraint.name] = measure
            self.states[constraint.name] = constraint.rule.start()
            self.bounds[constraint.name] = 0.0 if constraint.bound == INDEPENDENT else float(constraint.bound)

    def __len__(self) -> int:
        return len(self.constraints)

    def measured(self, step: Step) -> dict[str, Tensor]:
        """Return the value of each measure in this minibatch, with its gradient."""
        measured = {}
        for name, measure in self.measures.items():
            value = measure(step)
            if not isinstance(value, Tensor) or value.dim():
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"constraint '{name}': the measure must return a scalar Tensor, not {shape}")
            measured[name] = value
        return measured

    def terms(self, values: Mapping[str, Tensor]) -> list[tuple[str, str | None, Tensor]]:
        """Return name, group and addition to the loss of each constraint."""
        terms = []
        for c in self.constraints:
            bound = self.bounds[c.name] if self.bounded(c) else None
            terms.append((c.name, c.group, c.rule.term(values[c.name], bound, self.states[c.name])))
        return terms

    def bounded(self, constraint: Constraint) -> bool:
        """Whether the constraint has a bound other than zero."""
        return constraint.bound != 0.0

    def price(self, means: Mapping[str, float]) -> float:
        """Return what the constraints add to the loss of an epoch with these means."""
        tensors = {name: Tensor([value]).double() for name, value in means.items()}
        return float(sum(term for _, _, term in self.terms(tensors))) if self.constraints else 0.0

    def update(self, means: Mapping[str, float], step: Step | None, steps: int, epoch: int) -> dict[str, float]:
        """Update bounds and rules after an epoch and return its columns of the history, as they were in force.

        Parameters
        ----------
        means : mapping of str to float
            Mean of each measure over the minibatches of the epoch.
        step : Step, optional
            A minibatch for permutation tests.
        steps : int
            Minibatches in the epoch, which that mean averages.
        """
        row: dict[str, float] = {}
        for c in self.constraints:
            if c.bound == INDEPENDENT and step is not None:
                null = self.measures[c.name].null(step, np.random.default_rng(epoch))
                self.bounds[c.name] = float(null.mean() + 1.645 * null.std(ddof=1) / np.sqrt(steps))
            state = self.states[c.name]
            row |= {f"{c.name}_{key}": value for key, value in state.items() if not key.startswith("_")}
            if self.bounded(c):
                row[f"{c.name}_bound"] = self.bounds[c.name]
            self.states[c.name] = c.rule.update(means[c.name] - self.bounds[c.name], state)
        return row

    @property
    def tested(self) -> bool:
        """Whether any bound comes from a permutation test."""
        return any(c.bound == INDEPENDENT for c in self.constraints)

    def shown(self) -> tuple[dict[str, float], ...]:
        """Return the states of the rules, to see whether they changed."""
        return tuple({k: v for k, v in s.items() if not k.startswith("_")} for s in self.states.values())


__all__ = ["INDEPENDENT", "Active", "AugmentedLagrangian", "Bound", "Constraint", "Measure", "Rule"]
