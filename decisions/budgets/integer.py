"""One option outright for every customer: the multiple-choice knapsack as a mixed-integer program, by HiGHS."""

import numpy as np
import torch
from torch import Tensor

from fieldguide.decisions.budgets.options import Options


def solve_whole(options: Options, seconds: float = 60.0) -> tuple[Tensor, float, str]:
    """Return each customer's option int64 [N], an upper bound on the value, and how the search ended.

    Raises
    ------
    ValueError
        If no choice keeps within the budgets.
    TimeoutError
        If none was found in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, vstack

    reward, costs = options.reward.cpu().numpy(), options.costs.cpu().numpy()
    count, width = reward.shape
    offered = np.isfinite(costs).all(0).ravel()
    customer = np.repeat(np.arange(count), width)
    one = csr_matrix((np.ones(count * width), (customer, np.arange(count * width))))
    spending = csr_matrix(np.where(offered, costs.reshape(len(costs), -1), 0))
    budgets = np.array(list(options.budgets.values()))
    search = milp(
        -reward.ravel(),
        constraints=LinearConstraint(
            vstack([one, spending]),
            np.append(np.ones(count), np.full(len(costs), -np.inf)),
            np.append(np.ones(count), budgets),
        ),
        integrality=np.ones(count * width),
        bounds=Bounds(0, offered.astype(float)),
        options={"time_limit": seconds, "mip_rel_gap": 1e-9},
    )
    if search.status == 2:
        raise ValueError("infeasible: no choice of options keeps within the budget")
    if search.x is None:
        raise TimeoutError(f"no allocation was found in {seconds:g} s: {search.message}")
    choice = torch.as_tensor(search.x.reshape(count, width).argmax(1), device=options.reward.device)
    return choice, -float(search.mip_dual_bound), "optimal" if search.status == 0 else "time limit"
