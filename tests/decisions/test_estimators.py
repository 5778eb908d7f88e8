"""Off-policy estimators against enumeration: means, variances, identities, slates without replacement."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.decisions.policies.estimators import (
    DM,
    DR,
    DRSIS,
    ESTIMATORS,
    IPS,
    SIS,
    SNIPS,
    ClippedIPS,
    Feedback,
    ShrinkageDR,
    SwitchDR,
    Translated,
    value,
)
from fieldguide.decisions.policies.exact_moments import exact_moments
from fieldguide.decisions.policies.slates import coefficients, des_raj, independent, murthy

RHO, PI, DELTA, SET = [[0.6, 0.3, 0.1]], [[0.2, 0.3, 0.5]], [[0.1, 0.5, 0.9]], [[True, True, False]]
"""One context with three actions, whose moments were worked out by hand."""


@pytest.mark.parametrize(
    ("estimator", "mean", "variance"),
    [
        (IPS(), 0.62, 2.0222667),
        (SIS(norm="truncated"), 0.17, 0.1277667),
        (ClippedIPS(cap=2.0), 0.35, 0.3941667),
        (SIS(norm="coverage"), 0.34, 0.5110667),
        (SIS(norm="none"), 0.306, 0.4139640),
        (DR(), 0.62, 0.5090667),
    ],
    ids=["ips", "truncated", "clipped", "coverage", "none", "dr"],
)
def test_worked_example(estimator, mean, variance):
    found = exact_moments(estimator, [1.0], RHO, PI, DELTA, selected=SET, model=[[0.2, 0.4, 0.6]])
    assert found == pytest.approx((mean, variance), abs=1e-7)


def test_worked_example_of_slates():
    rho, y = torch.tensor([0.5, 0.3, 0.2]).double(), np.array([0.1, 0.2, 0.3])

    def moments(rule, design):
        mean = square = 0.0
        pairs = permutations(range(3), 2) if design == "plackett_luce" else [(i, j) for i in range(3) for j in range(3)]
        for i, j in pairs:
            chance = float(rho[i] * rho[j]) / (1 - float(rho[i]) if design == "plackett_luce" else 1)
            found = float((rule(rho[[i, j]].log()[None])[0] * torch.tensor(y[[i, j]])).sum())
            mean, square = mean + chance * found, square + chance * found**2
        return mean, square - mean**2

    assert moments(des_raj, "plackett_luce") == pytest.approx((0.6, 0.08035), abs=1e-7)
    assert moments(murthy, "plackett_luce") == pytest.approx((0.6, 0.0583333), abs=1e-7)
    assert moments(independent, "iid") == pytest.approx((0.6, 0.1216667), abs=1e-7)
    assert moments(independent, "plackett_luce")[0] == pytest.approx(0.6732143, abs=1e-7)  # the trap
    sets = {(0, 1): 0.3944444, (0, 2): 0.7, (1, 2): 1.0555556}
    for pair, wanted in sets.items():
        for order in (pair, pair[::-1]):
            at = list(order)
            assert float((murthy(rho[at].log()[None])[0] * torch.tensor(y[at])).sum()) == pytest.approx(
                wanted, abs=1e-7
            )


def world(seed, length=1):
    """A random world of at most 3 contexts and 5 actions, and its selected sets."""
    rng = np.random.default_rng(seed)
    m, k = rng.integers(1, 4), rng.integers(max(2, length), 6)
    p, rho, pi = rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(k), m), rng.dirichlet(np.ones(k) * 0.7, m)
    rho = 0.9 * rho + 0.1 / k
    size = rng.integers(1, k + 1)
    selected = np.argsort(np.argsort(-rho, 1), 1) < size
    return p, rho, pi, rng.random((m, k)), selected, rng.random((m, k))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("design", ["iid", "plackett_luce"])
def test_means_equal_their_targets(length, design):
    for seed in range({1: 20, 2: 8, 3: 2}[length]):
        p, rho, pi, delta, chosen, q = world(seed, length)
        kept = pi * chosen / (pi * chosen).sum(1, keepdims=True)
        targets = {
            IPS(): p @ (pi * delta).sum(1),
            IPS(slates="des_raj"): p @ (pi * delta).sum(1),
            DR(): p @ (pi * delta).sum(1),
            SIS(): p @ (kept * delta).sum(1),
            SIS(slates="des_raj"): p @ (kept * delta).sum(1),
            SIS(norm="truncated"): p @ (pi * delta * chosen).sum(1),
            DRSIS(): p @ (kept * delta).sum(1),
            DM(): p @ (pi * q).sum(1),
        }
        if design == "iid":
            targets[SIS(norm="none")] = p @ ((rho * chosen).sum(1) * (kept * delta).sum(1))
        for estimator, wanted in targets.items():
            mean, _ = exact_moments(
                estimator, p, rho, pi, delta, selected=chosen, model=q, length=length, design=design
            )
            assert mean == pytest.approx(wanted, abs=1e-10), estimator


def test_variances_of_single_draws():
    for seed in range(40):
        p, rho, pi, delta, chosen, _ = world(seed)
        truth = p @ (pi * delta).sum(1)
        assert exact_moments(IPS(), p, rho, pi, delta)[1] == pytest.approx(
            p @ (pi**2 / rho * delta).sum(1) - truth**2, abs=1e-10
        )
        inside = p @ (pi * delta * chosen).sum(1)
        mean, variance = exact_moments(SIS(norm="truncated"), p, rho, pi, delta, selected=chosen)
        assert variance == pytest.approx(p @ (pi**2 / rho * delta * chosen).sum(1) - inside**2, abs=1e-10)
        lost = p @ (pi * delta * ~chosen).sum(1)  # identity 1: the bias, and its bound
        assert mean - truth == pytest.approx(-lost, abs=1e-12)
        outside = p @ (pi * ~chosen).sum(1)
        assert abs(mean - truth) <= outside * (delta * ~chosen).max() + 1e-12
        capped = exact_moments(ClippedIPS(cap=1.5), p, rho, pi, delta)
        assert capped[0] == pytest.approx(p @ (np.minimum(pi, 1.5 * rho) * delta).sum(1), abs=1e-10)


def test_restriction_gap():
    for seed in range(40):
        p, rho, pi, delta, chosen, _ = world(seed)
        if chosen.all():
            continue
        value_in = (pi * delta * chosen).sum(1) / (pi * chosen).sum(1)
        value_out = (pi * delta * ~chosen).sum(1) / (pi * ~chosen).sum(1)
        gap = exact_moments(SIS(), p, rho, pi, delta, selected=chosen)[0] - exact_moments(IPS(), p, rho, pi, delta)[0]
        assert gap == pytest.approx(p @ ((pi * ~chosen).sum(1) * (value_in - value_out)), abs=1e-10)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_second_moments_shrink_and_murthy_is_never_more_variable(seed):
    p, rho, pi, delta, chosen, _ = world(seed, 2)
    whole = exact_moments(IPS(), p, rho, pi, delta)
    part = exact_moments(SIS(norm="truncated"), p, rho, pi, delta, selected=chosen)
    assert part[1] + part[0] ** 2 <= whole[1] + whole[0] ** 2 + 1e-10
    ours = exact_moments(IPS(), p, rho, pi, delta, length=2, design="plackett_luce")
    theirs = exact_moments(IPS(slates="des_raj"), p, rho, pi, delta, length=2, design="plackett_luce")
    assert ours[1] <= theirs[1] + 1e-10


def test_the_variance_of_a_restricted_policy_can_be_larger():
    even = [[0.6, 0.4]]
    assert exact_moments(IPS(), [1.0], even, even, [[1.0, 1.0]])[1] == pytest.approx(0, abs=1e-12)
    part = exact_moments(SIS(norm="truncated"), [1.0], even, even, [[1.0, 1.0]], selected=[[True, False]])
    assert part[1] == pytest.approx(0.24)


def feedback(seed, n=200, length=2, design="iid"):
    rng = np.random.default_rng(seed)
    rho, pi = rng.uniform(0.05, 0.3, (n, length)), rng.uniform(0.0, 0.5, (n, length))

    def t(x):
        return torch.tensor(x, dtype=torch.float64)

    return Feedback(
        reward=t(rng.random((n, length))),
        log_propensity=t(np.log(rho)),
        log_target=t(np.log(pi)),
        design=design,
        inside=torch.tensor(rng.random((n, length)) < 0.7),
        target_mass=t(rng.uniform(0.5, 1, n)),
        logging_mass=t(rng.uniform(0.5, 1, n)),
        predicted=t(rng.random((n, length))),
        direct=t(rng.random(n)),
        direct_inside=t(rng.random(n)),
        target_embedding=t(rng.uniform(0.1, 1, (n, length))),
        logging_embedding=t(rng.uniform(0.1, 1, (n, length))),
    )


def test_self_normalised_values():
    log = feedback(0)
    moved = Feedback(**{**vars(log), "reward": 3 * log.reward - 2})
    assert value(SNIPS(), moved) == pytest.approx(3 * value(SNIPS(), log) - 2, abs=1e-12)
    assert log.reward.min() <= value(SNIPS(), log) <= log.reward.max()
    # the gradient of the ratio is that of the mean of (r - V) w, over the mean weight: the translation is its own value
    logits = log.log_target.clone().requires_grad_()
    here = Feedback(**{**vars(log), "log_target": logits})
    w = SNIPS().weights(here)
    ratio = (w * log.reward).mean() / w.mean()
    direct = torch.autograd.grad(ratio, logits, retain_graph=True)[0]
    translated = torch.autograd.grad((w * (log.reward - ratio.detach())).mean() / w.mean().detach(), logits)[0]
    torch.testing.assert_close(direct, translated)


def test_translation_moves_the_variance_and_not_the_mean():
    for seed in range(20):
        p, rho, pi, delta, _, _ = world(seed)
        truth = p @ (pi * delta).sum(1)
        found = {t: exact_moments(Translated(translation=t), p, rho, pi, delta) for t in (0.0, truth, 0.7)}
        for t, (mean, variance) in found.items():
            assert mean == pytest.approx(truth, abs=1e-10)
            square = p @ (pi**2 / rho * (delta * (1 - t) ** 2 + (1 - delta) * t**2)).sum(1)
            assert variance == pytest.approx(square - (truth - t) ** 2, abs=1e-10)
        assert found[0.0] == pytest.approx(exact_moments(IPS(), p, rho, pi, delta), abs=1e-10)
        # at the fixed point it is the variance of the self-normalised estimate by the delta method, E[w^2 (r - V)^2]
        delta_method = p @ (pi**2 / rho * (delta * (1 - truth) ** 2 + (1 - delta) * truth**2)).sum(1)
        assert found[truth][1] == pytest.approx(delta_method, abs=1e-10)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 10**6))
def test_the_fixed_point_of_translation(seed):
    log = feedback(seed)
    fixed = value(Translated(), log)
    assert fixed == pytest.approx(value(SNIPS(), log), abs=1e-10)
    assert fixed == pytest.approx(value(Translated(translation=fixed), log), abs=1e-10)  # its own estimate
    other = value(Translated(translation=fixed + 1), log)  # no other is, where the mean weight is not 1
    assert other - fixed == pytest.approx(1 - float(IPS().weights(log).mean()), abs=1e-10)
    scaled = Feedback(**{**vars(log), "reward": 3 * log.reward - 2})
    assert value(Translated(), scaled) == pytest.approx(3 * fixed - 2, abs=1e-10)


def test_switch_and_shrinkage_lie_between_the_model_and_dr():
    log = feedback(1)
    assert value(SwitchDR(threshold=1e9), log) == pytest.approx(value(DR(), log), abs=1e-12)
    assert value(SwitchDR(threshold=0.0), log) == pytest.approx(value(DM(), log), abs=1e-12)
    assert value(ShrinkageDR(strength=1e15), log) == pytest.approx(value(DR(), log), abs=1e-9)
    assert value(ShrinkageDR(strength=0.0), log) == pytest.approx(value(DM(), log), abs=1e-12)
    tie = feedback(1, n=1, length=1)
    tie.log_target, tie.log_propensity = (torch.tensor([[np.log(v)]]) for v in (1 / 80, 0.00125))
    assert float(IPS().weights(tie)) > 10  # by rounding alone: not above a threshold of 10
    assert value(SwitchDR(threshold=10.0), tie) == pytest.approx(value(DR(), tie), abs=1e-12)
    w, s = DR().weights(log), 5.0
    assert (ShrinkageDR(strength=s).residual_weights(log) <= torch.minimum(w, torch.tensor(s**0.5 / 2)) + 1e-12).all()


def test_a_set_of_all_actions_changes_nothing():
    log = feedback(2)
    whole = Feedback(**{**vars(log), "inside": torch.ones_like(log.inside), "target_mass": None, "logging_mass": None})
    whole.target_mass = whole.logging_mass = torch.ones(len(log.reward), dtype=torch.float64)
    whole.direct_inside = whole.direct
    for norm in ("coverage", "truncated", "none", "count"):
        assert value(SIS(norm=norm), whole) == pytest.approx(value(IPS(), whole), abs=1e-12)
    assert value(DRSIS(), whole) == pytest.approx(value(DR(), whole), abs=1e-12)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_murthy_is_the_mean_of_des_raj_over_orders(length):
    rng = np.random.default_rng(length)
    for _ in range(20):
        rho = rng.dirichlet(np.ones(length + 2))[:length]
        weights, found = [], []
        for order in permutations(range(length)):
            left, chance, back = 1.0, 1.0, np.argsort(order)
            for a in order:
                chance, left = chance * rho[a] / left, left - rho[a]
            weights.append(chance)
            found.append(des_raj(torch.tensor(np.log(rho[list(order)]))[None])[0].numpy()[back])
        mean = np.average(found, axis=0, weights=weights)
        ours = murthy(torch.tensor(np.log(rho))[None])[0].numpy()
        np.testing.assert_allclose(ours, mean, rtol=1e-9)
        flipped = murthy(torch.tensor(np.log(rho[::-1].copy()))[None])[0].numpy()[::-1]
        np.testing.assert_allclose(ours, flipped, rtol=1e-12)


def test_designs_and_parts_that_are_missing():
    rho = torch.tensor([[0.4, 0.3]]).double().log()
    torch.testing.assert_close(coefficients(rho[:, :1], "plackett_luce"), independent(rho[:, :1]))
    long = torch.full((1, 9), 0.05).double().log()
    torch.testing.assert_close(coefficients(long, "plackett_luce"), des_raj(long))
    with pytest.raises(ValueError, match="9 items are too long"):
        murthy(long)
    with pytest.raises(ValueError, match="design must be"):
        coefficients(rho, "cascade")
    with pytest.raises(ValueError, match="slates must be"):
        coefficients(rho, "plackett_luce", "mean")
    with pytest.raises(ValueError, match="norm must be one of"):
        SIS(norm="all")
    bare = Feedback(torch.ones(1, 1).double(), rho[:, :1], rho[:, :1])
    with pytest.raises(ValueError, match="DR needs a reward model"):
        DR().terms(bare)
    with pytest.raises(ValueError, match="SIS needs a selected set"):
        SIS().terms(bare)
    slate = feedback(3, design="plackett_luce")
    with pytest.raises(ValueError, match="is for independent draws"):
        SIS(norm="none").terms(slate)
    assert all(np.isfinite(value(e, feedback(4))) for e in ESTIMATORS.values())
