"""Guide families: densities against SciPy and quadrature, draws against densities, every entry with every family."""

import inspect

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fieldguide.catalog import entries, get
from fieldguide.catalog.parts.guides import FAMILIES, EllipticalStudentT, Encoder, guide_head
from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import ELBO, Step, fit, load, weigh
from fieldguide.inference.conformance import check

X = {"x": np.random.default_rng(0).normal(size=(40, 3))}
PARTLY = {"x": 1 / (1 + np.exp(-X["x"])), "labels": np.where(np.arange(40) % 3, np.nan, np.arange(40) % 2)}


def small_counts(pbmc):
    cells = pbmc[:60, :100].copy()
    cells.obs["labels"] = np.where(np.arange(cells.n_obs) % 4, "p", "q")
    cells.obs["quality"] = cells.obs["percent_mito"]
    cells.obs["perturbation"] = np.array(["a", "b", "a+b"])[np.arange(cells.n_obs) % 3]
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    return cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()


def arguments(name):
    return inspect.signature(get(name).program).parameters


def pairs():
    """Entries and families: ppca with each, scvi with all but the flow; all other pairs are slow."""
    for name in entries().index:
        if "guide" not in arguments(name):
            continue
        for guide in FAMILIES:
            quick = name == "ppca" or (name == "scvi" and guide != "flow")
            yield pytest.param(name, guide, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "guide"), pairs())
def test_every_entry_conforms_with_every_family(name, guide, pbmc):
    fields = get(name).schema.fields
    data = small_counts(pbmc) if "counts" in fields else PARTLY if "labels" in fields else X
    small = {k: v for k, v in {"n_latent": 3, "n_hidden": 16}.items() if k in arguments(name)}
    report = check(name, data, guide=guide, **small)
    assert report["passed"].dropna().all()


def test_the_entries_take_a_family():
    assert all("guide" in arguments(name) for name in ("ppca", "scvi"))


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(1.01, 1e5))
def test_the_student_density_is_that_of_scipy(seed, size, df):
    rng = np.random.default_rng(seed)
    loc, scale, value = rng.normal(size=size), rng.gamma(2, 1, size) + 0.01, 3 * rng.normal(size=(7, size))
    found = EllipticalStudentT(torch.tensor(df, dtype=torch.float64), torch.from_numpy(loc), torch.from_numpy(scale))
    exact = stats.multivariate_t(loc, np.diag(scale**2), df=df).logpdf(value)
    np.testing.assert_allclose(found.log_prob(torch.from_numpy(value)).numpy(), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("df", [1.5, 4.0, 1e5])
def test_student_draws_have_the_radius_of_the_density_and_one_chi_square_for_all_coordinates(df):
    torch.manual_seed(0)
    loc, scale = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.5, 1.0, 3.0]).double()
    draws = EllipticalStudentT(torch.tensor(df).double(), loc, scale).sample((20000,)).sub(loc).div(scale)
    radius = (draws**2).sum(-1).numpy() / 3
    assert stats.kstest(radius, stats.f(3, df).cdf).pvalue > 1e-3
    assert stats.kstest(draws[:, 2].numpy(), stats.t(df).cdf).pvalue > 1e-3


def test_the_gradient_of_the_degrees_of_freedom_is_that_of_the_distribution():
    """d/d df of E tanh(z)^2 by implicit reparameterisation, against a finite difference of the integral."""
    torch.manual_seed(0)
    df = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    draws = EllipticalStudentT(df, zero, one).rsample((400_000,))
    (found,) = torch.autograd.grad((torch.tanh(draws) ** 2).mean(), df)
    exact = [stats.t(3 + e).expect(lambda z: np.tanh(z) ** 2) for e in (-0.01, 0.01)]
    assert found.item() == pytest.approx((exact[1] - exact[0]) / 0.02, abs=5e-4)


@pytest.mark.parametrize("guide", FAMILIES)
def test_draws_without_a_gradient_have_none(guide):
    """Sampling is not reparameterised sampling: score gradients would be wrong if it kept the graph."""
    torch.manual_seed(0)
    found = guide_head(guide, 4, 3)(torch.randn(5, 4))
    assert not found.sample((2,)).requires_grad and found.rsample((2,)).requires_grad
    assert found.has_rsample and found.event_shape == (3,) and found.batch_shape == (5,)
    weights = weigh(PPCA(3, 2, guide), {"x": torch.randn(6, 3)}, 4, "score")
    assert not weights.draws["z"].requires_grad and weights.log_q.requires_grad


@pytest.mark.parametrize("guide", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_particles_lead_and_precision_is_kept(guide, dtype):
    torch.manual_seed(0)
    head = guide_head(guide, 4, 3).to(dtype)
    found = head(torch.randn(5, 4, dtype=dtype)).expand((7, 5))
    draws = found.rsample()
    assert draws.shape == (7, 5, 3) and draws.dtype == dtype
    assert found.log_prob(draws).shape == (7, 5) and found.log_prob(draws).dtype == dtype
    assert draws.std(0).min() > 0, "particles differ"
    assert found.mean.shape[-2:] == (5, 3)


@pytest.mark.parametrize("guide", FAMILIES)
def test_densities_integrate_to_one_and_means_are_right(guide):
    torch.manual_seed(0)
    head = guide_head(guide, 2, 2).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.2)
        if guide == "student_t":
            head.degrees.bias.fill_(4.0)
        found = head(torch.ones(1, 2).double())
        grid = torch.linspace(-7, 7, 451).double()
        points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).view(-1, 1, 2)
        mass = found.log_prob(points).exp()[:, 0] * (grid[1] - grid[0]) ** 2
        assert mass.sum().item() == pytest.approx(1, abs=2e-4)
        mean = (mass[:, None] * points[:, 0]).sum(0)
        draws = found.sample((100_000,))[:, 0]
        assert torch.all((draws.mean(0) - mean).abs() < 5 * draws.std(0) / 100_000**0.5 + 1e-3)
        assert torch.all((found.mean[0] - mean).abs() < (0.3 if guide == "flow" else 1e-3))


def test_a_guide_of_full_covariance_contains_the_posterior_of_a_linear_model():
    torch.manual_seed(0)
    program = PPCA(6, 3, "full_covariance").double()
    x = torch.randn(9, 6).double()
    with torch.no_grad():
        program.mean.normal_()
        zero = torch.zeros(1, 6).double()
        offset, covariance = program.exact_posterior(zero)
        columns, _ = program.exact_posterior(torch.eye(6).double())
        factor = torch.linalg.cholesky(covariance)
        head = program.guide_head
        for parameter in head.parameters():
            parameter.zero_()
        head.weight[:3].copy_((columns - offset).T)
        head.bias[:3].copy_(offset[0])
        head.bias[3:].copy_((factor.diagonal() ** 2 - 1e-4).log())
        head.lower.bias.copy_((factor / factor.diagonal()[:, None]).tril(-1).flatten())
        log_w = weigh(program, {"x": x}, 5).log_w
        torch.testing.assert_close(log_w, program.exact_log_evidence(x).expand(5, -1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guide", ["student_t", "full_covariance", "flow"])
def test_a_divergence_without_closed_form_is_sampled(guide):
    torch.manual_seed(0)
    batch, program, found = {"x": torch.randn(50, 3)}, PPCA(3, 2, guide), []
    for kl in ("analytic", "sampled"):
        torch.manual_seed(1)
        found.append(ELBO(5, kl=kl)(Step(program, batch)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_fit_with_a_family_is_saved_and_loaded(tmp_path):
    fitted = fit("ppca", X, n_latent=2, guide="flow", max_epochs=1, progress=False)
    fitted.save(tmp_path / "flow.safetensors")
    loaded = load(tmp_path / "flow.safetensors")
    np.testing.assert_array_equal(loaded.latent(X), fitted.latent())


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(
        ValueError, match="guide must be one of mean_field, student_t, full_covariance, flow, not 'vine'"
    ):
        PPCA(3, 2, "vine")
    with pytest.raises(ValueError, match="not 'vine'"):
        Encoder(3, 2, 8, "vine")


def test_the_families_work_at_any_site_of_a_users_program():
    class Two(PPCA):
        def guide(self, batch):
            with self.cells(batch):
                pyro.sample("z", guide_head("student_t", 3, 5)(batch["x"]))

    torch.manual_seed(0)
    assert weigh(Two(3, 5), {"x": torch.randn(4, 3)}, 2).log_w.shape == (2, 4)
    assert isinstance(guide_head("mean_field", 2, 2)(torch.zeros(1, 2)), dist.Independent)
