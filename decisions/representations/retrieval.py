"""Does a profile find the others of its group first? Mean average precision, with permutation p-values."""

from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.representations.known_groups import checked_profiles, memberships, similarity
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, one_of

NOTES = (
    "Each item of a group ranks all other items by cosine, those without a group too; the others of its group are to "
    "come first. Items of other groups of the query count as not of it.",
)
AT_ONCE = 2_000_000


def retrieval(
    profiles: Any,
    groups: Any,
    *,
    permutations: int = 10_000,
    null: str = "labels",
    fdr: float = 0.05,
    seed: int = 0,
) -> Decision:
    """Return for each group how well its items find one another, with p-values.

    Average precision of a query: the mean, over the others of its group, of the share of group items among all that are
    ranked as high or higher. Of a group, the mean over its items.

    Parameters
    ----------
    profiles : DataFrame [n, D], or array
        One row an item (a gene), see `perturbation_profiles`.
    groups : Series, mapping or frame
        What items are known to be of, such as complexes: a Series by item, a mapping from a group to its items, or a
        frame of group and item. Items without one are missing, or "".
    permutations : int
        Of each null distribution; p-values are at least 1 / (permutations + 1).
    null : {"labels", "ranks"}
        "labels": groups of the same size, drawn at random among the items; it holds whatever the profiles, as cosines
        are symmetric and queries of a group lean on one another. "ranks": random rankings, one for all queries of equal
        size, as copairs (0.5.5) has it: it compares a mean over queries with single ones, and so finds less.
    fdr : float
        Of the groups that are called (Benjamini and Hochberg 1995).
    seed : int

    Returns
    -------
    Decision
        ``table``, one row a group: n_items, map (mean average precision), chance (its mean under random rankings),
        p_value, q_value, is_called. ``diagnostics``, one row: the mean over all queries, its chance, the p-value by
        permutation of the labels of all items, the number of queries, of items and of called groups.

    Raises
    ------
    ValueError
        For profiles that are not finite, stand twice or are zero; if no group has two items.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> profiles = pd.DataFrame(rng.normal(size=(30, 5)), [f"g{k}" for k in range(30)])
    >>> profiles.iloc[:4] += 9
    >>> answer = retrieval(profiles, {"complex": ["g0", "g1", "g2", "g3"]}, permutations=999)
    >>> float(answer.table.loc["complex", "p_value"])
    0.001
    """
    permutations = checked_int("permutations", permutations, 19)
    one_of("null", null, ("labels", "ranks"))
    fdr, seed = checked_real("fdr", fdr, at_least=0, below=1), checked_seed(seed)
    values, names = checked_profiles(profiles)
    members = memberships(groups, names)
    ranks = ranks_of(similarity(values))
    n, generator = len(names), np.random.default_rng(seed)
    of_group = {g: float(precision_in(ranks, rows[None])[0]) for g, rows in members.items()}
    nulls: dict[int, np.ndarray] = {}
    for size in sorted({len(rows) for rows in members.values()}):
        drawn = _random_rankings if null == "ranks" else _random_groups
        nulls[size] = drawn(ranks, size, permutations, generator)
    table = pd.DataFrame(
        {
            "n_items": {g: len(rows) for g, rows in members.items()},
            "map": of_group,
            "chance": {g: expected_precision(len(rows) - 1, n - 1) for g, rows in members.items()},
            "p_value": {g: _p_value(of_group[g], nulls[len(rows)]) for g, rows in members.items()},
        }
    ).rename_axis("group")
    table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy())
    table["is_called"] = table["q_value"] <= fdr
    queries = table["n_items"]
    whole = float(np.average(table["map"], weights=queries))
    shuffled = _all_groups(ranks, list(members.values()), min(permutations, 1000), generator)
    diagnostics = pd.DataFrame(
        {
            "map": [whole],
            "chance": [float(np.average(table["chance"], weights=queries))],
            "p_value": [_p_value(whole, shuffled)],
            "n_queries": [int(queries.sum())],
            "n_items": [n],
            "n_called": [int(table["is_called"].sum())],
        },
        index=pd.Index(["all"], name="groups"),
    )
    settings = {"permutations": permutations, "null": null, "fdr": fdr, "seed": seed}
    return Decision(table, diagnostics, settings, NOTES)


def ranks_of(cosines: np.ndarray) -> np.ndarray:
    """Return the rank, from 1, of each item among the others for each query [n, n]; ties share their worst rank.

    A group that is tied with others has found nothing before them, whatever the order of the items.
    """
    n = len(cosines)
    scores = cosines.copy()
    np.fill_diagonal(scores, -np.inf)
    ordered = np.sort(-scores, axis=1)
    return np.stack([np.searchsorted(ordered[k], -scores[k], side="right") for k in range(n)]).astype(np.int32)


def precision_in(ranks: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean average precision of groups of one size, places [P, m], as [P]."""
    m = groups.shape[1]
    inside = ranks[groups[:, :, None], groups[:, None, :]].astype(np.float64)
    inside[:, np.arange(m), np.arange(m)] = np.inf
    inside.sort(-1)
    inside = inside[:, :, : m - 1]
    above = np.arange(1, m, dtype=np.float64)
    if (inside[:, :, 1:] == inside[:, :, :-1]).any():  # ties within the group count together
        above = (inside[..., None, :] <= inside[..., :, None]).sum(-1)
    return (above / inside).mean((1, 2))


def expected_precision(positives: int, total: int) -> float:
    """Return the mean average precision of random rankings, with this many of the total relevant (Bestgen 2015).

    Examples
    --------
    >>> expected_precision(1, 2)
    0.75
    """
    if total <= 1:
        return 1.0
    harmonic = float((1 / np.arange(1, total + 1)).sum())
    return (harmonic + (positives - 1) / (total - 1) * (total - harmonic)) / total


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Return q-values: the least FDR at which each is called.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.5, 0.04])).round(3).tolist()
    [0.03, 0.5, 0.06]
    """
    order = np.argsort(p_values)
    scaled = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    values = np.empty(len(p_values))
    values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return values


def _p_value(value: float, null: np.ndarray) -> float:
    return float((np.sum(null >= value - 1e-12) + 1) / (len(null) + 1))


def _random_groups(ranks: np.ndarray, size: int, number: int, generator: np.random.Generator) -> np.ndarray:
    """Mean average precisions of random groups of a size, [number]."""
    step, out = max(1, AT_ONCE // max(size**2, len(ranks))), []
    for begin in range(0, number, step):
        count = min(step, number - begin)
        out.append(precision_in(ranks, generator.random((count, len(ranks))).argpartition(size - 1)[:, :size]))
    return np.concatenate(out)


def _random_rankings(ranks: np.ndarray, size: int, number: int, generator: np.random.Generator) -> np.ndarray:
    """Average precisions of single queries under random rankings, [number]."""
    total, out = len(ranks) - 1, []
    step = max(1, AT_ONCE // total)
    for begin in range(0, number, step):
        places = generator.random((min(step, number - begin), total)).argpartition(size - 2)[:, : size - 1] + 1
        out.append((np.arange(1, size) / np.sort(places, 1)).mean(1))
    return np.concatenate(out)


def _all_groups(
    ranks: np.ndarray, members: list[np.ndarray], number: int, generator: np.random.Generator
) -> np.ndarray:
    """Means over all queries when the items are shuffled, [number]."""
    sizes = np.array([len(rows) for rows in members])
    out = np.empty(number)
    for k in range(number):
        order = generator.permutation(len(ranks))
        out[k] = sum(s * precision_in(ranks, order[rows][None])[0] for s, rows in zip(sizes, members, strict=True))
    return out / sizes.sum()
