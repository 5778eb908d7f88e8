"""Edges that several fits agree on: shares, intervals and draws against counting by hand."""

import arviz
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from fieldguide.catalog.data.factor_graphs import factor_graph_sim
from fieldguide.catalog.dcdfg import DCDFG
from fieldguide.catalog.parts.settling_graph import SPEED
from fieldguide.decisions import GraphEnsemble, causal_graph, graph_ensemble, graph_scores
from fieldguide.decisions.graphs.dag import is_acyclic
from fieldguide.decisions.graphs.graph import through_factors
from fieldguide.inference import fit

SEEDS = st.integers(0, 10**6)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 6), st.booleans())
def test_shares_are_counts_of_the_graphs_of_the_fits(seed, n, acyclic):
    rng = np.random.default_rng(seed)
    tables = [pd.DataFrame(rng.random((4, 4)), index=list("abcd"), columns=list("abcd")) for _ in range(n)]
    found = graph_ensemble(tables, 0.4, acyclic)
    graphs = [causal_graph(t, 0.4, acyclic).edges.to_numpy() for t in tables]
    share = np.mean(graphs, 0)
    np.testing.assert_allclose(found.probability, share)
    assert len(found.table) == (share > 0).sum() and (np.diff(found.table["probability"]) <= 0).all()
    for row in found.table.itertuples():
        i, j = "abcd".index(row.source), "abcd".index(row.target)
        values = [t.iloc[i, j] for t in tables]
        assert row.probability == share[i, j] and row.within == pytest.approx(np.mean(values))
        assert np.isnan(row.sd) if n == 1 else row.sd == pytest.approx(np.std(values, ddof=1))
        assert row.low < row.probability <= row.high and row.kept == found.edges.iloc[i, j]
        k = round(n * share[i, j])
        assert row.low == pytest.approx(beta(k + 0.5, n - k + 0.5).ppf(0.05))
        assert row.high == (1.0 if k == n else pytest.approx(beta(k + 0.5, n - k + 0.5).ppf(0.95)))
    if acyclic:
        assert is_acyclic(found.edges) and found.diagnostics["is_dag"].all()
        kept = found.edges.to_numpy()
        for i, j in np.argwhere((share >= 0.4) & ~kept):
            more = kept.copy()
            more[i, j] = True
            assert not is_acyclic(more), "an edge that most find is left out only where it closes a cycle"
    else:
        assert np.array_equal(found.edges, share >= 0.4)
    for member, graph, shd in zip(found.members, graphs, found.diagnostics["shd"], strict=True):
        assert np.array_equal(member.edges, graph)
        assert shd == graph_scores(graph, found.edges)["shd"]


def test_draws_of_one_fit_have_the_probabilities_of_its_masks():
    a = np.array([[0.5, 0.1], [0.2, 0.3], [0.1, 0.4], [0.3, 0.3]])
    b = np.array([[0.1, 0.6], [0.6, 0.2], [0.5, 0.1], [0.2, 0.6]])
    program = DCDFG(4, rank=2, prior=0.3)
    with torch.no_grad():
        program.guide_logits.copy_(torch.tensor(np.stack([a, b, 1 - a - b], -1)).log() / SPEED)
    a, b = (part.double().numpy() for part in program.edge_probabilities())
    assert a[0, 0] == pytest.approx(0.5) and b[1, 0] == pytest.approx(0.6)
    found = graph_ensemble([(a, b)], acyclic=False, genes=list("wxyz"))
    edge = found.to_arviz(draws=20_000, seed=1).posterior["edge"]
    assert edge.dims == ("chain", "draw", "source", "target") and edge.shape == (1, 20_000, 4, 4)
    wanted = through_factors(a, b)
    error = np.sqrt(wanted * (1 - wanted) / 20_000) + 1e-9
    assert (np.abs(edge.to_numpy()[0].mean(0) - wanted) < 4 * error).all()
    one, two = edge.sel(source="w", target="x").to_numpy()[0], edge.sel(source="w", target="y").to_numpy()[0]
    joint = sum_over_masks(a, b, [(0, 1), (0, 2)])
    assert abs((one & two).mean() - joint) < 4 * (joint / 20_000) ** 0.5
    assert abs(joint - wanted[0, 1] * wanted[0, 2]) > 8 * (joint / 20_000) ** 0.5, "edges of a factor go together"
    np.testing.assert_array_equal(edge, found.to_arviz(draws=20_000, seed=1).posterior["edge"])


def test_a_gene_and_a_factor_are_joined_one_way_at_most():
    half = np.full((3, 1), 0.5)
    edge = (
        graph_ensemble([(half, half)], acyclic=False).to_arviz(draws=400).posterior["edge"].to_numpy()[0].astype(bool)
    )
    assert edge[:, 0, 1].any() and not (edge[:, 0, 1] & edge[:, 1, 2]).any()


def sum_over_masks(a, b, pairs):
    """Probability that all pairs are joined through some factor, over every pattern of the edges concerned."""
    sources, targets = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
    m, total = a.shape[1], 0.0
    for into in np.ndindex(*[2] * (len(sources) * m)):
        u = np.reshape(into, (len(sources), m))
        for out in np.ndindex(*[2] * (len(targets) * m)):
            v = np.reshape(out, (len(targets), m))
            if all((u[sources.index(i)] * v[targets.index(j)]).any() for i, j in pairs):
                p = np.where(u, a[sources], 1 - a[sources]).prod() * np.where(v, b[targets], 1 - b[targets]).prod()
                total += p
    return total


def test_fits_that_disagree_show_in_rhat():
    sure, unsure = np.array([[0, 0.5, 0.5], [0, 0, 0.5], [0, 0, 0]]), np.array([[0, 0.9, 0.5], [0, 0, 0.5], [0, 0, 0]])
    found = graph_ensemble([sure, unsure], genes=["a", "b", "c"])
    rhat = arviz.rhat(found.to_arviz(draws=500, seed=0))["edge"]
    assert float(rhat.sel(source="a", target="b")) > 1.1 > 1.02 > float(rhat.sel(source="a", target="c"))


def test_an_ensemble_of_seeds(tmp_path):
    world = factor_graph_sim(101, d=8, m=2, n_regimes=8, cells=60, p_factor=0.4, p_gene=0.4)
    settings = {"rank": 3, "mechanism": "linear", "batch_size": 240, "learning_rate": 1e-2, "progress": False}
    fits = [fit("dcdfg", world.data, seed=s, max_epochs=30, early_stopping=None, **settings) for s in range(3)]
    found = graph_ensemble(fits)
    assert isinstance(found, GraphEnsemble) and found.is_dag and found.settings["fits"] == 3
    assert set(np.unique(found.probability * 3).round(6)) <= {0.0, 1.0, 2.0, 3.0}
    for member, fitted in zip(found.members, fits, strict=True):
        pd.testing.assert_frame_equal(member.edges, causal_graph(fitted).edges)
    assert graph_scores(found, world.edges)["average_precision"] > 0
    drawn = found.to_arviz(draws=50).posterior
    assert list(drawn["source"].values) == list(world.data.var_names) and drawn["edge"].shape == (3, 50, 8, 8)
    found.to_arviz(draws=5).to_netcdf(str(tmp_path / "graphs.nc"), engine="h5netcdf")
    found.plot().savefig(tmp_path / "graph.png")
    found.write(world.data)
    assert world.data.varp["graph"].max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: graph_ensemble([]), "at least one fit"),
        (lambda: graph_ensemble([np.zeros((2, 2)), np.zeros((3, 3))]), "fit 1 is of other genes than fit 0: 3, not 2"),
        (
            lambda: graph_ensemble([pd.DataFrame(np.zeros((2, 2)), n, n) for n in (["a", "b"], ["a", "c"])]),
            "fit 1 is of other genes than fit 0: gene 'c' in place of 'b'",
        ),
        (lambda: graph_ensemble([[[0, 2], [0, 0]]]), "the edge from 0 to 1 is 2"),
        (
            lambda: graph_ensemble([(np.full((2, 1), 0.7), np.full((2, 1), 0.6))]).to_arviz(),
            "gene 0 is joined to factor 0 with probability 1.3 in both directions",
        ),
    ],
    ids=["none", "sizes", "names", "large", "both ways"],
)
def test_ensembles_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()
