"""Targets of interventions as codes and masks, and splits that hold whole regimes out."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.inference import (
    Matrix,
    Schema,
    SchemaError,
    Targets,
    intervention_mask,
    intervention_regimes,
    split_interventions,
)


def cells(targets, genes=("a", "b", "c")):
    names = [f"cell{i}" for i in range(len(targets))]
    obs = pd.DataFrame({"targets": targets}, index=names)
    data = np.zeros((len(targets), len(genes)), dtype=np.float32)
    return anndata.AnnData(data, obs=obs, var=pd.DataFrame(index=list(genes)))


def codes_of(data, field=None, places=None):
    schema = Schema(x=Matrix("X"), targets=field or Targets())
    return schema.learn(data, places).read(data)["targets"].values.tolist()


def test_names_become_codes():
    data = cells(["c", "b, a", None, "", "control", np.nan, "a,a"])
    assert codes_of(data) == [[2, -1], [0, 1], [-1, -1], [-1, -1], [-1, -1], [-1, -1], [0, -1]]
    data.obs["targets"] = data.obs["targets"].astype("category")
    assert codes_of(data)[:2] == [[2, -1], [0, 1]]
    other = cells(["c;b", "non-targeting"])
    field = Targets("guides", control=("non-targeting",), separator=";")
    other.obs["guides"] = other.obs.pop("targets")
    assert codes_of(other, field) == [[1, 2], [-1, -1]]
    assert codes_of(other, Targets(control=("non-targeting",), separator=";"), {"targets": "guides"})[0] == [1, 2]


def test_codes_in_a_dict_of_arrays():
    x = np.zeros((3, 3))
    assert codes_of({"x": x, "targets": np.array([2, -1, 0])}) == [[2], [-1], [0]]
    assert codes_of({"x": x, "targets": np.array([[-1, 2], [1, 0], [1, 1]])}) == [[2, -1], [0, 1], [1, -1]]
    assert codes_of({"x": x, "targets": np.array([[-1, 2], [-1, 0], [1, 1]])}) == [[2], [0], [1]]


def test_new_data_may_have_more_targets_but_not_other_genes():
    learnt = Schema(x=Matrix("X"), targets=Targets()).learn(cells(["a", "b"]))
    assert learnt.read(cells(["a,b,c", "control"]))["targets"].values.tolist() == [[0, 1, 2], [-1, -1, -1]]
    assert learnt.read(cells(["control", ""]))["targets"].values.tolist() == [[-1], [-1]]
    with pytest.raises(SchemaError, match="in order: gene 'b' at 0"):
        learnt.read(cells(["a", "b"], ("b", "a", "c")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (cells(["control", None]), "names no target in any cell"),
        (cells(["a", "b,tp53", "tp53"]), "target 'tp53' of cell 'cell1' is none of the 3 genes"),
        (cells(["a", "b"], ("a", "a", "b")), "'a' is the name of several columns"),
        ({"x": np.zeros((2, 3)), "targets": np.array([0, 3])}, "target 3 of cell '1' is not the code of a gene of 3"),
        ({"x": np.zeros((2, 3)), "targets": np.array([0.5, 1])}, "target 0.5 of cell '0'"),
        ({"x": np.zeros((2, 3)), "targets": np.array([0, -2])}, "target -2 of cell '1'"),
        ({"x": np.zeros((2, 3)), "targets": np.array(["a", "b"])}, "field 'targets': it holds text, not real numbers"),
        ({"x": np.zeros((2, 3)), "targets": np.array([-1, -1])}, "names no target"),
    ],
    ids=["none", "no gene", "twice", "too large", "half", "negative", "text", "none in arrays"],
)
def test_targets_that_are_wrong(data, message):
    with pytest.raises(SchemaError, match=message):
        codes_of(data)


def test_no_column_and_no_anndata():
    with pytest.raises(SchemaError, match="no column 'targets'"):
        codes_of(anndata.AnnData(np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(SchemaError, match="an AnnData or a dict of arrays"):
        Targets().learn("targets", pd.DataFrame({"targets": ["a"]}), "targets")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=8))
def test_the_mask_is_the_set(sets):
    width = max([1, *map(len, sets)])
    targets = torch.tensor([sorted(s) + [-1] * (width - len(s)) for s in sets])
    mask = intervention_mask(targets, 7)
    assert mask.shape == (len(sets), 7) and mask.dtype == torch.bool
    assert [set(row.nonzero()[:, 0].tolist()) for row in mask] == sets
    assert torch.equal(intervention_mask(targets.expand(2, -1, -1), 7)[1], mask)


def many(seed=0):
    rng = np.random.default_rng(seed)
    return cells(rng.permutation(["a"] * 20 + ["b"] * 11 + ["b,c"] * 10 + ["c,b"] * 10 + ["control"] * 30 + ["c"] * 9))


@pytest.mark.parametrize(
    ("held_out", "count"), [(0.3, 1), (0.5, 2), (1, 1), (3, 3), (["b,c", "control", "control"], 2)], ids=str
)
def test_a_split_holds_whole_regimes_out(held_out, count):
    data = many()
    split = split_interventions(data, held_out, seed=3)
    rows = np.concatenate([split.train, split.validation, split.held_out])
    assert sorted(rows) == list(range(data.n_obs))
    assert set(split.regimes) == {"a", "b", "c", "b,c", "control"}, "the order of the targets does not matter"
    assert (split.regimes == "b,c").sum() == 20
    outside = set(split.regimes.iloc[split.held_out])
    assert outside == set(split.held_out_regimes)
    assert not outside & set(split.regimes.iloc[split.seen])
    assert len(outside) == count
    if not isinstance(held_out, list):
        assert "control" not in outside
    for regime in set(split.regimes) - outside:
        size = (split.regimes == regime).sum()
        assert (split.regimes.iloc[split.validation] == regime).sum() == round(0.2 * size)
    assert split.seen[split.within_seen].tolist() == split.validation.tolist()


def test_the_seed_decides_the_split():
    data = many()
    one, same, other = (split_interventions(data, 2, seed=seed) for seed in (0, 0, 5))
    assert np.array_equal(one.train, same.train) and one.held_out_regimes == same.held_out_regimes
    assert not np.array_equal(one.train, other.train)
    found = {split_interventions(data, 1, seed=seed).held_out_regimes for seed in range(30)}
    assert found == {("a",), ("b",), ("c",), ("b,c",)}


def test_regimes_of_arrays_and_other_places():
    data = {"x": np.zeros((5, 3)), "guides": np.array([[1, 0], [0, 1], [-1, -1], [2, -1], [2, 2]])}
    assert intervention_regimes(data, place="guides").tolist() == ["0,1", "0,1", "control", "2", "2"]
    assert split_interventions(data, ["2"], place="guides", least=1).held_out.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("targets", "held_out", "message"),
    [
        (["control"] * 4, 1, "no cell has a target"),
        (["a", "a", "b", "control"], 1, "regime 'b' has 1 cells .the first: 'cell2'"),
        (["a", "a", "b", "b"], ["c"], "held_out: no label 'c'; there are a, b"),
        (["a", "a", "b", "b"], ["a", "b"], "all 2 regimes would be held out"),
        (["a", "a", "b", "b"], 1.5, "must be a share"),
        (["a", "a", "b", "b"], 0, "fewer than the 2 regimes, not 0"),
        (["a", "a", "b", "b"], 2, "fewer than the 2 regimes, not 2"),
        (["a", "a", "b", "b"], "a", "a list of regimes: .'a'."),
        (["a", "a", "nogene", "b"], 1, "target 'nogene' of cell 'cell2'"),
    ],
    ids=["no intervention", "one cell", "unknown", "all", "share", "zero", "too many", "text", "no gene"],
)
def test_splits_that_cannot_be(targets, held_out, message):
    with pytest.raises(ValueError, match=message):
        split_interventions(cells(targets), held_out)


def test_the_share_of_validation_is_checked():
    with pytest.raises(ValueError, match="validation must be a number in .0, 1., not 1"):
        split_interventions(many(), validation=1.0)
    assert not len(split_interventions(many(), validation=0.0).validation)
