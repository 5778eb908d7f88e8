"""A log of decisions and what came of them, checked: actions, rewards and the probabilities they were taken with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import named, refuse
from fieldguide.decisions.policies.policy import Policy, labels, rank_quantile
from fieldguide.decisions.policies.slates import DESIGNS, coefficients
from fieldguide.inference.checks.arguments import one_of


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
    """

    action: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    actions: pd.Index
    rows: pd.Index
    design: str = "iid"

    @classmethod
    def read(
        cls,
        data: Any,
        action: str | Sequence[str] = "action",
        reward: str | Sequence[str] = "reward",
        propensity: str | Sequence[str] = "propensity",
        actions: Sequence | pd.Index | None = None,
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
        names = [[c] if isinstance(c, str) else list(c) for c in (action, reward, propensity)]
        if len({len(n) for n in names}) > 1 or not names[0]:
            raise ValueError(f"action, reward and propensity need a column for each item: {names}")
        for column in (c for columns in names for c in columns):
            if column not in table:
                raise ValueError(f"no column {column!r}; there are {', '.join(map(str, table.columns))}")
        taken = table[names[0]]
        known = pd.Index(actions if actions is not None else sorted(pd.unique(taken.to_numpy().ravel())))
        codes = np.stack([known.get_indexer(taken[c]) for c in names[0]], 1) if len(table) else np.zeros((0, 1), int)
        unknown = np.argwhere(codes < 0)
        if unknown.size:
            row, item = unknown[0]
            column = names[0][item]
            raise ValueError(f"{column} of row {table.index[row]!r} is {taken.iloc[row, item]!r}, not an action")
        return cls.of(codes, table[names[1]], table[names[2]], known, table.index, design)

    @classmethod
    def of(
        cls,
        action: ArrayLike,
        reward: ArrayLike,
        propensity: ArrayLike,
        actions: Sequence | pd.Index | int,
        rows: Sequence | pd.Index | None = None,
        design: str = "iid",
    ) -> "BanditLog":
        """Return the log of arrays [n] or [n, l], with codes of actions; see `read`."""
        names = labels(actions)
        codes, gained, chance = (_wide(v, t) for v, t in ((action, np.int64), (reward, float), (propensity, float)))
        if not codes.size:
            raise ValueError("the log is empty")
        if not codes.shape == gained.shape == chance.shape:
            shapes = f"action {codes.shape}, reward {gained.shape} and propensity {chance.shape}"
            raise ValueError(f"{shapes} differ in shape")
        index = labels(len(codes) if rows is None else rows)
        one_of("design", design, DESIGNS)
        if not names.is_unique:
            raise ValueError(f"action {names[names.duplicated()][0]!r} is there more than once")

        def place(what: str):
            item = " (item {})" if codes.shape[1] > 1 else ""
            return lambda row, column: f"{what} of row {named(index, row)}{item.format(column)}"

        refuse((codes < 0) | (codes >= len(names)), codes, place("action"), f", not one of {len(names)}")
        refuse(~np.isfinite(gained), gained, place("reward"), ", not a number")
        refuse(~((chance > 0) & (chance <= 1)), chance, place("propensity"), ", not in (0, 1]")
        if design == "plackett_luce" and codes.shape[1] > 1:
            twice = np.flatnonzero((np.diff(np.sort(codes, 1), axis=1) == 0).any(1))
            if twice.size:
                raise ValueError(
                    f"an action is twice in the slate of row {named(index, twice[0])}: drawn without replacement?"
                )
            over = np.flatnonzero(chance.sum(1) > 1 + 1e-6)
            if over.size:
                raise ValueError(
                    f"propensities of row {named(index, over[0])} sum to {chance[over[0]].sum():.6g}: they must be "
                    "those of a single draw by the full policy, not given what was drawn before"
                )
        return cls(codes, gained, chance, names, index, design)

    def __len__(self) -> int:
        return len(self.action)

    def within(self, candidates: Policy) -> "Within":
        """Return the log beside the candidates of each context (those of the logging policy, by `Policy.top`).

        Examples
        --------
        >>> log = BanditLog.of([1, 0], [1, 0], [0.25, 0.5], actions=3)
        >>> within = log.within(Policy.read([0.5, 0.25, 0.25], 3, 2).top(1))
        >>> within.place.tolist(), within.share.round(6).tolist()
        ([[-1], [0]], [[4.0], [2.0]])
        """
        return Within(self, candidates)

    def take(self, rows: ArrayLike) -> "BanditLog":
        """Return the log of some rows (numbers, or true and false)."""
        at = np.asarray(rows)
        action, reward, propensity = (table[at] for table in (self.action, self.reward, self.propensity))
        return BanditLog(action, reward, propensity, self.actions, self.rows[at], self.design)


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


def _wide(values: ArrayLike, kind) -> np.ndarray:
    table = np.asarray(values, dtype=kind)
    return table[:, None] if table.ndim == 1 else table
