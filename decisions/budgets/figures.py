"""Figures of allocations: what a budget of any size would bring, how sure that is, and responses to levels."""

from typing import Any

import numpy as np

POINTS = 2000


def budget_curve(decision: Any) -> Any:
    """Draw the optimal value against the budget, what another unit of budget brings, and the spread over draws."""
    from matplotlib.figure import Figure

    curve = decision.curve
    if len(curve) > POINTS:
        curve = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, POINTS).astype(int))]
    name, budget = next(iter(decision.settings["budget"].items()))
    spread = [] if decision.spread is None else list(decision.spread.table.columns)
    figure = Figure(figsize=(4.5 * (2 + len(spread)), 4), layout="constrained")
    left, right, *rest = figure.subplots(1, 2 + len(spread))
    left.plot(curve["budget"], curve["value"], color="C0")
    left.plot(decision.diagnostics["spent"], decision.diagnostics["value"], "o", color="C3", label="this allocation")
    left.set_ylabel("sum of expected rewards")
    left.legend(loc="lower right")
    right.step(curve["budget"], curve["multiplier"], where="post", color="C0")
    right.axhline(decision.multipliers[name], color="C3", linestyle=":")
    right.set_ylabel("reward for another unit of budget")
    for axis in (left, right):
        axis.axvline(budget, color="0.5", linestyle="--")
        axis.set_xlabel("budget")
    _histograms(decision.spread, rest)
    return figure


def distribution(decision: Any) -> Any:
    """Draw the distribution of value, and of spending where there is one, over posterior draws."""
    from matplotlib.figure import Figure

    names = list(decision.table.columns)
    figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
    _histograms(decision, np.atleast_1d(figure.subplots(1, len(names))))
    return figure


def _histograms(decision: Any, axes: Any) -> None:
    """One panel for each column of draws."""
    for axis, name in zip(axes, () if decision is None else decision.table.columns, strict=True):
        axis.hist(decision.table[name], bins=30, color="C0")
        for end in ("low", "high"):
            axis.axvline(decision.settings[f"{name}_{end}"], color="0.5", linestyle="--")
        axis.set_xlabel(f"{name} (dashed: 90 % interval)")
        axis.set_ylabel("draws")


def band(decision: Any) -> Any:
    """Draw the mean response against the cost of the level, with its band."""
    from matplotlib.figure import Figure

    table = decision.table.sort_values("cost", kind="stable")
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(table["cost"], table["low"], table["high"], color="C0", alpha=0.25, linewidth=0)
    axis.plot(table["cost"], table["response"], "o-", color="C0")
    axis.set_xlabel("cost of the level")
    axis.set_ylabel(f"mean response, {decision.settings['level']:.0%} band")
    return figure
