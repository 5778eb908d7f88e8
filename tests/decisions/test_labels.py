"""Rejection by class probabilities against brute force, and labels from posteriors of m1m2."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from fieldguide.catalog.m1m2 import M1M2
from fieldguide.decisions import (
    UntrustworthyWeights,
    aurc,
    average_precision,
    class_probabilities,
    decide,
    evaluate_rejection,
    expected_loss,
    reject_option,
    rejection_curve,
    risk_coverage,
)
from fieldguide.inference import ELBO, IWAE, SchemaError, Step, fit, mix
from fieldguide.inference.conformance import check


@st.composite
def probabilities(draw, most=12):
    cells, classes = draw(st.integers(1, most)), draw(st.integers(2, 5))
    seed = draw(st.integers(0, 10_000))
    return np.random.default_rng(seed).dirichlet(np.full(classes, draw(st.sampled_from([0.1, 1.0, 5.0]))), cells)


@given(probabilities(), st.floats(0, 1.5), st.booleans(), st.integers(0, 1000))
def test_the_rule_has_the_least_expected_loss_of_all_actions(p, cost, general, seed):
    classes = p.shape[1]
    loss = np.random.default_rng(seed).uniform(0, 2, (classes, classes)) if general else 1 - np.eye(classes)
    action = decide(p, cost, loss if general else None)
    for row, chosen in zip(p, action, strict=True):
        every = {a: sum(row[c] * loss[a, c] for c in range(classes)) for a in range(classes)} | {-1: cost}
        assert every[chosen] <= min(every.values()) + 1e-9
    if not general:
        np.testing.assert_array_equal(action == -1, p.max(1) <= 1 - cost)


@given(probabilities(), st.floats(0, 1))
def test_dearer_rejection_covers_more_and_never_loses_less(p, cost):
    cheap, dear = reject_option(p, cost), reject_option(p, cost + 0.2)
    assert cheap.settings["coverage"] <= dear.settings["coverage"]
    assert cheap.settings["expected_loss"] <= dear.settings["expected_loss"] + 1e-12
    assert (cheap.table["expected_loss"] <= cheap.table[["loss_best", "loss_reject"]].min(axis=1) + 1e-12).all()
    assert cheap.table["decision"].isna().equals(cheap.table["rejected"])


def test_with_calibrated_probabilities_the_realised_loss_is_the_expected_one():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.3, 0.3, 0.3, 0.3], 40_000)
    truth = (p.cumsum(1) > rng.random(len(p))[:, None]).argmax(1)
    decision = reject_option(p, cost=0.25)
    chosen = decision.table["decision"].astype(object).to_numpy()
    lost = np.where(decision.table["rejected"], 0.25, chosen != truth.astype(str))
    assert abs(lost.mean() - decision.settings["expected_loss"]) < 5 * lost.std() / 200
    other = np.where(p.max(1) <= 0.6, 0.25, p.argmax(1) != truth)
    assert lost.mean() < other.mean(), "another threshold loses more"
    accepted = ~decision.table["rejected"].to_numpy()
    assert abs((chosen == truth.astype(str))[accepted].mean() - p.max(1)[accepted].mean()) < 0.01


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=9), st.randoms())
def test_coverage_grows_and_the_curve_is_the_mean_over_orders_of_ties(pairs, random):
    certainty, wrong = np.array([c for c, _ in pairs]), np.array([w for _, w in pairs])
    coverage, risk = risk_coverage(certainty, wrong)
    assert (np.diff(coverage) > 0).all() and coverage[-1] == 1
    assert risk[-1] == pytest.approx(wrong.mean())
    assert ((risk >= -1e-12) & (risk <= 1 + 1e-12)).all()
    order = list(range(len(wrong)))
    random.shuffle(order)
    np.testing.assert_allclose(risk_coverage(certainty[order], wrong[order])[1], risk)
    rng, runs = np.random.default_rng(0), []
    for _ in range(400):
        ranked = np.lexsort((rng.random(len(wrong)), -certainty))
        runs.append(np.cumsum(wrong[ranked]) / np.arange(1, len(wrong) + 1))
    assert np.abs(np.mean(runs, 0) - risk).max() < 0.15
    assert aurc(certainty, wrong) == pytest.approx(risk.mean())


def test_rejection_curve_against_counting():
    rng = np.random.default_rng(1)
    certainty, unknown = rng.uniform(0.12, 1, 300), rng.random(300) < 0.2
    precision, recall, area = rejection_curve(certainty, unknown)
    for t, p, r in zip(np.linspace(0.1, 1, 20), precision, recall, strict=True):
        rejected = certainty <= t
        assert r == (rejected & unknown).sum() / unknown.sum()
        if rejected.any():
            assert p == unknown[rejected].mean()
    assert recall[-1] == 1 and precision[-1] == pytest.approx(unknown.mean())
    assert area == pytest.approx(sum((precision[1:] + precision[:-1]) / 2 * np.diff(recall)))
    fine = rejection_curve(certainty, unknown, np.sort(certainty))[2]
    assert fine == pytest.approx(average_precision(certainty, unknown), abs=0.02)
    perfect = np.where(unknown, 0.3, 0.9)
    assert average_precision(perfect, unknown) == 1 and rejection_curve(perfect, unknown)[2] == pytest.approx(1)


def test_evaluation_of_known_and_unknown_cells():
    table = pd.DataFrame({"a": [0.9, 0.2, 0.55, 0.6], "b": [0.1, 0.8, 0.45, 0.4]}, index=list("wxyz"))
    decision = evaluate_rejection(table, ["a", "b", "new", "b"])
    assert decision.settings["accuracy"] == pytest.approx(2 / 3) and decision.settings["unknown"] == 1
    assert decision.settings["average_precision"] == 1
    assert decision.table.index.tolist() == ["w", "x", "z", "y"]
    np.testing.assert_allclose(decision.table["risk"], [0, 0, 1 / 3, 1 / 2])
    np.testing.assert_allclose(decision.table["recall"], [1, 1, 1, 0])
    np.testing.assert_allclose(decision.table["precision"], [1 / 3, 1 / 2, 1, np.nan])
    assert len(decision.plot().axes) == 2
    known = evaluate_rejection(table, ["a", "b", "a", "b"])
    assert "recall" not in known.table and len(known.plot().axes) == 1
    decision = reject_option(table, cost=0.3)
    decided = decision.table["decision"].astype(object).where(~decision.table["rejected"], None)
    assert decided.tolist() == ["a", "b", None, None]
    assert decision.table.loc["y", "second"] == "b" and decision.table.loc["y", "margin"] == pytest.approx(0.1)
    assert len(decision.plot().axes) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reject_option([[0.5, 0.5], [np.nan, 1.0]]), "row 1, class 0 is nan"),
        (lambda: reject_option([[0.5, 0.5], [1.5, -0.5]]), "row 1, class 0 is 1.5"),
        (lambda: reject_option([[0.5, 0.5], [0.5, 0.6]]), r"row 1 sum to 1\.1, not to 1"),
        (lambda: reject_option([[1.0], [1.0]]), "1 class.*at least two"),
        (lambda: reject_option(np.zeros((0, 3))), "no cells to decide on"),
        (lambda: reject_option(np.full((2, 2, 2), 0.5)), r"not of shape \(2, 2, 2\)"),
        (lambda: reject_option([[0.5, 0.5]], cost=-1), "cost must be a number of at least 0, not -1"),
        (lambda: reject_option([[0.5, 0.5]], cost=float("nan")), "cost must be a number of at least 0, not nan"),
        (lambda: expected_loss([[0.5, 0.5]], np.zeros((2, 3))), "loss must be an array 2 x 2"),
        (lambda: expected_loss([[0.5, 0.5]], [[0, np.inf], [1, 0]]), "class 0 when 1 is true is not finite"),
        (lambda: reject_option(pd.DataFrame([[0.5, 0.5]], columns=["a", "a"])), "class 'a' has two columns"),
        (lambda: evaluate_rejection([[0.5, 0.5]], []), "truth has 0 values for 1 cells"),
        (lambda: evaluate_rejection([[0.5, 0.5]] * 2, ["0", None]), "label of row 1 is missing"),
        (lambda: evaluate_rejection([[0.5, 0.5]], ["x"]), r"none of the true labels is a class of the model \(0, 1\)"),
        (lambda: average_precision([0.5, 0.6], [False, False]), "no cell is of an unknown class"),
        (lambda: average_precision([0.5, 0.6], [True, True]), "every cell is of an unknown class"),
        (lambda: average_precision([0.5, np.nan], [True, False]), "certainty of row 1 is nan"),
        (lambda: rejection_curve([0.5, 0.6], [True, False], [0.1]), "no threshold rejects a cell"),
        (lambda: risk_coverage([0.5], [0]), "wrong must be true or false"),
        (lambda: risk_coverage([], np.zeros(0, dtype=bool)), "no cells"),
        (lambda: risk_coverage([0.5, 0.1], [True]), "one value a cell each"),
    ],
)
def test_errors_name_the_row_and_the_class(call, message):
    with pytest.raises(ValueError, match=message):
        call()


X, Y = load_digits(return_X_y=True)
X = X[:400] / 16
Y = Y[:400]
SMALL = {"n_hidden": 16, "n_decoder": 16, "n_latent": 4}


def few_labels(seed=0, share=0.5):
    """Labels of some digits from 0 to 8; none of the nines."""
    labels = Y.astype(float)
    labels[(np.random.default_rng(seed).random(len(Y)) > share) | (Y == 9)] = np.nan
    return labels


@pytest.fixture(scope="module")
def fitted():
    return fit("m1m2", {"x": X, "labels": few_labels()}, max_epochs=4, progress=False, **SMALL)


def test_m1m2_conforms_and_so_do_its_options():
    data = {"x": X[:40], "labels": few_labels()[:40]}
    check("m1m2", data, n_hidden=8, n_decoder=8, n_latent=3, labelled=None)
    for arguments in ({"encoder": "conv"}, {"encoder": "mlp"}, {"classes": "drawn"}):
        with pytest.raises(ValueError, match="28 x 28|must be one of"):
            fit("m1m2", data, progress=False, max_epochs=1, **arguments)
    wide = {"x": np.random.default_rng(0).random((24, 784)), "labels": np.arange(24) % 2}
    fitted = fit("m1m2", wide, progress=False, max_epochs=1, encoder="conv", n_decoder=8, n_latent=3)
    assert class_probabilities(fitted.posterior(particles=3)).shape == (24, 2)


def test_labels_are_kept_where_known_and_probabilities_sum_to_one(fitted):
    labels = few_labels()
    posterior = fitted.posterior(particles=30)
    for estimator in ("plugin", "snis"):
        table = class_probabilities(posterior, estimator)
        assert table.columns.tolist() == [str(k) for k in range(9)]
        np.testing.assert_allclose(table.sum(axis=1), 1)
        known = ~np.isnan(labels)
        assert (table.to_numpy()[known, labels[known].astype(int)] > 1 - 1e-6).all()
    unseen = fitted.posterior({"x": X[:5]}, particles=30)
    assert class_probabilities(unseen, "snis").to_numpy().max() < 1 and unseen.n_cells == 5
    assert class_probabilities(unseen, cells=np.array([3, 1])).index.tolist() == [3, 1]
    with pytest.raises(ValueError, match="estimator must be one of snis, plugin, not 'mean'"):
        class_probabilities(posterior, "mean")
    with pytest.raises(ValueError, match="no 'k_guide', the probabilities of an enumerated site; there are c, c_guide"):
        class_probabilities(posterior, site="k")


def test_the_snis_probability_is_the_normalised_estimate_of_each_classs_evidence(fitted):
    posterior = fitted.posterior({"x": X[:3]}, particles=50)
    _, weights, values = next(posterior.chunks())
    joint = torch.logsumexp(weights.log_w.double()[..., None] + values["c_posterior"].double().log(), 0)
    np.testing.assert_allclose(class_probabilities(posterior, "snis"), torch.softmax(joint, -1), atol=1e-6)


def test_a_decision_from_a_posterior_carries_its_diagnostics(fitted):
    posterior = fitted.posterior({"x": X[:60]}, particles=40)
    decision = reject_option(posterior, cost=0.2)
    assert {"khat_median", "ess_median", "shift_median"} <= set(decision.diagnostics.columns)
    assert decision.settings["threshold"] == 0.8 and len(decision.table) == 60
    names = [str(y) for y in Y[:60]]
    evaluated = evaluate_rejection(posterior, names)
    assert evaluated.settings["unknown"] == sum(n == "9" for n in names)
    decision.plot(), evaluated.plot()
    narrow = fit("m1m2", {"x": X, "labels": few_labels()}, max_epochs=1, progress=False, **SMALL)
    with torch.no_grad():
        narrow.program.encoder_z.head.bias[4:] = -6.0
    with pytest.warns(UntrustworthyWeights, match="k-hat is above"):
        reject_option(narrow.posterior({"x": X[:20]}, particles=40), estimator="snis")


def test_the_classification_term_is_in_the_training_loss_and_nowhere_else():
    torch.manual_seed(0)
    data = {"x": torch.as_tensor(X[:50], dtype=torch.float32), "index": torch.arange(50)}
    data["labels"] = torch.as_tensor(np.nan_to_num(few_labels()[:50], nan=-1).astype(int))
    known = data["labels"] >= 0
    losses, bounds = [], []
    for classification in (0.0, 50.0):
        torch.manual_seed(0)
        program = M1M2(64, 9, dropout=0.0, labelled=None, classification=classification, **SMALL)
        program.prepare([data])
        assert float(program.labelled_share) == pytest.approx(float(known.float().mean()))
        torch.manual_seed(1)
        losses.append(program.training_loss(Step(program, data), ELBO(kl="analytic")))
        torch.manual_seed(1)
        bounds.append(IWAE(5)(Step(program, data)))
    torch.testing.assert_close(bounds[0], bounds[1])
    extra = losses[1] - losses[0]
    assert 0.5 * 50 * np.log(9) < float(extra.detach()) < 2 * 50 * np.log(9)
    both = program.train().training_loss(Step(program, data), lambda step: {"theta": 0 * losses[0], "phi": losses[0]})
    assert both["theta"] == 0 and both["phi"] > losses[0]


def test_cells_are_weighted_in_the_gradients_as_the_class_says():
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, -1, -1, -1, -1, -1, -1])
    data = {"x": torch.rand(8, 6), "labels": labels, "index": torch.arange(8)}
    program = M1M2(6, 2, dropout=0.0, classification=0.0, labelled=0.05, **SMALL)
    program.prepare([data])
    torch.manual_seed(1)
    weighted = torch.autograd.grad(program.training_loss(Step(program, data), IWAE(3)), [*program.decoder.parameters()])
    torch.manual_seed(1)
    bound = IWAE(3, "reparam").per_cell(Step(program, data).weights(3))
    wanted = -(bound[labels < 0].mean() + 0.05 * bound[labels >= 0].mean())
    for a, b in zip(weighted, torch.autograd.grad(wanted, [*program.decoder.parameters()]), strict=True):
        torch.testing.assert_close(a, b)


def test_minibatches_estimate_the_loss_of_the_whole_without_bias(monkeypatch):
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self, shape=(): self.loc)
    torch.manual_seed(0)
    data = {"x": torch.rand(12, 6), "labels": torch.tensor([0, 1, 1] + [-1] * 9), "index": torch.arange(12)}
    program = M1M2(6, 2, dropout=0.0, **SMALL)
    program.prepare([data])

    def gradient(batch):
        loss = program.training_loss(Step(program, batch), lambda step: step.batch["x"].sum() * 0)
        return torch.autograd.grad(loss, [program.encoder_c[0].weight])[0]

    parts = [gradient({k: v[i : i + 3] for k, v in data.items()}) for i in range(0, 12, 3)]
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(data))


def test_relaxed_classes_in_training_and_discrete_ones_outside():
    data = {"x": X[:60], "labels": few_labels()[:60]}
    fitted = fit("m1m2", data, objective=ELBO(2), classes="relaxed", max_epochs=3, progress=False, **SMALL)
    assert fitted.program.steps == 3 and fitted.program.temperature == 1
    batch = fitted.dataset.batch(np.arange(6))
    assert Step(fitted.program, batch).weights(2).enumerated == ("c",)
    weights = Step(fitted.program.train(), batch).weights(2)
    c = weights.draws["c"]
    assert weights.enumerated == () and c.shape == (2, 6, 9) and c.requires_grad
    torch.testing.assert_close(c.sum(-1), torch.ones(2, 6))
    free = batch["labels"] < 0
    assert ((c[:, free] > 1e-3).sum(-1) > 1).any(), "draws are inside the simplex, not rounded"
    for gradient in torch.autograd.grad(weights.log_w.sum(), [*fitted.program.encoder_c.parameters()]):
        assert torch.isfinite(gradient).all()
    with torch.no_grad():
        fitted.program.steps.fill_(10_000)
    fitted.program.anneal()
    assert fitted.program.temperature == 0.5
    fitted.program.eval()
    posterior = fitted.posterior({"x": X[:3]}, particles=20)
    np.testing.assert_allclose(class_probabilities(posterior).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("labels", "categories", "missing"),
    [
        ([1.0, np.nan, 10.0, 2.0], ["1", "2", "10"], 1),
        (np.array([1, -1, 10, 2]), ["1", "2", "10"], 1),
        (pd.Categorical(["b", None, "a", "b"]), ["a", "b"], 1),
        (pd.array(["b", None, "a", "b"], dtype="string"), ["a", "b"], 1),
        (pd.Categorical([3, 1, 3, 1]), ["1", "3"], None),
        ([0.5, 1.5, 0.5, np.nan], ["0.5", "1.5"], 3),
    ],
)
def test_labels_of_every_kind_of_column(labels, categories, missing):
    from fieldguide.inference import Labels, Schema

    frame = pd.DataFrame({"labels": labels})
    schema = Schema(labels=Labels("labels")).learn(frame)
    codes = schema.read(frame)["labels"].values
    assert schema.states["labels"]["categories"] == categories
    assert schema.sizes() == {"n_labels": len(categories)}
    assert torch.nonzero(codes < 0).flatten().tolist() == ([] if missing is None else [missing])
    known = codes >= 0
    shown = np.array(categories)[codes[known]]
    assert [str(v).removesuffix(".0") for v in pd.Series(labels)[known.numpy()]] == shown.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(400, np.nan)}, "column 'labels' has no label at all; at least two classes"),
        ({"labels": np.full(400, 3)}, "column 'labels' has only '3'"),
        ({"x": X * 16}, r"row|cell '0', column 2 is 5, outside \[0, 1\]"),
    ],
)
def test_data_that_does_not_fit_says_where(change, message):
    with pytest.raises(SchemaError, match=message):
        fit("m1m2", {"x": X, "labels": few_labels()} | change, progress=False, max_epochs=1, **SMALL)


def test_an_unseen_label_is_an_error_and_no_label_is_none(fitted):
    with pytest.raises(SchemaError, match="label '9' of cell '2' was not in the training data .1 cells.; known: 0, 1"):
        fitted.read({"x": X[:3], "labels": np.array([0, 1, 9])})
    assert (fitted.read({"x": X[:3]}).batch(np.arange(3))["labels"] == -1).all()
    with pytest.raises(ValueError, match="no training cell has a label"):
        rows = np.flatnonzero(~np.isnan(few_labels()))
        fit("m1m2", {"x": X, "labels": few_labels()}, validation=rows, progress=False, max_epochs=1, **SMALL)


def test_classes_from_a_mixture_of_guides(fitted):
    settings = {"max_epochs": 1, "progress": False}
    mixture = mix([fitted, fitted.refit(IWAE(3), guide="student_t", **settings)], prior=0.1)
    posterior = mixture.posterior({"x": X[:6]}, particles=40)
    for estimator in ("plugin", "snis"):
        table = class_probabilities(posterior, estimator)
        np.testing.assert_allclose(table.sum(axis=1), 1)
        assert table.columns.tolist() == [str(k) for k in range(9)]
    assert posterior.draw("c", 5).shape == (5, 6, 9)


@pytest.mark.slow
def test_nines_are_rejected_by_a_model_of_the_other_digits():
    """The reject option of benchmarks/reject_option.py on the 8 x 8 digits."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:900], order[900:]
    labels = np.full(900, np.nan)
    for digit in range(9):
        labels[np.flatnonzero(y[train] == digit)[:40]] = digit
    data = {"x": x[train] / 16, "labels": labels}
    fitted = fit("m1m2", data, max_epochs=60, n_hidden=64, n_decoder=128, progress=False)
    settings = evaluate_rejection(fitted.posterior({"x": x[test] / 16}, particles=25), y[test].astype(str)).settings
    assert settings["accuracy"] > 0.9
    assert settings["average_precision"] > 2 * settings["base_rate"]
    assert settings["aurc"] < 0.08
