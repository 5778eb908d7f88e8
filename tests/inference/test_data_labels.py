"""1, "1" and 1.0 are one label in every field, in fits made before it was so too; and what says "no target"."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide.inference import (
    Annotations,
    Categories,
    Category,
    FittedSchema,
    Labels,
    Matrix,
    Schema,
    SchemaError,
    Targets,
    intervention_regimes,
    join_modalities,
    split_interventions,
)
from fieldguide.inference.checks.labels import label_codes, label_texts
from fieldguide.inference.data.logged import Levels

ONES = [1, 2, 1, 10]
WRITTEN = {
    "int": np.array(ONES),
    "float": np.array(ONES, dtype=float),
    "text": np.array([str(v) for v in ONES]),
    "text with a point": np.array([f"{v}.0" for v in ONES]),
    "objects": pd.Series([1, "2", 1.0, np.int64(10)], dtype=object).to_numpy(),
    "categories": pd.Categorical(ONES),
    "categories of floats": pd.Categorical([float(v) for v in ONES]),
    "categories of text": pd.Categorical([str(v) for v in ONES]),
    "nullable": pd.array(ONES, dtype="Int64"),
    "nullable text": pd.array([str(v) for v in ONES], dtype="string"),
}


def cells(values, column="k"):
    obs = pd.DataFrame({column: values}, index=[f"cell{i}" for i in range(len(values))])
    return anndata.AnnData(np.ones((len(values), 2), dtype=np.float32), obs=obs)


def codes(field, learnt_from, read_from):
    learnt = Schema(k=field).learn(cells(WRITTEN[learnt_from]))
    return learnt.read(cells(WRITTEN[read_from]))["k"].gather(np.arange(4)).numpy().ravel().tolist()


@pytest.mark.parametrize("read_from", WRITTEN)
@pytest.mark.parametrize("learnt_from", WRITTEN)
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (Category("k"), [0, 2, 0, 1]),  # sorted as text: 1, 10, 2
        (Categories("k"), [0, 2, 0, 1]),
        (Labels("k"), [0, 1, 0, 2]),
        (Annotations("k"), [0, 1, 0, 2]),
        (Levels("k"), [0, 1, 0, 2]),
    ],
    ids=["category", "categories", "labels", "annotations", "levels"],
)
def test_a_label_is_the_same_however_it_is_written(field, expected, learnt_from, read_from):
    if isinstance(field, Levels) and not pd.api.types.is_numeric_dtype(pd.Series(WRITTEN[learnt_from])):
        with pytest.raises(SchemaError, match="column 'k' has no order: make it numeric"):
            codes(field, learnt_from, read_from)
        return
    assert codes(field, learnt_from, read_from) == expected


@pytest.mark.parametrize("kind", [Category, Labels, Levels])
@pytest.mark.parametrize(
    ("old", "new"), [(["1.0", "2.0"], [2.0, 1.0]), (["1.0", "2.0"], [2, 1]), (["1", "2"], [2.0, 1])]
)
def test_categories_of_an_older_fit_are_found(kind, old, new):
    learnt = FittedSchema(Schema(k=kind("k")), {"k": "k"}, {"k": {"categories": old}})
    assert learnt.read(cells(new))["k"].gather(np.arange(2)).tolist() == [1, 0]


def test_flags_of_an_older_fit_are_found():
    learnt = FittedSchema(Schema(k=Labels("k")), {"k": "k"}, {"k": {"categories": ["0", "1"]}})
    assert learnt.read(cells([True, False]))["k"].gather(np.arange(2)).tolist() == [1, 0]


def test_an_exact_match_comes_first_and_two_that_may_be_meant_are_an_error():
    assert label_codes("k", ["1.0", "1", 1], ["1", "1.0"]).tolist() == [1, 0, 0]
    assert label_codes("k", [1.0], ["1", "1.0"]).tolist() == [1]
    with pytest.raises(ValueError, match="k: several labels are written '1'; make them differ"):
        label_codes("k", [1], ["1.0", "1.00"])
    assert label_codes("k", [None, np.nan, pd.NA, pd.NaT, "x"], ["x"]).tolist() == [-1, -1, -1, -1, 0]
    assert label_texts([True, 1, 1.0, "1", None]).tolist() == ["True", "1", "1", "1", None]


@pytest.mark.parametrize(
    "field", [Category("k"), Categories("k"), Labels("k"), Annotations("k"), Levels("k")], ids=repr
)
def test_one_number_written_in_two_ways_is_an_error_that_names_both(field):
    values = np.array([1, "1", 1.0, "1.0", 2], dtype=object)
    if isinstance(field, Levels):
        values = pd.Categorical(values, categories=[1, "1.0", 2], ordered=True)[[0, 3, 4]]
    with pytest.raises(SchemaError, match="field 'k': column 'k' has the labels '1' and '1.0', which are one number"):
        Schema(k=field).learn(cells(values))
    same = np.array([1, "1", 1.0, "1.5", 2], dtype=object)
    if not isinstance(field, Levels):
        assert "1.5" in str(Schema(k=field).learn(cells(same)).states)
    with pytest.raises(ValueError, match="modality 'a': column 'k' has the labels '1' and '1.0'"):
        join_modalities({"a": cells(values)}, batch="k")


@pytest.mark.parametrize("gap", [np.nan, None, -1, -1.0])
def test_labels_that_are_missing(gap):
    values = pd.Series([0, 1, gap, 1], dtype=object)
    for column in (values, values.astype(float)):
        learnt = Schema(k=Labels("k")).learn(cells(column.to_numpy()))
        assert learnt.states["k"]["categories"] == ["0", "1"]
        assert learnt.read(cells(column.to_numpy()))["k"].gather(np.arange(4)).tolist() == [0, 1, -1, 1]


@pytest.mark.parametrize("word", ["nan", "", "Unknown", "<NA>"])
@pytest.mark.parametrize("field", [Category("k"), Categories("k"), Labels("k"), Annotations("k")], ids=repr)
def test_a_label_that_says_that_there_is_none_is_remarked(field, word):
    with pytest.warns(UserWarning, match=f"field 'k': the label '{word}' of column 'k' is one like the others"):
        learnt = Schema(k=field).learn(cells(np.array(["T", word, "B", "T"], dtype=object)))
    assert len(np.ravel(learnt.states["k"]["categories"])) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Schema(k=field).learn(cells(np.array(["T", "unknown receptor", "B", "T"], dtype=object)))


def test_an_unseen_label_is_named():
    learnt = Schema(k=Category("k")).learn(cells(["a", "b"]))
    with pytest.raises(SchemaError, match="field 'k': category 'c' of column 'k' was not in the training data"):
        learnt.read(cells(["a", "c"]))


# ---- no target ---------------------------------------------------------------------------------------------------
def guides(values, genes=("A", "B", "CTRL")):
    obs = pd.DataFrame({"targets": values}, index=[f"cell{i}" for i in range(len(values))])
    data = np.random.default_rng(0).normal(size=(len(values), len(genes)))
    return anndata.AnnData(data, obs=obs, var=pd.DataFrame(index=list(genes)))


def targets_of(data, field=None):
    schema = Schema(x=Matrix(), targets=Targets())
    return schema.learn(data, {"targets": field} if field else None).read(data)["targets"].gather(np.arange(len(data)))


@pytest.mark.parametrize(
    "word",
    ["ctrl", "non-targeting", "Non_Targeting", "NT", "nt", "NT-12", "non-targeting_00042", "negative control"]
    + ["safe-targeting", "Scrambled", "NegCtrl 3", "NTC 2", "NTC", "neg", "unperturbed", "None", "DMSO", "wild type"],
)
def test_the_usual_words_are_no_target_with_a_remark(word):
    with pytest.warns(UserWarning, match=f"field 'targets': '{word}' in 'targets' is no gene of the data and read"):
        assert targets_of(guides(["A", word, "B"])).tolist() == [[0], [-1], [1]]


@pytest.mark.parametrize("gene", ["WT1", "NT5", "MOCK1", "CTL1", "NEG1", "nt5", "5NT", "NT-5B"])
def test_a_gene_that_is_not_in_the_data_is_no_control(gene):
    for split in ({}, {"field": Targets("targets", separator="+")}):
        with pytest.raises(SchemaError, match=rf"target '{gene}' of cell 'cell1' is none of .*control='{gene}'"):
            targets_of(guides(["A", gene, "B"]), **split)
    with pytest.raises(SchemaError, match=rf"target '{gene}' of cell 'cell0' is none of the 3 genes"):
        targets_of(guides([f"A+{gene}", "B"]), Targets("targets", separator="+"))
    assert targets_of(guides(["A", gene]), Targets(control=gene)).tolist() == [[0], [-1]]
    assert targets_of(guides(["A", gene], ("A", gene))).tolist() == [[0], [1]]


def test_words_that_are_said_or_missing_need_no_remark():
    assert targets_of(guides(["A", "", None, np.nan, "control", " "])).tolist() == [[0]] + 5 * [[-1]]
    field = Targets("targets", control=("NT", "AAVS1"))
    assert targets_of(guides(["A", "NT", "AAVS1", "B,NT"]), field).tolist() == [[0], [-1], [-1], [1]]
    assert targets_of(guides(["A", "AAVS1"]), Targets(control="AAVS1")).tolist() == [[0], [-1]]


def test_a_gene_of_that_name_is_a_gene_unless_it_is_said_to_be_none():
    assert targets_of(guides(["A", "CTRL"])).tolist() == [[0], [2]]
    assert targets_of(guides(["A", "CTRL"]), Targets(control="CTRL")).tolist() == [[0], [-1]]


@pytest.mark.parametrize(("separator", "value"), [("+", "A+B"), ("_", "B_A"), (";", "A;B"), ("|", "A|B"), (" ", "A B")])
def test_the_separator_that_makes_genes_of_a_label_is_said(separator, value):
    with pytest.raises(SchemaError, match=r"target '.*' of cell 'cell1' is none of the 3 genes") as caught:
        targets_of(guides(["A", value]))
    way = f"pass separator={separator!r}, as in fields={{'targets': Targets('targets', separator={separator!r})}}"
    assert way in str(caught.value)
    assert targets_of(guides(["A", value]), Targets(separator=separator)).tolist() == [[0, -1], [0, 1]]


def test_one_target_beside_a_control_is_one_target():
    data = guides(["A+ctrl", "A+B", "ctrl"])
    with pytest.warns(UserWarning, match="'ctrl' in 'targets'"):
        assert targets_of(data, Targets(separator="+")).tolist() == [[0, -1], [0, 1], [-1, -1]]
    assert intervention_regimes(data, control="ctrl", separator="+").tolist() == ["A", "A,B", "control"]
    split = split_interventions(data, ["A,B"], control="ctrl", separator="+", least=1, validation=0)
    assert split.held_out.tolist() == [1]


def test_what_is_no_target_is_remembered():
    field = Targets("targets", control="AAVS1", separator="+")
    learnt = Schema(x=Matrix(), targets=Targets()).learn(guides(["A+B", "AAVS1"]), {"targets": field})
    assert learnt.states["targets"]["control"] == ["AAVS1"] and learnt.states["targets"]["separator"] == "+"
    loaded = FittedSchema(Schema(x=Matrix(), targets=Targets()), learnt.places, learnt.states)
    assert loaded.read(guides(["AAVS1", "B+A"]))["targets"].gather(np.arange(2)).tolist() == [[-1, -1], [0, 1]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["A", "TP53"], r"none of the 3 genes \(1 such cells\); keep its gene .*'control', 'non-targeting', 'NT' do.*"),
        (["A", "AAVS1"], r"fields=\{'targets': Targets\('targets', control='AAVS1'\)\}"),
        ([1, 2], "target '1' of cell 'cell0'"),
        (["ctrl", "NT"], "names no target in any cell"),
    ],
)
@pytest.mark.filterwarnings("ignore:field 'targets'")
def test_targets_that_are_no_genes(values, message):
    with pytest.raises(SchemaError, match=message):
        targets_of(guides(values))


# ---- columns of joined assays --------------------------------------------------------------------------------------
YES = [True, False]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (YES, None, [True, False, None, None]),
        (YES, ["x", "y"], ["True", "False", "x", "y"]),
        ([1, 2], ["x", "y"], ["1", "2", "x", "y"]),
        ([1.0, np.nan], ["x", "y"], ["1", None, "x", "y"]),
        (pd.Categorical([1, 2]), ["x", "y"], ["1", "2", "x", "y"]),
        (pd.Series([1, "a"], dtype=object).to_numpy(), None, ["1", "a", None, None]),
        ([1, 2], None, [1, 2, None, None]),
        (pd.array(["a", "b"], dtype="string"), None, ["a", "b", None, None]),
        (pd.array([True, None], dtype="boolean"), YES, [True, None, True, False]),
        (pd.array([1, None], dtype="Int64"), [0.5, np.nan], [1, None, 0.5, None]),
        (pd.array([1, None], dtype="Int64"), [3, 4], [1, None, 3, 4]),
        (pd.array([1, None], dtype="Int64"), YES, ["1", None, "True", "False"]),
        (pd.array([1.5, None], dtype="Float32"), None, [1.5, None, None, None]),
        (pd.arrays.SparseArray([1.5, np.nan]), [1, 2], [1.5, None, 1, 2]),
    ],
    ids=["flags", "flags and text", "numbers and text", "floats", "categories", "mixed", "ints", "strings", "boolean"]
    + ["Int64 and floats", "Int64 and ints", "Int64 and flags", "Float32", "sparse"],
)
def test_columns_of_other_kinds_are_joined_and_can_be_written(one, other, expected, tmp_path):
    def assay(genes, column):
        obs = pd.DataFrame({} if column is None else {"k": column}, index=["c0", "c1"])
        var = pd.DataFrame(index=[f"g{i}" for i in range(genes)])
        return anndata.AnnData(np.ones((2, genes), dtype=np.float32), obs=obs, var=var)

    joined = join_modalities({"rna": assay(3, one), "fish": assay(2, other)})
    joined.write_h5ad(tmp_path / "both.h5ad")
    for data in (joined, anndata.read_h5ad(tmp_path / "both.h5ad")):
        found = [None if pd.isna(value) else value for value in data.obs["k"]]
        assert found == expected


def test_a_batch_that_is_missing_is_named():
    data = anndata.AnnData(
        np.ones((2, 2), dtype=np.float32), obs=pd.DataFrame({"lab": ["a", None]}, index=["c0", "c1"])
    )
    with pytest.raises(ValueError, match="modality 'rna': column 'lab' of cell 'c1' is missing"):
        join_modalities({"rna": data}, batch="lab")
