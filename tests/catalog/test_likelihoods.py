"""Distributions of counts: definitions, gradients, shapes, bad input, use in Pyro, and graph capture."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.catalog.parts.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "counts.json").read_text())["cases"]
MODELS = ("poisson", "nb", "zinb")
CLASSES = {"poisson": Poisson, "nb": NegativeBinomial, "zinb": ZeroInflatedNegativeBinomial}


def make(model, log_mean, log_dispersion, gate, **options):
    """The distribution of a name; what it does not take is left out."""
    arguments = {"poisson": (), "nb": (log_dispersion,), "zinb": (log_dispersion, gate)}[model]
    return CLASSES[model](log_mean, *arguments, **options)


def problem(model, cells=6, genes=7, particles=(), dispersion=None, softmax=False, seed=0, dtype=torch.float64):
    """Counts with every kind of entry (0, 1, few, 8, 9, many), and parameters in order."""
    g = torch.Generator().manual_seed(seed)
    entries = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 8, 9, 40, 700], dtype=dtype)
    counts = entries[torch.randint(12, (cells, genes), generator=g)]
    counts[0, :6] = torch.tensor([0, 1, 2, 8, 9, 700], dtype=dtype)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    shape = (*particles, cells, genes)
    parameters = [normal(*shape), normal(*particles, cells, 1) + 3] if softmax else [normal(*shape) + 1]
    if model != "poisson":
        parameters.append(normal(*((genes,) if dispersion is None else dispersion)))
    if model == "zinb":
        parameters.append(normal(*shape))
    return counts, [p.requires_grad_() for p in parameters]


def build(model, parameters, softmax=False, **options):
    cls = CLASSES[model]
    return (cls.from_logits if softmax else cls)(*parameters, **options)


def value_and_gradients(model, parameters, counts, softmax=False, weight=None):
    out = build(model, parameters, softmax).log_prob(counts)
    weight = torch.ones_like(out) if weight is None else weight
    return out.detach(), torch.autograd.grad((out * weight).sum(), parameters)


# ---- agreement with the definitions ---------------------------------------------------------------------
@pytest.mark.parametrize("case", REFERENCE, ids=lambda c: f"x={c['x']}")
def test_reference_values(case):
    column = partial(torch.full, (1, 1), dtype=torch.float64)
    log_mean, log_theta, x = column(case["mu"]).log(), column(case["theta"]).log(), column(case["x"])
    nb = NegativeBinomial(log_mean, log_theta).log_prob(x)
    zinb = ZeroInflatedNegativeBinomial(log_mean, log_theta, column(case["pi_logit"])).log_prob(x)
    assert nb.item() == pytest.approx(case["log_nb"], abs=1e-11, rel=1e-11)
    assert zinb.item() == pytest.approx(case["log_zinb"], abs=1e-11, rel=1e-11)


@given(
    st.integers(0, 3000),
    st.floats(-7, 9),
    st.floats(-6, 12),
)
@settings(max_examples=60)
def test_equals_scipy(x, log_mean, log_theta):
    theta, mean = math.exp(log_theta), math.exp(log_mean)
    expected = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mean))
    got = NegativeBinomial(*torch.tensor([[log_mean], [log_theta]], dtype=torch.float64))
    # scipy takes the difference of two log-gamma functions of size theta log theta
    assert got.log_prob(torch.tensor([x])).item() == pytest.approx(expected, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("model", MODELS)
@given(st.floats(-4, 3.5), st.floats(-1.5, 9), st.floats(-6, 6))
@settings(max_examples=15)
def test_probabilities_sum_to_one_with_the_stated_moments(model, log_mean, log_theta, gate):
    size = 6000

    cell = partial(torch.full, (size, 1), dtype=torch.float64)
    d = make(model, cell(log_mean), torch.tensor([log_theta], dtype=torch.float64), cell(gate))
    x = torch.arange(size, dtype=torch.float64)
    p = d.log_prob(x.unsqueeze(-1)).exp()
    mean = (p * x).sum()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert mean.item() == pytest.approx(d.mean[0, 0].item(), rel=1e-7)
    assert (p * (x - mean) ** 2).sum().item() == pytest.approx(d.variance[0, 0].item(), rel=1e-6)
    assert p[0].item() == pytest.approx(d.zero_probability[0, 0].item(), rel=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_samples_have_the_stated_distribution(model):
    torch.manual_seed(0)
    log_mean = torch.tensor([[0.2, 3.0, 50.0], [1.0, 0.05, 8.0]]).log()
    log_theta, gate = (
        torch.tensor([0.5, 30.0, 2.0]).log(),
        torch.tensor([[-1.0, 0.5, -3.0], [1.0, -2.0, 0.0]]),
    )
    d = make(model, log_mean, log_theta, gate)
    n = 40_000
    x = d.sample((n,))
    assert x.shape == (n, 2, 3) and x.dtype == torch.float32 and bool(d.support.check(x).all())
    standard_error = (d.variance / n).sqrt()
    assert ((x.mean(0) - d.mean).abs() < 5 * standard_error).all()
    assert ((x.var(0) / d.variance - 1).abs() < 0.15).all()
    zeros = d.zero_probability
    assert (((x == 0).float().mean(0) - zeros).abs() < 5 * (zeros * (1 - zeros) / n).sqrt() + 1e-6).all()


# ---- gradients ------------------------------------------------------------------------------------------
DISPERSIONS = {"gene": (7,), "gene-cell": (6, 7), "particle": (3, 1, 7), "everything": (3, 6, 7), "one": (1,)}


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_gradcheck(model, softmax):
    counts, parameters = problem(model, cells=3, genes=7, softmax=softmax)
    assert torch.autograd.gradcheck(lambda *p: build(model, p, softmax).log_prob(counts), parameters)


@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("model", ["nb", "zinb"])
def test_particles_equal_a_loop_over_particles(model, softmax, dispersion):
    counts, parameters = problem(
        model, particles=(3,), dispersion=DISPERSIONS[dispersion], softmax=softmax, dtype=torch.float64
    )
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gradients = value_and_gradients(model, parameters, counts, softmax, weight)
    assert value.shape == (3, 6)
    total = 0
    for k in range(3):
        one = [p[k] if p.dim() == 3 else p for p in parameters]
        part = build(model, one, softmax).log_prob(counts)
        torch.testing.assert_close(part, value[k])
        total = total + (part * weight[k]).sum()
    torch.testing.assert_close(torch.autograd.grad(total, parameters), gradients)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_counts_may_have_more_dimensions_than_parameters(model, softmax):
    counts, parameters = problem(model, softmax=softmax)
    several = torch.stack([counts, counts.flip(0), counts.flip(1)])
    value, gradients = value_and_gradients(model, parameters, several, softmax)
    parts = [value_and_gradients(model, parameters, c, softmax) for c in several]
    torch.testing.assert_close(value, torch.stack([v for v, _ in parts]))
    for gradient, *others in zip(gradients, *(g for _, g in parts), strict=True):
        torch.testing.assert_close(gradient, sum(others))
    d = build(model, parameters, softmax)
    for one_cell in (counts[2], several[:, 2:3]):
        torch.testing.assert_close(d.log_prob(one_cell), d.log_prob(one_cell.expand(*one_cell.shape[:-2], 6, 7)))


@pytest.mark.parametrize("model", MODELS)
def test_softmax_inside_equals_softmax_outside(model):
    counts, (logits, log_library, *others) = problem(model, softmax=True)
    value, inside = value_and_gradients(model, [logits, log_library, *others], counts, softmax=True)
    d = CLASSES[model](torch.log_softmax(logits, -1) + log_library, *others)
    outside = torch.autograd.grad(d.log_prob(counts).sum(), [logits, log_library, *others])
    torch.testing.assert_close(value, d.log_prob(counts))
    torch.testing.assert_close(inside, outside)
    torch.testing.assert_close(build(model, [logits, log_library, *others], softmax=True).log_mean, d.log_mean)


@pytest.mark.parametrize("low", [-87.0, -101.0, -150.0])  # normal, denormal, no float32
@pytest.mark.parametrize("model", MODELS)
def test_softmax_of_a_tiny_share(model, low):
    logits = torch.tensor([[0.0, low]], requires_grad=True)
    others = [torch.zeros(2), torch.zeros(1, 2)][: MODELS.index(model)]
    value = build(model, [logits, torch.zeros(1, 1), *others], softmax=True).log_prob(torch.ones(1, 2))
    torch.testing.assert_close(value, build(model, [logits, *others]).log_prob(torch.ones(1, 2)))
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(slope).all() and slope[0, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("softmax", "matrices"), [(True, 2), (False, 3)])
def test_matrices_kept_for_the_gradient(softmax, matrices):
    """Two slopes; outside the node, also the output of the softmax."""
    counts, (logits, log_library, log_theta) = problem("nb", cells=100, genes=50, softmax=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        if softmax:
            d = NegativeBinomial.from_logits(logits, log_library.detach(), log_theta)
        else:
            d = NegativeBinomial(torch.log_softmax(logits, -1) + log_library.detach(), log_theta)
        d.log_prob(counts)
    assert sum(t.numel() for t in kept) == matrices * counts.numel()


def test_only_first_derivatives():
    counts, parameters = problem("nb")
    loss = build("nb", parameters).log_prob(counts).square().sum()
    (slope, _) = torch.autograd.grad(loss, parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_backward_twice_gives_the_same(model, softmax):
    counts, parameters = problem(model, softmax=softmax)
    value = build(model, parameters, softmax).log_prob(counts).sum()
    first, second = (torch.autograd.grad(value, parameters, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


# ---- shapes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS)
def test_genes_may_be_permuted(model):
    counts, parameters = problem(model)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    value, gradients = value_and_gradients(model, parameters, counts)
    permuted, permuted_gradients = value_and_gradients(model, [p[..., order] for p in parameters], counts[:, order])
    torch.testing.assert_close(permuted, value)
    torch.testing.assert_close(permuted_gradients, tuple(g[..., order] for g in gradients))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
@pytest.mark.parametrize("model", MODELS)
def test_memory_layout_does_not_matter(model, layout):
    counts, parameters = problem(model)
    change = {
        "transposed": lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
        "strided": lambda t: torch.stack((t, t), -1)[..., 0],
        "expanded": lambda t: t[:1].expand(t.shape) if t.dim() == 2 else t,
    }[layout]
    same = (lambda t: change(t).contiguous()) if layout == "expanded" else lambda t: t
    got = build(model, [change(p) for p in parameters]).log_prob(change(counts))
    torch.testing.assert_close(got, build(model, [same(p) for p in parameters]).log_prob(same(counts)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64])
def test_counts_of_any_dtype(dtype):
    _, parameters = problem("nb", dtype=torch.float32)
    counts = torch.arange(42).view(6, 7) % 13
    out = build("nb", parameters).log_prob(counts.to(dtype))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, build("nb", parameters).log_prob(counts.float()), rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_expand_never_expands_parameters(model):
    counts, parameters = problem(model)
    d = build(model, parameters)
    assert d.expand((6,)) is d and d.expand(torch.Size([6])) is d
    wide = d.expand((4, 6))
    assert (wide.batch_shape, wide.event_shape, d.batch_shape) == ((4, 6), (7,), (6,))
    assert type(wide) is type(d)
    assert all(a is b for a, b in zip(wide.parameters, d.parameters, strict=True))
    assert wide.log_mean is d.log_mean
    out = wide.log_prob(counts)
    torch.testing.assert_close(out, d.log_prob(counts).expand(4, 6))
    assert out.stride(0) == 0, "computed once"
    assert wide.mean.shape == wide.variance.shape == wide.zero_probability.shape == (4, 6, 7)
    with pytest.raises(ValueError, match="does not expand"):
        d.expand((5,))


@pytest.mark.parametrize("model", MODELS)
def test_expanded_dimensions_are_drawn_independently(model):
    torch.manual_seed(0)
    d = make(model, torch.full((1, 4), 3.0), torch.zeros(4), torch.full((1, 4), -3.0)).expand((50, 6))
    x = d.sample((2,))
    assert x.shape == (2, 50, 6, 4)
    correlation = np.corrcoef(x.reshape(100, 24).T.numpy())  # each column one cell and gene, rows independent draws
    assert np.abs(correlation - np.eye(24)).max() < 0.5
    assert len(x.reshape(-1, 4).unique(dim=0)) > 400


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the largest tensor that any operator returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("model", ["nb", "zinb"])
def test_pyro_plate_with_particles(model):
    """The log probability is per particle and cell, and no tensor grows with the number of particles."""
    counts, parameters = problem(model, cells=20, genes=50)
    d = build(model, parameters)
    with Peak() as peak, pyro.poutine.trace() as tr:
        with pyro.plate("particles", 64, dim=-2), pyro.plate("cells", 20, dim=-1):
            pyro.sample("counts", d, obs=counts)
        tr.trace.compute_log_prob()
    log_prob = tr.trace.nodes["counts"]["log_prob"]
    assert log_prob.shape == (64, 20)
    torch.testing.assert_close(log_prob[5], d.log_prob(counts))
    assert peak.largest < 64 * 20 * 50 * 8 / 10


def test_masks_and_further_event_dimensions():
    counts, parameters = problem("nb")
    d = build("nb", parameters)
    mask = torch.arange(6) % 2 == 0
    torch.testing.assert_close(d.mask(mask).log_prob(counts), d.log_prob(counts) * mask)
    assert d.to_event(1).log_prob(counts).shape == ()


# ---- bad input ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bad", [-1.0, 0.5, math.nan, math.inf])
def test_bad_counts_raise_when_validated(model, bad):
    counts, parameters = problem(model)
    d = build(model, parameters, validate_args=True)
    d.log_prob(counts)
    counts[1, 2] = bad
    with pytest.raises(ValueError, match="support"):
        d.log_prob(counts)
    with pytest.raises(ValueError, match="support"):
        d.expand((4, 6)).log_prob(counts)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_bad_parameters_raise_when_validated(model, softmax):
    _, parameters = problem(model, softmax=softmax)
    names = [*(["logits", "log_library"] if softmax else ["log_mean"]), "log_dispersion", "gate_logits"]
    cls = CLASSES[model]
    for i, name in zip(range(len(parameters)), names, strict=False):
        bad = [p.detach().clone() for p in parameters]
        bad[i].view(-1)[0] = math.nan
        with pytest.raises(ValueError, match=name):
            (cls.from_logits if softmax else cls)(*bad, validate_args=True)
        (cls.from_logits if softmax else cls)(*bad, validate_args=False)


def test_validation_follows_pyro():
    counts, parameters = problem("nb")
    with pyro.validation_enabled(False):
        assert not build("nb", parameters)._validate_args
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        build("nb", parameters).log_prob(-counts)


@pytest.mark.parametrize("model", MODELS)
def test_wrong_number_of_genes_raises(model):
    counts, parameters = problem(model)
    with pytest.raises(ValueError, match="7 genes"):
        build(model, parameters).log_prob(counts[:, :1])


def test_nan_is_not_hidden():
    counts, parameters = problem("nb")
    counts[2, 3] = math.nan
    out = build("nb", parameters, validate_args=False).log_prob(counts)
    assert out.isnan().tolist() == [False, False, True, False, False, False]


# ---- graph capture --------------------------------------------------------------------------------------
class Decoder(torch.nn.Module):
    def __init__(self, model, softmax):
        super().__init__()
        self.model, self.softmax = model, softmax
        self.mean, self.gate = torch.nn.Linear(3, 7), torch.nn.Linear(3, 7)
        self.log_dispersion = torch.nn.Parameter(torch.randn(7))

    def forward(self, z, counts):
        library = counts.sum(-1, keepdim=True).log()
        mean = (self.mean(z), library) if self.softmax else (torch.log_softmax(self.mean(z), -1) + library,)
        others = (self.log_dispersion, self.gate(z))[: MODELS.index(self.model)]
        return build(self.model, [*mean, *others], self.softmax, validate_args=False).expand((2, 6)).log_prob(counts)


@pytest.mark.parametrize(("model", "softmax"), [("poisson", True), ("nb", True), ("zinb", True), ("zinb", False)])
def test_export_captures_value_and_gradients(model, softmax):
    torch.manual_seed(0)
    module, (counts, _) = Decoder(model, softmax), problem(model, dtype=torch.float32)
    z = torch.randn(6, 3)
    program = torch.export.export(module, (z, counts), strict=False)
    assert "fieldguide.log_likelihood" in str(program.graph)
    captured = program.module()
    new_z, new_counts = torch.randn(6, 3), counts.flip(0)  # the positions of non-zeros are not frozen
    compiled = torch.compile(captured, backend="aot_eager")
    results = []
    for run in (module, captured, compiled):
        module.zero_grad()
        out = run(new_z, new_counts)
        out.sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    assert len(results[0]) == {"poisson": 3, "nb": 4, "zinb": 6}[model]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
