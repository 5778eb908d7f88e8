"""One option outright for every customer: the multiple-choice knapsack, exactly, by what each option loses.

At the prices of the linear relaxation every option of a customer loses something against the best one, and a choice is
worth the bound, less its losses, less the price of the money it leaves. So a choice within some shortfall of the bound
holds no option that loses more, and few customers have two such options. All choices of these are gone through, partial
ones being dropped when they cost too much, or must fall shorter (with one budget also when another costs less and
brings more). The shortfall doubles until a choice is found: that is the best (Pisinger 1995 calls these customers the
core). Where they are too many, HiGHS goes on with them, and the bound allows for its tolerances.
"""

from dataclasses import dataclass
from functools import cached_property
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from fieldguide.decisions.budgets.knapsack import net, solve
from fieldguide.decisions.budgets.many_budgets import solve_many
from fieldguide.decisions.budgets.options import Options
from fieldguide.inference.checks.rounding import SLACK, exceeds

STATES = 100_000
"""Partial choices that are held at once."""
STEPS = 20_000_000
"""Partial choices of all customers together, each of which can be followed back."""
TOLERANCE = 1e-6
"""Of HiGHS: by how much of a budget, or of the largest reward, its answers may be off."""
START = 2.0**-20
"""Share of what a choice can fall short by with which the search starts."""
EQUAL = 1e-14
"""Partial choices whose costs differ by less of the budget cost the same."""


def solve_whole(options: Options, seconds: float = 60.0) -> tuple[Tensor, float, str]:
    """Return each customer's option int64 [N], an upper bound on the value, and how the search ended.

    Parameters
    ----------
    options : Options
        Scaled (`Options.scaled`).
    seconds : float
        For the search.

    Returns
    -------
    Tensor, float
    str
        "optimal": no choice is worth more; "tolerance": none by more than the tolerances of HiGHS; "time limit".

    Raises
    ------
    ValueError
        If no choice keeps within the budgets.
    TimeoutError
        If none was found in time.
    """
    until = monotonic() + seconds
    core = _core(options)
    shortfall, choice, proven, complete = core.search(monotonic() + seconds / 4)
    if not complete:
        answer, bound, ended = core.highs(until, shortfall)
        proven = max(proven, bound)
        if answer is not None:
            fallen = core.shortfall(answer)
            choice, shortfall = (answer, fallen) if fallen < shortfall else (choice, shortfall)
        status = "tolerance" if ended else "time limit"
    else:
        proven, status = shortfall, "optimal"
    if choice is None:
        if complete or status == "tolerance":
            raise ValueError("infeasible: no choice of options keeps within the budget")
        raise TimeoutError(f"no allocation was found within seconds={seconds:g}; give the search more")
    return torch.as_tensor(choice, device=options.reward.device), core.bound - min(proven, shortfall), status


@dataclass
class Core:
    """What each option loses at the prices of the relaxation, and what is left of it in a search."""

    loss: np.ndarray
    """[N, K], at least 0; infinite where an option cannot be taken."""
    costs: np.ndarray
    limits: np.ndarray
    """[J], the budgets with the slack of rounding."""
    prices: np.ndarray
    bound: float
    first: np.ndarray | None
    """A choice that keeps within the budgets, where one is at hand."""

    @cached_property
    def best(self) -> np.ndarray:
        """The option of each customer that loses nothing, [N]."""
        return self.loss.argmin(1)

    def spent(self, choice: np.ndarray) -> np.ndarray:
        """Return what a choice costs, [J]."""
        return self.costs[:, np.arange(len(choice)), choice].sum(1)

    def shortfall(self, choice: np.ndarray) -> float:
        """Return by how much a choice is worth less than the bound; infinite where it breaks a budget."""
        spent = self.spent(choice)
        if (spent > self.limits).any():
            return np.inf
        return float(self.loss[np.arange(len(choice)), choice].sum() + self.prices @ (self.limits - spent))

    def search(self, until: float) -> tuple[float, np.ndarray | None, float, bool]:
        """Return the smallest shortfall, its choice, one below which there is none, and if all is proven."""
        best, choice = (np.inf, None) if self.first is None else (self.shortfall(self.first), self.first)
        finite = np.where(np.isfinite(self.loss), self.loss, 0)
        most = min(float(finite.max(1).sum() + self.prices @ self.limits) * (1 + SLACK), best)
        within, proven = most * START, 0.0
        while True:
            within = min(within, most)
            nearest, whole = self.within(within, until)
            if nearest is not None and (fallen := self.shortfall(nearest)) < best:
                best, choice = fallen, nearest
                most = min(most, best)
            if not whole:
                return best, choice, proven, False
            if best <= within or within >= most:
                return best, choice, min(best, within), True
            within, proven = within * 2, within

    def within(self, shortfall: float, until: float) -> tuple[np.ndarray | None, bool]:
        """Return the best of the choices that fall short by so much at most, and whether all of them were seen."""
        open_, best = self.loss <= shortfall, self.best
        free = np.flatnonzero(open_.sum(1) > 1)
        second = np.partition(self.loss[free], 1, axis=1)[:, 1] if len(free) else np.zeros(0)
        free = free[np.argsort(-second, kind="stable")]
        fixed = np.ones(len(best), dtype=bool)
        fixed[free] = False
        spent = self.costs[:, fixed, best[fixed]].sum(1)[None]  # [S, J]
        lost = np.full(1, self.loss[fixed, best[fixed]].sum())
        least, largest = (self._rest(free, open_, fill) for fill in (np.inf, -np.inf))
        parents: list[tuple[np.ndarray, np.ndarray]] = []
        whole, held = True, 0
        for place, row in enumerate(free):
            at = np.flatnonzero(open_[row])
            paid = (spent[:, None] + self.costs[:, row, at].T[None]).reshape(-1, len(self.limits))
            fell = (lost[:, None] + self.loss[row, at]).ravel()
            left = np.maximum(self.limits - paid - largest[place + 1], 0) @ self.prices
            keep = np.flatnonzero(
                (fell + left <= shortfall * (1 + SLACK)) & (paid + least[place + 1] <= self.limits).all(1)
            )
            keep = keep[self._undominated(paid[keep], fell[keep])]
            if len(keep) > STATES:
                order = np.argpartition(fell[keep] + left[keep], STATES)
                keep, whole = keep[order[:STATES]], False
            spent, lost = paid[keep], fell[keep]
            parents.append(((keep // len(at)).astype(np.int32), at[keep % len(at)].astype(np.int32)))
            held += len(keep)
            if not len(keep):
                return None, whole
            if held > STEPS or monotonic() > until:
                return None, False
        falls = lost + (self.limits - spent) @ self.prices
        falls[(spent > self.limits).any(1)] = np.inf
        state = int(falls.argmin())
        if not np.isfinite(falls[state]):
            return None, whole
        choice = best.copy()
        for row, (before, option) in zip(free[::-1], parents[::-1], strict=True):
            choice[row], state = option[state], before[state]
        return choice, whole

    def _rest(self, free: np.ndarray, open_: np.ndarray, fill: float) -> np.ndarray:
        """Least (or largest) that the customers from each place on can cost, [n + 1, J]."""
        paid = np.where(open_[free], self.costs[:, free], fill)
        ends = paid.min(2) if fill > 0 else paid.max(2)  # [J, n]
        rest = np.zeros((len(free) + 1, len(self.limits)))
        rest[:-1] = ends[:, ::-1].cumsum(1)[:, ::-1].T
        return rest

    def _undominated(self, paid: np.ndarray, fell: np.ndarray) -> np.ndarray:
        """Places of the partial choices that no other one beats: of those that cost the same, the best."""
        if len(fell) < 2:
            return np.arange(len(fell))
        worth = paid @ self.prices - fell
        order = np.lexsort((-worth, *paid.T[::-1]))
        if paid.shape[1] == 1:
            ahead = np.maximum.accumulate(worth[order])
            return order[np.append(True, worth[order][1:] > ahead[:-1] + EQUAL * max(abs(self.bound), 1))]
        same = (np.abs(np.diff(paid[order], axis=0)) <= EQUAL * self.limits).all(1)
        return order[np.append(True, ~(same & (worth[order][1:] <= worth[order][:-1])))]

    def highs(self, until: float, shortfall: float) -> tuple[np.ndarray | None, float, bool]:
        """Return HiGHS's choice, a shortfall below which there is none, and whether the search ended.

        A choice that breaks a budget within the tolerance of HiGHS is replaced by that of smaller budgets.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix, vstack

        row, option = np.nonzero(self.loss <= shortfall)
        lost, paid = self.loss[row, option], self.costs[:, row, option]
        fallen = lost - self.prices @ paid  # minimised: what a choice falls short by, less the price of the budgets
        unit = max(float(np.abs(fallen).max()), 1e-300)
        one = csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(len(self.loss), len(row)))
        sizes = np.where(self.limits > 0, self.limits, 1.0)
        bound, ended, choice = 0.0, False, None
        for margin in (0.0, 4 * TOLERANCE, 64 * TOLERANCE):
            search = milp(
                fallen / unit,
                constraints=LinearConstraint(
                    vstack([one, csr_matrix(paid / sizes[:, None])]),
                    np.append(np.ones(len(self.loss)), np.full(len(sizes), -np.inf)),
                    np.append(np.ones(len(self.loss)), self.limits / sizes * (1 - margin)),
                ),
                integrality=np.ones(len(row)),
                bounds=Bounds(0, 1),
                options={"time_limit": max(until - monotonic(), 0.1), "mip_rel_gap": 1e-9},
            )
            if margin == 0:
                ended = search.status in (0, 2)
                if search.mip_dual_bound is not None and np.isfinite(search.mip_dual_bound):
                    off = TOLERANCE * (1 + 0.1 * len(np.unique(row)))
                    bound = max((search.mip_dual_bound - off) * unit + float(self.prices @ self.limits), 0.0)
            if search.x is None:
                break
            choice = self.best.copy()
            taken = search.x > 0.5
            choice[row[taken]] = option[taken]
            if np.isfinite(self.shortfall(choice)):
                return choice, bound, ended
        return None, bound, ended and choice is None


def _core(options: Options) -> Core:
    """Prices of the relaxation, and what each option loses at them."""
    budgets = np.array(list(options.budgets.values()))
    costs = options.costs.clone()
    dear = torch.as_tensor(exceeds(costs.cpu().numpy(), budgets[:, None, None]), device=costs.device)
    costs[:, dear.any(0)] = torch.inf  # alone it costs more than there is
    if bool(torch.isinf(costs[0]).all(1).any()):
        raise ValueError("infeasible: no choice of options keeps within the budget")
    top = options.reward.masked_fill(torch.isinf(costs).any(0), -torch.inf).max(1, keepdim=True).values
    reward = options.reward - top
    try:
        if len(budgets) == 1:
            relaxed = solve(reward, costs[0], budgets[0])
            prices, first = [relaxed.multiplier], relaxed.choice
        else:
            many = solve_many(reward, costs, budgets)
            prices, first = many.multipliers, many.policy.max(1).indices
    except ValueError as error:
        raise ValueError("infeasible: no choice of options keeps within the budget") from error
    worth = net(reward, costs, prices)
    best = worth.max(1, keepdim=True).values
    limits = budgets / (1 - SLACK)
    bound = float(top.sum() + best.sum()) + float(np.asarray(prices) @ limits)
    finite = torch.where(torch.isinf(costs), 0.0, costs).cpu().numpy()
    loss = torch.where(torch.isinf(costs).any(0), torch.inf, best - worth).cpu().numpy()
    core = Core(loss, finite, limits, np.asarray(prices, dtype=np.float64), bound, None)
    if np.isfinite(core.shortfall(choice := first.cpu().numpy())):
        core.first = choice
    return core
