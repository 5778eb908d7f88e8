"""Measures of acyclicity against their definitions, and the graphs on which they are zero."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.decisions.graphs.dag import acyclic_factors, acyclic_part, is_acyclic, reachable, topological_order
from fieldguide.inference import Program
from fieldguide.inference.constraints.acyclicity import (
    MEASURES,
    Acyclicity,
    EdgeCount,
    cycle_matrix,
    log_determinant,
    spectral_radius,
    trace_exponential,
)
from fieldguide.inference.step import Step

SEEDS = st.integers(0, 10**6)
KINDS = sorted(MEASURES)


def random_graph(seed, d=None, density=None, acyclic=False):
    """Nonnegative weights [d, d]; vertices in a random order."""
    rng = np.random.default_rng(seed)
    d = d or int(rng.integers(1, 9))
    edges = rng.random((d, d)) < (rng.random() if density is None else density)
    edges = np.triu(edges, 1) if acyclic else edges
    order = rng.permutation(d)
    return torch.from_numpy((edges * rng.uniform(0.1, 3, (d, d)))[order][:, order])


def random_factors(seed, exclusive=True):
    """Weights into and out of factors, [d, m] each; a pair has one direction at most where they exclude each other."""
    rng = np.random.default_rng(seed)
    d, m = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    kind = rng.choice(3, (d, m), p=[0.35, 0.35, 0.3])
    size = rng.uniform(0.1, 2, (2, d, m))
    if not exclusive:
        return torch.from_numpy(size[0] * (rng.random((d, m)) < 0.5)), torch.from_numpy(
            size[1] * (rng.random((d, m)) < 0.5)
        )
    return torch.from_numpy(size[0] * (kind == 0)), torch.from_numpy(size[1] * (kind == 1))


def bipartite(a, b):
    d, m = a.shape
    whole = torch.zeros(d + m, d + m, dtype=torch.float64)
    whole[:d, d:], whole[d:, :d] = a, b.T
    return whole


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.booleans())
def test_zero_exactly_on_graphs_without_a_cycle(seed, acyclic):
    weights = random_graph(seed, acyclic=acyclic)
    truth = nx.is_directed_acyclic_graph(nx.from_numpy_array((weights > 0).numpy(), create_using=nx.DiGraph))
    assert is_acyclic(weights > 0) == truth
    for kind in KINDS:
        value = float(MEASURES[kind](weights))
        assert (value == 0.0) == truth, kind
        assert value >= 0


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_the_values_are_those_of_the_eigenvalues(seed):
    weights = random_graph(seed, density=0.8)
    eigenvalues = np.linalg.eigvals(weights.numpy())
    radius = np.abs(eigenvalues).max()
    assert float(spectral_radius(weights)) == pytest.approx(radius, rel=1e-5, abs=1e-9)
    for scale in (1.0, 3.7):
        wanted = np.exp(eigenvalues / scale).sum().real - len(weights)
        assert float(trace_exponential(weights, scale)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    s = 1.5 * radius + 0.1
    wanted = -np.log(1 - eigenvalues / s).sum().real
    assert float(log_determinant(weights, s)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_factors_cost_less_and_say_the_same(seed):
    a, b = random_factors(seed, exclusive=False)
    whole = a @ b.T
    radius = np.abs(np.linalg.eigvals(whole.numpy())).max()
    assert float(spectral_radius((a, b))) == pytest.approx(radius, rel=1e-4, abs=1e-3)
    for scale in (2.0, 5.0):
        full, few = trace_exponential(whole, scale), trace_exponential((a, b), scale)
        torch.testing.assert_close(few, full, rtol=1e-9, atol=1e-9)
    s = radius * 1.7 + 0.5
    torch.testing.assert_close(log_determinant((a, b), s), log_determinant(whole, s), rtol=1e-9, atol=1e-9)


def test_acyclicity_of_the_three_graphs_agrees():
    """Lemma 1 on 1000 random graphs: genes and factors, genes alone, factors alone."""
    found = []
    for seed in range(1000):
        a, b = random_factors(seed)
        both, genes, factors = bipartite(a, b), a @ b.T, b.T @ a
        answers = {is_acyclic(g > 0) for g in (both, genes, factors)}
        assert len(answers) == 1
        found.append(answers.pop())
        for exclusive in (False, True) if seed < 150 else ():
            assert all((float(m((a, b), exclusive=exclusive)) == 0.0) == found[-1] for m in MEASURES.values())
    assert 200 < sum(found) < 800


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_doubtful_direction_is_no_cycle_where_directions_exclude_each_other(seed):
    a, b = random_factors(seed, exclusive=False)
    matrix = cycle_matrix((a, b), exclusive=True)
    wanted = torch.einsum("jf,jg->fg", b, a)
    wanted[range(len(wanted)), range(len(wanted))] = 0.0
    own = torch.einsum("jf,kf->fjk", b, a)
    for f in range(len(wanted)):
        wanted[f, f] = own[f].diagonal().sum() - (a * b)[:, f].sum()
    torch.testing.assert_close(matrix, wanted.clamp(min=0))
    one = (torch.tensor([[0.4]]), torch.tensor([[0.3]]))
    assert float(spectral_radius(one, exclusive=True)) == 0.0
    assert float(spectral_radius(one)) == pytest.approx(0.12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_differences(kind, seed):
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.uniform(0.1, 1, (5, 5))).requires_grad_()
    pair = tuple(torch.from_numpy(rng.uniform(0.1, 1, (5, 2))).requires_grad_() for _ in range(2))
    fixed = {"exponential": {"scale": 2.0}, "logdet": {"s": 9.0}, "spectral": {}}[kind]
    assert torch.autograd.gradcheck(lambda w: MEASURES[kind](w, **fixed), (weights,), atol=1e-5)
    for exclusive in (False, True):
        assert torch.autograd.gradcheck(
            lambda a, b, e=exclusive: MEASURES[kind]((a, b), exclusive=e, **fixed), pair, atol=1e-5
        )


def test_an_edge_that_would_close_a_cycle_has_a_price_before_it_is_there():
    weights = torch.tensor([[0.0, 0.7], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    trace_exponential(weights, 1.0).backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, torch.tensor([[1.0, 0.0], [0.7, 1.0]], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_names_of_vertices_do_not_matter(seed):
    weights = random_graph(seed, d=5, density=0.7)
    order = torch.from_numpy(np.random.default_rng(seed + 1).permutation(5))
    for kind in KINDS:
        one = weights.clone().requires_grad_()
        other = weights[order][:, order].clone().requires_grad_()
        values = MEASURES[kind](one), MEASURES[kind](other)
        torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-9)
        first, second = (torch.autograd.grad(v, w)[0] for v, w in zip(values, (one, other), strict=True))
        torch.testing.assert_close(first[order][:, order], second, rtol=1e-3, atol=1e-5)


def test_weights_that_are_none():
    with pytest.raises(ValueError, match="square matrix, not .2, 3."):
        spectral_radius(torch.ones(2, 3))
    with pytest.raises(ValueError, match="must not be negative"):
        trace_exponential(-torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"both be \[d, m\], not \(2, 3\) and \(3, 2\)"):
        spectral_radius((torch.ones(2, 3), torch.ones(3, 2)))
    with pytest.raises(ValueError, match="above the spectral radius 2"):
        log_determinant(torch.ones(2, 2), 1.5)
    with pytest.raises(ValueError, match="kind must be one of"):
        Acyclicity("notears")
    with pytest.raises(ValueError, match="warmup must be a number"):
        Acyclicity(warmup=1.0)


class Fixed(Program):
    """What a measure reads of a program."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def edge_weights(self):
        return self.weights


def test_measures_of_a_step():
    matrix = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]])
    step = Step(Fixed(matrix), {}, 1)
    assert float(Acyclicity("spectral")(step)) == pytest.approx(0.5)
    assert float(EdgeCount()(step)) == pytest.approx(1.75 / 3)
    early = Step(Fixed(matrix), {}, 1, {"progress": 0.29})
    assert float(Acyclicity("spectral", warmup=0.3)(early)) == 0.0
    assert float(Acyclicity("spectral", warmup=0.2)(early)) == pytest.approx(0.5)
    pair = Step(Fixed((torch.ones(4, 2), torch.ones(4, 2))), {}, 1)
    assert float(EdgeCount()(pair)) == 4.0
    half = Step(Fixed(matrix), {}, 1, {"progress": 0.4})
    assert float(EdgeCount(warmup=0.8)(half)) == pytest.approx(1.75 / 6), "it grows in proportion"
    assert float(EdgeCount(warmup=0.4)(half)) == float(EdgeCount(warmup=0.1)(half)) == pytest.approx(1.75 / 3)
    with pytest.raises(ValueError, match="warmup must be a number in .0, 1., not 1.5"):
        EdgeCount(warmup=1.5)
    with pytest.raises(TypeError, match="Program has no graph"):
        EdgeCount()(Step(Program(), {}, 1))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_acyclic_part_takes_the_heaviest_edges_first(seed):
    weights = random_graph(seed, d=6, density=0.6).numpy()
    kept = acyclic_part(weights, 0.5)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(6))
    for i, j in sorted(np.argwhere(weights >= 0.5).tolist(), key=lambda e: -weights[e[0], e[1]]):
        if i != j and not nx.has_path(graph, j, i):
            graph.add_edge(i, j)
    assert {tuple(e) for e in np.argwhere(kept).tolist()} == set(graph.edges)
    order = topological_order(kept)
    assert order is not None
    place = np.argsort(order)
    assert all(place[i] < place[j] for i, j in graph.edges)
    truth = nx.transitive_closure(nx.from_numpy_array((weights > 0).astype(int), create_using=nx.DiGraph))
    assert np.array_equal(reachable(weights > 0), nx.to_numpy_array(truth, nodelist=range(6)) > 0)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.booleans())
def test_factors_keep_what_the_graph_of_genes_and_factors_would(seed, rounded):
    rng = np.random.default_rng(seed)
    d, m = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    into, out_of = (rng.random((d, m)) for _ in range(2))
    if rounded:  # ties
        into, out_of = into.round(1), out_of.round(1)
    whole = np.zeros((d + m, d + m))
    whole[:d, d:], whole[d:, :d] = into, out_of.T
    threshold = float(rng.random())
    kept = acyclic_part(whole, threshold)
    first, second = acyclic_factors(into, out_of, threshold)
    assert np.array_equal(first, kept[:d, d:]) and np.array_equal(second, kept[d:, :d].T)


def test_factors_without_a_cycle():
    into = np.array([[0.9, 0.0], [0.0, 0.8], [0.7, 0.0]])
    out_of = np.array([[0.0, 0.6], [0.95, 0.0], [0.0, 0.0]])
    kept = acyclic_factors(into, out_of)  # gene 0 -> f0 -> gene 1 -> f1 -> gene 0: the lightest, f1 -> gene 0, goes
    assert kept[0].tolist() == (into > 0).tolist()
    assert kept[1].tolist() == [[False, False], [True, False], [False, False]]
    with pytest.raises(ValueError, match="square matrix .from row to column., not one of shape .2, 3."):
        acyclic_part(np.ones((2, 3)))
