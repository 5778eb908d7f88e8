"""The selected set of actions: the top p of the logging policy, and how to choose p from a log."""

import numpy as np
from numpy.typing import ArrayLike


def ranked(logging: ArrayLike, count: int | None = None) -> np.ndarray:
    """Return the codes of the ``count`` most probable actions of each context, most probable first, int64 [n, p].

    Of equally probable ones the smaller code comes first, in training and in use alike.

    Examples
    --------
    >>> ranked([[0.2, 0.4, 0.4]], 2).tolist()
    [[1, 2]]
    """
    rho = np.asarray(logging, dtype=np.float64)
    return np.argsort(-rho, axis=1, kind="stable")[:, :count]


def rank_quantile(rank: ArrayLike, reward: ArrayLike, share: float = 0.9, least: int = 1) -> int:
    """Return the smallest p for which a share of the rewarded logged items has a rank of at most p.

    Parameters
    ----------
    rank : int array [n, l]
        Rank of each logged action under the logging policy, from 1.
    reward : array [n, l]
    share : float
        In (0, 1].
    least : int
        Smallest answer: the items of a slate, for instance.

    Raises
    ------
    ValueError
        If nothing was rewarded.

    Examples
    --------
    >>> rank_quantile([[1], [2], [9]], [[1], [1], [0]])
    2
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], not {share}")
    rewarded = np.sort(np.asarray(rank)[np.asarray(reward) > 0])
    if not rewarded.size:
        raise ValueError("no logged item was rewarded: nothing says how many actions matter")
    return max(int(rewarded[int(np.ceil(share * len(rewarded))) - 1]), least)
