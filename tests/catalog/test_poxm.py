"""Policies learnt from logs: the objective against its formulas, the program, and a world where it beats its log."""

import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.catalog import get, learn_policy, policy_data
from fieldguide.catalog.data.extreme import action_probabilities, draw_log, logging_policy, xmc_sim
from fieldguide.catalog.poxm import POXM, SPARSE
from fieldguide.catalog.procedures.policies import fit_self_normalised, policy_of
from fieldguide.decisions import BanditLog, NoSupport, evaluate_policy
from fieldguide.decisions.policies.policy import Policy
from fieldguide.inference import ELBO, OffPolicyValue, SchemaError, fit, load
from fieldguide.inference.step import Step


@pytest.fixture(scope="module")
def world():
    """A small world, the policy that logged it, and the log of the training rows."""
    made = xmc_sim(0, n_actions=60, n_groups=6, n=1200, n_latent=8, n_features=16)
    teacher = logging_policy(made.context[:150], made.relevant[:150], 0)
    rho = action_probabilities(teacher, made.context)
    log = draw_log(rho[150:1000], made.reward[150:1000], seed=1)
    return made, rho, log


def minibatch(p=6, length=3, cells=40, seed=0):
    torch.manual_seed(seed)
    position = torch.randint(-1, p, (cells, length))
    return {
        "x": torch.randn(cells, 5),
        "candidates": torch.stack([torch.randperm(30)[:p] for _ in range(cells)]),
        "log_propensity": torch.log_softmax(torch.randn(cells, p), -1),
        "position": position,
        "reward": torch.rand(cells, length),
        "weight": torch.rand(cells, length) * 4 + 1,
        "index": torch.arange(cells),
    }


def loss_of(objective, program, batch, total=100):
    return objective(Step(program, batch, total))


def test_the_objective_is_its_formula():
    program, batch = POXM(5, 30), minibatch()
    scores = program.scores(batch["x"], batch["candidates"])
    policy = torch.softmax(scores, -1)
    inside = batch["position"] >= 0
    pi = torch.where(inside, policy.gather(1, batch["position"].clamp(min=0)), 0.0)
    value = (pi * batch["weight"] * batch["reward"]).mean()
    torch.testing.assert_close(loss_of(OffPolicyValue(), program, batch), -value)
    mass = (pi * batch["weight"]).mean()
    torch.testing.assert_close(loss_of(OffPolicyValue(translation=0.3), program, batch), -(value - 0.3 * mass))
    several = torch.where(inside, 1 - (1 - pi) ** 4, 0.0) * batch["weight"] * batch["reward"]
    torch.testing.assert_close(loss_of(OffPolicyValue(distinct=4), program, batch), -several.mean())
    capped = ((pi * batch["weight"]).clamp(max=0.5) * batch["reward"]).mean()
    torch.testing.assert_close(loss_of(OffPolicyValue(cap=0.5), program, batch), -capped)
    divergence = (policy * (policy.log() - batch["log_propensity"])).sum(1).mean()
    torch.testing.assert_close(loss_of(OffPolicyValue(kl=2.0), program, batch), -value + 2 * divergence)
    terms = (pi * batch["weight"] * batch["reward"]).mean(1)
    spread = (terms.var() / 100) ** 0.5
    torch.testing.assert_close(loss_of(OffPolicyValue(variance=1.5), program, batch), -value + 1.5 * spread)


def test_all_actions_as_candidates_make_it_banditnet():
    program, batch = POXM(5, 30), minibatch()
    everything = torch.arange(30).expand(40, 30)
    whole = batch | {
        "candidates": everything,
        "position": torch.where(
            batch["position"] >= 0, batch["candidates"].gather(1, batch["position"].clamp(min=0)), -1
        ),
        "log_propensity": torch.zeros(40, 30),
    }
    scores = program.network(batch["x"]) @ program.embedding.weight.T + program.bias.weight[:, 0]
    pi = torch.softmax(scores, -1).gather(1, whole["position"].clamp(min=0))
    wanted = torch.where(whole["position"] >= 0, pi * batch["weight"] * (batch["reward"] - 0.2), 0.0).mean()
    torch.testing.assert_close(loss_of(OffPolicyValue(translation=0.2), program, whole), -wanted)


def test_names_of_actions_do_not_matter():
    program, batch = POXM(5, 30), minibatch()
    order = torch.randperm(30)
    renamed = POXM(5, 30)
    renamed.load_state_dict(program.state_dict())
    with torch.no_grad():
        renamed.embedding.weight[order] = program.embedding.weight
        renamed.bias.weight[order] = program.bias.weight
    torch.testing.assert_close(
        loss_of(OffPolicyValue(), renamed, batch | {"candidates": order[batch["candidates"]]}),
        loss_of(OffPolicyValue(), program, batch),
    )


def test_a_warm_start_is_the_logging_policy():
    program, batch = POXM(5, 30, start="logging"), minibatch()
    draws = Step(program, batch).weights(1).draws
    torch.testing.assert_close(draws["log_policy"][0], batch["log_propensity"])
    torch.testing.assert_close(
        loss_of(OffPolicyValue(kl=1.0), program, batch), loss_of(OffPolicyValue(), program, batch)
    )
    loss_of(OffPolicyValue(), program, batch).backward()
    assert program.embedding.weight.grad.abs().sum() > 0  # the start is no fixed point


def test_places_that_hold_no_candidate_get_nothing():
    program, batch = POXM(5, 30), minibatch()
    short = batch["candidates"].clone()
    short[:, -2:] = -1
    found = Step(program, batch | {"candidates": short}).weights(1).draws["log_policy"][0].exp()
    assert (found[:, -2:] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(40))


def test_it_beats_the_policy_that_taught_it(world):
    made, rho, log = world
    learned = learn_policy(log, made.context[150:1000], rho[150:1000], top="q0.9", seed=0, max_epochs=15)
    policy = learned.predict(made.context[1000:], rho[1000:])
    value, before = policy.total(made.reward[1000:]).mean(), (rho[1000:] * made.reward[1000:]).sum(1).mean()
    assert value > 1.1 * before
    row = learned.evaluation.table.loc["snips"]
    assert abs(row["value"] - value) < 4 * row["se"]
    assert (learned.evaluation.table["over_logging"] > 1).loc["snips"]
    assert policy.codes.shape == (200, learned.top) and policy.probability.sum(1) == pytest.approx(1)
    assert len(learned.trained_on) == 680 and policy.trained_on is not None


def test_sizes_are_chosen_on_rows_of_their_own(world):
    made, rho, log = world
    learned = learn_policy(log, made.context[150:1000], rho[150:1000], seed=0, max_epochs=3)
    assert learned.top == learned.table["low"].idxmax() and len(learned.table) >= 2
    assert learned.evaluation.settings["rows"] == 85 and len(learned.trained_on) == 765


def test_the_translation_settles_where_it_is_the_value_that_it_leads_to(world):
    made, rho, log = world
    candidates = Policy.read(rho[150:1000], 60, 850).top(6)
    data = policy_data(made.context[150:1000], candidates, log)
    settings = {"n_actions": 60, "validation": 0.0, "early_stopping": None, "max_epochs": 8, "progress": False}
    fitted, steps = fit_self_normalised(data, **settings)
    last = steps.iloc[-1]
    assert fitted.objective.translation == last["translation"] > 0
    assert abs(last["value"] - last["translation"]) <= 0.01 * last["value"] and len(steps) <= 6
    assert steps["translation"].iloc[0] == 0 and steps["translation"].tolist()[1:] == steps["value"].tolist()[:-1]
    policy = policy_of(fitted, made.context[150:1000], candidates)
    here = evaluate_policy(log, policy, estimators=["snips", "translated"]).table["value"]
    assert here["snips"] == pytest.approx(last["value"], rel=1e-5) and here["translated"] == pytest.approx(
        here["snips"]
    )


def test_without_contexts_it_finds_the_arm_of_largest_self_normalised_mean():
    """Of two arms: by inverse propensities the one drawn too often looks best, by its mean reward the other is."""
    action = np.r_[np.zeros(80, int), np.ones(20, int)]
    reward = np.r_[np.ones(56), np.zeros(24), np.ones(16), np.zeros(4)]  # means 0.7 and 0.8; IPS 1.12 and 0.32
    log = BanditLog.of(action, reward, np.full(100, 0.5), 2)
    data = policy_data(np.ones((100, 1)), Policy.read([0.5, 0.5], 2, 100).top(2), log)
    settings = {"n_actions": 2, "validation": 0.0, "early_stopping": None, "max_epochs": 60, "learning_rate": 0.1}
    settings |= {"batch_size": 100, "progress": False}
    plain = fit("poxm", data, **settings)
    assert policy_of(plain, np.ones((1, 1)), Policy.read([0.5, 0.5], 2, 1).top(2)).probability[0, 0] > 0.95
    with pytest.warns(NoSupport, match="the mean weight is 0.4"):  # of the second arm 20 rows of 50 expected
        fitted, steps = fit_self_normalised(data, **settings)
    assert steps["value"].iloc[-1] == pytest.approx(0.8, abs=0.01) and (steps["value"].diff().iloc[1:] > 0).all()
    assert fitted.objective.translation == steps["translation"].iloc[-2]
    with pytest.warns(NoSupport, match="the translation was not settled in 1 fits: 0 led to 0.7"):
        fit_self_normalised(data, rounds=1, **settings)
    with pytest.raises(ValueError, match="rounds must be a whole number of at least 1, not 0"):
        fit_self_normalised(data, rounds=0, **settings)


def test_learning_with_the_fixed_point(world):
    made, rho, log = world
    learned = learn_policy(
        log, made.context[150:1000], rho[150:1000], top=6, self_normalise=True, max_epochs=8, estimator="snips"
    )
    assert learned.table["translation"].iloc[0] > 0.05
    policy = learned.predict(made.context[1000:], rho[1000:])
    assert policy.total(made.reward[1000:]).mean() > 1.1 * (rho[1000:] * made.reward[1000:]).sum(1).mean()


def test_equal_seeds_saving_and_a_step_that_updates_what_it_names(world, tmp_path):
    made, rho, log = world
    candidates = Policy.read(rho[150:1000], 60, 850).top(8)
    data = policy_data(made.context[150:1000], candidates, log)
    settings = {"max_epochs": 2, "progress": False, "n_actions": 60}
    first, second = (fit("poxm", data, **settings) for _ in range(2))
    assert torch.equal(first.program.embedding.weight, second.program.embedding.weight)
    first.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    assert again.objective == OffPolicyValue()
    np.testing.assert_array_equal(
        policy_of(
            again, made.context[:20], candidates.aligned(candidates.actions, pd.Index(np.arange(20)))
        ).probability,
        policy_of(
            first, made.context[:20], candidates.aligned(candidates.actions, pd.Index(np.arange(20)))
        ).probability,
    )
    sparse = fit("poxm", data, **settings | {"n_actions": SPARSE + 1})
    start = fit("poxm", data, **settings | {"n_actions": SPARSE + 1, "max_epochs": 1, "learning_rate": 1e-12})
    moved = (sparse.program.embedding.weight - start.program.embedding.weight).abs().sum(1) > 1e-6
    named = np.unique(candidates.codes)
    assert moved[torch.from_numpy(named)].any() and not moved[len(rho[0]) :].any()


def test_imitation_under_the_elbo(world):
    made, rho, log = world
    candidates = Policy.read(rho[150:1000], 60, 850).top(60)
    found = fit(
        "poxm", policy_data(made.context[150:1000], candidates, log), objective=ELBO(), max_epochs=20, progress=False
    )
    policy = policy_of(found, made.context[150:1000], candidates).frame().to_numpy()
    divergence = (rho[150:1000] * (np.log(rho[150:1000]) - np.log(policy + 1e-12))).sum(1).mean()
    uniform = (rho[150:1000] * np.log(rho[150:1000] * 60)).sum(1).mean()
    assert divergence < 0.3 * uniform


def test_bad_input(world):
    made, rho, log = world
    x, r = made.context[150:1000], rho[150:1000]
    nothing = BanditLog.of(log.action, np.zeros_like(log.reward), log.propensity, 60)
    with pytest.raises(ValueError, match="no logged item was rewarded"):
        learn_policy(nothing, x, r)
    with pytest.raises(ValueError, match="top must be a number, 'auto' or a quantile"):
        learn_policy(log, x, r, top="best")
    with pytest.raises(ValueError, match="top must be between 1 and 60 actions, not 61"):
        learn_policy(log, x, r, top=61)
    with pytest.raises(ValueError, match="rows are held out of 850: too few"):
        learn_policy(log, x, r, held_out=0.001)
    with pytest.raises(ValueError, match="held_out must be a number in .0, 1., not 1"):
        learn_policy(log, x, r, held_out=1.0)
    holed = x.copy()
    holed[3, 2] = np.nan
    with pytest.raises(ValueError, match="context of row 3, column 2 is nan"):
        learn_policy(log, holed, r, top=5)
    few = BanditLog.of(log.action, log.reward * (np.arange(850)[:, None] < 5), log.propensity, 60)
    with pytest.warns(NoSupport, match="rewarded items of the log are among the 3 candidates: too few to learn from"):
        learn_policy(few, x, r, top=3, max_epochs=1)
    flat = np.full((850, 60), 1 / 60)
    even = BanditLog.of(log.action, log.reward, np.full((850, 5), 1 / 60), 60)
    with pytest.warns(NoSupport, match="the 3 candidates hold 5% of the logging policy"):
        learn_policy(even, x, flat, top=3, max_epochs=1)
    with pytest.raises(ValueError, match="context has 851 rows, the log 850"):
        learn_policy(log, made.context[149:1000], r, top=5)
    with pytest.raises(ValueError, match="choose candidates by logging.top"):
        policy_data(x, Policy.read(r, 60, 850), log)
    with pytest.raises(ValueError, match="start must be one of uniform, logging"):
        POXM(3, 4, start="cold")
    for wrong, message in (
        ({"distinct": 0}, "distinct must be a whole number of at least 1"),
        ({"kl": -1.0}, "kl must be a number of at least 0"),
        ({"cap": 0.0}, "cap must be a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            OffPolicyValue(**wrong)
    data = policy_data(x, Policy.read(r, 60, 850).top(5), log)
    data.obsm["position"] = data.obsm["position"] + 0.5
    with pytest.raises(SchemaError, match="field 'position': cell '0', column 0 is .*, not a code"):
        fit("poxm", data)
    with pytest.raises(KeyError, match="PPCA has no site 'log_policy'"):
        fit("ppca", {"x": x}, objective=OffPolicyValue(), max_epochs=1)
    assert get("poxm").objective == OffPolicyValue()


def test_what_contradicts_the_log_or_has_no_use_is_refused(world):
    made, rho, log = world
    x, r = made.context[150:1000], rho[150:1000]
    with pytest.raises(ValueError, match=r"logging says \S+ for the action of row \d+, the log \S+ \(propensity\)"):
        learn_policy(log, x, r[::-1], top=5)
    for change, kind, message in (
        ({"estimator": "best"}, ValueError, "estimator must be one of ips, clipped, snips, translated"),
        ({"estimator": "dr"}, ValueError, "estimator must be one of ips, clipped, snips, translated"),
        ({"objective": "elbo"}, TypeError, "objective must be an OffPolicyValue, not 'elbo'"),
        ({"validation": 0.2}, TypeError, "validation is not a setting of learn_policy"),
        ({"rounds": 3}, TypeError, "rounds"),
        ({"top": 1.5}, TypeError, "top must be a whole number"),
        ({"top": 0}, ValueError, "top must be a whole number of at least 1"),
        ({"top": "q2"}, ValueError, "top must be a number, 'auto' or a quantile"),
        ({"level": "a"}, TypeError, "level must be a number"),
        ({"seed": -1}, ValueError, "seed must be a whole number"),
        ({"self_normalise": 1}, TypeError, "self_normalise must be True or False"),
        ({"context": x[:, 0]}, ValueError, r"context must be of shape \(rows, features\), not \(850,\)"),
        ({"context": np.full((850, 2), "a")}, TypeError, "context must hold numbers"),
        ({"log": None}, TypeError, "log must be a BanditLog"),
    ):
        with pytest.raises(kind, match=message):
            learn_policy(**({"log": log, "context": x, "logging": r, "top": 5, "max_epochs": 1} | change))


def test_a_table_in_another_order_teaches_the_same(world):
    made, rho, log = world
    names = [f"r{i}" for i in range(850)]
    own = BanditLog.of(log.action, log.reward, log.propensity, 60, names)
    x, r = pd.DataFrame(made.context[150:1000], index=names), pd.DataFrame(rho[150:1000], index=names)
    settings = {"top": 5, "max_epochs": 1, "seed": 3}
    first = learn_policy(own, x, r, **settings)
    turned = learn_policy(own, x.sample(frac=1, random_state=0), r.sample(frac=1, random_state=1), **settings)
    pd.testing.assert_frame_equal(first.evaluation.table, turned.evaluation.table)
    assert first.predict(x[:5], r[:5]).rows.tolist() == names[:5]


def test_columns_of_new_contexts_are_found_by_their_names(world):
    made, rho, log = world
    x = pd.DataFrame(made.context[150:1000]).add_prefix("f")
    learned = learn_policy(log, x, rho[150:1000], top=5, max_epochs=1)
    new, r = x[:20], rho[150:170]
    wanted = learned.predict(new, r).probability
    for same in (
        new.iloc[:, ::-1],
        new.assign(more=1.0).iloc[:, ::-1],
        new.to_numpy(),
        new.set_axis(range(new.shape[1]), axis=1),
    ):
        np.testing.assert_array_equal(learned.predict(same, r).probability, wanted)
    for wrong in (new.rename(columns={"f1": "age"}), new.drop(columns="f1")):
        with pytest.raises(ValueError, match="context has no column 'f1', which the policy was learnt from"):
            learned.predict(wrong, r)
    with pytest.raises(ValueError, match="context has several columns 'f0'"):
        learned.predict(new.assign(more=1.0).rename(columns={"more": "f0"}), r)


def test_an_interrupt_passes_on(world, monkeypatch):
    made, rho, log = world
    x, r = made.context[150:1000], rho[150:1000]

    def stop(program, row):
        raise KeyboardInterrupt

    for change in ({}, {"self_normalise": True}, {"top": "auto"}):
        with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
            learn_policy(log, x, r, **({"top": 5, "max_epochs": 2, "callbacks": [stop]} | change))
