"""Marginalised weights against enumeration, and embeddings read from categories or from draws."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.decisions import BanditLog, evaluate_policy
from fieldguide.decisions.policies.action_embedding import Embedding
from fieldguide.decisions.policies.estimators import IPS, MIPS, Feedback
from fieldguide.decisions.policies.exact_moments import exact_moments
from fieldguide.decisions.policies.policy import Policy


def world(seed):
    """Contexts, policies over K actions, chances of E embeddings, and rewards that only the embedding decides."""
    rng = np.random.default_rng(seed)
    m, k, e = rng.integers(1, 4), rng.integers(2, 6), rng.integers(1, 4)
    p, rho, pi = rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(k), m), rng.dirichlet(np.ones(k), m)
    shown = rng.dirichlet(np.full(e, 0.8), k) if rng.random() < 0.5 else np.eye(e)[rng.integers(e, size=k)]
    return p, 0.9 * rho + 0.1 / k, pi, shown, rng.random((m, e))


@pytest.mark.parametrize("length", [1, 2])
def test_the_mean_is_the_policys_value(length):
    for seed in range({1: 30, 2: 6}[length]):
        p, rho, pi, shown, gain = world(seed)
        reward = np.broadcast_to(gain[:, None, :], (*pi.shape, shown.shape[1]))
        mean, _ = exact_moments(MIPS(), p, rho, pi, reward, embedding=shown, length=length)
        assert mean == pytest.approx(p @ (pi[:, :, None] * shown * reward).sum((1, 2)), abs=1e-10)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6))
def test_the_variance_shrinks_by_that_of_the_weights_within_an_embedding(seed):
    """n (Var IPS - Var MIPS) = E[ E[r^2 | x, e] Var(w(x, a) | x, e) ] (Saito and Joachims 2022, theorem 3.6)."""
    p, rho, pi, shown, gain = world(seed)
    reward = np.broadcast_to(gain[:, None, :], (*pi.shape, shown.shape[1]))
    ips, mips = (exact_moments(e, p, rho, pi, reward, embedding=shown)[1] for e in (IPS(), MIPS()))
    joint = rho[:, :, None] * shown  # [M, K, E]
    total = joint.sum(1, keepdims=True)
    given_e = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
    w = (pi / rho)[:, :, None]
    spread = (given_e * w**2).sum(1) - (given_e * w).sum(1) ** 2  # [M, E]
    wanted = p @ (total[:, 0] * gain * spread).sum(1)
    assert ips - mips == pytest.approx(wanted, abs=1e-10) and mips <= ips + 1e-10


def test_the_bias_where_actions_of_one_embedding_differ():
    """The mean is the value of the policy that keeps rho within each embedding."""
    for seed in range(20):
        p, rho, pi, shown, _ = world(seed)
        reward = np.random.default_rng(seed).random((*pi.shape, shown.shape[1]))
        joint, new = rho[:, :, None] * shown, (pi @ shown)[:, None, :]
        total = joint.sum(1, keepdims=True)
        within = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
        mean, _ = exact_moments(MIPS(), p, rho, pi, reward, embedding=shown)
        assert mean == pytest.approx(p @ (within * new * reward).sum((1, 2)), abs=1e-10)


def test_an_embedding_of_its_own_for_each_action_makes_it_ips_and_one_for_all_the_mean():
    p, rho, pi, _, _ = world(3)
    delta = np.random.default_rng(0).random(pi.shape)
    every = np.eye(pi.shape[1])
    assert exact_moments(MIPS(), p, rho, pi, delta, embedding=every) == pytest.approx(
        exact_moments(IPS(), p, rho, pi, delta), abs=1e-10
    )
    one = exact_moments(MIPS(), p, rho, pi, delta, embedding=np.ones((pi.shape[1], 1)))
    assert one[0] == pytest.approx(p @ (rho * delta).sum(1), abs=1e-10)


def shop(n=4000, seed=0, k=12):
    """A log of 12 items in three categories, whose category alone decides the reward; one item was never shown."""
    rng = np.random.default_rng(seed)
    category = np.arange(k) % 3
    rho = np.r_[rng.dirichlet(np.full(k - 1, 2.0)), 0]
    pi = np.r_[rng.dirichlet(np.full(k - 1, 0.3)) * 0.7, 0.3]
    action = rng.choice(k, size=n, p=rho)
    truth = np.array([0.1, 0.4, 0.8])[category]
    log = BanditLog.of(action, rng.random(n) < truth[action], rho[action], [f"item{i}" for i in range(k)])
    return log, pi, rho, category, pi @ truth


def test_items_that_were_never_logged_are_known_by_their_category():
    log, pi, rho, category, value = shop()
    names = pd.Series(np.array(["low", "mid", "top"])[category], index=log.actions)[::-1]  # found by name
    with pytest.warns(UserWarning, match="30% of the policy is on actions that the log never takes"):
        found = evaluate_policy(log, pi, logging=rho, embedding=names, interval="normal")
    table, weights = found.table, found.diagnostics
    assert abs(table.loc["mips", "value"] - value) < 3.5 * table.loc["mips", "se"] < 0.1
    assert abs(table.loc["ips", "value"] - value) > 3.5 * table.loc["ips", "se"]
    assert table.loc["mips", "se"] < table.loc["ips", "se"]
    assert weights.loc["mips", "unsupported"] == pytest.approx(0) and weights.loc["ips", "unsupported"] > 0.29
    assert weights.loc["mips", "mean_weight"] == pytest.approx(1, abs=0.05)


def test_intervals_of_marginalised_weights_cover():
    hits = 0
    for seed in range(60):
        log, pi, rho, category, value = shop(300, seed)
        with pytest.warns(UserWarning):
            row = evaluate_policy(
                log, pi, logging=rho, embedding=category, estimators=["mips"], resamples=400
            ).table.loc["mips"]
        hits += row["low"] <= value <= row["high"]
    assert hits >= 50  # of 60 at 95 %: fewer has probability 0.0002


def test_embeddings_of_every_form():
    log = BanditLog.of([0, 1, 2], [1, 0, 1], [0.5, 0.3, 0.2], ["a", "b", "c"])
    pi = Policy.read([0.1, 0.2, 0.7], log.actions, log.rows)
    pairs = pd.DataFrame({"colour": ["red", "red", "blue"], "size": [1, 1, 1]}, index=["a", "b", "c"])
    for form in (pairs, pairs["colour"], [5, 5, 9], [[5, 1], [5, 1], [9, 1]]):
        found = Embedding.of_categories(form, log)
        assert found.probability(pi)[:, 0] == pytest.approx([0.3, 0.3, 0.7])
        assert found.probability(pi.top(2))[:, 0] == pytest.approx([0.2, 0.2, 0.7])
    drawn = Embedding.of_draws([0, 1, 1], [[0.5, 0.5], [0.1, 0.9], [0, 1]], log)
    assert drawn.probability(pi)[:, 0] == pytest.approx([0.07, 0.93, 0.93])
    assert drawn.unseen(pi) == 0 and Embedding.of_draws([1, 1, 1], drawn.chance, log).unseen(pi) == pytest.approx(0.07)
    table = evaluate_policy(log, pi, logging=[0.5, 0.3, 0.2], embedding=drawn, estimators=["mips"]).table
    wanted = np.mean([0.07 / 0.28, 0, 0.93 / 0.72])
    assert table.loc["mips", "value"] == pytest.approx(wanted)


def test_bad_embeddings():
    log = BanditLog.of([0, 1], [1, 0], [0.5, 0.5], ["a", "b"], ["u", "v"])
    for wrong, message in (
        (pd.Series({"a": 1}), "embedding has no action 'b'"),
        (pd.Series([1, 2, 3], index=["a", "a", "b"]), "embedding has action 'a' twice"),
        (["red", None], "embedding of action 'b' is missing"),
        ([1, 2, 3], "embedding is for 3 actions, the log has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_policy(log, [0.5, 0.5], logging=[0.5, 0.5], embedding=wrong)
    good = [[1, 0], [0.5, 0.5]]
    for observed, chance, message in (
        ([0, 2], good, "embedding of row 'v' is not one of 2"),
        ([0, 0, 0], good, r"observed embeddings are of shape \(3, 1\), the log of \(2, 1\)"),
        ([0, 0], [[1, 0]], "chance must have a row for each of 2 actions"),
        ([0, 0], [[1, 0], [0.5, 0.6]], "probabilities of action 'b' do not sum to 1"),
        ([1, 0], good, "embedding 1 of row 'u' has probability 0 for its action 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            Embedding.of_draws(observed, chance, log)
    with pytest.raises(ValueError, match="embedding needs logging"):
        evaluate_policy(log, [0.5, 0.5], embedding=[0, 1])
    with pytest.raises(ValueError, match="MIPS needs an embedding of the actions, and the logging policy"):
        evaluate_policy(log, [0.5, 0.5], estimators=["mips"])
    slate = BanditLog.of([[0, 1]], [[1, 0]], [[0.5, 0.5]], 2, design="plackett_luce")
    with pytest.raises(ValueError, match="MIPS is for independent draws"):
        evaluate_policy(slate, [0.5, 0.5], logging=[0.5, 0.5], embedding=[0, 1], estimators=["mips"])
    assert "mips" not in evaluate_policy(slate, [0.5, 0.5], logging=[0.5, 0.5], embedding=[0, 1]).table.index
    one = torch.ones(1, 1).double()
    with pytest.raises(ValueError, match="MIPS needs an embedding"):
        MIPS().terms(Feedback(one, one.log(), one.log()))


def test_embeddings_are_found_by_name_and_are_of_a_log():
    names = list("abcdef")
    log = BanditLog.of([0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 9], [0.5, 0.3, 0.2] * 2, ["x", "y", "z"], rows=names)
    seen = pd.Series([0, 1, 1, 1, 0, 0], index=names)
    chance = pd.DataFrame([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], index=["x", "y", "z"])

    def value(embedding, log=log):
        settings = {"logging": [0.5, 0.3, 0.2], "estimators": ["mips"], "interval": "normal"}
        return evaluate_policy(log, [0.3, 0.3, 0.4], embedding=embedding, **settings).table.loc["mips", "value"]

    right = value(Embedding.of_draws(seen, chance, log))
    assert value(Embedding.of_draws(seen.to_numpy(), chance.to_numpy(), log)) == right
    assert value(Embedding.of_draws(seen[::-1], chance.loc[["z", "x", "y"]], log)) == right
    turned = log.take([5, 0, 1, 2, 3, 4])
    assert value(Embedding.of_draws(seen, chance, log), turned) == pytest.approx(right, rel=1e-12)
    other = BanditLog.of(2 - turned.action, turned.reward, turned.propensity[::-1], ["z", "y", "x"], rows=turned.rows)
    moved = Embedding.of_draws(seen, chance, log).aligned(other)
    assert moved.observed[:, 0].tolist() == [0, 0, 1, 1, 1, 0] and moved.chance[0].tolist() == [0.5, 0.5]
    half = Embedding.of_draws(seen, chance, log).aligned(log.take([0, 3]))
    assert half.observed[:, 0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="embedding has no row for 'b', one of the rows of the log"):
        half.aligned(log)
    with pytest.raises(ValueError, match=r"embedding is of \(6, 1\) items and 3 actions, the log of \(2, 1\) and 3"):
        value(Embedding(seen.to_numpy()[:, None], chance.to_numpy()), log.take([0, 3]))
    with pytest.raises(ValueError, match=r"embedding: the value at \[1\] is masked"):
        value(np.ma.masked_array([0, 1, 1], [0, 1, 0]))
