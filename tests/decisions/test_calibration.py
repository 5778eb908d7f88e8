"""Populations with known truth: levels, the shared prior, and the error rate that they keep on sparse counts."""

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide.catalog.data.simulate import SparseCounts, poisson_lognormal
from fieldguide.decisions import calls, differential_expression
from fieldguide.decisions.expression.fold_change_prior import shared_prior
from fieldguide.decisions.expression.level_error import Totals, level_draws
from fieldguide.inference import fit


def test_levels_follow_the_counts_where_there_are_some_and_the_model_where_there_are_none():
    totals = Totals(
        *(np.array(v, dtype=float) for v in ([900, 0, 50, 400], [1000, 0.01, 25, 400], [1000, 0.01, 25, 8000]))
    )
    factor = level_draws(totals, 20_000, np.random.default_rng(0))
    mean, sd = factor.mean(0), factor.std(0)
    assert mean[0] == pytest.approx(0.9, abs=0.01) and sd[0] == pytest.approx(30 / 1000, rel=0.1)
    assert mean[1] == pytest.approx(1, abs=0.05) and sd[1] > 1, "the model's mean is worth half a count"
    assert mean[2] == pytest.approx(50.5 / 25.5, rel=0.02)
    assert sd[3] == pytest.approx((1 / 20.5) ** 0.5, rel=0.05), "overdispersion: 400 counts are worth 20"


def test_the_shared_prior_keeps_the_rate_that_a_flat_one_breaks():
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(1000) < 0.8, rng.normal(0, 0.08, 1000), rng.normal(0, 1.5, 1000))
    noise = rng.uniform(0.1, 0.8, 1000)
    lfc = truth + noise * rng.normal(size=1000) + noise * rng.normal(size=(1000, 1000))
    weights, scales, proportions = shared_prior(lfc)
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-5)
    assert proportions.sum() == pytest.approx(1)
    assert proportions[scales < 0.3].sum() == pytest.approx(0.8, abs=0.07)

    def false_share(weights):
        sides = [(weights * side).sum(0) for side in (lfc >= 0.5, lfc <= -0.5)]
        called = calls(np.clip(np.maximum(*sides), 0, 1), 0.05)
        return (called & (np.abs(truth) < 0.5)).sum() / called.sum(), called.sum()

    assert false_share(weights)[0] <= 0.08
    assert false_share(np.full_like(lfc, 1e-3))[0] > 0.12
    inside = np.abs((weights * lfc).sum(0) - truth) < 1.96 * np.sqrt(
        (weights * (lfc - (weights * lfc).sum(0)) ** 2).sum(0)
    )
    assert inside.mean() == pytest.approx(0.95, abs=0.03)


@pytest.fixture(scope="module")
def sparse():
    """Sparse counts of two types with known proportions, and a quick fit."""
    source = SparseCounts(1_200, 200, n_types=2, n_batches=1, zeros=0.85, seed=3)
    blocks, types, _ = zip(*source.blocks(), strict=True)
    counts, types = np.concatenate([block.toarray() for block in blocks]), np.concatenate(types)
    far_types, _, mean = source.draw_cells(np.random.default_rng(9), source.truth, 15_000)
    rho = mean / mean.sum(1, keepdims=True)
    lfc = np.log2(rho[far_types == 1].mean(0) / rho[far_types == 0].mean(0))
    expressed = counts.sum(0) > 0
    obs = pd.DataFrame({"type": np.array(["a", "b"])[types]}, index=[f"cell_{i}" for i in range(len(types))])
    data = anndata.AnnData(
        counts[:, expressed], obs=obs, var=pd.DataFrame(index=[f"gene_{g}" for g in np.flatnonzero(expressed)])
    )
    fitted = fit("scvi", data, max_epochs=40, n_hidden=64, progress=False, early_stopping=None)
    return data, fitted.posterior(particles=50), pd.Series(lfc[expressed], data.var_names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fieldguide.decisions.UntrustworthyWeights")
def test_sparse_counts_keep_the_nominal_rate_only_when_calibrated(sparse):
    data, posterior, lfc = sparse
    share = {}
    for calibrate in (True, False):
        decision = differential_expression(posterior, "type", "b", "a", delta=0.5, calibrate=calibrate)
        table = decision.table.loc[lfc.index]
        share[calibrate] = (table["is_de"] & (lfc.abs() < 0.5)).sum() / table["is_de"].sum()
        missed = ((lfc < table["lfc_low"]) | (lfc > table["lfc_high"])).mean()
        assert missed <= 0.12 if calibrate else missed > 0.4
    assert share[True] <= 0.12 and share[False] > 0.3


@pytest.mark.filterwarnings("ignore::fieldguide.decisions.UntrustworthyWeights")
def test_a_group_split_at_random_shows_nothing():
    data = poisson_lognormal(400, 60, seed=2)
    posterior = fit("scvi", data, max_epochs=40, n_hidden=64, progress=False, early_stopping=None).posterior(
        particles=50
    )
    half = np.random.default_rng(0).permutation(np.flatnonzero(data.obs["cell_type"] == "type_0"))
    masks = [np.isin(np.arange(data.n_obs), half[k::2]) for k in (0, 1)]
    assert not differential_expression(posterior, None, *masks).table["is_de"].any()
    vanilla = differential_expression(posterior, None, *masks, mode="vanilla").table
    assert (vanilla["bayes_factor"].abs() < 3).mean() >= 0.99
    across = differential_expression(posterior, "cell_type", "type_1", delta=0.5)
    truth = np.abs(data.varm["lfc"][:, 1])
    table = across.table.loc[data.var_names]
    assert (table["is_de"] & (truth < 0.3)).sum() <= 2 and table["is_de"][truth > 0.8].mean() > 0.9
    assert across.settings["reference"] == "all other cells"


@pytest.mark.filterwarnings("ignore::fieldguide.decisions.UntrustworthyWeights")
def test_the_table_says_what_the_counts_are_and_data_stay_untouched(sparse):
    data, posterior, _ = sparse
    before = data.copy()
    decision = differential_expression(posterior, "type", "b", "a")
    table, is_b = decision.table, (data.obs["type"] == "b").to_numpy()
    assert set(table.index) == set(data.var_names)
    np.testing.assert_allclose(table["counts_1"], data[is_b, table.index].X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["nonzero_2"], (data[~is_b, table.index].X > 0).mean(0), rtol=1e-5)
    assert table["probability"].is_monotonic_decreasing and table["fdr"].is_monotonic_increasing
    np.testing.assert_array_equal(table["is_de"], table["fdr"] <= 0.05)
    np.testing.assert_allclose(table[["expression_1", "expression_2"]].sum(), 1, atol=2e-3)
    assert (before.X == data.X).all() and before.obs.equals(data.obs) and before.var.equals(data.var)
    figure = decision.plot()
    assert len(figure.axes) == 2
    assert "gene_" in decision._repr_html_()
