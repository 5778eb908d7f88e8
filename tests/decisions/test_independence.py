"""How much of a nuisance latents hold: against populations with a known answer, and against misuse."""

import numpy as np
import pandas as pd
import pytest

from fieldguide.decisions import independence
from fieldguide.inference import fit

RNG = np.random.default_rng(0)
N = 400
Z = RNG.normal(size=(N, 3))
TYPE = np.repeat(["a", "b"], N // 2)
FAST = {"trees": 20, "permutations": 99}


def one(nuisance, given=None, z=Z, **settings):
    return independence(z, {"s": nuisance}, given, **(FAST | settings)).table.loc["s"]


def test_a_linear_nuisance_has_the_r2_of_its_population():
    row = one(Z[:, 0] + RNG.normal(size=N))
    assert row["linear"] == pytest.approx(0.5, abs=0.1) and row["forest"] > 0.25
    assert row["p_value"] == pytest.approx(0.01) and row["kind"] == "continuous" and row["chance"] == 0
    assert row["cells"] == row["cells_tested"] == N


def test_a_curved_nuisance_is_seen_by_the_forest_and_the_test_alone():
    row = one(Z[:, 0] ** 2 + 0.1 * RNG.normal(size=N))
    assert row["linear"] < 0.1 and row["forest"] > 0.7 and row["p_value"] <= 0.02


def test_noise_is_not_found():
    row = one(np.random.default_rng(5).normal(size=N))
    assert row["linear"] < 0.02 and row["forest"] < 0.05 and row["p_value"] > 0.05


def test_p_values_of_independent_nuisances_are_uniform():
    """60 nuisances with nothing in common with the latents: as many p-values below one half as above."""
    rng = np.random.default_rng(1)
    nuisances = {f"s{i}": rng.normal(size=80) for i in range(60)}
    table = independence(Z[:80], nuisances, permutations=19, trees=1, folds=2).table
    assert 17 <= (table["p_value"] <= 0.5).sum() <= 43 and (table["p_value"] <= 0.05).sum() <= 9


@pytest.mark.parametrize("kind", ["number", "class"])
def test_what_a_nuisance_shares_with_the_type_does_not_count_given_the_type(kind):
    rng = np.random.default_rng(2)
    z, high = Z.copy(), TYPE == "b"
    z[:, 0] += 4 * high
    s = (
        4 * high + rng.normal(size=N)
        if kind == "number"
        else np.where(rng.random(N) < np.where(high, 0.9, 0.1), "x", "y")
    )
    alone, within = one(s, z=z), one(s, TYPE, z=z)
    chance = 0.0 if kind == "number" else 0.5
    assert alone["p_value"] <= 0.01 and alone["linear"] > chance + 0.3
    assert within["p_value"] > 0.05 and within["linear"] < chance + 0.1 and within["forest"] < chance + 0.1
    inside = 40 * high + z[:, 1] if kind == "number" else np.where(z[:, 1] + 0.3 * rng.normal(size=N) > 0, "x", "y")
    again = one(inside, TYPE, z=z)
    assert again["p_value"] <= 0.01 and again["linear"] > chance + 0.3, "shuffled within types, or it would drown"


def test_classes_are_scored_against_their_number_and_not_their_sizes():
    """Balanced accuracy: a rare class predicted by none gives one half, though nine cells in ten are right."""
    rare = np.where(np.random.default_rng(3).random(N) < 0.1, "x", "y")
    row = one(rare)
    assert row["kind"] == "categorical" and row["chance"] == 0.5 and abs(row["linear"] - 0.5) < 0.12
    told = one(np.where(Z[:, 0] > 1.2, "x", "y"))
    assert told["linear"] > 0.9 and told["forest"] > 0.85 and told["p_value"] == pytest.approx(0.01)


def test_columns_are_found_and_few_cells_tested():
    obs = pd.DataFrame({"s": Z[:, 0], "flag": Z[:, 1] > 0, "type": TYPE}, index=[f"cell {i}" for i in range(N)])
    answer = independence(Z, ["s", "flag"], "type", obs=obs, cells=50, **FAST)
    assert answer.table["cells_tested"].tolist() == [50, 50] and answer.table["kind"].tolist() == [
        "continuous",
        "categorical",
    ]
    assert answer.settings["given"] == "type" and answer.diagnostics["cells"].tolist() == [200, 200]
    again = independence(Z, ["s", "flag"], "type", obs=obs, cells=50, **FAST)
    pd.testing.assert_frame_equal(answer.table, again.table)


def test_cells_are_known_by_their_names():
    """Nuisance, given and obs in another order than a DataFrame of latents, or of a length or shape that fits none."""
    latents = pd.DataFrame(Z, index=[f"cell {i}" for i in range(N)])
    turn = np.random.default_rng(5).permutation(N)
    own, given = pd.Series(Z[:, 0] ** 2, latents.index), pd.Series(TYPE, latents.index)
    right = independence(latents, {"own": own}, given, **FAST).table
    obs = pd.DataFrame({"own": own, "given": given}).iloc[turn]
    again = independence(latents, {"own": own.iloc[turn]}, given.iloc[turn], **FAST).table
    pd.testing.assert_frame_equal(again, right)
    pd.testing.assert_frame_equal(independence(latents, ["own"], "given", obs=obs, **FAST).table, right)
    with pytest.raises(ValueError, match="given has no row for 'cell 0'"):
        independence(latents, {"own": own}, given.set_axis([f"x{i}" for i in range(N)]), **FAST)
    with pytest.raises(ValueError, match="given must have one value for each of"):
        independence(latents, {"own": own}, np.stack([TYPE, TYPE], 1), **FAST)


def test_a_block_is_tested_as_a_whole():
    """R2 is the mean over columns; a dependence that no single column has is found; constant columns are left out."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 2))
    half = np.stack((z[:, 0], rng.normal(size=400), np.ones(400)), 1)
    noise, other = rng.normal(size=(400, 3)), rng.normal(size=(400, 2))
    other[:, 1] = np.sign(other[:, 0]) * np.sign(z[:, 0]) * np.abs(other[:, 1])  # known from both columns together
    answer = independence(z, {"half": half, "noise": noise, "both": other}, trees=20, permutations=99).table
    assert answer["kind"].tolist() == ["block"] * 3
    assert answer.loc["half", "linear"] == pytest.approx(0.5, abs=0.02)
    assert (answer["p_value"] < 0.05).tolist() == [True, False, True]
    columns = [independence(z, {"c": half[:, k]}, trees=20, permutations=99).table.iloc[0]["linear"] for k in (0, 1)]
    assert answer.loc["half", "linear"] == pytest.approx(np.mean(columns), abs=1e-3)
    with pytest.raises(ValueError, match="'x' of cell '3' is missing or not finite"):
        independence(z, {"x": np.where(np.arange(800).reshape(400, 2) == 7, np.nan, 1.0 * other)})
    with pytest.raises(ValueError, match="nuisance 'x' is constant"):
        independence(z, {"x": np.ones((400, 2))})


def test_small_categories_are_left_out_and_named():
    kinds = np.array(["a"] * 390 + ["tiny"] * 10)
    answer = independence(Z, {"s": Z[:, 0]}, kinds, **FAST)
    assert answer.table.loc["s", "cells"] == 390 and "Left out: 10 cells of 'tiny', fewer than 20." in answer.notes


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fit_and_a_posterior_bring_their_latents_and_columns(pbmc):
    cells = pbmc[:200, np.asarray(pbmc.X[:200].sum(0)).ravel() > 300].copy()
    fitted = fit("scvi", cells, max_epochs=1, n_hidden=8, n_latent=2, progress=False)
    first = independence(fitted, "n_genes", **FAST).table
    pd.testing.assert_frame_equal(first, independence(fitted.latent(), "n_genes", obs=cells.obs, **FAST).table)
    second = independence(fitted.posterior(particles=300), "n_genes", **FAST).table
    assert second.loc["n_genes", "linear"] == pytest.approx(first.loc["n_genes", "linear"], abs=0.1)
    with pytest.raises(ValueError, match="nuisance='depth' is not an obs column"):
        independence(fitted, "depth")
    with pytest.raises(KeyError, match="no latent site 'w'; there are z"):
        independence(fitted.posterior(particles=2), "n_genes", site="w")


SPARSE = np.where(np.arange(N) == 7, np.nan, Z[:, 0])


@pytest.mark.parametrize(
    ("nuisance", "settings", "message"),
    [
        (np.ones(N), {}, "nuisance 's' is constant"),
        ((TYPE == "b").astype(float), {"given": TYPE}, "constant within every category of given"),
        (TYPE, {"given": TYPE}, "constant within every category of given"),
        (SPARSE, {}, "'s' of cell '7' is missing or not finite"),
        (Z[:5, 0], {}, "'s' has 5 values for 400 cells"),
        (np.where(np.arange(N) < 3, "x", "y"), {}, "class 'x' of nuisance 's' has 3 cells, fewer than 5 folds"),
        (Z[:, 0], {"given": np.arange(N)}, "no category of given has 20 cells"),
        (Z[:, 0], {"given": Z[:, 1]}, "given must be a column of categories"),
        (Z[:, 0], {"folds": 1}, "folds must be a whole number of at least 2"),
        (Z[:, 0], {"permutations": 9}, "permutations must be a whole number of at least 19, not 9"),
    ],
    ids=["constant", "collinear", "same", "nan", "length", "rare", "many types", "numbers", "folds", "permutations"],
)
def test_misuse_is_named(nuisance, settings, message):
    with pytest.raises(ValueError, match=message):
        one(nuisance, **settings)


def test_latents_must_be_a_matrix_of_numbers():
    with pytest.raises(ValueError, match=r"latents must be numbers \[cells, dimensions\], not of shape \(400,\)"):
        independence(Z[:, 0], {"s": Z[:, 1]})
    with pytest.raises(ValueError, match="names nothing"):
        independence(Z, [])


@pytest.mark.parametrize(
    ("nuisance", "change", "kind", "message"),
    [
        ({"y": np.stack([Z] * 2, 2)}, {}, ValueError, "nuisance 'y' must have one value for each of the cells, not an"),
        ({"y": np.ma.masked_array(Z[:, 0], np.arange(N) == 3)}, {}, ValueError, r"nuisance 'y': the value at \[3\] is"),
        ({"y": Z[:, 0] + 1j}, {}, TypeError, "'y' must hold real numbers or categories, not complex128"),
        ("y", {"obs": {"y": Z[:, 0]}}, TypeError, "obs must be a DataFrame, one row a cell, not dict"),
    ],
    ids=["three axes", "masked", "complex", "dict"],
)
def test_nuisances_that_are_none(nuisance, change, kind, message):
    with pytest.raises(kind, match=message):
        independence(Z, nuisance, **FAST, **change)
