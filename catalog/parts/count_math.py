"""Log probabilities of counts and their slopes: plain tensor functions, no distribution and no autograd.

Notation: count x, mean mu, inverse dispersion theta (variance mu + mu^2 / theta), structural zeros with
probability pi.

    Poisson   log p(x) = x log mu - mu - log x!
    NB        log p(x) = x log mu - (x + theta) log(1 + mu / theta) + R(x, theta) - log x!
              R(x, theta) = sum over 0 < k < x of log(1 + k / theta)
    ZINB      log p(0) = log(pi + (1 - pi) NB(0)),   log p(x > 0) = log(1 - pi) + log NB(x)

R equals log Gamma(x + theta) - log Gamma(theta) - x log theta, a difference that loses all digits of float32
for large theta. It is never taken: as theta grows, NB becomes the Poisson formula term by term.

An *entry* is one gene in one cell. Most counts are zeros, so the work is split:

- ``zeros_*``: what each entry would contribute if its count were 0; whole matrices, in the parameters' dtype;
- ``entries_*``: the formula for any count, in float64, run at the non-zero counts only, or everywhere
  (``dense=True``: no shape depends on the data, and an accelerator never waits for the host).

Both give the same list: log probability, then its slopes in log mu, log theta and the logit of pi.

References
----------
Lopez, Regier, Cole, Jordan, Yosef (2018), "Deep generative modeling for single-cell transcriptomics", Nature
Methods 15.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

FEW = 8  # counts up to FEW use finite sums; above, Stirling's series at arguments above FEW
LIMIT = math.log(1e25)  # theta is kept within 1e-25 and 1e25, and so mu / theta within the range of float32


# ---- special functions of counts, float64 -----------------------------------------------------------------
def positions(x: Tensor, test: Callable) -> Tensor:
    """Flat positions at which ``test(x)`` holds; on a CPU numpy finds them much faster than torch."""
    x = x.detach().reshape(-1)
    if x.device.type != "cpu":
        return test(x).nonzero().squeeze(-1)
    return torch.from_numpy(np.flatnonzero(test(x.numpy())))


def add_above(
    least: int, outs: list[Tensor], function: Callable, x: Tensor, *others: Tensor, dense: bool
) -> list[Tensor]:
    """Add the outputs of ``function(x, *others, dense)`` to `outs` where `x` is above `least`.

    The function sees only the elements it is needed for, unless `dense`. `others` may have dimensions before those of
    `x`, and `outs` before those of both: what all particles have in common is computed once.
    """
    if dense:
        mores = function(x, *others, dense)
        return [out + torch.where(x > least, more, 0.0) for out, more in zip(outs, mores, strict=True)]
    at = positions(x, lambda x: x > least)
    if not len(at):
        return outs
    for out, more in zip(outs, function(x[at], *(other[..., at] for other in others), dense), strict=True):
        if out.dim() == 1:
            out.index_add_(0, at, more)
        else:
            spread = more.new_zeros(*more.shape[:-1], len(x))
            spread[..., at] = more
            out.add_(spread)
    return outs


def log_coefficient(x: Tensor, theta: Tensor, dense: bool) -> list[Tensor]:
    """R(x, theta) - log x!, and its slope in log theta: minus the sum over 0 < k < x of k / (theta + k).

    The slope tends to 0 like 1 / theta.
    """
    product, slope = torch.ones_like(theta), torch.zeros_like(theta)
    for k in torch.arange(1, FEW, dtype=x.dtype, device=x.device).split(1 if dense else FEW):
        k = k.view(-1, *[1] * theta.dim())
        term = (x - k).clamp_(0, 1).mul_(k)  # k where k < x, else 0: counts are whole numbers
        step = term / theta
        factor = step + 1
        product *= (factor / term.add_(1)).prod(0)  # (1 + k / theta) / (1 + k)
        slope -= step.div_(factor).sum(0)
    return add_above(FEW, [product.log_(), slope], _further_terms, x, theta, dense=dense)


def _further_terms(x: Tensor, theta: Tensor, dense: bool) -> list[Tensor]:
    """Terms FEW <= k < x of `log_coefficient`: Stirling's series between theta + FEW and theta + x."""
    low, high, terms = theta + FEW, theta + x, x - FEW
    growth = torch.log1p(terms / low)  # log(high / low)
    log_gamma = (low - 0.5) * growth - terms + _log_gamma_tail(high) - _log_gamma_tail(low)
    digamma = growth + _digamma_tail(high) - _digamma_tail(low)
    log_factorials = torch.lgamma(x + 1) - math.lgamma(FEW + 1)
    return [terms * torch.log1p(x / theta) + log_gamma - log_factorials, theta * digamma - terms]


def _log_gamma_tail(z: Tensor) -> Tensor:
    """log Gamma(z) - [(z - 1/2) log z - z + log(2 pi) / 2], within 2e-14 for z >= 8."""
    w = 1 / (z * z)
    series = w / 156 - 691 / 360360
    for coefficient in (1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series.mul_(w).add_(coefficient)
    return series.div_(z)


def _digamma_tail(z: Tensor) -> Tensor:
    """digamma(z) - log z, within 2e-14 for z >= 8."""
    w = 1 / (z * z)
    series = 691 / 32760 - w / 12
    for coefficient in (-1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12):
        series = series.mul_(w).add_(coefficient)
    return series.mul_(w).sub_(0.5 / z)


# ---- entries: any count, float64 --------------------------------------------------------------------------
# x [n]; a parameter [n], or [K, n] where the particles differ in it.
def entries_poisson(x: Tensor, log_mean: Tensor, dense: bool) -> list[Tensor]:
    """Log probability and slope in log mu."""
    mean = log_mean.exp()
    (value,) = add_above(1, [x * log_mean - mean], _minus_log_factorial, x, dense=dense)
    return [value, x - mean]


def _minus_log_factorial(x: Tensor, dense: bool) -> list[Tensor]:
    return [-torch.lgamma(x + 1)]


def entries_nb(x: Tensor, log_mean: Tensor, log_theta: Tensor, dense: bool) -> list[Tensor]:
    """Log probability and slopes in log mu and log theta."""
    mean, theta = log_mean.exp(), log_theta.exp()
    ratio = mean / theta
    log_ratio = torch.log1p(ratio)
    stay = 1 / (1 + ratio)  # theta / (theta + mu)
    move = ratio * stay  # mu / (theta + mu)
    value = x * log_mean - (x + theta) * log_ratio
    slope = theta * (move - log_ratio) + x * move
    value, slope = add_above(1, [value, slope], log_coefficient, x, theta, dense=dense)
    return [value, (x - mean) * stay, slope]


def entries_zinb(x: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor, dense: bool) -> list[Tensor]:
    """Log probability and slopes in log mu, log theta and the logit of pi."""
    value, mean_slope, theta_slope = entries_nb(x, log_mean, log_theta, dense)
    closed, log_open = torch.sigmoid(gate), torch.sigmoid(-gate).log_()
    if dense or not x.all():
        zero = x == 0
        share = torch.where(zero, torch.sigmoid(value - gate), 1.0)  # P(not a structural zero | x)
        value = torch.where(zero, torch.logaddexp(value, gate), value)
        return [value + log_open, mean_slope * share, theta_slope * share, (1 - share) - closed]
    return [value + log_open, mean_slope, theta_slope, -closed]


# ---- the mean: its log, or softmax(logits) * library ------------------------------------------------------
class LogMean:
    """Mean given by ``log_mean`` [..., B, G]."""

    def __init__(self, log_mean: Tensor) -> None:
        self.log_mean = log_mean

    def fill(self, shape: torch.Size) -> Tensor:
        """mu of the given [..., B, G] shape, in a new contiguous buffer."""
        return torch.exp(self.log_mean.expand(shape), out=self.log_mean.new_empty(shape))

    def log(self, pick: Callable) -> Tensor:
        """log mu of the picked entries, float64."""
        return pick(self.log_mean)

    def pull(self, slope: Tensor) -> list[Tensor]:
        """Slopes in the parameters of the mean from the slope in log mu, whose buffer may be reused."""
        return [slope]


class SoftmaxMean:
    """Mean softmax(logits) * exp(log_library), with ``logits`` [..., B, G] and ``log_library`` [..., B, 1].

    One exponential an entry serves the softmax, the mean and both gradients; log mu is never stored.
    """

    def __init__(self, logits: Tensor, log_library: Tensor) -> None:
        self.logits, self.log_library = logits, log_library
        self.share = torch.softmax(logits, -1)

    def fill(self, shape):
        return torch.mul(self.share.expand(shape), self.log_library.exp(), out=self.share.new_empty(shape))

    def log(self, pick):
        log_share = pick(self.share).log()
        if pick.dense or (log_share < -85).any():  # the smallest float32 with full precision is e^-87
            log_share = pick(torch.log_softmax(self.logits.double(), -1))
        return log_share + pick(self.log_library)

    def pull(self, slope):
        total = slope.sum(-1, keepdim=True)
        return [slope.addcmul_(self.share, total, value=-1), total]


# ---- zeros: every entry as if its count were 0, dtype of the parameters -----------------------------------
# Generators: first the log probabilities; then, if asked for more, the slopes. Buffers are reused on the way:
# the caller is done with the first answer when it asks for the second.
def zeros_poisson(shape: torch.Size, mean: LogMean | SoftmaxMean) -> Iterator:
    """Log probability -mu; slope -mu."""
    minus_mean = mean.fill(shape).neg_()
    yield minus_mean.clone()
    yield [minus_mean]


def zeros_nb(shape: torch.Size, mean: LogMean | SoftmaxMean, log_theta: Tensor) -> Iterator:
    """Log probability -theta log(1 + mu / theta); slopes in log mu and log theta."""
    theta = log_theta.exp()
    ratio = mean.fill(shape).div_(theta)
    value = torch.log1p(ratio).mul_(-theta)
    yield value
    slope = torch.div(-theta, ratio.reciprocal_().add_(1), out=ratio)  # -theta mu / (theta + mu)
    yield [slope, value.sub_(slope)]


def zeros_zinb(shape: torch.Size, mean: LogMean | SoftmaxMean, log_theta: Tensor, gate: Tensor) -> Iterator:
    """Log probability log(pi + (1 - pi) NB(0)); slopes in log mu, log theta and the logit of pi."""
    nb = zeros_nb(shape, mean, log_theta)
    nb_value = next(nb)
    closed = torch.sigmoid(gate).expand(shape)
    share = nb_value.exp()
    share.addcmul_(share, closed, value=-1)  # (1 - pi) NB(0)
    total = torch.add(share, closed, out=torch.empty_like(share))
    yield total.log()
    share.div_(total)
    gate_slope = torch.div(closed, total, out=total).sub_(closed)
    yield [*(slope.mul_(share) for slope in next(nb)), gate_slope]


# ---- both together ----------------------------------------------------------------------------------------
MODELS = {
    "poisson": (zeros_poisson, entries_poisson),
    "nb": (zeros_nb, entries_nb),
    "zinb": (zeros_zinb, entries_zinb),
}


class Pick:
    """Reads tensors, broadcast to `shape`, as float64: at the non-zero `counts`, or (`dense`) everywhere.

    The n counts are found once for all K particles: [n] is read where the particles agree, [K, n] where they differ.
    """

    def __init__(self, counts: Tensor, shape: torch.Size, dense: bool) -> None:
        self.shape, self.dense = shape, dense
        if dense:
            self.x = counts.expand(shape).double()
            return
        self.inner = shape[len(shape) - counts.dim() :]
        if counts.shape != self.inner:
            counts, self.inner = counts.expand(shape), shape
        self.one = self.at = positions(counts, lambda x: x != 0)
        self.x = counts.reshape(-1)[self.one].double()
        copies = math.prod(shape) // max(1, counts.numel())
        if copies > 1:
            self.at = self.one + counts.numel() * torch.arange(copies, device=self.one.device)[:, None]

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.dense:
            return tensor.expand(self.shape).double()
        lead = tensor.dim() - len(self.inner)
        if math.prod(tensor.shape[: max(lead, 0)]) == 1:
            tensor = tensor.reshape(tensor.shape[max(lead, 0) :]).expand(self.inner)
            return torch.take(tensor, self.one).double()
        return torch.take(tensor.expand(self.shape), self.at).double()

    def put(self, buffer: Tensor, values: Tensor) -> Tensor:
        """Write what was computed at the picked entries into a contiguous buffer of `shape`."""
        values = values.to(buffer.dtype).expand(self.at.shape)
        buffer.view(-1).scatter_(0, self.at.reshape(-1), values.reshape(-1))
        return buffer


def broadcast(*tensors: Tensor) -> torch.Size:
    """Shape that tensors broadcast to; torch's own function takes as long as a sweep over a minibatch."""
    longest = max((t.shape for t in tensors), key=len)
    if all(n in (1, m) for t in tensors for n, m in zip(reversed(t.shape), reversed(longest), strict=False)):
        return longest
    return torch.broadcast_shapes(*(t.shape for t in tensors))


def log_likelihood(
    model: str, softmax: bool, counts: Tensor, parameters: Sequence[Tensor], slopes: bool, dense: bool
) -> list[Tensor]:
    """Log likelihood of each cell, and the slope of each entry in each parameter.

    Parameters
    ----------
    model : {"poisson", "nb", "zinb"}
    softmax : bool
        Whether the mean is given as logits and log library instead of its log.
    counts : Tensor [..., B, G]
        Non-negative whole numbers of any dtype.
    parameters : sequence of Tensor
        (log_mean,) or (logits, log_library), then log_dispersion (nb, zinb) and gate_logits (zinb); they
        broadcast against each other and `counts`.
    slopes : bool
        Whether to return the slopes.
    dense : bool
        Run the float64 formula everywhere rather than at the non-zero counts.

    Returns
    -------
    list of Tensor
        Log likelihood [..., B], summed over genes; then, if `slopes`, one [..., B, G] per parameter
        ([..., B, 1] for log_library), not summed over the dimensions along which a parameter is broadcast.
    """
    zeros, entries = MODELS[model]
    shape = broadcast(counts, *parameters)
    split = 2 if softmax else 1
    mean = SoftmaxMean(*parameters[:2]) if softmax else LogMean(parameters[0])
    others = list(parameters[split:])
    if model != "poisson":
        others[0] = others[0].clamp(-LIMIT, LIMIT)
    if model == "zinb" and others[1].numel() and not dense:
        dense = bool(others[1].min() < -LIMIT)  # zeros_zinb needs pi itself, too small for float32
    dtype = parameters[0].dtype
    pick = Pick(counts, shape, dense)
    x, log_mean = pick.x, mean.log(pick)
    if dense:
        log_mean = torch.where(x == 0, log_mean.clamp(min=-1e6), log_mean)  # mu = 0: 0 log 0 is 0
        value, *out = (entry.to(dtype) for entry in entries(x, log_mean, *map(pick, others), dense=True))
        total = value.sum(-1)
    else:
        exact = entries(x, log_mean, *map(pick, others), dense=False)
        steps = zeros(shape, mean, *others)
        total = pick.put(next(steps), exact[0]).sum(-1)
        out = [pick.put(slope, e) for slope, e in zip(next(steps), exact[1:], strict=True)] if slopes else []
    return [total, *mean.pull(out[0]), *out[1:]] if slopes else [total]
