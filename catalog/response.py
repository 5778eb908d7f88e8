"""What an incentive would bring: posterior draws of the response at every level, by a Laplace approximation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.catalog.incentives import Incentives
from fieldguide.inference import Dataset, Fit

PRECISIONS = np.geomspace(1e-2, 1e3, 21)
"""Prior precisions of the last layer among which the evidence decides."""


@torch.no_grad()
def response(fitted: Fit | Sequence[Fit], data: Any = None) -> pd.DataFrame:
    """Return the expected response at every level for each customer, [N, K].

    Parameters
    ----------
    fitted : Fit or sequence of Fit
        Of the entry ``incentives``; several, from different seeds, are averaged.
    data : AnnData, DataFrame or dict of arrays, optional
        New customers; those of the training data by default.
    """
    members = [fitted] if isinstance(fitted, Fit) else list(fitted)
    dataset = members[0].read(data)
    parts = []
    for member in members:
        program = _program(member)
        values = [program.expected(program.link(x)) for x in _features(member, dataset)]
        parts.append(torch.cat(values).double().cpu().numpy())
    index = pd.RangeIndex(dataset.n_cells) if dataset.obs is None else dataset.obs.index
    return pd.DataFrame(np.mean(parts, axis=0), index=index, columns=_levels(members[0]))


def response_draws(fitted: Fit | Sequence[Fit], data: Any = None, draws: int = 200, seed: int = 0) -> np.ndarray:
    """Return posterior draws of the response at every level for each customer, [S, N, K].

    The last layer of the network is Bayesian: a Gaussian around the fitted weights, with the curvature of the
    likelihood on the training data (generalised Gauss-Newton; MacKay 1992) and the prior precision of largest evidence.
    The layers before it are taken as known, so the draws of one fit say less than all uncertainty. Several fits, from
    different seeds, share the draws and say more of it. Every draw keeps the shape (monotone, concave) that was fitted.

    Parameters
    ----------
    fitted : Fit or sequence of Fit
        With their training data.
    data : optional
        New customers.
    draws, seed : int

    Examples
    --------
    Spend a budget with caution: ``allocate(response_draws(fitted, customers), cost, budget, risk="quantile")``.
    """
    if not isinstance(fitted, Fit):
        shares = np.array_split(np.arange(draws), len(fitted))
        parts = [
            response_draws(f, fitted[0].read(data), len(s), seed + n)
            for n, (f, s) in enumerate(zip(fitted, shares, strict=True))
            if len(s)
        ]
        return np.concatenate(parts)
    program = _program(fitted)
    mean, factor = _laplace(fitted, program)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, len(mean), generator=generator, dtype=torch.float64)
    weights = mean + torch.linalg.solve_triangular(factor.T, noise.T, upper=True).T
    parts = []
    for x in _features(fitted, data if isinstance(data, Dataset) else fitted.read(data)):
        inputs = _with_one(program.features(x)[1])
        raw = torch.einsum("bh,skh->sbk", inputs, weights.view(draws, program.n_level, -1))
        link = program.base_rate.double().cpu() + program.unit.double().cpu() * program.levels(raw)
        parts.append(program.expected(link).numpy())
    return np.concatenate(parts, 1)


def _laplace(fitted: Fit, program: Incentives) -> tuple[Tensor, Tensor]:
    """Fitted weights of the last layer [P] and the Cholesky factor of their posterior precision [P, P]."""
    if fitted.dataset is None:
        raise ValueError("this fit was loaded from a file and holds no data: draws need the training data")
    dataset, rows = fitted.dataset, fitted.train_rows
    mean = torch.cat([program.last.weight, program.last.bias[:, None]], 1).detach().double().cpu().flatten()
    size = len(mean)
    curvature, loss = torch.zeros(size, size, dtype=torch.float64), 0.0
    width = program.n_level
    for part in np.array_split(rows, max(1, len(rows) // 1024)):
        batch = {k: v.cpu() for k, v in dataset.batch(part).items()}
        x = batch["x"].to(fitted.device)
        inputs = _with_one(program.features(x)[1])
        raw = (inputs @ mean.view(width, -1).T).detach()
        slope = torch.func.vmap(torch.func.jacrev(program.levels))(raw)  # [b, K, K]: link by output
        own = slope[torch.arange(len(part)), batch["level"]] * program.unit.double().cpu()
        link = program.base_rate.double().cpu() + program.unit.double().cpu() * program.levels(raw)
        link = link.gather(1, batch["level"][:, None])[:, 0]
        y, weight = batch["response"].double(), batch.get("weight", torch.ones(len(part))).double()
        if program.outcome == "bernoulli":
            p = torch.sigmoid(link)
            second = p * (1 - p)
            loss += float(-(weight * torch.distributions.Bernoulli(logits=link).log_prob(y)).sum())
        else:
            scale = float(program.unit) * float(program.log_scale.detach().exp())
            second = torch.full_like(link, scale**-2)
            loss += float(-(weight * torch.distributions.Normal(link, scale).log_prob(y)).sum())
        jacobian = (own[:, :, None] * inputs[:, None, :]).flatten(1)
        curvature += (jacobian * (weight * second)[:, None]).T @ jacobian
    values, square = torch.linalg.eigvalsh(curvature).clamp(min=0), float((mean**2).sum())
    evidence = [
        0.5 * size * np.log(a) - 0.5 * a * square - loss - 0.5 * float((values + a).log().sum()) for a in PRECISIONS
    ]
    chosen = float(PRECISIONS[int(np.argmax(evidence))])
    return mean, torch.linalg.cholesky(curvature + chosen * torch.eye(size, dtype=torch.float64))


@torch.no_grad()
def _features(fitted: Fit, dataset) -> list[Tensor]:
    rows = np.arange(dataset.n_cells)
    return [dataset.batch(part)["x"].to(fitted.device) for part in np.array_split(rows, max(1, len(rows) // 8192))]


def _with_one(inputs: Tensor) -> Tensor:
    found = inputs.detach().double().cpu()
    return torch.cat([found, torch.ones_like(found[:, :1])], 1)


def _levels(fitted: Fit) -> pd.Index:
    names = fitted.schema.states["level"]["categories"] if fitted.schema is not None else range(fitted.program.n_level)
    return pd.Index(names, name="level")


def _program(fitted: Fit) -> Incentives:
    if not isinstance(fitted.program, Incentives):
        raise TypeError(f"this is a fit of {fitted.name}, not of incentives")
    return fitted.program
