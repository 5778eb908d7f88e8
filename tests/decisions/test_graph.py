"""Causal graphs from probabilities, and distances between graphs against brute force and closed forms."""

import types
from itertools import permutations

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.decisions import causal_graph, graph_scores
from fieldguide.decisions.graphs.dag import is_acyclic
from fieldguide.decisions.graphs.distances import (
    d_separated,
    is_adjustment_set,
    structural_hamming_distance,
    structural_intervention_distance,
)
from fieldguide.decisions.graphs.graph import through_factors
from fieldguide.inference import Program

SEEDS = st.integers(0, 10**6)


def dag(rng, d, density=None):
    edges = np.triu(rng.random((d, d)) < (rng.random() if density is None else density), 1)
    order = rng.permutation(d)
    return edges[order][:, order]


def digraph(edges):
    return nx.from_numpy_array(np.asarray(edges).astype(int), create_using=nx.DiGraph)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_d_separation_is_that_of_networkx(seed):
    rng = np.random.default_rng(seed)
    edges = dag(rng, 6)
    first, second, *rest = rng.permutation(6).tolist()
    given = np.array(rest[: rng.integers(0, 5)], dtype=int)
    wanted = nx.is_d_separator(digraph(edges), {int(first)}, {int(second)}, set(given.tolist()))
    assert d_separated(edges, first, second, given) == wanted


def paths(edges, i, j):
    """Every path between two vertices along edges of any direction, without a vertex twice."""
    either = edges | edges.T
    inner = [v for v in range(len(edges)) if v not in (i, j)]
    for size in range(len(inner) + 1):
        for middle in permutations(inner, size):
            path = (i, *middle, j)
            if all(either[a, b] for a, b in zip(path, path[1:], strict=False)):
                yield path


def right_by_definition(edges, i, j, given):
    """Condition (*) of the definition of the distance, path by path."""
    graph = digraph(edges)
    descendants = [nx.descendants(graph, v) | {v} for v in range(len(edges))]
    for path in paths(edges, i, j):
        steps = list(zip(path, path[1:], strict=False))
        if all(edges[a, b] for a, b in steps):
            if any(z in descendants[w] for w in path[1:] for z in given):
                return False
            continue
        blocked = False
        for a, v, b in zip(path, path[1:], path[2:], strict=False):
            collider = edges[a, v] and edges[b, v]
            blocked |= not (descendants[v] & set(given)) if collider else v in given
        if not blocked:
            return False
    return True


def intervention_distance_by_definition(estimated, true):
    graph, wrong = digraph(true), 0
    for i, j in permutations(range(len(true)), 2):
        given = np.flatnonzero(estimated[:, i]).tolist()
        if j in given:
            wrong += j in nx.descendants(graph, i)
        else:
            wrong += not right_by_definition(true, i, j, given)
    return wrong


def effects_by_regression(estimated, true, rng):
    """Pairs whose total effect, in a random linear Gaussian model of the true graph, the adjustment misses."""
    d = len(true)
    weights = true * rng.uniform(0.3, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    total = np.linalg.inv(np.eye(d) - weights)
    covariance = total.T @ np.diag(rng.uniform(0.5, 2, d)) @ total
    wrong = 0
    for i, j in permutations(range(d), 2):
        parents = np.flatnonzero(estimated[:, i])
        if j in parents:
            claimed = 0.0
        else:
            inputs = [i, *parents]
            claimed = np.linalg.solve(covariance[np.ix_(inputs, inputs)], covariance[inputs, j])[0]
        wrong += abs(claimed - total[i, j]) > 1e-9
    return wrong


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_intervention_distance_is_its_definition_and_counts_wrong_effects(seed):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 6))
    estimated, true = dag(rng, d), dag(rng, d)
    found = structural_intervention_distance(estimated, true)
    assert found == intervention_distance_by_definition(estimated, true)
    assert found == effects_by_regression(estimated, true, rng)
    assert structural_intervention_distance(true, true) == 0
    complete = np.triu(np.ones((d, d), dtype=bool), 1)
    order = np.argsort(list(nx.topological_sort(digraph(true))))
    assert structural_intervention_distance(complete[order][:, order], true) == 0, "supersets are right, in order"


def test_adjustment_sets_of_known_graphs():
    edges = np.zeros((4, 4), dtype=bool)
    edges[0, 1] = edges[0, 2] = edges[1, 2] = edges[2, 3] = True  # 0 confounds 1 -> 2 -> 3
    assert is_adjustment_set(edges, 1, 2, np.array([0])) and not is_adjustment_set(edges, 1, 2, np.array([], dtype=int))
    assert not is_adjustment_set(edges, 1, 2, np.array([0, 3]))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_hamming_distance_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    one, other = (rng.random((5, 5)) < 0.4 for _ in range(2))
    np.fill_diagonal(one, False), np.fill_diagonal(other, False)
    wanted = 0
    for i in range(5):
        for j in range(i):
            differ = int(one[i, j] != other[i, j]) + int(one[j, i] != other[j, i])
            reversal = differ == 2 and one[i, j] != one[j, i]
            wanted += 1 if reversal else differ
    assert structural_hamming_distance(one, other) == wanted == structural_hamming_distance(other, one)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_probabilities_through_factors_are_those_of_drawn_masks(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 3, 2)) / 2
    wanted = np.zeros((3, 3))
    for pattern in np.ndindex(2, 2, 2, 2):  # two factors: in from i, out to j
        u, v = np.array(pattern[:2]), np.array(pattern[2:])

        def chance(p, on):
            return np.where(on, p, 1 - p).prod(-1)

        joined = float((u * v).any())
        wanted += joined * np.outer(chance(a, u), chance(b, v))
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(through_factors(a, b), wanted)


def test_a_graph_of_probabilities(tmp_path):
    table = pd.DataFrame([[0, 0.9, 0.2], [0.8, 0, 0.6], [0, 0.4, 0]], index=list("abc"), columns=list("abc"))
    found = causal_graph(table)
    assert found.table.values.tolist() == [["a", "b", 0.9], ["b", "c", 0.6]]
    assert found.is_dag and found.order == ["a", "b", "c"] and found.diagnostics["left_out"].item() == 1
    whole = causal_graph(table, acyclic=False)
    assert not whole.is_dag and whole.order is None and len(whole.table) == 3
    assert len(causal_graph(table, threshold=0.1).table) == 3
    graph = found.to_networkx()
    assert graph["a"]["b"]["probability"] == 0.9 and set(graph.nodes) == set("abc")
    adata = anndata.AnnData(np.zeros((2, 3), dtype=np.float32), var=pd.DataFrame(index=list("cab")))
    found.write(adata, "dag")
    assert adata.varp["dag"][1, 2] == 0.9 and adata.varp["dag_edges"].toarray().sum() == 2
    assert adata.varp["dag_edges"].toarray()[2, 0]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for one in (found, whole):
        one.plot().savefig(tmp_path / "graph.png")


def test_a_graph_through_factors():
    into = np.array([[0.9, 0.1], [0.05, 0.8], [0.0, 0.0]])
    out_of = np.array([[0.0, 0.6], [0.9, 0.1], [0.0, 0.7]])
    found = causal_graph((into, out_of), genes=list("abc"))
    assert found.is_dag
    assert found.edges.to_numpy().tolist() == [[False, True, False], [False, False, True], [False, False, False]]
    assert found.diagnostics["left_out"].item() == 1, "b -> factor 1 -> a would close a cycle"
    half = np.full((2, 1), 0.5)
    assert causal_graph((half, half), acyclic=False).edges.to_numpy().tolist() == [[False, True], [True, False]]
    adata = anndata.AnnData(np.zeros((2, 3), dtype=np.float32), var=pd.DataFrame(index=list("abc")))
    found.write(adata)
    assert adata.varm["graph_into"].tolist() == [[True, False], [False, True], [False, False]]


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_scores_of_a_graph(seed):
    rng = np.random.default_rng(seed)
    truth, values = dag(rng, 5, 0.5), rng.random((5, 5))
    found = causal_graph(values)
    scores = graph_scores(found, truth)
    edges = found.edges.to_numpy()
    assert is_acyclic(edges)
    hits = (edges & truth).sum()
    if edges.any() and truth.any():
        p, r = hits / edges.sum(), hits / truth.sum()
        assert scores["precision"] == p and scores["recall"] == r
        assert scores["f1"] == pytest.approx(2 * p * r / (p + r) if hits else 0.0)
        off = ~np.eye(5, dtype=bool)
        ranked = truth[off][np.argsort(-values[off])]
        wanted = (np.cumsum(ranked) / np.arange(1, 21))[ranked].mean()
        assert scores["average_precision"] == pytest.approx(wanted)
    assert scores["shd"] == structural_hamming_distance(edges, truth)
    assert scores["sid"] == structural_intervention_distance(edges, truth)


def test_tables_are_matched_by_name():
    truth = pd.DataFrame([[0, 1], [0, 0]], index=list("ab"), columns=list("ab"))
    assert graph_scores(causal_graph(truth.loc[list("ba"), list("ba")]), truth)["shd"] == 0
    with pytest.raises(ValueError, match="no gene 'c'"):
        graph_scores(causal_graph([[0, 1], [0, 0]], genes=["a", "c"]), truth)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: causal_graph(np.ones((2, 3))), "a square table"),
        (lambda: causal_graph([[0, 1.5], [0, 0]]), "the edge from 0 to 1 is 1.5"),
        (lambda: causal_graph([[0, np.nan], [0, 0]]), "the edge from 0 to 1 is nan"),
        (lambda: causal_graph([[0, 1], [0, 0]], genes=["a"]), "1 names for 2 genes"),
        (lambda: causal_graph((np.ones((3, 2)), np.ones((3, 1)))), r"\[d, m\], not \(3, 2\) and \(3, 1\)"),
        (lambda: graph_scores([[0, 0.4], [0, 0]], np.eye(2)), "must be 0 or 1: make a graph"),
        (lambda: graph_scores([[0, 1], [0, 0]], [[0, 2], [0, 0]]), "true edges must be 0 or 1"),
        (lambda: graph_scores([[0, 1], [0, 0]], np.eye(2)), "true graph has an edge from vertex 0 to itself"),
        (lambda: graph_scores([[0, 1], [0, 0]], np.zeros((3, 3))), "not .2, 2. and .3, 3."),
        (lambda: graph_scores([[0, 1], [1, 0]], [[0, 1], [0, 0]], sid=True), "the estimated graph has a cycle"),
    ],
    ids=["shape", "large", "nan", "names", "factors", "half", "two", "loop", "sizes", "cycle"],
)
def test_graphs_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_genes_of_another_data_set():
    adata = anndata.AnnData(np.zeros((2, 2), dtype=np.float32), var=pd.DataFrame(index=["a", "x"]))
    with pytest.raises(ValueError, match="gene 'x' is not in it"):
        causal_graph([[0, 1], [0, 0]], genes=["a", "b"]).write(adata)
    with pytest.raises(TypeError, match="has no graph"):
        causal_graph(type("Fitted", (), {"program": object()})())


def test_the_settled_graph_is_asked_for_only_where_it_is_used():
    class Unsettled(Program):
        def edge_weights(self):
            return torch.tensor([[0.0, 0.9], [0.8, 0.0]])

        def settled_edges(self):
            raise RuntimeError("nothing is settled")

    fitted = types.SimpleNamespace(program=Unsettled(), schema=None)
    assert len(causal_graph(fitted, acyclic=False).table) == 2
    with pytest.raises(RuntimeError, match="nothing is settled"):
        causal_graph(fitted)


def test_both_tables_are_read_by_the_names_of_rows_and_columns():
    graph = pd.DataFrame([[0, 1, 0], [0, 0, 1], [0, 0, 0]], index=list("abc"), columns=list("abc"))
    moved = graph.loc[list("bca"), list("cab")]
    for estimated, true in ((graph[list("cab")], graph), (graph, graph[list("cab")]), (moved, graph), (graph, moved)):
        assert graph_scores(estimated, true)["shd"] == 0
    assert graph_scores(moved, graph.loc[list("bca"), list("bca")].to_numpy())["shd"] == 0
    assert graph_scores(graph, graph.set_axis(range(3)).set_axis(range(3), axis=1))["shd"] == 0  # by position
    numbered = graph.set_axis(["2", "0", "1"]).set_axis(["2", "0", "1"], axis=1)
    plain = pd.DataFrame([[0, 1, 0], [0, 0, 0], [1, 0, 0]])  # 2 -> 0 -> 1
    assert graph_scores(numbered, plain)["shd"] == graph_scores(plain, numbered)["shd"] == 0
    with pytest.raises(ValueError, match="columns of the true graph has no row for 'c'"):
        graph_scores(graph, graph.rename(columns={"c": "x"}))


def test_names_that_a_graph_has_are_not_replaced():
    graph = pd.DataFrame([[0, 0.9], [0, 0]], index=list("ab"), columns=list("ab"))
    assert list(causal_graph(graph, genes=["a", "b"]).edges.index) == ["a", "b"]
    assert list(causal_graph(graph.set_axis(range(2)).set_axis(range(2), axis=1), genes=["u", "v"]).edges) == ["u", "v"]
    pair = (pd.DataFrame(np.ones((2, 1)), index=list("ab")), pd.DataFrame(np.ones((2, 1)), index=list("ab")))
    for source in (graph, pair):
        with pytest.raises(ValueError, match="genes has 'b' where the source has 'a': leave genes out"):
            causal_graph(source, genes=["b", "a"])
