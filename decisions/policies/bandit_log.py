"""A log of decisions and what came of them, checked: actions, rewards and the probabilities they were taken with."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import named, real_array, refuse
from fieldguide.decisions.policies.policy import Policy, labels, rank_quantile
from fieldguide.decisions.policies.slates import DESIGNS, coefficients
from fieldguide.inference.checks.aligning import order_of, shuffled, unnamed
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.labels import label_codes, label_text
from fieldguide.inference.checks.rounding import exceeds
from fieldguide.inference.checks.rows import row_numbers


@dataclass
class BanditLog:
    """n contexts with l logged actions each.

    Attributes
    ----------
    action : int64 [n, l]
        Codes of the actions, by their place in ``actions``.
    reward, propensity : float64 [n, l]
        The reward of each item, and its probability in one draw of the logging policy.
    actions : Index [K]
        Names of all actions.
    rows : Index [n]
        Names of the contexts.
    design : {"iid", "plackett_luce"}
        How the actions of a context were drawn: independently, or one after the other without replacement.
    numbered : bool
        Whether the contexts have numbers for want of names: equal numbers of other logs then mean nothing.
    """

    action: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    actions: pd.Index
    rows: pd.Index
    design: str = "iid"
    numbered: bool = False

    @classmethod
    def read(
        cls,
        data: Any,
        action: Any = "action",
        reward: Any = "reward",
        propensity: Any = "propensity",
        actions: Any = None,
        design: str = "iid",
    ) -> "BanditLog":
        """Return the log that a table holds, one row a context.

        Parameters
        ----------
        data : DataFrame or AnnData
            Columns of the table, or of ``obs``; slates have a column for each of their items.
        action, reward, propensity : str or sequence of str
            Names of the columns. The propensity is that of a single draw by the full logging policy.
        actions : sequence, optional
            Names of all actions; by default those that occur (an error for a slate design, which needs all).
        design : {"iid", "plackett_luce"}

        Raises
        ------
        ValueError
            Naming row and column: no rows, a missing reward, a propensity outside (0, 1], an unknown action, an action
            twice in a slate without replacement.
        """
        table = data.obs if isinstance(data, anndata.AnnData) else data
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"data must be a DataFrame or AnnData, not {type(data).__name__}")
        if not len(table):
            raise ValueError("the log is empty: data has no rows")
        names = [_columns(part) for part in (action, reward, propensity)]
        if len({len(n) for n in names}) > 1 or not names[0]:
            raise ValueError(f"action, reward and propensity need a column for each item: {names}")
        for column in (c for columns in names for c in columns):
            if not isinstance(column, Hashable) or column not in table:
                raise ValueError(f"no column {column!r}; there are {', '.join(map(str, table.columns))}")
        for column in (c for columns in names for c in columns):
            if isinstance(table[column], pd.DataFrame):
                raise ValueError(f"data have several columns {column!r}: make their names differ")
        taken = table[names[0]]
        if actions is None and design == "plackett_luce" and len(names[0]) > 1:
            raise ValueError(
                "actions must list all actions of a design without replacement, also those that were never drawn"
            )
        known = _known(actions, taken)
        codes = np.stack([_codes(names[0][k], taken.iloc[:, k], known) for k in range(len(names[0]))], 1)
        unknown = np.argwhere(codes < 0)
        if unknown.size:
            row, item = unknown[0]
            column = names[0][item]
            raise ValueError(f"{column} of row {named(table.index, row)} is {taken.iloc[row, item]!r}, not an action")
        return cls.of(codes, table[names[1]], table[names[2]], known, table.index, design)

    @classmethod
    def of(
        cls,
        action: ArrayLike,
        reward: ArrayLike,
        propensity: ArrayLike,
        actions: Any,
        rows: Any = None,
        design: str = "iid",
    ) -> "BanditLog":
        """Return the log of arrays [n] or [n, l], with codes of actions; see `read`."""
        names = _unique(labels(actions))
        rows = _own_rows(rows, action, reward, propensity)
        codes = _wide("action", action, rows)
        gained, chance = _wide("reward", reward, rows), _wide("propensity", propensity, rows)
        if not codes.size:
            raise ValueError("the log is empty: there are no rows")
        if not codes.shape == gained.shape == chance.shape:
            shapes = f"action {codes.shape}, reward {gained.shape} and propensity {chance.shape}"
            raise ValueError(f"{shapes} differ in shape")
        index = labels(len(codes) if rows is None else rows, "rows")
        if len(index) != len(codes):
            raise ValueError(f"rows are {len(index)} names for {len(codes)} contexts")
        numbered = unnamed(index)
        index = pd.RangeIndex(len(index)) if numbered else index
        one_of("design", design, DESIGNS)

        def place(what: str):
            item = " (item {})" if codes.shape[1] > 1 else ""
            return lambda row, column: f"{what} of row {named(index, row)}{item.format(column)}"

        whole = np.isfinite(codes) & (codes == np.floor(codes))
        refuse(~whole, codes, place("action"), ", not a whole number")
        codes = codes.astype(np.int64)
        refuse((codes < 0) | (codes >= len(names)), codes, place("action"), f", not one of {len(names)}")
        refuse(~np.isfinite(gained), gained, place("reward"), ", not a number")
        refuse(~((chance > 0) & (chance <= 1)), chance, place("propensity"), ", not in (0, 1]")
        if design == "plackett_luce" and codes.shape[1] > 1:
            twice = np.flatnonzero((np.diff(np.sort(codes, 1), axis=1) == 0).any(1))
            if twice.size:
                raise ValueError(
                    f"an action is twice in the slate of row {named(index, twice[0])}: drawn without replacement?"
                )
            over = np.flatnonzero(exceeds(chance.sum(1), 1 + 1e-6))
            if over.size:
                raise ValueError(
                    f"propensities of row {named(index, over[0])} sum to {chance[over[0]].sum():.6g}: they must be "
                    "those of a single draw by the full policy, not given what was drawn before"
                )
        return cls(codes, gained, chance, names, index, design, numbered)

    def __len__(self) -> int:
        return len(self.action)

    def drawn_by(self, logging: Any, whole: bool = True) -> Policy:
        """Return the policy that this log was drawn with, after it has said so of every logged action.

        Parameters
        ----------
        logging : Policy, DataFrame or array [n, K] or [K]
        whole : bool
            Whether it has to list all actions; else an action may be missing where probability is left for it.

        Raises
        ------
        ValueError
            Naming the row, and the two probabilities that differ.
        """
        rho = Policy.read(logging, self.actions, self.rows, "logging", whole=whole)
        said = rho.at(self.action)
        off = np.abs(said - self.propensity) > 1e-3 * self.propensity + 1e-9
        if not whole:
            off &= (said > 0) | (rho.probability.sum(1)[:, None] + self.propensity > 1 + 1e-3)
        if off.any():
            row, item = np.argwhere(off)[0]
            raise ValueError(
                f"logging says {said[row, item]:.6g} for the action of row {named(self.rows, row)}, the log "
                f"{self.propensity[row, item]:.6g} (propensity): both must come from the policy that drew the log"
            )
        return rho

    def context(self, values: Any) -> np.ndarray:
        """Return checked features of the contexts [n, F], float64: a table is found by the names of its rows."""
        x = read_context(values)
        table = isinstance(values, pd.DataFrame | pd.Series)
        if table and not self.numbered and (not unnamed(values.index) or shuffled(self.rows)):
            x = x[order_of("context", values.index, self.rows, "rows of the log")]
        elif len(x) != len(self):
            raise ValueError(f"context has {len(x)} rows, the log {len(self)}")
        elif table and shuffled(values.index):  # numbers out of order are names
            x = x[order_of("context", values.index, pd.RangeIndex(len(x)), "rows of the log")]
        wrong = np.argwhere(~np.isfinite(x))
        if wrong.size:
            row, column = wrong[0]
            raise ValueError(f"context of row {named(self.rows, row)}, column {column} is {x[row, column]}")
        return x

    def within(self, candidates: Any) -> "Within":
        """Return the log beside the candidates of each context (those of the logging policy, by `Policy.top`).

        They are found by the names of rows and actions; ValueError where those of the log are not among them.

        Examples
        --------
        >>> log = BanditLog.of([1, 0], [1, 0], [0.25, 0.5], actions=3)
        >>> within = log.within(Policy.read([0.5, 0.25, 0.25], 3, 2).top(1))
        >>> within.place.tolist(), within.share.round(6).tolist()
        ([[-1], [0]], [[4.0], [2.0]])
        """
        if not isinstance(candidates, Policy):
            raise TypeError(f"candidates must be a Policy, as Policy.top returns it, not {type(candidates).__name__}")
        return Within(self, candidates.aligned(self.actions, self.rows, "candidates"))

    def take(self, rows: ArrayLike) -> "BanditLog":
        """Return the log of some rows: row numbers, or a mask."""
        at = row_numbers("rows", rows, len(self), "contexts", names=self.rows)
        action, reward, propensity = (table[at] for table in (self.action, self.reward, self.propensity))
        names = pd.Index(self.rows.to_numpy()[at]) if self.numbered else self.rows[at]  # numbers of the whole log
        return BanditLog(action, reward, propensity, self.actions, names, self.design, self.numbered)


@dataclass(frozen=True)
class Within:
    """A log beside some candidates in each of its n contexts."""

    log: BanditLog
    candidates: Policy

    @property
    def place(self) -> np.ndarray:
        """Where each logged action stands among the candidates, int64 [n, l]; -1 where it is none."""
        return self.candidates.place(self.log.action)

    @property
    def share(self) -> np.ndarray:
        """What each item counts for under the design, float64 [n, l]: ``1 / rho`` for independent draws.

        The mean over a slate of share times policy times reward is an unbiased term of the policy's value; see
        `fieldguide.decisions.policies.slates`.
        """
        shares = coefficients(torch.tensor(np.log(self.log.propensity)), self.log.design) * self.log.action.shape[1]
        return shares.numpy()

    def take(self, rows: np.ndarray) -> "Within":
        """Return some rows (numbers) of both."""
        log = self.log.take(rows)
        return Within(log, self.candidates.aligned(log.actions, log.rows, "logging"))

    def top(self, p: int) -> "Within":
        """Return the log beside the p most probable of the candidates."""
        return Within(self.log, self.candidates.top(p))

    def covering(self, share: float) -> int:
        """Return how many of the most probable candidates hold a share of the rewarded items; see `rank_quantile`."""
        width, length = self.candidates.probability.shape[1], self.log.action.shape[1]
        place = self.top(width).place
        ranks = np.where(place < 0, width, place + 1)
        return min(rank_quantile(ranks, self.log.reward, share, length), width)


def read_context(values: Any) -> np.ndarray:
    """Return features [n, F], float64."""
    x = real_array("context", values)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"context must be of shape (rows, features), not {x.shape}")
    return x


def _columns(names: Any) -> list:
    """Names of columns: one, or several."""
    listed = isinstance(names, Sequence | np.ndarray | pd.Index) and not isinstance(names, str)
    return list(names) if listed else [names]


def _codes(column: Any, taken: pd.Series, known: pd.Index) -> np.ndarray:
    """Places of actions among the known ones, which may be written otherwise (1, "1", 1.0); -1 where they are none."""
    codes = known.get_indexer(taken)
    other = codes < 0
    if other.any():
        codes[other] = label_codes(str(column), taken[other], [label_text(action) for action in known])
    return codes


def _known(actions: Any, taken: pd.DataFrame) -> pd.Index:
    """Names of all actions: those given, or those that occur, in order."""
    if actions is not None:
        return _unique(labels(actions))
    absent = np.argwhere(taken.isna().to_numpy())
    if absent.size:
        row, item = absent[0]
        raise ValueError(f"{taken.columns[item]} of row {named(taken.index, row)} is missing, not an action")
    names = pd.unique(taken.to_numpy().ravel())
    try:
        return pd.Index(sorted(names))
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in names})
        raise TypeError(
            f"{', '.join(map(str, taken.columns))} holds names of actions of several types ({', '.join(kinds)}), as in "
            f"row {named(taken.index, 0)}: make them one type, or give actions, the list of all"
        ) from error


def _unique(names: pd.Index) -> pd.Index:
    if not names.is_unique:
        raise ValueError(f"actions: action {names[names.duplicated()][0]!r} is there more than once")
    return names


def _own_rows(rows: Any, *parts: Any) -> Any:
    """Names of the contexts: those given, or those that a Series or table of the log has."""
    if rows is not None:
        return rows
    named_parts = [
        part.index for part in parts if isinstance(part, pd.Series | pd.DataFrame) and not unnamed(part.index)
    ]
    return named_parts[0] if named_parts else None


def _wide(name: str, values: Any, rows: Any) -> np.ndarray:
    table = real_array(name, values)
    if isinstance(values, pd.Series | pd.DataFrame) and rows is not None:
        names = labels(rows, "rows")
        if not unnamed(values.index) or shuffled(names):
            table = table[order_of(name, values.index, names, "rows of the log")]
    if table.ndim not in (1, 2):
        raise ValueError(f"{name} must be of shape (rows,) or (rows, items), not {table.shape}")
    return table[:, None] if table.ndim == 1 else table
