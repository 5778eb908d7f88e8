"""Options and edges of the objectives: sleep, annealing, smoothing, fall-back, discrete guides, capture, errors."""

import dataclasses

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_forms import PROPOSALS, every_objective, gauss1d, observed
from torch import nn

from fieldguide.catalog.ppca import PPCA
from fieldguide.catalog.scvi import SCVI
from fieldguide.inference import (
    CUBO,
    ELBO,
    IWAE,
    Chi,
    ForwardKL,
    Program,
    Renyi,
    SleepPhi,
    Step,
    VRMax,
    WakeWake,
    fit,
    load,
    resolve,
)
from fieldguide.inference.capture import SCALARS, export_step
from fieldguide.inference.objectives import SHORT_NAMES
from fieldguide.inference.objectives.smoothing import smooth
from fieldguide.inference.simulate import simulate
from fieldguide.inference.testing import Conjugate, assert_mean, gradient_of, gradient_samples

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
QUICK = {"max_epochs": 3, "batch_size": 16, "learning_rate": 0.01, "n_latent": 2, "progress": False}


TAMED = Chi(25, anneal=True, smooth="psis", fallback=3)


# --- the sleep phase


def joint_program():
    """The guide far from the posterior, which is known for every x."""
    program = Conjugate(torch.tensor([[1.0], [0.5]]), 0.8)
    with torch.no_grad():
        program.guide_slope.fill_(0.3)
        program.guide_log_scale.fill_(0.2)
    return program


def test_sleep_gradients_are_those_of_the_forward_divergence_under_the_models_own_data():
    program = joint_program()
    torch.manual_seed(0)
    simulated, _ = simulate(program, {"x": torch.zeros(1, 2).double()}, 200_000)
    exact = gradient_of((program.eubo(simulated) - program.log_evidence(simulated)).mean(), program)
    found = gradient_samples(SleepPhi(1000), program, {"x": torch.zeros(1, 2).double()}, 40)
    assert_mean(found, exact, floor=0.02 * np.abs(exact).max())
    mixed = gradient_samples(
        WakeWake(25, "dreg", sleep=1.0), program, {"x": torch.zeros(1, 2).double()}, 40, "phi", 200
    )
    assert_mean(mixed, exact, floor=0.02 * np.abs(exact).max())


def test_a_share_of_sleep_mixes_the_two_gradients():
    program, batch = joint_program(), {"x": torch.ones(50, 2).double()}
    gradients = {}
    for share in (0.0, 0.3, 1.0):
        gradients[share] = gradient_samples(WakeWake(5, "dreg", sleep=share), program, batch, 1)
    np.testing.assert_allclose(gradients[0.3], 0.7 * gradients[0.0] + 0.3 * gradients[1.0], rtol=1e-9)
    values = [WakeWake(5, sleep=s)(seeded(program, batch)).item() for s in (0.0, 1.0)]
    assert values[0] == values[1], "the value is the bound that the model is fitted by"


def seeded(program, batch, **scalars):
    torch.manual_seed(0)
    return Step(program, batch, scalars=scalars)


def test_simulated_data_have_the_moments_of_the_model_and_leave_it_alone():
    torch.manual_seed(0)
    program = joint_program()
    batch, latents = simulate(program, {"x": torch.zeros(4, 2).double(), "index": torch.arange(4)}, 20_000)
    assert batch["x"].shape == (80_000, 2) and latents["z"].shape == (1, 80_000, 1)
    covariance = program.loadings @ program.loadings.T + 0.64 * torch.eye(2)
    torch.testing.assert_close(torch.cov(batch["x"].T), covariance.detach(), atol=0.03, rtol=0)
    assert batch["index"].tolist()[:5] == [0, 1, 2, 3, 0]
    assert not batch["x"].requires_grad


def test_scvi_sleeps_without_moving_its_running_means():
    torch.manual_seed(0)
    program = SCVI(n_genes=6, n_latent=2, n_hidden=4).train()
    batch = {"counts": torch.poisson(torch.full((8, 6), 3.0)), "index": torch.arange(8)}
    before = {k: v.clone() for k, v in program.decoder.named_buffers()}
    loss = SleepPhi(2)(Step(program, batch))["phi"]
    loss.backward()
    assert torch.isfinite(loss)
    for name, value in program.decoder.named_buffers():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in program.groups()["theta"])
    assert any(p.grad is not None and p.grad.any() for p in program.groups()["phi"])


class Renamed(PPCA):
    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ self.loadings.T, 1.0).to_event(1), obs=batch["x"])


class Logged(PPCA):
    def model(self, batch):
        super().model(batch | {"x": batch["x"].exp()})


class Factored(PPCA):
    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            pyro.factor("extra", z.sum(-1))


class InnerPlate(Program):
    depth = 2

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "x", "message"),
    [
        (Renamed(3, 2), X, "site 'y' has no field to be fed back"),
        (Logged(3, 2), X, "site 'x' does not observe batch\\['x'\\] as it is"),
        (Factored(3, 2), X, "a pyro.factor \\('extra'\\), so it cannot be simulated from"),
        (InnerPlate(), X[:3, :3], "only sites in the plate 'cells' alone can be fed back"),
    ],
    ids=["renamed", "transformed", "factor", "inner plate"],
)
def test_a_program_that_cannot_sleep_says_why(program, x, message):
    with pytest.raises(ValueError, match=message):
        SleepPhi()(Step(program, {"x": torch.from_numpy(x)}))


# --- annealing, smoothing, fall-back


def test_an_annealed_order_rises_from_one_to_its_final_value_in_the_first_third():
    program, batch = gauss1d(PROPOSALS["wide"]), observed(50)
    names = [n for n, _ in program.named_parameters() if n.startswith("guide")]

    def gradient(objective, progress):
        loss = objective(seeded(program, batch, progress=progress))
        loss = loss["phi"] if isinstance(loss, dict) else loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [program.get_parameter(n) for n in names])])

    for final in (CUBO(2, 25), Chi(25), CUBO(2, 25, "score")):
        annealed = dataclasses.replace(final, anneal=True)
        for late in (1 / 3, 1.0):
            torch.testing.assert_close(gradient(annealed, late), gradient(final, late))
        assert (gradient(annealed, 0.1) - gradient(final, 0.1)).abs().max() > 1e-3
    # at order 1, v is the normalised weights: the score form is the wake phase, up to its factor (n - 1)/n
    torch.testing.assert_close(
        gradient(dataclasses.replace(CUBO(2, 25, "score"), anneal=True), 0.0), 0.5 * gradient(ForwardKL(25), 0.0)
    )


@pytest.mark.parametrize("draws", [21, 25, 100, 1000])
def test_pareto_smoothed_weights_are_those_of_arviz(draws):
    torch.manual_seed(0)
    log_w = torch.randn(draws, 7).double() * torch.linspace(0.1, 4, 7).double() + 100
    ours = torch.log_softmax(smooth(log_w, "psis"), 0)
    theirs, _ = arviz.psislw(log_w.T.numpy().copy())
    np.testing.assert_allclose(ours.T.numpy(), np.asarray(theirs), rtol=1e-6, atol=1e-8)


def test_smoothing_keeps_equal_weights_and_tames_large_ones():
    log_w = torch.zeros(25, 2).double()
    log_w[0, 1] = 9.0
    for how in ("truncate", "psis"):
        found = smooth(log_w, how)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[:, 0], log_w[:, 0])
        assert torch.softmax(found, 0)[0, 1] <= torch.softmax(log_w, 0)[0, 1] + 1e-12
    truncated = smooth(log_w, "truncate").exp()
    assert truncated[:, 1].max() == pytest.approx(5 * log_w.exp()[:, 1].mean().item())


@pytest.mark.parametrize("kind", ["path", "score"])
def test_cells_with_too_few_effective_draws_fall_back_to_the_wake_phase(kind):
    program, batch = gauss1d(PROPOSALS["narrow_finite_chi2"]), observed(200)
    wake = {"path": "dreg", "score": "score"}[kind]
    always, never = CUBO(2, 25, kind, fallback=26), CUBO(2, 25, kind, fallback=1)
    first = gradient_samples(always, program, batch, 2)
    np.testing.assert_allclose(first, gradient_samples(ForwardKL(25, wake), program, batch, 2), rtol=1e-9)
    second = gradient_samples(never, program, batch, 2)
    np.testing.assert_allclose(second, gradient_samples(CUBO(2, 25, kind), program, batch, 2), rtol=1e-9)
    step = seeded(program, batch)
    CUBO(2, 25, kind, fallback=5)(step)
    v = torch.softmax(2 * step.weights(25, "score").log_w, 0) if kind == "score" else None
    if v is not None:
        assert step.logs["fallback"].item() == pytest.approx((1 / (v**2).sum(0) < 5).double().mean().item())
    assert 0 < step.logs["fallback"] < 1


def test_the_history_says_what_the_objective_logged():
    found = fit(PPCA, {"x": X}, objective=Chi(25, fallback=5), n_features=3, **QUICK)
    assert {"cubo", "fallback"} <= set(found.history.columns)
    assert found.history["fallback"].between(0, 1).all()
    assert (found.history["cubo"] >= -found.history["train"]).all(), "an upper bound above the lower one"
    assert "eubo" in fit(PPCA, {"x": X}, objective="wake", n_features=3, **QUICK).history


# --- training


def test_objectives_of_the_guide_alone_leave_the_model_and_say_so():
    for objective in (CUBO(2, 5), ForwardKL(5), SleepPhi()):
        with pytest.warns(UserWarning, match="does not train group 'theta'"):
            found = fit(PPCA, {"x": X}, objective=objective, n_features=3, **QUICK)
        torch.manual_seed(0)
        fresh = PPCA(3, 2)
        assert torch.equal(found.program.loadings, fresh.loadings)
        assert not torch.equal(found.program.guide_loc.weight, fresh.guide_loc.weight)


@pytest.mark.parametrize("name", [n for n in SHORT_NAMES if n not in ("cubo", "forward_kl")] + ["vr_mc_alpha=-1"])
def test_every_short_name_trains_both_sides_and_is_saved(name, tmp_path):
    found = fit(PPCA, {"x": X}, objective=name, n_features=3, **QUICK)
    assert found.history["train"].iloc[-1] < found.history["train"].iloc[0]
    found.save(tmp_path / "fit.safetensors")
    assert load(tmp_path / "fit.safetensors", PPCA).objective == resolve(name)


@pytest.mark.parametrize("objective", [*every_objective(25), SleepPhi(3)], ids=str)
def test_objectives_are_plain_values(objective):
    from fieldguide.inference import checkpoint

    assert checkpoint._objective(checkpoint._describe(objective)) == objective
    assert eval(repr(objective), {type(objective).__name__: type(objective)}) == objective


# --- guides of other kinds


class Relaxed(Program):
    """A relaxed categorical latent, which can be reparameterised."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.randn(3, 3))
        self.guide_logits = nn.Linear(3, 3)

    def model(self, batch):
        with self.cells(batch):
            prior = dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(3))
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ self.means, 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            logits = self.guide_logits(batch["x"])
            pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits))


class Coin(Program):
    """A discrete latent, with every expectation a sum of two terms."""

    def __init__(self):
        super().__init__()
        self.guide_logit = nn.Parameter(torch.tensor(-0.3).double())

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Bernoulli(logits=self.guide_logit))

    def log_w(self, x):
        """Log weight of both values, and their probability under the guide."""
        z = torch.tensor([0.0, 1.0]).double()
        q = dist.Bernoulli(logits=self.guide_logit)
        joint = dist.Bernoulli(torch.tensor(0.3).double()).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(x)
        return joint - q.log_prob(z), q.log_prob(z)


@pytest.mark.parametrize("objective", [o for o in every_objective(21) if o != ELBO(21, "score")], ids=str)
def test_relaxed_sites_work_under_every_objective(objective):
    torch.manual_seed(0)
    program = Relaxed()
    losses = objective(Step(program, {"x": torch.from_numpy(X[:6])}))
    loss = losses["phi"] if isinstance(losses, dict) else losses
    (found,) = torch.autograd.grad(loss, [program.guide_logits.weight])
    assert torch.isfinite(found).all() and found.any()


def test_score_gradients_of_a_discrete_latent_are_exact_in_expectation():
    """The expectation over K draws of two values is a sum over the number of ones among them."""
    program, particles = Coin(), 4
    x = torch.tensor(1.2).double()
    log_w, log_q = program.log_w(x)
    ones = torch.arange(particles + 1).double()
    counts = dist.Binomial(particles, logits=program.guide_logit).log_prob(ones).exp()
    terms = torch.stack([(particles - ones).log() + log_w[0], ones.log() + log_w[1]])

    def expected(bound):
        return torch.autograd.grad(-(counts * bound).sum(), program.guide_logit, retain_graph=True)[0].item()

    halves = torch.stack([(particles - ones).log() + 0.5 * log_w[0], ones.log() + 0.5 * log_w[1]])
    largest = torch.where(ones == 0, log_w[0], torch.where(ones == particles, log_w[1], log_w.max()))
    exact = {
        IWAE(particles, "score"): expected(torch.logsumexp(terms, 0)),
        Renyi(0.5, particles, "score"): expected(2 * torch.logsumexp(halves, 0)),
        VRMax(particles, "score"): expected(largest),
    }
    for objective, gradient in exact.items():
        assert_mean(gradient_samples(objective, program, {"x": x[None]}, 16, "phi", 4000), gradient)
    many = {ForwardKL(2000): (log_w + log_q).softmax(0), CUBO(2, 2000, "score"): (2 * log_w + log_q).softmax(0)}
    for objective, weight in many.items():
        factor = 1 if isinstance(objective, ForwardKL) else 0.5
        loss = -(factor * weight.detach() * log_q).sum()
        (gradient,) = torch.autograd.grad(loss, program.guide_logit, retain_graph=True)
        found = gradient_samples(objective, program, {"x": x[None]}, 16, "phi", 20)
        assert_mean(found, gradient.item(), floor=2e-3)


def test_pathwise_objectives_refuse_discrete_guides():
    batch = {"x": torch.zeros(3).double()}
    for objective in every_objective(21):
        if getattr(objective, "gradient", "") != "score":
            with pytest.raises(ValueError, match="guide site 'z' .* cannot be reparameterised"):
                objective(Step(Coin(), batch))


class GlobalMean(Program):
    def __init__(self):
        super().__init__()
        self.guide_loc = nn.Parameter(torch.zeros(()))

    def model(self, batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with self.cells(batch):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=batch["x"])

    def guide(self, batch):
        pyro.sample("mu", dist.Normal(self.guide_loc, 0.5))


class Coupled(PPCA):
    independent = False


@pytest.mark.parametrize("objective", [o for o in every_objective(21) if not isinstance(o, ELBO)], ids=str)
def test_every_bound_but_the_elbo_refuses_what_does_not_split_into_cells(objective):
    name = type(objective).__name__
    with pytest.raises(ValueError, match=f"{name} needs every latent site inside the plate 'cells'; outside it: mu"):
        objective(Step(GlobalMean(), {"x": torch.zeros(4)}))
    with pytest.raises(ValueError, match=f"{name} needs cells that are independent"):
        objective(Step(Coupled(3, 2), {"x": torch.zeros(4, 3)}))


def test_sleep_refuses_a_latent_outside_the_plate():
    with pytest.raises(ValueError, match="SleepPhi needs every latent site inside the plate 'cells', not 'mu'"):
        SleepPhi()(Step(GlobalMean(), {"x": torch.zeros(4)}))


# --- capture


@pytest.mark.parametrize(
    "objective", [IWAE(3), Renyi(0.5, 3), WakeWake(3, "dreg", 0.5), Chi(3), CUBO(2, 3), SleepPhi(), TAMED], ids=str
)
def test_a_captured_step_has_the_gradients_of_an_eager_one(objective):
    """Hooks do not survive an export: a captured step has a loss for each group instead."""
    program, batch = gauss1d(PROPOSALS["wide"]), observed(2000) | {"index": torch.arange(2000)}
    with pyro.validation_enabled(False):
        captured = export_step(program, objective, batch, 2000)
    losses, logs = captured(batch, {name: torch.ones(()) for name in SCALARS})
    assert set(logs) == ({"cubo", "fallback"} if objective == TAMED else set(logs))
    found = {}
    for which, run in (("eager", objective), ("captured", lambda step: captured(step.batch, ones())[0])):
        for group in ("theta", "phi"):
            if isinstance(losses, dict) and group not in losses:
                continue
            samples = [gradient_samples(run, program, batch, 20, group)]
            found[which, group] = samples[0]
    for group in {g for _, g in found}:
        assert_mean(found["eager", group], found["captured", group].mean(0), errors=7)
        spread = found["eager", group].std(0)
        np.testing.assert_allclose(spread, found["captured", group].std(0), rtol=1.0, atol=1e-9)


def ones():
    return {name: torch.ones(()) for name in SCALARS}


def test_dropout_in_the_guide_is_not_captured_under_path_gradients():
    torch.manual_seed(0)
    program = SCVI(n_genes=6, n_latent=2, n_hidden=4, dropout=0.1)
    batch = {"counts": torch.poisson(torch.full((8, 6), 3.0)), "index": torch.arange(8)}
    with pyro.validation_enabled(False):
        with pytest.raises(NotImplementedError, match="cannot repeat the dropout"):
            export_step(program, IWAE(3), batch, 8)
        export_step(SCVI(n_genes=6, n_latent=2, n_hidden=4, dropout=0.0), IWAE(3), batch, 8)


# --- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Renyi(0.5, 5, "stl"), "Renyi: gradient must be one of dreg, reparam, score, not 'stl'"),
        (lambda: VRMax(5, "dreg"), "VRMax: gradient must be one of reparam, score"),
        (lambda: CUBO(1.0), "CUBO: order must be greater than 1"),
        (lambda: CUBO(2, 1), "CUBO: gradient='path' needs at least 2 particles"),
        (lambda: ForwardKL(1), "ForwardKL: gradient='score' needs at least 2 particles"),
        (lambda: WakeWake(5, sleep=1.5), "sleep must be a share in \\[0, 1\\]"),
        (lambda: Chi(5, smooth="psis"), "smooth='psis' needs at least 21 particles"),
        (lambda: Chi(5, smooth="clip"), "smooth must be one of none, truncate, psis"),
        (lambda: Chi(5, fallback=-1), "fallback must not be negative"),
        (lambda: Chi(5, "vr_mc_alpha=-1", fallback=3), "the released form as it is"),
        (lambda: SleepPhi(0), "particles must be a positive integer"),
    ],
)
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
