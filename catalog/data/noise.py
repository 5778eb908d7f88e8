"""Wrong labels on purpose: noise matrices, labels drawn by them, and data of several annotators with the truth.

A noise matrix T [C, C] has the probabilities of the given labels (columns) for each true class (row).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fieldguide.inference.checks.ranges import Seed, Size, checked

__all__ = ["annotate", "confusion_matrix", "noisy_clusters", "pair_noise", "uniform_noise"]


def uniform_noise(classes: int, rate: float) -> np.ndarray:
    """Return the matrix that turns a label into each other one with equal probability, float64 [C, C].

    Examples
    --------
    >>> uniform_noise(3, 0.2).tolist()
    [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    """
    _checked(classes, rate)
    return np.where(np.eye(classes, dtype=bool), 1 - rate, rate / (classes - 1))


def pair_noise(classes: int, rate: float) -> np.ndarray:
    """Return the matrix that turns class c into c + 1, and the last into the first, float64 [C, C].

    Examples
    --------
    >>> pair_noise(3, 0.2).tolist()
    [[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.2, 0.0, 0.8]]
    """
    _checked(classes, rate)
    return (1 - rate) * np.eye(classes) + rate * np.roll(np.eye(classes), 1, axis=1)


def confusion_matrix(truth: ArrayLike, given: ArrayLike, classes: int) -> np.ndarray:
    """Return the shares of given labels for each true class, float64 [C, C]: the noise matrix of an annotator.

    Parameters
    ----------
    truth, given : array of int [N]
        Codes; pairs with a negative one are left out.

    Raises
    ------
    ValueError
        If a true class has no label.
    """
    truth, given = np.asarray(truth), np.asarray(given)
    both = (truth >= 0) & (given >= 0)
    counts = np.bincount(truth[both] * classes + given[both], minlength=classes**2).reshape(classes, classes)
    absent = np.flatnonzero(counts.sum(1) == 0)
    if absent.size:
        raise ValueError(f"class {absent[0]} has no label to compare with")
    return counts / counts.sum(1, keepdims=True)


@checked
def annotate(truth: ArrayLike, noise: ArrayLike, seed: Seed = 0) -> np.ndarray:
    """Return a label for each cell, drawn from the row of its true class, int64 [N].

    Parameters
    ----------
    truth : array of int [N]
        Codes of the true classes.
    noise : array [C, C]
        Rows sum to one.
    seed : int

    Raises
    ------
    ValueError
        If a row is no distribution, or a code has no row.

    Examples
    --------
    >>> annotate([0, 1, 2], pair_noise(3, 0.0)).tolist()
    [0, 1, 2]
    """
    truth, noise = np.asarray(truth), np.asarray(noise, dtype=float)
    if noise.ndim != 2 or noise.shape[0] != noise.shape[1]:
        raise ValueError(f"a noise matrix is square, not of shape {noise.shape}")
    no_distribution = np.flatnonzero((np.abs(noise.sum(1) - 1) > 1e-6) | (noise < 0).any(1))
    if no_distribution.size:
        row = no_distribution[0]
        raise ValueError(f"row {row} of the noise matrix is no distribution: {noise[row].tolist()}")
    outside = np.flatnonzero((truth < 0) | (truth >= len(noise)))
    if outside.size:
        raise ValueError(f"true class {truth[outside[0]]} of row {outside[0]} has no row in the noise matrix")
    steps = noise.cumsum(1)
    steps[:, -1] = 1.0
    return (steps[truth] <= np.random.default_rng(seed).random(len(truth))[:, None]).sum(1).astype(np.int64)


@checked
def noisy_clusters(
    n_cells: Size = 400,
    n_features: Size = 8,
    *,
    noise: Sequence[ArrayLike] | None = None,
    labelled: float = 1.0,
    separation: float = 3.0,
    seed: Seed = 0,
) -> dict[str, np.ndarray]:
    """Simulate Gaussian clusters that several annotators have labelled, with mistakes.

    Parameters
    ----------
    n_cells, n_features : int
    noise : sequence of array [C, C], optional
        A noise matrix for each annotator; by default one annotator of uniform noise 0.3 on three classes.
    labelled : float
        Share of the cells that each annotator labels, in (0, 1].
    separation : float
        Standard deviation of the cluster centres, in those of the cells around them.
    seed : int

    Returns
    -------
    dict of arrays
        ``values`` float64 [N, F]; ``truth`` int64 [N]; ``labels`` (of several annotators ``labels_0``, ``labels_1``
        ...) int64 [N], -1 where there is none.
    """
    if not 0 < labelled <= 1:
        raise ValueError(f"labelled must be a share in (0, 1], not {labelled}")
    matrices = [np.asarray(m, dtype=float) for m in (noise if noise is not None else [uniform_noise(3, 0.3)])]
    rng, classes = np.random.default_rng(seed), len(matrices[0])
    truth = rng.integers(0, classes, n_cells)
    centres = separation * rng.normal(size=(classes, n_features))
    data = {"values": centres[truth] + rng.normal(size=(n_cells, n_features)), "truth": truth}
    for a, matrix in enumerate(matrices):
        given = annotate(truth, matrix, seed=int(rng.integers(2**31)))
        name = "labels" if len(matrices) == 1 else f"labels_{a}"
        data[name] = np.where(rng.random(n_cells) < labelled, given, -1)
    return data


def _checked(classes: int, rate: float) -> None:
    if classes < 2:
        raise ValueError(f"{classes} class(es): noise needs two or more")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], not {rate}")
