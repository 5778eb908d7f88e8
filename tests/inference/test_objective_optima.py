"""Where training ends: the closed-form optima of a mean-field guide for a correlated posterior, from both sides.

A loss with the wrong sign or a forgotten detach still gives finite gradients; it ends elsewhere.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_forms import GUIDES
from torch import nn

from fieldguide.inference import CUBO, ELBO, Chi, ForwardKL, Program, Renyi, Step

CASES = {case["rho"]: case for case in GUIDES["bivariate"]["cases"]}


class Bivariate(Program):
    """Posterior N(0, [[1, rho], [rho, 1]]), guide N(0, diag(v)); one cell for each start of v."""

    def __init__(self, rho, starts):
        super().__init__()
        covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
        self.register_buffer("root", torch.linalg.cholesky(covariance))
        self.guide_log_scale = nn.Parameter(0.5 * torch.tensor(starts)[:, None].expand(-1, 2).log())

    def model(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale_tril=self.root))

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(0.0, self.guide_log_scale.exp()).to_event(1))


def variances(objective, rho=0.5, lr=0.01, steps=1500, average=400, starts=(0.3, 3.0)):
    """Mean of v over the last steps, for each start [2]."""
    torch.manual_seed(0)
    program, batch = Bivariate(rho, starts), {"x": torch.zeros(len(starts), 1)}
    optimizer = torch.optim.Adam(program.parameters(), lr=lr)
    found = []
    for number in range(steps):
        losses = objective(Step(program, batch))
        optimizer.zero_grad()
        (losses["phi"] if isinstance(losses, dict) else losses).backward()
        optimizer.step()
        if number >= steps - average:
            found.append((2 * program.guide_log_scale.detach()).exp().mean(1))
    return torch.stack(found).mean(0).tolist()


def test_a_guide_trained_by_cubo_ends_at_its_closed_form_from_both_sides():
    """The one that the published form of the loss fails; the slow tests do the others."""
    found = variances(CUBO(2, 1000), lr=0.03, steps=400, average=120)
    assert found == pytest.approx([CASES[0.5]["chi2"]["v"]] * 2, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "target"),
    [
        (ELBO(1000, "stl"), "reverse_kl"),
        (Renyi(1.0, 1000), "reverse_kl"),
        (ForwardKL(1000, "score"), "forward_kl"),
        (ForwardKL(1000, "dreg"), "forward_kl"),
        (CUBO(2, 1000, "path"), "chi2"),
        (CUBO(2, 1000, "score"), "chi2"),
        (Chi(1000, "path"), "chi2"),
        (Chi(1000, "score"), "chi2"),
    ],
    ids=str,
)
def test_a_trained_guide_ends_at_its_closed_form_from_both_sides(objective, target):
    assert variances(objective) == pytest.approx([CASES[0.5][target]["v"]] * 2, rel=0.03)


@pytest.mark.slow
def test_strong_correlation():
    assert variances(ELBO(1000, "stl"), 0.9) == pytest.approx([CASES[0.9]["reverse_kl"]["v"]] * 2, rel=0.03)
    assert variances(ForwardKL(1000, "dreg"), 0.9) == pytest.approx([CASES[0.9]["forward_kl"]["v"]] * 2, rel=0.03)


def test_the_released_chi_loss_runs_away_from_both_sides():
    narrow, wide = variances(Chi(100, "vr_mc_alpha=-1"), lr=0.03, steps=400, average=30)
    assert narrow < 0.3 and wide > 6
