"""What an incentive would bring: the response at every level, and draws of it that say how sure that is."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.catalog.incentives import Incentives
from fieldguide.decisions.policies.policy import TrainedOn
from fieldguide.inference import Dataset, Fit, fit
from fieldguide.inference.checks.arguments import checked_int, checked_seed
from fieldguide.inference.data.logged import RowWeight
from fieldguide.inference.data.reading import check_data, n_rows, numbers
from fieldguide.inference.messages import caution

PRECISIONS = np.geomspace(1e-2, 1e3, 21)
"""Prior precisions of the last layer among which the evidence decides."""


@torch.no_grad()
def response(fitted: Any, data: Any = None) -> pd.DataFrame:
    """Return the expected response at every level for each customer, [N, K].

    Parameters
    ----------
    fitted : Fit or sequence of Fit
        Of the entry ``incentives``; several, from different seeds, are averaged.
    data : AnnData, DataFrame or dict of arrays, optional
        New customers; those of the training data by default.

    Returns
    -------
    DataFrame
        ``attrs["trained_on"]`` names the customers of the fit, training and held-out ones (where they have names, and
        unless the fit was loaded from a file): an allocation by these responses that is evaluated on them is
        optimistic, and `fieldguide.decisions.evaluate_policy` warns of it.
    """
    members = _members(fitted)
    dataset = members[0].read(data)
    parts = []
    for member in members:
        program = _program(member)
        own = dataset if data is None else member.read(data)
        values = [program.expected(program.link(x)) for x in _features(member, own)]
        parts.append(torch.cat(values).double().cpu().numpy())
    index = pd.RangeIndex(dataset.n_cells) if dataset.obs is None else dataset.obs.index
    table = pd.DataFrame(np.mean(parts, axis=0), index=index, columns=_levels(members[0]))
    customers = [m.dataset.obs.index for m in members if m.dataset is not None and m.dataset.obs is not None]
    if customers:
        table.attrs["trained_on"] = TrainedOn(customers[0].append(customers[1:]).unique())
    return table


def response_ensemble(data: Any, members: Any = 20, *, fields: Any = None, seed: Any = 0, **settings) -> list[Fit]:
    """Fit ``incentives`` several times, each to the data under random weights: what one fit cannot know about itself.

    The weighted likelihood bootstrap (Newton and Raftery 1994): in each member every customer counts by an independent
    exponential weight of mean one (times a given one), and initial values, split and shuffling are its own. So all
    layers of the network vary as the data make them. Hand the list to `response` and `response_draws`.

    Parameters
    ----------
    data, fields
        As for `fieldguide.inference.fit`. ``{"weight": None}`` leaves out weights that the data have; the random ones
        are then in a column of their own.
    members : int
    seed : int
        Of the weights; member m is fitted with ``seed + m``.
    **settings
        For `fieldguide.inference.fit`: ``shape``, ``max_epochs``, ``batch_size``, ...

    Notes
    -----
    Simulated coupons, 600 and 2,000 customers, concave and monotone: 90 % intervals of 20 members hold the true
    response of 0.86 to 0.94 of customers and levels (10 members: 0.85 to 0.94), those of one fit of 0.46 to 0.70.
    """
    members, seed = checked_int("members", members, at_least=2), checked_seed(seed)
    check_data(data)
    if fields is not None and not isinstance(fields, Mapping):
        raise TypeError(f"fields must be a mapping from fields to places, not {fields!r:.60}")
    column, given = _weights(data, (fields or {}).get("weight", ...))
    places, fits = {**(fields or {}), "weight": str(column)}, []
    for member in range(members):
        random = np.random.default_rng([seed, member]).exponential(size=n_rows(data))
        weights = given * np.maximum(random, 1e-6)
        if isinstance(data, anndata.AnnData):
            weighted = data.copy()
            weighted.obs[column] = weights
        elif isinstance(data, pd.DataFrame):
            weighted = data.copy()
            weighted[column] = weights
        else:
            weighted = {**data, column: weights}
        fits.append(fit("incentives", weighted, fields=places, seed=seed + member, **({"progress": False} | settings)))
        if fits[-1].interrupted:
            raise KeyboardInterrupt
    return fits


def _weights(data: Any, place: Any) -> tuple[Any, Any]:
    """The column for weights (a new one, where there are none), and the weights that were given.

    ``place`` is that of the field ``weight``: None switches given weights off, ``...`` says nothing.
    """
    table = data.obs if isinstance(data, anndata.AnnData) else data
    place = (place.place or ...) if isinstance(place, RowWeight) else place
    there = {str(column): column for column in table}
    if place is None:
        return next(name for k in count() if (name := f"weight{k or ''}") not in there), 1.0
    if place is ... and "weight" not in there:
        return "weight", 1.0
    place = "weight" if place is ... else str(place) if isinstance(place, int | np.integer) else place
    return there.get(place, place) if isinstance(place, str) else place, numbers("weight", data, place)


def response_draws(fitted: Any, data: Any = None, draws: Any = 200, seed: Any = 0) -> np.ndarray:
    """Return posterior draws of the response at every level for each customer, [S, N, K].

    The last layer of the network is Bayesian: a Gaussian around the fitted weights, with the curvature of the
    likelihood on the training data (generalised Gauss-Newton; MacKay 1992) and the prior precision of largest evidence.
    Every draw keeps the shape (monotone, concave) that was fitted.

    The layers before it are taken as known, and they are not: the draws of one fit are too narrow, and a warning says
    so. Give the fits of a `response_ensemble`, which share the draws.

    Parameters
    ----------
    fitted : Fit or sequence of Fit
        With their training data.
    data : optional
        New customers.
    draws, seed : int

    Warns
    -----
    UserWarning
        For one fit alone.

    Examples
    --------
    Spend a budget with caution: ``allocate(response_draws(fits, customers), cost, budget, risk="quantile")``.
    """
    members, draws, seed = _members(fitted), checked_int("draws", draws, at_least=1), checked_seed(seed)
    if len(members) == 1:
        caution(
            "draws of one fit leave out what its hidden layers do not know: their 90 % intervals hold a half to "
            "two thirds of the true responses; use response_ensemble",
            UserWarning,
        )
    dataset, shares, parts = members[0].read(data), np.array_split(np.arange(draws), len(members)), []
    for number, (member, share) in enumerate(zip(members, shares, strict=True)):
        if len(share):
            own = dataset if data is None else member.read(data)
            parts.append(_draws(member, own, len(share), seed + number))
    return np.concatenate(parts)


def _draws(fitted: Fit, dataset: Dataset, draws: int, seed: int) -> np.ndarray:
    """Draws [S, N, K] of one fit, its hidden layers taken as known."""
    program = _program(fitted)
    mean, factor = _laplace(fitted, program)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, len(mean), generator=generator, dtype=torch.float64)
    weights = mean + torch.linalg.solve_triangular(factor.T, noise.T, upper=True).T
    parts = []
    for x in _features(fitted, dataset):
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


def _members(fitted: Any) -> list[Fit]:
    """Fits of the entry ``incentives``, one or several, of the same levels and customers."""
    members = [fitted] if isinstance(fitted, Fit) else fitted
    if not isinstance(members, Sequence) or not members or not all(isinstance(member, Fit) for member in members):
        raise TypeError(f"fitted must be a fit of incentives, or a list of such fits, not {fitted!r:.60}")
    for member in members:
        _program(member)
    levels = _levels(members[0])
    for number, member in enumerate(members):
        if not _levels(member).equals(levels):
            raise ValueError(
                f"fitted: the levels of fit {number} are {list(_levels(member))}, those of the first {list(levels)}"
            )
    return list(members)


@torch.no_grad()
def _features(fitted: Fit, dataset) -> list[Tensor]:
    rows = np.arange(dataset.n_cells)
    return [dataset.batch(part)["x"].to(fitted.device) for part in np.array_split(rows, max(1, len(rows) // 8192))]


def _with_one(inputs: Tensor) -> Tensor:
    inputs = inputs.detach().double().cpu()
    return torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)


def _levels(fitted: Fit) -> pd.Index:
    names = fitted.schema.states["level"]["categories"] if fitted.schema is not None else range(fitted.program.n_level)
    return pd.Index(names, name="level")


def _program(fitted: Fit) -> Incentives:
    if not isinstance(fitted.program, Incentives):
        raise TypeError(f"this is a fit of {fitted.name}, not of incentives")
    return fitted.program
