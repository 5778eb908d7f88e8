"""The log-determinant log |det(I - J)|: exact, by its power series, and by an estimate without bias.

    log det(I - J) = - sum_k tr(J^k) / k        if the spectral radius of J is below 1,

and ``tr(J^k)`` is the mean of ``v' J^k v`` over random signs v (Hutchinson 1990). Cutting the sum off is biased;
ending it at a random place and dividing each term by its chance of being reached is not (Russian roulette, Chen et al.
2019).
"""

from collections.abc import Callable
from math import ceil, log, log1p

import torch
from torch import Tensor

LOG_DETS = ("exact", "series", "roulette")
Pull = Callable[[Tensor], Tensor]


def exact_log_det(jacobian: Tensor) -> Tensor:
    """Return log |det(I - J)| [...] of matrices [..., n, n]: O(n^3) each.

    Examples
    --------
    >>> exact_log_det(torch.tensor([[0.0, 0.5], [0.5, 0.0]])).exp()
    tensor(0.7500)
    """
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    return torch.linalg.slogdet(eye - jacobian)[1]


def minor_log_det(jacobian: Tensor, targets: Tensor) -> Tensor:
    """Return log |det| of I - J without the rows and columns of each cell's targets, from one matrix J [n, n].

    By Jacobi's identity, ``det S[O, O] = det S * det (S^-1)[I, I]`` for the observed genes O and the targets I: one
    factorisation serves all cells.

    Parameters
    ----------
    jacobian : Tensor [n, n]
        I - J must be invertible.
    targets : int64 Tensor [B, M]
        Codes of genes, -1 for none.

    Returns
    -------
    Tensor [B]
    """
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    system = eye - jacobian
    whole = torch.linalg.slogdet(system)[1]
    inverse = torch.linalg.inv(system)
    there, code = targets >= 0, targets.clamp(min=0)
    block = inverse[code[:, :, None], code[:, None, :]]
    small = torch.eye(targets.shape[1], dtype=jacobian.dtype, device=jacobian.device)
    block = torch.where(there[:, :, None] & there[:, None, :], block, small)
    return whole + (block[:, 0, 0].abs().log() if targets.shape[1] == 1 else torch.linalg.slogdet(block)[1])


def series_log_det(pull: Pull, like: Tensor, terms: int = 10, probes: int = 1) -> Tensor:
    """Return the first terms of the power series, estimated by random signs: [...].

    Its bias is what is cut off: at most ``n c^(terms + 1) / ((terms + 1) (1 - c))`` for a spectral radius of c.

    Parameters
    ----------
    pull : callable
        v [..., n] -> J'v [..., n].
    like : Tensor [..., n]
        Shape, precision and device of v.
    terms : int
    probes : int
        Vectors of signs to average over.
    """
    if terms < 1 or probes < 1:
        raise ValueError(f"terms and probes must be at least 1, not {terms} and {probes}")
    return _sum(pull, like, [1.0] * terms, probes)


def roulette_log_det(pull: Pull, like: Tensor, stop: float = 0.5, sure: int = 2, probes: int = 1) -> Tensor:
    """Return an estimate [...] of log det(I - J) whose mean is exact, and so is the mean of its gradient.

    The first ``sure`` terms of the series are always there; after each further one the sum ends with chance ``stop``
    (one draw for all cells), and term ``sure + m`` is divided by its chance ``(1 - stop)^(m - 1)`` of being reached.
    The variance is finite only if the spectral radius is below ``(1 - stop)^0.5``: see `safe_stop`.

    Parameters
    ----------
    pull, like, probes
        As in `series_log_det`.
    stop : float
        In (0, 1]; there are ``sure + 1 / stop`` terms on average.
    sure : int
    """
    if not 0 < stop <= 1 or sure < 0 or probes < 1:
        raise ValueError(f"stop must be in (0, 1], sure at least 0, probes at least 1: {stop}, {sure}, {probes}")
    uniform = float(torch.rand(()).clamp(min=1e-12))
    extra = 1 if stop == 1 else max(1, ceil(log(uniform) / log1p(-stop)))
    weights = [1.0] * sure + [(1 - stop) ** -(m - 1) for m in range(1, extra + 1)]
    return _sum(pull, like, weights, probes)


def safe_stop(bound: float) -> float:
    """Return the largest ``stop``, at most a half, that keeps the variance finite for slopes up to ``bound``.

    Examples
    --------
    >>> round(safe_stop(0.9), 3), safe_stop(0.5)
    (0.19, 0.5)
    """
    return min(0.5, 1 - bound**2)


def _sum(pull: Pull, like: Tensor, weights: list[float], probes: int) -> Tensor:
    total = torch.zeros_like(like[..., 0])
    for _ in range(probes):
        signs = torch.randint_like(like, 0, 2) * 2 - 1
        power = signs
        for k, weight in enumerate(weights, 1):
            power = pull(power)
            total = total - weight / k * (power * signs).sum(-1)
    return total / probes
