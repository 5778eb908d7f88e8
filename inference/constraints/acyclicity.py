"""How far a weighted directed graph is from having no cycle: three measures, of all edges or at the rank of factors.

All take nonnegative weights: a matrix A [d, d] (A_ij for an edge from i to j), or, for a graph through m factors, the
pair (a, b), both [d, m], of weights gene -> factor and factor -> gene. Every cycle of genes then runs through factors,
so the m x m matrix B = b'a has the cycles of A = ab' (Lopez et al. 2022, Lemma 1), and with the same nonzero
eigenvalues tr exp(A) - d = tr exp(B) - m, rho(A) = rho(B), and det(sI - A) = s^(d - m) det(sI - B): the factor level
costs O(m^2 d + m^3) instead of O(d^3).

A gene and a factor may exclude one direction by the other (the edge is in, out or absent, never both). Then a_jf b_jf
is no cycle, and ``exclusive=True`` takes its part from the diagonal of B. This is no longer equal to the same
correction of A (B still counts closed walks that use one gene twice), but both are zero on the same graphs without a
doubtful edge.

Sources: Zheng et al. 2018 (trace of the exponential); Lee et al. 2019 (spectral radius); Bello et al. 2022 (log-det).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_flag, checked_real, one_of, set_fields
from fieldguide.inference.step import Step

Weights = Tensor | tuple[Tensor, Tensor]
SQUARINGS = 10
"""2^10 steps of the power iteration, by squaring the matrix."""
SHIFT = 0.05
"""Share of the largest row sum that is added to the diagonal, so that graphs with a period converge too."""


def cycle_matrix(weights: Weights, exclusive: bool = False) -> Tensor:
    """Return the matrix whose cycles count, float64: A itself [d, d], or B = b'a [m, m] of a pair.

    Raises
    ------
    ValueError
        If a weight is negative, or shapes do not fit.
    """
    if isinstance(weights, Tensor):
        effect = weights.double()
        if effect.dim() != 2 or effect.shape[0] != effect.shape[1]:
            raise ValueError(f"weights of edges are a square matrix, not {tuple(effect.shape)}")
    else:
        a, b = (w.double() for w in weights)
        if a.shape != b.shape or a.dim() != 2:
            raise ValueError(
                f"weights into and out of factors must both be [d, m], not {tuple(a.shape)} and {tuple(b.shape)}"
            )
        effect = b.T @ a
        if exclusive:
            effect = effect - torch.diag((a * b).sum(0))
            effect = effect.clamp(min=0)  # differences of equal sums may round to less than zero
    if (effect < 0).any():
        raise ValueError("weights of edges must not be negative: take their squares or absolute values")
    return effect


def trace_exponential(weights: Weights, scale: float | None = None, exclusive: bool = False) -> Tensor:
    """Return tr exp(A / scale) - d, the number of closed walks, each of length k weighted by 1 / k!.

    Parameters
    ----------
    weights : Tensor [d, d] or pair of Tensor [d, m]
    scale : float, optional
        By default the spectral radius, at least 1, as a constant: nothing overflows.
    exclusive : bool
        See the module.

    Examples
    --------
    >>> round(float(trace_exponential(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))), 4)
    1.0862
    """
    matrix = cycle_matrix(weights, exclusive)
    scale = max(1.0, float(_radius(matrix.detach()))) if scale is None else scale
    return _exact(torch.matrix_exp(matrix / scale).diagonal().sum() - len(matrix), matrix)


def log_determinant(weights: Weights, s: float | None = None, exclusive: bool = False) -> Tensor:
    """Return -log det(I - A / s), which is -log det(sI - A) + d log s, for s above the spectral radius.

    Parameters
    ----------
    weights : Tensor [d, d] or pair of Tensor [d, m]
    s : float, optional
        By default twice the spectral radius, at least 1, as a constant.
    exclusive : bool
        See the module.

    Raises
    ------
    ValueError
        If ``s`` is not above the spectral radius: the measure is not defined there.
    """
    matrix = cycle_matrix(weights, exclusive)
    radius = float(_radius(matrix.detach()))
    s = max(1.0, 2 * radius) if s is None else s
    if not s > radius:
        raise ValueError(f"s must be above the spectral radius {radius:.4g} of the weights, not {s:.4g}")
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return _exact(-torch.linalg.slogdet(eye - matrix / s)[1], matrix)


def spectral_radius(weights: Weights, exclusive: bool = False) -> Tensor:
    """Return the largest absolute eigenvalue, by power iteration; its gradient is v u' / v'u of the eigenvectors.

    Exactly zero, with a gradient of zero, where there is no cycle.

    Examples
    --------
    >>> round(float(spectral_radius(torch.tensor([[0.0, 2.0], [0.5, 0.0]]))), 6)
    1.0
    """
    return _radius(cycle_matrix(weights, exclusive))


MEASURES = {"spectral": spectral_radius, "exponential": trace_exponential, "logdet": log_determinant}


@dataclass(frozen=True)
class Acyclicity:
    """Acyclicity of the graph of a program, as the measure of a `Constraint`.

    The program says its weights by a method ``edge_weights()``, in one of the two forms above.

    Parameters
    ----------
    kind : {"spectral", "exponential", "logdet"}
    exclusive : bool
        Of a pair of weights: whether a gene and a factor are joined in one direction at most.
    warmup : float
        Share of the training in which the measure is zero, so that the likelihood settles first.
    """

    kind: str = "spectral"
    exclusive: bool = True
    warmup: float = 0.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, MEASURES)
        set_fields(
            self,
            exclusive=checked_flag("exclusive", self.exclusive),
            warmup=checked_real("warmup", self.warmup, at_least=0, below=1),
        )

    @property
    def name(self) -> str:
        """Column of the history."""
        return "acyclicity"

    def __call__(self, step: Step) -> Tensor:
        """Return the measure."""
        value = MEASURES[self.kind](_weights_of(step), exclusive=self.exclusive)
        return value * 0.0 if float(step.scalars.get("progress", 1.0)) < self.warmup else value


@dataclass(frozen=True)
class EdgeCount:
    """Expected number of edges of the graph of a program, as a measure: for each gene, or half that for each factor.

    With the weight lambda of a `Penalty` it is the l1 penalty of Lopez et al. 2022 (their lambda, in nats a cell).

    Parameters
    ----------
    warmup : float
        Share of the training in which the measure grows in proportion from zero to this number, so that the likelihood
        says which edges there are before sparsity does; 1: until the end.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        set_fields(self, warmup=checked_real("warmup", self.warmup, at_least=0, at_most=1))

    @property
    def name(self) -> str:
        """Column of the history."""
        return "edges"

    def __call__(self, step: Step) -> Tensor:
        """Return the measure."""
        weights = _weights_of(step)
        share = min(1.0, float(step.scalars.get("progress", 1.0)) / self.warmup) if self.warmup else 1.0
        if isinstance(weights, Tensor):
            return share * weights.sum() / len(weights)
        return share * (weights[0].sum() + weights[1].sum()) / (2 * weights[0].shape[1])


def _weights_of(step: Step) -> Weights:
    method = getattr(step.program, "edge_weights", None)
    if method is None:
        raise TypeError(f"{type(step.program).__name__} has no graph: it needs a method edge_weights()")
    return method()


def _radius(matrix: Tensor) -> Tensor:
    fixed = matrix.detach()
    if not _cyclic(fixed):
        return (matrix * 0.0).sum()
    eye = torch.eye(len(fixed), dtype=fixed.dtype, device=fixed.device)
    power = fixed + SHIFT * fixed.sum(1).max() * eye
    for _ in range(SQUARINGS):
        power = power / power.max()
        power = power @ power
    right, left = power.sum(1), power.sum(0)
    right, left = right / right.max(), left / left.max()
    return (left @ matrix @ right) / (left @ right)


def _cyclic(matrix: Tensor) -> bool:
    """Whether there is a cycle: whether a walk of any length exists."""
    edges = (matrix > 0).to(matrix.dtype)
    start = torch.ones(len(edges), dtype=edges.dtype, device=edges.device)
    while True:
        on = ((edges @ start) > 0).to(edges.dtype)
        if not on.any():
            return False
        if torch.equal(on, start):
            return True
        start = on


def _exact(value: Tensor, matrix: Tensor) -> Tensor:
    """Return the value, without its rounding where there is no cycle; the gradient is as it is."""
    return value if _cyclic(matrix.detach()) else value - value.detach()
