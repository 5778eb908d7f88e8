"""Counts whose likelihood differs between groups of cells: one distribution, of which each is a limit."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fieldguide.catalog.parts.count_math import LIMIT
from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
from fieldguide.inference.checks.arguments import one_of


def one_each(name: str, value: Any, n: int, allowed: Iterable[str], what: str) -> tuple[str, ...]:
    """Return a name for each of n groups, from one for all or a list; the last is repeated.

    Raises
    ------
    ValueError
        For a name that is not allowed, none, or more than there are groups.
    """
    given = list(value) if isinstance(value, list | tuple) else [value]
    for one in given:
        one_of(name, one, allowed)
    if not given:
        raise ValueError(f"{name} names nothing; it takes {', '.join(allowed)}")
    if len(given) > n:
        raise ValueError(f"{name} names {len(given)} for {n} {what}: one each, or one for all")
    return tuple((given + given[-1:] * n)[:n])


def is_kind(kind: str, kinds: Sequence[str], group: Tensor) -> Tensor:
    """Return whether the group of each cell [B] has this likelihood, bool [B, 1]."""
    return torch.tensor([k == kind for k in kinds], device=group.device)[group, None]


def mixed_counts(
    kinds: Sequence[str], group: Tensor, logits: Tensor, log_library: Tensor, log_dispersion: Any, gate: Any
) -> Distribution:
    """Return the distribution of counts of mean exp(log_library) * softmax(logits).

    Parameters
    ----------
    kinds : sequence of str
        The likelihood of each group, of `LIKELIHOODS`.
    group : int64 [B]
    logits : Tensor [..., B, G]
    log_library : Tensor [..., B, 1]
    log_dispersion : Tensor [B, G] or [G], or None
        Of the inverse dispersion; None if all are Poisson. A Poisson group has the limit of no overdispersion, 1e25.
    gate : Tensor [..., B, G], or None
        Logits of structural zeros; None if no group is zero-inflated. Elsewhere their probability is 1e-25.
    """
    parameters = [logits, log_library]
    if set(kinds) == {"poisson"}:
        return LIKELIHOODS["poisson"].from_logits(*parameters)
    if "poisson" in kinds:
        log_dispersion = torch.where(is_kind("poisson", kinds, group), LIMIT, log_dispersion)
    if "zinb" not in kinds:
        return LIKELIHOODS["nb"].from_logits(*parameters, log_dispersion)
    if set(kinds) != {"zinb"}:
        gate = torch.where(is_kind("zinb", kinds, group), gate, -LIMIT)
    return LIKELIHOODS["zinb"].from_logits(*parameters, log_dispersion, gate)
