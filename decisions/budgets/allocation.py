"""Spend a budget where it brings most: one option (incentive, dose) for each customer, with a certificate."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.decisions.budgets.figures import budget_curve
from fieldguide.decisions.budgets.integer import solve_whole
from fieldguide.decisions.budgets.knapsack import respond, solve
from fieldguide.decisions.budgets.many_budgets import Infeasible, solve_many
from fieldguide.decisions.budgets.options import Options, Units, read_options, read_redeemed
from fieldguide.decisions.budgets.outcomes import outcomes
from fieldguide.decisions.budgets.spending import expected_cost, solve_within
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.aligning import missing, order_of, unnamed
from fieldguide.inference.checks.arguments import checked_flag, checked_real, one_of
from fieldguide.inference.checks.rounding import SLACK, exceeds

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
        if not np.isfinite(list(self.multipliers.values())).all():
            raise ValueError(
                "this allocation is of whole options (integer=True) and has no price to decide by: predict needs one "
                "that was made with integer=False"
            )
        options = read_options(self._as_before(reward), cost, dict.fromkeys(self.multipliers, 0.0))
        if redeemed is not None:
            options = replace(options, costs=expected_cost(options.costs, read_redeemed(redeemed, options)))
        chosen = respond(options.reward, options.costs, list(self.multipliers.values()))
        return pd.Series(np.asarray(options.names)[chosen.cpu().numpy()], index=options.customers, name="option")

    def _as_before(self, reward: Any) -> pd.DataFrame:
        """Rewards with the options of this allocation, in their order."""
        table, names = real_array("reward", reward), self.policy.columns
        if table.ndim != 2:
            raise ValueError(f"reward must be customers x options, not of shape {table.shape}")
        frame = isinstance(reward, pd.DataFrame)
        given, index = (reward.columns, reward.index) if frame else (pd.RangeIndex(table.shape[1]), None)
        if len(given) != len(names) or not (unnamed(given) or missing(names, given).empty):
            raise ValueError(f"options are {list(given)}, and were {list(names)}")
        return pd.DataFrame(table[:, order_of("reward", given, names, "options")], index=index, columns=names)

    def outcomes(self, reward: Any, cost: Any = None, redeemed: Any = None, seed: Any = 0) -> Decision:
        """Return the distribution of value and spending under this policy over posterior draws.

        Parameters
        ----------
        reward : array [S, N, K]
            Draws of the expected reward of each option.
        cost : array [K], [N, K] or [S, N, K], Series or DataFrame, optional
            Expected cost, in draws where that is uncertain too; tables are found by their names.
        redeemed : array [N, K] or [S, N, K], DataFrame, optional
            Probability that the option is redeemed, where only then it costs. Spending is then what is really spent:
            in each draw every customer is given an option, and redeems it or not.
        seed : int
            Of what customers do.

        Returns
        -------
        Decision
            ``table``, one row a draw: ``value``, and ``spent`` with ``cost``. ``settings``: means, standard
            deviations, the ends of 90 % intervals, and ``p_overspent``, the probability that spending is above the
            budget by more than rounding.
        """
        return outcomes(self.policy, self.settings["budget"], reward, cost, redeemed, seed)


def allocate(
    reward: Any,
    cost: Any,
    budget: Any,
    *,
    risk: Any = "mean",
    level: Any = 0.1,
    redeemed: Any = None,
    overspend: Any = None,
    integer: Any = False,
    increasing: Any = False,
    seconds: Any = 60.0,
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
        For all customers together, by the names of the costs if there are several; finite. It is kept to within
        rounding, 1e-9 of it, in every unit of money.
    risk : {"mean", "quantile", "cvar"}
        What counts of the draws: their mean, their lower quantile at `level`, or the mean of the share `level` of the
        smallest (conditional value at risk; the last of them counts in part), for each customer and option.
    level : float
    redeemed : array or DataFrame [N, K], or array [S, N, K], optional
        Probability that the option is redeemed, where it costs only then (a coupon): ``cost`` is what is paid in that
        case, and the expected cost is their product. Posterior draws are averaged.
    overspend : float, optional
        Largest probability with which what is really spent may exceed the budget, customers redeeming independently
        with the probabilities ``redeemed`` (with draws: given one of the draws). The expected spending is lowered until
        `fieldguide.decisions.budgets.spending.spending_bound` is within the budget.
    integer : bool
        Give every customer one option outright. The bound and the gap are reported; ``settings["status"]`` is
        "optimal" where no choice is worth more (the usual case), "tolerance" where that is known to within the
        tolerance of HiGHS (mixed-integer, 1e-6), and "time limit" else.
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
    Several: by column generation (Dantzig and Wolfe 1960), to a relative gap of 1e-9. One option outright: by dynamic
    programming over the customers whose options lose little at the prices of these (Pisinger 1995). All is reckoned in
    units of the largest reward and cost, so that neither those of money nor of reward matter.

    Examples
    --------
    >>> best = allocate([[0.1, 0.3, 0.35], [0.2, 0.25, 0.6], [0.0, 0.4, 0.5]], cost=[0, 1, 2], budget=3.5)
    >>> round(best.value, 10), {name: round(price, 10) for name, price in best.multipliers.items()}
    (1.2, {'budget': 0.2})
    """
    integer, increasing = checked_flag("integer", integer), checked_flag("increasing", increasing)
    seconds = checked_real("seconds", seconds, above=0, infinite=True)
    overspend = None if overspend is None else checked_real("overspend", overspend, above=0, below=1)
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
        _guarded(chance, integer)
        settings["overspend"] = overspend
    _affordable(options)
    scaled, unit = options.scaled()
    curve, totals = None, list(scaled.budgets.values())
    if integer:
        choice, dual, settings["status"] = solve_whole(scaled, seconds)
        policy = torch.nn.functional.one_hot(choice, len(options.names)).double()
        prices = [np.nan] * len(totals)
    elif len(totals) == 1:
        if overspend is None:
            best = solve(scaled.reward, scaled.costs[0], totals[0])
        else:
            paid = price[0] / unit.costs[0]
            best, bound = solve_within(scaled.reward, paid, chance, totals[0], overspend, unit.costs[0])
        policy, dual, prices = best.policy(len(options.names)), best.dual, unit.prices([best.multiplier])
        curve = _curve(best.path, unit)
    else:
        try:
            many = solve_many(scaled.reward, scaled.costs, totals)
        except Infeasible as error:
            worst = list(options.budgets)[error.worst]
            raise ValueError(
                f"infeasible: no policy keeps within all budgets; budget {worst!r} is missed most"
            ) from error
        policy, dual, prices = many.policy, many.dual, unit.prices(many.multipliers)
    multipliers = dict(zip(options.budgets, map(float, prices), strict=True))
    dual *= unit.reward
    many_rewards = reward if draws else options.reward[None].cpu().numpy()
    spread = None
    if draws or (chance is not None and chance.ndim == 3):
        paid = () if chance is None else (price[0].cpu().numpy(), chance.cpu().numpy())
        shares = pd.DataFrame(policy.cpu().numpy(), index=options.customers, columns=options.names)
        spread = outcomes(shares, options.budgets, many_rewards, *paid)
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
    for name, column in zip(options.budgets, table.columns[1:], strict=False):
        spent = float(table[column].sum())
        rows.append({"budget": options.budgets[name], "spent": spent, "multiplier": multipliers[name]})
    diagnostics = pd.DataFrame(rows, index=pd.Index(list(options.budgets), name="budget_name"))
    dual = max(dual, value)  # a value that is reached is above its bound by rounding alone
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


def _certain(reward: Any, risk: Any, level: Any) -> tuple[Any, bool]:
    """Rewards that count, from draws or as they are; and whether there were draws."""
    one_of("risk", risk, RISKS)
    checked_real("level", level, above=0, below=1)
    ndim = reward.ndim if hasattr(reward, "ndim") else real_array("reward", reward).ndim
    if ndim != 3:
        if risk != "mean":
            raise ValueError(f"risk={risk!r} needs posterior draws [S, N, K]; reward has {ndim} dimensions")
        return reward, False
    draws = real_array("reward", reward)
    if not draws.size:
        raise ValueError(f"reward is empty: it is of shape {draws.shape}, draws x customers x options")
    missing = np.argwhere(~np.isfinite(draws))
    if missing.size:
        draw, row, column = missing[0]
        raise ValueError(f"reward of option {column} for customer {row} is {draws[draw, row, column]} in draw {draw}")
    if risk == "mean":
        return draws.mean(0), True
    if risk == "quantile":
        return np.quantile(draws, level, axis=0), True
    return smallest_mean(draws, level), True


def smallest_mean(draws: np.ndarray, level: float) -> np.ndarray:
    """Return the mean of a share of the smallest draws [S, ...] (conditional value at risk); one may count in part."""
    share = level * len(draws)
    whole = int(np.floor(share * (1 + SLACK)))
    ordered = np.sort(draws, axis=0)
    part = ordered[min(whole, len(draws) - 1)] * max(share - whole, 0.0)
    return (ordered[:whole].sum(0) + part) / share


def _guarded(chance: Any, integer: bool) -> None:
    """Whether a bound on the spending can be kept."""
    if chance is None:
        raise ValueError("overspend needs redeemed: costs that are certain are never overspent")
    if integer:
        raise ValueError("overspend is not for integer=True")


def _affordable(options: Options) -> None:
    """Refuse a budget that even the cheapest option of every customer breaks."""
    for (name, budget), cost in zip(options.budgets.items(), options.costs, strict=True):
        least = float(cost.min(1).values.sum())
        if exceeds(least, budget):
            which = "the budget" if len(options.budgets) == 1 else f"budget {name!r}"
            raise ValueError(
                f"infeasible: the cheapest options cost {least:.6g} in all, more than {which} of {budget:.6g}"
            )


def _curve(path: tuple[Tensor, Tensor, Tensor], unit: Units) -> pd.DataFrame:
    """Budget, value and multiplier at the vertices."""
    budget, value, multiplier = (part.cpu().numpy() for part in path)
    money, reward = unit.costs[0], unit.reward
    return pd.DataFrame({"budget": budget * money, "value": value * reward, "multiplier": multiplier * reward / money})
