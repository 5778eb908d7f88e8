"""Columns of a matrix are known by their names, wherever they stand: permuted, among others, twice, or missing."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import fieldguide.inference as fi
from fieldguide.inference import Category, Counts, Labels, Matrix, Schema, SchemaError
from fieldguide.inference.data.fields import Continuous, UnitInterval, Values
from fieldguide.inference.data.logged import Items, Levels, Outcome, RowWeight
from fieldguide.inference.data.minibatches import read

NAMES = ["a", "b", "c", "d"]
ORDER = [2, 0, 3, 1]
RNG = np.random.default_rng(0)
X = RNG.integers(1, 9, (12, 4)) / 10
OBS = pd.DataFrame({"group": ["u", "v", "v"] * 4, "size": RNG.random(12)}, index=[f"cell{i}" for i in range(12)])


def annotated(values, names=None):
    var = None if names is None else pd.DataFrame(index=names)
    data = anndata.AnnData(np.asarray(values, dtype=np.float64), obs=OBS.iloc[: len(values)], var=var)
    data.layers["same"] = data.X.copy()
    data.obsm["table"] = pd.DataFrame(np.asarray(values), columns=data.var_names, index=data.obs_names)
    return data


def frame(values, names):
    return pd.DataFrame(values, columns=names, index=OBS.index[: len(values)])


def values_of(store):
    return store.gather(np.arange(store.shape[0])).numpy()


FIELDS = [
    (Matrix(), 1.0),
    (Values("X"), 1.0),
    (UnitInterval(), 1.0),
    (Items("X"), 1.0),
    (Counts(), 10.0),
]
PLACES = ["X", "layers/same", "obsm/table"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("field", "scale"), FIELDS, ids=[type(f).__name__ for f, _ in FIELDS])
def test_permuted_columns_and_others_beside_them_change_nothing(field, scale, place):
    values = np.round(scale * X) if scale > 1 else X
    learnt = Schema(x=field).learn(annotated(values, NAMES), {"x": place})
    expected = values_of(learnt.read(annotated(values, NAMES))["x"])
    np.testing.assert_array_equal(expected, values.astype(np.float32))
    permuted = annotated(values[:, ORDER], [NAMES[i] for i in ORDER])
    np.testing.assert_array_equal(values_of(learnt.read(permuted)["x"]), expected)
    wide = np.hstack([values[:, ORDER], values[:, :2]])
    others = annotated(wide, [NAMES[i] for i in ORDER] + ["other", "new"])
    np.testing.assert_array_equal(values_of(learnt.read(others)["x"]), expected)
    foreign = annotated(values, ["a", "b", "c", "x"])
    with pytest.raises(SchemaError, match=r"field 'x': gene 'd' of the training data is missing \(1 of 4\)"):
        learnt.read(foreign)


@pytest.mark.parametrize(("field", "scale"), FIELDS, ids=[type(f).__name__ for f, _ in FIELDS])
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: {"x": f}], ids=["frame", "frame in a dict"])
def test_frames_are_known_by_their_columns(field, scale, wrap):
    values = np.round(scale * X) if scale > 1 else X
    learnt = Schema(x=field).learn(wrap(frame(values, NAMES)))
    permuted = frame(values[:, ORDER], [NAMES[i] for i in ORDER])
    np.testing.assert_array_equal(values_of(learnt.read(wrap(permuted))["x"]), values.astype(np.float32))
    arrays = learnt.read({"x": values})["x"]
    np.testing.assert_array_equal(values_of(arrays), values.astype(np.float32), err_msg="arrays go by position")
    with pytest.raises(
        SchemaError, match=r"'a' of the training data is missing.*an array in a dict is taken by position"
    ):
        learnt.read(wrap(pd.DataFrame(values)))  # numbers where there were names
    with pytest.raises(SchemaError, match="3 .*, but 4 were trained on"):
        learnt.read({"x": values[:, :3]})


@pytest.mark.parametrize(("field", "scale"), FIELDS, ids=[type(f).__name__ for f, _ in FIELDS])
@pytest.mark.parametrize(
    "wrap", [pd.DataFrame, lambda v: {"x": pd.DataFrame(v)}, annotated], ids=["frame", "dict", "ad"]
)
def test_numbers_are_names_once_they_are_out_of_order(field, scale, wrap):
    def turned(data):
        if isinstance(data, dict):
            return {"x": data["x"][ORDER]}
        return data[ORDER] if isinstance(data, pd.DataFrame) else data[:, ORDER].copy()

    values = np.round(scale * X) if scale > 1 else X
    plain, permuted = wrap(values), turned(wrap(values))
    expected = values.astype(np.float32)
    for trained in (plain, permuted):
        learnt = Schema(x=field).learn(trained)
        right = expected if trained is plain else expected[:, ORDER]
        for new in (plain, permuted):
            np.testing.assert_array_equal(values_of(learnt.read(new)["x"]), right)
        np.testing.assert_array_equal(values_of(learnt.read({"x": values})["x"]), expected)  # an array has no names
    learnt = Schema(x=field).learn(plain)
    with pytest.raises(SchemaError, match="5 .*, but 4 were trained on"):
        learnt.read(wrap(np.hstack([values, values[:, :1]])))
    with pytest.raises(SchemaError, match="'0' of the training data is missing.*an array in a dict"):
        learnt.read(annotated(values, NAMES))


def test_a_fit_says_the_same_of_permuted_columns_without_names():
    data = anndata.AnnData(np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32))
    fitted = fi.fit("ppca", data, max_epochs=1, progress=False)
    bounds = [fitted.bound(d, seed=1).mean() for d in (data, data[:, ::-1].copy())]
    assert bounds[0] == bounds[1]


def test_numbers_of_tables_beside_each_other_are_no_names():
    both = pd.concat([pd.DataFrame(X[:, :2]), pd.DataFrame(X[:, 2:])], axis=1)
    learnt = Schema(x=Matrix()).learn(both)
    np.testing.assert_array_equal(values_of(learnt.read(both)["x"]), X.astype(np.float32))


def test_a_fit_without_names_of_features_reads_by_position_as_before():
    schema = Schema(x=Matrix())
    old = fi.FittedSchema(schema, {"x": "X"}, {"x": {"n_features": 4}})
    permuted = annotated(X[:, ORDER], [NAMES[i] for i in ORDER])
    np.testing.assert_array_equal(values_of(old.read(permuted)["x"]), X[:, ORDER].astype(np.float32))
    np.testing.assert_array_equal(values_of(old.read(frame(X, NAMES))["x"]), X.astype(np.float32))


@pytest.mark.parametrize("name", ["ppca", "m1m2", "incentives"])
def test_a_fit_says_the_same_of_permuted_columns_after_saving_too(name, tmp_path):
    data = annotated(X, NAMES)
    data.obs["labels"] = OBS["group"]
    data.obs["level"], data.obs["response"] = np.arange(12) % 2, (np.arange(12) // 2) % 2
    fitted = fi.fit(name, data, max_epochs=1, validation=0.0, progress=False)
    fitted.save(tmp_path / "fit")
    site = {"incentives": "phi"}.get(name, "z")
    mean = [
        f.posterior(d, particles=3, seed=1).expect(lambda v: v[site])
        for f in (fitted, fi.load(tmp_path / "fit"))
        for d in (data, data[:, ORDER].copy())
    ]
    for other in mean[1:]:
        np.testing.assert_array_equal(mean[0], other)


# ---- names that stand several times ------------------------------------------------------------------------------
def test_extra_columns_may_have_one_name_and_trained_ones_may_not():
    counts = np.round(10 * X)
    learnt = Schema(counts=Counts()).learn(annotated(counts, NAMES))
    wide = np.hstack([counts[:, ORDER], counts[:, :2]])
    with pytest.warns(UserWarning, match="not unique"):
        twice_extra = annotated(wide, [NAMES[i] for i in ORDER] + ["other", "other"])
        twice_trained = annotated(wide, [NAMES[i] for i in ORDER] + ["b", "other"])
    np.testing.assert_array_equal(values_of(learnt.read(twice_extra)["counts"]), counts.astype(np.float32))
    with pytest.raises(SchemaError, match="field 'counts': 'b', which was trained on, is the name of several columns"):
        learnt.read(twice_trained)
    for field in (Counts(), Matrix()):
        with pytest.raises(SchemaError, match="field 'x': 'b' is the name of several columns"):
            Schema(x=field).learn(twice_trained)
    with pytest.raises(SchemaError, match="'1' is the name of several columns"):
        Schema(x=Matrix()).learn(frame(X, ["a", 1, "1", "d"]))


# ---- columns that other fields read ------------------------------------------------------------------------------
MIXED = Schema(
    x=Matrix(), labels=Labels("labels"), batch=Category("batch", optional=True), response=Outcome("got", True)
)


def table(**columns):
    made = frame(X, NAMES)
    made.insert(1, "labels", np.arange(12) % 2)
    made["batch"], made["got"] = OBS["group"], OBS["size"]
    return made.assign(**columns)


def test_what_other_fields_read_is_no_feature():
    learnt = MIXED.learn(table())
    assert learnt.states["x"]["features"] == NAMES and learnt.sizes()["n_features"] == 4
    np.testing.assert_array_equal(values_of(learnt.read(table())["x"]), X.astype(np.float32))
    new = table()[["d", "c", "b", "a"]]  # new data may lack labels and responses, not the batch
    with pytest.raises(SchemaError, match="field 'batch': no column 'batch'"):
        learnt.read(new)
    read = learnt.read(new.assign(batch="u"))
    np.testing.assert_array_equal(values_of(read["x"]), X.astype(np.float32))
    assert values_of(read["labels"]).tolist() == [-1] * 12


@pytest.mark.parametrize("at", [0, 2, 4])
def test_the_column_of_labels_is_no_feature_of_a_numbered_frame(at):
    features = [column for column in range(5) if column != at]
    data = pd.DataFrame(np.insert(X, at, np.arange(12) % 2, axis=1))
    learnt = MIXED.learn(data, {"labels": str(at)})
    assert learnt.sizes()["n_features"] == 4
    for new in (data, data[data.columns[::-1]], data[features], data[features[::-1] + [at]]):
        np.testing.assert_array_equal(values_of(learnt.read(new)["x"]), X.astype(np.float32))
    assert values_of(learnt.read(data)["labels"]).tolist() == [0, 1] * 6


def test_labels_by_lot_are_not_predicted_from_themselves():
    rng = np.random.default_rng(3)
    data = pd.DataFrame(rng.random((80, 3)), columns=list("abc")).assign(labels=rng.integers(0, 2, 80))
    fitted = fi.fit("m1m2", data, max_epochs=1, progress=False)
    assert fitted.arguments["n_features"] == 3
    assert fitted.schema is not None and fitted.schema.states["x"]["features"] == ["a", "b", "c"]


@pytest.mark.parametrize("columns", [["b", "d"], ("b", "d"), np.array(["b", "d"]), pd.Index(["b", "d"])], ids=repr)
def test_features_are_the_columns_that_are_listed(columns):
    learnt = MIXED.learn(table(), {"x": columns})
    assert learnt.places["x"] == ["b", "d"] and learnt.states["x"] == {"n_features": 2, "features": ["b", "d"]}
    turned = table()[["got", "batch", "labels", "d", "c", "b", "a"]]
    np.testing.assert_array_equal(values_of(learnt.read(turned)["x"]), X[:, [1, 3]].astype(np.float32))


def test_features_may_be_columns_of_obs_and_one_column_of_a_frame():
    data = annotated(X, NAMES)
    data.obs["depth"] = np.arange(12)
    learnt = Schema(x=Matrix()).learn(data, {"x": ["depth", "size"]})
    expected = np.stack([np.arange(12), OBS["size"]], 1).astype(np.float32)
    np.testing.assert_array_equal(values_of(learnt.read(data)["x"]), expected)
    single = Schema(x=Matrix()).learn(frame(X, NAMES), {"x": "c"})
    np.testing.assert_array_equal(values_of(single.read(frame(X, NAMES))["x"]), X[:, [2]].astype(np.float32))


@pytest.mark.parametrize(
    ("data", "places", "message"),
    [
        (table(kind="B cell"), None, r"field 'x': column 'kind' is not numeric .*fields=.'x': "),
        (table(kind=pd.Categorical([1, 2] * 6)), None, "field 'x': column 'kind' is not numeric .category"),
        (table(when=pd.to_datetime(["2020-01-01"] * 12)), None, "field 'x': column 'when' is not numeric"),
        (table(z=1j), None, "field 'x': column 'z' is not numeric .complex"),
        (table(gap=[np.nan, *range(11)]), None, "field 'x': cell 'cell0', column 'gap' is not finite"),
        (table(gap=pd.array([1, pd.NA] * 6, dtype="Int64")), None, "cell 'cell1', column 'gap' is not finite"),
        (table(), {"x": ["a", "zz"]}, "field 'x': no column 'zz' in obs; there are a, labels, b"),
        (table(), {"x": ["a", "a"]}, "field 'x': column 'a' is given twice"),
        (table(), {"x": "zz"}, "field 'x': no column 'zz'"),
        (
            table().set_axis([*"abcdef", "a"], axis=1),
            {"x": ["c"], "labels": "a"},
            "field 'labels': there are 2 columns 'a'",
        ),
    ],
    ids=["text", "category", "dates", "complex", "nan", "NA", "no column", "twice", "no place", "two columns"],
)
def test_columns_of_a_frame_that_are_no_features(data, places, message):
    with pytest.raises(SchemaError, match=message):
        learnt = MIXED.learn(data, {"labels": "labels"} | (places or {}))
        learnt.read(data)


def test_flags_and_whole_numbers_of_a_frame_are_features():
    learnt = MIXED.learn(table(flag=[True, False] * 6, few=pd.array([1, 2] * 6, dtype="Int64")))
    assert learnt.states["x"]["features"] == [*NAMES, "flag", "few"]
    read = values_of(learnt.read(table(flag=[True, False] * 6, few=pd.array([1, 2] * 6, dtype="Int64")))["x"])
    assert read[:2, 4:].tolist() == [[1, 1], [0, 2]]


def test_series_and_frames_in_a_dict_name_their_cells_alike():
    x, group = frame(X, NAMES), OBS["group"]
    schema = Schema(x=Matrix(), batch=Category("batch"))
    learnt = schema.learn({"x": x, "batch": group})
    for data in ({"x": x, "batch": group[::-1]}, {"x": x[::-1], "batch": group}):
        with pytest.raises(SchemaError, match="'batch' and 'x' do not name their rows alike, in one order"):
            learnt.read(data)
    by_position = learnt.read({"x": x, "batch": group[::-1].reset_index(drop=True)})["batch"]
    assert values_of(by_position).tolist() == [1, 1, 0] * 4
    with pytest.raises(SchemaError, match="'y' and 'x' do not name their rows alike"):
        read({"x": x["a"], "y": x["b"][::-1]}, None)


@pytest.mark.parametrize("text", [False, True])
def test_numbers_of_rows_are_names_once_they_are_out_of_order(text):
    x, group = pd.DataFrame(X), OBS["group"].reset_index(drop=True)
    if text:
        x.index, group.index = x.index.astype(str), group.index.astype(str)
    schema, shuffled = Schema(x=Matrix(), batch=Category("batch")), group.sample(frac=1, random_state=0)
    for data in ({"x": x, "batch": shuffled}, {"x": x.loc[shuffled.index], "batch": group}):
        with pytest.raises(SchemaError, match="'batch' and 'x' do not name their rows alike, in one order"):
            schema.learn(data)
    learnt = schema.learn({"x": x, "batch": group})
    both = {"x": x.loc[shuffled.index], "batch": shuffled}
    expected = [int(value == "v") for value in shuffled]
    for data in (both, both | {"x": X}, both | {"batch": shuffled.to_numpy()}):  # an array is taken by position
        assert values_of(learnt.read(data)["batch"]).tolist() == expected
    part = {"x": X[:5], "batch": group.iloc[[7, 2, 9, 4, 1]]}
    assert learnt.read(part)["batch"].shape == (5,)


# ---- files on disk -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparse", [True, False])
def test_a_backed_matrix_is_checked_and_never_taken_in_another_order(tmp_path, sparse):
    def written(values, names):
        data = annotated(values, names)
        data.X = sp.csr_matrix(data.X) if sparse else data.X
        del data.layers["same"]
        data.write_h5ad(tmp_path / "cells.h5ad")
        return anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")

    schema = Schema(x=Matrix())
    learnt = schema.learn(written(X, NAMES))
    np.testing.assert_array_equal(values_of(learnt.read(written(X, NAMES))["x"]), X.astype(np.float32))
    with pytest.raises(SchemaError, match="backed file must have the training columns, in the training order"):
        learnt.read(written(X[:, ORDER], [NAMES[i] for i in ORDER]))
    for value in (np.nan, np.inf, 1e300):
        spoilt = X.copy()
        spoilt[7, 2] = value
        with pytest.raises(SchemaError, match="cell 'cell7', column 'c' is not finite"):
            learnt.read(written(spoilt, NAMES))
    data = written(X, NAMES)
    with pytest.raises(SchemaError, match="field 'x': no 'layers/none' in the AnnData; matrices are at 'X'"):
        schema.learn(data, {"x": "layers/none"})


def test_cells_that_are_numbered_in_another_order_are_known_by_their_numbers():
    """AnnData names its cells "0", "1", ...: of a permuted one these are names beside a Series that pandas numbered."""
    order = np.random.default_rng(1).permutation(12)
    moved = anndata.AnnData(X)[order].copy()
    mask = pd.Series(np.arange(12) < 3)
    fitted = fi.fit("ppca", moved, n_latent=1, max_epochs=1, progress=False, validation=mask)
    assert sorted(moved.obs_names[fitted.validation_rows]) == ["0", "1", "2"]
    part = anndata.AnnData(X)[6:].copy()  # names "6" to "11": these are no rows of a Series of six
    fitted = fi.fit("ppca", part, n_latent=1, max_epochs=1, progress=False, validation=mask[:6])
    assert sorted(fitted.validation_rows) == [0, 1, 2]


def test_what_training_needs_is_where_it_was_said_to_be():
    data = pd.DataFrame({"f0": RNG.normal(size=12), "level": np.arange(12) % 2, "response": 1.0, "w": 2.0})
    for name, place in (("weight", "W"), ("response", "W"), ("weight", RowWeight("W"))):
        with pytest.raises(SchemaError, match=f"field '{name}': no column 'W' in obs; there are f0, level"):
            fi.fit("incentives", data, fields={"x": ["f0"], name: place}, max_epochs=1, progress=False)
    learnt = Schema(weight=RowWeight("weight", optional=True), level=Levels("level")).learn(data)
    assert list(learnt.places) == ["level"]  # at its usual place it may be absent
    hidden = {"x": X, "level": np.ma.masked_array(np.arange(12) % 2, np.arange(12) == 1), "response": np.ones(12)}
    with pytest.raises(SchemaError, match=r"field 'level': the value at \[1\] is masked"):
        fi.fit("incentives", hidden, max_epochs=1, progress=False)


def test_series_whose_rows_have_names_of_several_levels():
    levels = pd.MultiIndex.from_product([range(3), range(4)])
    one, two = (pd.Series(OBS["size"].to_numpy(), index=levels) for _ in range(2))
    columns = {"one": one, "two": two}
    assert Schema(both=Continuous()).learn(columns, {"both": ["one", "two"]}).states
    with pytest.raises(SchemaError, match="'two' and 'one' do not name their rows alike"):
        Schema(both=Continuous()).learn({"one": one, "two": two[::-1]}, {"both": ["one", "two"]})
