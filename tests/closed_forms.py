"""Shared by the tests of objectives: the 1-D reference problem, fixed noise, and all objectives with all gradients."""

import json
from contextlib import contextmanager
from math import log
from pathlib import Path
from unittest import mock

import torch
from hypothesis import Phase, settings

from fieldguide.inference import CUBO, ELBO, IWAE, Chi, ForwardKL, Program, Renyi, Step, VRMax, WakeWake
from fieldguide.inference.testing import Conjugate

FOLDER = Path(__file__).parent / "reference"
GAUSS = json.loads((FOLDER / "objectives.json").read_text())["gauss1d"]
GUIDES = json.loads((FOLDER / "gaussian_guides.json").read_text())
PROPOSALS = {p["name"]: p for p in GAUSS["proposals"]}

EXACT = settings(max_examples=15)
"""For properties that hold exactly."""
SAMPLED = settings(max_examples=3, phases=[Phase.generate])
"""For properties that hold in the mean over many draws."""


def every_objective(k: int) -> list:
    """Every objective with every gradient and every option, with K particles (at least 21, or without smoothing)."""
    found = [ELBO(k), ELBO(k, "stl"), ELBO(k, "score")]
    for gradient in ("reparam", "dreg", "score"):
        found += [IWAE(k, gradient), Renyi(0.5, k, gradient), Renyi(-1.0, k, gradient), Renyi(2.0, k, gradient)]
    found += [VRMax(k), VRMax(k, "score")]
    for gradient in ("dreg", "score"):
        found += [ForwardKL(k, gradient), WakeWake(k, gradient)]
    for gradient in ("path", "score"):
        found += [CUBO(2, k, gradient), CUBO(1.5, k, gradient), CUBO(3, k, gradient), Chi(k, gradient)]
        found += [Chi(k, gradient, fallback=3), Chi(k, gradient, smooth="truncate"), Chi(k, gradient, anneal=True)]
        if k >= 21:
            found += [Chi(k, gradient, smooth="psis")]
    return [*found, Chi(k, "vr_mc_alpha=-1")]


def gauss1d(proposal: dict) -> Conjugate:
    """z ~ N(0, 1); x | z ~ N(z, 0.5); q = N(m, v)."""
    program = Conjugate(torch.ones(1, 1), GAUSS["lik_var"] ** 0.5)
    with torch.no_grad():
        program.guide_intercept.fill_(proposal["m"])
        program.guide_log_scale.fill_(0.5 * log(proposal["v"]))
    return program


def seeded(program: Program, batch: dict, **scalars) -> Step:
    """A step whose draws are those of seed 0."""
    torch.manual_seed(0)
    return Step(program, batch, scalars=scalars)


def observed(cells: int = 1) -> dict:
    return {"x": torch.full((cells, 1), GAUSS["x"], dtype=torch.float64)}


@contextmanager
def fixed_noise(noise: torch.Tensor):
    """Let every pathwise draw of a Gaussian use this noise, of the shape of the draw."""

    def take(shape, dtype, device):
        assert tuple(shape) == tuple(noise.shape), (shape, noise.shape)
        return noise.to(dtype)

    with mock.patch("torch.distributions.normal._standard_normal", take):
        yield


def quantiles(particles: int) -> torch.Tensor:
    """Midpoint quantiles of the standard Gaussian [K, 1, 1]: draws that turn a mean into a quadrature."""
    middle = (torch.arange(particles, dtype=torch.float64) + 0.5) / particles
    return torch.special.ndtri(middle)[:, None, None]
