"""What a constraint costs: one training step of scVI with HSIC(z, a column), beside the same step without.

1,024 cells x 2,000 genes, negative binomial, ELBO, one thread. The steps run in one process in alternation; CPU seconds
of a step (draws, loss, measure, backward, Adam): medians over rounds, and the median of the ratios.

"Own pass" takes the gradient of the constraint by a second backward pass through the guide, as measures of decoder
output need; the others share that of the loss. Where the objective has constant draws (chi), the guide runs once more.

Target: the version by random Fourier features within 1.3 times the step without a constraint.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from benchmarks.common import show, verdict
from fieldguide.catalog.scvi import SCVI
from fieldguide.inference import ELBO, IWAE, Chi, Step, hsic
from fieldguide.inference.constraints import Active, Source
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.training.backward import attach

GENES = 2000
OBJECTIVES = {"elbo": ELBO(kl="analytic"), "iwae": IWAE(5), "chi": Chi(5)}
ESTIMATORS = ("none", "rff", "rff, own pass", "block", "unbiased", "v")


class Side:
    """One program with its optimiser and at most one constraint, stepped as the loop does."""

    def __init__(self, estimator, objective, data, cells):
        torch.manual_seed(0)
        self.program = SCVI(n_genes=GENES).train()
        self.groups = self.program.groups()
        self.optimizer = torch.optim.Adam(self.program.parameters(), lr=1e-3, eps=0.01, fused=True)
        self.objective, self.dataset = objective, read(data, None)
        estimator, _, self.own = estimator.partition(", ")
        constraints = [] if estimator == "none" else [hsic("z", "s", estimator=estimator)]
        self.active = Active(constraints, Source(data, self.dataset, np.arange(cells), cells, self.program))
        self.batch = self.dataset.batch(np.arange(cells))

    def step(self):
        step = Step(self.program, self.batch, 10_000)
        loss = self.program.training_loss(step, self.objective)
        measured = self.active.measured(step)
        self.optimizer.zero_grad(set_to_none=True)
        terms, pulls = self.active.terms(measured), []
        if self.own:  # as a measure of the decoder's output would need it
            found = torch.autograd.grad(terms[0][2], self.groups["phi"], retain_graph=True, allow_unused=True)
            pulls = [(p, g) for p, g in zip(self.groups["phi"], found, strict=True) if g is not None]
        else:
            loss, pulls = attach(loss, terms, self.groups)
        loss.backward()
        for parameter, gradient in pulls:
            parameter.grad = parameter.grad + gradient
        self.optimizer.step()


def counts_like_cells(cells):
    """Counts [B, G] with about nine zeros in ten."""
    torch.manual_seed(1)
    counts = torch.poisson(torch.distributions.Gamma(0.1, 0.5).sample((cells, GENES)))
    counts[:, 0] += 1
    return counts


def seconds(objective, cells, rounds):
    """One row an estimator: median CPU seconds of a step, and its ratio to the step without a constraint."""
    data = {"counts": counts_like_cells(cells), "s": torch.randn(cells)}
    sides = {name: Side(name, OBJECTIVES[objective], data, cells) for name in ESTIMATORS}
    times = {name: [] for name in sides}
    for number in range(rounds + 2):
        for name, side in sides.items():
            start = time.process_time()
            side.step()
            if number > 1:  # the first two warm up
                times[name].append(time.process_time() - start)
    rows = []
    for name, found in times.items():
        ratios = [b / a for a, b in zip(times["none"], found, strict=True)]
        row = {"objective": objective, "cells": cells, "estimator": name, "seconds": statistics.median(found)}
        rows.append(row | {"ratio": statistics.median(ratios)})
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cells", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=30)
    p.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in a.objectives for row in seconds(name, a.cells, a.rounds)]
    show(f"CPU seconds of one step, {a.cells} cells x {GENES} genes, medians of {a.rounds}", rows)
    ok = True
    for row in rows:
        if row["estimator"] == "rff" and row["objective"] == "elbo":
            ok &= verdict(
                f"random features: {row['ratio']:.2f} times the step without, at most 1.3", row["ratio"] <= 1.3
            )
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
