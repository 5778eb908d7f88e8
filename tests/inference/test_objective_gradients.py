"""The gradients of the objectives: unbiased or consistent, without noise where they should be, and related as they are.

Identities are numbered as in the derivation: (I1) one particle, (I2) DReG, (I3) STL = DReG + wake, (I4) wake, (I5) chi.
"""

import numpy as np
import pytest
import torch
from closed_forms import EXACT, PROPOSALS, SAMPLED, every_objective, fixed_noise, gauss1d, observed, quantiles
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.inference import CUBO, ELBO, IWAE, Chi, ForwardKL, Renyi, Step, VRMax, WakeWake, weigh
from fieldguide.inference.testing import assert_mean, conjugate_programs, gradient_of, gradient_samples

BOTH = ["near", "wide", "narrow_finite_chi2"]
PATHWISE = [ELBO(5, "stl"), IWAE(5), Renyi(0.5, 5), Renyi(-1.0, 5), ForwardKL(5, "dreg"), WakeWake(5, "dreg")]
PATHWISE += [CUBO(2, 5), CUBO(1.5, 5), Chi(5), Chi(5, fallback=3), Chi(5, smooth="truncate"), Chi(25, smooth="psis")]


def samples(objective, name, replicates=16, repeats=2000, group="phi"):
    """Gradients with respect to (mean, log scale) of the guide."""
    found = gradient_samples(objective, gauss1d(PROPOSALS[name]), observed(), replicates, group, repeats)
    return found[:, 1:] if group == "phi" else found


def naive_path(particles):
    """The importance-weighted bound with the guide's parameters fixed inside log q and nothing else changed."""

    def objective(step):
        weights = step.weights(particles, "path")
        return -(torch.softmax(weights.log_w.detach(), 0) * weights.log_w).sum(0).mean()

    return objective


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("particles", [2, 5, 25])
def test_i2_dreg_is_unbiased_and_i3_naive_path_gradients_are_not(name, particles):
    reference = PROPOSALS[name]
    exact = np.array(reference["grad_iwelbo"][str(particles)])
    wake = np.array(reference["expected_wake_phi_ascent_grad"][str(particles)])
    stl = np.array(reference["expected_stl_grad_iwelbo"][str(particles)])
    assert_mean(-samples(IWAE(particles), name), exact)
    assert_mean(-samples(naive_path(particles), name), stl)
    assert stl == pytest.approx(exact + wake, abs=1e-7)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("particles", [2, 5, 25])
@pytest.mark.parametrize("kind", ["score", "dreg"])
def test_i4_both_wake_gradients_have_the_expected_value(name, particles, kind):
    exact = np.array(PROPOSALS[name]["expected_wake_phi_ascent_grad"][str(particles)])
    assert_mean(-samples(ForwardKL(particles, kind), name), exact)
    assert_mean(-samples(WakeWake(particles, kind), name), exact)


@EXACT
@given(conjugate_programs(), st.integers(2, 6))
def test_i3_holds_for_each_draw(case, particles):
    program, batch = case
    stl, dreg, wake = (
        gradient_samples(objective, program, batch, 2)
        for objective in (naive_path(particles), IWAE(particles), ForwardKL(particles, "dreg"))
    )
    np.testing.assert_allclose(stl, dreg + wake, rtol=1e-9, atol=1e-10)


@EXACT
@given(conjugate_programs())
def test_i1_with_one_particle_iwae_is_the_elbo(case):
    program, batch = case
    for kind, same in (("reparam", "reparam"), ("dreg", "stl")):
        found, expected = (
            gradient_samples(objective, program, batch, 2) for objective in (IWAE(1, kind), ELBO(1, same))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@EXACT
@given(conjugate_programs(), st.sampled_from(["dreg", "score", "reparam"]))
def test_renyi_contains_elbo_and_iwae(case, kind):
    program, batch = case
    same = [(0.0, IWAE(4, kind))]
    if kind != "score":  # there, the ELBO leaves out a term of mean zero
        same += [(1.0, ELBO(4, {"dreg": "stl"}.get(kind, kind)))]
    for alpha, other in same:
        found, expected = (gradient_samples(o, program, batch, 2) for o in (Renyi(alpha, 4, kind), other))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_renyi_gradients_agree_in_expectation(alpha):
    plain = samples(Renyi(alpha, 4, "reparam"), "wide")
    for kind in ("dreg", "score"):
        assert_mean(samples(Renyi(alpha, 4, kind), "wide") - plain, 0.0)


def test_vr_max_gradients_agree_in_expectation():
    assert_mean(samples(VRMax(4, "score"), "wide") - samples(VRMax(4), "wide"), 0.0)


@pytest.mark.parametrize("name", BOTH)
def test_i5_many_particles_reach_the_exact_gradients(name):
    """A quadrature: with the quantiles of the guide as draws, a sum over particles is an integral over z."""
    reference, program, particles = PROPOSALS[name], gauss1d(PROPOSALS[name]), 200_000
    expected = {
        ELBO(particles, "stl"): -np.array(reference["grad_elbo"]),
        Renyi(0.5, particles): -np.array(reference["grad_renyi_0.5"]),
        ForwardKL(particles, "score"): np.array(reference["grad_kl_p_q"]),
        ForwardKL(particles, "dreg"): np.array(reference["grad_kl_p_q"]),
    }
    if name != "narrow_finite_chi2":  # its squared weights live beyond the last quantile
        chi = np.array(reference["grad_cubo2"])
        expected |= {CUBO(2, particles, "score"): chi, CUBO(2, particles, "path"): chi, Chi(particles, "path"): chi}
    for objective, exact in expected.items():
        with fixed_noise(quantiles(particles)):
            found = gradient_samples(objective, program, observed(), 1)[0, 1:]
        assert found == pytest.approx(exact, rel=1e-2, abs=1e-3), objective


@SAMPLED
@given(conjugate_programs(cells=(1, 1)))
def test_elbo_gradients_of_random_programs_are_unbiased(case):
    program, batch = case
    exact = {group: -gradient_of(program.elbo(batch).mean(), program, group) for group in ("phi", "theta")}
    for objective in (ELBO(2), ELBO(2, "stl"), ELBO(2, "score")):
        for group, expected in exact.items():
            assert_mean(gradient_samples(objective, program, batch, 16, group, 500), expected)


@SAMPLED
@given(conjugate_programs(cells=(1, 1), latents=(1, 2), order=4.0))
def test_wake_and_chi_gradients_of_random_programs_reach_the_exact_ones(case):
    """Two numbers of particles: what is left at 4,000 is noise and a bias of order 1/4,000."""
    program, batch = case
    wake = gradient_of(program.eubo(batch).mean(), program)
    chi = gradient_of(program.cubo(batch, 2).mean(), program)
    for objective, exact in (
        (ForwardKL(4000, "dreg"), wake),
        (ForwardKL(4000), wake),
        (CUBO(2, 4000), chi),
        (CUBO(2, 4000, "score"), chi),
    ):
        found = gradient_samples(objective, program, batch, 16, "phi", 10)
        assert_mean(found, exact, floor=0.01 * np.abs(exact).max())


@EXACT
@given(conjugate_programs(exact=True), st.integers(0, 99))
def test_path_gradients_vanish_for_each_draw_where_the_guide_is_the_posterior(case, seed):
    program, batch = case
    torch.manual_seed(seed)
    for objective in PATHWISE:
        assert np.abs(gradient_samples(objective, program, batch, 1)).max() < 1e-9, objective


@SAMPLED
@given(conjugate_programs(exact=True, cells=(1, 2)))
def test_other_gradients_vanish_in_the_mean_only(case):
    program, batch = case
    for objective in (ELBO(5), IWAE(5, "reparam"), IWAE(5, "score"), ForwardKL(5), CUBO(2, 5, "score")):
        found = gradient_samples(objective, program, batch, 16, "phi", 50)
        assert np.abs(found).max() > 1e-6
        assert_mean(found, 0.0)


@SAMPLED
@given(conjugate_programs(exact=True, cells=(1, 2)))
def test_model_gradients_are_those_of_the_evidence_where_the_guide_is_the_posterior(case):
    program, batch = case
    exact = -gradient_of(program.log_evidence(batch).mean(), program, "theta")
    # not VR-max: it takes the largest of equal weights, and which one that is hangs on their rounding
    objectives = [ELBO(5, "stl"), ELBO(5, "score"), IWAE(5, "score"), Renyi(0.5, 5), Renyi(2.0, 5, "reparam")]
    for objective in [*objectives, WakeWake(5), WakeWake(5, "dreg"), Chi(5), Chi(5, "score", fallback=3)]:
        assert_mean(gradient_samples(objective, program, batch, 12, "theta", 50), exact)


@EXACT
@given(conjugate_programs(), st.integers(0, 99))
def test_model_gradients_of_iwae_wake_and_chi_are_those_of_the_log_mean_weight(case, seed):
    program, batch = case
    theta = program.groups()["theta"]
    torch.manual_seed(seed)
    log_w = weigh(program, batch, 4).log_w
    exact = torch.autograd.grad(-(torch.logsumexp(log_w, 0)).mean(), theta)
    objectives = [IWAE(4, g) for g in ("reparam", "dreg", "score")] + [WakeWake(4, g) for g in ("dreg", "score")]
    objectives += [Chi(4, g) for g in ("path", "score", "vr_mc_alpha=-1")] + [Chi(4, fallback=3), Renyi(0.0, 4)]
    for objective in objectives:
        torch.manual_seed(seed)
        losses = objective(Step(program, batch))
        found = torch.autograd.grad(losses["theta"] if isinstance(losses, dict) else losses, theta)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@EXACT
@given(conjugate_programs())
def test_the_released_chi_loss_raises_the_renyi_bound_of_order_minus_one(case):
    program, batch = case
    released, raised = Chi(4, "vr_mc_alpha=-1"), Renyi(-1.0, 4, "reparam")
    found, expected = (gradient_samples(objective, program, batch, 2) for objective in (released, raised))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("objective", every_objective(21), ids=str)
def test_minibatches_average_to_the_full_batch(objective):
    """Value and gradients of all 12 cells are the mean over three minibatches, with the same draws for each cell."""
    torch.manual_seed(0)
    program, batch = conjugate_program(), {"x": torch.randn(12, 3).double()}
    noise = torch.randn(21, 12, 2).double()
    parts = [slice(0, 3), slice(3, 8), slice(8, 12)]
    parameters = program.groups()
    totals = []
    for chunks in ([slice(0, 12)], parts):
        total = {"value": torch.zeros(()).double()} | {k: [0.0] * len(v) for k, v in parameters.items()}
        for part in chunks:
            with fixed_noise(noise[:, part]):
                losses = objective(Step(program, {"x": batch["x"][part]}, 12, {"progress": 0.1}))
            losses = losses if isinstance(losses, dict) else {"theta": losses, "phi": losses}
            share = len(batch["x"][part]) / 12
            total["value"] = total["value"] + share * next(iter(losses.values())).detach()
            for group, loss in losses.items():
                found = torch.autograd.grad(loss, parameters[group], retain_graph=True, allow_unused=True)
                total[group] = [a if b is None else a + share * b for a, b in zip(total[group], found, strict=True)]
        totals.append(total)
    for key in totals[0]:
        torch.testing.assert_close(totals[0][key], totals[1][key], rtol=1e-9, atol=1e-10)


def conjugate_program():
    """One fixed program with two latents, its guide off the posterior."""
    from fieldguide.inference.testing import Conjugate

    program = Conjugate(torch.tensor([[1.0, 0.3], [0.2, -0.8], [0.5, 0.5]]), 0.7)
    program.set_guide({"x": torch.zeros(1, 3).double()}, 1.3, 0.4)
    return program
