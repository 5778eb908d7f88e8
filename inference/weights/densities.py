"""Log densities of a traced program for each particle and cell, and traces at values that are given.

Whatever needs the density of a program elsewhere than at its own draws (a mixture of guides, annealing, simulated data)
finds it here; `fieldguide.inference.weights.weigh` sums its weights from the same reduction.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.weights.enumeration import Enumerate, Enumerated, Sums, sum_out, without_mask
from fieldguide.inference.weights.tracing import in_plate, is_random, trace_program


def per_cell(
    program: Program, site, value: Tensor, particles: int, cells: int, enumerated: int = 0
) -> tuple[bool, Tensor]:
    """Sum a site's log density to [K, B] (or [K] outside the data plate), without the subsampling factor.

    Where it depends on sites that are summed out, their dimensions are kept: [*E, K, B]. The user's own
    ``poutine.scale`` and masks stay; the N/B that a subsampling data plate put into the scale goes.

    Returns
    -------
    bool
        Whether the site is inside the data plate.
    Tensor
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


def drawn_latents(trace: Trace, program: Program) -> dict[str, Tensor]:
    """Return the drawn latent values of a trace, in the order of the sites.

    Raises
    ------
    ValueError
        If one of them is outside the data plate.
    """
    sites: dict[str, Any] = {n: s for n, s in trace.nodes.items() if is_random(s) and not s["is_observed"]}
    for name, site in sites.items():
        if not in_plate(program, site):
            raise ValueError(
                f"site '{name}' is outside the plate '{program.plate}', so it has no posterior for each cell"
            )
    return {n: s["value"] for n, s in sites.items()}


def trace_at(program: Program, role: str, batch: Batch, values: dict[str, Tensor], handlers=()) -> Trace:
    """Trace model or guide with its latent sites at the given values [S, ...]."""
    given = Trace()
    for name, value in values.items():
        given.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return trace_program(program, role, batch, len(next(iter(values.values()))), handlers, given)


def log_density(program: Program, trace: Trace, sites: Sequence[str], particles: int, cells: int) -> Tensor:
    """Return the log density [S, B] of these sites of a trace, float64."""
    total = torch.zeros((), dtype=torch.float64)
    for name in sites:
        if name not in trace.nodes:
            raise ValueError(f"latent site '{name}' is missing from a component of the mixture")
        site = trace.nodes[name]
        total = total + per_cell(program, site, site["fn"].log_prob(site["value"]), particles, cells)[1].double()
    return total.expand(particles, cells)


def observed_sites(trace: Trace) -> list[str]:
    """Return the names of the observed sites of a trace."""
    return [n for n, s in trace.nodes.items() if is_random(s) and s["is_observed"]]


def model_at(program: Program, batch: Batch, values: dict[str, Tensor]) -> tuple[Trace, Tensor, Tensor]:
    """Return the trace of the model at given latents, and its log prior and log likelihood [S, B], float64."""
    shape = (len(next(iter(values.values()))), batch_size(batch))
    model = trace_at(program, "model", batch, values)
    prior = log_density(program, model, list(values), *shape)
    return model, prior, log_density(program, model, observed_sites(model), *shape)


def density_at(
    program: Program, role: str, batch: Batch, values: dict[str, Tensor]
) -> tuple[Trace, Tensor, Tensor, Enumerated | None]:
    """Trace model or guide at these values, with marked discrete sites summed out.

    Returns the trace, its log density [S, B] in float64, that of its latent sites alone, and what the sum was over.
    """
    discrete = Enumerate(program)
    trace = trace_at(program, role, batch, values, [discrete])
    draws, cells = len(next(iter(values.values()))), batch_size(batch)
    zero = torch.zeros(draws, cells, dtype=torch.float64, device=next(iter(batch.values())).device)
    everything, latent = (Sums({"prior": zero, "likelihood": zero}) for _ in range(2))
    random = {name: site for name, site in trace.nodes.items() if is_random(site)}
    here = {name for name, site in random.items() if not site["is_observed"]}
    missing = sorted((here - set(discrete.sites)) ^ set(values))
    if missing:
        raise ValueError(f"latent site '{missing[0]}' is missing from a component of the mixture")
    for name, site in random.items():
        if name in discrete.sites:
            site, density = without_mask(site, site["value"])
        else:
            density = site["fn"].log_prob(site["value"])
        value = per_cell(program, site, density, draws, cells, len(discrete.sites))[1].double()
        everything.add("likelihood" if site["is_observed"] else "prior", 1, value)
        if not site["is_observed"]:
            latent.add("prior", 1, value)
    total, prior = everything.plain["prior"] + everything.plain["likelihood"], latent.plain["prior"]
    if not discrete.sites:
        return trace, total, prior, None
    summed = sum_out(everything, discrete.sites, set(), "reparam", program.depth)
    summed.log_likelihood = summed.log_likelihood + everything.plain["likelihood"]
    prior = prior + sum_out(latent, discrete.sites, set(), "reparam", program.depth).log_sum
    return trace, total + summed.log_sum, prior, summed
