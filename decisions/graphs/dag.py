"""Directed graphs as Boolean matrices: order, cycles, and the heaviest edges that close none."""

import numpy as np
from numpy.typing import ArrayLike


def topological_order(edges: ArrayLike) -> np.ndarray | None:
    """Return an order of the vertices [d] in which every edge points forward, or None where there is a cycle.

    Parameters
    ----------
    edges : bool array [d, d]
        ``edges[i, j]`` says that there is an edge from i to j.

    Examples
    --------
    >>> topological_order([[0, 0], [1, 0]]).tolist()
    [1, 0]
    >>> topological_order([[0, 1], [1, 0]]) is None
    True
    """
    graph = square(edges)
    parents = graph.sum(0)
    ready, order = list(np.flatnonzero(parents == 0)), []
    while ready:
        vertex = ready.pop()
        order.append(vertex)
        children = np.flatnonzero(graph[vertex])
        parents[children] -= 1
        ready.extend(children[parents[children] == 0])
    return np.array(order, dtype=np.int64) if len(order) == len(graph) else None


def is_acyclic(edges: ArrayLike) -> bool:
    """Return whether the graph [d, d] has no directed cycle; an edge from a vertex to itself is one."""
    return topological_order(edges) is not None


def reachable(edges: ArrayLike) -> np.ndarray:
    """Return which vertices each vertex reaches along one edge or more, bool [d, d]."""
    paths = square(edges)
    for _ in range(int(np.ceil(np.log2(max(2, len(paths)))))):
        paths = paths | ((paths.astype(np.float32) @ paths.astype(np.float32)) > 0)
    return paths


def acyclic_part(weights: ArrayLike, threshold: float = 0.5) -> np.ndarray:
    """Return the edges [d, d] that are kept when they are added by decreasing weight unless they close a cycle.

    Parameters
    ----------
    weights : array [d, d]
    threshold : float
        Edges below it are left out.

    Examples
    --------
    >>> acyclic_part([[0, 0.9], [0.8, 0]]).astype(int).tolist()
    [[0, 1], [0, 0]]
    """
    table = np.asarray(weights, dtype=np.float64)
    d = len(square(table > 0))
    edges = np.zeros((d, d), dtype=bool)
    reach = np.eye(d, dtype=bool)
    for place in np.argsort(-table, axis=None, kind="stable"):
        i, j = divmod(int(place), d)
        if not table[i, j] >= threshold or table[i, j] <= 0:
            break
        if reach[j, i]:
            continue
        edges[i, j] = True
        if not reach[i, j]:
            reach[reach[:, i]] |= reach[j]
    return edges


def acyclic_factors(into: ArrayLike, out_of: ArrayLike, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges between genes and factors that are kept by `acyclic_part` in the graph of both; O(m^2) an edge.

    Parameters
    ----------
    into, out_of : array [d, m]
        Weights of gene -> factor and of factor -> gene.

    Returns
    -------
    bool [d, m], bool [d, m]
    """
    first, second = np.asarray(into, dtype=np.float64), np.asarray(out_of, dtype=np.float64)
    d, m = first.shape
    edges = np.zeros((2, d, m), dtype=bool)
    reach = np.eye(m, dtype=bool)  # between factors: every cycle runs through them, so that genes need no table
    weights = np.concatenate([first.ravel(), second.T.ravel()])
    for place in np.argsort(-weights, kind="stable"):
        if not weights[place] >= threshold or weights[place] <= 0:
            break
        inward = place < d * m
        gene, factor = divmod(int(place), m) if inward else divmod(int(place) - d * m, d)[::-1]
        sources, sinks = edges[1, gene], edges[0, gene]  # the factors just before the gene, and just after it
        if (reach[factor] & sources).any() if inward else (reach[:, factor] & sinks).any():
            continue
        edges[int(not inward), gene, factor] = True
        before = reach[:, sources].any(1) if inward else reach[:, factor]
        after = reach[factor] if inward else reach[sinks].any(0)
        reach |= np.outer(before, after)
    return edges[0], edges[1]


def square(edges: ArrayLike) -> np.ndarray:
    """Return the graph as a bool array; raises ValueError if it is not a square."""
    graph = np.asarray(edges)
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"a graph is a square matrix (from row to column), not one of shape {graph.shape}")
    return graph.astype(bool)
