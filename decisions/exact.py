"""The exact mean and variance of an off-policy estimator in a small world, by enumeration of everything it may see."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions.estimators import DM, IPS, Feedback


def exact_moments(
    estimator: IPS | DM,
    contexts: ArrayLike,
    logging: ArrayLike,
    policy: ArrayLike,
    reward: ArrayLike,
    *,
    selected: ArrayLike | None = None,
    model: ArrayLike | None = None,
    length: int = 1,
    design: str = "iid",
) -> tuple[float, float]:
    """Return mean and variance of the estimate from a log of one context, in a world with K actions and M contexts.

    The estimate of n contexts has the same mean, and the variance divided by n (for estimators that are means).

    Parameters
    ----------
    contexts : array [M]
        Their probabilities.
    logging, policy : array [M, K]
    reward : array [M, K]
        Probability that the action is rewarded; rewards are 0 or 1.
    selected : bool array [M, K], optional
        The selected set of each context.
    model : array [M, K], optional
        Rewards by a model, for estimators that use one.
    length : int
        Actions of a slate: all ordered slates, and all rewards, are gone through.
    design : {"iid", "plackett_luce"}

    Examples
    --------
    >>> mean, variance = exact_moments(IPS(), [1.0], [[0.6, 0.3, 0.1]], [[0.2, 0.3, 0.5]], [[0.1, 0.5, 0.9]])
    >>> round(mean, 10), round(variance, 7)
    (0.62, 2.0222667)
    """
    p, rho, pi, delta = (np.asarray(v, dtype=np.float64) for v in (contexts, logging, policy, reward))
    chance, rows = [], []
    for m in range(len(p)):
        for slate in product(range(rho.shape[1]), repeat=length):
            drawn = _drawn(rho[m], slate, design)
            if p[m] * drawn == 0:
                continue
            for gained in product((0.0, 1.0), repeat=length):
                likely = np.prod([delta[m, a] if r else 1 - delta[m, a] for a, r in zip(slate, gained, strict=True)])
                if likely:
                    chance.append(p[m] * drawn * likely)
                    rows.append((m, slate, gained))
    weights = torch.tensor(np.array(chance))
    log = feedback_of(rows, rho, pi, selected, model, design)
    top, bottom = estimator.terms(log)
    if bottom is not None:
        raise ValueError(f"{estimator} is a ratio: a log of one context does not say what it tends to")
    mean = float((weights * top).sum())
    return mean, float((weights * top**2).sum()) - mean**2


def feedback_of(rows: Sequence, rho, pi, selected, model, design: str) -> Feedback:
    """Return the `Feedback` of rows (context, slate, rewards) in a world of tables [M, K]."""
    at = np.array([m for m, _, _ in rows])
    action = np.array([slate for _, slate, _ in rows])
    pick = lambda table: torch.tensor(np.asarray(table, dtype=np.float64)[at[:, None], action])  # noqa: E731
    by_context = lambda values: torch.tensor(np.asarray(values, dtype=np.float64)[at])  # noqa: E731
    found = Feedback(
        reward=torch.tensor(np.array([gained for _, _, gained in rows])),
        log_propensity=pick(np.log(rho)),
        log_target=pick(pi).log(),
        design=design,
    )
    inside = np.ones_like(pi, dtype=bool) if selected is None else np.asarray(selected, dtype=bool)
    found.inside = pick(inside) > 0
    found.target_mass, found.logging_mass = by_context((pi * inside).sum(1)), by_context((rho * inside).sum(1))
    if model is not None:
        q = np.asarray(model, dtype=np.float64)
        found.predicted, found.direct = pick(q), by_context((pi * q).sum(1))
        found.direct_inside = by_context((pi * inside * q).sum(1) / (pi * inside).sum(1))
    return found


def _drawn(rho: np.ndarray, slate: Sequence[int], design: str) -> float:
    """Probability of an ordered slate."""
    if design == "iid":
        return float(np.prod(rho[list(slate)]))
    if len(set(slate)) < len(slate):
        return 0.0
    chance, left = 1.0, 1.0
    for a in slate:
        chance, left = chance * rho[a] / left, left - rho[a]
    return float(chance)
