"""The simulators draw what their docstrings say, and the truth they store is the truth of the counts."""

import numpy as np
import pytest

from fieldguide.catalog.data import simulate


def dense(data):
    return data.X.toarray()


def logit_to_share(logit):
    return 1 / (1 + np.exp(-logit))


MAKERS = {
    "scvi_counts": lambda seed: simulate.scvi_counts(200, 60, seed=seed),
    "poisson_lognormal": lambda seed: simulate.poisson_lognormal(200, 30, seed=seed),
    "sparse_counts": lambda seed: simulate.sparse_counts(200, 80, zeros=0.7, seed=seed),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_same_seed_same_counts_and_other_seed_other_counts(make):
    first, again, other = dense(make(4)), dense(make(4)), dense(make(5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_counts_are_integers_and_survive_a_file(make, tmp_path):
    data = make(0)
    counts = dense(data)
    assert counts.dtype == np.float32 and (counts >= 0).all() and (counts == counts.round()).all()
    data.write_h5ad(tmp_path / "data.h5ad")
    again = simulate.anndata.read_h5ad(tmp_path / "data.h5ad")
    assert np.array_equal(dense(again), counts)
    assert again.uns["simulation"]["name"] == data.uns["simulation"]["name"]


@pytest.fixture(scope="module")
def recovery():
    return simulate.scvi_counts(seed=7)


def test_scvi_counts_shapes_and_proportions(recovery):
    assert recovery.shape == (3_000, 500)
    assert recovery.obsm["z"].shape == (3_000, 5)
    assert recovery.obs["cell_type"].nunique() == 5 and recovery.obs["batch"].nunique() == 2
    np.testing.assert_allclose(recovery.layers["rho"].sum(1), 1)


def test_scvi_counts_moments_given_the_truth(recovery):
    mean = np.exp(recovery.obs["log_library"].to_numpy())[:, None] * recovery.layers["rho"]
    theta, kept = recovery.var["theta"].to_numpy(), logit_to_share(-recovery.var["zero_logit"].to_numpy())
    second = kept * (mean + mean**2 * (1 + 1 / theta))  # E x² of the zero-inflated NB
    residual = (dense(recovery) - kept * mean) / np.sqrt(second - (kept * mean) ** 2)
    assert abs(residual.mean()) < 5 / np.sqrt(residual.size)
    assert np.mean(residual**2) == pytest.approx(1, abs=0.05)
    zeros = 1 - kept * (1 - (1 + mean / theta) ** -theta)
    assert np.mean(dense(recovery) == 0) == pytest.approx(zeros.mean(), abs=0.002)


def test_scvi_counts_proportions_follow_from_the_stored_decoder(recovery):
    truth = recovery.uns["simulation"]["decoder"]
    hidden = np.tanh(recovery.obsm["z"] @ truth["input"] + truth["bias"])
    logits = truth["base"] + hidden @ truth["output"] + truth["batch"][recovery.obs["batch"].cat.codes]
    np.testing.assert_allclose(simulate.softmax(logits), recovery.layers["rho"])


def test_scvi_counts_clusters_are_where_the_centres_say(recovery):
    centres = recovery.uns["simulation"]["centres"]
    distance = np.linalg.norm(recovery.obsm["z"][:, None] - centres, axis=-1)
    assert np.mean(distance.argmin(1) == recovery.obs["cell_type"].cat.codes) > 0.99
    spread = recovery.obsm["z"] - centres[recovery.obs["cell_type"].cat.codes]
    assert spread.std() == pytest.approx(recovery.uns["simulation"]["z_sd"], rel=0.05)


def test_scvi_counts_refuses_more_types_than_latents():
    with pytest.raises(ValueError, match="n_types=6 exceeds n_latent=5"):
        simulate.scvi_counts(10, 10, n_types=6)


@pytest.fixture(scope="module")
def types():
    return simulate.poisson_lognormal(10_000, n_types=5, seed=2)


def test_poisson_lognormal_log_rates_have_the_stated_moments(types):
    covariance = types.uns["simulation"]["covariance"]
    for code in range(5):
        log_rate = types.layers["log_rate"][types.obs["cell_type"].cat.codes == code]
        assert len(log_rate) == 2_000
        error = (log_rate.mean(0) - types.varm["log_rate_mean"][:, code]) / np.sqrt(np.diag(covariance) / 2_000)
        assert np.abs(error).max() < 5
        assert np.abs(np.cov(log_rate.T) - covariance).max() < 0.05


def test_poisson_lognormal_counts_are_thinned_poisson(types):
    counts, rate = dense(types), np.exp(types.layers["log_rate"])
    assert counts.sum() / rate.sum() == pytest.approx(0.7, abs=0.002)
    shown = counts > 0
    pearson = ((counts - rate) ** 2 / rate)[shown & (rate > 20)]  # zeros apart, a Poisson of a large rate
    assert pearson.mean() == pytest.approx(1, abs=0.02)


def test_poisson_lognormal_fold_changes(types):
    lfc = types.varm["lfc"]
    assert (lfc[:, 0] == 0).all()
    np.testing.assert_allclose(np.diff(types.varm["log_rate_mean"][:, :2])[:, 0] / np.log(2), lfc[:, 1])
    size = np.abs(lfc[:, 1:])
    assert np.mean(size > 0.5) == pytest.approx(0.5, abs=0.1)
    assert size[size > 0.5].mean() == pytest.approx(1, abs=0.05)
    assert size[size < 0.5].max() < 0.16 * 4.5
    assert not np.allclose(lfc[:, 1], lfc[:, 2])


def test_population_lfc_is_the_ratio_of_mean_rates_and_changes_sign(types):
    lfc = simulate.population_lfc(types, "type_2", "type_1")
    np.testing.assert_allclose(lfc, types.varm["lfc"][:, 2] - types.varm["lfc"][:, 1])
    np.testing.assert_allclose(simulate.population_lfc(types, "type_1", "type_2"), -lfc)
    rate = [np.exp(types.layers["log_rate"][types.obs["cell_type"] == name]).mean(0) for name in ("type_2", "type_1")]
    assert np.abs(np.log2(rate[0] / rate[1]) - lfc).max() < 0.1
    share = simulate.population_lfc(types, "type_2", "type_1", proportions=True)
    expected = np.log2((rate[0] / rate[0].sum()) / (rate[1] / rate[1].sum()))
    assert np.abs(share - expected).max() < 0.1
    assert np.ptp(share - lfc) < 1e-9 and abs((share - lfc)[0]) > 1e-4


def test_pair_truth_matches_the_normal_probability_of_a_pair(types):
    from scipy.stats import norm

    sd = np.sqrt(2 * np.diag(types.uns["simulation"]["covariance"]))
    gap = np.diff(types.varm["log_rate_mean"][:, :2])[:, 0]
    share = norm.sf((0.5 - gap) / sd) + norm.cdf((-0.5 - gap) / sd)
    clear = np.abs(share - 0.5) > 0.03
    truth = simulate.pair_truth(types, "type_1", "type_0")
    assert clear.sum() > 80 and np.array_equal(truth[clear], share[clear] > 0.5)


def test_pair_truth_within_one_type_is_empty_at_a_large_threshold(types):
    assert not simulate.pair_truth(types, "type_0", "type_0", threshold=1.0).any()
    assert simulate.pair_truth(types, "type_0", "type_0", threshold=0.0).all()


def test_truth_names_the_unknown_type(types):
    with pytest.raises(ValueError, match="no type 'B cell'"):
        simulate.pair_truth(types, "B cell", "type_0")
    with pytest.raises(ValueError, match="no type 'B cell'"):
        simulate.population_lfc(types, "type_0", "B cell")


def test_sparse_counts_zeros_and_depth():
    data = simulate.sparse_counts(4_000, 500, zeros=0.85, seed=1)
    assert data.shape == (4_000, 500)
    assert 1 - data.X.nnz / np.prod(data.shape) == pytest.approx(0.85, abs=0.01)
    assert data.obs["cell_type"].nunique() == 8 and data.obs["batch"].nunique() == 2
    source = simulate.SparseCounts(4_000, 500, zeros=0.85, seed=1)
    _, _, mean = source.draw_cells(np.random.default_rng(0), source.truth, 4_000)
    assert mean.sum() / 4_000 == pytest.approx(data.X.sum() / 4_000, rel=0.05)
    assert np.log(mean.sum(1)).std() == pytest.approx(0.35, rel=0.05)


def test_sparse_counts_blocks_are_the_whole_and_leave_out_empty_cells():
    source = simulate.SparseCounts(simulate.BLOCK + 100, 20, zeros=0.93, seed=3)
    blocks = list(source.blocks())
    assert len(blocks) == 2 and all(len(types) == len(batches) == x.shape[0] for x, types, batches in blocks)
    whole = simulate.sparse_counts(simulate.BLOCK + 100, 20, zeros=0.93, seed=3)
    assert np.array_equal(np.vstack([x.toarray() for x, _, _ in blocks]), dense(whole))
    assert whole.n_obs < simulate.BLOCK + 100 and whole.X.sum(1).min() > 0
    assert not np.array_equal(blocks[0][0][:50].toarray(), blocks[1][0][:50].toarray())
