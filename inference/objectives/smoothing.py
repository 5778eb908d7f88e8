"""Importance weights made tamer inside an objective: truncated, or with a smoothed tail. Both bias the estimator."""

from math import ceil, log, sqrt

import torch
from torch import Tensor

SMOOTHINGS = ("none", "truncate", "psis")
PSIS_PARTICLES = 21
"""Fewest particles that leave a tail of five weights, the fewest that a Pareto distribution is fitted to."""


def smooth(log_w: Tensor, how: str) -> Tensor:
    """Return log weights [K, B] after smoothing over the K particles of each cell.

    Parameters
    ----------
    log_w : Tensor [K, B]
        Without a gradient.
    how : {"none", "truncate", "psis"}
        ``truncate``: weights above sqrt(K) times their mean are set to that (Ionides 2008). ``psis``: the largest
        weights are replaced by quantiles of a Pareto distribution fitted to them (see `pareto_smooth`).
    """
    if how == "none":
        return log_w
    if how == "truncate":
        limit = torch.logsumexp(log_w, 0) - 0.5 * log(log_w.shape[0])
        return torch.minimum(log_w, limit)
    return pareto_smooth(log_w)


def pareto_smooth(log_w: Tensor) -> Tensor:
    """Return Pareto-smoothed log weights [K, B], on the scale of the raw ones.

    The ceil(min(K / 5, 3 sqrt(K))) largest weights of each cell are replaced by the expected order statistics of the
    generalised Pareto distribution fitted to them, never above the largest raw weight. Source: Vehtari, Simpson,
    Gelman, Yao and Gabry, JMLR 25(72), 2024; the fit is that of Zhang and Stephens, Technometrics 51, 2009.
    """
    particles = log_w.shape[0]
    size = ceil(min(particles / 5, 3 * sqrt(particles)))
    largest = log_w.amax(0)
    ranked, order = torch.sort(log_w - largest, 0)
    cut, tail = ranked[-size - 1].exp(), ranked[-size:]
    excess = tail.exp() - cut
    flat = excess[0] <= torch.finfo(log_w.dtype).tiny  # ties at the cut: there is no tail to fit
    shape, scale = _fit_pareto(torch.where(flat, torch.arange(1, size + 1).to(excess)[:, None] / size, excess))
    middle = (torch.arange(size).to(excess)[:, None] + 0.5) / size
    quantile = scale * torch.expm1(-shape * torch.log1p(-middle)) / shape
    smoothed = torch.where(flat, tail, torch.log(quantile + cut).clamp(max=0))
    return torch.empty_like(log_w).scatter_(0, order, torch.cat((ranked[:-size], smoothed))) + largest


def _fit_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape (shrunk toward 1/2) and scale [B] of a generalised Pareto distribution, from sorted excesses [M, B]."""
    size = excess.shape[0]
    grid = 30 + int(sqrt(size))
    quarter, top = excess[int(size / 4 + 0.5) - 1], excess[-1]
    steps = torch.arange(1, grid + 1).to(excess)[:, None]
    b = 1 / top + (1 - torch.sqrt(grid / (steps - 0.5))) / (3 * quarter)
    k = torch.log1p(-b[:, None] * excess).mean(1)
    share = torch.softmax(size * (torch.log(-b / k) - k - 1), 0)
    chosen = (share * b).sum(0)
    shape = torch.log1p(-chosen * excess).mean(0)
    return (size * shape + 5) / (size + 10), -shape / chosen
