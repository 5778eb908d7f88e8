"""Slates of several actions: what each logged item counts for, under the way the slate was drawn (pure tensors).

A slate is l actions with a reward each, and the target is the sum over actions of policy times reward. Every unbiased
estimator here is linear in the items, ``sum_j c_j pi(a_j) r_j``, so a design is the coefficients c alone: ``1 / (l
rho)`` where draws are independent. Without replacement (Plackett-Luce: one after the other, each in proportion to
what is left) that is wrong, and by much; Des Raj (1956) and Murthy (1957) have the right ones.
"""

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import one_of

DESIGNS = ("iid", "plackett_luce")
SLATES = ("murthy", "des_raj")
LONGEST = 8
"""Items of a slate up to which Murthy's coefficients are computed: they cost l 2^l."""


def murthy(log_propensity: Tensor) -> Tensor:
    """Return ``P(S | first = a_j) / P(S)`` of each item, [n, l]: Des Raj's estimator averaged over all orders.

    Never more variable than Des Raj's, and free of the order (Murthy 1957).

    Parameters
    ----------
    log_propensity : Tensor [n, l]
        Log probability of each item in a single draw.

    Examples
    --------
    >>> y = torch.tensor([0.1, 0.2])  # policy times reward
    >>> round(float((murthy(torch.tensor([[0.5, 0.3]]).double().log()) * y).sum()), 7)
    0.3944444
    """
    rho = log_propensity.double().exp()
    n, length = rho.shape
    if length > LONGEST:
        raise ValueError(
            f"slates of {length} items are too long for Murthy's estimator (at most {LONGEST}): use 'des_raj'"
        )
    full = (1 << length) - 1
    left = {0: torch.ones_like(rho[:, 0])}  # what a set leaves to be drawn from
    for chosen in range(1, full + 1):
        low = (chosen & -chosen).bit_length() - 1
        left[chosen] = left[chosen & (chosen - 1)] - rho[:, low]
    given = []
    for first in range(length):  # probability of drawing the rest after this one, over all orders
        start = 1 << first
        reach = {start: torch.ones_like(rho[:, 0])}
        for chosen in range(1, full + 1):
            if not chosen & start or chosen == start:
                continue
            parts = []
            for last in range(length):
                if chosen >> last & 1 and last != first:
                    before = chosen & ~(1 << last)
                    parts.append(reach[before] * rho[:, last] / left[before].clamp(min=1e-300))
            reach[chosen] = torch.stack(parts).sum(0)
        given.append(reach[full])
    rest = torch.stack(given, 1)
    return rest / (rho * rest).sum(1, keepdim=True)


def des_raj(log_propensity: Tensor) -> Tensor:
    """Return the coefficients of the mean of Des Raj's terms, [n, l]; they depend on the order (Des Raj 1956).

    Examples
    --------
    >>> des_raj(torch.tensor([[0.5, 0.3]]).double().log())
    tensor([[1.5000, 0.8333]], dtype=torch.float64)
    """
    rho = log_propensity.double().exp()
    length = rho.shape[1]
    left = 1 - (rho.cumsum(1) - rho)
    after = torch.arange(length - 1, -1, -1, dtype=rho.dtype, device=rho.device)
    return (after + left / rho) / length


def independent(log_propensity: Tensor) -> Tensor:
    """Return ``1 / (l rho)`` of each item, [n, l]: draws with replacement."""
    return (-log_propensity.double()).exp() / log_propensity.shape[1]


def coefficients(log_propensity: Tensor, design: str, slates: str = "murthy") -> Tensor:
    """Return the coefficient of each logged item under a design, [n, l].

    Parameters
    ----------
    log_propensity : Tensor [n, l]
    design : {"iid", "plackett_luce"}
    slates : {"murthy", "des_raj"}
        For slates without replacement; Des Raj takes over for more than 8 items.
    """
    one_of("design", design, DESIGNS)
    one_of("slates", slates, SLATES)
    if design == "iid" or log_propensity.shape[1] == 1:
        return independent(log_propensity)
    short = log_propensity.shape[1] <= LONGEST
    return murthy(log_propensity) if slates == "murthy" and short else des_raj(log_propensity)
