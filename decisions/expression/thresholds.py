"""Two numbers that a fold change needs, read from the data where the user gives none: pseudo-count and threshold."""

import numpy as np

FLOOR = 1e-10
"""The least pseudo-count: keeps the logarithm finite and is far below any proportion that counts can tell."""
SILENT = 0.01
"""Mean counts per cell below which a gene is not expressed in a group."""


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
