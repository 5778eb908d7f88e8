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

from fieldguide.decisions.budgets.knapsack import respond

ROUNDS = 500
MIXED = 20_000
"""Customers between options up to which the linear program of them alone is solved."""


@dataclass
class ManySolution:
    """An optimal policy under several budgets.

    Attributes
    ----------
    policy : Tensor [N, K]
        Probabilities of the options.
    multipliers : array [J]
        What another unit of each budget would bring.
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
    ValueError
        If no policy keeps within all budgets.
    RuntimeError
        If the gap is not closed in 500 rounds.
    """
    budgets = np.asarray(budgets, dtype=np.float64)
    columns: list[Tensor] = [respond(reward, costs, np.zeros(len(budgets)))]
    unit = np.where(budgets > 0, budgets, 1.0)  # budgets in units of themselves: prices then compare

    def totals(choice: Tensor) -> tuple[float, np.ndarray]:
        spent = [float(cost.gather(1, choice[:, None]).sum()) for cost in costs]
        return float(reward.gather(1, choice[:, None]).sum()), np.array(spent)

    values, spends = (np.array([part]) for part in totals(columns[0]))
    flat = torch.zeros_like(reward)
    bound = np.inf
    for phase in ("feasible", "best"):
        for rounds in range(1, ROUNDS + 1):  # noqa: B007
            shares, prices, level, over = master(values, spends / unit, budgets / unit, phase)
            if phase == "feasible" and over <= 1e-12:
                break
            prices = prices / unit
            choice = respond(flat if phase == "feasible" else reward, costs, prices)
            value, spent = totals(choice)
            priced = (0.0 if phase == "feasible" else value) - prices @ spent
            if phase == "best":
                bound = min(bound, priced + prices @ budgets)
            current = level + prices @ budgets
            ended = bound - values @ shares <= gap * max(abs(bound), 1e-300) if phase == "best" else False
            if ended or priced - level <= 1e-13 * max(abs(level), abs(current), 1):
                break
            columns.append(choice)
            values, spends = np.append(values, value), np.vstack([spends, spent])
        else:
            raise RuntimeError(f"the budgets were not met to within {gap} in {ROUNDS} rounds")
        if phase == "feasible" and over > 1e-9:
            short = (shares @ spends - budgets) / unit
            worst = int(short.argmax())
            raise ValueError(f"infeasible: no policy keeps within all budgets; budget {worst} is missed most")
    policy = torch.zeros_like(reward)
    for share, choice in zip(shares, columns, strict=True):
        if share > 0:
            policy.scatter_add_(1, choice[:, None], torch.full_like(reward[:, :1], share))
    settle(policy, reward, costs, budgets)
    value, *spent = (float(torch.where(policy > 0, table * policy, 0).sum()) for table in (reward, *costs))
    return ManySolution(policy, prices, value, np.array(spent), float(bound), rounds)


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
    one = csr_matrix((np.ones(len(at)), (row.cpu().numpy(), np.arange(len(at)))))
    vertex = linprog(
        -gained,
        paid / unit[:, None],
        np.maximum(budgets - np.array(spent), 0) / unit,
        one,
        np.ones(len(mixed)),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    before = float((reward[at, option] * policy[at, option]).sum())
    if vertex.status != 0 or -vertex.fun < before - 1e-9 * max(abs(before), 1.0):
        return
    share = torch.as_tensor(np.where(vertex.x > 1e-9, vertex.x, 0), dtype=policy.dtype, device=policy.device)
    policy[at, option] = share
    policy[mixed] /= policy[mixed].sum(1, keepdim=True)


def master(values: np.ndarray, spends: np.ndarray, budgets: np.ndarray, phase: str):
    """Mix the policies seen so far: shares [T], prices [J], the value of the mixture's constraint, and the excess."""
    from scipy.optimize import linprog

    known, count = spends.shape
    feasible = phase == "feasible"
    # variables: shares of the policies, then (to become feasible) one excess for all budgets
    objective = np.append(np.zeros(known) if feasible else -values, [1.0] if feasible else [])
    rows = np.hstack([spends.T, -np.ones((count, 1))]) if feasible else spends.T
    equal = np.append(np.ones(known), [0.0] if feasible else [])[None]
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    size = 1.0 if feasible else max(np.abs(values).max(), 1e-300)
    mixture = linprog(objective / size, rows, budgets, equal, [1.0], method="highs", options=tight)
    if mixture.status != 0:
        raise RuntimeError(f"the linear program of the mixture failed: {mixture.message}")
    prices, level = np.maximum(-mixture.ineqlin.marginals, 0) * size, -float(mixture.eqlin.marginals[0]) * size
    return mixture.x[:known], prices, level, float(mixture.x[-1]) if feasible else 0.0
