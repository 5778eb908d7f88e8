"""Profiles beside known groups: clusters that agree with them, and pairs of one complex among those most alike."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    average_precision_score,
    homogeneity_score,
    normalized_mutual_info_score,
)

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.representations.known_groups import checked_profiles, memberships, similarity
from fieldguide.inference.checks.arguments import one_of

PERCENTILES = tuple(range(80, 100))
"""At which pairs are called alike, as published for optical pooled screens."""
EQUAL = 1e-9
"""Rounding that a comparison of cosines with a percentile forgives."""


def cluster_agreement(profiles: Any, groups: Any) -> pd.Series:
    """Return how well clusters of profiles agree with known groups.

    Items of the groups alone are clustered, by average linkage of cosine distances, into as many clusters as groups.

    Parameters
    ----------
    profiles : DataFrame [n, D], or array
    groups : Series, mapping or frame
        As for `retrieval`, each item of one group.

    Returns
    -------
    Series
        ari, ami (adjusted Rand index and mutual information, 0 by chance), nmi, homogeneity, n_items, n_groups.

    Raises
    ------
    ValueError
        If an item is of several groups, or there is one group.

    Examples
    --------
    >>> profiles = pd.DataFrame([[1, 0.1], [1, 0], [0, 1], [0.1, 1]], list("abcd"))
    >>> float(cluster_agreement(profiles, pd.Series(list("xxyy"), list("abcd")))["ari"])
    1.0
    """
    values, names = checked_profiles(profiles)
    members = memberships(groups, names, several=False)
    if len(members) < 2:
        raise ValueError(f"groups: {next(iter(members))!r} is the only group with two items: there is nothing to tell")
    rows = np.concatenate(list(members.values()))
    known = np.repeat(np.arange(len(members)), [len(m) for m in members.values()])
    distance = 1 - similarity(values[rows])
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(np.maximum(distance, 0), checks=False), "average")
    clusters = fcluster(tree, len(members), "maxclust")
    return pd.Series(
        {
            "ari": adjusted_rand_score(known, clusters),
            "ami": adjusted_mutual_info_score(known, clusters),
            "nmi": normalized_mutual_info_score(known, clusters),
            "homogeneity": homogeneity_score(known, clusters),
            "n_items": float(len(rows)),
            "n_groups": float(len(members)),
        }
    )


def complex_recall(profiles: Any, groups: Any, rule: str = "one_sided", among: str = "groups") -> Decision:
    """Return precision and recall of pairs of one complex among the pairs that are most alike.

    Parameters
    ----------
    profiles : DataFrame [n, D], or array
    groups : Series, mapping or frame
        Complexes, as for `retrieval`; an item may be of several. Items of none are left out.
    rule : {"one_sided", "two_sided"}
        "one_sided": of all pairs of two items, those with the largest cosine. "two_sided", as published for optical
        pooled screens: those with the largest or the smallest, percentiles being taken over the whole matrix with its
        diagonal, so that few items leave little room above it.
    among : {"groups", "all"}
        Whose cosines the percentiles are of: items of groups, or all. Precision and recall are of the former.

    Returns
    -------
    Decision
        ``table``, one row a percentile from 80 to 99: threshold (and ``lower``), n_pairs, precision, recall.
        ``diagnostics``, one row: average_precision of all pairs by cosine (of its absolute value, if two-sided),
        partial_area (trapezoid, of the table's points alone), precision by chance, numbers of items and pairs.

    Raises
    ------
    ValueError
        If fewer than three items are of a complex that has two.

    Examples
    --------
    >>> profiles = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 4)))
    >>> groups = pd.Series([k // 4 for k in range(20)])
    >>> complex_recall(profiles, groups).diagnostics["chance"].round(3).tolist()
    [0.158]
    """
    one_of("rule", rule, ("one_sided", "two_sided"))
    one_of("among", among, ("groups", "all"))
    values, names = checked_profiles(profiles)
    members = memberships(groups, names)
    rows = np.unique(np.concatenate(list(members.values())))
    if len(rows) < 3:
        raise ValueError("groups: fewer than three items are of a group that has two")
    place = {row: k for k, row in enumerate(rows)}
    together = np.zeros((len(rows), len(rows)), dtype=bool)
    for items in members.values():
        at = [place[row] for row in items]
        together[np.ix_(at, at)] = True
    cosines = similarity(values[rows])
    upper = np.triu_indices(len(rows), 1)
    pairs, linked = cosines[upper], together[upper]
    both, whole = rule == "two_sided", cosines if among == "groups" else similarity(values)
    whole = whole.ravel() if both else whole[np.triu_indices(len(whole), 1)]
    highs, lows = np.percentile(whole, PERCENTILES), np.percentile(whole, [100 - p for p in PERCENTILES])
    out = []
    for percentile, high, lowest in zip(PERCENTILES, highs, lows, strict=True):
        low = lowest if both else -np.inf
        called = (pairs >= high - EQUAL) | (pairs <= low + EQUAL)
        hits = int((called & linked).sum())
        out.append(
            {
                "percentile": percentile,
                "threshold": high,
                "lower": low if both else np.nan,
                "n_pairs": int(called.sum()),
                "precision": hits / called.sum() if called.any() else np.nan,
                "recall": hits / linked.sum(),
            }
        )
    table = pd.DataFrame(out).set_index("percentile")
    order = np.argsort(table["recall"].to_numpy(), kind="stable")
    curve = table[["recall", "precision"]].iloc[order].dropna().to_numpy()
    diagnostics = pd.DataFrame(
        {
            "average_precision": [float(average_precision_score(linked, np.abs(pairs) if both else pairs))],
            "partial_area": [float(np.trapezoid(curve[:, 1], curve[:, 0]))],
            "chance": [float(linked.mean())],
            "n_items": [len(rows)],
            "n_pairs": [len(pairs)],
            "n_linked": [int(linked.sum())],
        },
        index=pd.Index(["all"], name="pairs"),
    )
    notes = ("The partial area is of the table's points alone: it is no average precision.",)
    return Decision(table, diagnostics, {"rule": rule, "among": among}, notes)
