"""How far an estimated graph is from the true one: from plain Boolean matrices, G[i, j] for an edge from i to j."""

import numpy as np
from numpy.typing import ArrayLike

from fieldguide.decisions.graphs.dag import is_acyclic, reachable, square


def structural_hamming_distance(estimated: ArrayLike, true: ArrayLike) -> int:
    """Return the number of pairs of vertices that are joined differently; a reversed edge counts once.

    Where a pair is joined both ways in one graph and not at all in the other, that is two.

    Examples
    --------
    >>> structural_hamming_distance([[0, 1], [0, 0]], [[0, 0], [1, 0]])
    1
    """
    guess, truth = _pair(estimated, true)
    difference = truth.astype(int) - guess.astype(int)
    reversals = int(((difference == 1) & (difference.T == -1)).sum())
    return int(np.abs(difference).sum()) - reversals


def structural_intervention_distance(estimated: ArrayLike, true: ArrayLike) -> int:
    """Return the number of ordered pairs (i, j) whose effect p(x_j | do(x_i)) the estimated graph gets wrong.

    The estimated effect is that of adjusting for the parents of i in the estimated graph (Peters and Buehlmann 2015).
    It is right, for every distribution that the true graph allows, if and only if: where j is such a parent, j is no
    true descendant of i; else, no parent is a true descendant of a vertex after i on a directed path from i to j, and
    the parents d-separate i and j once the first edges of these paths are taken from the true graph.

    Costs d^2 tests of d-separation: for graphs of up to a hundred vertices or so.

    Raises
    ------
    ValueError
        If one of the graphs has a cycle.
    """
    guess, truth = _pair(estimated, true)
    for name, graph in (("estimated", guess), ("true", truth)):
        if not is_acyclic(graph):
            raise ValueError(f"the {name} graph has a cycle: the distance is between acyclic graphs")
    d, below = len(truth), reachable(truth)
    wrong = 0
    for i in range(d):
        parents = np.flatnonzero(guess[:, i])
        for j in range(d):
            if i == j:
                continue
            if guess[j, i]:
                wrong += int(below[i, j])
            else:
                wrong += int(not is_adjustment_set(truth, i, j, parents, below))
    return wrong


def is_adjustment_set(
    graph: np.ndarray, cause: int, effect: int, given: np.ndarray, below: np.ndarray | None = None
) -> bool:
    """Return whether adjusting for some vertices gives the effect of ``cause`` on ``effect`` (neither among them)."""
    below = reachable(graph) if below is None else below
    on_path = below[cause] & (below[:, effect] | (np.arange(len(graph)) == effect))
    forbidden = on_path | below[on_path].any(0)
    if forbidden[given].any():
        return False
    backdoor = graph.copy()
    backdoor[cause, on_path] = False
    return d_separated(backdoor, cause, effect, given)


def d_separated(graph: ArrayLike, first: int, second: int, given: ArrayLike) -> bool:
    """Return whether some vertices d-separate two others in an acyclic graph: in its moral graph of their ancestors.

    Examples
    --------
    A collider separates its parents until it is given:

    >>> collider = [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    >>> d_separated(collider, 0, 1, []), d_separated(collider, 0, 1, [2])
    (True, False)
    """
    edges = square(graph)
    known = np.zeros(len(edges), dtype=bool)
    known[np.asarray(given, dtype=np.int64)] = True
    old = known.copy()
    old[[first, second]] = True
    while True:  # the vertices, and their ancestors
        more = old | edges[:, old].any(1)
        if np.array_equal(more, old):
            break
        old = more
    inside = edges & old[:, None] & old
    counts = inside.astype(np.float32)
    moral = inside | inside.T | (counts @ counts.T > 0)
    moral[known], moral[:, known] = False, False
    reached = np.zeros(len(edges), dtype=bool)
    reached[first] = True
    while not reached[second]:
        more = reached | moral[reached].any(0)
        if np.array_equal(more, reached):
            return True
        reached = more
    return False


def _pair(estimated: ArrayLike, true: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    guess, truth = square(estimated), square(true)
    if guess.shape != truth.shape:
        raise ValueError(f"the graphs have {len(guess)} and {len(truth)} vertices")
    for name, graph in (("estimated", guess), ("true", truth)):
        if graph.diagonal().any():
            raise ValueError(f"the {name} graph has an edge from vertex {int(graph.diagonal().argmax())} to itself")
    return guess, truth
