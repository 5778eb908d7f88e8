"""The numbers behind the count likelihoods: limits, 50-digit arithmetic, dense and sparse entries."""

import math

import mpmath
import numpy as np
import pytest
import torch

from fieldguide.catalog.parts.count_math import log_likelihood

MODELS = ("poisson", "nb", "zinb")
DTYPES = [torch.float32, torch.float64]


def parameters_of(model, log_mean, log_theta, gate):
    return [log_mean, log_theta, gate][: 1 + MODELS.index(model)]


def entries(model, x, log_mean, log_theta=None, gate=None, dense=False):
    """Value and slopes of single entries: columns in, flat tensors out."""
    columns = [p.reshape(-1, 1) for p in parameters_of(model, log_mean, log_theta, gate)]
    outs = log_likelihood(model, False, x.reshape(-1, 1), columns, slopes=True, dense=dense)
    return [out.reshape(-1) for out in outs]


def problem(model, dtype, particles=(), softmax=False, seed=0):
    """Counts [6, 7] with every kind of entry (0, 1, few, 8, 9, many), and parameters."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 8, 9, 40, 700], dtype=dtype)
    counts = kinds[torch.randint(12, (6, 7), generator=g)]
    counts[0, :6] = torch.tensor([0, 1, 2, 8, 9, 700], dtype=dtype)
    shapes = [(*particles, 6, 7), (7,), (*particles, 6, 7)][: 1 + MODELS.index(model)]
    if softmax:
        shapes.insert(1, (*particles, 6, 1))
    return counts, [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) + 1 for shape in shapes]


# ---- limits ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_theta", [30.0, 50.0, 100.0, 1000.0])
def test_large_theta_is_poisson_in_value_and_slope(dtype, log_theta):
    counts, (log_mean,) = problem("poisson", dtype)
    theta = torch.full_like(log_mean, log_theta)
    value, slope, theta_slope = entries("nb", counts, log_mean, theta)
    expected, expected_slope = entries("poisson", counts, log_mean)
    tolerance = {"rtol": 3e-7, "atol": 3e-7} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(value, expected, **tolerance)
    torch.testing.assert_close(slope, expected_slope, **tolerance)
    exact = 700**2 / math.exp(min(log_theta, 57.0))  # ((x - mu)^2 - x) / (2 theta)
    assert theta_slope.abs().max() < exact + (2e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [1, 5, 8, 9, 300, 100_000])
def test_small_theta_is_the_logarithmic_series(dtype, x):
    """As theta -> 0, p(x) -> theta / x, of slope 1 in log theta; the rest is at zero."""
    log_mean, log_theta = torch.zeros(2, dtype=dtype), torch.full((2,), -40.0, dtype=dtype)
    value, slope, theta_slope = entries("nb", torch.tensor([float(x), 0.0]), log_mean, log_theta)
    assert value[0].item() == pytest.approx(-40 - math.log(x), rel=1e-6 if dtype == torch.float32 else 1e-9)
    assert theta_slope[0].item() == pytest.approx(1, rel=1e-6)
    assert max(abs(value[1]), abs(slope[1]), abs(theta_slope[1])) < 1e-15


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", [-1e3, -math.inf])
def test_closed_gate_is_nb(dtype, gate):
    counts, (log_mean, log_theta) = problem("nb", dtype)
    log_mean, log_theta = (
        log_mean + 4,
        (log_theta + 4).expand(6, 7),
    )  # a zero may have a probability of e^-100
    nb = entries("nb", counts, log_mean, log_theta)
    *zinb, gate_slope = entries("zinb", counts, log_mean, log_theta, torch.full_like(counts, gate))
    assert nb[0][counts.flatten() == 0].min() < -80, "or the test is too easy"
    torch.testing.assert_close(zinb, nb, rtol=3e-6, atol=3e-5 if dtype == torch.float32 else 1e-12)
    assert gate_slope.abs().max() == 0


@pytest.mark.parametrize("dense", [False, True])
def test_open_gate_makes_every_count_zero(dense):
    one, x = torch.ones(2), torch.tensor([0.0, 1.0])
    value, *slopes = entries("zinb", x, 0 * one, 0 * one, 40 * one, dense=dense)
    assert value[0].item() == pytest.approx(0, abs=1e-12)
    assert value[1].item() == pytest.approx(-40 + math.log(1 / 4), rel=1e-6)
    assert max(abs(slope[0]) for slope in slopes) < 1e-12


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dense", [False, True])
def test_a_gene_of_mean_zero_may_only_be_zero(model, dense):
    log_mean = torch.tensor([-math.inf, -math.inf])
    value, slope, *_ = entries(model, torch.tensor([0.0, 1.0]), log_mean, torch.zeros(2), torch.zeros(2), dense=dense)
    assert value.tolist() == [0, -math.inf] and slope[0] == 0


# ---- accuracy against 50 digits ----------------------------------------------------------------------------
def exact(model, x, log_mean, log_theta, gate):
    """Value and slopes in log mu, log theta, gate at the given (already rounded) inputs, with 50 digits."""
    with mpmath.workdps(50):
        mean, theta, x = mpmath.exp(mpmath.mpf(log_mean)), mpmath.exp(mpmath.mpf(log_theta)), mpmath.mpf(x)
        if model == "poisson":
            return [x * mpmath.mpf(log_mean) - mean - mpmath.loggamma(x + 1), x - mean]
        log_zero = theta * mpmath.log(theta / (theta + mean))
        value = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        value += log_zero + x * mpmath.log(mean / (theta + mean))
        slope = (x - mean) * theta / (theta + mean)
        theta_slope = theta * (mpmath.digamma(x + theta) - mpmath.digamma(theta) + (mean - x) / (theta + mean))
        theta_slope += log_zero
        if model == "nb":
            return [value, slope, theta_slope]
        closed = 1 / (1 + mpmath.exp(-mpmath.mpf(gate)))
        if x > 0:
            return [value + mpmath.log(1 - closed), slope, theta_slope, -closed]
        total = closed + (1 - closed) * mpmath.exp(value)
        share = (1 - closed) * mpmath.exp(value) / total
        return [mpmath.log(total), slope * share, theta_slope * share, 1 - share - closed]


def grid(dtype, gates):
    """Counts 0 to 1e5, means near and far, theta 1e-3 to 1e6: columns x, log mu, log theta, gate, rounded."""
    points = [
        (x, mean, theta, gate)
        for x in (0, 1, 2, 7, 8, 9, 10, 60, 1000, 100_000)
        for mean in (1e-3, 0.3, 4.0, max(x, 1) * 1.1, max(x, 1) * 8.0, 300.0)
        for theta in (1e-3, 0.1, 2.0, 100.0, 1e4, 1e6)
        for gate in gates
    ]
    x, mean, theta, gate = torch.tensor(points, dtype=torch.float64).unbind(-1)
    return x, mean.log().to(dtype), theta.log().to(dtype), gate.to(dtype)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("model", "gates"), [("poisson", [0.0]), ("nb", [0.0]), ("zinb", [-6.0, 1.0]), ("zinb", [-80.0])]
)
def test_accuracy_against_50_digits(model, gates, dtype, dense):
    """Errors are relative to max(1, |exact|); of the slope in log theta at a zero, to max(1, |exact|, mu)."""
    points = grid(dtype, gates)
    got = entries(model, *points, dense=dense)
    columns = [column.tolist() for column in points]
    expected = np.array([exact(model, *point) for point in zip(*columns, strict=True)])
    single = 4e-7
    tolerances = {
        torch.float32: {"value": single, "log_mean": single, "log_theta": single, "gate": single},
        torch.float64: {"value": 3e-11, "log_mean": 1e-13, "log_theta": 1e-10, "gate": 1e-13},
    }[dtype]
    assert len(got) == expected.shape[1]
    for values, column, name in zip(got, expected.T, tolerances, strict=False):
        error = np.array([float(abs(v - e)) for v, e in zip(values.tolist(), column, strict=True)])
        scale = np.maximum(1, np.abs(column.astype(float)))
        if name == "log_theta":
            scale = np.where(points[0].numpy() == 0, np.maximum(scale, np.exp(columns[1])), scale)
        worst = int(np.argmax(error / scale))
        point = [columns[0][worst], *(math.exp(column[worst]) for column in columns[1:3])]
        assert error[worst] <= tolerances[name] * scale[worst], (name, error[worst] / scale[worst], point)


@pytest.mark.parametrize("dense", [False, True])
def test_dispersion_slope_near_poisson_in_float32(dense):
    """Summed over thousands of cells, mostly zeros; here the textbook form is wrong by more than 0.01."""
    generator = torch.Generator().manual_seed(0)
    log_mean = torch.randn(4000, 5, generator=generator) - 2
    counts = torch.poisson(log_mean.exp(), generator=generator)
    log_theta = torch.full((5,), 100.0).log()
    slopes = log_likelihood("nb", False, counts, [log_mean, log_theta], slopes=True, dense=dense)[2].sum(0)
    wide = [log_mean.double(), log_theta.double()]
    expected = log_likelihood("nb", False, counts, wide, slopes=True, dense=True)[2].sum(0)
    assert (slopes - expected).abs().max() < 2e-6 < 1e-3 * expected.abs().max()
    theta = log_theta.exp().requires_grad_()
    textbook = torch.lgamma(counts + theta) - torch.lgamma(theta) - theta * torch.log1p(log_mean.exp() / theta)
    textbook = textbook + counts * (log_mean - torch.log(theta + log_mean.exp()))
    (slope,) = torch.autograd.grad(textbook.sum(), theta)
    assert (slope * theta - expected).abs().max() > 1e-2


# ---- dense and sparse entries ------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("particles", [(), (3,)])
def test_dense_equals_sparse(model, softmax, particles, dtype):
    counts, parameters = problem(model, dtype, particles, softmax)
    before = [p.clone() for p in parameters]
    call = (model, softmax, counts, parameters)
    sparse = log_likelihood(*call, slopes=True, dense=False)
    dense = log_likelihood(*call, slopes=True, dense=True)
    torch.testing.assert_close(sparse, dense, **({"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {}))
    for way, expected in ((False, sparse), (True, dense)):
        (alone,) = log_likelihood(*call, slopes=False, dense=way)
        torch.testing.assert_close(alone, expected[0], rtol=0, atol=0)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True)), "a parameter was overwritten"
