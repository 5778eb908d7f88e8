"""What users test their estimators with: the strategies keep their promises, and the checks find what is wrong."""

import sys

import numpy as np
import pytest
import torch
from closed_forms import EXACT, SAMPLED, gauss1d, observed
from hypothesis import given

from fieldguide.inference import ELBO, IWAE, weigh
from fieldguide.inference.testing import Conjugate, assert_mean, conjugate_programs, gradient_of, gradient_samples


@EXACT
@given(conjugate_programs(exact=True, latents=(2, 3), cells=(3, 4)))
def test_exact_programs_have_their_posterior_for_a_guide(case):
    program, batch = case
    mean, covariance = program.posterior(batch)
    torch.testing.assert_close(program.guide_mean(batch), mean)
    torch.testing.assert_close(torch.diag((2 * program.guide_log_scale).exp()), covariance)
    assert 2 <= mean.shape[1] <= 3 and 3 <= len(mean) <= 4
    assert program.tail(batch) < 1e-9


@EXACT
@given(conjugate_programs(order=3.0))
def test_the_chi_bound_of_the_order_asked_for_is_finite(case):
    program, batch = case
    assert torch.isfinite(program.cubo(batch, 3.0)).all() and program.tail(batch) < 1 / 3


@SAMPLED
@given(conjugate_programs(cells=(1, 1), latents=(1, 1)))
def test_closed_forms_are_integrals(case):
    """In one dimension, against a sum over a grid."""
    program, batch = case
    with torch.no_grad():
        deviation = program.posterior(batch)[1].item() ** 0.5
        z = torch.linspace(-15, 15, 3001, dtype=torch.float64)[:, None, None] * deviation + program.posterior(batch)[0]
        step = (z[1] - z[0]).item()
        weights = weigh_at(program, batch, z)
        q = weights.log_q[:, 0].exp() * step
        log_w = weights.log_w[:, 0]
        assert (q * log_w).sum().item() == pytest.approx(program.elbo(batch).item(), rel=1e-6)
        assert (q * log_w.exp()).sum().log().item() == pytest.approx(program.log_evidence(batch).item(), rel=1e-6)
        for alpha in (-1.0, 0.5):
            found = torch.logsumexp(q.log() + (1 - alpha) * log_w, 0).item() / (1 - alpha)
            assert found == pytest.approx(program.renyi(batch, alpha).item(), rel=1e-6)
        share = torch.softmax(q.log() + log_w, 0)
        assert (share * log_w).sum().item() == pytest.approx(program.eubo(batch).item(), rel=1e-6)


def weigh_at(program, batch, z):
    from fieldguide.inference.weights.tracing import Substitute

    with Substitute({"z": z}):
        return weigh(program, batch, len(z))


def test_a_wrong_estimator_is_found_and_the_message_has_the_figures():
    program, batch = gauss1d({"m": 0.6, "v": 0.5}), observed(200)
    exact = -gradient_of(program.elbo(batch).mean(), program)
    assert_mean(gradient_samples(ELBO(2), program, batch), exact)
    for wrong in (lambda step: -ELBO(2)(step), IWAE(5), lambda step: 1.1 * ELBO(2)(step)):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_mean(gradient_samples(wrong, program, batch, repeats=20), exact)


def test_the_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    gradient_samples(ELBO(2), Conjugate(torch.ones(2, 1)), {"x": torch.zeros(3, 2).double()}, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_repeats_average_draws():
    program, batch = Conjugate(torch.ones(2, 1)), {"x": torch.ones(1, 2).double()}
    few, many = (gradient_samples(ELBO(1), program, batch, 60, repeats=n).std(0) for n in (1, 100))
    np.testing.assert_allclose(few / many, 10, rtol=0.5)


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match="pip install hypothesis"):
        conjugate_programs()
