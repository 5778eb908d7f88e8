"""Distributions of counts over genes, for use inside Pyro plates: negative binomial, zero-inflated, Poisson.

Batch shape is cells (and particles), event shape is genes: ``log_prob`` gives one number for each cell.
Two things set them apart from ``torch.distributions``: parameters are never expanded; and ``log_prob`` is one
autograd node, its gradient written by hand, with special functions at the non-zero counts only.

Shapes: K particles (any leading dimensions), B cells, G genes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions.utils import lazy_property

from fieldguide.catalog.parts.count_math import LIMIT, broadcast, log_likelihood

__all__ = ["LIKELIHOODS", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


def _dense(counts: Tensor) -> bool:
    """Whether to avoid shapes that depend on the data: an accelerator would have to wait for the host."""
    return counts.device.type != "cpu"


# ---- autograd ---------------------------------------------------------------------------------------------
class _LogLikelihood(torch.autograd.Function):
    """`log_likelihood` with its own slopes as the gradient."""

    @staticmethod
    def forward(ctx, model, softmax, counts, *parameters):
        value, *slopes = log_likelihood(model, softmax, counts, parameters, slopes=True, dense=_dense(counts))
        ctx.shapes = [p.shape for p in parameters]
        needed = ctx.needs_input_grad[3:]
        ctx.save_for_backward(*(s if need else None for s, need in zip(slopes, needed, strict=True)))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return None, None, None, *_pull(grad, ctx.saved_tensors, ctx.shapes)


def _pull(grad: Tensor, slopes: Sequence[Tensor | None], shapes: Sequence[torch.Size]) -> list[Tensor | None]:
    """Gradients of parameters of given shapes, from that of the log likelihoods and the slopes of entries."""
    out = []
    for slope, shape in zip(slopes, shapes, strict=True):
        if slope is None:
            out.append(None)
        elif shape == slope.shape[-1:]:
            out.append(grad.reshape(-1) @ slope.reshape(-1, shape[0]))
        else:
            out.append((grad.unsqueeze(-1) * slope).sum_to_size(shape))
    return out


# The same as one opaque operator, for graph capture: torch.export and torch.compile do not look inside, where
# shapes depend on the counts, and the captured graph is differentiated by the registered gradient.
@torch.library.custom_op("fieldguide::log_likelihood", mutates_args=())
def _captured(model: str, softmax: bool, counts: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return log_likelihood(model, softmax, counts, parameters, slopes=True, dense=_dense(counts))


@_captured.register_fake
def _(model, softmax, counts, parameters):
    shape = broadcast(counts, *parameters)
    slopes = [(*shape[:-1], 1) if softmax and i == 1 else shape for i in range(len(parameters))]
    return [parameters[0].new_empty(s) for s in (shape[:-1], *slopes)]


def _remember(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.shapes = [p.shape for p in inputs[3]]
    ctx.save_for_backward(*output[1:])


def _captured_backward(ctx, grads):
    if any(grad is not None for grad in grads[1:]):
        raise RuntimeError("the likelihoods of counts have first derivatives only")
    return None, None, None, _pull(grads[0], ctx.saved_tensors, ctx.shapes)


_captured.register_autograd(_captured_backward, setup_context=_remember)


# ---- distributions ----------------------------------------------------------------------------------------
class _Counts(TorchDistribution):
    """Shared part: shapes, lazy expansion, the two forms of the mean, and the log probability."""

    arg_constraints = {}  # of each instance: its own parameters  # pyright: ignore[reportAssignmentType]
    has_rsample = False
    support = constraints.independent(constraints.nonnegative_integer, 1)  # pyright: ignore[reportAssignmentType]
    _model: str

    def __init__(self, parameters: dict[str, Tensor], validate_args: bool | None) -> None:
        for name, parameter in parameters.items():
            setattr(self, name, parameter)
        vars(self)["arg_constraints"] = dict.fromkeys(parameters, constraints.real_vector)
        self._softmax, self.parameters = "logits" in parameters, list(parameters.values())
        shape = broadcast(*self.parameters)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @classmethod
    def _from_logits(cls, validate_args: bool | None, **parameters: Tensor):
        new = cls.__new__(cls)
        _Counts.__init__(new, parameters, validate_args)
        return new

    @lazy_property
    def log_mean(self) -> Tensor:
        """Natural log of mu [..., B, G]."""
        return torch.log_softmax(self.logits, -1) + self.log_library

    def expand(self, batch_shape, _instance=None):
        """Return self if the shape is this already; otherwise a copy of that shape, sharing parameters."""
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        old = (1,) * (len(batch_shape) - len(self.batch_shape)) + self.batch_shape
        if len(old) > len(batch_shape) or any(o not in (1, n) for o, n in zip(old, batch_shape, strict=True)):
            raise ValueError(f"batch shape {tuple(self.batch_shape)} does not expand to {tuple(batch_shape)}")
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts of each cell, summed over genes.

        Parameters
        ----------
        value : Tensor [..., B, G]
            Counts of any dtype.

        Returns
        -------
        Tensor [..., B]

        Raises
        ------
        ValueError
            If the number of genes differs or, with validation on, a count is negative, not whole or NaN.
        """
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"counts of shape {tuple(value.shape)} do not end in {self.event_shape[0]} genes")
        if self._validate_args:
            self._validate_sample(value)
        if torch.compiler.is_compiling():
            out = _captured(self._model, self._softmax, value, self.parameters)[0]
        elif torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters):
            out = _LogLikelihood.apply(self._model, self._softmax, value, *self.parameters)
        else:
            call = (self._model, self._softmax, value, self.parameters)
            out = log_likelihood(*call, slopes=False, dense=_dense(value))[0]
        if out.shape == self.batch_shape:
            return out
        return out.expand(torch.broadcast_shapes(out.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts [*sample_shape, ..., B, G], in the dtype of the parameters."""
        with torch.no_grad():
            return self._draw(self._extended_shape(torch.Size(sample_shape)))

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.poisson(self._mu.expand(shape))

    @property
    def _mu(self) -> Tensor:
        return torch.exp(self.log_mean)

    def _full(self, moment: Tensor) -> Tensor:
        return moment.expand(self.batch_shape + self.event_shape)


class Poisson(_Counts):
    r"""Poisson counts of many genes: log p(x) = sum over genes of x log mu - mu - log x!.

    Parameters
    ----------
    log_mean : Tensor [..., B, G]
        Natural log of mu.
    validate_args : bool, optional
        Check parameters and counts; by default as torch and Pyro are set (``pyro.enable_validation``).

    Examples
    --------
    >>> import torch
    >>> Poisson(torch.zeros(2, 3)).log_prob(torch.zeros(2, 3))
    tensor([-3., -3.])
    """

    _model = "poisson"

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None) -> None:
        super().__init__({"log_mean": log_mean}, validate_args)

    @classmethod
    def from_logits(cls, logits: Tensor, log_library: Tensor, validate_args: bool | None = None) -> "Poisson":
        """Mean softmax(logits) * exp(log_library); see `NegativeBinomial.from_logits`."""
        return cls._from_logits(validate_args, logits=logits, log_library=log_library)

    @property
    def mean(self) -> Tensor:
        """mu [..., B, G]."""
        return self._full(self._mu)

    @property
    def variance(self) -> Tensor:
        """mu [..., B, G]."""
        return self.mean

    @property
    def zero_probability(self) -> Tensor:
        """Probability of a zero, exp(-mu) [..., B, G]."""
        return self._full(torch.exp(-self._mu))


class NegativeBinomial(_Counts):
    r"""Negative binomial counts of many genes: Poisson, at a rate that is Gamma with mean mu and shape theta.

    For each gene, with R(x, theta) = sum over 0 < k < x of log(1 + k / theta)::

        log p(x) = x log mu - (x + theta) log(1 + mu / theta) + R(x, theta) - log x!

    Parameters
    ----------
    log_mean : Tensor [..., B, G]
        Natural log of mu.
    log_dispersion : Tensor [G] or broadcastable to [..., B, G]
        Natural log of the inverse dispersion theta: the variance is mu + mu^2 / theta. Never expanded.
        Values beyond 1e-25 and 1e25 act as these.
    validate_args : bool, optional
        Check parameters and counts; by default as torch and Pyro are set (``pyro.enable_validation``).

    Notes
    -----
    Non-zero counts are computed in float64 from the parameters as given: the log probability is as exact as
    float32 can hold, also for counts of 1e5, and the slope in log_dispersion does not cancel as theta grows.

    References
    ----------
    Lopez, Regier, Cole, Jordan, Yosef (2018), "Deep generative modeling for single-cell transcriptomics",
    Nature Methods 15.

    Examples
    --------
    >>> import torch
    >>> nb = NegativeBinomial(torch.full((2, 3), 2.0).log(), torch.zeros(3))
    >>> nb.batch_shape, nb.event_shape
    (torch.Size([2]), torch.Size([3]))
    >>> nb.log_prob(torch.zeros(2, 3)).exp()  # (theta / (theta + mu))^theta = 1/3 for each of three genes
    tensor([0.0370, 0.0370])
    """

    _model = "nb"

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor, validate_args: bool | None = None) -> None:
        super().__init__({"log_mean": log_mean, "log_dispersion": log_dispersion}, validate_args)

    @classmethod
    def from_logits(
        cls, logits: Tensor, log_library: Tensor, log_dispersion: Tensor, validate_args: bool | None = None
    ) -> "NegativeBinomial":
        """Mean softmax(logits) * exp(log_library), with the softmax inside the same autograd node.

        Equal to log_mean = log_softmax(logits) + log_library, but it keeps two [..., B, G] matrices for the
        gradient, not three, and is faster on large minibatches.

        Parameters
        ----------
        logits : Tensor [..., B, G]
        log_library : Tensor [..., B, 1]
            Natural log of the expected total count of each cell.
        log_dispersion : Tensor [G] or broadcastable to [..., B, G]
        validate_args : bool, optional
        """
        return cls._from_logits(validate_args, logits=logits, log_library=log_library, log_dispersion=log_dispersion)

    @property
    def mean(self) -> Tensor:
        """mu [..., B, G]."""
        return self._full(self._mu)

    @property
    def variance(self) -> Tensor:
        """mu + mu^2 / theta [..., B, G]."""
        return self._full(self._mu + self._mu.square() / self._theta)

    @property
    def zero_probability(self) -> Tensor:
        """Probability of a zero, (theta / (theta + mu))^theta [..., B, G]."""
        return self._full(torch.exp(-self._theta * torch.log1p(self._mu / self._theta)))

    @property
    def _theta(self) -> Tensor:
        return self.log_dispersion.clamp(-LIMIT, LIMIT).exp()

    def _draw(self, shape):
        return torch.poisson(torch._standard_gamma(self._theta.expand(shape)) * (self._mu / self._theta))


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Negative binomial counts, each replaced by zero with probability pi = sigmoid(gate_logits).

    For each gene::

        log p(0) = log(pi + (1 - pi) NB(0)),    log p(x > 0) = log(1 - pi) + log NB(x)

    Parameters
    ----------
    log_mean : Tensor [..., B, G]
        Natural log of mu, the mean before inflation.
    log_dispersion : Tensor [G] or broadcastable to [..., B, G]
        Natural log of the inverse dispersion theta. Never expanded.
    gate_logits : Tensor [..., B, G] or broadcastable
        Logit of pi; minus infinity gives the negative binomial.
    validate_args : bool, optional
        Check parameters and counts; by default as torch and Pyro are set (``pyro.enable_validation``).

    See Also
    --------
    NegativeBinomial : notes on precision, references.
    """

    _model = "zinb"

    def __init__(
        self, log_mean: Tensor, log_dispersion: Tensor, gate_logits: Tensor, validate_args: bool | None = None
    ) -> None:
        parameters = {"log_mean": log_mean, "log_dispersion": log_dispersion, "gate_logits": gate_logits}
        _Counts.__init__(self, parameters, validate_args)

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        log_library: Tensor,
        log_dispersion: Tensor,
        gate_logits: Tensor,
        validate_args: bool | None = None,
    ) -> "ZeroInflatedNegativeBinomial":
        """Mean softmax(logits) * exp(log_library); see `NegativeBinomial.from_logits`."""
        others = {"log_dispersion": log_dispersion, "gate_logits": gate_logits}
        return cls._from_logits(validate_args, logits=logits, log_library=log_library, **others)

    @property
    def mean(self) -> Tensor:
        """(1 - pi) mu [..., B, G]."""
        return torch.sigmoid(-self.gate_logits) * super().mean

    @property
    def variance(self) -> Tensor:
        """(1 - pi) (mu + mu^2 / theta + pi mu^2) [..., B, G]."""
        closed = torch.sigmoid(self.gate_logits)
        return (1 - closed) * (super().variance + closed * self._mu.square())

    @property
    def zero_probability(self) -> Tensor:
        """Probability of a zero of either kind [..., B, G]."""
        closed = torch.sigmoid(self.gate_logits)
        return closed + (1 - closed) * super().zero_probability

    def _draw(self, shape):
        return super()._draw(shape) * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(shape))


LIKELIHOODS: dict[str, Any] = {
    "nb": NegativeBinomial,
    "zinb": ZeroInflatedNegativeBinomial,
    "poisson": Poisson,
}
"""The distributions by the names that entries take; parameters of ``from_logits`` in the order of the classes."""
