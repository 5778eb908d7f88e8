"""Traces of a program with all particles at once, and what gradients see of the draws."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from fieldguide.inference.program import Batch, Program


def is_random(site) -> bool:
    """Whether a node of a trace is a random variable, observed or not."""
    return site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")


def is_deterministic(site) -> bool:
    """Whether a node of a trace is a deterministic site."""
    return site["type"] == "sample" and bool(site["infer"].get("_deterministic"))


def in_plate(program: Program, site) -> bool:
    """Whether a site has one value a cell."""
    return any(frame.name == program.plate for frame in site["cond_indep_stack"])


def each_particle(program: Program, site: Any, particles: int) -> Tensor:
    """Return the value of a site with its particle dimension, also where no latent gave it one."""
    value, local = site["value"], program.depth + site["fn"].event_dim
    if value.dim() == local and in_plate(program, site):
        return value.expand(particles, *value.shape)
    return value


class Particles(IndepMessenger):
    """The plate of K particles around a whole program: a plate without Pyro's bookkeeping for subsampling."""

    def __init__(self, program: Program, particles: int) -> None:
        super().__init__("particles", particles, dim=-(program.depth + 1))

    def _process_message(self, msg) -> None:
        super()._process_message(msg)
        BroadcastMessenger._pyro_sample(msg)


class Cut(Messenger):
    """Show every later statement the draws as constants, and keep the draws themselves.

    What is kept depends on guide parameters directly, and not through the draws that came before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg) -> None:
        if is_random(msg) and not msg["is_observed"]:
            self.draws[msg["name"]] = msg["value"].view_as(msg["value"])
            msg["value"] = msg["value"].detach()


class Rejoin(Messenger):
    """Add the direct dependence that `Cut` kept to draws that depend on the ones before them only.

    A captured step does not repeat random numbers, so there the draw itself is taken, which is right for a single site.
    """

    def __init__(self, draws: dict[str, Tensor]) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] in self.draws:
            draw = self.draws[msg["name"]]
            if torch.compiler.is_exporting():
                if len(self.draws) > 1:
                    raise NotImplementedError("a captured step cannot repeat several draws for path gradients")
                msg["value"] = draw
            else:
                msg["value"] = msg["value"] + (draw - draw.detach()) if msg["value"].is_floating_point() else draw


class Substitute(Messenger):
    """Replace the values of latent sites, after they were drawn (so that random streams stay aligned)."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def trace_program(
    program: Program,
    role: str,
    batch: Batch,
    particles: int,
    handlers: Sequence[Messenger] = (),
    replay: poutine.Trace | None = None,
):
    """Run ``model`` or ``guide`` with K particles under the handlers, and return what Pyro recorded."""
    run = getattr(program, role)
    if replay is not None:
        run = poutine.replay(run, trace=replay)
    with ExitStack() as stack:
        for handler in (Particles(program, particles), *handlers):
            stack.enter_context(handler)
        return poutine.trace(run).get_trace(batch)


def frozen_guide_trace(program: Program, batch: Batch, particles: int, handlers: list[Messenger], state: tuple):
    """Trace the guide again with constant parameters, the same random numbers and untouched buffers.

    Detaching the distributions of the first trace would be wrong as soon as one guide site depends on another.
    """
    if torch.compiler.is_exporting() and any(
        isinstance(m, _DropoutNd) and m.training and m.p for m in program.modules()
    ):
        raise NotImplementedError("a captured step cannot repeat the dropout of the guide for path gradients")
    constants = {name: p.detach() for name, p in program.named_parameters()}
    constants |= {name: b.clone() for name, b in program.named_buffers()}
    with _replayed_randomness(batch, state), ExitStack() as stack:
        for handler in (Particles(program, particles), *handlers):
            stack.enter_context(handler)
        return poutine.trace(functional_call).get_trace(program, constants, ("guide", batch))


def guide_draws(program: Program, batch: Batch) -> dict[str, Tensor]:
    """Return one draw [1, B, ...] of each latent and deterministic site of the guide, with its gradient.

    Neither the random state nor a buffer is changed.
    """
    values = dict(program.named_parameters()) | {name: b.clone() for name, b in program.named_buffers()}
    state = random_state(batch)
    with _replayed_randomness(batch, state), Particles(program, 1):
        trace = poutine.trace(functional_call).get_trace(program, values, ("guide", batch))
    nodes: dict[str, Any] = trace.nodes
    sites = {n: s for n, s in nodes.items() if is_deterministic(s) or (is_random(s) and not s["is_observed"])}
    return {name: each_particle(program, site, 1) for name, site in sites.items()}


def random_state(batch: Batch) -> tuple[Tensor, ...]:
    """Return the state of the random numbers, on the processor and where the batch is."""
    device = next(iter(batch.values())).device
    cuda = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *cuda)


def _set_random_state(batch: Batch, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], next(iter(batch.values())).device)


@contextmanager
def _replayed_randomness(batch: Batch, state: tuple[Tensor, ...]) -> Iterator[None]:
    after = random_state(batch)
    _set_random_state(batch, state)
    try:
        yield
    finally:
        _set_random_state(batch, after)
