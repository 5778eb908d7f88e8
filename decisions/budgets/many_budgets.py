"""Several budgets at once, solved exactly by column generation (pure tensors, any device).

With one price for each budget the customers part again: each takes the option of largest reward minus price. Such
responses are whole policies; the best mixture of those seen so far is a small linear program (one row a budget), whose
dual values are the next prices (Dantzig and Wolfe 1960). It ends when no response improves the mixture, with a bound
that says so. The policies that are mixed then differ in few customers, those close to a tie at the final prices; a
vertex of the linear program of these alone leaves no more customers between options than there are budgets.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fieldguide.decisions.budgets.knapsack import net, respond
from fieldguide.inference.checks.rounding import SLACK, exceeds

ROUNDS = 500
ROUNDING = 1e-14
"""By how much of its terms a sum may improve through rounding alone."""
MIXED = 20_000
"""Customers between options up to which the linear program of them alone is solved."""


class Infeasible(ValueError):
    """No policy keeps within all budgets; ``worst`` is the number of the one that is missed most."""

    def __init__(self, worst: int) -> None:
        super().__init__(f"infeasible: no policy keeps within all budgets; budget {worst} is missed most")
        self.worst = worst


@dataclass
class ManySolution:
    """An optimal policy under several budgets.

    Attributes
    ----------
    policy : Tensor [N, K]
        Probabilities of the options.
    multipliers : array [J]
        What another unit of each budget would bring: the prices that prove the bound.
    value : float
    spent : array [J]
    dual : float
        Smallest upper bound that was met on the value of any policy.
    rounds : int
    """

    policy: Tensor
    multipliers: np.ndarray
    value: float
    spent: np.ndarray
    dual: float
    rounds: int


def solve_many(reward: Tensor, costs: Tensor, budgets, gap: float = 1e-9) -> ManySolution:
    """Return the optimal policy under several budgets.

    Parameters
    ----------
    reward : Tensor [N, K]
        float64.
    costs : Tensor [J, N, K]
        At least 0; an option of infinite cost is not on offer.
    budgets : sequence of J floats
    gap : float
        Relative difference of bound and value at which to stop.

    Raises
    ------
    Infeasible
        If no policy keeps within all budgets.
    RuntimeError
        If the gap is not closed in 500 rounds.
    """
    budgets = np.asarray(budgets, dtype=np.float64)
    if not (budgets > 0).all():
        return _without_money(reward, costs, budgets, gap)
    offered = ~torch.isinf(costs).any(0)
    top = reward.masked_fill(~offered, -torch.inf).max(1, keepdim=True).values
    spread = float((top - reward.masked_fill(~offered, torch.inf).min(1, keepdim=True).values).sum())
    shift, reward = float(top.sum()), reward - top  # what all options of a customer share decides nothing
    columns: list[Tensor] = [respond(reward, costs, np.zeros(len(budgets)))]

    def totals(choice: Tensor) -> tuple[float, np.ndarray]:
        spent = [float(cost.gather(1, choice[:, None]).sum()) for cost in costs]
        return float(reward.gather(1, choice[:, None]).sum()), np.array(spent)

    values, spends = (np.array([part]) for part in totals(columns[0]))
    flat = torch.zeros_like(reward)
    bound, proving = np.inf, np.zeros(len(budgets))
    for phase in ("feasible", "best"):
        for rounds in range(1, ROUNDS + 1):  # noqa: B007
            shares, prices, level, over = master(values, spends / budgets, phase)
            if phase == "feasible" and over <= 1e-12:
                break
            prices = prices / budgets
            choice = respond(flat if phase == "feasible" else reward, costs, prices)
            value, spent = totals(choice)
            priced = (0.0 if phase == "feasible" else value) - prices @ spent
            size = max(abs(level), abs(priced), prices @ budgets)
            if phase == "feasible" and exceeds(-priced, prices @ budgets):  # at these prices no policy is cheap enough
                break
            if phase == "best":
                if priced + prices @ budgets < bound:
                    bound, proving = priced + prices @ budgets, prices
                target = gap * min(abs(bound + shift), bound + spread)
                if bound - values @ shares <= target:
                    break
            if priced - level <= ROUNDING * size:
                break
            columns.append(choice)
            values, spends = np.append(values, value), np.vstack([spends, spent])
        else:
            raise RuntimeError(f"the budgets were not met to within {gap} in {ROUNDS} rounds")
        if phase == "feasible" and over > SLACK:
            short = (shares @ spends - budgets) / budgets
            raise Infeasible(int(short.argmax()))
    policy = torch.zeros_like(reward)
    for share, choice in zip(shares, columns, strict=True):
        if share > 0:
            policy.scatter_add_(1, choice[:, None], torch.full_like(reward[:, :1], share))
    settle(policy, reward, costs, budgets)
    value, *spent = (float(torch.where(policy > 0, table * policy, 0).sum()) for table in (reward, *costs))
    return ManySolution(policy, proving, value + shift, np.array(spent), float(bound) + shift, rounds)


def _without_money(reward: Tensor, costs: Tensor, budgets: np.ndarray, gap: float) -> ManySolution:
    """Where a budget is nothing, what costs any of it is not on offer, at a price that says so."""
    empty = np.flatnonzero(budgets <= 0)
    open_ = costs.clone()
    open_[:, (costs[empty] > 0).any(0)] = torch.inf
    closed = torch.isinf(open_[0]).all(1)
    if bool(closed.any()):
        row = int(closed.nonzero()[0, 0])
        raise Infeasible(int(empty[int(costs[empty, row].min(1).values.argmax())]))
    rest = np.flatnonzero(budgets > 0)
    if len(rest):
        solved = solve_many(reward, open_[rest], budgets[rest], gap)
    else:
        choice = respond(reward, open_[:1], [0.0])
        policy = torch.nn.functional.one_hot(choice, reward.shape[1]).double()
        value = float(reward.gather(1, choice[:, None]).sum())
        solved = ManySolution(policy, np.zeros(0), value, np.zeros(0), value, 0)
    prices, spent = np.zeros(len(budgets)), np.zeros(len(budgets))
    prices[rest], spent[rest] = solved.multipliers, solved.spent
    best = net(reward, open_, prices).max(1, keepdim=True).values
    for j in empty:  # what another unit would bring: the largest gain for its cost
        gain = net(reward, costs, prices) - best
        taken = (gain > 0) & (costs[j] > 0)
        prices[j] = float((gain[taken] / costs[j][taken]).max()) if bool(taken.any()) else 0.0
    return ManySolution(solved.policy, prices, solved.value, spent, solved.dual, solved.rounds)


def settle(policy: Tensor, reward: Tensor, costs: Tensor, budgets: np.ndarray) -> None:
    """Give the customers who are between options the best of them within what the others leave, in place.

    The linear program of these customers is solved at a vertex: at most one of them for each budget stays between
    options, and the value does not fall.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    mixed = ((policy > 0).sum(1) > 1).nonzero()[:, 0]
    if not 0 < len(mixed) <= MIXED:
        return
    row, option = (policy[mixed] > 0).nonzero(as_tuple=True)
    at = mixed[row]
    sure = torch.ones(len(policy), dtype=torch.bool, device=policy.device)
    sure[mixed] = False
    spent = [float(torch.where(policy[sure] > 0, c[sure] * policy[sure], 0).sum()) for c in costs]
    gained, paid = reward[at, option].cpu().numpy(), costs[:, at, option].cpu().numpy()
    unit = np.maximum(paid.max(1, initial=0), 1e-300)  # each budget in units of its largest cost here
    size = max(float(np.abs(gained).max()), 1e-300)
    one = csr_matrix((np.ones(len(at)), (row.cpu().numpy(), np.arange(len(at)))))
    room = np.maximum(budgets - np.array(spent), 0)
    vertex = linprog(-gained / size, paid / unit[:, None], room / unit, one, np.ones(len(mixed)), **SIMPLEX)
    if vertex.status != 0:
        return
    share = torch.as_tensor(np.where(vertex.x > 1e-9, vertex.x, 0), dtype=policy.dtype, device=policy.device)
    settled = torch.zeros_like(policy[mixed])
    settled[row, option] = share
    settled /= settled.sum(1, keepdim=True)
    share = settled[row, option].cpu().numpy()
    before = policy[at, option].cpu().numpy()
    if exceeds(gained @ before, gained @ share) or exceeds(paid @ share, np.maximum(room, paid @ before)).any():
        return
    policy[mixed] = settled


SIMPLEX: dict = {
    "method": "highs-ds",
    "options": {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
}


def master(values: np.ndarray, spends: np.ndarray, phase: str):
    """Mix the policies seen so far: shares [T], prices [J], the value of the mixture's constraint, and the excess.

    Spending [T, J] is in units of the budgets.
    """
    from scipy.optimize import linprog

    known, count = spends.shape
    feasible = phase == "feasible"
    # variables: shares of the policies, then (to become feasible) one excess for all budgets
    size = 1.0 if feasible else max(np.ptp(values), 1e-300)
    objective = np.zeros(known) if feasible else (values.max() - values) / size
    objective = np.append(objective, [1.0] if feasible else [])
    rows = np.hstack([spends.T, -np.ones((count, 1))]) if feasible else spends.T
    equal = np.append(np.ones(known), [0.0] if feasible else [])[None]
    mixture = linprog(objective, rows, np.ones(count), equal, [1.0], **SIMPLEX)
    if mixture.status != 0:
        raise RuntimeError(f"the linear program of the mixture failed: {mixture.message}")
    prices, level = np.maximum(-mixture.ineqlin.marginals, 0) * size, -float(mixture.eqlin.marginals[0]) * size
    level += 0.0 if feasible else values.max()
    return mixture.x[:known], prices, level, float(mixture.x[-1]) if feasible else 0.0
