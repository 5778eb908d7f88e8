"""Data that are wrong are refused with the name of the field and of what is wrong, before anything deeper fails."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import fieldguide.inference as fi
from fieldguide.inference import Category, Continuous, Counts, Matrix, Positive, Schema, SchemaError, Targets
from fieldguide.inference.data.logged import Codes, Levels, Outcome
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.data.modalities import Modality, join_modalities
from fieldguide.inference.data.storage import DenseStore

N = 6
SCHEMA = Schema(
    counts=Counts(),
    batch=Category("batch", optional=True),
    continuous=Continuous("", optional=True),
    size_factor=Positive("", optional=True),
)
MATRIX = Schema(x=Matrix())


def counts(kind=np.float64):
    return (np.arange(N * 3).reshape(N, 3) + 1).astype(kind)


def cells(x=None, **columns):
    obs = pd.DataFrame({"batch": ["s1", "s2"] * 3} | columns, index=[f"cell{i}" for i in range(N)])
    data = anndata.AnnData(counts() if x is None else x, obs=obs, var=pd.DataFrame(index=["g0", "g1", "g2"]))
    data.layers["counts"] = counts()
    return data


def put(value, kind=np.float64):
    x = counts(kind)
    x[2, 1] = value
    return cells(x)


def refused(schema, data, places, message):
    with pytest.raises((SchemaError, TypeError), match=message):
        schema.learn(data, places).read(data)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.000000001, "is 1.000000001; counts must be non-negative integers"),
        (0.5, "is 0.5; counts must be"),
        (-1, "is -1; counts must be"),
        (np.nan, "is nan; counts must be"),
        (np.inf, "is inf; counts must be"),
        (2.0**24 + 1, r"is 16777217; counts above 2\^24 = 16777216 would be rounded in single precision"),
        (1e39, r"is 1e\+39; counts above 2\^24"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array], ids=lambda f: f.__name__)
def test_an_entry_that_is_no_count_is_shown_as_it_is(value, said, form):
    data = put(value)
    data.X = form(data.X)
    refused(SCHEMA, data, None, f"field 'counts': cell 'cell2', gene 'g1' {said}")


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.int32, np.float32, np.float64])
def test_the_largest_count_is_kept_as_it_is(kind):
    data = put(2**24, kind)
    assert SCHEMA.learn(data).read(data)["counts"].gather(np.array([2]))[0, 1] == 2**24
    if kind != np.float32:
        refused(SCHEMA, put(2**24 + 1, kind), None, "is 16777217; counts above")


def test_the_gene_of_a_permuted_query_is_the_one_that_is_wrong():
    learnt = SCHEMA.learn(cells())
    x = counts()
    x[4, 0] = 0.5
    turned = cells(x)[:, [2, 0, 1]].copy()
    with pytest.raises(SchemaError, match="cell 'cell4', gene 'g0' is 0.5"):
        learnt.read(turned)


def spoilt_row():
    x = counts()
    x[3] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.arange(N), r"field 'x': a matrix has one row for each cell .* has the shape \(6,\)"),
        (np.ones((N, 2, 2)), r"field 'x': a matrix has one row .* the shape \(6, 2, 2\)"),
        ([[1, 2], [3]] * 3, "field 'x': its rows differ in length"),
        (counts(complex), "field 'x': it holds complex numbers"),
        (counts().astype(str), "field 'x': it holds text"),
        (np.full((N, 2), "2020-01-01", dtype="datetime64[D]"), "field 'x': it holds values of type datetime64"),
        (np.array([[1, "a"]] * N, dtype=object), "field 'x': cell '0', column 1 is 'a', which is no number"),
        (np.array([[1, None]] * N, dtype=object), "field 'x': cell '0', column 1 is None, which is no number"),
        (np.array([[1, 1j]] * N, dtype=object), "field 'x': cell '0', column 1 is 1j, which is no number"),
        (np.ma.masked_array(counts(), mask=np.eye(N, 3)), r"field 'x': the value at \[0, 0\] is masked"),
        (spoilt_row(), "field 'x': cell '3', column 0 is not finite"),
        (np.full((N, 1), 1e300), r"cell '0', column 0 is not finite in single precision: 1e\+300"),
        (np.ones((N, 0)), "field 'x': the matrix has no columns"),
        (np.ones((0, 3)), "the data has no cells"),
        (np.zeros(N, dtype=[("a", int)]), "field 'x': it holds values of type"),
        (3, r"field 'x': a matrix has one row .* the shape \(\)"),
        (pd.DataFrame({"a": ["u"] * N}), "field 'x': column 'a' is not numeric"),
        (pd.DataFrame([[1, 2]] * N, columns=["a", "a"]), "'a' is the name of several columns"),
    ],
    ids=["1-d", "3-d", "ragged", "complex", "text", "dates", "object", "none", "object complex", "masked", "row of nan"]
    + ["1e300", "no columns", "no rows", "structured", "scalar", "text frame", "twice"],
)
@pytest.mark.parametrize("schema", [MATRIX, Schema(x=Counts())], ids=["Matrix", "Counts"])
def test_what_is_no_matrix_is_named(schema, x, message):
    if schema is not MATRIX:
        message = message.partition("column")[0].replace("cell '3', ", "cell '3', gene 0 is nan").partition(", col")[0]
    refused(schema, {"x": x}, None, message)


@pytest.mark.parametrize(
    "x",
    [
        counts() > 3,
        counts().astype(object),
        counts(np.float16),
        counts(np.uint8),
        np.asmatrix(counts()),
        np.ma.masked_array(counts()),
        torch.from_numpy(counts()),
        sp.coo_matrix(counts()),
        sp.dok_matrix(counts()),
        sp.csr_matrix(counts() > 3),
        counts().tolist(),
        pd.DataFrame(counts()),
    ],
    ids=[
        "bool",
        "object",
        "half",
        "uint8",
        "matrix",
        "not masked",
        "torch",
        "coo",
        "dok",
        "sparse bool",
        "list",
        "frame",
    ],
)
@pytest.mark.parametrize("schema", [MATRIX, Schema(x=Counts())], ids=["Matrix", "Counts"])
def test_matrices_of_other_types_are_read(schema, x):
    if schema is not MATRIX and "bool" in str(getattr(x, "dtype", "")):
        x = np.vstack([x.toarray() if sp.issparse(x) else x])[2:]
    expected = np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float32)
    store = schema.learn({"x": x}).read({"x": x})["x"]
    np.testing.assert_array_equal(store.gather(np.arange(len(expected))).numpy(), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[1, 2]], "data must be an AnnData, a DataFrame or a dict of arrays, not list"),
        (None, "dict of arrays, not NoneType"),
        (np.ones((3, 3)), "dict of arrays, not ndarray"),
        (3, "dict of arrays, not int"),
        ("cells.h5ad", "not the path 'cells.h5ad': read it first, as by anndata.read_h5ad"),
        (Path("cells.h5ad"), "not the path 'cells.h5ad'"),
        ({}, "field 'counts': no array 'X' in the data"),
        (pd.DataFrame(), "the data has no cells"),
        (cells()[:0].copy(), "the data has no cells"),
        ({"counts": counts(), "batch": ["a"] * 5}, "differ in their number of rows: 'counts' has 6, 'batch' has 5"),
        ({"counts": counts(), "batch": np.ones((N, 2))}, "field 'batch': 'batch' must have one value for each cell"),
    ],
    ids=[
        "list",
        "none",
        "array",
        "int",
        "path",
        "Path",
        "empty dict",
        "empty frame",
        "no cells",
        "lengths",
        "2-d column",
    ],
)
def test_data_of_another_kind(data, message):
    with pytest.raises((SchemaError, TypeError), match=message):
        fi.fit("scvi", data, max_epochs=1, progress=False)
    if not isinstance(data, dict):
        learnt = SCHEMA.learn(cells())
        with pytest.raises((SchemaError, TypeError), match=message):
            read(data, learnt)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"batch": ["s1", "s2"]}, "field 'batch' is read from one column, and .'s1', 's2'. is not the name of one"),
        ({"counts": "counts"}, "no 'counts' in the AnnData; matrices are at 'X', 'layers/counts'; columns of obs are"),
        (
            {"counts": "raw"},
            r"no 'raw' .*\.raw is not read: adata.layers\['counts'\] = adata.raw.* makes it 'la",
        ),
        ({"counts": "raw/X"}, r"no 'raw/X' in the AnnData.*\.raw is not read"),
        ({"counts": "layers/none"}, "no 'layers/none' in the AnnData; matrices are at 'X', 'layers/counts'"),
        ({"counts": "X/more"}, "no 'X/more' in the AnnData"),
        ({"counts": 3}, "field 'counts': no '3' in the AnnData"),
        ({"counts": 0.5}, "field 'counts' is read from a column of obs, from several .* not from 0.5$"),
        ({"counts": True}, "field 'counts' is read from .* not from True$"),
        ({"counts": {"a": 1}}, "field 'counts' is read from"),
        ({"counts": ""}, "field 'counts' is read from .* not from ''$"),
        ({"batch": []}, r"field 'batch' is read from .* not from \[\]; None switches it off"),
        ({"batch": Positive("batch")}, "field 'batch' is of the kind Category, not Positive"),
        ({"counts": None}, "field 'counts' cannot be switched off"),
        ({"nope": "batch"}, "no field 'nope'; this program reads counts, batch"),
        ("batch", "fields must be a mapping from fields to places, such as .'counts': 'X'., not 'batch'"),
        (["batch"], r"fields must be a mapping .* not \['batch'\]"),
        ({"continuous": "batch"}, "column 'batch' is not numeric"),
    ],
    ids=str,
)
def test_places_that_are_none(places, message):
    refused(SCHEMA, cells(), places, message)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("continuous", [1j, 2, 3, 4, 5, 6], "column 'col' is not numeric .complex128."),
        ("continuous", pd.array([1, 2, None] * 2, dtype="Int64"), "column 'col' of cell 'cell2' is not finite"),
        ("continuous", pd.array([1, 2, None] * 2, dtype="Float64"), "column 'col' of cell 'cell2' is not finite"),
        ("continuous", [1e300, 1, 2, 3, 4, 5], "column 'col' has values too large to square; use another unit"),
        ("continuous", [3.0] * N, "column 'col' is constant in the 6 cells"),
        ("continuous", pd.to_datetime(["2020-01-01", "2020-01-02"] * 3), "column 'col' is not numeric"),
        ("size_factor", [1e300, 1, 2, 3, 4, 5], r"column 'col' of cell 'cell0' is 1e\+300, beyond single precision"),
        ("size_factor", [1e-300, 1, 2, 3, 4, 5], "column 'col' of cell 'cell0' is 1e-300, beyond single precision"),
        ("size_factor", [0, 1, 2, 3, 4, 5], "column 'col' of cell 'cell0' is not positive"),
        ("batch", pd.array(["a", None] * 3, dtype="string"), "column 'col' of cell 'cell1' is missing"),
        ("batch", pd.array([1, None] * 3, dtype="Int64"), "column 'col' of cell 'cell1' is missing"),
    ],
)
def test_columns_that_are_wrong(field, values, message):
    refused(SCHEMA, cells(col=values), {field: "col"}, f"field '{field}': {message}")


@pytest.mark.parametrize("kind", [Levels, Outcome])
def test_a_column_of_a_log_that_is_wrong(kind):
    schema = Schema(k=kind("k"))
    with pytest.raises(SchemaError, match="field 'k': column 'k' of cell 'cell0' is (missing|not finite)"):
        schema.learn(cells(k=[np.nan, 1, 2, 1, 2, 3])).read(cells(k=[np.nan, 1, 2, 1, 2, 3]))


def test_codes_and_targets_of_arrays_are_whole_numbers():
    with pytest.raises(SchemaError, match="field 'k': cell '1', column 0 is 0.25, not a code"):
        Schema(k=Codes("k")).learn({"k": [0, 0.25]})
    with pytest.raises(SchemaError, match="field 'k': it holds text, not real numbers"):
        Schema(k=Codes("k")).learn({"k": ["a", "b"]})
    with pytest.raises(SchemaError, match="target 1.000000001 of cell '1' is not the code of a gene of 3"):
        Schema(x=Matrix(), targets=Targets()).learn({"x": np.ones((2, 3)), "targets": np.array([0, 1.000000001])})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": ["a", "b"]}, "field 'x': it holds text"),
        ({"x": [1j, 2]}, "field 'x': it holds complex numbers"),
        ({"x": np.array([1, "a"], dtype=object)}, "field 'x': cell '1' is 'a', which is no number"),
        ({"x": [[1, 2], [3]]}, "field 'x': its rows differ in length"),
        ({"x": [1.0, 1e300]}, "field 'x': row 1 is not finite"),
        ({"x": 3}, "field 'x' is a single number"),
        ({}, "the data has no cells"),
        ([1], "reads a dict of arrays, not list"),
        ({"x": np.zeros(4), "y": np.zeros(5)}, "fields differ in their number of rows"),
    ],
    ids=str,
)
def test_arrays_of_a_program_without_a_schema(data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(data, None)


def test_arrays_that_pass_through_keep_their_kind_and_are_not_written_to():
    fixed = np.arange(4.0)
    fixed.setflags(write=False)
    arrays = {"x": fixed, "on": np.array([True, False] * 2), "n": np.arange(4, dtype=np.uint16), "s": sp.eye(4).tocsr()}
    batch = read(arrays, None).batch(np.arange(4))
    kinds = {"x": torch.float32, "on": torch.bool, "n": torch.int64, "s": torch.float32}
    assert {name: batch[name].dtype for name in kinds} == kinds and batch["s"].tolist() == np.eye(4).tolist()


def test_a_store_of_what_cannot_be_written_to_is_a_copy():
    fixed = np.arange(4.0)
    fixed.setflags(write=False)
    store = DenseStore(fixed)  # torch would warn, and warnings of our own lines fail
    store.values[0] = 7
    assert fixed[0] == 0


def test_modalities_and_joined_counts_are_checked_alike():
    with pytest.raises(ValueError, match="modality 'rna': cell 'cell2', gene 'g1' is 0.5; counts must be"):
        join_modalities({"rna": put(0.5)})
    with pytest.raises(ValueError, match="modality 'rna': it holds complex numbers"):
        join_modalities({"rna": cells(counts(complex))})
    with pytest.raises(SchemaError, match="field 'modality': no column 'modality' in obs: join the assays first"):
        Schema(counts=Counts(), modality=Modality("modality")).learn(cells())


@pytest.mark.parametrize("size", [0, -1, 1.5, "a", None])
def test_the_size_of_minibatches_is_checked(size):
    with pytest.raises((ValueError, TypeError), match="batch_size must be a whole number of at least 1"):
        fi.Loader(read({"x": np.arange(4.0)}, None), np.arange(4), size)


# ---- tensors -------------------------------------------------------------------------------------------------------
TENSORS = [
    (lambda t: t.to(torch.complex64), "holds complex numbers"),
    (lambda t: torch.conj(t.to(torch.complex64)), "holds complex numbers"),
    (lambda t: t.to_sparse(), "is a tensor that is not dense .layout torch.sparse_coo.: pass tensor.to_dense"),
]


@pytest.mark.parametrize(("form", "message"), TENSORS, ids=["complex", "conjugate", "sparse"])
def test_a_tensor_without_real_numbers_to_read_is_refused_by_name(form, message):
    x = torch.from_numpy(counts(np.float32))
    for schema in (MATRIX, Schema(x=Counts())):
        refused(schema, {"x": form(x)}, None, f"field 'x': it {message}")
    refused(
        Schema(x=Matrix(), size=Positive("size")), {"x": x, "size": form(x[:, 0])}, None, f"field 'size': it {message}"
    )
    with pytest.raises(SchemaError, match=f"field 'x': it {message}"):
        read({"x": form(x)}, None)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float8_e5m2, torch.int8, torch.bool])
def test_tensors_of_small_kinds_are_read(kind):
    x = torch.from_numpy(np.arange(N * 3).reshape(N, 3) % 2).to(kind)
    data = {"x": x, "size": (x[:, 0].float() + 1).to(kind)}
    stores = Schema(x=Matrix(), size=Positive("size")).learn(data).read(data)
    assert stores["x"].gather(np.arange(N)).tolist() == x.float().tolist()
    assert stores["size"].gather(np.arange(N)).tolist() == data["size"].float().tolist()
    read(data, None)
