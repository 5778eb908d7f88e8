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
LOG_FACTORIALS = torch.tensor([math.log(math.factorial(x)) for x in range(FEW + 1)], dtype=torch.float64)
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

    The function sees only the elements it is needed for, unless `dense`.
    """
    if dense:
        mores = function(x, *others, dense)
        return [out + torch.where(x > least, more, 0.0) for out, more in zip(outs, mores, strict=True)]
    at = positions(x, lambda x: x > least)
    if len(at):
        for out, more in zip(outs, function(x[at], *(other[at] for other in others), dense), strict=True):
            out.index_add_(0, at, more)
    return outs


def log_factorial(x: Tensor, dense: bool) -> list[Tensor]:
    """log x!, of float64 counts."""
    if dense:
        return [torch.lgamma(x + 1)]
    few = LOG_FACTORIALS[x.clamp(max=FEW).long()]
    return add_above(FEW, [few], lambda x, dense: [torch.lgamma(x + 1) - LOG_FACTORIALS[FEW]], x, dense=False)


def rising(x: Tensor, theta: Tensor, dense: bool) -> list[Tensor]:
    """R(x, theta) and its slope in log theta, minus the sum over 0 < k < x of k / (theta + k).

    Both vanish for x <= 1, and tend to 0 like 1 / theta.
    """
    logs, ratios = torch.ones_like(x), torch.zeros_like(x)
    for k in torch.arange(1, FEW, dtype=x.dtype, device=x.device).split(1 if dense else FEW):
        k = k.view(-1, *[1] * x.dim())
        step = (x - k).clamp_(0, 1).mul_(k).div_(theta)  # k / theta where k < x, else 0: counts are integers
        factor = step + 1
        logs *= factor.prod(0)
        ratios -= step.div_(factor).sum(0)
    return add_above(FEW, [logs.log_(), ratios], _stirling, x, theta, dense=dense)


def _stirling(x: Tensor, theta: Tensor, dense: bool) -> list[Tensor]:
    """Terms FEW <= k < x of `rising`: differences of Stirling's series between theta + FEW and theta + x."""
    low, high, terms = theta + FEW, theta + x, x - FEW
    growth = torch.log1p(terms / low)  # log(high / low)
    log_gamma = (low - 0.5) * growth - terms + _log_gamma_tail(high) - _log_gamma_tail(low)
    digamma = growth + _digamma_tail(high) - _digamma_tail(low)
    return [terms * torch.log1p(x / theta) + log_gamma, theta * digamma - terms]


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
def entries_poisson(x: Tensor, log_mean: Tensor, dense: bool) -> list[Tensor]:
    """Log probability and slope in log mu."""
    mean = log_mean.exp()
    value = x * log_mean - mean
    (log_factorials,) = add_above(1, [torch.zeros_like(value)], log_factorial, x, dense=dense)
    return [value - log_factorials, x - mean]


def _nb_terms(x, theta, dense):
    total, slope = rising(x, theta, dense)
    return [total - log_factorial(x, dense)[0], slope]


def entries_nb(x: Tensor, log_mean: Tensor, log_theta: Tensor, dense: bool) -> list[Tensor]:
    """Log probability and slopes in log mu and log theta."""
    mean, theta = log_mean.exp(), log_theta.exp()
    ratio = mean / theta
    log_ratio = torch.log1p(ratio)
    stay = 1 / (1 + ratio)  # theta / (theta + mu)
    move = ratio * stay  # mu / (theta + mu)
    value = x * log_mean - (x + theta) * log_ratio
    slope = theta * (move - log_ratio) + x * move
    value, slope = add_above(1, [value, slope], _nb_terms, x, theta, dense=dense)
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

    def over(self, log_theta: Tensor | None, shape: torch.Size) -> Tensor:
        """mu / theta (or mu) of the given [..., B, G] shape, in a new buffer."""
        if log_theta is None:
            return self.log_mean.expand(shape).exp()
        return torch.sub(self.log_mean.expand(shape), log_theta).exp_()

    def log(self, pick: Callable) -> Tensor:
        """log mu of the picked entries, float64."""
        return pick(self.log_mean)

    def pull(self, slope: Tensor) -> list[Tensor]:
        """Slopes in the parameters of the mean from the slope in log mu, whose buffer may be reused."""
        return [slope]


class SoftmaxMean:
    """Mean softmax(logits) * exp(log_library), with ``logits`` [..., B, G] and ``log_library`` [..., B, 1].

    One exponential an entry serves the softmax, the mean and both gradients.
    """

    def __init__(self, logits: Tensor, log_library: Tensor) -> None:
        self.logits, self.log_library = logits, log_library
        self.share = torch.softmax(logits, -1)

    def over(self, log_theta, shape):
        mean = torch.mul(self.share.expand(shape), self.log_library.exp())
        return mean if log_theta is None else mean.mul_(torch.exp(-log_theta))

    def log(self, pick):
        log_share = None if pick.dense else pick(self.share).log()
        if log_share is None or log_share.isneginf().any():  # a share below the smallest float
            log_share = pick(torch.log_softmax(self.logits.double(), -1))
        return log_share + pick(self.log_library)

    def pull(self, slope):
        total = slope.sum(-1, keepdim=True)
        return [slope.addcmul_(self.share, total, value=-1), total]


# ---- zeros: every entry as if its count were 0, dtype of the parameters -----------------------------------
# Generators: first the log probabilities; then, if asked for more, the slopes. Buffers are reused on the way:
# the caller is done with the first answer when it asks for the second.
def zeros_poisson(mean, shape: torch.Size) -> Iterator:
    """Log probability -mu; slope -mu."""
    minus_mean = mean.over(None, shape).neg_()
    yield minus_mean.clone()
    yield [minus_mean]


def zeros_nb(mean, shape: torch.Size, log_theta: Tensor) -> Iterator:
    """Log probability -theta log(1 + mu / theta); slopes in log mu and log theta."""
    minus_theta = -log_theta.exp()
    ratio = mean.over(log_theta, shape)
    value = torch.log1p(ratio).mul_(minus_theta)
    yield value
    slope = torch.div(minus_theta, ratio.reciprocal_().add_(1), out=ratio)  # -theta mu / (theta + mu)
    yield [slope, value.sub_(slope)]


def zeros_zinb(mean, shape: torch.Size, log_theta: Tensor, gate: Tensor) -> Iterator:
    """Log probability log(pi + (1 - pi) NB(0)); slopes in log mu, log theta and the logit of pi."""
    nb = zeros_nb(mean, shape, log_theta)
    nb_value = next(nb)
    closed = torch.sigmoid(gate).expand(shape)
    share = nb_value.exp()
    share.addcmul_(share, closed, value=-1)  # (1 - pi) NB(0)
    total = share + closed
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
    """Reads tensors, broadcast to `shape`, at flat positions `at` or (``at=None``) everywhere, as float64."""

    def __init__(self, shape: torch.Size, at: Tensor | None) -> None:
        self.shape, self.at, self.dense = shape, at, at is None

    def __call__(self, tensor: Tensor) -> Tensor:
        tensor = tensor.expand(self.shape)
        return (tensor if self.at is None else torch.take(tensor, self.at)).double()


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
        Non-negative integers of any dtype.
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
    n_mean = 2 if softmax else 1
    mean = (SoftmaxMean if softmax else LogMean)(*parameters[:n_mean])
    others = parameters[n_mean:]
    shape = torch.broadcast_shapes(counts.shape, *(p.shape for p in parameters))
    dtype = parameters[0].dtype
    if others:
        others = (others[0].clamp(-LIMIT, LIMIT), *others[1:])
    if model == "zinb" and not dense and others[1].numel() and others[1].min() < -LIMIT:
        dense = True  # zeros_zinb works with pi itself, which float32 cannot hold here
    if counts.shape != shape[len(shape) - counts.dim() :]:
        counts = counts.expand(shape)
    if dense:
        pick = Pick(shape, None)
        x, log_mean = pick(counts), mean.log(pick)
        log_mean = torch.where(x == 0, log_mean.clamp(min=-1e6), log_mean)  # mu = 0: 0 log 0 is 0
        value, *out = entries(x, log_mean, *map(pick, others), dense=True)
        value, out = value.sum(-1).to(dtype), [slope.to(dtype) for slope in out]
    else:
        at = positions(counts, lambda x: x != 0)
        x = counts.reshape(-1)[at].double()
        copies = math.prod(shape) // max(1, counts.numel())
        if copies > 1:
            at = (at + counts.numel() * torch.arange(copies, device=at.device)[:, None]).reshape(-1)
            x = x.repeat(copies)
        pick = Pick(shape, at)
        exact = [e.to(dtype) for e in entries(x, mean.log(pick), *map(pick, others), dense=False)]
        steps = zeros(mean, shape, *others)
        value = _put(next(steps), at, exact[0]).sum(-1)
        out = [_put(slope, at, e) for slope, e in zip(next(steps), exact[1:], strict=True)] if slopes else []
    return [value, *mean.pull(out[0]), *out[1:]] if slopes else [value]


def _put(buffer: Tensor, at: Tensor, values: Tensor) -> Tensor:
    buffer.view(-1).scatter_(0, at, values)
    return buffer
