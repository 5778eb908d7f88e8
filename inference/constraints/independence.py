"""HSIC as the measure of a constraint: between sites of the program and columns of the data, estimated by minibatch."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fieldguide.inference.checks.arguments import (
    checked_flag,
    checked_int,
    checked_seed,
    checked_text,
    one_of,
    set_fields,
)
from fieldguide.inference.constraints import measures
from fieldguide.inference.constraints.constraint import Bound, Constraint, Rule
from fieldguide.inference.constraints.penalty import Penalty
from fieldguide.inference.constraints.permutation import shuffled
from fieldguide.inference.constraints.source import Source, is_categorical
from fieldguide.inference.step import Step

ESTIMATORS = ("unbiased", "v", "block", "rff")
MEDIAN_CELLS = 1000
"""Cells from which a column's bandwidth is read."""
NULL_DRAWS = 100
"""Permutations behind the bound "independent"."""


def hsic(
    *names: str,
    weight: float | None = None,
    bound: Bound = 0.0,
    rule: Rule | None = None,
    estimator: str = "unbiased",
    given: str | None = None,
    sqrt: bool = False,
    block: int = 32,
    features: int = 256,
    seed: int = 0,
    name: str = "",
) -> Constraint:
    """Return the constraint that variables be independent: HSIC of the aggregated posterior, added to any objective.

    Parameters
    ----------
    *names : str
        Two or more variables: sites of the program, or columns of ``obs`` (of the dict of arrays) whether or not the
        program reads them. Columns of numbers are continuous, all others are categories.
    weight : float, optional
        Of a `Penalty` (by default 1000 nats per cell and unit of HSIC); not with ``rule``.
    bound : float or "independent"
        See `Constraint`.
    rule : Penalty or AugmentedLagrangian, optional
    estimator : {"unbiased", "v", "block", "rff"}
        ``unbiased``: of Song et al. 2012. ``v``: V-statistic (published), never negative, but mostly bias at the sizes
        of minibatches; the only one for three variables or more. ``block``: mean of the unbiased estimates of blocks
        of cells, linear in the minibatch. ``rff``: unbiased, of random Fourier features, linear in the minibatch.
    given : str, optional
        A column of categories: independence within each, as the mean over cells of the estimate in their category.
    sqrt : bool
        Take the square root of the V-statistic, as the published code does.
    block : int
        Cells in a block.
    features : int
        Number of random features.
    seed : int
        Of the random features, which stay the same during training.
    name : str
        Column of the history; by default made of the variables.

    Returns
    -------
    Constraint
        Kernels are Gaussian, of the analytic bandwidth for sites (`measures.analytic_gamma`) and of the median
        distance, computed once, for columns; for categories, equality.

    Examples
    --------
    >>> hsic("z", "n_genes", weight=500.0).name
    'hsic_z_n_genes'
    """
    if rule is not None and weight is not None:
        raise ValueError("weight is that of a Penalty: give weight or rule, not both")
    rule = rule or (Penalty() if weight is None else Penalty(weight))
    measure = HSIC(tuple(names), estimator, given, sqrt, block, features, seed)
    return Constraint(measure, bound, rule, name)


@dataclass(frozen=True)
class HSIC:
    """What `hsic` measures, before it has seen data; its arguments are described there."""

    names: tuple[str, ...] | list[str]
    estimator: str = "unbiased"
    given: str | None = None
    sqrt: bool = False
    block: int = 32
    features: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        set_fields(
            self,
            names=tuple(checked_text("a variable of hsic", name) for name in self.names),  # a list, in a saved fit
            given=None if self.given is None else checked_text("given", self.given),
            sqrt=checked_flag("sqrt", self.sqrt),
            block=checked_int("block", self.block, measures.LEAST),
            features=checked_int("features", self.features, 1),
            seed=checked_seed(self.seed),
        )
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"hsic needs two different variables or more, not {', '.join(self.names) or 'none'}")
        one_of("estimator", self.estimator, ESTIMATORS)
        if len(self.names) > 2 and self.estimator != "v":
            raise ValueError("three variables or more: only estimator='v' exists")
        if self.sqrt and self.estimator != "v":
            raise ValueError("sqrt=True needs estimator='v': the others can be negative")

    @property
    def name(self) -> str:
        """Name made of the variables."""
        return "_".join(("hsic", *self.names, *(("given", self.given) if self.given else ())))

    @property
    def least(self) -> int:
        """Cells that the estimator needs."""
        return {"v": 2, "block": self.block}.get(self.estimator, measures.LEAST)

    def bind(self, source: Source) -> "BoundHSIC":
        """Look the variables up, and learn kernels from the cells that are trained on.

        Raises
        ------
        ValueError
            For a name that is neither site nor column, a constant or missing value, or too few cells.
        """
        cells = min(source.batch_size, len(source.rows))
        if cells < self.least:
            raise ValueError(
                f"{self.name}: estimator '{self.estimator}' needs {self.least} cells in a minibatch, not {cells}"
            )
        sites, columns = source.sites(), source.columns()
        device = next(source.program.parameters()).device
        groups = None
        if self.given is not None:
            groups = self._groups(source, columns).to(device)
        variables = []
        for name in self.names:
            if name in sites:
                variables.append(Variable(name))
            elif name in columns:
                variables.append(self._column(source, name, groups).to(device))
            else:
                raise ValueError(
                    f"{self.name}: '{name}' is neither a site of {type(source.program).__name__} ({', '.join(sites)}) "
                    f"nor a column of the data ({', '.join(columns) or 'there is none'})"
                )
        if all(v.values is not None for v in variables):
            raise ValueError(f"{self.name}: none of the variables is a site of the program ({', '.join(sites)})")
        return BoundHSIC(self, variables, groups)

    def _column(self, source: Source, name: str, groups: Tensor | None) -> "Variable":
        try:
            series = source.column(name)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        trained_on = series.iloc[source.rows]
        if trained_on.nunique() < 2:
            raise ValueError(
                f"{self.name}: column {name!r} is constant ({trained_on.iloc[0]!r}) in the cells trained on"
            )
        if groups is not None:
            types = groups.cpu().numpy()[source.rows]
            if pd.Series(trained_on.to_numpy()).groupby(types).nunique().max() < 2:
                raise ValueError(
                    f"{self.name}: column {name!r} is constant within every category of {self.given!r}, so nothing is "
                    "left of it given that column"
                )
        if is_categorical(series):
            codes, categories = pd.factorize(series.astype(str), sort=True)
            return Variable(name, torch.from_numpy(codes.astype(np.int64)), None, len(categories))
        numbers = series.to_numpy(dtype=np.float64)
        values = (numbers - numbers[source.rows].mean()) / numbers[source.rows].std()
        if not np.isfinite(values).all():
            raise ValueError(f"{self.name}: column {name!r} is constant up to rounding in the cells trained on")
        chosen = np.random.default_rng(0).permutation(source.rows)[:MEDIAN_CELLS]
        tensor = torch.from_numpy(values.astype(np.float32))[:, None]
        return Variable(name, tensor, measures.median_gamma(tensor[np.sort(chosen)]))

    def _groups(self, source: Source, columns: list[str]) -> Tensor:
        if self.given not in columns:
            raise ValueError(f"{self.name}: given={self.given!r} is not a column of the data ({', '.join(columns)})")
        series = source.column(str(self.given))
        whole = pd.api.types.is_integer_dtype(series.dtype)
        if not (is_categorical(series) or whole):
            raise ValueError(f"{self.name}: given={self.given!r} must be a column of categories, not of numbers")
        codes = pd.factorize(series.astype(str), sort=True)[0].astype(np.int64)
        least, sizes = self.least, np.bincount(codes[source.rows])
        if sizes.max() < least:
            raise ValueError(
                f"{self.name}: no category of {self.given!r} has {least} cells; the largest has {sizes.max()}"
            )
        return torch.from_numpy(codes)


@dataclass
class Variable:
    """One variable of a measure: a site (no values), or a column with its values for all cells of the data."""

    name: str
    values: Tensor | None = None
    gamma: float | None = None
    categories: int = 0
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> "Variable":
        """Move the values to a device."""
        self.values = None if self.values is None else self.values.to(device)
        return self

    def seen(self, step: Step) -> Tensor:
        """Return the values of a minibatch: [B, D], or codes [B] of categories."""
        return step.draw(self.name) if self.values is None else self.values[step.batch["index"]]

    def bandwidth(self, values: Tensor) -> float:
        """Return the bandwidth of the Gaussian kernel."""
        return self.gamma if self.gamma is not None else measures.analytic_gamma(values.shape[-1])

    def gram(self, values: Tensor) -> Tensor:
        """Return the Gram matrix of values [..., n, D] or codes [..., n]."""
        if self.categories:
            return measures.delta_gram(values)
        return measures.gaussian_gram(values, self.bandwidth(values))

    def feature(self, values: Tensor, count: int, seed: int) -> Tensor:
        """Return features [n, F] whose inner products are (nearly) the kernel."""
        if self.categories:
            return F.one_hot(values, self.categories).to(torch.get_default_dtype())
        key = (values.shape[-1], count, seed, values.device, values.dtype)
        if key not in self.cache:
            drawn = measures.draw_features(values.shape[-1], self.bandwidth(values), count, seed)
            self.cache[key] = tuple(t.to(values) for t in drawn)
        return measures.random_features(values, *self.cache[key])


class BoundHSIC:
    """HSIC of given variables, as a callable of a `Step`."""

    def __init__(self, settings: HSIC, variables: list[Variable], groups: Tensor | None) -> None:
        self.settings, self.variables, self.groups = settings, variables, groups

    def __call__(self, step: Step) -> Tensor:
        return self.estimate(*self.inputs(step))

    def inputs(self, step: Step) -> tuple[list[Tensor], Tensor | None]:
        """Return the values of each variable in a minibatch, and the category of each cell where one is given."""
        return [v.seen(step) for v in self.variables], None if self.groups is None else self.groups[step.batch["index"]]

    def estimate(self, values: list[Tensor], groups: Tensor | None) -> Tensor:
        """Return the estimate; zero where there are too few cells for any."""
        if groups is None:
            return self._one(values) if len(values[0]) >= self.settings.least else _zero(values)
        total, counted = _zero(values), 0
        for group in groups.unique():
            rows = torch.nonzero(groups == group).squeeze(-1)
            if len(rows) >= self.settings.least:
                total = total + len(rows) * self._one([v[rows] for v in values])
                counted += len(rows)
        return total / max(counted, 1)

    def null(self, step: Step, rng: np.random.Generator, permutations: int = NULL_DRAWS) -> np.ndarray:
        """Return the estimate [P] with all variables but the first shuffled, within categories where they are given."""
        with torch.no_grad():
            values, groups = self.inputs(step)
            codes = None if groups is None else groups.cpu().numpy()
            null = []
            for _ in range(permutations):
                others = [v[shuffled(len(v), rng, codes).to(v.device)] for v in values[1:]]
                null.append(self.estimate([values[0], *others], groups))
        return torch.stack(null).double().cpu().numpy()

    def _one(self, values: list[Tensor]) -> Tensor:
        s, pairs = self.settings, list(zip(self.variables, values, strict=True))
        if s.estimator == "rff":
            first, second = (v.feature(x, s.features, s.seed + i) for i, (v, x) in enumerate(pairs))
            return measures.hsic_features(first, second, unbiased=True)
        if s.estimator == "v":
            dependence = measures.dhsic(*(v.gram(x) for v, x in pairs))
            return ((dependence.clamp(min=0) + 1e-12).sqrt() if s.sqrt else dependence).float()
        if s.estimator == "block":
            pairs = [(v, measures.blocks(x, s.block)) for v, x in pairs]
        return measures.hsic_unbiased(*(v.gram(x) for v, x in pairs)).mean().float()


def _zero(values: list[Tensor]) -> Tensor:
    """Zero that depends on the values, so that it has a gradient."""
    return sum((0.0 * v.sum() for v in values if v.is_floating_point()), start=torch.zeros((), device=values[0].device))
