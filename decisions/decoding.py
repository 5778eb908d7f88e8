"""Each gene's proportion in cells whose latents are given: the decoder of a fitted program, by its site ``rho``."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from fieldguide.inference.fitted import Fit
from fieldguide.inference.program import Batch
from fieldguide.inference.randomness import isolated, stream

SITE = "rho"
TINY = 1e-12
"""Least proportion of a gene, before the logarithm."""


def proportions(fitted: Fit, batch: Batch, seed: int, latents: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return each gene's proportion [B, G] in cells whose latents are given, or else drawn from their prior.

    Raises
    ------
    TypeError
        If the program has no deterministic site ``rho``.
    """
    program = fitted.program.eval()
    model = poutine.condition(program.model, data=dict(latents or {}))
    with torch.no_grad(), pyro.validation_enabled(False), isolated(fitted.device, stream(seed, "decoding")):
        trace = poutine.trace(model).get_trace(batch)
    if SITE not in trace.nodes:
        raise TypeError(f"{fitted.name} has no deterministic site '{SITE}' (each gene's proportion)")
    value: Any = trace.nodes[SITE]["value"]
    return value
