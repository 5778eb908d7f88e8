"""Interventional data that say little or cannot be: what each graph model makes of them, naming what is wrong."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.catalog import edge_strengths
from fieldguide.catalog.data.cyclic import cyclic_sim
from fieldguide.catalog.data.factor_graphs import factor_graph_sim
from fieldguide.catalog.dcdfg import DCDFG
from fieldguide.decisions import causal_graph, graph_scores, interventional_scores
from fieldguide.decisions.graphs.dag import is_acyclic
from fieldguide.inference import SchemaError, fit, split_interventions

pytestmark = pytest.mark.filterwarnings("ignore:acyclicity was not reached", "ignore:no cell has a target")
ENTRIES = {
    "dcdfg": {"rank": 2, "mechanism": "linear", "settle": 0.5, "max_epochs": 4, "learning_rate": 1e-2},
    "dcdfg, all pairs": {"rank": None, "mechanism": "linear", "settle": 0.5, "max_epochs": 4, "learning_rate": 1e-2},
    "nodags": {"max_epochs": 4},
}
GENES = ["tp53", "myc", "jun", "fos"]


def data(cells=40, seed=0, targets=None):
    """Cells of four genes, the last two of which follow the first two; each is a target in turn, and none."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(cells, 4)).astype(np.float32)
    x[:, 2:] += x[:, :2]
    named = [["", *GENES][i % 5] for i in range(cells)] if targets is None else targets
    obs = pd.DataFrame({"targets": named}, index=[f"cell{i}" for i in range(cells)])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))


def learn(name, adata, **settings):
    options = {"progress": False, "validation": 0.0, "early_stopping": None} | ENTRIES[name] | settings
    return fit(name.split(",")[0], adata, **options)


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if "," in n else n for n in ENTRIES])
def name(request):
    return request.param


def test_no_interventions(name):
    adata = data()
    adata.obs["targets"] = "control"
    with pytest.raises(SchemaError, match="'targets' names no target in any cell; for observational data alone"):
        learn(name, adata)
    with pytest.warns(UserWarning, match="no cell has a target: directions of edges rest on .* and cycles on nothing"):
        fitted = learn(name, adata, fields={"targets": None})
    assert list(interventional_scores(fitted).table.index) == ["control"]
    with pytest.raises(ValueError, match="no regime to hold out"):
        split_interventions(adata)


def test_a_target_that_is_no_gene(name):
    adata = data()
    adata.obs.loc["cell7", "targets"] = "myc,rela"
    with pytest.raises(SchemaError, match="target 'rela' of cell 'cell7' is none of the 4 genes"):
        learn(name, adata)
    fitted = learn(name, data())
    with pytest.raises(SchemaError, match="target 'rela' of cell 'cell7'"):
        interventional_scores(fitted, adata)


def test_one_cell_for_a_regime(name):
    adata = data(targets=["jun", *["myc"] * 10, *[""] * 29])
    with pytest.raises(ValueError, match="regime 'jun' has 1 cells .the first: 'cell0'"):
        split_interventions(adata)
    fitted = learn(name, adata, batch_size=1)
    scores = interventional_scores(fitted)
    assert scores.table.loc["jun", "cells"] == 1 and np.isfinite(scores.table).all(axis=None)
    alone = interventional_scores(fitted, adata[:1].copy())
    assert np.isfinite(alone.table).all(axis=None) and alone.diagnostics["se"].isna().all()


def test_a_constant_gene(name):
    adata = data()
    adata.X[:, 2] = 3.5
    with pytest.raises(
        ValueError, match="gene 'jun' has the value 3.5 in all 32 training cells .* .1 such genes.: .*out"
    ):
        learn(name, adata)
    adata.X[(adata.obs["targets"] == "jun").to_numpy(), 2] = 0.0
    with pytest.raises(
        ValueError, match="gene 'jun' has the value 3.5 in all 32 training cells in which it was not inter"
    ):
        learn(name, adata)
    codes = np.where(adata.obs["targets"] == "jun", 2, -1)
    with pytest.raises(ValueError, match="gene number 2 has the value 3.5"):
        learn(name, {"x": adata.X, "targets": codes})
    assert fit(name.split(",")[0], adata[:, [0, 1, 3]].copy(), fields={"targets": None}, max_epochs=1, progress=False)


def test_a_gene_that_is_a_target_in_every_cell(name):
    adata = data(targets=["jun"] * 40)
    if name == "nodags":
        with pytest.raises(ValueError, match="gene 'jun' is a target in every training cell: .*; leave it out"):
            learn(name, adata)
    else:
        scores = interventional_scores(learn(name, adata)).diagnostics["mean"]
        assert np.isfinite(scores).all() and scores["nll_all"] == pytest.approx(0.75 * scores["nll"])


def test_more_genes_than_cells(name):
    rng = np.random.default_rng(0)
    wide = {"x": rng.normal(size=(12, 30)).astype(np.float32), "targets": np.arange(12)}
    with pytest.warns(UserWarning, match="12 training cells for 30 genes: .* interventions that were held out"):
        fitted = learn(name, wide, max_epochs=30)
    assert np.isfinite(interventional_scores(fitted).table).all(axis=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*training cells for")
        learn(name, data(cells=5))


def test_a_graph_in_two_pieces(name):
    """Two worlds side by side: no edge from one to the other, and the piece without any edge stays in the graph."""
    if name == "nodags":
        made = cyclic_sim(5, cells=400, graph=np.kron(np.eye(2), [[0, 1], [1, 0]]) > 0)
        arrays, truth = made.arrays, made.adjacency
    else:
        rng = np.random.default_rng(0)
        arrays = {"x": rng.normal(size=(2000, 4)).astype(np.float32), "targets": np.arange(2000) % 5 - 1}
        truth = np.zeros((4, 4), dtype=bool)
        truth[0, 1] = truth[2, 3] = True
        for cause, effect in ((0, 1), (2, 3)):
            free = arrays["targets"] != effect
            arrays["x"][free, effect] = 0.9 * arrays["x"][free, cause] + 0.3 * arrays["x"][free, effect]
    alone = np.random.default_rng(1).normal(size=(len(arrays["x"]), 1)).astype(np.float32)
    arrays = {"x": np.concatenate([arrays["x"], alone], 1), "targets": arrays["targets"]}
    settings = {"max_epochs": 60, "batch_size": 500, "learning_rate": 0.02, "settle": 0.8, "masks": 16}
    if name == "nodags":
        settings = {"max_epochs": 60, "batch_size": 500, "learning_rate": 0.02}
    fitted = learn(name, arrays, **settings)
    found = causal_graph(edge_strengths(fitted) > 0.1, acyclic=False) if name == "nodags" else causal_graph(fitted)
    edges = found.edges.to_numpy()
    assert not edges[4].any() and not edges[:, 4].any() and 4 in found.to_networkx().nodes
    assert not edges[:2, 2:4].any() and not edges[2:4, :2].any()
    if name != "dcdfg":
        assert graph_scores(found, np.pad(truth, (0, 1)))["shd"] == 0


@pytest.mark.parametrize(
    ("rank", "settle"),
    [(4, 1.0), pytest.param(None, 0.5, marks=pytest.mark.slow), (None, 0.9)],
    ids=["factors, never settled", "pairs, settled", "pairs, in a fixed order"],
)
def test_a_graph_whose_cycles_stay(rank, settle):
    """Two genes that drive each other, no price on cycles: the acyclic graph of the likeliest edges, and a warning."""
    rng = np.random.default_rng(0)
    e, targets = rng.normal(size=(1000, 2)), np.arange(1000) % 2
    x = np.where(targets[:, None] == np.arange(2), e, 0.3 * e + 0.9 * e[:, ::-1])
    arrays = {"x": x.astype(np.float32), "targets": targets}
    options = {
        "constraints": (),
        "settle": settle,
        "rank": rank,
        "learning_rate": 0.03,
        "max_epochs": 25,
        "mechanism": "mlp",
    }
    how_many = r"2 edges .*, 1 would" if rank is None else r"\d edges .*, \d would"
    with pytest.warns(UserWarning, match=f"acyclicity was not reached: of {how_many} close a cycle"):
        fitted = learn("dcdfg", arrays, **options)
    found = causal_graph(fitted)
    assert found.is_dag and len(found.table) == 1
    if rank is None:
        kept, left = found.probability.to_numpy()[found.edges], found.probability.to_numpy()[found.edges.T]
        if settle > fitted.program.order:
            assert left[0] == 0, "the other one is ruled out"
        else:
            assert 0.5 <= left[0] <= kept[0], "the likelier of the two is kept"


def test_edges_that_are_left_out_are_counted():
    program = DCDFG(3, rank=None)
    wanted = torch.tensor([[0, 0.9, 0.2], [0.8, 0, 0.7], [0.6, 0.1, 0]])
    with torch.no_grad():
        program.guide_logits[..., 0] = wanted.clamp(0.01, 0.99).logit() / 2
    assert program.left_out() == (2, 4), "1 -> 0 and 2 -> 0 would close cycles"
    assert is_acyclic(program.acyclic_masks()[..., 0])
    program.settle_graph()
    assert program.left_out() == (2, 4) and len(program.remarks()) == 1


def test_factor_graphs_that_reach_acyclicity_say_nothing():
    world = factor_graph_sim(101, d=8, m=2, n_regimes=8, cells=60, p_factor=0.4, p_gene=0.4)
    program = DCDFG(8, rank=2)
    with torch.no_grad():
        on = torch.tensor(np.stack([world.into, world.out_of, ~(world.into | world.out_of)], -1))
        program.guide_logits.copy_(10 * on.float())
    program.settle_graph()
    assert program.left_out() == (0, int(world.into.sum() + world.out_of.sum())) and program.remarks() == []
