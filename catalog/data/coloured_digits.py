"""Digits in colours that give them away, in two environments that disagree on how (after Arjovsky et al. 2019)."""

from typing import Any

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.ranges import Seed, checked

CLASSES = 10


@checked
def coloured_digits(digits: Any, labels: Any, seed: Seed, white: bool = False) -> anndata.AnnData:
    """Return digits [N, S, S] as images of three channels whose colour says the label, in each environment otherwise.

    In "red" the channels are multiplied by 1, y / 10 and y / 10, in "green" by (9 - y) / 10, 1 and (9 - y) / 10. A rule
    by colour is perfect in both, and of no use on white digits.

    Parameters
    ----------
    digits : uint8 array [N, S, S]
    labels : int array [N]
        y, 0 to 9.
    seed : int
        Of the environments, drawn for each image with equal chance.
    white : bool
        All channels alike, in the environment "white": the test.

    Returns
    -------
    AnnData
        ``obsm["image"]`` uint8 [N, 3, S, S]; ``obs``: ``label`` ("digit 0", ...) and ``environment``. ``X`` is empty.

    Examples
    --------
    >>> data = coloured_digits(np.full((2, 4, 4), 200, dtype=np.uint8), np.array([3, 9]), 0)
    >>> data.obs["environment"].tolist(), data.obsm["image"][:, :, 0, 0].tolist()
    (['green', 'red'], [[120, 200, 120], [200, 180, 180]])
    """
    digits, labels = np.asarray(digits), np.asarray(labels)
    if digits.ndim != 3 or digits.dtype != np.uint8:
        raise ValueError(f"digits are uint8 [N, S, S], not {digits.dtype} of shape {digits.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if labels.shape != digits.shape[:1] or wrong.size:
        what = f"label {labels[wrong[0]]} of image {wrong[0]}" if wrong.size else f"labels of shape {labels.shape}"
        raise ValueError(f"{what} for {len(digits)} digits: there is one label each, 0 to 9")
    red = np.random.default_rng(seed).random(len(digits)) < 0.5
    level = np.where(red, labels, CLASSES - 1 - labels) / CLASSES
    tint = np.stack([np.where(red, 1, level), np.where(red, level, 1), level], 1)
    if white:
        tint[:] = 1
    images = np.round(digits[:, None] * tint[:, :, None, None]).astype(np.uint8)
    environment = np.full(len(digits), "white") if white else np.where(red, "red", "green")
    obs = pd.DataFrame(
        {"label": [f"digit {y}" for y in labels], "environment": environment},
        index=[f"image{i}" for i in range(len(digits))],
    )
    return anndata.AnnData(obs=obs, obsm={"image": images})
