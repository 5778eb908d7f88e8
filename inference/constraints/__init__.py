"""Constraints for any objective: a measure of a step, a bound, and a rule that prices its violation."""

from fieldguide.inference.constraints.acyclicity import (
    Acyclicity,
    EdgeCount,
    log_determinant,
    spectral_radius,
    trace_exponential,
)
from fieldguide.inference.constraints.constraint import Active, Constraint, Measure, Rule, checked_constraints
from fieldguide.inference.constraints.independence import HSIC, BoundHSIC, hsic
from fieldguide.inference.constraints.lagrangian import AugmentedLagrangian
from fieldguide.inference.constraints.penalty import Penalty
from fieldguide.inference.constraints.permutation import PermutationTest, permutation_test
from fieldguide.inference.constraints.source import Source

__all__ = [
    "HSIC",
    "Acyclicity",
    "Active",
    "AugmentedLagrangian",
    "BoundHSIC",
    "Constraint",
    "EdgeCount",
    "Measure",
    "Penalty",
    "PermutationTest",
    "Rule",
    "Source",
    "checked_constraints",
    "hsic",
    "log_determinant",
    "permutation_test",
    "spectral_radius",
    "trace_exponential",
]
