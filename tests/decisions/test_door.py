"""Rows, labels, names and numbers that decisions are asked with: read right, or refused by name."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.decisions import (
    causal_graph,
    decide,
    denoised_expression,
    differential_expression,
    evaluate_rejection,
    fdr_values,
    graph_ensemble,
    graph_scores,
    impute,
    independence,
    posterior_predictive_check,
    reject_option,
    relabel,
    risk_coverage,
    suspects,
    true_labels,
)
from fieldguide.decisions.cells import require_posterior
from fieldguide.inference import fit
from fieldguide.inference.checks.rows import row_numbers


@pytest.fixture(scope="module")
def posterior():
    rng = np.random.default_rng(0)
    level = np.arange(40) % 2
    counts = rng.poisson(np.where(level[:, None] == 1, [9, 3, 3, 3], [3, 3, 3, 9])).astype(np.float32) + (1, 0, 0, 0)
    obs = pd.DataFrame({"level": level, "half": level + 0.5}, index=[f"c{i}" for i in range(40)])
    data = anndata.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=list("abcd")))
    fitted = fit("scvi", data, n_hidden=4, n_latent=2, max_epochs=4, progress=False, validation=0)
    return fitted.posterior(particles=30)


ASKED = {"draws": 200, "delta": 0.1}


def test_a_label_is_found_however_it_is_written(posterior):
    answers = [
        differential_expression(posterior, "level", label, **ASKED).table for label in (1, "1", 1.0, np.int64(1), [1.0])
    ]
    for answer in answers[1:]:
        pd.testing.assert_frame_equal(answer, answers[0])
    with pytest.raises(ValueError, match="group: no label 2; there are 0, 1"):
        differential_expression(posterior, "level", 2, **ASKED)
    mixed = np.array(["1", 1] * 20, dtype=object)
    exact = differential_expression(posterior, mixed, "1", **ASKED)
    assert exact.diagnostics["cells"].tolist() == [20, 20]  # an exact match comes first
    with pytest.raises(ValueError, match="group: several labels are written '1'"):
        differential_expression(posterior, mixed, 1.0, **ASKED)


def test_labels_in_another_order_are_put_into_that_of_the_cells(posterior):
    right = differential_expression(posterior, "level", 1, **ASKED).table
    labels = posterior.obs["level"].iloc[::-1]
    pd.testing.assert_frame_equal(differential_expression(posterior, labels, 1, **ASKED).table, right)
    mask = labels == 1
    pd.testing.assert_frame_equal(differential_expression(posterior, None, mask, **ASKED).table, right)
    for flags in (torch.tensor(mask.iloc[::-1].tolist()), mask.astype("boolean"), mask.iloc[::-1].array):
        pd.testing.assert_frame_equal(differential_expression(posterior, None, flags, **ASKED).table, right)
    some = mask.astype("boolean")
    some["c3"] = pd.NA
    with pytest.raises(ValueError, match="group is a mask without a value for 'c3'"):
        differential_expression(posterior, None, some, **ASKED)
    with pytest.raises(TypeError, match="not a DataFrame with the columns level: pass one of them"):
        differential_expression(posterior, posterior.obs[["level"]], 1, **ASKED)
    numbered = posterior.obs["level"].reset_index(drop=True)
    pd.testing.assert_frame_equal(differential_expression(posterior, numbered, 1, **ASKED).table, right)
    with pytest.raises(ValueError, match="groupby has no row for 'c3', one of the cells"):
        differential_expression(posterior, labels.rename({"c3": "x"}), 1, **ASKED)
    with pytest.raises(ValueError, match="groupby has several rows for 'c4'"):
        differential_expression(posterior, pd.concat([labels, labels.loc[["c4"]]]), 1, **ASKED)


def test_a_mask_of_cells_is_the_same_as_their_rows(posterior):
    mask = np.zeros(40, dtype=bool)
    mask[[2, 31]] = True
    for decision in (denoised_expression, impute):
        pd.testing.assert_frame_equal(decision(posterior, cells=mask).table, decision(posterior, cells=[2, 31]).table)
        assert decision(posterior, cells=mask).table.index.tolist() == ["c2", "c31"]
    named = pd.Series(mask, index=posterior.obs.index).sample(frac=1, random_state=1)
    assert denoised_expression(posterior, cells=named).table.index.tolist() == ["c2", "c31"]
    few = posterior_predictive_check(posterior, cells=mask, draws=3)
    pd.testing.assert_frame_equal(few.table, posterior_predictive_check(posterior, cells=[2, 31], draws=3).table)
    for rows, message in (([-1], "value 0 of it is -1"), ([0.5], "is 0.5"), ([40], "is 40"), ([], "cells is empty")):
        with pytest.raises(ValueError, match=message):
            denoised_expression(posterior, cells=rows)


WRONG = [
    ({"delta": float("nan")}, "delta"),
    ({"delta": float("inf")}, "delta"),
    ({"fdr": float("nan")}, "fdr"),
    ({"draws": 10.5}, "draws"),
    ({"seed": -1}, "seed"),
    ({"calibrate": "no"}, "calibrate"),
    ({"pseudo": float("nan")}, "pseudo"),
    ({"unit": ""}, "unit"),
    ({"group": []}, "group is empty"),
    ({"nuisance": 3}, "nuisance"),
    ({"reference": [True, False]}, "reference"),
]


@pytest.mark.parametrize(("arguments", "culprit"), WRONG)
def test_numbers_and_options_are_named(posterior, arguments, culprit):
    with pytest.raises((ValueError, TypeError), match=culprit):
        differential_expression(posterior, "level", **{"group": 1, **ASKED, **arguments})


@pytest.mark.parametrize("scale", [float("nan"), -1, 0, float("inf"), "lib", True])
def test_a_scale_is_a_positive_number(posterior, scale):
    with pytest.raises((ValueError, TypeError), match="scale"):
        denoised_expression(posterior, scale)


def test_what_is_no_posterior_is_told_how_to_make_one(posterior):
    class Fitted:
        def posterior(self):
            """As a fit has it."""

    with pytest.raises(TypeError, match="posterior must be a Posterior, not Fitted; that of a fit is fit.posterior"):
        require_posterior(Fitted())
    with pytest.raises(TypeError, match="source must be a Posterior, not Fitted"):
        reject_option(Fitted())
    with pytest.raises(TypeError, match="posterior must be a Posterior, not ndarray"):
        require_posterior(np.zeros((3, 3)))


CLASSES = pd.DataFrame({"0": [0.9, 0.2, 0.6], "1": [0.1, 0.8, 0.4]}, index=["x", "y", "z"])


def test_labels_of_cells_by_name_and_however_they_are_written():
    truth = pd.Series([1, 0, 1], index=["y", "x", "z"])
    assert evaluate_rejection(CLASSES, truth).settings["accuracy"] == pytest.approx(2 / 3)
    assert evaluate_rejection(CLASSES, [0, 1, 0]).settings["accuracy"] == 1
    assert evaluate_rejection(CLASSES, [0.0, 1.0, 0.0]).settings["accuracy"] == 1
    named = true_labels(CLASSES, pd.Series([1, np.nan, 0], index=["z", "x", "y"])).table
    assert named["given"].tolist() == [np.nan, "0", "1"] or named["given"].isna().tolist() == [True, False, False]
    assert named["p_wrong"].round(2).tolist()[1:] == [0.8, 0.6]
    changed = relabel(CLASSES, 0.25, labels=pd.DataFrame({"ann": [0.0, 1.0, np.nan]}, index=["y", "x", "z"]))
    assert changed.table.index.tolist() == ["x", "y"] and changed.table["wrong"].all()
    numbered = CLASSES.set_axis([0, 1, 2]).sort_values("0")  # the numbers are names, once they are in another order
    assert evaluate_rejection(numbered, pd.Series([0, 1, 0])).settings["accuracy"] == 1
    shuffled = pd.Series([0, 1, 0], index=[2, 1, 0])
    assert evaluate_rejection(CLASSES.to_numpy(), shuffled).settings["accuracy"] == 1
    loss = pd.DataFrame([[0.0, 5.0], [1.0, 0.0]], index=["0", "1"], columns=["0", "1"])
    decided = [reject_option(CLASSES, 0.9, loss=table).table for table in (loss, loss.iloc[::-1, ::-1])]
    pd.testing.assert_frame_equal(*decided)
    with pytest.raises(ValueError, match="labels has no row for 'x'"):
        relabel(CLASSES, labels=truth.drop("x"))
    with pytest.raises(ValueError, match="label 2 of row 1"):
        relabel(CLASSES, labels=[0, 2, 0])
    with pytest.raises(ValueError, match="decision must be what relabel returns"):
        suspects(true_labels(CLASSES))


def test_rejecting_at_equal_loss_is_not_decided_by_rounding():
    for best in (0.9, 0.7, 0.8, 0.6):
        cost = round(1 - best, 2)
        assert reject_option([[best, 1 - best]], cost=cost).table["rejected"].all(), best


def test_nuisances_in_another_order_are_put_into_that_of_the_cells(posterior):
    values = posterior.obs["half"] + np.random.default_rng(0).normal(size=40)
    settings = {"trees": 5, "least": 10, "cells": 40, "permutations": 19}
    right = independence(posterior, {"half": values}, **settings).table
    pd.testing.assert_frame_equal(independence(posterior, {"half": values.iloc[::-1]}, **settings).table, right)
    for arguments, culprit in (({"folds": 1}, "folds"), ({"permutations": 5}, "permutations"), ({"seed": -1}, "seed")):
        with pytest.raises(ValueError, match=culprit):
            independence(posterior, {"half": values}, **(settings | arguments))
    with pytest.raises(TypeError, match="latents .a Posterior"):
        independence("z", "half")


def test_graphs_are_read_by_the_names_of_rows_and_columns():
    table = pd.DataFrame([[0, 0.9, 0.1], [0.0, 0, 0.8], [0, 0, 0]], index=list("abc"), columns=list("abc"))
    shuffled = causal_graph(table[["c", "a", "b"]])
    assert shuffled.table[["source", "target"]].to_numpy().tolist() == [["a", "b"], ["b", "c"]]
    with pytest.raises(ValueError, match="the columns of the graph has no row for 'c'"):
        causal_graph(table.rename(columns={"c": "x"}))
    into = pd.DataFrame([[0.9], [0.0]], index=["a", "b"])
    out_of = pd.DataFrame([[0.8], [0.0]], index=["b", "a"])
    pair = causal_graph((into, out_of))
    assert pair.table[["source", "target"]].to_numpy().tolist() == [["a", "b"]]


def test_edges_of_probability_zero_are_none():
    pair = (np.array([[0.0], [0.9]]), np.array([[0.7], [0.0]]))
    for acyclic in (True, False):
        assert len(causal_graph(pair, threshold=0, acyclic=acyclic).table) == 1
        assert len(causal_graph([[0, 0.2], [0, 0]], threshold=0, acyclic=acyclic).table) == 1


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: causal_graph([[0, 1], [0, 0]], threshold=float("nan")), "threshold"),
        (lambda: causal_graph([[0, 1], [0, 0]], threshold=2), "threshold"),
        (lambda: causal_graph([[0, 1], [0, 0]], acyclic="no"), "acyclic"),
        (lambda: causal_graph([[0, 1], [0, 0]], genes=["a", "a"]), "'a' twice"),
        (lambda: causal_graph([0, 1]), "a table"),
        (lambda: causal_graph("graph"), "source"),
        (lambda: graph_ensemble([]), "sources is empty"),
        (lambda: graph_ensemble("graph"), "sources must be a list"),
        (lambda: graph_scores([[0, 1]], [[0, 1]]), "tables"),
    ],
)
def test_graphs_that_are_none_are_named(call, culprit):
    with pytest.raises((ValueError, TypeError), match=culprit):
        call()


@pytest.mark.parametrize(
    "call, culprit",
    [
        (lambda: fdr_values(np.array([0.5j, 0.2])), "probability must hold real numbers"),
        (lambda: decide([[0.5, 0.5]], 0.1, [[0], [1, 2]]), "loss must be numbers in rows of equal length"),
        (lambda: decide([[0.5, 0.5]], 0.1, [["a", "b"]] * 2), "loss must hold numbers; one value is 'a'"),
        (lambda: risk_coverage([0.5, 1j], [True, False]), "certainty must hold real numbers"),
        (lambda: risk_coverage([0.5, 1.0], [[True], [False, True]]), "wrong must be true or false"),
        (lambda: causal_graph(np.full((2, 2), 0.5j)), "source.* must hold real numbers"),
        (lambda: graph_scores([[0, 1], [0, 0]], [[0, 1], [0]]), "true must be numbers in rows"),
        (lambda: graph_scores([[0, 1], [0, 0]], [[0, 1], [0, 0]], sid=2), "sid must be True or False"),
        (lambda: row_numbers("cells", [[0], [1, 2]], 9), "cells must be row numbers"),
    ],
)
def test_what_is_no_table_of_real_numbers_is_named(call, culprit):
    with pytest.raises((TypeError, ValueError), match=culprit):
        call()
