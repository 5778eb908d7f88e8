"""Representations of perturbations: average precision by brute force and scikit-learn, nulls that hold, bad input."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fieldguide.catalog.data.screened_images import ops_sim
from fieldguide.decisions import alike_pairs, cluster_agreement, complex_recall, perturbation_profiles, retrieval
from fieldguide.decisions.representations.retrieval import benjamini_hochberg, expected_precision, ranks_of


def drawn(seed: int, items: int = 30, size: int = 6, group: int = 5, shift: float = 0.0):
    rng = np.random.default_rng(seed)
    names = [f"g{k}" for k in range(items)]
    values = rng.normal(size=(items, size))
    groups = {f"c{k}": names[k * group : (k + 1) * group] for k in range(items // group - 1)}
    for k in range(len(groups)):
        values[k * group : (k + 1) * group] += shift * rng.normal(size=size)
    return pd.DataFrame(values, names), groups


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_average_precision_is_that_of_scikit_learn_for_each_query(seed, group):
    profiles, groups = drawn(seed, group=group, shift=0.5)
    answer = retrieval(profiles, groups, permutations=19)
    unit = profiles.to_numpy() / np.linalg.norm(profiles, axis=1)[:, None]
    cosine = unit @ unit.T
    for name, members in groups.items():
        places = [list(profiles.index).index(m) for m in members]
        relevant = np.isin(np.arange(len(profiles)), places)
        each = [average_precision_score(np.delete(relevant, k), np.delete(cosine[k], k)) for k in places]
        assert answer.table.loc[name, "map"] == pytest.approx(np.mean(each), abs=1e-12)


@given(st.integers(1, 4), st.integers(4, 7))
def test_chance_is_the_mean_over_all_rankings(positives, total):
    each = [
        np.mean([(j + 1) / r for j, r in enumerate(places)]) for places in combinations(range(1, total + 1), positives)
    ]
    assert expected_precision(positives, total) == pytest.approx(np.mean(each), abs=1e-12)


def test_ties_have_found_nothing():
    profiles = pd.DataFrame(np.tile([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], (4, 1)), [f"g{k}" for k in range(12)])
    answer = retrieval(profiles, {"c": ["g0", "g1", "g2"]}, permutations=99)
    assert answer.table.loc["c", "map"] == pytest.approx(2 / 11) and answer.table.loc["c", "p_value"] == 1
    assert (ranks_of(np.ones((4, 4)))[0, 1:] == 3).all()


@pytest.mark.parametrize("null", ["labels", "ranks"])
def test_p_values_are_valid_where_labels_mean_nothing(null):
    small = []
    for seed in range(80):
        profiles, groups = drawn(seed, items=24, group=4)
        small += retrieval(profiles, groups, permutations=99, null=null, seed=seed).table["p_value"].tolist()
    share = np.mean(np.array(small) <= 0.1)
    assert share < 0.1 + 3 * np.sqrt(0.09 / len(small))
    assert (share > 0.06) == (null == "labels")  # rankings of single queries make a wider null


def test_groups_that_are_alike_are_called_in_every_form_of_naming_them():
    profiles, groups = drawn(1, shift=3.0)
    series = pd.Series({m: name for name, members in groups.items() for m in members})
    frame = pd.DataFrame([(n, m) for n, members in groups.items() for m in members], columns=["complex", "gene"])
    tables = [retrieval(profiles, form, permutations=499).table for form in (groups, series, series.to_dict(), frame)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    assert tables[0]["is_called"].all() and (tables[0]["q_value"] >= tables[0]["p_value"]).all()
    shuffled = profiles.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(retrieval(shuffled, groups, permutations=19).table["map"], tables[0]["map"])


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=20))
def test_q_values_are_the_least_level_at_which_each_is_called(p_values):
    p, q = np.array(p_values), benjamini_hochberg(np.array(p_values))
    for level in (0.01, 0.1, 0.5):
        ordered, n = np.sort(p), len(p)
        passing = np.flatnonzero(ordered <= level * np.arange(1, n + 1) / n + 1e-15)
        called = p <= (ordered[passing[-1]] if passing.size else -1)
        np.testing.assert_array_equal(q <= level + 1e-12, called)


def test_clusters_agree_where_groups_are_apart_and_not_by_chance():
    apart, groups = drawn(2, shift=8.0)
    assert cluster_agreement(apart, groups)[["ari", "ami", "nmi", "homogeneity"]].to_numpy() == pytest.approx(1.0)
    chance = [cluster_agreement(*drawn(seed))["ari"] for seed in range(20)]
    assert abs(np.mean(chance)) < 0.05


@pytest.mark.parametrize("rule", ["one_sided", "two_sided"])
@pytest.mark.parametrize("among", ["groups", "all"])
def test_recall_of_complexes_by_brute_force(rule, among):
    profiles, groups = drawn(3, items=40, shift=1.0)
    groups["c0"] = [*groups["c0"], "g7"]  # one that is of two
    answer = complex_recall(profiles, groups, rule, among)
    unit = profiles.to_numpy() / np.linalg.norm(profiles, axis=1)[:, None]
    names, of = list(profiles.index), sorted({m for v in groups.values() for m in v}, key=list(profiles.index).index)
    places = [names.index(m) for m in of]
    base = unit @ unit.T if among == "all" else (unit @ unit.T)[np.ix_(places, places)]
    pool = base.ravel() if rule == "two_sided" else base[np.triu_indices(len(base), 1)]
    for q in (80, 95):
        high, low = np.percentile(pool, q), np.percentile(pool, 100 - q) if rule == "two_sided" else -np.inf
        hit = called = linked = 0
        for a, b in combinations(range(len(of)), 2):
            value = unit[places[a]] @ unit[places[b]]
            alike = value >= high - 1e-9 or value <= low + 1e-9
            real = any(of[a] in v and of[b] in v for v in groups.values())
            hit, called, linked = hit + (alike and real), called + alike, linked + real
        row = answer.table.loc[q]
        assert (row["precision"], row["recall"]) == pytest.approx((hit / called, hit / linked), abs=1e-12)
    assert answer.diagnostics["n_linked"].iloc[0] == linked


def test_pairs_are_called_at_their_rate():
    false, calls = [], 0
    for seed in range(20):
        profiles, groups = drawn(seed, items=60, size=20, group=6, shift=2.0)
        table = alike_pairs(profiles, fdr=0.1).table
        of = {m: name for name, members in groups.items() for m in members}
        same = table["first"].map(of).eq(table["second"].map(of))
        false += (~same[table["is_called"]]).tolist()
        calls += int((table["is_called"] & same).sum())
    assert np.mean(false) <= 0.13 and calls > 20 * 9 * 15 * 0.5
    nothing = [alike_pairs(drawn(seed, items=60, size=20)[0]).table["is_called"].sum() for seed in range(20)]
    assert np.mean(np.array(nothing) > 0) <= 0.25


def test_profiles_of_a_screen_find_its_complexes_and_do_not_see_its_wells():
    world = ops_sim(1, 4, 3, 2, 4, 60, 200, size=8)
    traits, obs = world.data.obsm["traits"], world.data.obs
    shifted = traits + 5 * pd.factorize(obs["well"])[0][:, None]  # what a well does to all its cells
    place: dict[str, Any] = {"well": "well", "guide": "guide", "control": "non-targeting", "obs": obs}
    plain = perturbation_profiles(traits, "gene", **place)
    pd.testing.assert_frame_equal(perturbation_profiles(shifted, "gene", **place), plain, atol=1e-8)
    assert retrieval(plain, world.complexes, permutations=99).diagnostics["map"].iloc[0] > 0.8
    with pytest.warns(UserWarning, match="'non-targeting' of column 'gene' are taken for controls"):
        pd.testing.assert_frame_equal(perturbation_profiles(traits, "gene", **(place | {"control": None})), plain)
    assert plain.mean().abs().max() < 1e-9 and np.allclose(plain.std(ddof=0), 1)
    raw = perturbation_profiles(traits, "gene", standardise=False, **place)
    guides = pd.DataFrame(traits).groupby([obs["gene"].astype(str).to_numpy(), obs["guide"].to_numpy()]).size()
    assert len(raw) == 14 and (guides.groupby(level=0).size().drop("non-targeting") == 2).all()


OBS = pd.DataFrame({"gene": ["a", "a", "b", "ctrl"], "well": ["w1", "w1", "w2", "w1"]}, ["c0", "c1", "c2", "c3"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"well": "well"}, "well 'w2' has no control cell among its 1"),
        ({"control": "NT"}, "control 'NT' is not in column 'gene'; there are a, b, ctrl"),
        ({"perturbation": "nope"}, "nope"),
        ({"obs": OBS.iloc[:3]}, "one row for each of the 4 cells, of 3 rows"),
        ({"obs": OBS.assign(gene=["a", None, "b", "ctrl"])}, "cell 'c1' is missing"),
        ({"obs": OBS.assign(gene="ctrl")}, "controls only"),
        ({"cells": [[1.0], [np.nan], [2], [3]]}, "finite"),
    ],
    ids=str,
)
def test_profiles_of_bad_input_are_named(given: Any, message: str):
    usual = {"cells": np.eye(4), "perturbation": "gene", "obs": OBS, "control": "ctrl"} | given
    with pytest.raises((ValueError, KeyError), match=message):
        perturbation_profiles(**usual)


@pytest.mark.parametrize(
    ("profiles", "groups", "message"),
    [
        (pd.DataFrame(np.eye(4)), {"c": ["x", "y"]}, "no group has two items among the profiles; groups name x, y"),
        (pd.DataFrame(np.eye(4), list("abca")), {"c": ["a", "b"]}, "item 'a' stands twice"),
        (pd.DataFrame(np.diag([1.0, 1, 0, 1]), list("abcd")), {"c": ["a", "b"]}, "item 'c' is zero throughout"),
        (pd.DataFrame([[1.0], [np.inf], [2]], list("abc")), {"c": ["a", "b"]}, "item 'b' has values"),
        (pd.DataFrame(np.eye(2), list("ab")), {"c": ["a", "b"]}, "at least 3"),
        (pd.DataFrame(np.eye(4)), 3, "Series, a mapping or a frame"),
    ],
    ids=str,
)
def test_groups_of_bad_input_are_named(profiles: Any, groups: Any, message: str):
    for decide in (retrieval, cluster_agreement, complex_recall):
        with pytest.raises((ValueError, TypeError), match=message):
            decide(profiles, groups)


def test_one_item_of_several_groups_and_one_group_have_no_clusters():
    profiles, groups = drawn(0)
    with pytest.raises(ValueError, match="'g0' is of several groups"):
        cluster_agreement(profiles, groups | {"other": ["g0", "g9"]})
    with pytest.raises(ValueError, match="'c0' is the only group"):
        cluster_agreement(profiles, {"c0": groups["c0"]})
    with pytest.raises(ValueError, match="of ten or more"):
        alike_pairs(profiles.iloc[:5])
