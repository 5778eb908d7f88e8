"""Per-cell importance weights of any program, from one vectorised trace of its guide and its model.

Everything an objective needs is the unnormalised log weight log p(x, z) - log q(z | x) of K particles for each of
the B cells of a minibatch. The subsampling factor N/B never enters a weight: inside a log-mean-exp it would turn
a bound into something else. It multiplies the finished bound, in the objective.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Literal

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from fieldguide.inference.program import Batch, Program, batch_size

Kind = Literal["reparam", "analytic", "path", "score"]


@dataclass
class Weights:
    """Log weights of K particles for B cells.

    Attributes
    ----------
    log_p, log_q : Tensor [K, B]
        Log joint density of the model and log density of the guide, summed over everything but particle and cell.
    globals : Tensor [K]
        The same difference for the sites outside the data plate.
    log_likelihood : Tensor [K, B]
        The part of ``log_p`` that comes from observed sites.
    scale : float
        N / B, to be applied once and linearly, to the finished bound.
    draws : dict of Tensor
        Values of all latent and deterministic sites: [K, B, ...], with the inner plates of a deeper program between
        particle and cell dimension.
    latents : tuple of str
        Names of the latent sites.
    global_latents : tuple of str
        Latent sites outside the data plate, for which K-sample bounds do not factorise over cells.
    kind : str
        What the gradients mean, see `weigh`.
    """

    log_p: Tensor
    log_q: Tensor
    globals: Tensor
    log_likelihood: Tensor
    scale: float
    draws: dict[str, Tensor]
    latents: tuple[str, ...] = ()
    global_latents: tuple[str, ...] = ()
    kind: Kind = "reparam"
    _depth: int = 1
    _aliases: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def log_w(self) -> Tensor:
        """Log importance weights [K, B]."""
        return self.log_p - self.log_q

    def scale_path(self, coefficient: Tensor) -> None:
        """Multiply the gradient that reaches each draw by ``coefficient`` [K, B] (weights of kind "path").

        With the loss ``-(r * log_w).sum(0)`` for a detached r, model parameters receive r and guide parameters,
        which see only the path through the draws, receive ``r * coefficient``.
        """
        for alias in self._aliases:
            alias.register_hook(partial(torch.mul, like_draws(coefficient.detach(), alias, self._depth)))


def like_draws(values: Tensor, draws: Tensor, depth: int) -> Tensor:
    """Reshape ``values`` [K, B] to broadcast against draws [K, (inner plates), B, (event)]."""
    inner, event = depth - 1, draws.dim() - depth - 1
    return values.reshape(values.shape[:1] + (1,) * inner + values.shape[1:] + (1,) * event)


class Particles(IndepMessenger):
    """The plate of K particles around a whole program: a plate without Pyro's bookkeeping for subsampling."""

    def __init__(self, program: Program, particles: int) -> None:
        super().__init__("particles", particles, dim=-(program.depth + 1))

    def _process_message(self, msg) -> None:
        super()._process_message(msg)
        BroadcastMessenger._pyro_sample(msg)


class Substitute(Messenger):
    """Replace the values of latent sites, after they were drawn (so that random streams stay aligned)."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def weigh(
    program: Program,
    batch: Batch,
    particles: int = 1,
    kind: Kind = "reparam",
    total: int | None = None,
    kl_weight: float | Tensor = 1.0,
) -> Weights:
    """Trace guide and model once, with all particles vectorised, and return their `Weights`.

    Parameters
    ----------
    program, batch
        The program and one minibatch of B cells.
    particles : int
        K, the number of draws from the guide for each cell.
    kind : {"reparam", "analytic", "path", "score"}
        What the gradients mean. ``reparam``: everything in the graph. ``analytic``: as reparam, with the
        Kullback-Leibler term of a site in closed form where there is one (the mean over particles is still the
        ELBO; single weights are not importance weights). ``path``: log q with its parameters held fixed, so that
        guide parameters act through the draws only (sticking the landing, doubly reparameterised gradients).
        ``score``: draws detached.
    total : int, optional
        N, the number of cells the minibatch stands for; the minibatch itself by default.
    kl_weight : float or Tensor
        Exponent of (prior / guide) for the sites in ``program.warmup``; 1 is the model itself.

    Raises
    ------
    ValueError
        If a latent site of one side is missing on the other, or cannot be reparameterised where that is needed.
    """
    if kind == "path" and not torch.is_grad_enabled():
        kind = "reparam"
    random_state = _random_state(batch) if kind == "path" else ()
    guide = _trace(program, "guide", batch, particles)
    latents = [n for n, s in guide.nodes.items() if _is_random(s) and not s["is_observed"]]
    aliases: list[Tensor] = []
    if kind == "score":
        for name in latents:
            guide.nodes[name]["value"] = guide.nodes[name]["value"].detach()
    elif torch.is_grad_enabled():
        _require_reparameterised(guide, latents)
    scored = guide
    if kind == "path":
        for name in latents:
            value = guide.nodes[name]["value"]
            guide.nodes[name]["value"] = alias = value.view_as(value)
            if alias.requires_grad:
                aliases.append(alias)
        values = {name: guide.nodes[name]["value"] for name in latents}
        scored = _frozen_guide_trace(program, batch, particles, values, random_state)
    model = _trace(program, "model", batch, particles, replay=guide)
    _require_same_sites(program, model, latents)

    cells = batch_size(batch)
    shape = (particles, cells)
    one = next(iter(batch.values()))
    zero = torch.zeros(shape, device=one.device)
    sums = {"prior": zero, "likelihood": zero, "guide": zero, "globals": zero.new_zeros(particles)}
    global_latents = []
    closed = _closed_form_sites(model, scored, latents) if kind == "analytic" else {}
    annealed = set(latents if program.warmup is None else program.warmup)

    def add(side: str, sign: int, site, value: Tensor, weight=1.0) -> None:
        local, value = _reduce(program, site, value, particles, cells)
        if not (isinstance(weight, float) and weight == 1.0):
            value = weight * value
        if local:
            sums[side] = sums[side] + value
        else:
            sums["globals"] = sums["globals"] + sign * value

    for name in latents:
        site, prior = scored.nodes[name], model.nodes[name]
        weight = kl_weight if name in annealed else 1.0
        if not _in_plate(program, site):
            global_latents.append(name)
        if name in closed:
            add("guide", -1, site, closed[name], weight)
            continue
        add("guide", -1, site, site["fn"].log_prob(site["value"]), weight)
        add("prior", 1, prior, prior["fn"].log_prob(prior["value"]), weight)
    for site in model.nodes.values():
        if _is_random(site) and site["is_observed"]:
            add("likelihood", 1, site, site["fn"].log_prob(site["value"]))
    draws = {
        name: site["value"]
        for name, site in model.nodes.items()
        if name in latents or (site["type"] == "sample" and site["infer"].get("_deterministic"))
    }
    return Weights(
        log_p=sums["prior"] + sums["likelihood"],
        log_q=sums["guide"],
        globals=sums["globals"],
        log_likelihood=sums["likelihood"],
        scale=(total or cells) / cells,
        draws=draws,
        latents=tuple(latents),
        global_latents=tuple(global_latents),
        kind=kind,
        _depth=program.depth,
        _aliases=aliases,
    )


def _trace(program: Program, role: str, batch: Batch, particles: int, replay: poutine.Trace | None = None):
    run = getattr(program, role)
    if replay is not None:
        run = poutine.replay(run, trace=replay)
    with Particles(program, particles):
        return poutine.trace(run).get_trace(batch)


def _frozen_guide_trace(program: Program, batch: Batch, particles: int, values: dict[str, Tensor], state: tuple):
    """Trace the guide again at ``values`` with constant parameters, the same dropout and untouched buffers.

    Detaching the distributions of the first trace would be wrong as soon as one guide site depends on another.
    """
    if torch.compiler.is_exporting() and any(
        isinstance(m, _DropoutNd) and m.training and m.p for m in program.modules()
    ):
        raise NotImplementedError("a captured step cannot repeat the dropout of the guide for path gradients")
    constants = {name: p.detach() for name, p in program.named_parameters()}
    constants |= {name: b.clone() for name, b in program.named_buffers()}
    with (
        _replayed_randomness(batch, state),
        Particles(program, particles),
        Substitute(values),
    ):
        return poutine.trace(functional_call).get_trace(program, constants, ("guide", batch))


def _random_state(batch: Batch) -> tuple[Tensor, ...]:
    device = next(iter(batch.values())).device
    cuda = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *cuda)


def _set_random_state(batch: Batch, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], next(iter(batch.values())).device)


@contextmanager
def _replayed_randomness(batch: Batch, state: tuple[Tensor, ...]) -> Iterator[None]:
    after = _random_state(batch)
    _set_random_state(batch, state)
    try:
        yield
    finally:
        _set_random_state(batch, after)


def _is_random(site) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")


def _in_plate(program: Program, site) -> bool:
    return any(frame.name == program.plate for frame in site["cond_indep_stack"])


def _reduce(program: Program, site, value: Tensor, particles: int, cells: int) -> tuple[bool, Tensor]:
    """Sum a site's log density to [K, B] (or [K] outside the data plate), without the subsampling factor.

    The user's own ``poutine.scale`` and masks stay; the N/B that a subsampling data plate put into the scale goes.
    """
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    data = [f for f in frames if f.name == program.plate]
    subsampling = prod(f.full_size / f.size for f in data if f.full_size and f.full_size > 0)
    scale = site["scale"] / subsampling if subsampling != 1 else site["scale"]
    value = scale_and_mask(value, scale, site["mask"])
    depth = program.depth + 1
    if value.dim() > depth:
        raise ValueError(
            f"site '{site['name']}' has batch shape {tuple(value.shape)}: more dimensions than the declared plate "
            f"depth {program.depth} and the particles; wrap event dimensions in .to_event() or raise 'depth'"
        )
    value = value.reshape((1,) * (depth - value.dim()) + value.shape)
    if not data:
        value = value.sum(tuple(range(1, depth))) if depth > 1 else value
        return False, value.expand(particles)
    dim = data[0].dim
    rest = tuple(d for d in range(-depth + 1, 0) if d != dim)
    value = value.sum(rest) if rest else value
    return True, value.expand(particles, cells)


def _closed_form_sites(model, guide, latents: list[str]) -> dict[str, Tensor]:
    """KL(guide || prior) for each site that has a closed form; valid when both sides order their latents alike."""
    order = [name for name in model.nodes if name in latents]
    if order != latents:
        return {}
    found = {}
    for name in latents:
        try:
            found[name] = kl_divergence(guide.nodes[name]["fn"], model.nodes[name]["fn"])
        except NotImplementedError:
            continue
    return found


def _require_reparameterised(guide, latents: list[str]) -> None:
    for name in latents:
        found = guide.nodes[name]["fn"]
        if not found.has_rsample:
            inner = getattr(found, "base_dist", found)
            raise ValueError(
                f"guide site '{name}' ({type(inner).__name__}) cannot be reparameterised: "
                "use gradient='score' or marginalise the site out in the model"
            )


def _require_same_sites(program: Program, model, latents: list[str]) -> None:
    wanted = [n for n, s in model.nodes.items() if _is_random(s) and not s["is_observed"]]
    missing = sorted(set(wanted) - set(latents))
    extra = sorted(set(latents) - set(model.nodes))
    if missing or extra:
        raise ValueError(
            f"{type(program).__name__}: latent sites of model and guide differ; "
            f"missing from the guide: {missing or 'none'}; missing from the model: {extra or 'none'}"
        )
