"""Options and edges of the objectives: annealing, smoothing, fall-back, discrete guides, capture, errors."""

import dataclasses

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_forms import PROPOSALS, every_objective, gauss1d, observed, seeded
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
from fieldguide.inference.objectives import SHORT_NAMES
from fieldguide.inference.objectives.smoothing import smooth
from fieldguide.inference.testing import assert_mean, gradient_samples
from fieldguide.inference.training.capture import SCALARS, export_step

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
QUICK = {"max_epochs": 3, "batch_size": 16, "learning_rate": 0.01, "n_latent": 2, "progress": False}


TAMED = Chi(25, anneal=True, smooth="psis", fallback=3)


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
    if not hasattr(arviz, "psislw"):
        pytest.skip("arviz 1.x has no psislw")
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

    assert checkpoint.read_objective(checkpoint.describe_objective(objective)) == objective
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
        (lambda: CUBO(1.0), "CUBO: order must be a number above 1"),
        (lambda: CUBO(2, 1), "CUBO: gradient='path' needs at least 2 particles"),
        (lambda: ForwardKL(1), "ForwardKL: gradient='score' needs at least 2 particles"),
        (lambda: WakeWake(5, sleep=1.5), "sleep must be a number in \\[0, 1\\]"),
        (lambda: Chi(5, smooth="psis"), "smooth='psis' needs at least 21 particles"),
        (lambda: Chi(5, smooth="clip"), "smooth must be one of none, truncate, psis"),
        (lambda: Chi(5, fallback=-1), "fallback must be a number of at least 0"),
        (lambda: Chi(5, "vr_mc_alpha=-1", fallback=3), "the released form as it is"),
        (lambda: SleepPhi(0), "particles must be a whole number of at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
