"""Logs, off-policy evaluation side by side, intervals, and errors that name the row."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.catalog.data import open_bandit
from fieldguide.decisions import BanditLog, NoSupport, OptimisticValue, evaluate_policy, predict_rewards
from fieldguide.decisions.policies.intervals import interval, standard_error
from fieldguide.decisions.policies.policy import Policy, rank_quantile, ranked

NAMES = ["a", "b", "c"]


def world(n=3000, seed=0):
    """A log in which the context says which action is good, its policies, and the true rewards."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    truth = 1 / (1 + np.exp(-np.stack([-1 + x, -1 - x, np.full(n, -0.5)], 1)))
    rho = np.tile([0.5, 0.3, 0.2], (n, 1))
    pi = np.where(x[:, None] > 0, [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
    action = (rng.random(n)[:, None] > rho.cumsum(1)).sum(1)
    reward = (rng.random(n) < truth[np.arange(n), action]).astype(float)
    log = BanditLog.of(action, reward, rho[np.arange(n), action], NAMES)
    return log, pi, rho, truth, x


def test_all_estimators_side_by_side():
    log, pi, rho, truth, x = world()
    q = predict_rewards(log, np.c_[x, x**2])
    found = evaluate_policy(log, pi, logging=rho, top=2, reward_model=q, seed=1)
    assert set(found.table.index) == {
        *("logging", "ips", "clipped", "snips", "translated", "dm", "dr", "switch_dr", "shrinkage_dr", "sis", "dr_sis")
    }
    whole, inside = (pi * truth).sum(1).mean(), (pi[:, :2] * truth[:, :2]).sum(1).mean() / 0.9
    for name in ("ips", "snips", "dr"):
        assert abs(found.table.loc[name, "value"] - whole) < 3.5 * found.table.loc[name, "se"] < 0.1
    for name in ("sis", "dr_sis"):
        assert abs(found.table.loc[name, "value"] - inside) < 3.5 * found.table.loc[name, "se"] < 0.1
    weights = found.diagnostics
    assert weights.loc["ips", "mean_weight"] == pytest.approx(1, abs=0.1)
    assert weights["khat"].isna().all()  # three policies' worth of weights: no tail
    assert weights.loc["ips", "set_mass"] == pytest.approx(0.9)
    assert found.table.loc["logging", "value"] == log.reward.mean()
    assert len(found.plot().axes) == 2


def test_intervals_cover():
    hits = {"bootstrap": 0, "normal": 0, "bernstein": 0}
    for seed in range(40):
        log, pi, _, truth, _ = world(400, seed)
        for method in hits:
            row = evaluate_policy(log, pi, estimators=["ips"], interval=method, resamples=400, seed=seed).table.loc[
                "ips"
            ]
            hits[method] += row["low"] <= (pi * truth).sum(1).mean() <= row["high"]
    assert hits["bootstrap"] >= 33 and hits["normal"] >= 33  # of 40 at 95 %: fewer has probability 0.0007
    assert hits["bernstein"] >= hits["normal"]


def test_interval_formulas():
    rng = np.random.default_rng(0)
    top, bottom = torch.tensor(rng.random(500)), torch.tensor(rng.uniform(0.5, 1.5, 500))
    se = standard_error(top)
    assert se == pytest.approx(float(top.std()) / 500**0.5)
    low, high = interval(top, method="normal", level=0.9)
    assert (high - low) / 2 == pytest.approx(1.6449 * se, rel=1e-3)
    drawn = [float(top[i].mean() / bottom[i].mean()) for i in rng.integers(500, size=(4000, 500))]
    assert standard_error(top, bottom) == pytest.approx(np.std(drawn), rel=0.08)
    ends = interval(top, bottom, method="bootstrap", resamples=4000)
    assert ends == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.003)
    narrow = interval(top, method="bernstein", reach=(0.0, 1.0))
    logs = np.log(4 / 0.05)
    assert (narrow[1] - narrow[0]) / 2 == pytest.approx(
        (2 * float(top.var()) * logs / 500) ** 0.5 + 7 * logs / (3 * 499)
    )
    assert all(np.isnan(interval(top[:1])))
    with pytest.raises(ValueError, match="interval must be one of"):
        interval(top, method="exact")


def test_tables_are_read_by_name():
    log, pi, *_ = world(50)
    frame = pd.DataFrame(
        {"arm": log.actions[log.action[:, 0]], "won": log.reward[:, 0], "p": log.propensity[:, 0]},
        index=[f"u{i}" for i in range(50)],
    )
    again = BanditLog.read(frame, "arm", "won", "p")
    assert (again.action == log.action).all() and list(again.actions) == NAMES and again.rows[3] == "u3"
    from_cells = BanditLog.read(anndata.AnnData(np.zeros((50, 1)), obs=frame), "arm", "won", "p")
    assert (from_cells.action == log.action).all()
    wanted = evaluate_policy(log, pi).table.loc["ips", "value"]
    policy = pd.DataFrame(pi, index=frame.index, columns=NAMES)
    shuffled = policy[["c", "a", "b"]].sample(frac=1, random_state=0)
    assert evaluate_policy(again, shuffled).table.loc["ips", "value"] == pytest.approx(wanted)
    same = pd.Series({"b": 0.2, "a": 0.5, "c": 0.3})
    assert evaluate_policy(again, same).table.loc["ips", "value"] == pytest.approx(
        evaluate_policy(log, [0.5, 0.2, 0.3]).table.loc["ips", "value"]
    )
    part = again.take(np.arange(50) % 2 == 0)
    assert len(part) == 25 and part.rows[1] == "u2"


def test_slates_without_replacement():
    rng = np.random.default_rng(0)
    n, k = 6000, 5
    rho, pi, truth = rng.dirichlet(np.full(k, 3.0)), rng.dirichlet(np.full(k, 3.0)), rng.random(k)
    slate = np.argsort(-(np.log(rho) + rng.gumbel(size=(n, k))), 1)[:, :3]
    log = BanditLog.of(slate, rng.random((n, 3)) < truth[slate], rho[slate], k, design="plackett_luce")
    row = evaluate_policy(log, pi, estimators=["ips"], interval="normal").table.loc["ips"]
    assert abs(row["value"] - pi @ truth) < 3.5 * row["se"]
    wrong = evaluate_policy(
        BanditLog.of(slate, log.reward, rho[slate], k), pi, estimators=["ips"], interval="normal"
    ).table.loc["ips"]
    assert abs(wrong["value"] - pi @ truth) > 5 * wrong["se"]  # as if drawn independently


def test_what_cannot_be_trusted_is_said():
    unnamed, pi, *_ = world(300)
    rows = [f"u{i}" for i in range(300)]
    log = BanditLog.of(unnamed.action, unnamed.reward, unnamed.propensity, NAMES, rows)
    policy = pd.DataFrame(pi, columns=NAMES, index=rows)
    policy.attrs["trained_on"] = rows[:100]
    with pytest.warns(OptimisticValue, match="100 of 300 rows of this log chose the policy"):
        evaluate_policy(log, policy)
    policy.attrs["trained_on"] = ["v0"]
    evaluate_policy(log, policy)
    missing = BanditLog.of(log.action, log.reward, log.propensity, [*NAMES, "d"])
    with pytest.warns(NoSupport, match="50% of the policy is on actions that the log never takes"):
        evaluate_policy(missing, [0.5, 0, 0, 0.5])
    shut = np.tile([0.5, 0.3, 0.2], (300, 1))
    open_too = np.where(np.arange(300)[:, None] % 2, shut, [0.6, 0.4, 0.0])  # in every other context c is never taken
    action = np.where(np.arange(300) % 2, 2, 0)
    partly = BanditLog.of(action, np.ones(300), open_too[np.arange(300), action], NAMES)
    with pytest.warns(NoSupport, match="45% of the policy is on actions that the log never takes"):
        found = evaluate_policy(partly, [0.1, 0.0, 0.9], logging=open_too)
    assert found.diagnostics.loc["ips", "unsupported"] == pytest.approx(0.45)
    assert evaluate_policy(partly, [0.1, 0.0, 0.9]).diagnostics.loc["ips", "unsupported"] == 0  # all occur somewhere
    never = BanditLog.of([0, 1] * 30, [0, 1] * 30, [0.5] * 60, 3)
    with pytest.warns(NoSupport) as said:
        nothing = evaluate_policy(never, [0, 0, 1.0], logging=[0.5, 0.5, 0], top=1).table
    assert nothing.loc["snips", ["value", "low", "high"]].isna().all() and nothing.loc["ips", "value"] == 0
    assert any("in 60 of 60 contexts the policy takes no action of the selected set" in str(w.message) for w in said)
    assert not any(issubclass(w.category, RuntimeWarning) for w in said)
    rng = np.random.default_rng(0)
    heavy = np.minimum(rng.pareto(0.8, 2000) + 1, 1e5)
    thin = BanditLog.of(np.zeros(2000, int), np.ones(2000), 1 / heavy, ["a"])
    with pytest.warns(NoSupport, match="no usable tail"):
        evaluate_policy(thin, [1.0], estimators=["ips"])


def test_sets_and_ranks():
    rho = np.array([[0.1, 0.4, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1]])
    assert ranked(rho).tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]  # ties by the code of the action
    whole = Policy.read(rho, 4, 2)
    few = whole.top(2)
    assert few.codes.tolist() == [[1, 2], [0, 1]] and few.place([[2, 3], [1, 0]]).tolist() == [[1, -1], [1, 0]]
    assert np.allclose(few.at([[2, 3], [1, 0]]), [[0.4, 0.0], [0.1, 0.7]])
    assert few.top(1).codes.tolist() == [[1], [0]] and few.frame().to_numpy().sum() == pytest.approx(1.6)
    assert few.total([1.0, 2.0, 3.0, 4.0]).tolist() == pytest.approx([2.0, 0.9])
    assert few.total(rho).tolist() == pytest.approx([0.32, 0.5])
    none = Policy.read([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], 4, 2)
    assert few.on(none).tolist() == pytest.approx([0, 0.1]) and none.on(few).tolist() == [0, 1]
    assert whole.on(none).tolist() == pytest.approx([0.1, 0.1])
    assert whole.on(none.top(3)).tolist() == pytest.approx([0.1, 0.1])  # candidates that are never taken do not count
    assert few.on(none.top(1)).tolist() == pytest.approx([0, 0.1])
    assert Policy.read(few, pd.RangeIndex(4), pd.Index([1, 0])).codes.tolist() == [[0, 1], [1, 2]]
    with pytest.raises(ValueError, match="policy has no row 5"):
        few.aligned(pd.RangeIndex(4), pd.Index([5]))
    with pytest.raises(ValueError, match="policy is over 4 actions, which are not the 3 of the log"):
        few.aligned(pd.RangeIndex(3), pd.RangeIndex(2))
    assert rank_quantile([[1], [3], [5], [9]], [[1], [1], [1], [0]], 0.6) == 3
    assert rank_quantile([[1], [1]], [[1], [1]], least=5) == 5
    with pytest.raises(ValueError, match="no logged item was rewarded"):
        rank_quantile([[1]], [[0]])
    with pytest.raises(ValueError, match="top must be between 1 and 4 actions"):
        whole.top(5)


def test_rewards_are_predicted_by_models_that_did_not_see_the_row():
    log, _, _, truth, x = world(2000)
    q = predict_rewards(log, np.c_[x], folds=4)
    assert list(q.columns) == NAMES and np.abs(q["c"].mean() - truth[:, 2].mean()) < 0.06
    changed = BanditLog.of(log.action, np.r_[1 - log.reward[:1], log.reward[1:]], log.propensity, NAMES)
    assert np.allclose(predict_rewards(changed, np.c_[x], folds=4).iloc[0], q.iloc[0])
    smooth = BanditLog.of(log.action, log.reward + 0.5, log.propensity, NAMES)
    assert np.abs(predict_rewards(smooth, x).mean().mean() - 0.5 - q.mean().mean()) < 0.05
    with pytest.raises(ValueError, match="context of row 1, column 0 is nan"):
        predict_rewards(log, np.where(np.arange(2000) == 1, np.nan, x))
    with pytest.raises(ValueError, match="context has 3 rows, the log 2000"):
        predict_rewards(log, np.zeros(3))
    with pytest.raises(ValueError, match="folds must be between 2"):
        predict_rewards(log, x, folds=1)
    with pytest.raises(ValueError, match="all rewards are 0"):
        predict_rewards(BanditLog.of([0, 1], [0, 0], [0.5, 0.5], 2), [0.0, 1.0], folds=2)


GOOD = {"action": [0, 1], "reward": [0.0, 1.0], "propensity": [0.5, 0.5], "actions": ["a", "b"], "rows": ["u", "v"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": [0.0, np.nan]}, "reward of row 'v' is nan, not a number"),
        ({"propensity": [0.5, 0.0]}, r"propensity of row 'v' is 0.0, not in \(0, 1\]"),
        ({"propensity": [1.5, 0.5]}, r"propensity of row 'u' is 1.5, not in \(0, 1\]"),
        ({"action": [0, 2]}, "action of row 'v' is 2, not one of 2"),
        ({"action": [], "reward": [], "propensity": [], "rows": []}, "the log is empty"),
        ({"reward": [0.0]}, "differ in shape"),
        ({"actions": ["a", "a"]}, "action 'a' is there more than once"),
        ({"design": "cascade"}, "design must be one of iid, plackett_luce"),
        (
            {
                "action": [[0, 1], [1, 1]],
                "reward": np.ones((2, 2)),
                "propensity": np.full((2, 2), 0.4),
                "design": "plackett_luce",
            },
            "an action is twice in the slate of row 'v'",
        ),
        (
            {
                "action": [[0, 1], [1, 0]],
                "reward": np.ones((2, 2)),
                "propensity": [[0.5, 0.5], [0.5, 0.9]],
                "design": "plackett_luce",
            },
            "propensities of row 'v' sum to 1.4",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_logs(change, message):
    with pytest.raises(ValueError, match=message):
        BanditLog.of(**(GOOD | change))


def test_bad_tables_and_policies():
    table = pd.DataFrame({"action": ["a", "b"], "reward": [0, 1], "propensity": [0.5, 0.5]}, index=["u", "v"])
    with pytest.raises(ValueError, match="no column 'click'; there are action, reward, propensity"):
        BanditLog.read(table, reward="click")
    with pytest.raises(ValueError, match="action of row 'v' is 'b', not an action"):
        BanditLog.read(table, actions=["a", "c"])
    with pytest.raises(ValueError, match="the log is empty"):
        BanditLog.read(table.iloc[:0], actions=["a"])
    with pytest.raises(TypeError, match="data must be a DataFrame or AnnData, not list"):
        BanditLog.read([1])
    log = BanditLog.read(table)
    for policy, message in (
        ([0.5, 0.6], "policy: probabilities of row 'u' sum to 1.1, not to 1"),
        ([-0.5, 1.5], "policy: probability of action 'a' in row 'u' is -0.5"),
        ([0.5, np.nan], "policy of row 'u', action 'b' is not a number"),
        ([1.0], r"policy must be of shape \(2, 2\) or \(2,\)"),
        (pd.DataFrame({"a": [1.0, 1.0]}, index=["u", "v"]), "policy has no column for action 'b'"),
        (pd.DataFrame({"a": [1.0, 1.0], "b": 0.0}, index=["u", "w"]), "policy has no row 'v'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_policy(log, policy)
    with pytest.raises(ValueError, match="top needs logging"):
        evaluate_policy(log, [0.5, 0.5], top=1)
    with pytest.raises(ValueError, match="logging says 0.9 for the action of row 'u', the log 0.5"):
        evaluate_policy(log, [0.5, 0.5], top=1, logging=[0.9, 0.1])
    with pytest.raises(ValueError, match="no estimator 'best'"):
        evaluate_policy(log, [0.5, 0.5], estimators=["best"])
    with pytest.raises(ValueError, match="DR needs a reward model"):
        evaluate_policy(log, [0.5, 0.5], estimators=["dr"])


def shop(name):
    """The impressions at one position, and the log of them."""
    data = open_bandit(name)
    data = data[data["position"] == 1]
    return data, BanditLog.read(data, "item_id", "click", "propensity_score", actions=range(80))


def test_two_policies_of_a_real_shop_find_each_other():
    (random, log), (learned, theirs) = shop("random"), shop("bts")
    frequency = learned["item_id"].value_counts(normalize=True).reindex(range(80), fill_value=0.0)
    found = evaluate_policy(log, frequency, estimators=["ips", "snips"]).table
    rate = learned["click"].mean()
    assert (found.loc[["ips", "snips"], "low"] <= rate).all() and (rate <= found.loc[["ips", "snips"], "high"]).all()
    with pytest.warns(NoSupport):  # Thompson sampling hardly ever shows some items
        back = evaluate_policy(theirs, np.full(80, 1 / 80), estimators=["snips"]).table.loc["snips"]
    assert back["low"] <= random["click"].mean() <= back["high"]


def test_a_log_without_rows_is_refused():
    log = BanditLog.of(action=[0, 1], reward=[0, 1], propensity=[0.5, 0.5], actions=2)
    with pytest.raises(ValueError, match="rows is a mask that holds none of the 2 contexts"):
        log.take([False, False])
    none = BanditLog(log.action[:0], log.reward[:0], log.propensity[:0], log.actions, log.rows[:0])
    with pytest.raises(ValueError, match="the log has no rows"):
        evaluate_policy(none, [0.5, 0.5])
