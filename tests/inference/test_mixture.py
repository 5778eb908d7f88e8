"""Multiple importance sampling: closed forms of the estimator, what must not matter, decisions on it, bad input."""

import copy
import json
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fieldguide.catalog.ppca import PPCA
from fieldguide.decisions import differential_expression
from fieldguide.inference import ELBO, IWAE, Fit, Posterior, Program, fit, mix
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.mixture import optimal_shares

GAUSS = json.loads((Path(__file__).parents[1] / "reference" / "objectives.json").read_text())["gauss1d"]
PROPOSALS = {p["name"]: p for p in GAUSS["proposals"]}
ROWS = np.arange(4)


def wrapped(program, data, objective=None):
    """A fit of a program whose parameters are set by hand."""
    dataset = read(data, None)
    rows = np.arange(dataset.n_cells)
    return Fit(program.eval(), type(program), None, objective or ELBO(), {}, dataset, rows, rows[:0])


def gauss1d(name, cells=1000):
    """z ~ N(0, 1); x | z ~ N(z, 0.5); one observation repeated; q = N(m, v)."""
    program = PPCA(n_features=1, n_latent=1)
    with torch.no_grad():
        program.loadings.fill_(1.0)
        program.log_noise.fill_(0.5 * np.log(GAUSS["lik_var"]))
        program.guide_loc.weight.zero_()
        program.guide_loc.bias.fill_(PROPOSALS[name]["m"])
        program.guide_log_scale.fill_(0.5 * np.log(PROPOSALS[name]["v"]))
    return wrapped(program, {"x": np.full((cells, 1), GAUSS["x"])})


def reference(cells=1000):
    """The mixture of the reference: 4, 4 and 2 draws from narrow, wide and prior."""
    return mix([gauss1d("narrow_finite_chi2", cells), gauss1d("wide", cells)], prior=0.2)


def assert_mean(samples, expected):
    error = samples.std(ddof=1) / np.sqrt(samples.size)
    assert abs(samples.mean() - expected) < 5 * error, (samples.mean(), expected, error)


def test_the_evidence_is_unbiased_with_the_variance_of_fixed_numbers_of_draws():
    mis = GAUSS["mis"]
    found = np.exp(reference(40_000).posterior(particles=10).log_evidence)
    assert_mean(found, mis["evidence"])
    deterministic = mis["variance_Zhat_deterministic_mixture"]
    spread = np.sqrt(((found - found.mean()) ** 2).var() / len(found))
    assert abs(found.var() - deterministic) < 5 * spread
    assert deterministic < mis["variance_Zhat_random_mixture"]
    assert found.var() + 5 * spread < mis["variance_Zhat_random_mixture"]


def test_each_stratum_has_its_mean_and_every_weight_is_below_the_defensive_bound():
    mixture = reference(20_000)
    batch = {"x": torch.full((20_000, 1), GAUSS["x"])}
    torch.manual_seed(0)
    weights, densities = mixture.log_densities(batch, np.array([4, 4, 2]))
    w = weights.log_w.exp()
    origin = densities.softmax(0)  # probability that a draw is of component j, for equal prior probabilities
    assert origin.shape == (3, 10, 20_000)
    mis = GAUSS["mis"]
    assert w.max() <= mis["defensive_bound_max_lik_over_alpha_prior"]
    assert w.max() <= mis["max_weight"] * (1 + 1e-5)
    for component, expected in enumerate(mis["component_means_E_qj_w"]):
        torch.manual_seed(component)
        counts = np.zeros(3, int)
        counts[component] = 10
        alone, at = mixture.log_densities(batch, counts)
        mixed = torch.logsumexp(at + torch.tensor([0.4, 0.4, 0.2]).double().log()[:, None, None], 0)
        assert_mean((alone.log_p - mixed).exp().numpy().ravel(), expected)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.floats(0, 0.9), st.integers(0, 1000))
def test_the_balance_heuristic_is_a_partition_of_unity(raw, prior, seed):
    names = ["narrow_finite_chi2", "wide", "near", "posterior"][: len(raw)]
    mixture = mix([gauss1d(n, 3) for n in names], np.array(raw) / sum(raw), prior)
    counts = mixture.counts(50)
    assert counts.sum() == 50 and (counts[mixture.shares > 0] >= 1).all()
    torch.manual_seed(seed)
    weights, densities = mixture.log_densities({"x": torch.full((3, 1), GAUSS["x"])}, counts)
    share = torch.from_numpy(counts / 50).log()[:, None, None]
    beta = (densities + share - weights.log_q).exp()
    torch.testing.assert_close(beta.sum(0), torch.ones(50, 3).double(), rtol=0, atol=1e-12)
    if prior > 0:
        bound = 0.5 * np.log(1 / (2 * np.pi * GAUSS["lik_var"])) - np.log(counts[-1] / 50)
        assert weights.log_w.max() <= bound + 1e-6


@pytest.mark.parametrize("particles", [3, 10, 199, 200])
def test_numbers_of_draws_follow_the_shares(particles):
    mixture = mix([gauss1d("wide", 3), gauss1d("near", 3)], [0.999, 0.001])
    counts = mixture.counts(particles)
    assert counts.sum() == particles and (counts >= 1).all()
    exact = mixture.shares * particles
    assert np.abs(counts - np.maximum(exact, 1)).max() < 2


def test_one_guide_alone_is_plain_importance_sampling():
    single = gauss1d("wide", 50)
    mixed, plain = mix([single], prior=False).posterior(particles=300), single.posterior(particles=300)
    for cell in range(3):
        z, w = mixed.draw("z", resample=False)[:, cell, 0], mixed.log_weights[:, cell]
        exact = dist.Normal(0.6, 0.5**0.5)
        joint = dist.Normal(0.0, 1.0).log_prob(torch.from_numpy(z)) + dist.Normal(
            torch.from_numpy(z), 0.5**0.5
        ).log_prob(torch.tensor(GAUSS["x"]))
        np.testing.assert_allclose(w, joint - exact.log_prob(torch.from_numpy(z)), atol=1e-5)
    assert np.abs(mixed.log_evidence.mean() - plain.log_evidence.mean()) < 0.02
    assert mixed.log_weights.dtype == np.float64


def density(mixture, values):
    """Log density of a mixture at given draws [S, B, 1], by its own weights."""
    from fieldguide.inference.weights.densities import log_density, trace_at

    batch = {"x": torch.full((values.shape[1], 1), GAUSS["x"])}
    shape = values.shape[:2]
    parts = [log_density(p, trace_at(p, "guide", batch, {"z": values}), ["z"], *shape) for p in mixture.programs]
    if mixture.prior:
        p = mixture.programs[0]
        parts.append(log_density(p, trace_at(p, "model", batch, {"z": values}), ["z"], *shape))
    with np.errstate(divide="ignore"):
        return torch.logsumexp(torch.stack(parts) + torch.from_numpy(np.log(mixture.shares))[:, None, None], 0)


@settings(max_examples=20)
@given(st.permutations(["narrow_finite_chi2", "wide", "near"]), st.integers(0, 100))
def test_order_does_not_matter_and_duplicates_merge(order, seed):
    torch.manual_seed(seed)
    values = 2 * torch.randn(5, 4, 1)
    shares = {"narrow_finite_chi2": 0.5, "wide": 0.3, "near": 0.2}
    first = mix([gauss1d(n, 4) for n in shares], list(shares.values()), 0.1)
    second = mix([gauss1d(n, 4) for n in order], [shares[n] for n in order], 0.1)
    torch.testing.assert_close(density(first, values), density(second, values), rtol=0, atol=1e-12)
    twice = mix(
        [gauss1d(n, 4) for n in (*order, "wide")], [shares[n] / (1 + (n == "wide")) for n in (*order, "wide")], 0.1
    )
    torch.testing.assert_close(density(first, values), density(twice, values), rtol=0, atol=1e-12)
    none = mix([gauss1d(n, 4) for n in (*shares, "posterior")], [*shares.values(), 0.0], 0.1)
    torch.testing.assert_close(density(first, values), density(none, values), rtol=0, atol=1e-12)


def test_optimised_shares_find_the_best_component_and_the_minimum():
    fits = [gauss1d(n, 400) for n in ("narrow_infinite_chi2", "near", "wide")]
    mixture = mix(fits, "optimised", prior=0.05)
    assert mixture.shares[-1] == 0.05 and mixture.shares.sum() == pytest.approx(1)
    assert mixture.names == ["elbo", "elbo-2", "elbo-3", "prior"]
    assert mixture.shares[:3].argmax() == 1
    exact = mix([*fits[:1], gauss1d("posterior", 400)], "optimised", prior=False)
    assert exact.shares[1] > 0.98
    ess = mixture.posterior(particles=400, seed=5).ess.mean()
    assert ess > mix(fits).posterior(particles=400, seed=5).ess.mean()


@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from([0.0, 0.05, 0.3]))
def test_optimal_shares_minimise_the_estimated_second_moment(seed, components, prior):
    rng = np.random.default_rng(seed)
    log_w, raw = (
        torch.from_numpy(rng.normal(size=(60, 8))),
        torch.from_numpy(rng.normal(size=(components, 60, 8))).exp(),
    )
    ratio = raw / raw.mean(0)
    found = optimal_shares(log_w, ratio, prior)
    guides = components - (prior > 0)

    def objective(shares):
        full = np.append((1 - prior) * shares, prior) if prior else shares
        squares = torch.softmax(2 * log_w, 0)
        return (squares / torch.einsum("j,jkb->kb", torch.from_numpy(full), ratio)).sum(0).log().mean().item()

    assert found.shape == (guides,) and found.sum() == pytest.approx(1)
    others = [*rng.dirichlet(np.ones(guides), 30), *np.eye(guides)]
    assert objective(found) <= min(objective(o) for o in others) + 1e-3  # shares below 1e-3 are dropped


def test_optimal_shares_of_components_that_do_not_meet():
    """Every draw has density zero under all components but one: the shares are those of the weights."""
    log_w = torch.zeros(40, 5).double()
    ratio = torch.zeros(2, 40, 5).double()
    ratio[0, :10], ratio[1, 10:] = 4.0, 4 / 3
    log_w[10:] = -2000.0
    assert optimal_shares(log_w, ratio, 0.0).tolist() == [1.0, 0.0]
    log_w[10:] = 0.0
    np.testing.assert_allclose(optimal_shares(log_w, ratio, 0.0), [0.25, 0.75], atol=1e-4)


class Chain(Program):
    """Two latents on either side, one depending on the other, and a discrete one."""

    def __init__(self, shift):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8))
        self.guide_shift = nn.Parameter(torch.tensor(float(shift)))

    def model(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
            a = pyro.sample("a", dist.Normal(c, 1.0))
            z = pyro.sample("z", dist.Normal(self.weight * a, 0.5))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Bernoulli(torch.sigmoid(batch["x"] + self.guide_shift)))
            a = pyro.sample("a", dist.Normal(0.5 * c + 0.4 * batch["x"] + self.guide_shift, 1.0))
            pyro.sample("z", dist.Normal(0.4 * a + 0.5 * batch["x"], 0.5))


def test_several_sites_that_depend_on_each_other_and_a_discrete_one():
    x = np.linspace(-2, 2, 2000)
    fits = [wrapped(Chain(shift), {"x": x}) for shift in (-0.6, 0.5)]
    found = mix(fits).posterior(particles=300)
    spread = np.sqrt(0.25 + 0.25 + 0.64)
    exact = [
        p * np.exp(-0.5 * ((x - 0.8 * c) / spread) ** 2) / spread / np.sqrt(2 * np.pi) for c, p in ((0, 0.7), (1, 0.3))
    ]
    evidence = np.exp(found.log_evidence) / (exact[0] + exact[1])
    assert_mean(evidence, 1.0)
    error = found.expect(lambda v: v["c"]) - exact[1] / (exact[0] + exact[1])
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(2000) + 1e-3 and error.std() < 0.1
    assert found.draw("a", 7).shape == (7, 2000)


class TwoPlates(PPCA):
    """Features in an inner plate."""

    depth = 2

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            loc = (z @ self.loadings.T + self.mean).movedim(-1, 0) if z.dim() == 2 else z @ self.loadings.T + self.mean
            with pyro.plate("features", 3, dim=-2):
                loc = loc.reshape(-1, *loc.shape[-2:]).mT if z.dim() > 2 else loc
                pyro.sample("x", dist.Normal(loc, self.log_noise.exp()[:, None]), obs=batch["x"].T)


def test_inner_plates_are_summed():
    torch.manual_seed(0)
    x = {"x": np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)}
    flat, deep = PPCA(3, 2), TwoPlates(3, 2)
    deep.load_state_dict(flat.state_dict())
    found = [mix([wrapped(p, x)]).posterior(particles=2000).log_evidence for p in (flat, deep)]
    np.testing.assert_allclose(found[0], found[1], atol=0.2)


@pytest.fixture(scope="module")
def cells():
    from fieldguide.catalog.data import pbmc68k_700

    data = pbmc68k_700()[:, :80].copy()
    return data[np.asarray(data.X.sum(1)).ravel() > 0].copy()


def test_everything_that_is_asked_of_a_posterior_works_on_a_mixture(cells, monkeypatch):
    first = fit("scvi", cells, max_epochs=3, n_hidden=16, n_latent=3, progress=False)
    second = first.refit(IWAE(5), guide="student_t", progress=False, max_epochs=3)
    mixture = mix([first, second])
    assert repr(mixture) == "<Mixture: elbo 48%, iwae-student_t 48%, prior 5%>"
    monkeypatch.setattr("fieldguide.inference.posterior.ELEMENTS", 60 * 80 * 100)
    found = mixture.posterior(particles=60, seed=2)
    assert isinstance(found, Posterior) and len(list(found.chunks())) > 1
    assert found.log_weights.shape == (60, cells.n_obs) and found.log_weights.dtype == np.float64
    np.testing.assert_array_equal(found.log_weights, mixture.posterior(particles=60, seed=2).log_weights)
    assert (found.ess >= 1).all() and np.isfinite(found.khat).all() and np.isfinite(found.log_evidence).all()
    np.testing.assert_allclose(found.expect(lambda v: v["rho"]).sum(1), 1, rtol=1e-4)
    assert found.draw("rho", 5).shape == (5, cells.n_obs, 80)
    assert found.to_arviz(np.arange(4)).posterior["z"].shape == (1, 60, 4, 3)
    result = differential_expression(found, "bulk_labels", "CD19+ B", "Dendritic", draws=100)
    assert len(result.table) == 80 and np.isfinite(result.table["lfc"]).all()
    new = mixture.posterior(cells[:5].copy(), particles=20)
    assert new.log_weights.shape == (20, 5)


def test_the_first_draws_of_a_mixture_are_from_all_of_its_components():
    mixture = mix([gauss1d("narrow_finite_chi2", 2000), gauss1d("wide", 2000)], [0.5, 0.5], prior=False)
    z = mixture.posterior(particles=40).draw("z", 2, resample=False)
    assert_mean(z.ravel(), (PROPOSALS["narrow_finite_chi2"]["m"] + PROPOSALS["wide"]["m"]) / 2)


@pytest.mark.parametrize(
    ("weights", "prior", "message"),
    [
        ([0.5, 0.6], True, "weights must sum to one .* not 1.1"),
        ([1.5, -0.5], True, "weights must be shares of at least 0, not -0.5"),
        ([np.nan, 1.0], True, "weights must be shares of at least 0, not nan"),
        ([0.0, 0.0], True, "weights must sum to one .* not 0"),
        ([1.0], True, "one share for each of 2 fits, not 1"),
        ("best", True, "weights must be 'equal', 'optimised' or 2 shares, not 'best'"),
        (None, 1.0, "prior must be a number in \\[0, 1\\), not 1"),
        (None, -0.1, "prior must be a number"),
    ],
)
def test_bad_shares_are_refused(weights, prior, message):
    with pytest.raises(ValueError, match=message):
        mix([gauss1d("wide", 3), gauss1d("near", 3)], weights, prior)


def test_other_bad_input_is_refused():
    one, other = gauss1d("wide", 3), gauss1d("near", 3)
    with pytest.raises(ValueError, match="there is no fit to mix"):
        mix([])
    with pytest.raises(ValueError, match="particles=2 are too few for 3 components"):
        mix([one, other]).posterior(particles=2)
    changed = copy.deepcopy(other)
    with torch.no_grad():
        changed.program.log_noise.add_(1e-3)
    with pytest.raises(ValueError, match="models of fit 0 and fit 1 differ in 'log_noise'.*Fit.refit"):
        mix([one, changed])
    with pytest.raises(ValueError, match="fit 1 is of Chain, fit 0 of PPCA"):
        mix([one, wrapped(Chain(0), {"x": np.zeros(3)})])
