"""A policy: the probabilities of actions in each context, of all of them or of a few candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import named, real_array
from fieldguide.inference.checks.aligning import missing, order_of, unnamed
from fieldguide.inference.checks.arguments import checked_int, checked_real
from fieldguide.inference.checks.rounding import SLACK

ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """Names of the rows that chose a policy, for ``attrs["trained_on"]`` of a table: one object that is never copied.

    (pandas copies and compares ``attrs`` with every table that is made of another.)
    """

    rows: pd.Index

    def __deepcopy__(self, memo: dict) -> "TrainedOn":
        return self


@dataclass
class Policy:
    """Probabilities of p candidates among K actions in each of n contexts.

    Attributes
    ----------
    codes : int64 [n, p] or None
        The candidates, by their place in ``actions``; None where all K actions are listed in order.
    probability : float64 [n, p]
        Of the candidates; what is missing to one is on actions that are not listed.
    actions : Index [K]
    rows : Index [n]
        Names of the contexts.
    trained_on : Index, optional
        Names of the rows of a log that chose the policy.
    """

    codes: np.ndarray | None
    probability: np.ndarray
    actions: pd.Index
    rows: pd.Index
    trained_on: pd.Index | None = None

    @classmethod
    def read(
        cls,
        values: Any,
        actions: pd.Index | Sequence | int,
        rows: pd.Index | Sequence | int,
        name: str = "policy",
        whole: bool = True,
    ) -> "Policy":
        """Return a checked policy.

        Parameters
        ----------
        values : Policy, DataFrame or array [n, K], Series or array [K]
            A table is found by the names of its rows and columns; one row stands for all contexts.
        actions : Index [K], or K
        rows : Index [n], or n
        name : str
            What errors call it.
        whole : bool
            Whether the probabilities of a row must sum to one.

        Raises
        ------
        ValueError
            Naming row and action.
        """
        names, index = labels(actions), labels(rows, "rows")
        if isinstance(values, Policy):
            return values.aligned(names, index, name)
        trained = getattr(values, "attrs", {}).get("trained_on")
        trained = trained.rows if isinstance(trained, TrainedOn) else trained
        table = read_table(values, names, index, name)
        outside = np.argwhere(~((table >= -ROUNDING) & (table <= 1 + ROUNDING)))
        if outside.size:
            row, a = outside[0]
            raise ValueError(
                f"{name}: probability of action {named(names, a)} in row {named(index, row)} is {table[row, a]}"
            )
        total = table.sum(1)
        off = np.flatnonzero((np.abs(total - 1) > ROUNDING) if whole else (total > 1 + ROUNDING))
        if off.size:
            raise ValueError(
                f"{name}: probabilities of row {named(index, off[0])} sum to {total[off[0]]:.6g}, not to 1"
            )
        table = table.clip(0, 1) / total[:, None] if whole else table.clip(0, 1)
        return cls(None, table, names, index, None if trained is None else pd.Index(trained))

    def aligned(self, actions: pd.Index, rows: pd.Index, name: str = "policy") -> "Policy":
        """Return the policy for these rows and actions, in this order, found by their names."""
        if len(self.actions) != len(actions) or len(missing(self.actions, actions)):
            raise ValueError(f"{name} is over {len(self.actions)} actions, which are not the {len(actions)} of the log")
        if self.rows.equals(rows) and self.actions.equals(actions):
            return self
        at = np.arange(len(self)) if self.rows.equals(rows) else _rows_of(name, self.rows, rows)
        codes, probability = self.codes, self.probability[at]
        order = order_of(name, self.actions, actions, "actions")
        if codes is None:
            probability = probability[:, order]
        else:
            codes = np.argsort(order)[codes[at]]
        return Policy(codes, probability, actions, rows, self.trained_on)

    def __len__(self) -> int:
        return len(self.probability)

    def at(self, action: ArrayLike) -> np.ndarray:
        """Return the probabilities of given actions [n, l]; zero where an action is not listed."""
        wanted = np.asarray(action)
        if self.codes is None:
            return np.take_along_axis(self.probability, wanted, 1)
        return np.stack([(self.probability * (self.codes == a[:, None])).sum(1) for a in wanted.T], 1)

    def place(self, action: ArrayLike) -> np.ndarray:
        """Return where given actions [n, l] stand among the candidates; -1 where they are none."""
        wanted = np.asarray(action)
        if self.codes is None:
            return wanted
        same = (self.codes == a[:, None] for a in wanted.T)
        return np.stack([np.where(s.any(1), s.argmax(1), -1) for s in same], 1)

    def total(self, values: ArrayLike) -> np.ndarray:
        """Return the sum over actions of probability times value [n]; values are [n, K] or [K]."""
        table = np.asarray(values, dtype=np.float64)
        if self.codes is None:
            return (self.probability * table).sum(1)
        picked = table[self.codes] if table.ndim == 1 else np.take_along_axis(table, self.codes, 1)
        return (self.probability * picked).sum(1)

    def among(self, candidates: "Policy") -> "Policy":
        """Return this policy on the candidates of another one alone, in their order, not renormalised."""
        return Policy(candidates.codes, self.at(candidates.codes), self.actions, self.rows)

    def on(self, other: "Policy") -> np.ndarray:
        """Return how much of this policy is on actions that another one takes, [n]."""
        if other.codes is not None:
            return (self.at(other.codes) * (other.probability > 0)).sum(1)
        taken = other.probability if self.codes is None else other.at(self.codes)
        return (self.probability * (taken > 0)).sum(1)

    def top(self, p: Any) -> "Policy":
        """Return the p most probable actions of each context as candidates, most probable first, not renormalised.

        Of equally probable ones the one listed first comes first.
        """
        p = checked_int("top", p)
        if not 1 <= p <= self.probability.shape[1]:
            raise ValueError(f"top must be between 1 and {self.probability.shape[1]} actions, not {p}")
        places = ranked(self.probability, p)
        codes = places if self.codes is None else np.take_along_axis(self.codes, places, 1)
        return Policy(codes, np.take_along_axis(self.probability, places, 1), self.actions, self.rows, self.trained_on)

    def frame(self) -> pd.DataFrame:
        """Return the table [n, K]."""
        table = self.probability
        if self.codes is not None:
            table = np.zeros((len(self), len(self.actions)))
            np.put_along_axis(table, self.codes, self.probability, 1)
        return pd.DataFrame(table, index=self.rows, columns=self.actions)


def read_table(values: Any, actions: pd.Index, rows: pd.Index, name: str) -> np.ndarray:
    """Return a table of numbers [n, K], found by names where it has them; one row stands for all."""
    table, shape = real_array(name, values), (len(rows), len(actions))
    if isinstance(values, pd.Series):
        table = table[_actions_of(name, values.index, actions)]
    if isinstance(values, pd.DataFrame):
        table = table[:, _actions_of(name, values.columns, actions)]
        if len(values) != 1 or len(rows) == 1 and not unnamed(values.index):
            table = table[_rows_of(name, values.index, rows)]
    if table.shape not in {shape, shape[1:], (1, shape[1])}:
        raise ValueError(f"{name} must be of shape {shape} or {shape[1:]} (rows x actions), not {table.shape}")
    table = np.broadcast_to(table, shape)
    missing = np.argwhere(~np.isfinite(table))
    if missing.size:
        row, action = missing[0]
        raise ValueError(f"{name} of row {named(rows, row)}, action {named(actions, action)} is not a number")
    return table


def _actions_of(name: str, index: pd.Index, actions: pd.Index) -> np.ndarray:
    """Places of the actions in an index; columns numbered by pandas are taken by position."""
    absent = missing(index, actions)
    if len(absent) and not (unnamed(index) and len(index) == len(actions)):
        raise ValueError(f"{name} has no column for action {named(absent, 0)}")
    return order_of(name, index, actions, "actions")


def _rows_of(name: str, index: pd.Index, rows: pd.Index) -> np.ndarray:
    absent = missing(index, rows)
    if len(absent) and not (unnamed(index) and len(index) == len(rows)):
        raise ValueError(f"{name} has no row {named(absent, 0)}")
    return order_of(name, index, rows, "rows")


def labels(names: Any, what: str = "actions") -> pd.Index:
    """Return names as an index; a number stands for so many numbered ones."""
    if isinstance(names, pd.Index):
        return names
    if isinstance(names, int | np.integer) and not isinstance(names, bool):
        return pd.RangeIndex(checked_int(what, names, at_least=0))
    if isinstance(names, str | bytes | dict | set) or not np.iterable(names) or getattr(names, "ndim", 1) != 1:
        raise TypeError(f"{what} must be a list of names, or how many there are, not {names!r:.60}")
    return pd.Index(names)


def ranked(logging: ArrayLike, count: int | None = None) -> np.ndarray:
    """Return the codes of the ``count`` most probable actions of each context, most probable first, int64 [n, p].

    Of equally probable ones the smaller code comes first, in training and in use alike.

    Examples
    --------
    >>> ranked([[0.2, 0.4, 0.4]], 2).tolist()
    [[1, 2]]
    """
    rho = np.asarray(logging, dtype=np.float64)
    return np.argsort(-rho, axis=1, kind="stable")[:, :count]


def rank_quantile(rank: ArrayLike, reward: ArrayLike, share: Any = 0.9, least: int = 1) -> int:
    """Return the smallest p for which a share of the rewarded logged items has a rank of at most p.

    Parameters
    ----------
    rank : int array [n, l]
        Rank of each logged action under the logging policy, from 1.
    reward : array [n, l]
    share : float
        In (0, 1].
    least : int
        Smallest answer: the items of a slate, for instance.

    Raises
    ------
    ValueError
        If nothing was rewarded.

    Examples
    --------
    >>> rank_quantile([[1], [2], [9]], [[1], [1], [0]])
    2
    """
    share = checked_real("share", share, above=0, at_most=1)
    rewarded = np.sort(np.asarray(rank)[np.asarray(reward) > 0])
    if not rewarded.size:
        raise ValueError("no logged item was rewarded: nothing says how many actions matter")
    count = int(np.ceil(share * len(rewarded) * (1 - SLACK)))  # 0.9 of 10 is 9, also where the product is above it
    return max(int(rewarded[max(count, 1) - 1]), least)
