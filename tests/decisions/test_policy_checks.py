"""What logs and policies are taken for: tables in any order, names that are none, rewards of classifiers."""

import numpy as np
import pandas as pd
import pytest

from fieldguide.decisions import BanditLog, OptimisticValue, evaluate_policy, predict_rewards
from fieldguide.decisions.policies.estimators import SNIPS, ClippedIPS, ShrinkageDR, SwitchDR, Translated
from fieldguide.decisions.policies.policy import Policy, rank_quantile
from fieldguide.inference.checks.aligning import aligned, order_of, unnamed

ROWS, ACTIONS = [f"r{i}" for i in range(60)], ["a", "b", "c"]


def tables(seed=0):
    """A table of a log, the policy that drew it, another one, and a context."""
    rng = np.random.default_rng(seed)
    logging = pd.DataFrame(rng.dirichlet(np.ones(3), 60), index=ROWS, columns=ACTIONS)
    action = [rng.choice(3, p=p) for p in logging.to_numpy()]
    table = pd.DataFrame({"action": np.array(ACTIONS)[action], "reward": rng.random(60)}, index=ROWS)
    table["propensity"] = logging.to_numpy()[np.arange(60), action]
    policy = pd.DataFrame(rng.dirichlet(np.ones(3), 60), index=ROWS, columns=ACTIONS)
    return table, logging, policy, pd.DataFrame(rng.normal(size=(60, 2)), index=ROWS)


def shuffled(table):
    return table.sample(frac=1, random_state=1)


def test_tables_in_another_order_are_found_by_name():
    table, logging, policy, context = tables()
    log = BanditLog.read(table)
    model = predict_rewards(log, context)
    settings = {"logging": logging, "top": 2, "reward_model": model, "resamples": 20}
    wanted = evaluate_policy(log, policy, **settings).table
    turned = {"logging": shuffled(logging)[["c", "a", "b"]], "top": 2, "reward_model": shuffled(model), "resamples": 20}
    pd.testing.assert_frame_equal(evaluate_policy(log, shuffled(policy)[["b", "c", "a"]], **turned).table, wanted)
    pd.testing.assert_frame_equal(predict_rewards(log, shuffled(context)), model)
    numbered = evaluate_policy(log, policy.reset_index(drop=True), **settings).table  # numbers of pandas: by position
    pd.testing.assert_frame_equal(numbered, wanted)
    with pytest.raises(ValueError, match="context has no row for 'r0', one of the rows of the log"):
        predict_rewards(log, context[1:])
    with pytest.raises(ValueError, match="policy has no row 'r0'"):
        evaluate_policy(log, policy[1:])
    with pytest.raises(ValueError, match="policy has several rows for 'r1'"):
        evaluate_policy(log, pd.concat([policy, policy[1:2]]))


def test_parts_of_a_log_are_aligned_with_each_other():
    table, *_ = tables()
    codes = pd.Series(pd.Categorical(table["action"], ACTIONS).codes, index=ROWS).astype(int)
    log = BanditLog.of(codes, shuffled(table["reward"]), shuffled(table["propensity"]), ACTIONS)
    assert log.rows.tolist() == ROWS and log.reward[:, 0].tolist() == table["reward"].tolist()
    with pytest.raises(ValueError, match="reward has no row for 'r0'"):
        BanditLog.of(codes, table["reward"][1:], table["propensity"], ACTIONS)


def test_rows_that_are_taken_from_a_log_are_there():
    table, *_ = tables()
    log = BanditLog.read(table, "action", "reward", "propensity", actions=ACTIONS)
    mask = pd.Series(np.arange(len(log)) == 1, index=log.rows)
    assert log.take(shuffled(mask)).rows.tolist() == log.take([1]).rows.tolist() == [log.rows[1]]
    for rows in ([-1], [len(log)], [0.5], [True], "r0"):
        with pytest.raises((ValueError, TypeError), match=r"rows (must be row numbers|is a mask of length)"):
            log.take(rows)


def test_actions_that_are_numbers_or_text_of_them_are_the_same():
    table, logging, policy, _ = tables()
    numbers = dict(zip(ACTIONS, range(3), strict=True))
    log = BanditLog.read(table.assign(action=table["action"].map(numbers)))
    text = policy.rename(columns={name: str(code) for name, code in numbers.items()})
    wanted = evaluate_policy(BanditLog.read(table), policy, resamples=20).table
    pd.testing.assert_frame_equal(evaluate_policy(log, text, resamples=20).table, wanted)


def test_automatic_numbers_are_no_names():
    table, _, policy, _ = tables()
    policy.attrs["trained_on"] = list(range(30))
    first = BanditLog.read(table.reset_index(drop=True))
    found = evaluate_policy(first, policy.to_numpy(), resamples=20)
    assert first.numbered and first.take([3, 4]).numbered and not any("no names" in note for note in found.notes)
    frame = policy.reset_index(drop=True)
    frame.attrs["trained_on"] = list(range(30))
    assert any("have no names" in note for note in evaluate_policy(first, frame, resamples=20).notes)  # and no warning
    policy.attrs["trained_on"] = ROWS[:9]
    with pytest.warns(OptimisticValue, match="9 of 60 rows"):
        evaluate_policy(BanditLog.read(table), policy, resamples=20)


def test_concatenated_logs_are_numbered_anew():
    table, _, policy, context = tables()
    halves = [part.reset_index(drop=True) for part in (table[:25], table[25:])]
    both = BanditLog.read(pd.concat(halves))
    assert both.numbered and both.rows.equals(pd.RangeIndex(60))
    pieces = pd.concat([part.reset_index(drop=True) for part in (policy[:25], policy[25:])])
    wanted = evaluate_policy(BanditLog.read(table), policy, resamples=20).table
    pd.testing.assert_frame_equal(evaluate_policy(both, pieces, resamples=20).table, wanted)
    assert len(
        predict_rewards(both, pd.concat([context[:25].reset_index(drop=True), context[25:].reset_index(drop=True)]))
    )
    assert unnamed(pd.Index([0, 1, 2, 0, 1])) and not unnamed(pd.Index([0, 1, 3, 0])) and not unnamed(pd.Index([1, 2]))
    assert order_of("x", pd.Index([2, 0, 1]), pd.RangeIndex(3)).tolist() == [1, 2, 0]  # a permutation is one of names


@pytest.mark.parametrize("values", [(0.0, 5.0), (-1.0, 1.0), (0.0, 1.0, 2.0)])
def test_a_classifier_predicts_the_expected_reward(values):
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    reward = rng.choice(values, size=400, p=np.arange(1, len(values) + 1) / sum(range(1, len(values) + 1)))
    log = BanditLog.of(rng.integers(2, size=400), reward, np.full(400, 0.5), 2)
    found = predict_rewards(log, np.zeros((400, 1)), DummyClassifier(strategy="prior"))
    assert found.to_numpy().mean() == pytest.approx(reward.mean(), abs=1e-9 + 0.02 * np.ptp(values))
    piped = predict_rewards(log, np.zeros((400, 1)), make_pipeline(StandardScaler(), LogisticRegression()))
    assert np.abs(piped.to_numpy() - reward.mean()).max() < 0.2 * np.ptp(values)


def test_models_that_cannot_give_an_expected_reward_are_refused():
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    table, _, _, context = tables()
    log = BanditLog.read(table)
    for model, message in (
        (LogisticRegression(), "LogisticRegression is a classifier, and the rewards take 60 values: give a regressor"),
        (LinearSVC(), "LinearSVC has no predict_proba"),
        ("ridge", "model must be a scikit-learn estimator, not str"),
    ):
        with pytest.raises(TypeError, match=message):
            predict_rewards(log, context, model)
    for change, kind, message in (
        ({"folds": 2.5}, TypeError, "folds must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be a whole number"),
        ({"context": context.assign(z="x")}, TypeError, "context must hold numbers: row 'r0', column 'z' is 'x'"),
        ({"log": table}, TypeError, "log must be a BanditLog, not DataFrame"),
    ):
        with pytest.raises(kind, match=message):
            predict_rewards(**({"log": log, "context": context} | change))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"log": None}, TypeError, "log must be a BanditLog .* not NoneType"),
        ({"policy": "best"}, TypeError, "policy must be a table of probabilities, not 'best'"),
        ({"policy": [0.5, "x", 0.5]}, TypeError, "policy must hold numbers; one value is 'x'"),
        ({"estimators": []}, ValueError, "estimators is empty"),
        ({"estimators": "ips"}, TypeError, r"estimators must be a list of names such as \['ips', 'snips'\], not 'ips'"),
        ({"estimators": {"mine": 3}}, TypeError, "estimators: 'mine' is 3, not an estimator"),
        ({"level": "a"}, TypeError, "level must be a number in .0, 1."),
        ({"resamples": 0}, ValueError, "resamples must be a whole number of at least 1, not 0"),
        ({"resamples": 10.5}, TypeError, "resamples must be a whole number"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
        ({"top": 1.5}, TypeError, "top must be a whole number, not 1.5"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:30],
)
def test_what_an_evaluation_refuses(change, kind, message):
    table, logging, policy, _ = tables()
    arguments = {"log": BanditLog.read(table), "policy": policy, "logging": logging} | change
    with pytest.raises(kind, match=message):
        evaluate_policy(**arguments)


def test_logs_that_name_no_action():
    table, *_ = tables()
    for change, kind, message in (
        ({"action": [None, *table["action"][1:]]}, ValueError, "action of row 'r0' is missing, not an action"),
        (
            {"action": [7, *table["action"][1:]]},
            TypeError,
            "action holds names of actions of several types",
        ),
        (
            {"reward": ["x", *table["reward"][1:]]},
            TypeError,
            "reward must hold numbers: row 'r0', column 'reward' is 'x'",
        ),
    ):
        with pytest.raises(kind, match=message):
            BanditLog.read(table.assign(**{name: pd.Series(v, ROWS, object) for name, v in change.items()}))
    with pytest.raises(ValueError, match="actions: action 'a' is there more than once"):
        BanditLog.read(table, actions=[*ACTIONS, "a"])
    with pytest.raises(ValueError, match="action of row 0 is 0.5, not a whole number"):
        BanditLog.of([0.5, 1], [0, 1], [0.5, 0.5], 2)
    with pytest.raises(ValueError, match="rows are 3 names for 2 contexts"):
        BanditLog.of([0, 1], [0, 1], [0.5, 0.5], 2, rows=list("abc"))


def test_settings_of_estimators_and_shares():
    for make, message in (
        (lambda: ClippedIPS(cap=0), "ClippedIPS: cap must be a number above 0"),
        (lambda: Translated(translation=np.nan), "Translated: translation must be a number"),
        (lambda: SwitchDR(threshold=-1), "SwitchDR: threshold must be a number of at least 0"),
        (lambda: ShrinkageDR(strength=np.inf), "ShrinkageDR: strength must be a number of at least 0"),
        (lambda: SNIPS(slates="best"), "SNIPS: slates must be one of murthy, des_raj"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    ranks = np.arange(1, 101)[:, None]
    for share in np.arange(1, 101) / 100:  # 0.07 * 100 is 7.000000000000001
        assert rank_quantile(ranks, np.ones((100, 1)), float(share)) == round(100 * share)


def test_numbers_in_another_order_are_names_also_as_text():
    """Actions "0", "1", "10", "11", "2", ... beside a table that pandas numbered 0..11."""
    action = np.arange(240) % 12
    log = BanditLog.read(pd.DataFrame({"action": action.astype(str), "reward": action == 2, "propensity": 1 / 12}))
    policy = np.eye(12)[2]
    for table in (pd.DataFrame([policy]), pd.DataFrame([policy], columns=map(str, range(12))), pd.Series(policy)):
        assert evaluate_policy(log, table, interval="normal").table.loc["snips", "value"] == 1
    shares = pd.Series([1 / 3, 2 / 3, 1])
    kept = BanditLog.of([0, 1, 2], [1, 2, 3], shares, 3, rows=["10", "11", "12"])  # a subset: by position
    assert kept.propensity[:, 0].tolist() == shares.tolist()
    for rows in ([2, 0, 1], ["2", "0", "1"]):
        for action, given in (([0, 1, 2], rows), (pd.Series([0, 1, 2], index=rows), None)):
            log = BanditLog.of(action, pd.Series([10.0, 20.0, 30.0]), [0.3] * 3, 3, rows=given)
            assert log.reward[:, 0].tolist() == [30, 10, 20]
            assert log.context(pd.DataFrame({"x": [10.0, 20.0, 30.0]}))[:, 0].tolist() == [30, 10, 20]
    assert order_of("x", pd.RangeIndex(3), pd.Index(["2", "0", "1"])).tolist() == [2, 0, 1]
    assert aligned("x", pd.Series([7, 8, 9]), pd.Index(["2", "0", "1"])).tolist() == [9, 7, 8]
    assert aligned("x", pd.Series([7, 8, 9], index=["2", "0", "1"]), None).tolist() == [8, 9, 7]


def test_labels_of_actions_and_rows_are_found_however_they_are_written():
    action = np.arange(60) % 3
    table = pd.DataFrame({"action": action, "reward": action == 2, "propensity": 1 / 3})
    policy = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(3), 60), columns=list("123"))
    wanted = evaluate_policy(BanditLog.read(table), policy.set_axis(range(3), axis=1), interval="normal").table
    for log in (BanditLog.read(table.assign(action=action + 1.0)), BanditLog.read(table.assign(action=action + 1))):
        pd.testing.assert_frame_equal(evaluate_policy(log, policy, interval="normal").table, wanted)
    text = BanditLog.read(table, actions=["0", "1", "2"])
    assert text.action[:, 0].tolist() == action.tolist() and text.actions.tolist() == ["0", "1", "2"]
    assert BanditLog.read(table, ["action"], np.array(["reward"]), pd.Index(["propensity"])).reward.sum() == 20
    rows = BanditLog.read(table.set_axis(np.arange(60) + 1.0))
    for index in (np.arange(60) + 1, (np.arange(60) + 1).astype(str)):
        moved = policy.set_axis(index).set_axis(range(3), axis=1)[::-1]
        pd.testing.assert_frame_equal(evaluate_policy(rows, moved, interval="normal").table, wanted)
    levels = pd.MultiIndex.from_product([range(6), range(10)])
    several = BanditLog.read(table.set_axis(levels))
    named = policy.set_axis(levels).set_axis(range(3), axis=1)
    pd.testing.assert_frame_equal(evaluate_policy(several, named, interval="normal").table, wanted)
    with pytest.raises(TypeError, match="policy: names of rows of several levels .MultiIndex. cannot be matched"):
        evaluate_policy(several, named[::-1])


def test_tables_without_names_that_are_longer_than_the_log_are_refused():
    table, logging, policy, _ = tables()
    log = BanditLog.read(table[::2].reset_index(drop=True), actions=ACTIONS)
    whole = policy.reset_index(drop=True)
    for given in ({"policy": whole}, {"policy": policy[::2], "reward_model": whole}, {"logging": whole}):
        usual = {"policy": np.full(3, 1 / 3)} | {k: v.reset_index(drop=True) for k, v in given.items()}
        with pytest.raises(ValueError, match=f"{[*given][-1]} has 60 .* for 30 rows, and both are numbered by pandas"):
            evaluate_policy(log, interval="normal", **usual)
    with pytest.raises(ValueError, match="policy has 60"):
        evaluate_policy(log, Policy.read(whole, log.actions, 60))
    first = BanditLog.read(table.reset_index(drop=True)).take(range(30))  # numbers of a log that it is a part of
    named = evaluate_policy(BanditLog.read(table[:30]), policy, interval="normal").table
    pd.testing.assert_frame_equal(evaluate_policy(first, whole, interval="normal").table, named)


def test_candidates_are_found_by_the_names_of_rows_and_actions():
    log = BanditLog.of([0, 1, 2, 0], [0, 1, 2, 3], [0.5, 0.3, 0.2, 0.5], list("xyz"), rows=list("abcd"))
    rho = pd.DataFrame([[0.1, 0.2, 0.7], [0.3, 0.2, 0.5], [0.2, 0.5, 0.3], [0.5, 0.3, 0.2]], list("dcba"), list("xyz"))
    wanted = log.within(Policy.read(rho, list("xyz"), list("abcd")).top(2))
    for actions in ("xyz", "zxy"):
        found = log.within(Policy.read(rho, list(actions), list("dcba")).top(2))
        assert found.place.tolist() == wanted.place.tolist() == [[0], [0], [0], [-1]]
        np.testing.assert_array_equal(found.candidates.codes, wanted.candidates.codes)
    for actions, rows, message in (
        ("xyw", "abcd", "candidates is over 3 actions, which are not the 3 of the log"),
        ("xyz", "abce", "candidates has no row 'd'"),
    ):
        other = Policy.read(np.full(3, 1 / 3), list(actions), list(rows)).top(2)
        with pytest.raises(ValueError, match=message):
            log.within(other)
    with pytest.raises(TypeError, match="candidates must be a Policy"):
        log.within(rho)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: BanditLog.of([0, 1], [0, 1], [0.5] * 2, "ab"), TypeError, "actions must be a list of names.*'ab'"),
        (lambda: BanditLog.of([0, 1], [0, 1], [0.5] * 2, 2.0), TypeError, "actions must be a list of names.*2.0"),
        (lambda: BanditLog.of([0], [0], [0.5], 2, rows="a"), TypeError, "rows must be a list of names"),
        (
            lambda: BanditLog.of([0, 1], np.ma.masked_array([1.0, 999.0], [0, 1]), [0.5] * 2, 2),
            ValueError,
            r"reward: the value at \[1\] is masked",
        ),
        (
            lambda: BanditLog.read(slates(), ["a", "b"], ["r", "s"], ["p", "p"], design="plackett_luce"),
            ValueError,
            "actions must list all actions of a design without replacement",
        ),
        (lambda: BanditLog.read(slates(), [["a"]], "r", "p"), ValueError, r"no column \['a'\]; there are a, b"),
        (lambda: predict_rewards(simple(), np.zeros((4, 1)), dict), TypeError, "not the class dict: make one, dict()"),
        (lambda: evaluate_policy(simple(), [0.5, 0.5], estimators=[["ips"]]), ValueError, "no estimator .'ips'."),
    ],
)
def test_arguments_that_are_none(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
    assert len(BanditLog.of([0, 1], [0, 1], [0.5, 0.5], np.int64(2)).actions) == 2
    items = BanditLog.read(slates(), ["a", "b"], ["r", "s"], ["p", "p"], [0, 1, 2], design="plackett_luce")
    assert len(items.actions) == 3


def slates():
    return pd.DataFrame({"a": [0, 1], "b": [1, 2], "r": [0, 1], "s": [0, 1], "p": [0.3, 0.3]})


def simple():
    return BanditLog.of([0, 1, 0, 1], [0, 1, 1, 0], [0.5] * 4, 2)
