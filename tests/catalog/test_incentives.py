"""Responses to incentives: shapes that hold by construction, draws, balance, and what a budget makes of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.catalog import response, response_draws, response_ensemble
from fieldguide.catalog.data.coupons import coupon_sim
from fieldguide.catalog.incentives import SHAPES, Incentives
from fieldguide.decisions import BanditLog, OptimisticValue, allocate, evaluate_policy
from fieldguide.inference import Constraint, Penalty, SchemaError, fit, hsic
from fieldguide.inference.data.logged import RowWeight


@pytest.fixture(scope="module")
def train():
    return coupon_sim(100, 1500)


@pytest.fixture(scope="module")
def test():
    return coupon_sim(10_000, 2000)


def fit_shape(train, shape):
    return fit("incentives", train.data, shape=shape, batch_size=256, validation=0.2, progress=False)


@pytest.fixture(scope="module")
def concave(train):
    return fit_shape(train, "concave")


def closed(world, found, budget):
    """Share of the way from the even allocation to that of the truth."""
    n = len(world.truth)
    value = (found.policy.to_numpy() * world.truth).sum() / n
    low = int(budget)
    even = (1 - budget + low) * world.truth[:, low].mean() + (budget - low) * world.truth[
        :, low + (budget > low)
    ].mean()
    best = allocate(world.truth, world.cost, budget * n).value / n
    return (value - even) / (best - even)


def test_the_simulated_world(test):
    assert (np.diff(test.truth, axis=1) > 0).all()
    assert (test.logging * test.cost).sum(1).mean() == pytest.approx(1.99, abs=0.05)
    for budget, value in ((0.5, 0.405), (1, 0.471), (2, 0.539)):  # published with the world, other customers
        assert allocate(test.truth, test.cost, budget * 2000).value / 2000 == pytest.approx(value, abs=0.015)
    drawn = test.data.obs["response"].mean()
    assert drawn == pytest.approx((test.logging * test.truth).sum(1).mean(), abs=0.04)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES[:2]), st.integers(2, 7), st.floats(0.1, 30))
def test_shapes_hold_for_any_weights(seed, shape, levels, scale):
    torch.manual_seed(seed)
    program = Incentives(3, levels, shape=shape)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.mul_(scale)
    link = program.link(torch.randn(200, 3) * 5).double()
    steps = link.diff(dim=-1)
    tolerance = 1e-5 * link.abs().max()
    assert (steps >= -tolerance).all()
    if shape == "concave":
        assert (steps.diff(dim=-1) <= tolerance).all()


@pytest.fixture(scope="module")
def monotone(train):
    return fit_shape(train, "monotone")


@pytest.mark.slow
def test_structure_helps(train, test):
    fits = {shape: fit_shape(train, shape) for shape in SHAPES}
    error = {s: float(((response(f, test.data).to_numpy() - test.truth) ** 2).mean() ** 0.5) for s, f in fits.items()}
    assert error["monotone"] < 0.85 * error["plain"] and error["concave"] < 0.85 * error["plain"]
    regret = {s: closed(test, allocate(response(f, test.data), test.cost, 2000.0), 1) for s, f in fits.items()}
    assert regret["concave"] > regret["plain"] + 0.1 and regret["concave"] > 0.75


def test_the_price_transfers_to_new_customers(concave, train, test):
    found = allocate(response(concave, train.data), train.cost, 1500.0)
    chosen = found.predict(response(concave, test.data), test.cost)
    assert test.cost[chosen.astype(int)].mean() == pytest.approx(1, rel=0.08)


def test_an_allocation_is_a_policy_that_a_log_can_judge(concave, test):
    found = allocate(response(concave, test.data), test.cost, 2000.0)
    table = test.data.obs.assign(level=test.data.obs["level"].astype(str))
    log = BanditLog.read(table, "level", "response", "propensity", actions=found.policy.columns)
    judged = evaluate_policy(log, found.policy, estimators=["ips", "snips"]).table
    value = (found.policy.to_numpy() * test.truth).sum() / 2000
    assert abs(judged.loc["snips", "value"] - value) < 4 * judged.loc["snips", "se"]


def test_customers_that_taught_the_responses_do_not_judge_what_is_made_of_them(concave, train):
    found = allocate(response(concave, train.data), train.cost, 1500.0)
    table = train.data.obs.assign(level=train.data.obs["level"].astype(str))
    log = BanditLog.read(table, "level", "response", "propensity", actions=found.policy.columns)
    with pytest.warns(OptimisticValue, match="1500 of 1500 rows of this log chose the policy"):
        evaluate_policy(log, found.policy, estimators=["snips"])
    copied = pd.concat([found.policy.iloc[:700], found.policy.iloc[700:]])  # as pandas hands attrs on
    with pytest.warns(OptimisticValue):
        evaluate_policy(log, copied, estimators=["snips"])


@pytest.mark.slow
def test_draws_keep_the_shape_and_centre_on_the_fit(concave, monotone, test):
    fits = {"concave": concave, "monotone": monotone}
    for shape in ("concave", "monotone"):
        with pytest.warns(UserWarning, match="draws of one fit leave out"):
            draws = response_draws(fits[shape], test.data[:300], draws=200)
        assert draws.shape == (200, 300, 5) and (np.diff(draws, axis=2) >= -1e-9).all()
        centre = np.median(draws, 0)
        assert np.abs(centre - response(fits[shape], test.data[:300]).to_numpy()).mean() < 0.04
    with pytest.warns(UserWarning):
        again = response_draws([fits["monotone"]], test.data[:300], draws=200)
    np.testing.assert_array_equal(again, draws)
    both = response_draws([fits["concave"], fits["monotone"]], test.data[:300], draws=200)
    assert both.shape == (200, 300, 5) and both.std(0).mean() > draws.std(0).mean()
    careful = allocate(both, test.cost, 300.0, risk="quantile", level=0.2)
    assert careful.outcomes(both).settings["value_sd"] > 0


def held(draws, truth):
    """Share of the true responses in the 90 % intervals of draws."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return ((low <= truth) & (truth <= high)).mean()


@pytest.mark.slow
def test_intervals_of_an_ensemble_cover_and_those_of_one_fit_do_not():
    train, new = coupon_sim(160, 600), coupon_sim(10_060, 400)
    fits = response_ensemble(train.data, 8, seed=1, batch_size=256, validation=0.2, max_epochs=40)
    draws = response_draws(fits, new.data, draws=240)
    assert 0.8 <= held(draws, new.truth) <= 0.97
    with pytest.warns(UserWarning):
        one = response_draws(fits[:1], new.data)
    assert held(one, new.truth) < 0.7

    def error(q):
        return ((np.asarray(q) - new.truth) ** 2).mean() ** 0.5

    assert error(response(fits, new.data)) < np.mean([error(response(f, new.data)) for f in fits])
    assert len({f.dataset.batch(np.arange(3))["weight"].sum().item() for f in fits}) == 8
    total = np.mean([f.dataset.batch(np.arange(600))["weight"].mean().item() for f in fits])
    assert total == pytest.approx(1, abs=0.07)


def test_ensembles_of_tables_and_of_weighted_customers():
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(60, 2)).astype(np.float32), "level": np.arange(60) % 3}
    arrays["response"] = (rng.random(60) < 0.5).astype(np.float32)
    arrays["tickets"] = np.full(60, 7.0)
    settings = {"max_epochs": 1, "fields": {"x": "x", "weight": "tickets"}}
    fits = response_ensemble(arrays, 2, **settings)
    assert fits[0].dataset.batch(np.arange(60))["weight"].mean() == pytest.approx(7, rel=0.5)
    assert (arrays["tickets"] == 7).all()  # the data are left as they are
    with pytest.raises(ValueError, match="members must be a whole number of at least 2, not 1"):
        response_ensemble(arrays, 1, **settings)
    with pytest.raises(SchemaError, match="column 'tickets' of cell '0' is not positive"):
        response_ensemble(arrays | {"tickets": -arrays["tickets"]}, 2, **settings)


def test_laplace_is_exact_for_a_linear_normal_response():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    data = {"x": x, "level": np.arange(400) % 2, "response": (x[:, 0] + rng.normal(size=400)).astype(np.float32)}
    fitted = fit("incentives", data, shape="plain", outcome="normal", n_head=4, max_epochs=40, progress=False)
    with pytest.warns(UserWarning):
        draws = response_draws(fitted, draws=4000, seed=1)
    program, rows = fitted.program, fitted.train_rows
    with torch.no_grad():
        inputs = program.features(torch.from_numpy(x))[1].double().numpy()
    z = np.c_[inputs, np.ones(400)]
    variance = np.zeros((400, 2))
    for level in (0, 1):
        own = z[rows[np.arange(400)[rows] % 2 == level]]
        noise = float(program.log_scale.detach().exp()) ** 2  # in units of the response
        precision = own.T @ own / noise
        spread = [np.einsum("nh,hk,nk->n", z, np.linalg.inv(precision + a * np.eye(5)), z) for a in (1e-2, 1e3)]
        found = draws[:, :, level].var(0) / float(program.unit) ** 2
        assert (found <= spread[0] * 1.15).all() and (found >= spread[1] * 0.85).all()
        variance[:, level] = found
    assert variance.min() > 0


def test_more_epochs_than_early_stopping_needs_change_nothing(train):
    """There is no Kullback-Leibler term to warm up, before whose end no epoch could be the best."""
    settings = {"validation": 0.2, "early_stopping": 5, "batch_size": 256, "progress": False}
    short, long = (fit("incentives", train.data[:400].copy(), max_epochs=e, **settings) for e in (25, 200))
    assert len(short.history) == len(long.history) < 25
    np.testing.assert_array_equal(response(short, train.data[:50]), response(long, train.data[:50]))


def test_balance_makes_the_representation_forget_the_level(train):
    measure = hsic("phi", "level").measure
    held = Constraint(measure, rule=Penalty(100.0), group="theta")
    settings = {"shape": "plain", "max_epochs": 15, "batch_size": 256, "progress": False}
    free = fit("incentives", train.data, **settings)
    balanced = fit("incentives", train.data, constraints=[held], **settings)
    phi = {}
    for name, found in (("free", free), ("balanced", balanced)):
        with torch.no_grad():
            phi[name] = found.program.features(torch.from_numpy(train.data.X))[0].numpy()
    level = train.data.obs["level"].to_numpy()
    spread = {
        n: np.linalg.norm([v[level == k].mean(0) - v.mean(0) for k in range(5)]) / v.std() for n, v in phi.items()
    }
    assert spread["balanced"] < 0.5 * spread["free"]


def test_a_weight_of_nine_is_nine_rows(train):
    rows = np.arange(300)
    often = train.data.obs["response"].to_numpy()[:300] == 1
    repeated = train.data[np.repeat(rows, np.where(often, 9, 1))].copy()
    repeated.obs_names_make_unique()
    weighted = train.data[:300].copy()
    weighted.obs["weight"] = np.where(often, 9.0, 1.0)
    shared = {"batch_size": 3000, "max_epochs": 60, "validation": 0.0, "early_stopping": None, "progress": False}
    first, second, plain = (
        response(fit("incentives", data, **shared), train.data).to_numpy()
        for data in (repeated, weighted, train.data[:300].copy())
    )
    assert np.abs(first - second).mean() < 0.25 * np.abs(plain - second).mean()


def test_bad_input(train, concave):
    data = train.data[:200].copy()
    for change, error, message in (
        ({"level": np.where(np.arange(200) % 2, "low", "high")}, SchemaError, "column 'level' has no order"),
        ({"level": 1}, SchemaError, "has one level only"),
        ({"level": np.where(np.arange(200) == 3, np.nan, 1.0)}, SchemaError, "'customer100.3' is missing"),
        ({"response": np.where(np.arange(200) == 3, np.nan, 1.0)}, SchemaError, "'customer100.3' is not finite"),
        ({"response": 0.5}, ValueError, "response of training row 0 is 0.5: 0 or 1, or outcome='normal'"),
        ({"response": 1.0}, ValueError, "all responses are 1: there is nothing to learn"),
        ({"weight": -1.0}, SchemaError, "column 'weight' of cell 'customer100.0' is not positive"),
    ):
        wrong = data.copy()
        for name, value in change.items():
            wrong.obs[name] = value
        with pytest.raises(error, match=message):
            fit("incentives", wrong, max_epochs=1, progress=False)
    rare = data.copy()
    rare.obs["level"] = np.where(np.arange(200) == 7, 9, rare.obs["level"])
    with pytest.raises(ValueError, match="level number 5 .of 6, from 0. is given to no customer in training"):
        fit("incentives", rare, validation=np.array([7]), max_epochs=1, progress=False)
    named = data.copy()
    named.obs["level"] = pd.Categorical(np.where(np.arange(200) % 2, "low", "high"), ["low", "high"], ordered=True)
    assert list(response(fit("incentives", named, max_epochs=1, progress=False)).columns) == ["low", "high"]
    with pytest.raises(SchemaError, match="'9' of column 'level' was not in the training data"):
        concave.read(rare)
    with pytest.raises(ValueError, match="shape must be one of"):
        Incentives(3, 4, shape="convex")
    with pytest.raises(TypeError, match="this is a fit of ppca, not of incentives"):
        response(fit("ppca", {"x": data.X}, max_epochs=1, progress=False))
    bare = {"x": train.data.X[:5]}
    assert response(concave, train.data[:5]).shape == response(concave, bare).shape


def test_random_weights_of_an_ensemble_are_no_feature_and_always_there():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"f0": rng.normal(size=40), "level": np.arange(40) % 2, "response": rng.integers(0, 2, 40)})
    fits = response_ensemble(data, 2, fields={"weight": None}, max_epochs=1)
    assert fits[0].schema.states["x"]["features"] == ["f0"]
    assert fits[0].dataset.stores["weight"].values.std() > 0.5
    data["weight"] = 7.0
    off = response_ensemble(data, 2, fields={"x": ["f0"], "weight": None}, max_epochs=1)
    assert off[0].schema.places["weight"] == "weight1" and off[0].dataset.stores["weight"].values.mean() < 2
    for place in ("weight", RowWeight("weight"), RowWeight()):
        told = response_ensemble(data, 2, fields={"x": ["f0"], "weight": place}, max_epochs=1)
        torch.testing.assert_close(told[0].dataset.stores["weight"].values, off[0].dataset.stores["weight"].values * 7)
    numbered = data.rename(columns={"weight": 3})
    third = response_ensemble(numbered, 2, fields={"x": ["f0"], "weight": 3}, max_epochs=1)
    torch.testing.assert_close(third[0].dataset.stores["weight"].values, told[0].dataset.stores["weight"].values)
    for fields, kind, message in (
        ({"weight": "W"}, SchemaError, "field 'weight': no column 'W' in obs; there are f0, level, response, weight"),
        ({"weight": ["weight"]}, SchemaError, "field 'weight' is read from one column"),
        (["weight"], TypeError, "fields must be a mapping from fields to places"),
    ):
        with pytest.raises(kind, match=message):
            response_ensemble(data, 2, fields=fields, max_epochs=1)
