"""Profiles and the groups (complexes, pathways) that their items are known to be of, checked and aligned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.labels import label_texts


def checked_profiles(profiles: Any) -> tuple[np.ndarray, pd.Index]:
    """Return profiles [n, D] as numbers, and the names of their items.

    Raises
    ------
    ValueError
        For names that stand twice, values that are not finite, a profile of zeros (it has no direction), or fewer than
        three items.
    """
    names = pd.Index(label_texts(profiles.index)) if isinstance(profiles, pd.DataFrame) else None
    values = real_array("profiles", profiles)
    if values.ndim != 2:
        raise ValueError(f"profiles must be numbers [items, features], not of shape {values.shape}")
    names = pd.Index([str(k) for k in range(len(values))]) if names is None else names
    if len(values) < 3:
        raise ValueError(f"profiles has {len(values)} items: at least 3 are needed to say who is alike")
    if names.has_duplicates:
        raise ValueError(f"profiles: item {names[names.duplicated()][0]!r} stands twice; average its profiles first")
    bad_rows = np.flatnonzero(~np.isfinite(values).all(1))
    if bad_rows.size:
        raise ValueError(f"profiles: item {names[bad_rows[0]]!r} has values that are missing or not finite")
    flat = np.flatnonzero(np.abs(values).max(1) == 0)
    if flat.size:
        raise ValueError(f"profiles: item {names[flat[0]]!r} is zero throughout: leave it out ({flat.size} such)")
    return values, names


def similarity(values: np.ndarray) -> np.ndarray:
    """Return cosines [n, n] of profiles."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def memberships(groups: Any, names: pd.Index, several: bool = True) -> dict[str, np.ndarray]:
    """Return the items of each group that has at least two among the profiles, as places.

    Parameters
    ----------
    groups : Series, mapping, or DataFrame
        A Series by item, or a mapping from item to group, missing or "" for none; or a mapping from a group to a list
        of items; or a frame whose first two columns are group and item, one row a membership.
    names : Index
        Of the items.
    several : bool
        Whether an item may be of several groups.

    Raises
    ------
    ValueError
        If no group has two items among the profiles, naming what was asked for and what is there.
    """
    pairs = _pairs(groups)
    place = {name: k for k, name in enumerate(names)}
    known = pairs[pairs["item"].isin(set(names))].drop_duplicates()
    if not several and known["item"].duplicated().any():
        item = known["item"][known["item"].duplicated()].iloc[0]
        raise ValueError(f"groups: item {item!r} is of several groups; here each item is of one")
    members = {str(g): np.sort([place[i] for i in rows["item"]]) for g, rows in known.groupby("group", sort=True)}
    members = {g: rows for g, rows in members.items() if len(rows) >= 2}
    if not members:
        asked, there = ", ".join(pairs["item"].astype(str).unique()[:5]), ", ".join(map(str, names[:5]))
        raise ValueError(
            f"groups: no group has two items among the profiles; groups name {asked or 'nothing'}, ..., and profiles "
            f"{there}, ..."
        )
    return members


def _pairs(groups: Any) -> pd.DataFrame:
    """One row a membership: group and item, as text."""
    if isinstance(groups, pd.DataFrame):
        if groups.shape[1] < 2:
            raise ValueError("groups as a frame has two columns: the group, and the item")
        pairs = groups.iloc[:, :2].dropna().set_axis(["group", "item"], axis=1)
    elif isinstance(groups, Mapping) and any(isinstance(v, list | tuple | set | np.ndarray) for v in groups.values()):
        pairs = pd.DataFrame([(g, i) for g, items in groups.items() for i in items], columns=["group", "item"])
    elif isinstance(groups, pd.Series | Mapping):
        series = pd.Series(groups, dtype=object).dropna()
        pairs = pd.DataFrame({"group": series.to_numpy(), "item": series.index.to_numpy()})
    else:
        raise TypeError(f"groups is a Series, a mapping or a frame of group and item, not {type(groups).__name__}")
    pairs = pairs.astype(str)
    return pairs[pairs["group"] != ""].reset_index(drop=True)
