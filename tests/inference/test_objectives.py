"""ELBO and IWAE against closed forms: values, gradients, minibatch scaling, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fieldguide.catalog.parts.networks import Layers
from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import ELBO, IWAE, Program, Step, fit, resolve, weigh

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "objectives.json").read_text())["gauss1d"]
PROPOSALS = {p["name"]: p for p in REFERENCE["proposals"] if p["name"] != "prior"}
CELLS = 2000


def gauss1d(proposal):
    """z ~ N(0, 1); x | z ~ N(z, 0.5); q = N(m, v): probabilistic PCA with one feature and one latent."""
    program = PPCA(n_features=1, n_latent=1).double()
    with torch.no_grad():
        program.loadings.fill_(1.0)
        program.log_noise.fill_(0.5 * np.log(REFERENCE["lik_var"]))
        program.guide_loc.weight.zero_()
        program.guide_loc.bias.fill_(proposal["m"])
        program.guide_log_scale.fill_(0.5 * np.log(proposal["v"]))
    return program


def observed(cells=CELLS):
    return {"x": torch.full((cells, 1), REFERENCE["x"], dtype=torch.float64)}


def replicate_gradients(objective, program, parameters, replicates=24):
    """Gradients of the bound for repeated draws: [replicates, len(parameters)]."""
    rows = []
    for seed in range(replicates):
        torch.manual_seed(seed)
        grads = torch.autograd.grad(objective(Step(program, observed())), parameters)
        rows.append([-g.sum().item() for g in grads])
    return np.array(rows)


def assert_mean(samples, expected, floor=1e-6):
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(0) - expected) <= 5 * error + floor), (samples.mean(0), expected, error)


@pytest.mark.parametrize("name", PROPOSALS)
def test_elbo_and_iwae_equal_their_exact_values(name):
    program = gauss1d(PROPOSALS[name])
    torch.manual_seed(0)
    for particles in (1, 2, 5, 25):
        weights = weigh(program, observed(20000), particles)
        elbo, iwae = ELBO(particles).per_cell(weights), IWAE(particles).per_cell(weights)
        assert_mean(elbo.detach().numpy(), PROPOSALS[name]["elbo"])
        assert_mean(iwae.detach().numpy(), PROPOSALS[name]["iwelbo"][str(particles)])


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize(
    "objective",
    [ELBO(1), ELBO(5), ELBO(5, "stl"), ELBO(5, "score"), ELBO(1, kl="analytic")]
    + [IWAE(k, g) for k in (2, 5) for g in ("reparam", "dreg", "score")],
    ids=str,
)
def test_guide_gradients_are_unbiased(name, objective):
    proposal = PROPOSALS[name]
    program = gauss1d(proposal)
    exact = proposal["grad_elbo"] if isinstance(objective, ELBO) else proposal["grad_iwelbo"][str(objective.particles)]
    found = replicate_gradients(objective, program, [program.guide_loc.bias, program.guide_log_scale])
    assert_mean(found, np.array(exact))


@pytest.mark.parametrize("objective", [ELBO(4, "stl"), IWAE(4, "dreg")], ids=str)
def test_path_gradients_vanish_for_each_draw_where_the_guide_is_the_posterior(objective):
    program = gauss1d(PROPOSALS["posterior"])
    found = replicate_gradients(objective, program, [program.guide_loc.bias, program.guide_log_scale], 3)
    assert np.abs(found).max() < 1e-10


def test_stl_applied_to_iwae_would_be_biased_so_dreg_is_not_that():
    """The naive path gradient has the expectation recorded as ``expected_stl_grad_iwelbo``; ours must differ."""
    proposal = PROPOSALS["wide"]
    program = gauss1d(proposal)
    found = replicate_gradients(IWAE(5, "dreg"), program, [program.guide_loc.bias])
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - proposal["expected_stl_grad_iwelbo"]["5"][0]) > 20 * error


@pytest.mark.parametrize("gradient", ["reparam", "dreg", "score"])
def test_model_gradients_of_iwae_are_those_of_the_log_mean_weight(gradient):
    program = gauss1d(PROPOSALS["wide"])
    torch.manual_seed(0)
    exact = torch.autograd.grad(IWAE(5, "reparam")(Step(program, observed(50))), [program.loadings, program.log_noise])
    torch.manual_seed(0)
    found = torch.autograd.grad(IWAE(5, gradient)(Step(program, observed(50))), [program.loadings, program.log_noise])
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gradient", ["reparam", "dreg", "score"])
def test_the_loss_has_the_value_of_the_bound_whatever_the_gradient(gradient):
    program = gauss1d(PROPOSALS["wide"])
    values = []
    for objective in (IWAE(5, gradient), IWAE(5, "reparam")):
        torch.manual_seed(0)
        values.append(objective(Step(program, observed(50))).item())
    assert values[0] == pytest.approx(values[1], abs=1e-12)


@st.composite
def exact_programs(draw):
    """Probabilistic PCA with orthogonal loadings, whose posterior is in the guide's family; the guide set to it."""
    latents = draw(st.integers(1, 4))
    features = draw(st.integers(latents, 6))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    program = PPCA(features, latents).double()
    noise = draw(st.floats(0.3, 3.0))
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(features, latents, dtype=torch.float64))[0]
        program.loadings.copy_(basis * torch.rand(latents, dtype=torch.float64) * 2)
        program.mean.normal_()
        program.log_noise.fill_(np.log(noise))
        zero = torch.zeros(1, features, dtype=torch.float64)
        offset, covariance = program.exact_posterior(zero)
        columns, _ = program.exact_posterior(torch.eye(features, dtype=torch.float64))
        program.guide_loc.weight.copy_((columns - offset).T)
        program.guide_loc.bias.copy_(offset[0])
        program.guide_log_scale.copy_(0.5 * covariance.diagonal().log())
    return program, {"x": torch.randn(draw(st.integers(2, 12)), features, dtype=torch.float64)}


@given(exact_programs(), st.integers(1, 7))
def test_every_weight_is_the_evidence_where_the_guide_is_the_posterior(case, particles):
    program, batch = case
    evidence = program.exact_log_evidence(batch["x"])
    log_w = weigh(program, batch, particles).log_w
    torch.testing.assert_close(log_w, evidence.expand(particles, -1), rtol=1e-9, atol=1e-9)


@given(exact_programs(), st.integers(1, 5))
def test_minibatches_average_to_the_full_batch(case, size):
    """The reduction order: with N/B inside the log-mean-exp (as in stock RenyiELBO) this fails for IWAE."""
    program, batch = case
    cells = len(batch["x"])
    for objective in (ELBO(3), IWAE(3, "reparam")):
        full = objective(Step(program, batch, cells)).item()
        parts = [{"x": batch["x"][i : i + size]} for i in range(0, cells, size)]
        share = [len(p["x"]) / cells * objective(Step(program, p, cells)).item() for p in parts]
        assert sum(share) == pytest.approx(full, abs=1e-9)


class Subsampled(PPCA):
    """The same model with Pyro's own subsampling, whose scale must not enter the weights."""

    def cells(self, batch):
        return pyro.plate("cells", 1000, subsample=torch.arange(len(batch["x"])), dim=-1)


def test_the_scale_of_a_subsampling_plate_does_not_enter_the_weights():
    torch.manual_seed(0)
    plain, scaled = PPCA(3, 2), Subsampled(3, 2)
    scaled.load_state_dict(plain.state_dict())
    batch, found = {"x": torch.randn(5, 3)}, []
    for program in (plain, scaled):
        torch.manual_seed(1)
        found.append(weigh(program, batch, 4).log_w)
    torch.testing.assert_close(*found)


class Hierarchical(Program):
    """Two latent sites, the second depending on the first on both sides, with dropout and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8))
        self.encoder = Layers(1, 4, dropout=0.3)
        self.encoder_head = nn.Linear(4, 1)
        self.guide_slope = nn.Parameter(torch.tensor(0.3))

    def model(self, batch):
        with self.cells(batch):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(self.weight * a, 0.5))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch["x"])

    def guide(self, batch):
        loc = self.encoder_head(self.encoder(batch["x"][:, None])).squeeze(-1)
        with self.cells(batch):
            a = pyro.sample("a", dist.Normal(0.5 * loc, 0.9))
            pyro.sample("z", dist.Normal(loc + self.guide_slope * a, 0.6))


def test_path_weights_replay_dropout_and_leave_buffers_alone():
    torch.manual_seed(0)
    program = Hierarchical().train()
    batch = {"x": torch.randn(16)}
    found, means = [], []
    for kind in ("reparam", "path"):
        state = {k: v.clone() for k, v in program.state_dict().items()}
        torch.manual_seed(3)
        weights = weigh(program, batch, 5, kind)
        found.append((weights.log_p, weights.log_q))
        means.append(program.encoder.norm[0].running_mean.clone())
        program.load_state_dict(state)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(means[0], means[1])


def test_dreg_is_unbiased_for_a_guide_whose_sites_depend_on_each_other():
    torch.manual_seed(0)
    program = Hierarchical().eval()
    batch = {"x": torch.randn(1).expand(4000)}
    samples = {}
    for gradient in ("reparam", "dreg"):
        rows = []
        for seed in range(60):
            torch.manual_seed(seed)
            loss = IWAE(4, gradient)(Step(program, batch))
            rows.append([g.sum().item() for g in torch.autograd.grad(loss, [program.guide_slope, program.weight])])
        samples[gradient] = np.array(rows)
    assert_mean(samples["dreg"] - samples["reparam"], 0.0)
    assert samples["dreg"][:, 0].std() < samples["reparam"][:, 0].std()


class GlobalMean(Program):
    """x_n ~ N(mu, 1) with mu ~ N(0, 1) outside the data plate."""

    latent = "mu"

    def __init__(self):
        super().__init__()
        self.guide_loc, self.guide_log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def model(self, batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with self.cells(batch):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=batch["x"])

    def guide(self, batch):
        pyro.sample("mu", dist.Normal(self.guide_loc, self.guide_log_scale.exp()))


def test_the_elbo_of_a_global_latent_is_exact_and_iwae_refuses_it():
    torch.manual_seed(0)
    program, x = GlobalMean().double(), torch.randn(50, dtype=torch.float64)
    with torch.no_grad():
        program.guide_loc.fill_(x.sum().item() / 51)
        program.guide_log_scale.fill_(-0.5 * np.log(51))
    covariance = torch.eye(50, dtype=torch.float64) + 1
    evidence = dist.MultivariateNormal(torch.zeros(50, dtype=torch.float64), covariance).log_prob(x)
    assert -50 * ELBO(3)(Step(program, {"x": x})).item() == pytest.approx(evidence.item(), abs=1e-9)
    with pytest.raises(ValueError, match="outside it: mu"):
        IWAE(3)(Step(program, {"x": x}))
    with pytest.raises(ValueError, match="outside it: mu"):
        ELBO(3, "score")(Step(program, {"x": x}))


class Coin(Program):
    """A discrete latent: cannot be reparameterised."""

    def __init__(self):
        super().__init__()
        self.guide_logit = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Bernoulli(logits=self.guide_logit))


def test_score_gradients_of_a_discrete_latent_match_enumeration():
    program = Coin()
    x = torch.full((4000,), 1.2, dtype=torch.float64)
    q = torch.sigmoid(program.guide_logit)
    joint = [
        dist.Bernoulli(0.3).log_prob(torch.tensor(k)).double() + dist.Normal(2 * k, 1.0).log_prob(x[0])
        for k in (0.0, 1.0)
    ]
    exact = (1 - q) * (joint[0] - torch.log1p(-q)) + q * (joint[1] - q.log())
    (gradient,) = torch.autograd.grad(exact, program.guide_logit)
    rows = []
    for seed in range(60):
        torch.manual_seed(seed)
        (g,) = torch.autograd.grad(ELBO(3, "score")(Step(program, {"x": x})), [program.guide_logit])
        rows.append([-g.item()])
    assert_mean(np.array(rows), gradient.item())
    with pytest.raises(ValueError, match="guide site 'z' .* cannot be reparameterised"):
        ELBO(3)(Step(program, {"x": x}))


class Masked(PPCA):
    """Half weight for every observation, and the last cell masked out."""

    def model(self, batch):
        mask = torch.arange(len(batch["x"])) < len(batch["x"]) - 1
        with pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=mask):
            super().model(batch)


def test_scale_and_mask_of_the_user_stay():
    torch.manual_seed(0)
    plain, masked = PPCA(3, 2), Masked(3, 2)
    masked.load_state_dict(plain.state_dict())
    batch, found = {"x": torch.randn(5, 3)}, []
    for program in (plain, masked):
        torch.manual_seed(1)
        found.append(weigh(program, batch, 4).log_p)
    torch.testing.assert_close(found[1][:, :-1], 0.5 * found[0][:, :-1])
    assert (found[1][:, -1] == 0).all()


def test_kl_weight_scales_prior_and_guide_of_the_annealed_sites_only():
    program = PPCA(3, 2)
    batch = {"x": torch.randn(5, 3)}
    for kind in ("reparam", "analytic"):
        torch.manual_seed(1)
        whole = weigh(program, batch, 4, kind)
        torch.manual_seed(1)
        none = weigh(program, batch, 4, kind, kl_weight=0.0)
        torch.testing.assert_close(none.log_w, whole.log_likelihood)


def test_one_loss_for_each_group_trains_both():
    x = np.random.default_rng(0).normal(size=(64, 3))

    def two_losses(step):
        loss = ELBO(2)(step)
        return {"theta": loss, "phi": loss}

    both = fit(PPCA, {"x": x}, objective=two_losses, max_epochs=3, n_features=3, n_latent=2, progress=False)
    one = fit(PPCA, {"x": x}, objective=ELBO(2), max_epochs=3, n_features=3, n_latent=2, progress=False)
    for (name, a), b in zip(both.program.named_parameters(), one.program.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    with pytest.raises(KeyError, match="a loss for 'psi'"):
        fit(PPCA, {"x": x}, objective=lambda s: {"psi": ELBO()(s)}, max_epochs=1, n_features=3, progress=False)


class Forgetful(PPCA):
    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="missing from the guide: \\['z'\\]; missing from the model: \\['y'\\]"):
        weigh(Forgetful(3, 2), {"x": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match="gradient must be one of dreg, reparam, score"):
        IWAE(5, "stl")
    with pytest.raises(ValueError, match="particles must be a whole number of at least 1"):
        ELBO(0)
    with pytest.raises(ValueError, match="at least 2 particles"):
        ELBO(1, "score")
    with pytest.raises(ValueError, match="goes with gradient='reparam'"):
        ELBO(1, "stl", kl="analytic")
    with pytest.raises(ValueError, match="no objective 'elob'"):
        resolve("elob")
    with pytest.raises(TypeError):
        resolve(3)
    with pytest.raises(KeyError, match="no site 'w'; the program has \\['z'\\]"):
        Step(PPCA(3, 2), {"x": torch.zeros(4, 3)}).value("w")
