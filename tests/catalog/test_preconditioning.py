"""Acyclic maps that are not contractive, in a model whose maps all are: through scales of the genes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.catalog import contractive_view, edge_strengths, sample_under
from fieldguide.catalog.data.cyclic import random_graph
from fieldguide.catalog.nodags import NODAGS
from fieldguide.catalog.parts.contractive import lipschitz
from fieldguide.decisions import causal_graph, graph_scores, interventional_scores
from fieldguide.inference import fit

D, SD, BOUND = 10, 0.5, 0.9


def steep(seed=0):
    """A linear acyclic map of ten genes, [effect, cause], whose largest singular value is 2."""
    rng = np.random.default_rng(seed)
    graph = random_graph(D, 2.0, rng, acyclic=True).T
    weights = graph * rng.uniform(0.2, 0.8, (D, D)) * rng.choice([-1.0, 1.0], (D, D))
    return 2 * weights / np.linalg.norm(weights, 2)


def cells(weights, targets, values, rng):
    """Cells of a linear system, [N, d], in which targets [N, M] have the values [N, M]."""
    found = SD * rng.normal(size=(len(targets), D))
    forced = np.zeros((len(targets), D), dtype=bool)
    np.put_along_axis(forced, targets, True, 1)
    np.put_along_axis(found, targets, values, 1)
    systems = np.eye(D) - np.where(forced[..., None], 0.0, weights)
    return np.linalg.solve(systems, found[..., None])[..., 0].astype(np.float32)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(1)
    weights, single = steep(), np.repeat(np.arange(D), 1000)[:, None]
    pairs = np.repeat(np.stack([rng.choice(D, 2, replace=False) for _ in range(10)]), 80, 0)
    held = {"x": cells(weights, pairs, rng.normal(size=pairs.shape), rng), "targets": pairs}
    return weights, {"x": cells(weights, single, rng.normal(size=single.shape), rng), "targets": single}, held


def learn(arrays, **arguments):
    options = {"max_epochs": 40, "batch_size": 1000, "learning_rate": 0.02, "validation": 0.0, "early_stopping": None}
    return fit("nodags", arrays, progress=False, **options | arguments)


@pytest.fixture(scope="module")
def scaled(world):
    return learn(world[1], precondition=True, contraction=BOUND)


def scores(fitted, world):
    weights, _, held = world
    strengths = edge_strengths(fitted)
    top = float(strengths.to_numpy().max())
    found = graph_scores(causal_graph(strengths / top, 0.05 / top, acyclic=False), weights.T != 0)
    return (
        found["average_precision"],
        found["shd"],
        interventional_scores(fitted, held).diagnostics.loc["nll_all", "mean"],
    )


@pytest.mark.slow
def test_a_steep_acyclic_map_is_found_with_scales_and_not_without(world, scaled):
    weights, _, held = world
    assert np.linalg.norm(weights, 2) == pytest.approx(2)
    forced = np.zeros(held["x"].shape, dtype=bool)
    np.put_along_axis(forced, held["targets"], True, 1)
    e = held["x"] - held["x"].astype(float) @ weights.T
    truth = np.where(forced, 0, 0.5 * (e / SD) ** 2 + np.log(SD) + 0.5 * np.log(2 * np.pi)).mean()
    precision, shd, nll = scores(scaled, world)
    assert precision >= 0.95 and shd <= 1 and abs(nll - truth) < 0.01
    _, shd, nll = scores(learn(world[1], contraction=BOUND), world)
    assert shd >= 5 and nll > truth + 0.03, "the best contractive map is another one"


@pytest.mark.slow
def test_what_was_found_is_contractive_in_its_own_units_and_steep_in_those_of_the_data(world, scaled):
    weights, _, _ = world
    with torch.no_grad():
        mechanism = scaled.program.map.settle()
        slope = mechanism.jacobian(torch.zeros(D)).double().numpy()
        assert float(lipschitz(mechanism.unscaled())) <= BOUND + 1e-6
    assert np.linalg.norm(slope, 2) > 1.5
    np.testing.assert_allclose(slope, weights, atol=0.1)  # the penalty on edges makes them smaller
    assert abs(np.linalg.slogdet(np.eye(D) - slope)[1]) < 0.02, "of an acyclic map it is 0"


def test_cells_under_an_unseen_pair_have_the_moments_of_the_steep_system(world):
    steep_enough = learn(world[1], precondition=True, contraction=BOUND, max_epochs=8, learning_rate=0.05)
    program, n = steep_enough.program, 40_000
    with torch.no_grad():
        slope = program.map.settle().jacobian(torch.zeros(D)).double().numpy()
        loc, sd, centre = (t.double().numpy() for t in (program.loc, program.log_noise.exp(), program.centre))
    drawn = sample_under(steep_enough, [1, 6], [2.0, -1.0], n=n, seed=0).to_numpy()
    keep = np.diag([0.0 if j in (1, 6) else 1.0 for j in range(D)])
    held = np.zeros(D)
    held[[1, 6]] = np.array([2.0, -1.0]) - centre[[1, 6]]
    inverse = np.linalg.inv(np.eye(D) - keep @ slope)
    mean, covariance = inverse @ (keep @ loc + held) + centre, inverse @ keep @ np.diag(sd**2) @ keep @ inverse.T
    free = [j for j in range(D) if j not in (1, 6)]
    off = (drawn.mean(0) - mean)[free] / np.sqrt(np.diag(covariance)[free] / n)
    assert np.abs(off).max() < 3.5
    np.testing.assert_allclose(drawn.var(0)[free], np.diag(covariance)[free], rtol=0.04)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 8), size=st.floats(0.5, 20))
@settings(max_examples=40)
def test_every_acyclic_linear_map_is_one_of_the_model(seed, n, size):
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    weights = (random_graph(n, min(n, 3.0), rng, acyclic=True).T * rng.normal(size=(n, n)) * size)[order][:, order]
    view, scales = contractive_view(weights, 0.9)
    made = NODAGS(n, precondition=True, contraction=0.99).double()
    with torch.no_grad():
        made.map.weight.copy_(torch.from_numpy(view))
        made.map.log_scale.copy_(torch.from_numpy(np.log(scales)))
        mechanism = made.map.settle()
        found = mechanism.jacobian(torch.zeros(n).double()).numpy()
        assert float(lipschitz(mechanism.unscaled())) < 0.99
        noise = torch.randn(3, n).double()
        x = made.simulate(noise, torch.full((3, 1), -1), torch.zeros(3, n))
    np.testing.assert_allclose(found, weights, rtol=1e-6, atol=1e-9 * size)
    np.testing.assert_allclose(x, np.linalg.solve(np.eye(n) - weights, noise.T).T, rtol=1e-4, atol=1e-4)
