"""Differential expression: against closed forms, against populations with known truth, and against misuse."""

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import nn

from fieldguide.decisions import UntrustworthyWeights, WeakDesign, differential_expression
from fieldguide.decisions.cells import two_groups
from fieldguide.decisions.expression.fold_changes import effect_threshold, pseudocount
from fieldguide.decisions.expression.subjects import concentration
from fieldguide.inference import Posterior, Program
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.data.storage import DenseStore

NOISE = 0.5
SPREAD = (NOISE**2 / (1 + NOISE**2)) ** 0.5  # standard deviation of every latent's posterior


class Toy(Program):
    """Log2 expression z ~ Normal(0, 1), seen with noise: its posterior is Normal(0.8 x, 0.45²), per gene."""

    def __init__(self, shift: float = 0.0, widen: float = 1.0, batch_effect: float = 0.0) -> None:
        super().__init__()
        self.guide_shift = nn.Parameter(torch.tensor(shift))
        self.widen, self.batch_effect = widen, batch_effect

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(batch["x"]), 1.0).to_event(1))
            effect = self.batch_effect * batch["batch"][:, None] if "batch" in batch else 0.0
            pyro.deterministic("rho", 2 ** (z + effect), event_dim=1)
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            loc = batch["x"] / (1 + NOISE**2) + self.guide_shift * SPREAD
            pyro.sample("z", dist.Normal(loc, SPREAD * self.widen).to_event(1))


def toy(x, particles=2000, obs=None, batch=None, **program) -> Posterior:
    data = {"x": np.asarray(x, dtype=np.float32)} | ({} if batch is None else {"batch": np.asarray(batch)})
    posterior = Posterior(Toy(**program), read(data, None), particles)
    posterior.dataset.obs = obs
    return posterior


def de(posterior, *where, **options):
    return differential_expression(posterior, *where, **({"calibrate": False, "pseudo": 1e-12} | options))


X = np.array([[1.0, -0.5, 0.2, 2.0], [0.0, 0.3, 0.2, -1.0]])
MEAN, SD = (X[0] - X[1]) / (1 + NOISE**2), 2**0.5 * SPREAD


@pytest.mark.parametrize("guide", [{}, {"shift": 0.4, "widen": 1.2}])
def test_pairs_of_cells_have_the_probabilities_of_the_closed_form(guide):
    table = de(toy(X, **guide), np.array([0, 1]), 0, 1, unit="cells", draws=8000).table.sort_index()
    up, down = norm.sf(0.25, MEAN, SD), norm.cdf(-0.25, MEAN, SD)
    np.testing.assert_allclose(table["lfc"], MEAN, atol=0.05)
    np.testing.assert_allclose(table["lfc_sd"], SD, rtol=0.08)
    np.testing.assert_allclose(table["lfc_low"], MEAN - 1.96 * SD, atol=0.12)
    np.testing.assert_allclose(table["lfc_high"], MEAN + 1.96 * SD, atol=0.12)
    np.testing.assert_allclose(table["p_up"], up, atol=0.04)
    np.testing.assert_allclose(table["p_down"], down, atol=0.04)
    np.testing.assert_allclose(table["probability"], np.maximum(up, down), atol=0.04)
    two = de(toy(X, **guide), np.array([0, 1]), 0, 1, unit="cells", draws=8000, test="two").table.sort_index()
    np.testing.assert_allclose(two["probability"], up + down, atol=0.04)


def test_the_plugin_estimator_answers_for_the_guide_instead():
    x = X[:, :1].repeat(4, 1)
    x[1] = 0
    one_sided = toy(x, shift=0.0, widen=0.3)
    options = {"unit": "cells", "draws": 8000}
    plugin = de(one_sided, np.array([0, 1]), 0, 1, estimator="plugin", **options).table
    np.testing.assert_allclose(plugin["lfc_sd"], 0.3 * SD, rtol=0.05)
    wide = toy(x, widen=1.5)
    snis = de(wide, np.array([0, 1]), 0, 1, **options).table
    plugin = de(wide, np.array([0, 1]), 0, 1, estimator="plugin", **options).table
    np.testing.assert_allclose(snis["lfc_sd"], SD, rtol=0.1)
    np.testing.assert_allclose(plugin["lfc_sd"], 1.5 * SD, rtol=0.05)


def test_vanilla_gives_the_bayes_factor_of_having_more():
    decision = de(toy(X), np.array([0, 1]), 0, 1, mode="vanilla", draws=8000)
    table, more = decision.table.sort_index(), norm.sf(0, MEAN, SD)
    np.testing.assert_allclose(table["probability"], more, atol=0.02)
    np.testing.assert_allclose(table["bayes_factor"][:3], np.log(more / (1 - more))[:3], atol=0.25)
    assert decision.settings["unit"] == "cells" and decision.settings["delta"] is None
    far = de(toy(np.array([[9.0], [-9.0]])), np.array([0, 1]), 0, 1, mode="vanilla", draws=500).table
    assert far["bayes_factor"].iloc[0] == pytest.approx(np.log(500)), "clipped to what the draws can tell"


@pytest.fixture(scope="module")
def crowd():
    """Two groups of 30 and 20 cells, 5 genes: differences 2, -1, 0.5, 0, 0 in the mean of x."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.7, (50, 5))
    x[:30] += [2, -1, 0.5, 0, 0]
    return x, np.repeat(["a", "b"], [30, 20])


def test_the_mean_of_a_group_has_the_spread_of_brute_force(crowd):
    x, labels = crowd
    table = de(toy(x, 500, widen=1.2), labels, "a", "b", draws=4000).table.sort_index()
    rng, logs = np.random.default_rng(0), {}
    for name in "ab":
        exact = x[labels == name] / (1 + NOISE**2)
        share = rng.dirichlet(np.full(len(exact), 1 - 2 / len(exact)), 20_000)
        rho = 2 ** (exact + SPREAD * rng.normal(size=(20_000, *exact.shape)))
        logs[name] = np.log2(np.einsum("rn,rng->rg", share, rho))
    lfc = logs["a"] - logs["b"]
    np.testing.assert_allclose(table["lfc"], lfc.mean(0), atol=0.03)
    np.testing.assert_allclose(table["lfc_sd"], lfc.std(0), rtol=0.1)
    np.testing.assert_allclose(table["p_up"], (lfc >= 0.25).mean(0), atol=0.05)
    np.testing.assert_allclose(table["p_down"], (lfc <= -0.25).mean(0), atol=0.05)
    pairs = de(toy(x, 500), labels, "a", "b", unit="cells").table.sort_index()
    assert (pairs["lfc_sd"] > 3 * table["lfc_sd"]).all(), "random cells differ far more than group means"


@pytest.mark.parametrize(
    "options",
    [{}, {"unit": "cells"}, {"mode": "vanilla"}, {"unit": "subject"}, {"estimator": "plugin"}, {"test": "two"}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::fieldguide.decisions.WeakDesign")
def test_swapping_the_groups_negates_fold_changes_and_keeps_the_calls(crowd, options):
    x, labels = crowd
    obs = pd.DataFrame({"label": labels, "subject": np.resize(["s1", "s2", "s3", "s4"], 50)})
    posterior = toy(x, 100, obs)
    one = de(posterior, "label", "a", "b", draws=500, **options).table.sort_index()
    two = de(posterior, "label", "b", "a", draws=500, **options).table.sort_index()
    np.testing.assert_allclose(one["lfc"], -two["lfc"])
    np.testing.assert_allclose(one["lfc_low"], -two["lfc_high"], atol=0.05)
    np.testing.assert_allclose(one["p_up"], two["p_down"], atol=1e-9)
    np.testing.assert_allclose(one["fdr"], two["fdr"], atol=1e-9)
    assert (one["is_de"] == two["is_de"]).all()
    if options.get("mode") == "vanilla":
        np.testing.assert_allclose(one["bayes_factor"], -two["bayes_factor"], atol=1e-9)
    else:
        np.testing.assert_allclose(one["probability"], two["probability"], atol=1e-9)


def test_equal_seeds_give_equal_tables_and_other_seeds_close_ones(crowd):
    x, labels = crowd
    first, again, other = (de(toy(x, 100), labels, "a", "b", seed=seed).table for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    np.testing.assert_allclose(first.sort_index()["lfc"], other.sort_index()["lfc"], atol=0.05)


def test_batch_correction_decodes_both_groups_alike():
    rng = np.random.default_rng(0)
    x, batch = rng.normal(size=(40, 6)), np.repeat([0, 1], 20)
    posterior, labels = toy(x, 200, batch=batch, batch_effect=2.0), np.repeat(["a", "b"], 20)
    own = de(posterior, labels, "a", "b", batch_correction=False).table.sort_index()
    both = de(posterior, labels, "a", "b", batch_correction=True).table.sort_index()
    one = de(posterior, labels, "a", "b", batch_correction=[1]).table.sort_index()
    default = de(posterior, labels, "a", "b")
    np.testing.assert_allclose(own["lfc"], both["lfc"] - 2, atol=0.1)
    np.testing.assert_allclose(one["lfc"], both["lfc"], atol=0.05)
    pd.testing.assert_frame_equal(default.table.sort_index(), both)
    assert default.settings["batches"] == [0, 1]
    pairs = de(posterior, labels, "a", "b", unit="cells").table.sort_index()
    apart = de(posterior, labels, "a", "b", unit="cells", batch_correction=False).table.sort_index()
    np.testing.assert_allclose(apart["lfc"], pairs["lfc"] - 2, atol=0.2)


def _sized(size):
    """Two groups of equal proportions, whose cells have these sizes."""
    posterior = toy(np.zeros((40, 3)), 50, pd.DataFrame({"subject": np.resize(list("stuvw"), 40)}))
    posterior.dataset.stores["size_factor"] = DenseStore(np.asarray(size, dtype=np.float32))
    return posterior


@pytest.mark.parametrize("unit", ["group", "cells", "subject"])
def test_larger_cells_have_more_counts_and_equal_proportions(unit):
    labels, size = np.repeat(["a", "b"], 20), np.repeat([8.0, 2.0], 20)
    shares, counts = (
        de(_sized(size), labels, "a", "b", unit=unit, scale=scale).table for scale in ("proportions", "counts")
    )
    np.testing.assert_allclose(shares["lfc"], 0, atol=0.1)
    np.testing.assert_allclose(counts["lfc"], 2, atol=0.1)
    np.testing.assert_allclose(counts["expression_2"], 2 * shares["expression_2"], rtol=0.1)


def test_a_population_is_its_molecules_and_a_subject_counts_once():
    x = np.zeros((40, 3))
    x[[0, 1], 0] = 5  # both cells of one subject, which are large
    labels, size = np.repeat(["a", "b"], 20), np.ones(40)
    size[[0, 1]] = 18
    obs = pd.DataFrame({"subject": ["s0", "s0", *(f"s{i // 2}" for i in range(2, 40))]})
    posterior = toy(x, 50, obs)
    posterior.dataset.stores["size_factor"] = DenseStore(size.astype(np.float32))
    high, low = 2 ** (5 / (1 + NOISE**2)), 1.0
    table = de(posterior, labels, "a", "b").table.sort_index()
    assert table["expression_1"][0] / table["expression_1"][1] == pytest.approx((high * 36 + 18 * low) / 54, rel=0.2)
    table = de(posterior, labels, "a", "b", unit="subject").table.sort_index()
    assert table["expression_1"][0] / table["expression_1"][1] == pytest.approx((high + 9 * low) / 10, rel=0.2)


@pytest.mark.filterwarnings("ignore:b. only 4 subjects")
def test_subjects_carry_the_uncertainty_between_them():
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(8), 40)
    level = rng.normal(0, 1, 8)[subject]
    x = np.stack([level, rng.normal(size=320)], 1) + 0.1 * rng.normal(size=(320, 2))
    labels = np.where(subject < 4, "a", "b")
    obs = pd.DataFrame({"label": labels, "subject": [f"s{i}" for i in subject]})
    posterior = toy(x, 100, obs)
    with pytest.warns(WeakDesign, match="a: only 4 subjects in 'subject'"):
        by_subject = de(posterior, "label", "a", "b", unit="subject").table.sort_index()
    by_cell = de(posterior, "label", "a", "b").table.sort_index()
    assert by_subject["lfc_sd"][0] > 3 * by_cell["lfc_sd"][0], "subjects differ in the first gene"
    assert by_subject["lfc_sd"][1] < 1.5 * by_cell["lfc_sd"][1], "and not in the second"


def test_subjects_with_cells_in_both_groups_are_paired():
    rng = np.random.default_rng(0)
    subject = np.tile(np.repeat(np.arange(6), 20), 2)
    labels = np.repeat(["a", "b"], 120)
    x = 1.5 * rng.normal(size=6)[subject][:, None] + np.where(labels == "a", 1.0, 0.0)[:, None]
    obs = pd.DataFrame({"label": labels, "subject": subject.astype(str)})
    apart = obs.assign(subject=obs["subject"] + obs["label"])
    paired = de(toy(x, 100, obs), "label", "a", "b", unit="subject").table
    unpaired = de(toy(x, 100, apart), "label", "a", "b", unit="subject").table
    assert paired["lfc_sd"][0] < unpaired["lfc_sd"][0] / 3


@pytest.mark.parametrize("n", [3, 5, 20])
def test_bootstrap_weights_give_a_mean_its_unbiased_variance(n):
    rng = np.random.default_rng(0)
    values = rng.normal(size=n)
    means = rng.dirichlet(np.full(n, concentration(n)), 200_000) @ values
    assert means.var() == pytest.approx(values.var(ddof=1) / n, rel=0.02)
    assert (rng.dirichlet(np.ones(n), 200_000) @ values).var() < 0.95 * means.var(), "the usual weights are too narrow"


def test_untrustworthy_weights_are_reported_and_warned_of(crowd):
    x, labels = crowd
    with pytest.warns(UntrustworthyWeights, match="^[ab]: k-hat is above 0.57 in .*% of the cells .*moved"):
        decision = de(toy(x, 200, widen=0.4), labels, "a", "b")
    assert (decision.diagnostics["khat_above"] > 0.5).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = de(toy(x, 200), labels, "a", "b").diagnostics
        de(toy(x, 200, widen=0.4), labels, "a", "b", estimator="plugin")
        few = de(toy(x, 10), labels, "a", "b").diagnostics
    assert (exact["khat_median"] < 0.1).all() and (exact["ess_median"] > 190).all()
    assert (exact["shift_95"] < 0.01).all() and (exact["cells"] == [30, 20]).all()
    assert few["khat_median"].isna().all()
    biased = de(toy(x, 1000, shift=1.0, widen=1.2), labels, "a", "b").diagnostics
    np.testing.assert_allclose(biased["shift_median"], SPREAD, atol=0.15)


def test_the_warning_points_at_the_line_of_the_user(crowd):
    x, labels = crowd
    with pytest.warns(UntrustworthyWeights) as caught:
        de(toy(x, 200, widen=0.4), labels, "a", "b")
    assert caught[0].filename == __file__


def test_permuting_the_genes_permutes_the_rows(crowd):
    x, labels = crowd
    order = np.array([3, 0, 4, 1, 2])
    here, there = (de(toy(v, 1000), labels, "a", "b", draws=4000).table.sort_index() for v in (x, x[:, order]))
    for column in ("lfc", "lfc_sd", "p_up", "p_down"):
        np.testing.assert_allclose(there[column], here[column].to_numpy()[order], atol=0.03)


# Thresholds.


def test_the_pseudocount_comes_from_genes_that_are_not_expressed():
    rng = np.random.default_rng(0)
    rho = [rng.uniform(0.001, 0.01, (50, 20)) for _ in "ab"]
    counts = [np.full(20, 1.0), np.full(20, 1.0)]
    assert pseudocount(rho, counts) == 1e-10 == pseudocount(rho, None)
    counts[1][:5] = 0.001
    assert pseudocount(rho, counts) == pytest.approx(np.quantile(rho[1][:, :5].max(0), 0.9) / 20)


def test_the_threshold_separates_changed_genes_from_the_rest():
    rng = np.random.default_rng(0)
    lfc = np.concatenate([rng.normal(0, 0.05, 300), rng.normal(2, 0.1, 40), rng.normal(-1, 0.1, 40)])
    assert effect_threshold(lfc) == pytest.approx(0.6 * 1.5, abs=0.05)
    assert effect_threshold(rng.normal(0, 1e-3, 100)) == 0.1
    with pytest.raises(ValueError, match="at least 10 genes, not 4"):
        effect_threshold(lfc[:4])
    big = toy(np.random.default_rng(0).normal(size=(20, 12)), 50)
    decision = de(big, np.repeat(["a", "b"], 10), "a", "b", delta=None)
    assert decision.settings["delta"] >= 0.1


# Bad input.

OBS = pd.DataFrame(
    {"label": ["a"] * 4 + ["b"] * 4 + ["c", None], "subject": ["s", "t"] * 4 + ["s", "s"], "one": "only"},
    index=[f"cell_{i}" for i in range(10)],
)
MASK = np.arange(10) < 4


@pytest.mark.parametrize(
    "where, options, message",
    [
        (("labl", "a", "b"), {}, "groupby='labl' is not an obs column; there are label, subject, one"),
        (("label", "d", "b"), {}, "group: no label .d.; there are a, b, c"),
        (("label", "a", ["b", "x"]), {}, "reference: no label .x."),
        (("label", "a", "a"), {}, "group and reference share 4 cells, such as 'cell_0'"),
        (("one", "only"), {}, "there is only one group"),
        (("label", "c", "a"), {}, "'c' has 1 cell\\(s\\): a population's mean needs at least 3; unit='cells'"),
        ((np.repeat("a", 3), "a", "b"), {}, "groupby has 3 values for 10 cells"),
        ((None, MASK[:5], MASK), {}, "group is a mask of shape \\(5,\\) for 10 cells"),
        ((None, MASK, MASK & ~MASK), {}, "reference holds no cell"),
        ((None, MASK, MASK), {}, "share 4 cells"),
        ((None, "a", "b"), {}, "group must be a bool array"),
        (("label", "a", "b"), {"mode": "chang"}, "mode must be one of change, vanilla, not 'chang'"),
        (("label", "a", "b"), {"test": "four"}, "test must be one of three, two"),
        (("label", "a", "b"), {"estimator": "is"}, "estimator must be one of snis, plugin"),
        (("label", "a", "b"), {"scale": "logs"}, "scale must be one of proportions, counts"),
        (("label", "a", "b"), {"mode": "vanilla", "unit": "group"}, "unit must be 'cells', not 'group'"),
        (("label", "a", "b"), {"unit": "donor"}, "unit='donor' is not an obs column"),
        (("label", "a", "b"), {"unit": "one"}, "all cells of 'a' come from 'only'; .* at least two"),
        (("label", "a", "b"), {"delta": -1.0}, "delta .log2 units. must be a number of at least 0"),
        (("label", "a", "b"), {"fdr": 5.0}, "fdr must be a number in \\[0, 1\\), not 5"),
        (("label", "a", "b"), {"draws": 10}, "draws must be a whole number of at least 100"),
        (("label", "a", "b"), {"pseudo": 0.0}, "pseudo must be a number above 0"),
        (("label", "a", "b"), {"batch_correction": True}, "batch_correction: .* without a field 'batch'"),
        (("label", "a", "b"), {"calibrate": True}, "calibrate=True needs raw counts"),
    ],
)
def test_misuse_is_named(where, options, message):
    posterior = toy(np.zeros((10, 3)), 30, OBS)
    with pytest.raises(ValueError, match=message):
        de(posterior, *where, **options)


def test_unknown_batches_are_named():
    posterior = toy(np.zeros((10, 3)), 30, OBS, batch=np.arange(10) % 2)
    with pytest.raises(ValueError, match="batch_correction: no batch 'x'; there are 0, 1"):
        de(posterior, "label", "a", "b", batch_correction=["x"])
    with pytest.raises(ValueError, match="empty list"):
        de(posterior, "label", "a", "b", batch_correction=[])


def test_a_program_without_proportions_is_named():
    class Mute(Toy):
        def model(self, batch):
            with self.cells(batch):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(batch["x"]), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=batch["x"])

    posterior = Posterior(Mute(), read({"x": np.zeros((10, 3), dtype=np.float32)}, None), 30)
    with pytest.raises(ValueError, match="no deterministic site 'rho' .*; it has z"):
        de(posterior, None, MASK, ~MASK)
    with pytest.raises(ValueError, match="the data has no obs: pass an array of labels"):
        de(posterior, "label", "a", "b")


def test_cells_without_a_label_belong_to_no_group():
    group, reference = two_groups(OBS, 10, "label", "a")
    assert group.rows.tolist() == [0, 1, 2, 3] and reference.rows.tolist() == [4, 5, 6, 7, 8]
    several = two_groups(OBS, 10, "label", ["a", "c"], "b")
    assert several[0].name == "a, c" and len(several[0].rows) == 5
