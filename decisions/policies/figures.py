"""Figures of off-policy evaluation: all estimators beside each other."""

from typing import Any

import numpy as np


def estimates(decision: Any) -> Any:
    """Draw each estimator's value with its interval, and the effective number of logged items behind it."""
    from matplotlib.figure import Figure

    table, weights = decision.table, decision.diagnostics
    figure = Figure(figsize=(9, 0.35 * len(table) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    at = np.arange(len(table))[::-1]
    spread = np.abs(table[["low", "high"]].to_numpy().T - table["value"].to_numpy())
    left.errorbar(table["value"], at, xerr=spread, fmt="o", color="C0", capsize=3)
    left.axvline(table.loc["logging", "value"], color="0.5", linestyle="--")
    left.set_yticks(at, table.index)
    left.set_xlabel(f"value, with {decision.settings['level']:.0%} interval")
    shown = weights.reindex(table.index)
    poor = (shown["khat"] > shown["khat_limit"]).to_numpy()
    right.barh(at, shown["ess_share"].fillna(0), color=np.where(poor, "C3", "0.6"))
    right.set_xlabel("effective share of logged items (red: k-hat too high)")
    return figure
