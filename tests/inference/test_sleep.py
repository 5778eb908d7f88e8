"""The sleep phase: gradients under the model's own data, and programs that cannot make any."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_forms import seeded

from fieldguide.catalog.ppca import PPCA
from fieldguide.catalog.scvi import SCVI
from fieldguide.inference import Program, SleepPhi, Step, WakeWake
from fieldguide.inference.testing import Conjugate, assert_mean, gradient_of, gradient_samples
from fieldguide.inference.weights.simulate import simulate

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)


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
