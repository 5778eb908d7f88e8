"""Schemas, stores and loaders: what is read is what was there, and bad input is named."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.inference import (
    Categories,
    Category,
    Continuous,
    Counts,
    Loader,
    Matrix,
    Positive,
    Schema,
    SchemaError,
    SizeFactor,
    fit,
)
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.data.storage import BLOCK, DenseStore, SparseStore

SCHEMA = Schema(
    counts=Counts(),
    batch=Category("batch", optional=True),
    categorical=Categories("", optional=True),
    continuous=Continuous("", optional=True),
    size_factor=Positive("", optional=True),
)


def small(cells=30, genes=6, sparse=True, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (cells, genes)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"batch": np.where(np.arange(cells) % 2, "one", "two"), "depth": rng.gamma(2, size=cells), "donor": "d"},
        index=[f"cell{i}" for i in range(cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(genes)])
    return anndata.AnnData(sp.csr_matrix(counts) if sparse else counts, obs=obs, var=var)


@pytest.mark.parametrize("sparse", [True, False])
def test_fields_arrive_as_they_are_in_the_anndata(sparse):
    data = small(sparse=sparse)
    schema = SCHEMA.learn(data, {"continuous": ["depth"], "categorical": ["donor", "batch"], "size_factor": "depth"})
    dataset = read(data, schema)
    rows = np.array([7, 2, 2, 29])
    batch = dataset.batch(rows)
    dense = data.X.toarray() if sparse else data.X
    np.testing.assert_array_equal(batch["counts"].numpy(), dense[rows])
    assert batch["batch"].tolist() == [0, 1, 1, 0] and batch["categorical"].tolist() == [[0, 0], [0, 1], [0, 1], [0, 0]]
    np.testing.assert_allclose(batch["size_factor"].numpy(), data.obs["depth"].iloc[rows], rtol=1e-6)
    every = dataset.batch(np.arange(30))["continuous"]
    assert abs(every.mean().item()) < 1e-6 and every.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert schema.sizes() == {"n_genes": 6, "n_batch": 2, "n_categorical": (1, 2), "n_continuous": 1}


def test_reading_changes_nothing_in_the_anndata():
    data = small()
    before = data.copy()
    fit("scvi", data, max_epochs=2, progress=False, n_hidden=8)
    assert (data.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(data.obs, before.obs)
    pd.testing.assert_frame_equal(data.var, before.var)
    assert not data.uns and not data.obsm


def spoil(change):
    data = small()
    change(data)
    return data


def set_count(value):
    def change(data):
        x = data.X.toarray()
        x[3, 2] = value
        data.X = sp.csr_matrix(x)

    return change


def empty_cell(data):
    x = data.X.toarray()
    x[4] = 0
    data.X = sp.csr_matrix(x)


def empty_gene(data):
    x = data.X.toarray()
    x[:, 5] = 0
    data.X = sp.csr_matrix(x)


@pytest.mark.parametrize(
    ("data", "places", "message"),
    [
        (spoil(set_count(-1.0)), {}, "field 'counts': cell 'cell3', gene 'gene2' is -1"),
        (spoil(set_count(0.5)), {}, "cell 'cell3', gene 'gene2' is 0.5; counts must be non-negative integers"),
        (spoil(set_count(np.nan)), {}, "cell 'cell3', gene 'gene2' is nan"),
        (spoil(set_count(np.inf)), {}, "cell 'cell3', gene 'gene2' is inf"),
        (spoil(empty_cell), {}, "cell 'cell4' has no counts"),
        (small(), {"batch": "sample"}, "field 'batch': no column 'sample' in obs; there are batch, depth, donor"),
        (small(), {"sample": "batch"}, "no field 'sample'; this program reads counts"),
        (small(), {"counts": None}, "field 'counts' cannot be switched off"),
        (small(), {"counts": "layers/raw"}, "no 'layers/raw' in the AnnData"),
        (small(), {"continuous": ["donor"]}, "column 'donor' is not numeric"),
        (spoil(lambda d: d.obs.__setitem__("depth", 1.0)), {"continuous": "depth"}, "column 'depth' is constant"),
        (
            spoil(lambda d: d.obs.__setitem__("depth", [np.nan] + [1.0] * 29)),
            {"continuous": "depth"},
            "'depth' of cell 'cell0' is not finite",
        ),
        (
            spoil(lambda d: d.obs.__setitem__("depth", [1.0, 0.0] * 15)),
            {"size_factor": "depth"},
            "'depth' of cell 'cell1' is not positive",
        ),
        (
            spoil(lambda d: d.obs.__setitem__("batch", [None] + ["a"] * 29)),
            {},
            "column 'batch' of cell 'cell0' is missing",
        ),
    ],
)
def test_bad_input_is_named(data, places, message):
    with pytest.raises(SchemaError, match=message):
        read(data, SCHEMA.learn(data, places))


def test_a_gene_without_counts_is_a_warning_that_names_it():
    with pytest.warns(UserWarning, match=r"gene 'gene5' has no count in any cell \(1 such genes\)"):
        SCHEMA.learn(spoil(empty_gene))


def test_new_data_has_to_match_the_training_data():
    schema = SCHEMA.learn(small())
    unseen = small()
    unseen.obs["batch"] = ["three"] + ["one"] * 29
    with pytest.raises(SchemaError, match="category 'three' of column 'batch' was not in the training data"):
        read(unseen, schema)
    with pytest.raises(SchemaError, match="gene 'gene5' of the training data is missing"):
        read(small()[:, :5].copy(), schema)
    shuffled = small()[:, [3, 0, 5, 1, 2, 4]].copy()
    rows = np.arange(30)
    torch.testing.assert_close(
        read(shuffled, schema).batch(rows)["counts"], read(small(), schema).batch(rows)["counts"]
    )
    one = small()[:1].copy()
    assert read(one, schema).batch(np.array([0]))["counts"].shape == (1, 6)


def test_arrays_and_tables_pass_through():
    table = pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]})
    assert read(table, None).batch(np.array([1]))["y"].item() == 1
    batch = read({"x": np.zeros((4, 2)), "label": np.arange(4)}, None).batch(np.array([3, 1]))
    assert batch["x"].dtype == torch.float32 and batch["label"].tolist() == [3, 1] and batch["index"].tolist() == [3, 1]
    with pytest.raises(ValueError, match="fields differ in their number of rows"):
        read({"x": np.zeros(4), "y": np.zeros(5)}, None)
    with pytest.raises(ValueError, match="field 'x': row 2 is not finite"):
        read({"x": np.array([0, 1, np.nan])}, None)
    with pytest.raises(TypeError, match="not AnnData"):
        read(small(), None)
    with pytest.raises(SchemaError, match="column 1 is not finite"):
        Schema(x=Matrix()).learn({"x": np.array([[0, np.inf]])}).read({"x": np.array([[0, np.inf]])})


@given(st.integers(1, 70), st.integers(1, 20), st.booleans(), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_each_row_once_and_no_batch_has_one_cell(rows, batch_size, shuffle, seed, epoch):
    dataset = read({"x": np.arange(100.0)}, None)
    chosen = np.random.default_rng(seed).permutation(100)[:rows]
    loader = Loader(dataset, chosen, batch_size, shuffle, seed)
    loader.epoch = epoch
    batches = [b["index"].numpy() for b in loader]
    assert sorted(np.concatenate(batches)) == sorted(chosen)
    assert len(batches) == len(loader)
    assert all(len(b) > 1 for b in batches[:-1]) or batch_size == 1
    if rows > 1 and batch_size > 1:
        assert len(batches[-1]) > 1
    again = [b["index"].numpy() for b in loader]
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_epochs_and_seeds_change_the_order():
    dataset = read({"x": np.arange(100.0)}, None)

    def order(seed, epoch):
        loader = Loader(dataset, np.arange(100), 32, True, seed)
        loader.epoch = epoch
        return np.concatenate([b["index"].numpy() for b in loader]).tolist()

    assert order(0, 0) != order(0, 1) != order(1, 1)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_between_them(world):
    dataset = read({"x": np.arange(101.0)}, None)
    loaders = [Loader(dataset, np.arange(101), 8, True, 0, rank, world) for rank in range(world)]
    parts = [[b["index"].numpy() for b in loader] for loader in loaders]
    assert len({len(p) for p in parts}) == 1 and all(len(b) > 1 for p in parts for b in p)
    assert sorted(np.concatenate([i for p in parts for i in p])) == list(range(101))


@pytest.mark.parametrize("form", ["csr", "csr_gzip", "dense"])
def test_a_backed_file_gives_the_same_cells_as_memory(tmp_path, form):
    data = small(cells=3 * BLOCK + 17, sparse=form != "dense")
    path = tmp_path / "cells.h5ad"
    data.write_h5ad(path, compression="gzip" if form == "csr_gzip" else None)
    backed = anndata.read_h5ad(path, backed="r")
    schema = SCHEMA.learn(backed)
    dataset = read(backed, schema)
    assert dataset.backed
    dense = data.X.toarray() if form != "dense" else data.X
    rows = np.random.default_rng(0).permutation(data.n_obs)[:900]
    np.testing.assert_array_equal(dataset.batch(rows[:50])["counts"].numpy(), dense[rows[:50]])
    loader = Loader(dataset, rows, 64, True, seed=1)
    seen = []
    for batch in loader:
        index = batch["index"].numpy()
        np.testing.assert_array_equal(batch["counts"].numpy(), dense[index])
        np.testing.assert_array_equal(batch["batch"].numpy(), 1 - index % 2)
        seen.append(index)
    assert sorted(np.concatenate(seen)) == sorted(rows) and len(seen) == len(loader)


def test_backed_files_that_cannot_be_read_by_blocks_are_refused(tmp_path):
    data = small()
    data.X = data.X.tocsc()
    data.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(ValueError, match="stored by columns"):
        SCHEMA.learn(anndata.read_h5ad(tmp_path / "csc.h5ad", backed="r"))
    small().write_h5ad(tmp_path / "csr.h5ad")
    with pytest.raises(ValueError, match="view of a backed AnnData"):
        SCHEMA.learn(anndata.read_h5ad(tmp_path / "csr.h5ad", backed="r")[:10])
    with pytest.raises(ValueError, match="view of a backed AnnData"):
        SCHEMA.learn(anndata.read_h5ad(tmp_path / "csr.h5ad", backed="r")[:, ::-1])


def test_a_matrix_that_is_not_canonical_is_read_right_and_left_alone():
    matrix = sp.csr_matrix((np.array([1, 2, 3]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    assert SparseStore(matrix).gather(np.array([0])).tolist() == [[2, 0, 4]]
    assert matrix.indices.tolist() == [2, 0, 2] and matrix.data.tolist() == [1, 2, 3]


def test_a_sparse_store_gathers_like_a_dense_one():
    matrix = sp.random(50, 20, 0.2, format="csr", random_state=0, dtype=np.float32)
    rows = np.array([3, 3, 49, 0])
    torch.testing.assert_close(SparseStore(matrix).gather(rows), DenseStore(matrix.toarray()).gather(rows))
    store = SparseStore(matrix)
    columns, values = torch.from_numpy(matrix.indices), torch.from_numpy(matrix.data)
    torch.testing.assert_close(store.gather_resident(rows, columns, values), store.gather(rows))
    torch.testing.assert_close(
        SparseStore(matrix).load(rows).gather(np.arange(4)), DenseStore(matrix.toarray()).gather(rows)
    )


@pytest.mark.parametrize("scale", [1.0, 0.01, 100.0])
def test_size_factors_count_up_to_a_factor(scale):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (20, 4)) + 1.0
    totals = counts.sum(1)
    data = anndata.AnnData(counts, obs=pd.DataFrame({"sf": totals * scale}, index=[f"c{i}" for i in range(20)]))
    schema = Schema(counts=Counts(), size_factor=SizeFactor("sf")).learn(data)
    np.testing.assert_allclose(schema.read(data)["size_factor"].values, totals, rtol=1e-6)
    half = data[:10].copy()
    np.testing.assert_allclose(
        schema.read(half)["size_factor"].values, totals[:10], rtol=1e-6
    )  # the scale that was learnt
