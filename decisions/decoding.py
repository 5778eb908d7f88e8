"""What a fitted program expects of cells whose latents are given: its decoder, by a deterministic site."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from fieldguide.inference.fitted import Fit
from fieldguide.inference.program import Batch
from fieldguide.inference.randomness import isolated, stream

PROPORTIONS, MEANS = "rho", "mean"
TINY = 1e-12
"""Least proportion of a gene, before the logarithm."""


def proportions(fitted: Fit, batch: Batch, seed: int, latents: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return each gene's proportion [B, G] in cells whose latents are given, or else drawn from their prior.

    Raises
    ------
    TypeError
        If the program has no deterministic site ``rho``.
    """
    sites = _decoded(fitted, batch, seed, latents)
    if PROPORTIONS not in sites:
        raise TypeError(f"{fitted.name} has no deterministic site '{PROPORTIONS}' (each gene's proportion)")
    return sites[PROPORTIONS]


def expected_values(
    fitted: Fit, batch: Batch, seed: int, latents: Mapping[str, Tensor] | None = None
) -> tuple[str, Tensor]:
    """Return what is expected of each gene [B, G], and the name of the site: "rho", proportions, or "mean", values.

    Raises
    ------
    TypeError
        If the program has neither.
    """
    sites = _decoded(fitted, batch, seed, latents)
    for site in (PROPORTIONS, MEANS):
        if site in sites:
            return site, sites[site]
    raise TypeError(f"{fitted.name} has no deterministic site '{PROPORTIONS}' or '{MEANS}' to read expression from")


def encoded(fitted: Fit, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return one draw of each latent site from the guide, [B, ...]."""
    program = fitted.program.eval()
    with torch.no_grad(), pyro.validation_enabled(False), isolated(fitted.device, stream(seed, "encoding")):
        trace = poutine.trace(program.guide).get_trace(batch)
    nodes: Any = trace.nodes
    return {name: nodes[name]["value"] for name in trace.stochastic_nodes if name != program.plate}


def _decoded(fitted: Fit, batch: Batch, seed: int, latents: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The values of all sites of the model, latents that are not given drawn from their prior."""
    program = fitted.program.eval()
    model = poutine.condition(program.model, data=dict(latents or {}))
    with torch.no_grad(), pyro.validation_enabled(False), isolated(fitted.device, stream(seed, "decoding")):
        trace = poutine.trace(model).get_trace(batch)
    nodes: Any = trace.nodes
    return {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}
