"""Independence tested by permutation: the distribution of a measure when one variable is shuffled against the other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed

LEVEL = 0.05
TIES = 1e-5
"""Measures that differ by less, relative to the largest, differ by rounding (in single precision): they are ties."""


@dataclass(frozen=True)
class PermutationTest:
    """Outcome of a test of independence.

    Attributes
    ----------
    value : float
        The measure of the data as they are.
    p_value : float
        Share of the shuffled data (the data themselves counted) with a measure at least as large; exact at any size.
    threshold : float
        What the measure exceeds with probability ``level`` under independence.
    null : array [P]
        The measure of each shuffled data set.
    """

    value: float
    p_value: float
    threshold: float
    null: np.ndarray


def permutation_test(
    measure: Callable[[Tensor], Tensor],
    n: int,
    permutations: int = 200,
    level: float = LEVEL,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> PermutationTest:
    """Test independence with any measure.

    Parameters
    ----------
    measure : callable
        From an order of one variable's n points (int64 [n]) to the measure with the other variable left as it is.
    n : int
    permutations : int
        At least ``1 / level``, or no outcome could be significant.
    level : float
    seed : int
    groups : array [n], optional
        Shuffle within these groups only: a test of independence given the group.
    """
    level = checked_real("level", level, above=0, below=1)
    fewest = int(np.ceil(round(1 / level - 1, 9)))
    n, permutations = checked_int("n", n, 2), checked_int("permutations", permutations, 1)
    if permutations < fewest:
        raise ValueError(f"permutations={permutations} cannot reach level {level:g}: at least {fewest} are needed")
    rng = np.random.default_rng(checked_seed(seed))
    value = float(measure(torch.arange(n)))
    null = np.array([float(measure(shuffled(n, rng, groups))) for _ in range(permutations)])
    ties = TIES * max(abs(value), float(np.abs(null).max()))
    p_value = (1 + np.sum(null >= value - ties)) / (1 + permutations)
    return PermutationTest(value, float(p_value), float(np.quantile(null, 1 - level, method="higher")), null)


def shuffled(n: int, rng: np.random.Generator, groups: np.ndarray | None = None) -> Tensor:
    """Return a random order of n points, or one that keeps each point's group."""
    if groups is None:
        return torch.from_numpy(rng.permutation(n))
    order = np.arange(n)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        order[rows] = rng.permutation(rows)
    return torch.from_numpy(order)
