"""Responses of pairs of context and treatment, and what is particular to a pair: against simulations and by hand."""

import anndata
import numpy as np
import pandas as pd
import pytest

import fieldguide.inference as fi
from fieldguide.catalog.data.factor_blocks import factor_sim
from fieldguide.decisions import context_effects, context_responses, predicted_expression
from fieldguide.decisions.perturbations.contexts import interactions
from fieldguide.decisions.perturbations.effects import shift_probabilities
from fieldguide.decisions.perturbations.pairs import explained
from fieldguide.decisions.perturbations.screen import PSEUDO, read_screen

PLACE = {"counts": None, "values": "X", "perturbation": fi.Perturbations("treatment", control="control")}
QUICK = {"max_epochs": 60, "batch_size": 128, "kl_warmup": 15, "n_hidden": 64, "progress": False}
BLOCKS = {"n_latent_x": 2, "n_latent_tx": 2, "n_latent_t": 2}


@pytest.fixture(scope="module")
def world():
    return factor_sim(1, n_contexts=4, n_treatments=5, n_cells=80, n_genes=30)


@pytest.fixture(scope="module")
def hidden(world):
    obs = world.data.obs
    return ((obs["context"] == "c2") & (obs["treatment"] == "t3")).to_numpy()


@pytest.fixture(scope="module")
def fitted(world, hidden):
    return fi.fit("fcr", world.data[~hidden].copy(), fields=PLACE, seed=0, **QUICK, **BLOCKS)


def counted(seed=0, n=240):
    """Counts of six genes in two contexts under "a", "b" and both."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "context": np.array(["x", "y"])[np.arange(n) % 2],
            "perturbation": np.array(["ctrl", "a", "b", "a+b"])[(np.arange(n) // 2) % 4],
            "dose": np.array(["0", "1", "2", "1+2"])[(np.arange(n) // 2) % 4],
        },
        index=[f"cell{i}" for i in range(n)],
    )
    rate = np.full((n, 6), 40.0)
    rate[obs["perturbation"].str.contains("a").to_numpy(), 0] *= 4
    rate[((obs["perturbation"].isin(["b", "a+b"])) & (obs["context"] == "y")).to_numpy(), 1] *= 4
    var = pd.DataFrame(index=[f"g{i}" for i in range(6)])
    return anndata.AnnData(rng.poisson(rate).astype(np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def of_counts():
    place = {"perturbation": fi.Perturbations(control="ctrl"), "dose": fi.Doses("dose", control="ctrl")}
    sizes = {"n_latent_x": 1, "n_latent_tx": 2, "n_latent_t": 2, "n_hidden": 16}
    return fi.fit("fcr", counted(), fields=place, max_epochs=150, batch_size=60, progress=False, **sizes)


# ---- responses --------------------------------------------------------------------------------------------
def test_a_pair_that_was_seen_is_predicted_and_one_that_was_not_has_wide_intervals(world, fitted):
    answer = context_responses(fitted, [("c1", "t3"), ("c2", "t3")], world.data, draws=60, cells=50)
    seen, new = answer.diagnostics.iloc[0], answer.diagnostics.iloc[1]
    assert not seen["extrapolated"] and new["extrapolated"] and (answer.diagnostics["n_cells"] == 80).all()
    assert seen["r2"] > 0.75 > seen["r2_additive"] and seen["r2_no_effect"] <= 0
    width = (answer.table["high"] - answer.table["low"]).groupby(answer.table["context"]).mean()
    assert width["c2"] > 2 * width["c1"]
    new_rows = answer.table[answer.table["context"] == "c2"]
    held = ((new_rows["low"] <= new_rows["observed"]) & (new_rows["observed"] <= new_rows["high"])).mean()
    assert held > 0.6


def test_what_stands_beside_a_prediction_is_observed(world, fitted):
    """Levels, the mean of the other contexts and R2, by pandas."""
    answer = context_responses(fitted, [("c2", "t3")], world.data, draws=4, cells=20)
    obs = world.data.obs
    frame = pd.DataFrame(world.data.X.astype(float), columns=world.data.var_names)
    means = frame.groupby([obs["context"].to_numpy(), obs["treatment"].to_numpy()]).mean()
    shift = {c: means.loc[(c, "t3")] - means.loc[(c, "control")] for c in ("c0", "c1", "c2", "c3")}
    table = answer.table.set_index("gene")
    np.testing.assert_allclose(table["control"], means.loc[("c2", "control")], atol=1e-6)
    np.testing.assert_allclose(table["observed"], shift["c2"], atol=1e-6)
    np.testing.assert_allclose(table["additive"], (shift["c0"] + shift["c1"] + shift["c3"]) / 3, atol=1e-6)
    residual = ((shift["c2"] - table["response"]) ** 2).sum() / ((shift["c2"] - shift["c2"].mean()) ** 2).sum()
    assert answer.diagnostics["r2"][0] == pytest.approx(1 - residual)


def test_responses_to_counts_are_fold_changes_and_pairs_may_be_new(of_counts):
    data = counted()
    answer = context_responses(of_counts, [("x", "a"), ("y", "b+a")], draws=6, cells=30)
    assert answer.settings["scale"] == "log2" and list(answer.diagnostics["perturbation"]) == ["a", "a+b"]
    obs = data.obs
    rows = {k: ((obs["context"] == "x") & (obs["perturbation"] == k)).to_numpy() for k in ("a", "ctrl")}
    level = {k: np.log2(data.X[r].sum(0) / data.X[r].sum() + PSEUDO) for k, r in rows.items()}
    table = answer.table.query("context == 'x'").set_index("gene")
    np.testing.assert_allclose(table["observed"], level["a"] - level["ctrl"], atol=1e-5)
    assert table["response"].idxmax() == "g0" and table["response"]["g0"] > 0.7
    everything = context_responses(of_counts, draws=2, cells=5)
    assert len(everything.diagnostics) == 6 and len(everything.table) == 36
    half = context_responses(of_counts, [("x", "a")], draws=6, cells=30, dose=0.1)
    assert half.table.set_index("gene")["response"]["g0"] < 0.5 * table["response"]["g0"]


def test_what_is_observed_is_observed_at_the_dose_that_is_asked_for():
    """Two doses of "a": the response, the others' mean and R2 are of cells at that dose."""
    rng, n = np.random.default_rng(0), 400
    kind = np.arange(n) % 4
    obs = pd.DataFrame({"context": np.array(["x", "y"])[np.arange(n) // 4 % 2]}, index=[f"c{i}" for i in range(n)])
    obs["perturbation"], obs["dose"] = np.array(["ctrl", "a", "a", "b"])[kind], np.array([0, 1, 10, 5])[kind]
    rate = np.full((n, 5), 30.0)
    rate[kind == 1, 0] *= 1.5
    rate[kind == 2, 0] *= 6
    data = anndata.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    place = {"perturbation": fi.Perturbations(control="ctrl"), "dose": fi.Doses("dose", control="ctrl")}
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1, "n_hidden": 16}
    fitted = fi.fit("fcr", data, fields=place, max_epochs=40, batch_size=50, progress=False, **sizes)
    counts, where = data.X.astype(float), (obs["context"] == "x").to_numpy()
    for dose, own in ((1.0, 2), (0.1, 1)):
        answer = context_responses(fitted, [("x", "a")], dose=dose, draws=3, cells=10)
        sums = [counts[where & (kind == k)].sum(0) for k in (own, 0)]
        level = [np.log2(s / s.sum() + PSEUDO) for s in sums]
        np.testing.assert_allclose(answer.table["observed"], level[0] - level[1], atol=1e-6)
        assert answer.diagnostics["n_cells"][0] == 50
    assert np.isnan(context_responses(fitted, [("x", "a")], dose=0.5, draws=3, cells=10).table["observed"]).all()
    names = set(context_effects(fitted).table["perturbation"])
    assert names == {"a at 0.1", "a at 1", "b"}
    both = [predicted_expression(fitted, ["a"], data, dose=d, draws=200).to_numpy()[0, 0] for d in (0.0, 1.0)]
    assert both[1] > 1.5 * both[0], "the dose is that which is asked for, not that of the cells"
    with pytest.raises(ValueError, match=r"dose=0.5: this fit of fcr read no doses|without doses"):
        context_responses(
            fi.fit("fcr", data, fields={"perturbation": place["perturbation"]}, max_epochs=1, progress=False, **sizes),
            [("x", "a")],
            dose=0.5,
        )


def test_intervals_hold_what_is_observed_of_known_pairs(world, fitted):
    answer = context_responses(fitted, None, world.data[world.data.obs["context"] != "c2"].copy(), draws=40, cells=40)
    table = answer.table
    held = ((table["low"] <= table["observed"]) & (table["observed"] <= table["high"])).mean()
    assert 0.85 < held <= 1 and answer.settings["judges"] > 4


def test_names_are_written_as_in_the_data():
    """Another separator, a treatment that is called like a pair, and one that is called like a control."""
    rng, n = np.random.default_rng(0), 160
    labels = np.array(["vehicle", "A", "B", "A|B", "A+B", "control"])[np.arange(n) % 6]
    obs = pd.DataFrame({"context": np.array(["x", "y"])[np.arange(n) // 6 % 2], "perturbation": labels})
    obs.index = [f"c{i}" for i in range(n)]
    data = anndata.AnnData(rng.poisson(20, (n, 4)).astype(np.float32), obs=obs)
    place = {"perturbation": fi.Perturbations(control="vehicle", separator="|")}
    fitted = fi.fit("fcr", data, fields=place, max_epochs=2, progress=False, n_hidden=4)
    wanted = ["A", "B", "A|B", "A+B", "control"]
    answer = context_responses(fitted, draws=2, cells=4)
    assert set(answer.diagnostics["perturbation"]) == set(wanted) == set(context_effects(fitted).table["perturbation"])
    sums = {
        k: data.X[((obs["context"] == "x") & (obs["perturbation"] == k)).to_numpy()].sum(0)
        for k in (*wanted, "vehicle")
    }
    level = {k: np.log2(s / s.sum() + PSEUDO) for k, s in sums.items()}
    for label in wanted:
        table = context_responses(fitted, [("x", label)], draws=2, cells=4).table
        assert set(table["perturbation"]) == {label}
        np.testing.assert_allclose(table["observed"], level[label] - level["vehicle"], atol=1e-5)


def test_pairs_may_be_a_frame_or_arrays(of_counts):
    frame = context_responses(of_counts, [("x", "a"), ("y", "b")], draws=2, cells=4)
    pairs = frame.diagnostics[["context", "perturbation"]]
    for given in (pairs, pairs.to_numpy(), pairs.to_numpy().tolist()):
        pd.testing.assert_frame_equal(context_responses(of_counts, given, draws=2, cells=4).table, frame.table)
    with pytest.raises(ValueError, match="pairs has no column 'perturbation'"):
        context_responses(of_counts, pairs[["context"]])


def test_contexts_without_controls_are_left_out_and_said(of_counts):
    data = counted()
    without = data[~((data.obs["context"] == "x") & (data.obs["perturbation"] == "ctrl")).to_numpy()].copy()
    with pytest.warns(UserWarning, match="no control cell in the data of context 'x'"):
        answer = context_responses(of_counts, None, without, draws=2, cells=4)
    assert set(answer.diagnostics["context"]) == {"y"}


def test_a_fit_that_ended_before_the_turn_decides_nothing(world, tmp_path):
    def stop(program, row):
        if row["epoch"] >= 3:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="were not turned"):
        early = fi.fit("fcr", world.data, fields=PLACE, callbacks=[stop], **QUICK, **BLOCKS)
    early.save(tmp_path / "fit.safetensors")
    with pytest.warns(UserWarning, match="interrupted"):
        again = fi.load(tmp_path / "fit.safetensors")
    np.testing.assert_allclose(again.bound(world.data[:30].copy()), early.bound(world.data[:30].copy()), rtol=1e-5)
    for fit in (early, again):
        with pytest.raises(ValueError, match="ended too early: the latents were not turned"):
            context_responses(fit, [("c1", "t1")], world.data)


def test_equal_seeds_give_equal_responses(of_counts):
    first, second = (context_responses(of_counts, [("x", "a")], draws=3, cells=9, seed=4).table for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(context_responses(of_counts, [("x", "a")], draws=3, cells=9, seed=5).table)


def test_a_fit_from_a_file_predicts_the_same(of_counts, tmp_path):
    of_counts.save(tmp_path / "fit.safetensors")
    again = fi.load(tmp_path / "fit.safetensors")
    tables = [context_responses(f, [("y", "b")], counted(), draws=3, cells=9).table for f in (of_counts, again)]
    pd.testing.assert_frame_equal(*tables)


def test_what_cannot_be_asked_is_named(of_counts, world):
    for pairs, message in (
        ([("z", "a")], "pairs: .*'z'"),
        ([("x", "c")], "'c'"),
        ([("x", "ctrl")], "is a control: there is no response"),
        ([("x", "control")], "is a control: there is no response"),
        (["xa"], "no pair of a context and a perturbation"),
        ([], "names no pair"),
        ([("x", "a", 1)], "no pair of a context and a perturbation"),
    ):
        with pytest.raises(ValueError, match=message):
            context_responses(of_counts, pairs)
    with pytest.raises(TypeError, match="pairs is a list"):
        context_responses(of_counts, "a")
    without = counted()[~((counted().obs["context"] == "x") & (counted().obs["perturbation"] == "ctrl")).to_numpy()]
    with pytest.raises(ValueError, match="context 'x' has no control cell in the data"):
        context_responses(of_counts, [("x", "a")], without.copy())
    other = fi.fit("ppca", {"x": np.random.default_rng(0).normal(size=(30, 3))}, max_epochs=1, progress=False)
    with pytest.raises(TypeError, match="reads no perturbations"):
        context_responses(other)
    place = {"perturbation": fi.Perturbations(control="ctrl")}
    small = {"max_epochs": 1, "n_latent": 2, "n_hidden": 4, "rotate": "none", "progress": False}
    screen = fi.fit("svae", counted(), fields=place, **small)
    with pytest.raises(TypeError, match="has no contexts of perturbed cells"):
        context_effects(screen)


# ---- what is particular to a pair -------------------------------------------------------------------------
def test_what_is_left_of_an_additive_table_is_nothing():
    rng = np.random.default_rng(0)
    context, label = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(4), indexing="ij"))
    table = rng.normal(size=(3, 2))[context] + rng.normal(size=(4, 2))[label]
    effect, error = interactions(table, rng.integers(5, 90, 12), context, label)
    np.testing.assert_allclose(effect, 0, atol=1e-6)
    assert (error > 0).all()


def test_errors_of_interactions_are_those_of_repeated_experiments():
    rng = np.random.default_rng(0)
    context, label = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(4), indexing="ij"))
    n_cells = rng.integers(5, 90, 12)
    means = rng.normal(size=(12, 4000)) / np.sqrt(n_cells)[:, None]
    effect, error = interactions(means, n_cells, context, label)
    np.testing.assert_allclose(effect.std(1), error[:, 0], rtol=0.05)


def test_many_cells_make_errors_small_and_not_infinite():
    """The error of a pair falls with its cells; only a pair that is fitted by its own parts alone has none."""
    means, parts = np.array([[0.0], [1], [2], [5]]), (np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    for n in (100, 9_000, 10**7):
        np.testing.assert_allclose(interactions(means, np.full(4, n), *parts)[1], np.sqrt(0.25 / n), rtol=1e-6)


def test_the_unit_is_the_standard_deviation_of_cells_alike():
    """Six contexts of three cells a pair: without the freedom of their means it would be a fifth too small."""
    rng, cells = np.random.default_rng(0), np.arange(6 * 4 * 3)
    obs = pd.DataFrame({"context": cells // 12, "perturbation": np.array(["ctrl", "a", "b", "c"])[cells // 3 % 4]})
    obs.index = [f"c{i}" for i in cells]
    data = anndata.AnnData(rng.poisson(30, (72, 5)).astype(np.float32), obs=obs)
    place = {"perturbation": fi.Perturbations(control="ctrl")}
    sizes = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1, "n_hidden": 4}
    fitted = fi.fit("fcr", data, fields=place, max_epochs=2, progress=False, **sizes)
    z = np.asarray(fitted.latent(), dtype=float)[:, 0]
    pairs = obs["context"].astype(str) + obs["perturbation"]
    within = z - pd.Series(z).groupby(pairs.to_numpy()).transform("mean")
    deviation = np.sqrt((within**2).sum() / (72 - 24))
    means = pd.Series(z).groupby([obs["context"].to_numpy(), obs["perturbation"].to_numpy()]).mean().unstack()
    left = means.sub(means.mean(1), axis=0).sub(means.mean(0), axis=1) + means.to_numpy().mean()
    table = context_effects(fitted).table
    said = table.set_index(["context", "perturbation"])["effect"]
    for (context, label), effect in said.items():
        assert effect == pytest.approx(left.loc[int(context), label] / deviation, rel=1e-4, abs=1e-5)


def test_a_pair_that_is_alone_in_its_context_says_nothing():
    context, label = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    error = interactions(np.random.default_rng(0).normal(size=(5, 1)), np.full(5, 20), context, label)[1]
    assert np.isinf(error[4]) and np.isfinite(error[:4]).all()


def test_interactions_are_listed_and_blocks_without_any_are_not(fitted):
    answer = context_effects(fitted)
    assert answer.table["is_specific"].mean() > 0.4, "every pair has an effect of its own in this simulation"
    assert (answer.table["fdr"].diff().dropna() >= -1e-12).all()
    assert len(answer.diagnostics) == 15 and (answer.diagnostics["n_cells"] == 80).all()
    for site in ("z_x", "z_t"):
        other = context_effects(fitted, site=site).diagnostics["distance"]
        assert other.median() < 0.25 * answer.diagnostics["distance"].median()
    assert answer.plot().axes and "fewer than 2 cells" in answer.notes[1]


def test_one_context_has_nothing_to_compare(fitted, world):
    one = world.data[world.data.obs["context"] == "c1"].copy()
    with pytest.raises(ValueError, match="two contexts with two treatments in common"):
        context_effects(fitted, one)


def test_where_everything_is_shifted_leaks_are_not_taken_to_be_as_large():
    value = np.random.default_rng(0).normal(0, 3, 300)
    probability, prior = shift_probabilities(value, np.full(300, 0.1), 0.5)
    assert prior["null"] <= 0.5 and prior["share"] > 0.8 and (probability[np.abs(value) > 2] > 0.95).all()


def test_explained_is_r2():
    observed = np.array([1.0, 2, 4])
    assert explained(observed, observed) == 1 and explained(observed, np.full(3, observed.mean())) == pytest.approx(0)
    assert np.isnan(explained(np.full(3, np.nan), observed)) and np.isnan(explained(np.ones(3), observed))


def test_figures_are_drawn(fitted, of_counts, world):
    assert len(context_responses(fitted, data=world.data, draws=2, cells=5).plot().axes) == 9
    assert len(context_responses(of_counts, [("x", "b")], draws=2, cells=5).plot().axes) == 1


def test_the_screen_counts_its_cells(of_counts):
    screen = read_screen(of_counts)
    assert screen.contexts == ["x", "y"]
    assert [screen.name(codes) for codes in screen.codes] == ["control", "a", "a+b", "b"]
    assert screen.n_cells.tolist() == [[30, 30, 30, 30]] * 2
    assert screen.genes(6) == [f"g{i}" for i in range(6)]
