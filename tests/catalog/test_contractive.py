"""Contractive maps: the bound at every step, steady states, and log-determinants, against exact linear algebra."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.catalog.parts.contractive import (
    ACTIVATIONS,
    ContractiveMap,
    Mechanism,
    RelaxedGates,
    lipschitz,
    spectral_bound,
)
from fieldguide.catalog.parts.log_determinant import (
    exact_log_det,
    minor_log_det,
    roulette_log_det,
    safe_stop,
    series_log_det,
)
from fieldguide.catalog.parts.steady_state import ConvergenceError, steady_state

SEEDS = st.integers(0, 10_000)
CASES = list(itertools.product(ACTIVATIONS, (0, 3), (False, True)))


def wild(seed, n=5, activation="tanh", n_hidden=0, precondition=False, bound=0.9, gates="none"):
    """A map whose weights are far too large before they are scaled."""
    torch.manual_seed(seed)
    made = ContractiveMap(n, activation, n_hidden, bound, gates, precondition)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter is made.log_scale else 2))
    return made.double()


def matrix(seed, n=5, radius=0.6):
    """A matrix with a zero diagonal and a given spectral radius."""
    torch.manual_seed(seed)
    found = torch.randn(n, n, dtype=torch.float64).fill_diagonal_(0)
    return found * (radius / torch.linalg.eigvals(found).abs().max())


@given(seed=SEEDS, m=st.integers(1, 12), n=st.integers(1, 12), size=st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=60)
def test_the_bound_is_never_below_the_norm_and_at_most_a_few_percent_above(seed, m, n, size):
    torch.manual_seed(seed)
    weight = size * torch.randn(m, n)
    norm = torch.linalg.matrix_norm(weight.double(), 2)
    found = spectral_bound(weight)
    assert norm * (1 - 1e-12) <= found <= norm * min(m, n) ** (1 / 256) * (1 + 1e-9)
    batch = torch.stack([weight, 2 * weight])
    torch.testing.assert_close(spectral_bound(batch), torch.stack([found, 2 * found]))


def test_the_bound_is_smooth():
    weight = matrix(0)[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(spectral_bound, weight)
    zero = torch.zeros(3, 3, requires_grad=True)
    spectral_bound(zero).backward()
    assert spectral_bound(zero) < 1e-100 and torch.isfinite(zero.grad).all()


@given(seed=SEEDS, case=st.sampled_from(CASES), gates=st.sampled_from(["none", "shared", "per_cell"]))
@settings(max_examples=40)
def test_slopes_stay_below_the_bound_after_every_step_of_a_greedy_optimiser(seed, case, gates):
    activation, n_hidden, precondition = case
    made = ContractiveMap(4, activation, n_hidden, 0.9, gates, precondition).double()
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(made.parameters(), lr=1.0)
    x = torch.randn(6, 4, dtype=torch.float64)
    for _ in range(4):
        settled = made.settle(len(x))
        optimizer.zero_grad()
        (-(settled.jacobian(x).square().sum() + settled.value(x).square().sum())).backward()
        optimizer.step()
        with torch.no_grad():
            settled = made.settle(len(x))
            assert (lipschitz(settled) <= 0.9 * (1 + 1e-6)).all()
            inner = settled.unscaled()
            assert (torch.linalg.matrix_norm(inner.jacobian(x), 2) <= 0.9 * (1 + 1e-6)).all()
            y = x + torch.randn_like(x)
            assert ((inner.value(x) - inner.value(y)).norm(dim=1) <= 0.9 * (1 + 1e-6) * (x - y).norm(dim=1)).all()


def test_maps_within_the_bound_are_left_alone():
    made = ContractiveMap(5, bound=0.9)
    torch.testing.assert_close(made.settle().weight, made.weight * made.off_diagonal)


@given(seed=SEEDS, case=st.sampled_from(CASES))
@settings(max_examples=40)
def test_the_jacobian_and_its_transpose_are_those_of_autograd(seed, case):
    settled = wild(seed, 4, *case).settle()
    x = torch.randn(3, 4, dtype=torch.float64)
    wanted = torch.stack([torch.autograd.functional.jacobian(settled.value, row) for row in x])
    found = settled.jacobian(x)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    assert (found.diagonal(dim1=1, dim2=2) == 0).all(), "a gene acts on itself"
    v = torch.randn_like(x)
    torch.testing.assert_close(settled.pull(x)(v), torch.einsum("bij,bi->bj", wanted, v), rtol=1e-8, atol=1e-8)


def test_the_largest_slopes_of_the_activations_are_reached_and_not_passed():
    z = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    for name, (_, derivative, largest) in ACTIVATIONS.items():
        top = derivative(z).max().item()
        assert largest - 1e-4 < top <= largest, name


@given(seed=SEEDS, case=st.sampled_from(CASES), n=st.integers(2, 8))
@settings(max_examples=40)
def test_the_map_is_inverted_to_a_hundred_thousandth(seed, case, n):
    settled = wild(seed, n, *case).settle()
    x = torch.randn(7, n, dtype=torch.float64)
    noise = (x - settled.value(x)).detach()
    torch.testing.assert_close(steady_state(settled, noise), x, rtol=0, atol=1e-5)
    forced = torch.rand(7, n) < 0.4
    noise = torch.where(forced, 99.0, noise)  # of no consequence where values are forced
    torch.testing.assert_close(steady_state(settled, noise, forced, x), x, rtol=0, atol=1e-5)


def test_single_precision_is_solved_in_double():
    settled = wild(3).float().settle()
    x = torch.randn(50, 5)
    found = steady_state(settled, (x - settled.value(x)).detach())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


def test_a_map_without_a_steady_state_is_an_error():
    weight = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])
    with pytest.raises(ConvergenceError, match=r"no steady state of cell 0 .* not contractive \(slope up to 2.0"):
        steady_state(Mechanism(weight, None, "none"), torch.ones(3, 2))
    slow = Mechanism(weight * 0.495, None, "none")
    with pytest.raises(ConvergenceError, match="within 20 iterations.*barely contractive"):
        steady_state(slow, torch.ones(3, 2), max_iterations=20)
    torch.testing.assert_close(steady_state(slow, torch.ones(3, 2)), torch.full((3, 2), 100.0), rtol=1e-6, atol=1e-5)


def test_the_implicit_gradient_is_that_of_the_solution():
    settled = wild(1, 3, "tanh").settle()
    base = settled.weight.detach()
    forced = torch.tensor([[False, True, False]])

    def solution(weight, noise, values):
        return steady_state(Mechanism(weight, None, "tanh"), noise, forced, values, 1e-12, implicit=True)

    inputs = [t.requires_grad_() for t in (base.clone(), torch.randn(1, 3).double(), torch.randn(1, 3).double())]
    assert torch.autograd.gradcheck(solution, inputs, atol=1e-5)


def test_gates_are_draws_with_their_probability_and_a_relaxed_gradient():
    torch.manual_seed(0)
    gates = RelaxedGates(3)
    with torch.no_grad():
        gates.logits.normal_()
    drawn = gates.draw(20_000)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    probability = gates.probability()
    assert (probability.diagonal() == 0).all()
    standard = (probability * (1 - probability) / 20_000).sqrt()
    assert ((drawn.mean(0) - probability).abs() <= 4 * standard).all()
    gradient = torch.autograd.grad(drawn.mean(0).sum(), gates.logits)[0]
    assert (gradient.fill_diagonal_(1.0) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "sine"}, "activation must be one of none, tanh"),
        ({"gates": "open"}, "gates must be one of none, shared, per_cell"),
        ({"bound": 1.0}, r"bound must be a number in \(0, 1\), or None, not 1.0"),
        ({"n": 1}, "at least two genes, not 1"),
    ],
    ids=["activation", "gates", "bound", "n"],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContractiveMap(**({"n": 3} | arguments))


@given(seed=SEEDS, n=st.integers(2, 7), m=st.integers(1, 3))
@settings(max_examples=40)
def test_one_factorisation_gives_the_determinant_of_every_regime(seed, n, m):
    jacobian = matrix(seed, n)
    rng = np.random.default_rng(seed)
    codes = [rng.choice(n, rng.integers(0, min(m, n) + 1), replace=False).tolist() for _ in range(5)]
    targets = torch.tensor([c + [-1] * (m - len(c)) for c in codes])
    found = minor_log_det(jacobian, targets)
    for row, which in zip(found, codes, strict=True):
        observed = [i for i in range(n) if i not in which]
        system = np.eye(n)[np.ix_(observed, observed)] - jacobian.numpy()[np.ix_(observed, observed)]
        np.testing.assert_allclose(float(row), np.linalg.slogdet(system)[1], atol=1e-8)
    forced = torch.zeros(5, n, dtype=torch.bool)
    for row, which in enumerate(codes):
        forced[row, which] = True
    masked = jacobian.expand(5, n, n).masked_fill(forced[..., None], 0.0)
    torch.testing.assert_close(found, exact_log_det(masked))


@pytest.mark.parametrize("radius", [0.3, 0.6])
def test_the_roulette_is_right_on_average_and_the_series_is_off_by_what_it_cuts_off(radius):
    jacobian = matrix(7, radius=radius)
    like = torch.zeros(20, 5, dtype=torch.float64)

    def pull(v):
        return v @ jacobian

    exact = float(exact_log_det(jacobian))
    torch.manual_seed(0)
    draws = torch.stack([roulette_log_det(pull, like, 0.3) for _ in range(1500)]).mean(1)  # N is common to 20 cells
    assert abs(float(draws.mean()) - exact) < 3.5 * float(draws.std()) / 1500**0.5
    cut = -sum(float(torch.linalg.matrix_power(jacobian, k).trace()) / k for k in (1, 2, 3, 4))
    draws = torch.stack([series_log_det(pull, like, 4) for _ in range(500)]).flatten()
    error = float(draws.std()) / len(draws) ** 0.5
    assert abs(float(draws.mean()) - cut) < 3.5 * error
    bias = 5 * radius**5 / (5 * (1 - radius))
    assert abs(cut - exact) <= bias


def test_the_bias_of_a_short_series_shows():
    jacobian = 0.6 * (torch.ones(4, 4, dtype=torch.float64) - torch.eye(4)) / 3
    exact, pull = float(exact_log_det(jacobian)), lambda v: v @ jacobian
    torch.manual_seed(0)
    draws = series_log_det(pull, torch.zeros(10_000, 4, dtype=torch.float64), 2)
    assert float(draws.mean()) - exact > 5 * float(draws.std()) / 100


def test_the_roulette_gradient_is_right_on_average():
    jacobian = matrix(2, 4, 0.5).requires_grad_()
    wanted = torch.autograd.grad(exact_log_det(jacobian), jacobian)[0]
    torch.manual_seed(0)
    like, found = torch.zeros(40, 4, dtype=torch.float64), []
    for _ in range(500):
        value = roulette_log_det(lambda v: v @ jacobian, like, 0.4).mean()
        found.append(torch.autograd.grad(value, jacobian)[0])
    found = torch.stack(found)
    assert ((found.mean(0) - wanted).abs() < 4 * found.std(0) / 500**0.5 + 1e-12).all()


def test_the_published_roulette_has_no_variance_to_speak_of_above_a_radius():
    """E of the squared weight times the squared term: (1 - p)^-m against rho^2m, m terms on, of a scaled exchange."""
    like = torch.zeros(1, 2, dtype=torch.float64)

    def pull(v):
        return 0.9 * v.flip(-1)

    torch.manual_seed(0)
    published, safe = (
        torch.cat([roulette_log_det(pull, like, stop) for _ in range(3000)]) for stop in (0.5, safe_stop(0.9))
    )
    assert published.std() > 2 * safe.std()
    assert (published - published.mean()).abs().max() > 10 * published.std()


def test_exact_log_determinants_have_exact_gradients():
    jacobian = matrix(0, 4).requires_grad_()
    targets = torch.tensor([[0, 2], [1, -1], [-1, -1]])
    assert torch.autograd.gradcheck(exact_log_det, jacobian)
    assert torch.autograd.gradcheck(lambda j: minor_log_det(j, targets), jacobian)


@pytest.mark.parametrize("wrong", [{"stop": 0.0}, {"sure": -1}, {"probes": 0}], ids=["stop", "sure", "probes"])
def test_wrong_settings_of_estimators_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        roulette_log_det(lambda v: v, torch.zeros(1, 2), **wrong)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        series_log_det(lambda v: v, torch.zeros(1, 2), terms=0)
