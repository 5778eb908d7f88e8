"""Per-cell importance weights of any program, from one vectorised trace of its guide and its model.

Everything an objective needs is the unnormalised log weight log p(x, z) - log q(z | x) of K particles for each of
the B cells of a minibatch. The subsampling factor N/B never enters a weight: inside a log-mean-exp it would turn
a bound into something else. It multiplies the finished bound, in the objective.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.weights.densities import observed_sites, per_cell
from fieldguide.inference.weights.enumeration import Enumerate, Sums, sum_out, without_mask
from fieldguide.inference.weights.tracing import (
    Cut,
    Rejoin,
    each_particle,
    frozen_guide_trace,
    in_plate,
    is_deterministic,
    is_random,
    random_state,
    trace_program,
)

Kind = Literal["reparam", "analytic", "path", "score"]
Values = dict[str, Tensor]
"""Value of each site: [S, B, ...] of latent and deterministic ones."""


@dataclass
class Weights:
    """Log weights of K particles for B cells.

    Attributes
    ----------
    log_p, log_q : Tensor [K, B]
        Log joint density of the model and log density of the guide, summed over everything but particle and cell.
        Where discrete sites are summed out (`fieldguide.inference.weights.enumeration`), the log of that sum is in
        ``log_p``, guide sites that depend on them included.
    globals : Tensor [K]
        The same difference for the sites outside the data plate.
    log_likelihood : Tensor [K, B]
        The part of ``log_p`` that comes from observed sites.
    scale : float
        N / B, to be applied once and linearly, to the finished bound.
    draws : dict of Tensor
        Values of all latent and deterministic sites: [K, B, ...], with the inner plates of a deeper program between
        particle and cell dimension. A site c that was summed out has a draw from its probabilities given the other
        draws of the particle, which are ``c_posterior`` [K, B, C]; those of the guide are ``c_guide``. Sites that
        depend on it have their values at that draw.
    latents : tuple of str
        Names of the latent sites.
    global_latents : tuple of str
        Latent sites outside the data plate, for which K-sample bounds do not factorise over cells.
    kind : str
        What the gradients mean, see `weigh`.
    enumerated : tuple of str
        Latent sites that were summed out.
    traced : dict of Tensor
        Values of the other latent sites as the model saw them: before one value of the enumerated sites was chosen.
    depth : int
        Of the program's plates.
    aliases : list of (Tensor, int)
        The draws as path gradients reach them, and their dimensions to the left of the particles.
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
    enumerated: tuple[str, ...] = ()
    traced: dict[str, Tensor] = field(default_factory=dict, repr=False)
    depth: int = 1
    aliases: list[tuple[Tensor, int]] = field(default_factory=list, repr=False)

    @property
    def log_w(self) -> Tensor:
        """Log importance weights [K, B]."""
        return self.log_p - self.log_q

    def scale_path(self, coefficient: Tensor) -> None:
        """Multiply the gradient that reaches each draw by ``coefficient`` [K, B] (weights of kind "path").

        With the loss ``-(r * log_w).sum(0)`` for a detached r, model parameters receive r and guide parameters,
        which see only the path through the draws, receive ``r * coefficient``.
        """
        for alias, lead in self.aliases:
            wide = coefficient.detach().reshape((1,) * lead + coefficient.shape)
            alias.register_hook(partial(torch.mul, like_draws(wide, alias, self.depth)))


Proposal = Callable[[Batch, int], Weights]
"""From a minibatch and S to the weights of S draws for each of its cells."""


def like_draws(values: Tensor, draws: Tensor, depth: int) -> Tensor:
    """Reshape ``values`` [*E, K, B] to broadcast against draws [*E, K, (inner plates), B, (event)]."""
    inner, event = depth - 1, draws.dim() - depth - values.dim() + 1
    return values.reshape(values.shape[:-1] + (1,) * inner + values.shape[-1:] + (1,) * event)


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
    traces = _trace_both(program, batch, particles, kind)
    sums, global_latents = _sum_up(program, traces, particles, kl_weight)
    return _assemble(program, traces, sums, global_latents, particles, (total or batch_size(batch)) / batch_size(batch))


@dataclass
class _Traces:
    """One trace of the guide and one of the model at its draws.

    ``scored`` is the guide whose densities count: another than ``guide``, with constant parameters, in kind "path".
    """

    guide: Trace
    scored: Trace
    model: Trace
    discrete: Enumerate
    cut: Cut
    drawn: list[str]
    in_guide: set[str]
    kind: Kind
    batch: Batch

    @property
    def latents(self) -> list[str]:
        """All latent sites: those that were drawn or summed out in the guide, then those of the model alone."""
        return self.drawn + [n for n in self.discrete.sites if n not in self.drawn]


def _trace_both(program: Program, batch: Batch, particles: int, kind: Kind) -> _Traces:
    state = random_state(batch) if kind == "path" else ()
    discrete, cut = Enumerate(program), Cut()
    # In kind "score" draws are constants: discrete guide sites are drawn, and only the model's own are summed out.
    handlers = [] if kind == "score" else [discrete, cut] if kind == "path" else [discrete]
    guide = scored = trace_program(program, "guide", batch, particles, handlers)
    drawn = [n for n, s in guide.nodes.items() if is_random(s) and not s["is_observed"]]
    in_guide = set(discrete.sites)
    if kind == "score":
        for name in drawn:
            guide.nodes[name]["value"] = guide.nodes[name]["value"].detach()
    elif torch.is_grad_enabled():
        _require_reparameterised(guide, [n for n in drawn if n not in in_guide])
    if kind == "path":
        continuous = {n: v for n, v in cut.draws.items() if n not in in_guide}
        scored = frozen_guide_trace(program, batch, particles, [discrete, Rejoin(continuous)], state)
    model = trace_program(program, "model", batch, particles, [discrete], replay=scored)
    _require_same_sites(program, model, drawn + [n for n in discrete.sites if n not in in_guide], batch)
    return _Traces(guide, scored, model, discrete, cut, drawn, in_guide, kind, batch)


def _sum_up(program: Program, traces: _Traces, particles: int, kl_weight: float | Tensor) -> tuple[Sums, list[str]]:
    """The log densities of all sites by side, and the latent sites outside the data plate."""
    scored, model, discrete = traces.scored, traces.model, traces.discrete
    cells, device = batch_size(traces.batch), next(iter(traces.batch.values())).device
    zero = torch.zeros((particles, cells), device=device)
    sums = Sums({"prior": zero, "likelihood": zero, "guide": zero, "globals": zero.new_zeros(particles)})
    global_latents = []
    closed = _closed_form_sites(model, scored, traces.drawn) if traces.kind == "analytic" else {}
    annealed = set(traces.latents if program.warmup is None else program.warmup)

    def add(side: str, sign: int, site, value: Tensor, weight: float | Tensor = 1.0) -> None:
        local, value = per_cell(program, site, value, particles, cells, len(discrete.sites))
        if side == "mass":
            sums.add_mass(value, weight)
            return
        if not (isinstance(weight, float) and weight == 1.0):
            value = weight * value
        if local:
            sums.add(side, sign, value)
        else:
            sums.plain["globals"] = sums.plain["globals"] + sign * value

    for name in traces.latents:
        weight = kl_weight if name in annealed else 1.0
        if name in discrete.sites:
            value = model.nodes[name]["value"]
            add("prior", 1, *without_mask(model.nodes[name], value), weight)
            if name in traces.in_guide:
                add("mass", -1, *without_mask(scored.nodes[name], value), weight)
            continue
        site, prior = scored.nodes[name], model.nodes[name]
        if not in_plate(program, site):
            global_latents.append(name)
        if name in closed:
            add("guide", -1, site, closed[name], weight)
            continue
        add("guide", -1, site, site["fn"].log_prob(site["value"]), weight)
        add("prior", 1, prior, prior["fn"].log_prob(prior["value"]), weight)
    for name in observed_sites(model):
        site = model.nodes[name]
        add("likelihood", 1, site, site["fn"].log_prob(site["value"]))
    return sums, global_latents


def _assemble(
    program: Program, traces: _Traces, sums: Sums, global_latents: list[str], particles: int, scale: float
) -> Weights:
    """The weights of these sums, with the draws and what scales the gradients that reach them."""
    model, discrete, depth, plain, summed = traces.model, traces.discrete, program.depth, sums.plain, None
    log_p, log_likelihood = plain["prior"] + plain["likelihood"], plain["likelihood"]
    if discrete.sites:
        summed = sum_out(sums, discrete.sites, traces.in_guide, traces.kind, depth)
        log_p, log_likelihood = log_p + summed.log_sum, log_likelihood + summed.log_likelihood
    aliases = []
    for name, alias in traces.cut.draws.items():
        if name not in traces.in_guide and alias.requires_grad:
            lead = max(0, alias.dim() - traces.guide.nodes[name]["fn"].event_dim - depth - 1)
            aliases.append((alias, lead))
            if summed is not None and lead:  # a draw made for one value of an enumerated site acts on one summand
                alias.register_hook(partial(torch.mul, like_draws(summed.share_of(alias, lead), alias, depth)))
    draws = {
        name: each_particle(program, site, particles) if summed is None else summed.choose_site(site, depth)
        for name, site in model.nodes.items()
        if name in traces.latents or is_deterministic(site)
    }
    if summed is not None:
        draws |= {f"{name}_posterior": value for name, value in summed.posterior.items()}
        draws |= {f"{name}_guide": value for name, value in summed.guide.items()}
    return Weights(
        log_p=log_p,
        log_q=plain["guide"],
        globals=plain["globals"],
        log_likelihood=log_likelihood,
        scale=scale,
        draws=draws,
        latents=tuple(traces.latents),
        global_latents=tuple(global_latents),
        enumerated=tuple(discrete.sites),
        traced={name: model.nodes[name]["value"] for name in traces.drawn if name not in traces.in_guide},
        kind=traces.kind,
        depth=depth,
        aliases=aliases,
    )


def _closed_form_sites(model, guide, latents: list[str]) -> dict[str, Tensor]:
    """KL(guide || prior) for each site that has a closed form; valid when both sides order their latents alike."""
    order = [name for name in model.nodes if name in latents]
    if order != latents:
        return {}
    closed = {}
    for name in latents:
        try:
            closed[name] = kl_divergence(guide.nodes[name]["fn"], model.nodes[name]["fn"])
        except NotImplementedError:
            continue
    return closed


def _require_reparameterised(guide, latents: list[str]) -> None:
    for name in latents:
        distribution = guide.nodes[name]["fn"]
        if not distribution.has_rsample:
            inner = getattr(distribution, "base_dist", distribution)
            raise ValueError(
                f"guide site '{name}' ({type(inner).__name__}) cannot be reparameterised: "
                "use gradient='score' or marginalise the site out in the model"
            )


def _require_same_sites(program: Program, model, latents: list[str], batch: Batch) -> None:
    wanted = [n for n, s in model.nodes.items() if is_random(s) and not s["is_observed"]]
    missing = sorted(set(wanted) - set(latents))
    extra = sorted(set(latents) - set(model.nodes))
    if missing or extra:
        data = [name for name in missing if name in batch]
        hint = f"; {data[0]!r} is a field of the data: give it obs=batch[{data[0]!r}] in the model" if data else ""
        raise ValueError(
            f"{type(program).__name__}: latent sites of model and guide differ; "
            f"missing from the guide: {missing or 'none'}; missing from the model: {extra or 'none'}{hint}"
        )
