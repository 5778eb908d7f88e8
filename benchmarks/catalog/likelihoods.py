"""Count likelihoods: speed beside torch, Pyro and the textbook formula, and accuracy against 50 digits.

Speed: forward and backward from gene logits (softmax and library size included) to the summed log likelihood;
CPU microseconds per cell on one thread, the ways taken in turn, the median over rounds. Nothing is published
on it; for scale, the textbook formula is what scvi-tools evaluates.

Accuracy: largest error of value and slopes over counts 0 to 1e5, means near and far, theta 1e-3 to 1e6, at
the inputs as they are rounded, relative to max(1, |exact|).
"""

import argparse
import itertools
import math
import statistics
import time

import mpmath
import pyro.distributions as dist
import torch
import torch.nn.functional as F

from fieldguide.catalog.parts.likelihoods import NegativeBinomial, ZeroInflatedNegativeBinomial


def textbook(counts, mean, log_theta, gate=None):
    """Difference of log-gamma functions on every entry, 1e-8 inside the logs; [..., B, G]."""
    theta = log_theta.exp()
    log_sum = torch.log(theta + mean + 1e-8)
    out = theta * (log_theta - log_sum) + counts * (torch.log(mean + 1e-8) - log_sum)
    out = out + torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    if gate is None:
        return out
    zero = F.softplus(theta * (log_theta - log_sum) - gate) - F.softplus(-gate)
    return torch.where(counts < 0.5, zero, out - gate - F.softplus(-gate))


def library_distribution(counts, mean, log_theta, gate=None):
    """torch's negative binomial, inside Pyro's zero inflation; [..., B, G]."""
    logits = (mean + 1e-8).log() - log_theta
    base = dist.NegativeBinomial(log_theta.exp(), logits=logits, validate_args=False)
    if gate is not None:
        base = dist.ZeroInflatedDistribution(base, gate_logits=gate, validate_args=False)
    return base.log_prob(counts)


def ours(counts, logits, log_library, log_theta, gate=None):
    log_mean = torch.log_softmax(logits, -1) + log_library
    if gate is None:
        return NegativeBinomial(log_mean, log_theta, validate_args=False).log_prob(counts)
    return ZeroInflatedNegativeBinomial(log_mean, log_theta, gate, validate_args=False).log_prob(counts)


def ours_from_logits(counts, logits, log_library, log_theta, gate=None):
    if gate is None:
        d = NegativeBinomial.from_logits(logits, log_library, log_theta, validate_args=False)
    else:
        d = ZeroInflatedNegativeBinomial.from_logits(logits, log_library, log_theta, gate, validate_args=False)
    return d.log_prob(counts)


def with_mean(function):
    return lambda counts, logits, log_library, *rest: function(
        counts, torch.softmax(logits, -1) * log_library.exp(), *rest
    )


WAYS = {
    "torch / Pyro distribution": with_mean(library_distribution),
    "textbook formula": with_mean(textbook),
    "fieldguide, log_mean": ours,
    "fieldguide, from_logits": ours_from_logits,
}


def speed(options):
    print(f"CPU microseconds per cell, forward and backward, {options.genes} genes, {options.zeros:.0%} zeros")
    for cells, gated in itertools.product(options.cells, (False, True)):
        shape = (cells, options.genes)
        counts = 1 + torch.poisson(torch.full(shape, 0.6))
        counts[torch.rand(shape) < options.zeros] = 0
        log_library = counts.sum(-1, keepdim=True).log()
        parameters = [torch.randn(shape, requires_grad=True), torch.randn(options.genes, requires_grad=True)]
        parameters += [torch.randn(shape, requires_grad=True)] if gated else []

        def step(way, counts=counts, log_library=log_library, parameters=parameters):
            for p in parameters:
                p.grad = None
            start = time.process_time()
            WAYS[way](counts, parameters[0], log_library, *parameters[1:]).sum().backward()
            return (time.process_time() - start) / len(counts) * 1e6

        times = {way: [] for way in WAYS}
        for turn in range(options.rounds + 1):
            for way in WAYS:
                taken = step(way)
                if turn:  # the first round warms up
                    times[way].append(taken)
        base = statistics.median(times["textbook formula"])
        for way, taken in times.items():
            median = statistics.median(taken)
            print(
                f"  batch {cells:5d}  {'ZINB' if gated else 'NB':4s}  {way:26s} {median:7.1f} "
                f"(least {min(taken):6.1f})   {base / median:4.1f} x textbook"
            )


def exact(x, log_mean, log_theta):
    """Value of NB and its slopes in log mu and log theta, 50 digits."""
    with mpmath.workdps(50):
        mean, theta = mpmath.exp(mpmath.mpf(log_mean)), mpmath.exp(mpmath.mpf(log_theta))
        log_zero = theta * mpmath.log(theta / (theta + mean))
        value = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        value += log_zero + x * mpmath.log(mean / (theta + mean))
        slope = theta * (mpmath.digamma(x + theta) - mpmath.digamma(theta) + (mean - x) / (theta + mean))
        return [value, (x - mean) * theta / (theta + mean), slope + log_zero]


def accuracy():
    print("\nlargest error relative to max(1, |exact|): NB value / slope in log mu / slope in log theta")
    ranges = {"x <= 8": (0, 1, 2, 5, 8), "x <= 300": (9, 30, 300), "x <= 1e5": (1000, 10_000, 100_000)}
    print(f"  {'':8s} {'theta':>6s}  {'fieldguide float32':30s} {'textbook float32':30s} fieldguide float64")
    for (name, counts), theta in itertools.product(ranges.items(), (1e-3, 0.1, 1.0, 1e2, 1e4, 1e6)):
        points = [(x, m) for x in counts for m in (0.01, 1.0, max(x, 1) * 1.1, max(x, 1) * 5.0)]
        cells = []
        for dtype, function in (
            (torch.float32, None),
            (torch.float32, textbook),
            (torch.float64, None),
        ):

            def column(values, dtype=dtype):
                return torch.tensor(values, dtype=torch.float64).to(dtype)[:, None]

            x = column([float(x) for x, _ in points])
            log_mean = column([math.log(m) for _, m in points]).requires_grad_()
            log_theta = column([math.log(theta)] * len(points)).requires_grad_()
            if function is None:
                value = NegativeBinomial(log_mean, log_theta, validate_args=False).log_prob(x)
            else:
                value = function(x, log_mean.exp(), log_theta).squeeze(-1)
            got = [value, *torch.autograd.grad(value.sum(), (log_mean, log_theta))]
            inputs = zip(x.flatten().tolist(), log_mean.flatten().tolist(), log_theta.flatten().tolist(), strict=True)
            expected = zip(*(exact(*point) for point in inputs), strict=True)
            cells.append(
                [
                    max(float(abs(g - e) / max(1, abs(e))) for g, e in zip(gs.flatten().tolist(), es, strict=True))
                    for gs, es in zip(got, expected, strict=True)
                ]
            )
        print(f"  {name:8s} {theta:6.0e}  " + " ".join(f"{' / '.join(f'{e:.0e}' for e in c):30s}" for c in cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[128, 1024], help="cells in a minibatch")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--zeros", type=float, default=0.92)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    speed(options)
    accuracy()


if __name__ == "__main__":
    main()
