"""What the objectives are: values against closed forms and quadrature, their order, and their finite-sample biases."""

import numpy as np
import pytest
import torch
from closed_forms import EXACT, GAUSS, GUIDES, PROPOSALS, SAMPLED, every_objective, gauss1d, observed
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.inference import CUBO, ELBO, IWAE, ForwardKL, Renyi, VRMax, fit, weigh
from fieldguide.inference.testing import Conjugate, assert_mean, conjugate_programs
from fieldguide.inference.weights.pareto import pareto_k

WITH_PRIOR = list(PROPOSALS)


def value(number):
    return float(number)  # the reference writes infinities as strings


def draws(name, particles, cells=20000, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        return weigh(gauss1d(PROPOSALS[name]), observed(cells), particles)


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_the_closed_forms_are_those_of_the_reference(name):
    reference, program, batch = PROPOSALS[name], gauss1d(PROPOSALS[name]), observed()
    with torch.no_grad():
        found = {"elbo": program.elbo(batch).item(), "eubo": program.eubo(batch).item()}
        cubo = {order: program.cubo(batch, float(order)).item() for order in reference["cubo"]}
        renyi = {alpha: program.renyi(batch, float(alpha)).item() for alpha in reference["renyi_bound"]}
        assert program.log_evidence(batch).item() == pytest.approx(GAUSS["log_evidence"], rel=1e-9)
        assert program.tail(batch) == pytest.approx(reference["tail_index_k"], abs=1e-7)
    assert found == pytest.approx({key: reference[key] for key in found}, rel=1e-8)
    assert cubo == pytest.approx({k: value(v) for k, v in reference["cubo"].items()}, rel=1e-8)
    assert renyi == pytest.approx({k: value(v) for k, v in reference["renyi_bound"].items()}, rel=1e-8)


@EXACT
@given(conjugate_programs(order=3.0))
def test_bounds_are_ordered_around_the_evidence(case):
    program, batch = case
    with torch.no_grad():
        ladder = [program.renyi(batch, alpha) for alpha in (2.0, 1.0, 0.75, 0.5, 0.25)]
        ladder += [
            program.log_evidence(batch),
            program.cubo(batch, 1.5),
            program.cubo(batch, 2),
            program.cubo(batch, 3),
        ]
        assert torch.isfinite(torch.stack(ladder[1:])).all()
        for lower, upper in zip(ladder[:-1], ladder[1:], strict=True):
            assert (lower <= upper + 1e-9).all()
        assert (program.eubo(batch) >= program.log_evidence(batch) - 1e-9).all()


@pytest.mark.parametrize("name", WITH_PRIOR)
@pytest.mark.parametrize("particles", [1, 2, 5, 10, 25, 100])
def test_the_importance_weighted_bound_has_its_exact_value(name, particles):
    found = IWAE(particles).per_cell(draws(name, particles, 4000)).numpy()
    assert_mean(found, PROPOSALS[name]["iwelbo"][str(particles)], floor=1e-7)


@pytest.mark.parametrize("name", WITH_PRIOR)
@pytest.mark.parametrize("particles", [1, 2, 5, 30])
def test_the_chi_bound_is_biased_down_by_the_exact_amount(name, particles):
    found = CUBO(2).per_cell(draws(name, particles)).numpy()
    reference = PROPOSALS[name]["expected_mc_cubo2"]
    assert_mean(found, reference[str(particles)], floor=1e-7)
    rising = [reference[k] for k in ("1", "2", "5", "30")] + [value(PROPOSALS[name]["cubo"]["2"])]
    assert all(a <= b + 1e-7 for a, b in zip(rising[:-1], rising[1:], strict=True))


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_with_one_particle_every_bound_is_the_elbo(name):
    weights = draws(name, 1)
    objectives = [ELBO(1), IWAE(1, "reparam"), Renyi(0.5, 1), Renyi(-3.0, 1), VRMax(1), CUBO(2, 2), ForwardKL(2)]
    for objective in objectives:
        torch.testing.assert_close(objective.per_cell(weights), weights.log_w[0])
    assert_mean(weights.log_w[0].numpy(), PROPOSALS[name]["elbo"], floor=1e-9)


@pytest.mark.parametrize("name", ["near", "wide"])
def test_many_particles_reach_the_closed_forms(name):
    reference, weights = PROPOSALS[name], draws(name, 20000, 40)
    expected = {Renyi(0.5): reference["renyi_bound"]["0.5"], CUBO(2): reference["cubo"]["2"]}
    expected |= {CUBO(3): reference["cubo"]["3"], ForwardKL(): reference["eubo"], Renyi(0): GAUSS["log_evidence"]}
    for objective, exact in expected.items():
        found = objective.per_cell(weights).numpy()
        assert_mean(found, exact, floor=2e-4)  # what is left of the bias, of order 1/K


@EXACT
@given(conjugate_programs(order=2.0), st.integers(0, 1000))
def test_sampled_bounds_are_ordered_draw_by_draw(case, seed):
    """For the same weights: ELBO <= Renyi <= IWAE <= CUBO <= VR-max, and VR-max <= IWAE + log K."""
    program, batch = case
    torch.manual_seed(seed)
    with torch.no_grad():
        weights = weigh(program, batch, 8)
    objectives = [Renyi(2.0), ELBO(8), Renyi(0.5), IWAE(), CUBO(1.5), CUBO(2), CUBO(3), VRMax()]
    ladder = [objective.per_cell(weights) for objective in objectives]
    for lower, upper in zip(ladder[:-1], ladder[1:], strict=True):
        assert (lower <= upper + 1e-9).all()
    assert (ladder[-1] <= IWAE().per_cell(weights) + np.log(8) + 1e-9).all()
    assert (Renyi(-1.0).per_cell(weights) - CUBO(2).per_cell(weights)).abs().max() < 1e-9


@SAMPLED
@given(conjugate_programs(cells=(1, 2)))
def test_the_importance_weighted_bound_rises_with_particles_to_the_evidence(case):
    program, batch = case
    batch = {"x": batch["x"][:1].expand(3000, -1)}
    torch.manual_seed(0)
    with torch.no_grad():
        log_w = weigh(program, batch, 16).log_w
        evidence = program.log_evidence(batch)[0].item()
    means = [(torch.logsumexp(log_w.view(k, -1), 0) - np.log(k)).mean().item() for k in (1, 2, 4, 8, 16)]
    error = (log_w.logsumexp(0) - np.log(16)).std().item() / 3000**0.5
    assert all(a <= b + 1e-9 for a, b in zip(means[:-1], means[1:], strict=True))
    assert means[-1] <= evidence + 5 * error


@EXACT
@given(conjugate_programs(exact=True))
def test_every_bound_is_the_evidence_where_the_guide_is_the_posterior(case):
    program, batch = case
    with torch.no_grad():
        weights, exact = weigh(program, batch, 25), program.log_evidence(batch)
    for objective in every_objective(25):
        torch.testing.assert_close(objective.per_cell(weights), exact, rtol=1e-9, atol=1e-9)


@EXACT
@given(conjugate_programs(), st.floats(-1e3, 1e3))
def test_a_constant_added_to_the_log_weights_is_added_to_every_bound(case, shift):
    program, batch = case
    torch.manual_seed(0)
    with torch.no_grad():
        weights = weigh(program, batch, 25)
        before = [objective.per_cell(weights) for objective in every_objective(25)]
        weights.log_p = weights.log_p + shift
        after = [objective.per_cell(weights) for objective in every_objective(25)]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a + shift, b, rtol=1e-9, atol=1e-8)


def test_k_hat_flags_the_guide_whose_chi_bound_is_infinite():
    """True tail indices 0.55 and 0.4; the sample one approaches slowly."""
    khat = {n: pareto_k(draws(n, 100_000, 1).log_w.numpy())[0] for n in ("narrow_infinite_chi2", "narrow_finite_chi2")}
    for name, found in khat.items():
        assert abs(found - PROPOSALS[name]["tail_index_k"]) <= 0.2
    assert khat["narrow_infinite_chi2"] > khat["narrow_finite_chi2"]
    infinite = gauss1d(PROPOSALS["narrow_infinite_chi2"])
    finite = gauss1d(PROPOSALS["narrow_finite_chi2"])
    assert infinite.cubo(observed(), 2).item() == np.inf
    assert finite.cubo(observed(), 2).item() < np.inf and finite.cubo(observed(), 3).item() == np.inf


def test_fit_bound_says_where_a_chi_bound_is_none():
    batch = observed(60)
    wide, narrow = gauss1d(PROPOSALS["wide"]), gauss1d(PROPOSALS["narrow_infinite_chi2"] | {"v": 0.05})
    settings = {"max_epochs": 1, "learning_rate": 1e-9, "validation": 0, "progress": False}
    x = {"x": batch["x"].numpy()}
    torch.set_default_dtype(torch.float64)
    try:
        fits = [fit(program, x, **settings) for program in (wide, narrow)]
        assert_mean(fits[0].bound(objective=CUBO(2, 5000)), PROPOSALS["wide"]["cubo"]["2"], floor=1e-3)
        with pytest.warns(UserWarning, match="order 2 is not an upper bound for 60 of 60 cells: k-hat is at least 1/2"):
            fits[1].bound(objective=CUBO(2, 5000))
        for objective in every_objective(25):
            if not isinstance(objective, CUBO):
                assert fits[0].bound(objective=objective).shape == (60,)
        with pytest.raises(TypeError, match="has no bound for a cell"):
            fits[0].bound(objective=lambda step: ELBO()(step))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("proposal", GUIDES["ppca"]["proposals"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_closed_forms_of_ppca_are_those_of_the_reference(proposal, number):
    """Independent noise of unequal variances: rescaled to equal ones, which keeps everything but a constant."""
    rows, columns = np.arange(1, 11), np.arange(1, 7)
    variance = 0.5 + 0.25 * np.arange(10)
    loadings = np.cos(0.7 * np.outer(rows, columns)) / 6**0.5 / variance[:, None] ** 0.5
    x = [1.5 * np.cos(rows), 0.5 * (-1.0) ** np.arange(10), np.zeros(10)][number] / variance**0.5
    program, batch = Conjugate(torch.from_numpy(loadings)), {"x": torch.from_numpy(x)[None]}
    case, expected = GUIDES["ppca"]["observations"][number], GUIDES["ppca"]["proposals"][proposal]
    with torch.no_grad():
        mean, covariance = program.posterior(batch)
        program.guide_intercept.copy_(mean[0])
        program.guide_log_scale.copy_(0.5 * torch.tensor(expected["v"]).double().log())
        evidence = program.log_evidence(batch)
        assert evidence.item() - 0.5 * np.log(variance).sum() == pytest.approx(case["log_evidence"], rel=1e-9)
        assert mean[0].tolist() == pytest.approx(case["posterior_mean"], rel=1e-8, abs=1e-10)
        assert covariance.diagonal().tolist() == pytest.approx(GUIDES["ppca"]["posterior_var_diag"], rel=1e-9)
        found = {
            "kl_q_p": (evidence - program.elbo(batch)).item(),
            "kl_p_q": (program.eubo(batch) - evidence).item(),
            "cubo2_minus_log_evidence": (program.cubo(batch) - evidence).item(),
            "tail_index_k": program.tail(batch),
        }
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-6, abs=1e-8)
