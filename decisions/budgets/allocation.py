"""Spend a budget where it brings most: one option (incentive, dose) for each customer, with a certificate."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fieldguide.decisions.budgets.figures import budget_curve
from fieldguide.decisions.budgets.integer import solve_whole
from fieldguide.decisions.budgets.knapsack import respond, solve
from fieldguide.decisions.budgets.many_budgets import solve_many
from fieldguide.decisions.budgets.options import Options, read_options, read_redeemed
from fieldguide.decisions.budgets.outcomes import outcomes
from fieldguide.decisions.budgets.spending import expected_cost, solve_within
from fieldguide.decisions.decision import Decision
from fieldguide.inference.checks.arguments import one_of

RISKS = ("mean", "quantile", "cvar")
OPTIMISTIC = (
    "value is by the rewards that chose the options, and so optimistic where these are estimates: "
    "evaluate the policy on other rows (evaluate_policy) before it is believed."
)
KNOWN = "reward and cost are taken as known; `outcomes` says what posterior draws make of the policy."
DRAWN = "value_low and value_high (and spent_low, spent_high) are the ends of 90 % intervals over the draws."


@dataclass
class Allocation(Decision):
    """Who gets which option, and the price of the budget that makes it optimal.

    ``table`` has one row a customer: ``option``, its ``cost`` and ``reward``; for a customer between two options also
    the ``other`` one and its ``probability`` (the costs and rewards are then expected ones). ``diagnostics``: one row a
    budget, with the certificate.

    Attributes
    ----------
    policy : DataFrame [N, K]
        Probability of each option; ``attrs`` are those of the rewards, such as ``trained_on``.
    multipliers : dict
        By budget: the value that another unit of it would bring. Zero where money is left.
    value : float
        Sum of the rewards under the policy.
    curve : DataFrame or None
        Budget, value and multiplier at the vertices of the optimal value as a function of the budget (one budget).
    spread : Decision or None
        Where rewards (or probabilities of redemption) came as draws: the `outcomes` over these.
    """

    policy: pd.DataFrame = field(default_factory=pd.DataFrame)
    multipliers: dict[str, float] = field(default_factory=dict)
    value: float = 0.0
    curve: pd.DataFrame | None = None
    spread: Decision | None = None

    def predict(self, reward: Any, cost: Any, redeemed: Any = None) -> pd.Series:
        """Return the option of new customers at the multipliers of this allocation: ``argmax_a r - lam c``.

        Parameters
        ----------
        reward : array or DataFrame [N, K]
        cost : array [K] or [N, K], DataFrame, or dict of them
            As in `allocate`, with the same budgets.
        redeemed : array or DataFrame [N, K], optional
            As in `allocate`.

        Returns
        -------
        Series [N]
            Names of options. What they spend is not bound by the budget; it is close to it where the new customers are
            like the old ones.
        """
        options = read_options(reward, cost, dict.fromkeys(self.multipliers, np.inf))
        if redeemed is not None:
            options = replace(options, costs=expected_cost(options.costs, read_redeemed(redeemed, options)))
        if list(options.names) != list(self.policy.columns):
            raise ValueError(f"options are {list(options.names)}, and were {list(self.policy.columns)}")
        chosen = respond(options.reward, options.costs, list(self.multipliers.values()))
        return pd.Series(np.asarray(options.names)[chosen.cpu().numpy()], index=options.customers, name="option")

    def outcomes(
        self, reward: ArrayLike, cost: ArrayLike | None = None, redeemed: ArrayLike | None = None, seed: int = 0
    ) -> Decision:
        """Return the distribution of value and spending under this policy over posterior draws.

        Parameters
        ----------
        reward : array [S, N, K]
            Draws of the expected reward of each option.
        cost : array [K], [N, K] or [S, N, K], optional
            Expected cost, in draws where that is uncertain too.
        redeemed : array [N, K] or [S, N, K], optional
            Probability that the option is redeemed, where only then it costs. Spending is then what is really spent:
            in each draw every customer is given an option, and redeems it or not.
        seed : int
            Of what customers do.

        Returns
        -------
        Decision
            ``table``, one row a draw: ``value``, and ``spent`` with ``cost``. ``settings``: means, standard
            deviations, the ends of 90 % intervals, and ``p_overspent``, the probability that spending is above the
            budget.
        """
        return outcomes(self.policy.to_numpy(), self.settings["budget"], reward, cost, redeemed, seed)


def allocate(
    reward: Any,
    cost: Any,
    budget: float | Mapping[str, float],
    *,
    risk: str = "mean",
    level: float = 0.1,
    redeemed: Any = None,
    overspend: float | None = None,
    integer: bool = False,
    increasing: bool = False,
    seconds: float = 60.0,
) -> Allocation:
    """Give each customer the option that spends the budget best.

    Maximises the sum of expected rewards over all policies, randomised ones included, whose expected cost keeps within
    the budget. The optimum has at most one customer between two options, and every other gets
    ``argmax_a r(x, a) - lam c(x, a)`` at one price lam, so that new customers can be decided on by the same rule
    (`Allocation.predict`). Rewards need not rise with the cost, nor costs with the option.

    Parameters
    ----------
    reward : array or DataFrame [N, K], or array [S, N, K]
        Expected reward of each option (column) for each customer (row); or S posterior draws of it.
    cost : array [K] or [N, K], DataFrame, or dict of them
        Expected cost of each option, at least 0; infinite where an option is not on offer. Several named costs make
        several budgets: a ceiling on how many get an option is one, with a cost of 1 for that option.
    budget : float or dict
        For all customers together, by the names of the costs if there are several.
    risk : {"mean", "quantile", "cvar"}
        What counts of the draws: their mean, their lower quantile at `level`, or the mean of the share `level` of the
        smallest (conditional value at risk), for each customer and option.
    level : float
    redeemed : array or DataFrame [N, K], or array [S, N, K], optional
        Probability that the option is redeemed, where it costs only then (a coupon): ``cost`` is what is paid in that
        case, and the expected cost is their product. Posterior draws are averaged.
    overspend : float, optional
        Largest probability with which what is really spent may exceed the budget, customers redeeming independently
        with the probabilities ``redeemed`` (with draws: given one of the draws). The expected spending is lowered until
        `fieldguide.decisions.budgets.spending.spending_bound` is within the budget.
    integer : bool
        Give every customer one option outright, by HiGHS (mixed-integer). The bound and the gap are reported.
    increasing : bool
        Refuse costs that do not rise from each option to the next, as those of levels of an incentive do.
    seconds : float
        Time limit of the integer search.

    Returns
    -------
    Allocation
        With draws, ``diagnostics`` also has the ends of the 90 % interval of the value over them and, with
        ``redeemed``, of what is really spent, and the probability ``p_overspent`` that this is above the budget.

    Raises
    ------
    ValueError
        Naming the customer and the option: a missing reward, a negative or missing cost, costs that do not rise; or the
        budget that cannot be kept.

    Notes
    -----
    One budget: exact, by the concave envelopes of the customers' options (Sinha and Zoltners 1979), in O(NK log NK).
    Several: by column generation (Dantzig and Wolfe 1960), to a relative gap of 1e-9.

    Examples
    --------
    >>> best = allocate([[0.1, 0.3, 0.35], [0.2, 0.25, 0.6], [0.0, 0.4, 0.5]], cost=[0, 1, 2], budget=3.5)
    >>> round(best.value, 10), {name: round(price, 10) for name, price in best.multipliers.items()}
    (1.2, {'budget': 0.2})
    """
    rewards, draws = _certain(reward, risk, level)
    options = read_options(rewards, cost, budget, increasing)
    settings = {"budget": options.budgets, "risk": risk if draws else "none", "integer": integer}
    settings |= {"level": level} if draws and risk != "mean" else {}
    price, chance, bound = options.costs, None, None
    if redeemed is not None:
        if len(options.budgets) > 1:
            raise ValueError(f"redeemed is for one budget, not for {', '.join(options.budgets)}")
        chance = read_redeemed(redeemed, options)
        options = replace(options, costs=expected_cost(price, chance))
    if overspend is not None:
        _guarded(overspend, chance, integer)
        settings["overspend"] = overspend
    if integer:
        choice, dual, status = solve_whole(options, seconds)
        policy = torch.nn.functional.one_hot(choice, len(options.names)).double()
        multipliers, curve = dict.fromkeys(options.budgets, np.nan), None
        settings["status"] = status
    elif len(options.budgets) == 1:
        total = next(iter(options.budgets.values()))
        if overspend is None:
            best = solve(options.reward, options.costs[0], total)
        else:
            best, bound = solve_within(options.reward, price[0], chance, total, overspend)
        policy = best.policy(len(options.names))
        dual, multipliers = best.dual, {next(iter(options.budgets)): best.multiplier}
        curve = pd.DataFrame(torch.stack(best.path, 1).cpu().numpy(), columns=["budget", "value", "multiplier"])
    else:
        many = solve_many(options.reward, options.costs, list(options.budgets.values()))
        policy, dual, curve = many.policy, many.dual, None
        multipliers = dict(zip(options.budgets, map(float, many.multipliers), strict=True))
    many_rewards = reward if draws else options.reward[None].cpu().numpy()
    spread = None
    if draws or (chance is not None and chance.ndim == 3):
        paid = () if chance is None else (price[0].cpu().numpy(), chance.cpu().numpy())
        spread = outcomes(policy.cpu().numpy(), options.budgets, many_rewards, *paid)
    allocation = _report(options, policy, dual, multipliers, curve, settings, bound, spread)
    allocation.policy.attrs |= getattr(reward, "attrs", {})
    return allocation


def _report(options: Options, policy, dual, multipliers, curve, settings, bound, spread) -> Allocation:
    """The table of customers, and the certificate."""
    names, index = np.asarray(options.names), options.customers

    def expected(values: Tensor) -> np.ndarray:
        return torch.where(policy > 0, values * policy, 0).sum(1).cpu().numpy()

    likely = policy.max(1).indices
    table = pd.DataFrame({"option": names[likely.cpu().numpy()]}, index=index)
    for name, cost in zip(options.budgets, options.costs, strict=True):
        table["cost" if len(options.budgets) == 1 else f"cost_{name}"] = expected(cost)
    table["reward"] = expected(options.reward)
    rest = policy.scatter(1, likely[:, None], 0.0)
    second = rest.max(1)
    mixed = (second.values > 0).cpu().numpy()
    table["other"] = pd.Series(names[second.indices.cpu().numpy()], index=index, dtype=object).where(mixed, None)
    table["probability"] = policy.gather(1, likely[:, None])[:, 0].cpu().numpy()
    value = float(table["reward"].sum())
    rows = []
    for name, cost in zip(options.budgets, options.costs, strict=True):
        spent = float(expected(cost).sum())
        rows.append({"budget": options.budgets[name], "spent": spent, "multiplier": multipliers[name]})
    diagnostics = pd.DataFrame(rows, index=pd.Index(list(options.budgets), name="budget_name"))
    diagnostics["value"], diagnostics["dual"], diagnostics["gap"] = value, dual, dual - value
    diagnostics["randomised"] = int(mixed.sum())
    notes = (OPTIMISTIC, KNOWN if spread is None else DRAWN)
    if spread is not None:
        ends = ("value_low", "value_high", "spent_low", "spent_high", "p_overspent")
        diagnostics = diagnostics.assign(**{end: spread.settings[end] for end in ends if end in spread.settings})
    if bound is not None:
        diagnostics["spending_bound"] = bound
        notes += (
            f"spending stays within {bound:.6g} with a probability of at least {1 - settings['overspend']:g} if "
            "customers redeem independently, with the probabilities given; dual and gap are for the expected spending "
            "that this left.",
        )
    probabilities = pd.DataFrame(policy.cpu().numpy(), index=index, columns=options.names)
    draw = budget_curve if curve is not None else None
    return Allocation(table, diagnostics, settings, notes, draw, probabilities, multipliers, value, curve, spread)


def _certain(reward: Any, risk: str, level: float) -> tuple[Any, bool]:
    """Rewards that count, from draws or as they are; and whether there were draws."""
    one_of("risk", risk, RISKS)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if np.ndim(reward) != 3:
        if risk != "mean":
            raise ValueError(f"risk={risk!r} needs posterior draws [S, N, K]; reward has {np.ndim(reward)} dimensions")
        return reward, False
    draws = np.asarray(reward, dtype=np.float64)
    missing = np.argwhere(~np.isfinite(draws))
    if missing.size:
        draw, row, column = missing[0]
        raise ValueError(f"reward of option {column} for customer {row} is {draws[draw, row, column]} in draw {draw}")
    if risk == "mean":
        return draws.mean(0), True
    if risk == "quantile":
        return np.quantile(draws, level, axis=0), True
    worst = max(int(np.ceil(level * len(draws))), 1)
    return np.sort(draws, axis=0)[:worst].mean(0), True


def _guarded(overspend: float, chance: Any, integer: bool) -> None:
    """Whether a bound on the spending can be kept."""
    if not 0 < overspend < 1:
        raise ValueError(f"overspend must be between 0 and 1, not {overspend}")
    if chance is None:
        raise ValueError("overspend needs redeemed: costs that are certain are never overspent")
    if integer:
        raise ValueError("overspend is not for integer=True")
