"""Find the site and the cell that made a loss non-finite."""

import pandas as pd
import pyro
import torch
from pyro import poutine

from fieldguide.inference.program import Batch, Program


def describe_non_finite(program: Program, batch: Batch, obs: pd.DataFrame | None = None) -> str:
    """Return a sentence that names the first site and cell with a non-finite value or log density."""
    for name, parameter in program.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter '{name}' is not finite; lower the learning rate"
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = poutine.trace(program.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(batch)
    for trace in (guide, model):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or not hasattr(site["fn"], "log_prob"):
                continue
            for what, value in (("value", site["value"]), ("log density", site["fn"].log_prob(site["value"]))):
                wrong = torch.nonzero(~torch.isfinite(value))
                if len(wrong):
                    return f"{what} of site '{name}' for {_cell(program, site, wrong[0], value, batch, obs)}"
    return "the gradient of the step before; lower the learning rate"


def _cell(program: Program, site, where, value, batch: Batch, obs) -> str:
    frames = [f for f in site["cond_indep_stack"] if f.name == program.plate]
    if not frames:
        return "all cells"
    event = len(site["fn"].event_shape) if value.dim() > len(site["fn"].batch_shape) else 0
    position = int(where[value.dim() - event + frames[0].dim])
    row = int(batch["index"][position]) if "index" in batch else position
    return f"cell {str(obs.index[row])!r}" if obs is not None else f"row {row}"
