"""A Gaussian prior of all latents for each condition, set to the moments of the latents that the guide gives.

Under it latents may depend on one another in every condition, and no axes are preferred: a network finds the latents
first, and their axes afterwards.
"""

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal, constraints, register_kl

HASH = 1_000_003
FIRM = 10.0
"""Cells whose worth the average covariance has in that of each condition."""
LEAST = 1e-4
"""Least variance."""


class WhitenedNormal(TorchDistribution):
    """Gaussian of which ``white @ (z - loc)`` is standard normal.

    Parameters
    ----------
    loc : Tensor [..., D]
    white : Tensor [..., D, D]
        Lower triangular, with a positive diagonal.
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "loc": constraints.real_vector,
        "white": constraints.lower_cholesky,
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, loc: Tensor, white: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.white = loc, white
        batch = torch.broadcast_shapes(loc.shape[:-1], white.shape[:-2])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "WhitenedNormal":
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return WhitenedNormal(loc, self.white, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device).unsqueeze(-1)
        return self.loc + torch.linalg.solve_triangular(self.white, noise, upper=False).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        squares = _times(self.white, value - self.loc).square().sum(-1)
        return self.log_det() - squares / 2 - self.event_shape[0] * math.log(2 * math.pi) / 2

    def log_det(self) -> Tensor:
        """Log determinant of the whitening matrix [...]."""
        return self.white.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@register_kl(Independent, WhitenedNormal)
def _independent_to_whitened(one: Independent, other: WhitenedNormal) -> Tensor:
    base = one.base_dist
    if not isinstance(base, Normal) or len(one.event_shape) != 1:
        raise NotImplementedError
    apart = _times(other.white, base.loc - other.loc).square().sum(-1)
    spread = (other.white.square() * base.scale.square().unsqueeze(-2)).sum((-2, -1))
    return (apart + spread - other.event_shape[0]) / 2 - other.log_det() - base.scale.log().sum(-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class CoupledPrior(nn.Module):
    """Mean and covariance of all latents in each condition, of the cells that training has shown.

    Parameters
    ----------
    conditions : int64 [N, M]
        What was done to each training cell, and where; equal rows are one condition.
    size : int
        D.
    """

    mean: Tensor
    covariance: Tensor
    white: Tensor
    cells: Tensor
    keys: Tensor
    kinds: Tensor

    def __init__(self, conditions: Tensor, size: int) -> None:
        super().__init__()
        kinds, cells = torch.unique(conditions, dim=0, return_counts=True)
        keys = hashed(kinds)
        order = keys.argsort()
        for name, value in {
            "kinds": kinds[order],
            "keys": keys[order],
            "cells": cells[order].to(torch.get_default_dtype()),
            "mean": torch.zeros(len(kinds) + 1, size, device=conditions.device),
            "covariance": torch.eye(size, device=conditions.device).repeat(len(kinds) + 1, 1, 1),
            "white": torch.eye(size, device=conditions.device).repeat(len(kinds) + 1, 1, 1),
        }.items():
            self.register_buffer(name, value)

    def rows(self, conditions: Tensor) -> Tensor:
        """Return the number of the condition of each cell [B]; the last for one that training has not."""
        wanted = hashed(conditions)
        at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[at] == wanted, at, len(self.keys))

    @torch.no_grad()
    def update(self, loc: Tensor, scale: Tensor, rows: Tensor) -> None:
        """Move the moments to those of guides [B, D], by the part of its condition that a minibatch has."""
        count = loc.new_zeros(len(self.mean)).index_add_(0, rows, torch.ones_like(loc[:, 0]))
        there = count > 0
        there[-1] = False
        part = (count[there] / self.cells[there[:-1]]).clamp(max=1)
        mean = torch.zeros_like(self.mean).index_add_(0, rows, loc)[there] / count[there, None]
        self.mean[there] += part[:, None] * (mean - self.mean[there])
        away = loc - self.mean[rows]
        square = away.unsqueeze(-1) * away.unsqueeze(-2) + torch.diag_embed(scale.square())
        total = torch.zeros_like(self.covariance).index_add_(0, rows, square)[there] / count[there, None, None]
        self.covariance[there] += part[:, None, None] * (total - self.covariance[there])
        self.refresh(there)

    def refresh(self, there: Tensor) -> None:
        """Set whitening matrices to the covariances of some conditions, each drawn a little towards the average."""
        share = self.cells / self.cells.sum()
        inner = self.covariance[:-1]
        average = (share[:, None, None] * inner).sum(0)
        mean = share @ self.mean[:-1]
        between = ((self.mean[:-1] - mean).T * share) @ (self.mean[:-1] - mean)
        self.mean[-1], self.covariance[-1] = mean, average + between
        few = FIRM / (FIRM + self.cells[there[:-1], None, None])
        shrunk = torch.cat(((1 - few) * inner[there[:-1]] + few * average, self.covariance[-1:])).double()
        eye = torch.eye(shrunk.shape[-1], dtype=shrunk.dtype, device=shrunk.device)
        lower = torch.linalg.cholesky(shrunk + LEAST * eye)
        white = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).to(self.white.dtype)
        self.white[there], self.white[-1] = white[:-1], white[-1]

    def block(self, rows: Tensor, before: list[Tensor], size: int) -> WhitenedNormal:
        """Return the prior of the next latents [..., D'] given those before them, each [..., D_b]."""
        start = sum(z.shape[-1] for z in before)
        ours = slice(start, start + size)
        white, loc = self.white[rows][:, ours, ours], self.mean[rows][:, ours]
        if start:
            away = torch.cat(before, -1) - self.mean[rows][:, :start]
            pull = _times(self.white[rows][:, ours, :start], away)
            loc = loc - torch.linalg.solve_triangular(white, pull.unsqueeze(-1), upper=False).squeeze(-1)
        return WhitenedNormal(loc, white)


def hashed(conditions: Tensor) -> Tensor:
    """Return one whole number for each row of codes [N, M], int64."""
    total = torch.zeros_like(conditions[:, 0])
    for column in conditions.unbind(-1):
        total = total * HASH + column + 2
    return total
