"""The metrics of the benchmarks on cases that can be worked out by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

SOURCE = Path(__file__).parents[1] / "benchmarks" / "metrics.py"


@pytest.fixture(scope="module")
def metrics():
    spec = importlib.util.spec_from_file_location("benchmark_metrics", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blobs(seed=0, gap=20.0):
    """Three groups of 60 points at (0, 0), (gap, 0) and (2 gap, 0)."""
    labels = np.repeat(list("abc"), 60)
    z = np.random.default_rng(seed).normal(size=(180, 2))
    z[:, 0] += gap * np.repeat(np.arange(3), 60)
    return z, labels


def test_clustering_of_separate_groups_is_perfect_and_of_noise_is_not(metrics):
    z, labels = blobs()
    scores = metrics.clustering(z, labels, restarts=5)
    assert scores["ARI"] == scores["NMI"] == pytest.approx(1)
    assert scores["ASW"] > 0.85
    assert metrics.clustering(z, np.random.default_rng(1).permutation(labels), 5)["ARI"] < 0.05


def test_batch_mixing_is_zero_apart_and_nearly_maximal_together(metrics):
    z, labels = blobs()
    apart = np.where(labels == "a", "one", "two")
    assert metrics.batch_mixing(z, apart, 50) == pytest.approx(0, abs=1e-9)
    together = np.where(np.random.default_rng(0).random(180) < 0.5, "one", "two")
    assert 0.66 < metrics.batch_mixing(z, together, 50) <= np.log(2)
    assert metrics.most_mixing(np.repeat(["one", "two"], 90)) == pytest.approx(np.log(2))
    with pytest.raises(ValueError, match="two batches, not 3"):
        metrics.batch_mixing(z, labels)


def test_batch_mixing_counts_neighbours_without_the_cell_itself(metrics):
    z = np.array([[0.0], [1.0], [3.0]])  # nearest neighbour: 1 for 0, 0 for 1, 1 for 3
    assert metrics.batch_mixing(z, ["x", "y", "y"], 2) == pytest.approx(2 / 3 * np.log(2))


def test_factor_analysis_is_a_density_of_counts(metrics):
    rng = np.random.default_rng(0)
    train = rng.poisson(5, (4_000, 2)).astype(float)
    test = rng.poisson(5, (3, 2)).astype(float)
    found = metrics.factor_analysis(train, test, 1)
    logs = np.log1p(train)
    normal = multivariate_normal(logs.mean(0), np.cov(logs.T, ddof=0))
    np.testing.assert_allclose(found, normal.logpdf(np.log1p(test)) - np.log1p(test).sum(1), atol=0.02)


def test_discoveries_and_power_at_equal_proportion(metrics):
    truth = np.array([1, 1, 0, 1, 0, 0], bool)
    called = np.array([1, 1, 1, 0, 0, 0], bool)
    assert metrics.discoveries(called, truth) == {
        "called": 3,
        "FDP": pytest.approx(1 / 3),
        "power": pytest.approx(2 / 3),
    }
    assert metrics.discoveries(np.zeros(6), truth) == {"called": 0, "FDP": 0.0, "power": 0.0}
    score = [6, 5, 4, 3, 2, 1]
    assert metrics.power_at(score, truth, 0.0) == pytest.approx(2 / 3)
    assert metrics.power_at(score, truth, 0.25) == pytest.approx(1)
    assert metrics.power_at(-np.array(score), truth, 0.1) == 0


def test_wilcoxon_finds_the_shifted_gene_only_and_survives_a_constant_one(metrics):
    rng = np.random.default_rng(0)
    group, reference = rng.normal(size=(50, 3)), rng.normal(size=(60, 3))
    group[:, 0] += 2
    group[:, 2] = reference[:, 2].mean()
    reference[:, 2] = reference[:, 2].mean()
    p, adjusted = metrics.wilcoxon(group, reference)
    assert adjusted[0] < 1e-6 and p[1] > 0.01 and p[2] == 1


def test_reference_agreement_is_signed_for_folds_and_unsigned_for_calls(metrics):
    fold = np.array([2.0, -1.5, 0.1, -0.2])
    scores = metrics.against_reference(fold * 3, fold, np.array([True, True, False, False]))
    assert scores == {"Spearman": pytest.approx(1), "AUROC": 1.0}
    assert metrics.against_reference(-fold, fold, np.array([True, True, False, False]))["Spearman"] < -0.99


def test_spearman_of_rows_agrees_with_scipy_with_ties(metrics):
    rng = np.random.default_rng(0)
    a, b = rng.poisson(2, (5, 30)), rng.normal(size=(5, 30))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.spearman_rows(a, b), expected)
