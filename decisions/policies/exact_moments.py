"""The exact mean and variance of an off-policy estimator in a small world, by enumeration of everything it may see."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions.policies.estimators import DM, IPS, Feedback


def exact_moments(
    estimator: IPS | DM,
    contexts: ArrayLike,
    logging: ArrayLike,
    policy: ArrayLike,
    reward: ArrayLike,
    *,
    selected: ArrayLike | None = None,
    model: ArrayLike | None = None,
    embedding: ArrayLike | None = None,
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
    reward : array [M, K], or [M, K, E] with ``embedding``
        Probability that the action (with this embedding) is rewarded; rewards are 0 or 1.
    selected : bool array [M, K], optional
        The selected set of each context.
    model : array [M, K], optional
        Rewards by a model, for estimators that use one.
    embedding : array [K, E], optional
        Probability of each embedding, given the action, for estimators that use one; all are gone through.
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
    shown = np.ones((rho.shape[1], 1)) if embedding is None else np.asarray(embedding, dtype=np.float64)
    delta = np.broadcast_to(delta[..., None], (*rho.shape, shown.shape[1])) if delta.ndim == 2 else delta
    chance, rows = [], []
    for m in range(len(p)):
        for slate in product(range(rho.shape[1]), repeat=length):
            drawn = p[m] * _drawn(rho[m], slate, design)
            for kinds in product(range(shown.shape[1]), repeat=length) if drawn else ():
                with_these = drawn * np.prod(shown[list(slate), list(kinds)])
                for gained in product((0.0, 1.0), repeat=length) if with_these else ():
                    right = delta[m, list(slate), list(kinds)]
                    likely = np.prod(np.where(gained, right, 1 - right))
                    if likely:
                        chance.append(with_these * likely)
                        rows.append((m, slate, gained, kinds))
    weights = torch.tensor(np.array(chance))
    log = _feedback(rows, rho, pi, selected, model, shown, design)
    top, bottom = estimator.terms(log)
    if bottom is not None:
        raise ValueError(f"{estimator} is a ratio: a log of one context does not say what it tends to")
    mean = float((weights * top).sum())
    return mean, float((weights * top**2).sum()) - mean**2


def _feedback(rows: Sequence, rho, pi, selected, model, shown, design: str) -> Feedback:
    """The `Feedback` of rows (context, slate, rewards, embeddings) in a world of tables [M, K] and [K, E]."""
    at, action, gained, kinds = (np.array(part) for part in zip(*rows, strict=True))

    def pick(table: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(table, dtype=np.float64)[at[:, None], action])

    def by_context(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64)[at])

    def marginal(policy: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.take_along_axis((policy @ shown)[at], kinds, 1))

    inside = np.ones_like(pi, dtype=bool) if selected is None else np.asarray(selected, dtype=bool)
    feedback = Feedback(
        reward=torch.tensor(gained),
        log_propensity=pick(np.log(rho)),
        log_target=pick(pi).log(),
        design=design,
        inside=pick(inside) > 0,
        target_mass=by_context((pi * inside).sum(1)),
        logging_mass=by_context((rho * inside).sum(1)),
        target_embedding=marginal(pi),
        logging_embedding=marginal(rho),
    )
    if model is not None:
        q = np.asarray(model, dtype=np.float64)
        feedback.predicted, feedback.direct = pick(q), by_context((pi * q).sum(1))
        feedback.direct_inside = by_context((pi * inside * q).sum(1) / (pi * inside).sum(1))
    return feedback


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
