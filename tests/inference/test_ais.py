"""Refined posteriors against conjugate models: evidence, moments, diagnostics, and what cannot be refined."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import Posterior, Program
from fieldguide.inference.data.minibatches import read


def narrow_guide(cells=40, scale=0.3):
    """A linear Gaussian model whose guide is far too narrow, and shifted: k-hat is above 0.7."""
    torch.manual_seed(0)
    program = PPCA(6, 3)
    x = (torch.randn(cells, 3) @ program.loadings.T + torch.randn(cells, 6)).detach()
    with torch.no_grad():
        zero = torch.zeros(1, 6)
        offset = program.exact_posterior(zero)[0]
        program.guide_loc.weight.copy_((program.exact_posterior(torch.eye(6))[0] - offset).T)
        program.guide_loc.bias.copy_(offset[0] + 0.3)
        program.guide_log_scale.fill_(np.log(scale))
    return program.eval(), x


def exact(program, x):
    with torch.no_grad():
        mean, covariance = program.exact_posterior(x)
        return mean.numpy(), covariance.numpy(), program.exact_log_evidence(x).numpy()


def test_refined_cells_have_the_evidence_and_the_moments_of_the_posterior():
    program, x = narrow_guide()
    mean, covariance, evidence = exact(program, x)
    before = Posterior(program, read({"x": x.numpy()}, None), 300, seed=1)
    after = before.refine(limit=0.5, temperatures=40, step_size=0.2, progress=False)
    rows = after.proposal.rows
    assert len(rows) > 20 and (before.khat[rows] > 0.5).all()
    assert after.khat[rows].max() < 0.5 and np.median(after.khat) < np.median(before.khat) - 0.3
    others = np.setdiff1d(np.arange(40), rows)
    np.testing.assert_allclose(after.log_weights[:, others], before.log_weights[:, others])

    ratio = np.exp(after.log_evidence - evidence)[rows]
    error = ratio.std(ddof=1) / np.sqrt(len(rows))
    assert abs(ratio.mean() - 1) < 5 * error + 1e-3 and error < 0.05
    assert np.abs(after.log_evidence - evidence)[rows].max() < np.abs(before.log_evidence - evidence)[rows].max()
    found = after.expect(lambda v: v["z"])[rows] - mean[rows]
    spread = np.sqrt(covariance.diagonal() / after.ess[rows].min())
    assert (np.abs(found) < 5 * spread).all()
    assert (np.abs(found.mean(0)) < 5 * spread / np.sqrt(len(rows))).all()
    second = after.expect(lambda v: v["z"] ** 2)[rows]
    assert np.abs((second - mean[rows] ** 2).mean(0) / covariance.diagonal() - 1).max() < 0.15


def test_everything_is_asked_of_a_refined_posterior_as_of_any_other(monkeypatch):
    program, x = narrow_guide(12)
    before = Posterior(program, read({"x": x.numpy()}, None), 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = before.refine(limit=0.7, temperatures=5, step_size=0.2, progress=False)
        again = before.refine(limit=0.7, temperatures=5, step_size=0.2, progress=False)
    np.testing.assert_array_equal(after.log_weights, again.log_weights)
    row = int(after.proposal.rows[0])
    stored = after.proposal.values["z"][:, 0].numpy()
    np.testing.assert_allclose(after.draw("z", resample=False)[:, row], stored)
    np.testing.assert_allclose(after.draw("z", 50, resample=False, cells=np.array([row, row]))[:, 1], stored)
    np.testing.assert_allclose(after.log_weights[:, row], after.proposal.log_weights[:, 0], rtol=1e-10)
    monkeypatch.setattr("fieldguide.inference.posterior.ELEMENTS", 50 * 6 * 5)
    small = Posterior(program, before.dataset, 50, proposal=after.proposal)
    np.testing.assert_allclose(small.draw("z", resample=False)[:, row], stored)
    assert after.to_arviz().posterior["z"].shape == (1, 50, 12, 3)
    assert ((after.proposal.acceptance >= 0) & (after.proposal.acceptance <= 1)).all()
    assert all(p.requires_grad for p in program.parameters())
    untouched = before.refine(limit=np.inf, progress=False)
    assert untouched is before


class Positive(Program):
    """A rate with a gamma prior and Poisson counts: a constrained latent, conjugate; and a plate inside."""

    latent = "rate"
    depth = 2

    def __init__(self):
        super().__init__()
        self.guide_log_rate = nn.Parameter(torch.zeros(()))

    def model(self, batch):
        with self.cells(batch):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            with pyro.plate("repeats", 3, dim=-2):
                pyro.sample("x", dist.Poisson(rate), obs=batch["x"].T)

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("rate", dist.Gamma(200.0, 200.0 * (-self.guide_log_rate).exp()).expand(batch["x"].shape[:1]))


def test_constrained_latents_and_inner_plates():
    x = np.random.default_rng(0).poisson(3.0, (30, 3)).astype(np.float32)
    before = Posterior(Positive(), read({"x": x}, None), 300)
    with pytest.warns(UserWarning, match="in 30 of 30 refined cells"):
        after = before.refine(limit=-1, temperatures=50, step_size=0.1, progress=False)  # all of them
    assert len(after.proposal.rows) == 30 and np.median(before.khat) > 0.7
    mean = (2 + x.sum(1)) / (1 + 3)
    found = after.expect(lambda v: v["rate"][:, 0])
    error = np.sqrt(mean / 4 / after.ess)
    assert (np.abs(found - mean) < 5 * error).all() and after.khat.max() < 0.7
    from scipy.special import gammaln

    evidence = gammaln(2 + x.sum(1)) - (2 + x.sum(1)) * np.log(4) - gammaln(x + 1).sum(1)
    assert np.abs(np.exp(after.log_evidence - evidence) - 1).mean() < 0.1


class Discrete(Program):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.guide_logit = nn.Parameter(torch.zeros(()))

    def model(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(c[..., None] * self.weight, 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("c", dist.Bernoulli(logits=self.guide_logit))


def test_what_cannot_be_refined_says_so():
    program, x = narrow_guide(4)
    data = read({"x": x.numpy()}, None)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="site 'c' is discrete"):
        Posterior(Discrete(), data, 50).refine(limit=-1, progress=False)
    for wrong in (0, [0.0, 0.5], [0.0, 0.6, 0.6, 1.0], [0.5, 1.0]):
        with pytest.raises(ValueError, match="temperatures must"):
            Posterior(program, data, 50).refine(temperatures=wrong, progress=False)
    with pytest.warns(UserWarning, match="k-hat is still above -1 in 4 of 4 .* use more temperatures"):
        Posterior(program, data, 50).refine(-1, temperatures=1, progress=False)
