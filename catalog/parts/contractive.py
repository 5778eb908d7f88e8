"""Contractive maps between genes, with a bound on their slope that holds by construction.

A map f is contractive if ``|f(x) - f(y)| <= c |x - y|`` with c < 1. Then ``x = f(x) + e`` has exactly one solution for
every e (Banach), which iterating finds, and ``log det(I - J)`` of its Jacobian J is a convergent power series.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.inference.checks.arguments import one_of

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "none": (lambda z: z, torch.ones_like, 1.0),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z).square(), 1.0),
    "relu": (torch.relu, lambda z: (z > 0).to(z), 1.0),
    "selu": (
        F.selu,
        lambda z: SELU_SCALE * torch.where(z > 0, torch.ones_like(z), SELU_ALPHA * z.clamp(max=0).exp()),
        SELU_SCALE * SELU_ALPHA,
    ),
    "gelu": (
        F.gelu,
        lambda z: torch.special.ndtr(z) + z * torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5,
        1.12891,  # at the root of two
    ),
}
"""Each activation, its derivative, and the largest slope it has anywhere."""

GATES = ("none", "shared", "per_cell")


def spectral_bound(weight: Tensor, squarings: int = 6) -> Tensor:
    """Return an upper bound [...] on the largest singular value of matrices [..., m, n], as float64.

    It is the Schatten norm ``|(W'W)^q|_F^(1/2q)`` with q = 2 ** squarings: never below the spectral norm, whatever the
    weights, and above it by a factor of at most ``n^(1/4q)`` (1.2 % for 20 columns, 2.7 % for 1000). Nothing is
    iterated from one optimiser step to the next, so it cannot be out of date, and it is smooth where W is not zero.

    Examples
    --------
    >>> round(float(spectral_bound(torch.diag(torch.tensor([3.0, 1.0])))), 6)
    3.0
    """
    wide = weight.double()
    power, log_scale = wide.mT @ wide, torch.zeros(weight.shape[:-2], dtype=torch.float64, device=weight.device)
    for step in range(squarings + 1):
        if step:
            power, log_scale = power @ power, 2 * log_scale
        size = power.square().sum((-2, -1)).clamp(min=1e-280).sqrt()
        power, log_scale = power / size[..., None, None], log_scale + size.log()
    return (log_scale / 2 ** (squarings + 1)).exp()


class RelaxedGates(nn.Module):
    """A gate on each edge: Bernoulli draws whose gradient is that of a relaxation (straight-through Gumbel).

    Parameters
    ----------
    n : int
        Genes; no gene has an edge to itself.
    temperature : float
        Of the relaxation.
    """

    off_diagonal: Tensor

    def __init__(self, n: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.logits = nn.Parameter(torch.zeros(n, n))
        self.register_buffer("off_diagonal", 1 - torch.eye(n), persistent=False)

    def probability(self) -> Tensor:
        """Probability of each edge [n, n], from column to row."""
        return self.logits.sigmoid() * self.off_diagonal

    def draw(self, *shape: int) -> Tensor:
        """Return gates [*shape, n, n] of zeros and ones."""
        uniform = torch.rand(*shape, *self.logits.shape, device=self.logits.device).clamp(1e-6, 1 - 1e-6)
        soft = ((self.logits + uniform.logit()) / self.temperature).sigmoid()
        return (soft + ((soft > 0.5).to(soft) - soft).detach()) * self.off_diagonal


@dataclass
class Mechanism:
    """One map, with its gates drawn and its weights scaled: what is evaluated.

    ``f_i(x) = sum_h out[h, i] act( sum_j weight[h, i, j] s_j x_j ) / s_i`` with ``s = exp(log_scale)``; there is one h
    where there is no ``out``.

    Attributes
    ----------
    weight : Tensor [..., H, n, n]
        From column j to row i; the leading dimension, if any, is that of the cells.
    out : Tensor [..., H, n] or None
    activation : str
    log_scale : Tensor [n] or None
    """

    weight: Tensor
    out: Tensor | None
    activation: str
    log_scale: Tensor | None = None

    @property
    def constant(self) -> bool:
        """Whether the Jacobian is the same for all cells: the map is linear, and one for all."""
        return self.activation == "none" and self.weight.dim() == 3 and (self.out is None or self.out.dim() == 2)

    def to(self, x: Tensor) -> "Mechanism":
        """Return the map with the precision and on the device of ``x``."""
        out, scale = (None if t is None else t.to(x) for t in (self.out, self.log_scale))
        return Mechanism(self.weight.to(x), out, self.activation, scale)

    def unscaled(self) -> "Mechanism":
        """Return the map in the coordinates ``s x``, in which it is contractive."""
        return Mechanism(self.weight, self.out, self.activation)

    def scale(self, x: Tensor) -> Tensor:
        """Return s, as [n] or one."""
        return torch.ones_like(x[..., :1]) if self.log_scale is None else self.log_scale.exp()

    def inputs(self, x: Tensor) -> Tensor:
        """Return what the activations are applied to, [..., H, n]."""
        return torch.einsum("...hij,...j->...hi", self.weight, x * self.scale(x))

    def value(self, x: Tensor) -> Tensor:
        """Return f(x) [..., n]."""
        hidden = ACTIVATIONS[self.activation][0](self.inputs(x))
        return (hidden[..., 0, :] if self.out is None else (self.out * hidden).sum(-2)) / self.scale(x)

    def slopes(self, x: Tensor) -> Tensor:
        """Return the derivative of each output with respect to ``inputs``, [..., H, n]."""
        slopes = ACTIVATIONS[self.activation][1](self.inputs(x))
        return slopes if self.out is None else self.out * slopes

    def jacobian(self, x: Tensor) -> Tensor:
        """Return d f_i / d x_j as [..., n, n], row i and column j."""
        unscaled = torch.einsum("...hi,...hij->...ij", self.slopes(x), self.weight)
        scale = self.scale(x)
        return unscaled * scale[..., None, :] / scale[..., :, None]

    def pull(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function v -> J(x)'v [..., n], which never makes J."""
        slopes, scale = self.slopes(x), self.scale(x)
        return lambda v: torch.einsum("...hi,...hij->...j", slopes * (v / scale)[..., None, :], self.weight) * scale


class ContractiveMap(nn.Module):
    """A map between n genes without edges from a gene to itself, whose slope is below a bound.

    With no hidden units it is ``act(W x)``; with H of them each gene has a network of its own with one hidden layer.
    The product of `spectral_bound` of the weights (gates applied), the largest slope of the activation, and the largest
    norm of an output's weights is computed from the parameters in every evaluation. Where it exceeds ``bound`` the
    map is scaled down to it: no step of any optimiser can leave a map that is not contractive, and weights below the
    bound are left alone. Forcing values (interventions) only takes rows away, and keeps the bound.

    Parameters
    ----------
    n : int
    activation : {"none", "tanh", "relu", "selu", "gelu"}
    n_hidden : int
        H; 0 for one layer.
    bound : float, optional
        Below 1; None for a map without a bound.
    gates : {"none", "shared", "per_cell"}
        Whether edges have `RelaxedGates`: one draw for a minibatch or one for each cell. In evaluation, weights are
        multiplied by the probabilities instead.
    precondition : bool
        Whether the genes have scales s, learnt, and the map is ``f(s x) / s``: it is then contractive in the
        coordinates s x, which is enough for all that is needed, and any acyclic map can be written so.
    """

    off_diagonal: Tensor

    def __init__(
        self,
        n: int,
        activation: str = "none",
        n_hidden: int = 0,
        bound: float | None = 0.99,
        gates: str = "none",
        precondition: bool = False,
    ) -> None:
        super().__init__()
        one_of("activation", activation, ACTIVATIONS)
        one_of("gates", gates, GATES)
        if bound is not None and not 0 < bound < 1:
            raise ValueError(f"bound must be a number in (0, 1), or None, not {bound}")
        if n < 2:
            raise ValueError(f"a graph needs at least two genes, not {n}")
        self.n, self.activation, self.bound, self.sharing = n, activation, bound, gates
        self.weight = nn.Parameter(torch.randn(max(1, n_hidden), n, n) * 0.1 / n**0.5)
        self.out = nn.Parameter(torch.randn(n_hidden, n) / n_hidden**0.5) if n_hidden else None
        self.gates = RelaxedGates(n) if gates != "none" else None
        self.log_scale = nn.Parameter(torch.zeros(n)) if precondition else None
        self.register_buffer("off_diagonal", 1 - torch.eye(n), persistent=False)

    def settle(self, cells: int = 1) -> Mechanism:
        """Return the map to evaluate on ``cells`` cells: gates drawn if in training, weights scaled down if needed."""
        weight, out = self.weight * self.off_diagonal, self.out
        if self.gates is not None:
            shape = (cells, 1) if self.sharing == "per_cell" else (1,)
            weight = weight * (self.gates.draw(*shape) if self.training else self.gates.probability())
        if self.bound is not None:
            excess = (lipschitz(Mechanism(weight, out, self.activation)) / self.bound).clamp(min=1).to(weight)
            if out is None:
                weight = weight / excess[..., None, None, None]
            else:
                out = out / excess[..., None, None]
        return Mechanism(weight, out, self.activation, self.log_scale)

    def sizes(self) -> Tensor:
        """Return what a sparsity penalty acts on, [n, n]: probabilities of gates, or norms of the weights."""
        if self.gates is not None:
            return self.gates.probability()
        weight = self.weight * self.off_diagonal
        if self.out is None:
            return weight[0].abs()
        return ((weight * self.out[..., None]).square().sum(0) + 1e-12).sqrt() * self.off_diagonal


def lipschitz(mechanism: Mechanism) -> Tensor:
    """Return an upper bound [...] on the slope of a map, in the coordinates s x."""
    stacked = mechanism.weight.flatten(-3, -2)
    inner = spectral_bound(stacked) * ACTIVATIONS[mechanism.activation][2]
    if mechanism.out is None:
        return inner
    return inner * mechanism.out.double().square().sum(-2).clamp(min=1e-280).sqrt().amax(-1)
