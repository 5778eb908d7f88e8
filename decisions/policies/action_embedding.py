"""Embeddings of actions: what actions have in common (a category, tags), and how likely a policy is to show it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import named, real_array, require_unmasked
from fieldguide.decisions.policies.bandit_log import BanditLog
from fieldguide.decisions.policies.policy import Policy
from fieldguide.inference.checks.aligning import missing, order_of, unnamed

ROUNDING = 1e-4


@dataclass
class Embedding:
    """E possible embeddings of actions, and which was seen with each logged item.

    Attributes
    ----------
    observed : int64 [n, l]
        Code of the embedding of each logged item.
    chance : float64 [K, E]
        Probability of each embedding, given the action; 0 and 1 where the action fixes it.
    rows, actions : Index [n], Index [K], optional
        Of the log that it was made for.
    """

    observed: np.ndarray
    chance: np.ndarray
    rows: pd.Index | None = None
    actions: pd.Index | None = None

    @classmethod
    def of_categories(cls, categories: Any, log: BanditLog) -> "Embedding":
        """Return the embedding that each action fixes: its category, or its combination of several.

        Parameters
        ----------
        categories : Series or array [K], or DataFrame or array [K, D]
            Of each action; Series and DataFrames are found by the names of the actions.
        log : BanditLog

        Raises
        ------
        ValueError
            Naming the action that has none.
        """
        if isinstance(categories, pd.Series | pd.DataFrame):
            if not categories.index.is_unique:
                raise ValueError(f"embedding has action {categories.index[categories.index.duplicated()][0]!r} twice")
            by_position = unnamed(categories.index) and len(categories) == len(log.actions)
            absent = missing(categories.index, log.actions)
            if len(absent) and not by_position:
                raise ValueError(f"embedding has no action {named(absent, 0)}")
            categories = categories.iloc[order_of("embedding", categories.index, log.actions, "actions")]
        if not isinstance(categories, pd.DataFrame):
            require_unmasked("embedding", categories)
            categories = np.asarray(categories)
            if categories.ndim not in (1, 2):
                raise ValueError(
                    f"embedding must be a category, or several, of each action, not shape {categories.shape}"
                )
        table = pd.DataFrame(categories)
        if len(table) != len(log.actions):
            raise ValueError(f"embedding is for {len(table)} actions, the log has {len(log.actions)}")
        gaps = np.flatnonzero(table.isna().any(axis=1))
        if gaps.size:
            raise ValueError(f"embedding of action {named(log.actions, gaps[0])} is missing")
        codes = table.groupby(list(table.columns), sort=False, observed=True).ngroup().to_numpy()
        return cls(codes[log.action], np.eye(codes.max() + 1)[codes], log.rows, log.actions)

    @classmethod
    def of_draws(cls, observed: ArrayLike, chance: ArrayLike, log: BanditLog) -> "Embedding":
        """Return embeddings that were drawn anew with each logged item.

        Parameters
        ----------
        observed : int array [n] or [n, l], Series or DataFrame
            Codes of the embeddings that were seen; a table is found by the names of its rows.
        chance : array or DataFrame [K, E]
            Probability of each embedding, given the action; a table is found by the names of the actions.
        log : BanditLog

        Raises
        ------
        ValueError
            Naming row and action: a code that is none, probabilities that do not sum to one, an embedding that the
            logged action cannot have.
        """
        codes, table = real_array("observed", observed), real_array("chance", chance)
        if isinstance(observed, pd.Series | pd.DataFrame):
            codes = codes[order_of("observed", observed.index, log.rows, "rows of the log")]
        if isinstance(chance, pd.DataFrame):
            table = table[order_of("chance", chance.index, log.actions, "actions")]
        if not (codes == np.floor(codes)).all():
            raise ValueError("observed must hold codes of embeddings, whole numbers")
        shown = codes.astype(np.int64)
        shown = shown[:, None] if shown.ndim == 1 else shown
        if shown.shape != log.action.shape:
            raise ValueError(f"observed embeddings are of shape {shown.shape}, the log of {log.action.shape}")
        if table.ndim != 2 or len(table) != len(log.actions):
            raise ValueError(f"chance must have a row for each of {len(log.actions)} actions, not shape {table.shape}")
        off = np.flatnonzero(~((np.abs(table.sum(1) - 1) <= ROUNDING) & (table >= 0).all(1)))
        if off.size:
            raise ValueError(f"embedding: probabilities of action {named(log.actions, off[0])} do not sum to 1")
        unknown = np.argwhere((shown < 0) | (shown >= table.shape[1]))
        if unknown.size:
            raise ValueError(f"embedding of row {named(log.rows, unknown[0, 0])} is not one of {table.shape[1]}")
        never = np.argwhere(table[log.action, shown] == 0)
        if never.size:
            row, item = never[0]
            raise ValueError(
                f"embedding {shown[row, item]} of row {named(log.rows, row)} has probability 0 for its action "
                f"{named(log.actions, log.action[row, item])}"
            )
        return cls(shown, table, log.rows, log.actions)

    def aligned(self, log: BanditLog) -> "Embedding":
        """Return the embedding for the rows and actions of a log, in their order; ValueError if it is of others."""
        seen, chance = self.observed, self.chance
        if self.rows is not None and not self.rows.equals(log.rows):
            seen = seen[order_of("embedding", self.rows, log.rows, "rows of the log")]
        if self.actions is not None and not self.actions.equals(log.actions):
            chance = chance[order_of("embedding", self.actions, log.actions, "actions")]
        if seen.shape != log.action.shape or len(chance) != len(log.actions):
            raise ValueError(
                f"embedding is of {seen.shape} items and {len(chance)} actions, the log of {log.action.shape} and "
                f"{len(log.actions)}: make it of this log"
            )
        return Embedding(seen, chance, log.rows, log.actions)

    def probability(self, policy: Policy) -> np.ndarray:
        """Return how likely each observed embedding is under a policy, ``sum_a pi(a | x) p(e | a)``, [n, l]."""
        marginal = []
        for shown in self.observed.T:
            chance = self.chance[:, shown].T if policy.codes is None else self.chance[policy.codes, shown[:, None]]
            marginal.append((policy.probability * chance).sum(1))
        return np.stack(marginal, 1)

    def unseen(self, policy: Policy) -> float:
        """Return the share of a policy on embeddings that no logged item had."""
        occurs = np.zeros(self.chance.shape[1])
        occurs[np.unique(self.observed)] = 1
        return float((policy.probability.sum(1) - policy.total(self.chance @ occurs)).mean())
