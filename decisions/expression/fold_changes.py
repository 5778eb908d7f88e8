"""From draws of the expression of two groups to weighted draws of each gene's log2 fold change.

The two numbers that a fold change needs are read from the data where the user gives none: the pseudo-count, and the
least fold change of interest.
"""

from dataclasses import dataclass

import numpy as np

from fieldguide.decisions.cells import Group
from fieldguide.decisions.expression.fold_change_prior import shared_prior
from fieldguide.decisions.expression.group_draws import Draws
from fieldguide.decisions.expression.level_error import level_draws

FLOOR = 1e-10
"""The least pseudo-count: keeps the logarithm finite and is far below any proportion that counts can tell."""
SILENT = 0.01
"""Mean counts per cell below which a gene is not expressed in a group."""


@dataclass(frozen=True)
class FoldChanges:
    """Draws of the log2 fold changes.

    Attributes
    ----------
    lfc, weights : ndarray float32 [R, G]
        Draws, and their weights, which sum to one for each gene.
    levels : pair of ndarray [R, G]
        Draws of the expression of both groups, with the error of their levels where asked.
    pseudo : float
        The pseudo-count.
    """

    lfc: np.ndarray
    weights: np.ndarray
    levels: tuple[np.ndarray, np.ndarray]
    pseudo: float


def fold_changes(
    drawn: list[Draws], groups: tuple[Group, Group], pseudo: float | None, calibrate: bool, seed: int
) -> FoldChanges:
    """Compare the draws of two groups, see ``pseudo`` and ``calibrate`` of `differential_expression`."""
    if pseudo is None:
        counts = [part.observed.mean for part in drawn if part.observed is not None]
        pseudo = pseudocount([part.rho for part in drawn], counts or None)
    levels = [part.rho for part in drawn]
    if calibrate:
        for number, (part, group) in enumerate(zip(drawn, groups, strict=True)):
            rng = np.random.default_rng([seed, int(group.rows[0]), 1])
            levels[number] = part.rho * level_draws(part.totals, len(part.rho), rng)
    lfc = np.log2(levels[0] + np.float32(pseudo)) - np.log2(levels[1] + np.float32(pseudo))
    weights = shared_prior(lfc)[0] if calibrate else np.full_like(lfc, 1 / len(lfc))
    return FoldChanges(lfc, weights, (levels[0], levels[1]), pseudo)


def pseudocount(rho: list[np.ndarray], counts: list[np.ndarray] | None) -> float:
    """Return the pseudo-count added to proportions before the logarithm.

    What a model says about genes that a group does not express is an artefact. Of these genes the largest draw is
    taken, of these the 0.9-quantile, of the two groups the larger, divided by the number of genes (rule of scvi-tools).

    Parameters
    ----------
    rho : pair of array [R, G]
        Draws of the proportions of both groups.
    counts : pair of array [G], optional
        Mean counts per cell of both groups.
    """
    if counts is None:
        return FLOOR
    silent = [draws[:, mean < SILENT] for draws, mean in zip(rho, counts, strict=True)]
    artefact = [float(np.quantile(draws.max(0), 0.9)) for draws in silent if draws.shape[1]]
    return max([FLOOR, *(value / rho[0].shape[1] for value in artefact)])


def effect_threshold(lfc: np.ndarray, seed: int = 0) -> float:
    """Return the least log2 fold change of interest, from the fold changes of all genes [G].

    Three Gaussians are fitted to the genes' mean fold changes; those of lowest and highest mean are taken for the
    changed genes, and the threshold is 0.6 of the mean size of these two means, at least 0.1 (rule of scvi-tools).

    Raises
    ------
    ValueError
        With fewer than ten genes, which cannot show a mixture.
    """
    if len(lfc) < 10:
        raise ValueError(f"delta=None reads the threshold from at least 10 genes, not {len(lfc)}: give delta")
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(3, random_state=seed).fit(np.asarray(lfc, dtype=np.float64)[:, None])
    return float(max(0.1, 0.6 * np.mean(np.abs([mixture.means_.min(), mixture.means_.max()]))))
