"""Annealed importance sampling by Hamiltonian Monte Carlo, for the few cells that no guide covers.

Each particle of a cell is a chain (Neal 2001). It starts at a draw from the model's prior and passes through the
densities p(z) p(x | z)^t for t from 0 to 1. At each step of t its log weight grows by the difference of the two log
densities where the chain is, then one HMC move targets the new density. The final states with these weights stand for
the posterior as the draws of any other proposal do, and the mean weight estimates p(x): without bias for fixed step
sizes. Here they adapt to the past of each chain, as is common.

All chains of all cells move at once: S x b chains for each evaluation of the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from fieldguide.inference.checks.arguments import checked_int, checked_real
from fieldguide.inference.data.minibatches import Dataset
from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.randomness import isolated, stream
from fieldguide.inference.weights.densities import drawn_latents, model_at, per_cell
from fieldguide.inference.weights.tracing import trace_program
from fieldguide.inference.weights.weigh import Proposal, Values, Weights, like_draws

TARGET, FASTER, SLOWER, STEP_SIZES = 0.65, 1.02, 0.98, (1e-4, 0.5)
"""Adaptation of a chain's step size: its running acceptance rate, the factors above and below it, and the limits."""


@dataclass
class Refined:
    """A proposal that takes some cells from chains, and the others from the proposal before.

    Attributes
    ----------
    before : callable
    program : Program
    rows : array of int [n]
        The refined cells, sorted.
    values : dict of str to Tensor [S, n, ...]
        Final states of the chains, by latent site.
    log_weights : Tensor float64 [S, n]
    acceptance : array [n]
        Share of the HMC moves that were accepted.
    """

    before: Proposal
    program: Program
    rows: np.ndarray
    values: Values
    log_weights: Tensor
    acceptance: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __call__(self, batch: Batch, particles: int) -> Weights:
        weights = self.before(batch, particles)
        rows = batch["index"].cpu().numpy()
        inside = np.flatnonzero(np.isin(rows, self.rows))
        if not len(inside):
            return weights
        device, axis = weights.log_p.device, self.program.depth
        here = torch.from_numpy(inside).to(device)
        mine = torch.from_numpy(np.searchsorted(self.rows, rows[inside]))
        values = {n: v.index_select(axis, mine).to(device) for n, v in self.values.items()}
        few = {name: value[here] for name, value in batch.items()}
        model, prior, likelihood = model_at(self.program, few, values)
        log_p = prior + likelihood
        log_q = log_p - self.log_weights[:, mine].to(device)
        return replace(
            weights,
            log_p=weights.log_p.double().index_copy(1, here, log_p),
            log_q=weights.log_q.double().index_copy(1, here, log_q),
            log_likelihood=weights.log_likelihood.double().index_copy(1, here, likelihood),
            draws={
                name: old.index_copy(axis, here, model.nodes[name]["value"].to(old.dtype))
                for name, old in weights.draws.items()
            },
        )


def anneal(
    program: Program,
    dataset: Dataset,
    rows: np.ndarray,
    before: Proposal,
    particles: int,
    seed: int,
    size: int,
    schedule: Sequence[float],
    leapfrog: int,
    step_size: float,
    progress: bool,
) -> Refined:
    """Return a proposal that has S chains for each of some cells, and is the one before for the others.

    Parameters
    ----------
    program : Program
        Its cells must not be coupled.
    dataset : Dataset
    rows : array of int [n]
        The cells, sorted; at least one.
    before : callable
        From a minibatch and S to `Weights`.
    particles : int
        S.
    seed : int
    size : int
        Cells whose chains move at once.
    schedule : sequence of float
        Exponents of the likelihood, see `temperature_schedule`.
    leapfrog, step_size, progress
        See `fieldguide.inference.Posterior.refine`.

    Raises
    ------
    ValueError
        If a latent site is discrete, or outside the data plate, or the cells are coupled.
    """
    parts: list[tuple[Values, Tensor, Tensor]] = []
    device = next(program.parameters()).device
    program.eval()
    with _progress(progress, len(rows) * (len(schedule) - 1)) as advance:
        for number, start in enumerate(range(0, len(rows), size)):
            batch = {k: v.to(device) for k, v in dataset.batch(rows[start : start + size]).items()}
            with (
                pyro.validation_enabled(False),
                isolated(device, stream(seed, "annealing", number)),
                _frozen(program),
            ):
                chains = _Chains(program, batch, particles, leapfrog, step_size)
                for cooler, warmer in zip(schedule[:-1], schedule[1:], strict=True):
                    chains.anneal(cooler, warmer)
                    advance(batch_size(batch))
                parts.append((chains.values(), chains.log_weights.cpu(), chains.acceptance().cpu()))
    values = {n: torch.cat([v[n].cpu() for v, _, _ in parts], program.depth) for n in parts[0][0]}
    log_weights, acceptance = (torch.cat([part[i] for part in parts], -1) for i in (1, 2))
    return Refined(before, program, rows, values, log_weights, acceptance.numpy())


class _Chains:
    """S x b chains, in coordinates without constraints."""

    def __init__(self, program: Program, batch: Batch, particles: int, leapfrog: int, step_size: float) -> None:
        self.program, self.batch, self.leapfrog = program, batch, leapfrog
        with torch.no_grad():
            start = trace_program(program, "model", batch, particles)
        drawn = drawn_latents(start, program)
        self.transforms = {}
        for name in drawn:
            support = start.nodes[name]["fn"].support
            if support.is_discrete:
                raise ValueError(f"site '{name}' is discrete: a chain cannot move it, so its cells cannot be refined")
            self.transforms[name] = biject_to(support)
        self.state: Values = {n: self.transforms[n].inv(v).detach() for n, v in drawn.items()}
        coordinates = sum(u[0].numel() for u in self.state.values())
        self.clamp = 100.0 * coordinates  # of all latent coordinates of the b cells
        shape = (particles, batch_size(batch))
        device = next(iter(self.state.values())).device
        self.step_size = torch.full(shape, step_size, dtype=torch.float64, device=device)
        self.accepted, self.moves = torch.zeros_like(self.step_size), 0
        self.log_weights = torch.zeros_like(self.step_size)
        self.now = self.evaluate(self.state, 0.0)

    def evaluate(self, state: Values, temperature: float) -> tuple[Tensor, Tensor, Values]:
        """Log target and log likelihood [S, b], and the gradient of the target, at a state."""
        state = {name: value.detach().requires_grad_() for name, value in state.items()}
        with torch.enable_grad():
            values = {name: self.transforms[name](u) for name, u in state.items()}
            model, prior, likelihood = model_at(self.program, self.batch, values)
            for name, u in state.items():
                slope = self.transforms[name].log_abs_det_jacobian(u, values[name])
                prior = prior + per_cell(self.program, model.nodes[name], slope, *prior.shape)[1]
            target = prior + temperature * likelihood
            gradients = torch.autograd.grad(target.sum(), list(state.values()))
        slopes = {n: g.clamp(-self.clamp, self.clamp) for n, g in zip(state, gradients, strict=True)}
        return target.detach(), likelihood.detach(), slopes

    def anneal(self, before: float, after: float) -> None:
        """Raise the temperature of the likelihood: weigh, then move."""
        self.log_weights = self.log_weights + (after - before) * self.now[1]
        start = self.now = self.evaluate(self.state, after)
        momentum = {n: torch.randn_like(u) for n, u in self.state.items()}
        energy = self.kinetic(momentum) - start[0]
        position, now = self.state, start
        wide = {n: self.like(self.step_size, u) for n, u in position.items()}
        for _ in range(self.leapfrog):
            momentum = {n: p + 0.5 * wide[n] * now[2][n] for n, p in momentum.items()}
            position = {n: u + wide[n] * momentum[n] for n, u in position.items()}
            now = self.evaluate(position, after)
            momentum = {n: p + 0.5 * wide[n] * now[2][n] for n, p in momentum.items()}
        change = energy - (self.kinetic(momentum) - now[0])
        accept = torch.rand_like(change).log() < change  # not where the change is not a number
        self.state = {n: torch.where(self.like(accept, u), position[n], u) for n, u in self.state.items()}
        chosen = {n: torch.where(self.like(accept, g), now[2][n], g) for n, g in start[2].items()}
        self.now = (torch.where(accept, now[0], start[0]), torch.where(accept, now[1], start[1]), chosen)
        self.accepted, self.moves = self.accepted + accept, self.moves + 1
        factor = torch.where(self.accepted / self.moves > TARGET, FASTER, SLOWER)
        self.step_size = (self.step_size * factor).clamp(*STEP_SIZES)

    def kinetic(self, momentum: Values) -> Tensor:
        """Half the squared momentum of each chain [S, b], float64."""
        total = torch.zeros_like(self.step_size)
        for p in momentum.values():
            rest = [d for d in range(p.dim()) if d not in (0, self.program.depth)]
            squares = p.double() ** 2
            total = total + 0.5 * (squares.sum(rest) if rest else squares)
        return total

    def like(self, values: Tensor, draws: Tensor) -> Tensor:
        wide = like_draws(values, draws, self.program.depth)
        return wide if wide.dtype == torch.bool else wide.to(draws.dtype)

    def values(self) -> Values:
        return {name: self.transforms[name](u) for name, u in self.state.items()}

    def acceptance(self) -> Tensor:
        return (self.accepted / max(self.moves, 1)).mean(0)


def temperature_schedule(temperatures: int | Sequence[float]) -> list[float]:
    """Return the exponents of the likelihood, from 0 to 1: those given, or so many steps equally spaced."""
    if isinstance(temperatures, str) or np.ndim(temperatures) == 0:
        steps = checked_int("temperatures", temperatures, 1)
        return np.linspace(0, 1, steps + 1).tolist()
    given: Any = temperatures
    schedule = [checked_real("each of temperatures", t, at_least=0, at_most=1) for t in given]
    rising = all(a < b for a, b in zip(schedule, schedule[1:], strict=False))
    if len(schedule) < 2 or schedule[0] != 0 or schedule[-1] != 1 or not rising:
        raise ValueError("temperatures must rise from 0 to 1")
    return schedule


@contextmanager
def _frozen(program: Program) -> Iterator[None]:
    """No gradients for the parameters: only the chains' positions need them."""
    learned = [p for p in program.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@contextmanager
def _progress(shown: bool, total: int):
    if not shown or not total:
        yield int  # any callable of the number of cells
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        yield partial(bar.advance, bar.add_task("refining", total=total))
