"""Data drawn from a program, and what its guide says of the latents behind them (the sleep phase)."""

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor
from torch.func import functional_call

from fieldguide.inference.program import Batch, Program
from fieldguide.inference.weights.densities import per_cell
from fieldguide.inference.weights.tracing import Particles, Substitute, is_random


def simulate(program: Program, batch: Batch, repeats: int = 1) -> tuple[Batch, dict[str, Tensor]]:
    """Draw latents and data from the model, for the covariates of the cells in ``batch``.

    Parameters
    ----------
    program : Program
        Its buffers (running means) are left as they are, and its parameters get no gradient.
    batch : dict of Tensor [B, ...]
    repeats : int
        R, draws for each cell.

    Returns
    -------
    batch : dict of Tensor [R * B, ...]
        The same fields, each repeated R times, the observed ones drawn anew.
    latents : dict of Tensor [1, R * B, ...]
        The latents that they were drawn from.

    Raises
    ------
    ValueError
        If it cannot be said which field an observed site is: it has to be in the data plate alone, have the name of
        a field, and observe that field as it is.
    """
    repeated = {name: torch.cat([values] * repeats) for name, values in batch.items()}
    state = {name: p.detach() for name, p in program.named_parameters()}
    state |= {name: b.clone() for name, b in program.named_buffers()}
    with torch.no_grad(), Particles(program, 1), poutine.trace() as drawn, poutine.uncondition():
        functional_call(program, state, ("model", repeated))
    data, latents = {}, {}
    for name, site in drawn.trace.nodes.items():
        if not is_random(site):
            continue
        if not site["infer"].get("was_observed"):
            latents[name] = site["value"]
            continue
        data[name] = _field(program, site, repeated)
    return repeated | data, latents


def simulated_log_q(program: Program, batch: Batch, repeats: int = 1) -> Tensor:
    """Return log q(z | x) [R * B] of simulated pairs, with a gradient for the guide's parameters only."""
    simulated, latents = simulate(program, batch, repeats)
    with Particles(program, 1), Substitute(latents):
        trace = poutine.trace(program.guide).get_trace(simulated)
    cells = len(next(iter(simulated.values())))
    total: Tensor | float = 0.0
    for site in trace.nodes.values():
        if not is_random(site) or site["is_observed"]:
            continue
        if site["name"] not in latents:
            raise ValueError(f"{type(program).__name__}: guide site '{site['name']}' is missing from the model")
        local, value = per_cell(program, site, site["fn"].log_prob(site["value"]), 1, cells)
        if not local:
            raise ValueError(
                f"SleepPhi needs every latent site inside the plate '{program.plate}', not '{site['name']}'"
            )
        total = total + value[0]
    if not isinstance(total, Tensor):
        raise ValueError(f"{type(program).__name__} has no latent sites: its guide has nothing to learn")
    return total


def _field(program: Program, site, batch: Batch) -> Tensor:
    """The drawn value of an observed site [B, ...], once it is sure which field of the batch that is."""
    name, cls = site["name"], type(program).__name__
    if isinstance(site["fn"], Unit):
        raise ValueError(f"{cls}: the model has a pyro.factor ('{name}'), so it cannot be simulated from")
    if name not in batch:
        raise ValueError(
            f"{cls}: observed site '{name}' has no field to be fed back to the guide as; name it like the field "
            f"that it observes ({', '.join(batch)})"
        )
    if site["infer"].get("obs") is not batch[name]:
        raise ValueError(
            f"{cls}: site '{name}' does not observe batch['{name}'] as it is, so that its draws cannot be fed back to "
            "the guide: transform the data before training, or in the guide"
        )
    value = site["value"][0]
    plates = [frame.name for frame in site["cond_indep_stack"] if frame.vectorized]
    if set(plates) - {"particles", program.plate} or value.shape != batch[name].shape:
        raise ValueError(
            f"{cls}: draws of site '{name}' have shape {tuple(value.shape)}, in plates {', '.join(plates)}; the field "
            f"has shape {tuple(batch[name].shape)}: only sites in the plate '{program.plate}' alone can be fed back"
        )
    return value.to(batch[name].dtype)
