"""Random weights of whole subjects (donors, animals, wells): what makes a statement about further subjects."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fieldguide.decisions.cells import Group, column
from fieldguide.decisions.decision import WeakDesign
from fieldguide.decisions.expression.reader import Expression
from fieldguide.inference.messages import caution

FEW = 5


@dataclass(frozen=True)
class UnitWeights:
    """Weights of the cells of a group that are shared within its units.

    Attributes
    ----------
    values : ndarray [R, U]
        Weight of one cell of each unit in each draw; at most one.
    codes : ndarray of int [n]
        The unit of each cell of the group.
    """

    values: np.ndarray
    codes: np.ndarray


def concentration(n: int) -> float:
    """Dirichlet concentration with which n bootstrap weights give a mean its unbiased variance.

    The variance of a weighted mean of fixed values is (n - 1) s² / (n (n a + 1)) under Dirichlet(a, ..., a), where s²
    is the sample variance; it equals s² / n for a = 1 - 2/n. The usual a = 1 (Rubin 1981) is too narrow for few units:
    by half for three of them.
    """
    return max(1 - 2 / n, 0.05)


def subject_weights(
    expression: Expression, unit: str, groups: tuple[Group, Group], draws: int, seed: int, scale: str = "proportions"
) -> tuple[UnitWeights, UnitWeights]:
    """Draw the weights of a Bayesian bootstrap over subjects for two groups of cells.

    Each subject counts once in a group, whatever the number and the sizes of its cells there. A subject with cells in
    both groups has the same weight in both, so that a comparison within subjects is paired.

    Raises
    ------
    ValueError
        For an unknown column, cells without a subject, or a group of a single subject.

    Warns
    -----
    WeakDesign
        With fewer than five subjects in a group.
    """
    obs = expression.posterior.obs
    labels = column(obs, unit, "unit")
    for group in groups:
        missing = group.rows[labels.iloc[group.rows].isna().to_numpy()]
        if missing.size:
            raise ValueError(f"unit={unit!r}: cell {str(obs.index[missing[0]])!r} has no subject")
    codes = [pd.factorize(labels.iloc[group.rows].astype(str), sort=True) for group in groups]
    for group, (_, names) in zip(groups, codes, strict=True):
        if len(names) < 2:
            raise ValueError(
                f"unit={unit!r}: all cells of {group.name!r} come from {names[0]!r}; a statement about subjects needs "
                "at least two in each group (unit='group' takes cells as the sample)"
            )
        if len(names) < FEW:
            caution(f"{group.name}: only {len(names)} subjects in {unit!r}: intervals are rough", WeakDesign)
    everyone = np.unique(np.concatenate([names for _, names in codes]))
    rng = np.random.default_rng([seed, int(min(group.rows[0] for group in groups)), 2])
    fewest = min(len(names) for _, names in codes)
    weight = rng.standard_gamma(concentration(fewest), (draws, len(everyone)))
    shared = []
    for group, (code, names) in zip(groups, codes, strict=True):
        own = weight[:, np.searchsorted(everyone, names)]
        size = np.bincount(code, expression.sizes(group.rows) if scale == "proportions" else None)
        shared.append(UnitWeights(own / own.max(1, keepdims=True) / size, code))
    return shared[0], shared[1]
