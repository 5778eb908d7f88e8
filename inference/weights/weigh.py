"""Per-cell importance weights of any program, from one vectorised trace of its guide and its model.

Everything an objective needs is the unnormalised log weight log p(x, z) - log q(z | x) of K particles for each of
the B cells of a minibatch. The subsampling factor N/B never enters a weight: inside a log-mean-exp it would turn
a bound into something else. It multiplies the finished bound, in the objective.
"""

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Literal

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.weights.enumeration import Enumerate, Sums, sum_out, without_mask
from fieldguide.inference.weights.tracing import (
    Cut,
    Particles,
    Rejoin,
    Substitute,
    frozen_guide_trace,
    random_state,
)
from fieldguide.inference.weights.tracing import in_plate as _in_plate
from fieldguide.inference.weights.tracing import is_random as _is_random
from fieldguide.inference.weights.tracing import trace as _trace

__all__ = ["Kind", "Particles", "Substitute", "Weights", "like_draws", "weigh"]

Kind = Literal["reparam", "analytic", "path", "score"]


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
    _depth: int = 1
    _aliases: list[tuple[Tensor, int]] = field(default_factory=list, repr=False)

    @property
    def log_w(self) -> Tensor:
        """Log importance weights [K, B]."""
        return self.log_p - self.log_q

    def scale_path(self, coefficient: Tensor) -> None:
        """Multiply the gradient that reaches each draw by ``coefficient`` [K, B] (weights of kind "path").

        With the loss ``-(r * log_w).sum(0)`` for a detached r, model parameters receive r and guide parameters,
        which see only the path through the draws, receive ``r * coefficient``.
        """
        for alias, lead in self._aliases:
            wide = coefficient.detach().reshape((1,) * lead + coefficient.shape)
            alias.register_hook(partial(torch.mul, like_draws(wide, alias, self._depth)))


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
    state = random_state(batch) if kind == "path" else ()
    discrete, cut = Enumerate(program), Cut()
    # In kind "score" draws are constants: discrete guide sites are drawn, and only the model's own are summed out.
    handlers = [] if kind == "score" else [discrete, cut] if kind == "path" else [discrete]
    guide = scored = _trace(program, "guide", batch, particles, handlers)
    latents = [n for n, s in guide.nodes.items() if _is_random(s) and not s["is_observed"]]
    in_guide = set(discrete.sites)
    if kind == "score":
        for name in latents:
            guide.nodes[name]["value"] = guide.nodes[name]["value"].detach()
    elif torch.is_grad_enabled():
        _require_reparameterised(guide, [n for n in latents if n not in in_guide])
    if kind == "path":
        kept = {n: v for n, v in cut.kept.items() if n not in in_guide}
        scored = frozen_guide_trace(program, batch, particles, [discrete, Rejoin(kept)], state)
    model = _trace(program, "model", batch, particles, [discrete], replay=scored)
    _require_same_sites(program, model, latents + [n for n in discrete.sites if n not in in_guide])

    cells = batch_size(batch)
    shape = (particles, cells)
    one = next(iter(batch.values()))
    zero = torch.zeros(shape, device=one.device)
    sums = Sums({"prior": zero, "likelihood": zero, "guide": zero, "globals": zero.new_zeros(particles)})
    global_latents = []
    closed = _closed_form_sites(model, scored, latents) if kind == "analytic" else {}
    everything = latents + [n for n in discrete.sites if n not in latents]
    annealed = set(everything if program.warmup is None else program.warmup)

    def add(side: str, sign: int, site, value: Tensor, weight=1.0) -> None:
        local, value = _reduce(program, site, value, particles, cells, len(discrete.sites))
        if side == "mass":
            sums.add_mass(value, weight)
            return
        if not (isinstance(weight, float) and weight == 1.0):
            value = weight * value
        if local:
            sums.add(side, sign, value)
        else:
            sums.plain["globals"] = sums.plain["globals"] + sign * value

    for name in everything:
        if name in discrete.sites:
            weight, value = kl_weight if name in annealed else 1.0, model.nodes[name]["value"]
            add("prior", 1, *without_mask(model.nodes[name], value), weight)
            if name in in_guide:
                add("mass", -1, *without_mask(scored.nodes[name], value), weight)
            continue
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
    plain, found = sums.plain, None
    log_p, log_likelihood = plain["prior"] + plain["likelihood"], plain["likelihood"]
    if discrete.sites:
        found = sum_out(sums, discrete.sites, in_guide, kind, program.depth)
        log_p, log_likelihood = log_p + found.log_sum, log_likelihood + found.log_likelihood
    aliases = []
    for name, alias in cut.kept.items():
        if name not in in_guide and alias.requires_grad:
            lead = max(0, alias.dim() - guide.nodes[name]["fn"].event_dim - program.depth - 1)
            aliases.append((alias, lead))
            if found is not None and lead:  # a draw made for one value of an enumerated site acts on one summand
                alias.register_hook(partial(torch.mul, like_draws(found.share_of(alias, lead), alias, program.depth)))
    draws = {
        name: _each(program, site, particles) if found is None else found.choose_site(site, program.depth)
        for name, site in model.nodes.items()
        if name in everything or (site["type"] == "sample" and site["infer"].get("_deterministic"))
    }
    if found is not None:
        draws |= {f"{name}_posterior": value for name, value in found.posterior.items()}
        draws |= {f"{name}_guide": value for name, value in found.guide.items()}
    return Weights(
        log_p=log_p,
        log_q=plain["guide"],
        globals=plain["globals"],
        log_likelihood=log_likelihood,
        scale=(total or cells) / cells,
        draws=draws,
        latents=tuple(everything),
        global_latents=tuple(global_latents),
        enumerated=tuple(discrete.sites),
        traced={name: model.nodes[name]["value"] for name in latents if name not in in_guide},
        kind=kind,
        _depth=program.depth,
        _aliases=aliases,
    )


def _reduce(
    program: Program, site, value: Tensor, particles: int, cells: int, enumerated: int = 0
) -> tuple[bool, Tensor]:
    """Sum a site's log density to [K, B] (or [K] outside the data plate), without the subsampling factor.

    Where it depends on sites that are summed out, their dimensions are kept: [*E, K, B]. The user's own
    ``poutine.scale`` and masks stay; the N/B that a subsampling data plate put into the scale goes.
    """
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    data = [f for f in frames if f.name == program.plate]
    subsampling = prod(f.full_size / f.size for f in data if f.full_size and f.full_size > 0)
    scale = site["scale"] / subsampling if subsampling != 1 else site["scale"]
    value = scale_and_mask(value, scale, site["mask"])
    depth = program.depth + 1
    if value.dim() > depth + enumerated:
        raise ValueError(
            f"site '{site['name']}' has batch shape {tuple(value.shape)}: more dimensions than the declared plate "
            f"depth {program.depth} and the particles; wrap event dimensions in .to_event() or raise 'depth'"
        )
    value = value.reshape((1,) * (depth - value.dim()) + value.shape)
    lead = value.shape[: value.dim() - depth]
    if lead and not data:
        raise ValueError(f"site '{site['name']}' depends on an enumerated site, but is outside '{program.plate}'")
    if not data:
        value = value.sum(tuple(range(1, depth))) if depth > 1 else value
        return False, value.expand(particles)
    dim = data[0].dim
    rest = tuple(d for d in range(-depth + 1, 0) if d != dim)
    value = value.sum(rest) if rest else value
    return True, value.expand(*lead, particles, cells)


def _each(program: Program, site, particles: int) -> Tensor:
    """Value of a site with its particle dimension, also where no latent gave it one."""
    value, local = site["value"], program.depth + site["fn"].event_dim
    if value.dim() == local and _in_plate(program, site):
        return value.expand(particles, *value.shape)
    return value


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
