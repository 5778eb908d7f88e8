"""A simulated optical pooled screen: images of cells whose shape and stains follow the complexes of perturbed genes."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from fieldguide.inference.checks.ranges import Number, Seed, Share, Size, Weight, checked

CHANNELS = ("damage", "actin", "DNA", "tubulin")
TRAITS = (
    *("nucleus radius", "eccentricity", "irregularity", "DNA texture", "DNA intensity", "number of foci"),
    *("height of foci", "cortex", "fibres", "tubulin", "reach of tubulin", "polarity of tubulin"),
)
"""What the twelve parameters of a cell change."""
CONTROL = "non-targeting"
EDGE = 0.05
"""Width of the edges of nuclei and cells, half the width of the image being 1."""
SPOT = 0.05
AT_ONCE = 256


@dataclass
class ImageScreen:
    """Images of a screen, and what made them.

    Attributes
    ----------
    data : AnnData
        ``obsm["image"]`` float32 [N, 4, S, S] in [0, 1], channels `CHANNELS`; ``obsm["traits"]`` [N, 12], the
        parameters of each cell, 0 for a typical one; ``obs``: ``gene`` ("non-targeting" for controls), ``guide``,
        ``well``, ``hit`` (whether the perturbation took). ``X`` is empty.
    complexes : Series
        Complex of each gene, "" for one without; by gene.
    effects : DataFrame [genes, 12]
        What a perturbation that took adds to the traits, but for the efficacy of its guide.
    """

    data: anndata.AnnData
    complexes: pd.Series
    effects: pd.DataFrame


@checked
def ops_sim(
    seed: Seed,
    n_complexes: Size = 8,
    n_genes: Size = 5,
    n_single: Number = 8,
    n_wells: Size = 8,
    n_cells: Size = 100,
    n_controls: Size = 600,
    size: Size = 32,
    strength: Weight = 0.8,
    penetrance: Share = 0.7,
    natural: Weight = 0.7,
    confounding: Weight = 0.0,
) -> ImageScreen:
    """Return images of cells in which each gene of a complex changes the same three traits, more or less.

    Parameters
    ----------
    seed : int
    n_complexes, n_genes, n_single : int
        Complexes, genes in each, and genes without a complex. Two complexes have at most one trait in common.
    n_wells : int
        Each has a blur, a gain and an offset for each channel, and a tilt of the light.
    n_cells, n_controls : int
        Cells of each gene, by two guides of unequal efficacy; and controls.
    size : int
        S, pixels.
    strength : float
        Of the change in each of the three traits.
    penetrance : float
        Share of the cells in which a perturbation takes.
    natural : float
        Standard deviation of the traits among cells alike, beside the cell cycle, which moves two of them.
    confounding : float
        0: genes are spread evenly over wells. Else the wells of each gene are drawn from a Dirichlet distribution of
        concentration 1 / confounding.

    Raises
    ------
    ValueError
        If there are not so many complexes that differ.

    Examples
    --------
    >>> screen = ops_sim(0, 2, 2, 1, 2, 4, 6, size=16)
    >>> screen.data.obsm["image"].shape, screen.complexes.tolist()
    ((26, 4, 16, 16), ['complex0', 'complex0', 'complex1', 'complex1', ''])
    """
    rng = np.random.default_rng(seed)
    shared = np.stack([*_complexes(rng, n_complexes, strength), *[np.zeros(len(TRAITS))] * n_single])
    member = np.r_[np.repeat(np.arange(n_complexes), n_genes), n_complexes + np.arange(n_single)]
    effects = rng.uniform(0.7, 1.3, (len(member), 1)) * shared[member] + 0.2 * rng.normal(
        size=(len(member), len(TRAITS))
    )
    efficacy = rng.uniform(0.7, 1, (len(member), 2))
    gene = np.r_[np.repeat(np.arange(len(member)), n_cells), np.full(n_controls, -1)]
    guide = np.where(gene < 0, 0, rng.integers(0, 2, len(gene)))
    hit = (rng.random(len(gene)) < penetrance) & (gene >= 0)
    cycle = rng.uniform(-np.sqrt(3), np.sqrt(3), len(gene))
    traits = natural * rng.normal(size=(len(gene), len(TRAITS)))
    traits[:, [0, 4]] += 0.9 * cycle[:, None]
    traits += (hit * efficacy[gene, guide])[:, None] * effects[gene]
    chance = np.full((len(member) + 1, n_wells), 1 / n_wells)
    if confounding:
        chance = rng.dirichlet(np.full(n_wells, 1 / confounding), len(member) + 1)
    well = (rng.random((len(gene), 1)) > chance[gene].cumsum(1)).sum(1).clip(max=n_wells - 1)
    images = np.concatenate([_cells(rng, traits[k : k + AT_ONCE], size) for k in range(0, len(gene), AT_ONCE)])
    images = _photographed(rng, images, well, n_wells)
    order = rng.permutation(len(gene))
    names = [f"gene{g}" for g in range(len(member))]
    labels = np.array([*names, CONTROL])[gene]
    obs = pd.DataFrame(
        {
            "gene": pd.Categorical(labels[order]),
            "guide": np.char.add(np.char.add(labels, "_"), guide.astype(str))[order],
            "well": np.char.add("well", well.astype(str))[order],
            "hit": hit[order],
        },
        index=[f"cell{i}" for i in range(len(gene))],
    )
    data = anndata.AnnData(obs=obs, obsm={"image": images[order], "traits": traits[order]})
    said = [f"complex{k}" if k < n_complexes else "" for k in member]
    return ImageScreen(data, pd.Series(said, names), pd.DataFrame(effects, names, list(TRAITS)))


def _complexes(rng: np.random.Generator, number: int, strength: float) -> list[np.ndarray]:
    """Three traits and signs for each complex; two have at most one trait in common."""
    chosen: list[set[int]] = []
    for _ in range(1000 * number):
        if len(chosen) == number:
            break
        traits = set(rng.choice(len(TRAITS), 3, replace=False).tolist())
        if all(len(traits & other) < 2 for other in chosen):
            chosen.append(traits)
    else:
        raise ValueError(f"n_complexes={number}: there are not so many of which two share at most one trait")
    shifts = []
    for traits in chosen:
        shift = np.zeros(len(TRAITS))
        shift[sorted(traits)] = strength * rng.choice([-1.0, 1.0], 3)
        shifts.append(shift)
    return shifts


def _cells(rng: np.random.Generator, traits: np.ndarray, size: int) -> np.ndarray:
    """Cells of given traits [n, 12] as they are, before they are photographed: [n, 4, S, S]."""
    n = len(traits)
    t = iter(traits.T[:, :, None, None])
    radius, eccentric, ragged = (
        0.36 * np.exp(0.12 * next(t)),
        0.08 * np.exp(0.5 * next(t)),
        0.03 * np.exp(0.5 * next(t)),
    )
    texture, intensity = 0.25 * np.exp(0.5 * next(t)), 0.35 * np.exp(0.15 * next(t))
    n_foci, height = 4 * np.exp(0.5 * next(t)).ravel(), 0.12 * np.exp(0.3 * next(t))
    cortex, fibre, tubulin = 0.22 * np.exp(0.4 * next(t)), 0.25 * np.exp(0.5 * next(t)), 0.30 * np.exp(0.2 * next(t))
    reach, polarity = 0.22 * np.exp(0.35 * next(t)), np.clip(0.35 + 0.3 * next(t), -0.2, 0.95)

    def drawn(scale: float = 1.0) -> np.ndarray:
        return scale * rng.normal(size=(n, 1, 1))

    def angle() -> np.ndarray:
        return rng.uniform(0, 2 * np.pi, (n, 1, 1))

    line = (2 * np.arange(size) + 1) / size - 1
    u, v = np.meshgrid(line, line, indexing="xy")
    x, y = drawn(0.06), drawn(0.06)
    away, around = np.hypot(u - x, v - y), np.arctan2(v - y, u - x) - angle()
    nucleus = radius * (1 + eccentric * np.cos(2 * around))
    for wave in (3, 4, 5):
        nucleus = nucleus * (1 + ragged * drawn() * np.cos(wave * around + angle()))
    cell = 0.80 * np.exp(drawn(0.08))
    cell = cell * (1 + 0.12 * np.cos(2 * around + angle()) + 0.06 * np.cos(3 * around + angle()))
    in_nucleus, in_cell = expit((nucleus - away) / EDGE), expit((cell - away) / EDGE)
    coarse, fine = _field(rng, n, size, size / 16), _field(rng, n, size, size / 32)
    dna = intensity * in_nucleus * np.maximum(0, 1 + texture * coarse)
    damage = 0.07 + 0.10 * in_nucleus + 0.03 * in_cell
    foci = rng.poisson(n_foci)
    for number in range(foci.max(initial=0)):
        out, at = 0.8 * radius * np.sqrt(rng.random((n, 1, 1))), angle()
        square = (u - x - out * np.cos(at)) ** 2 + (v - y - out * np.sin(at)) ** 2
        damage = damage + (foci > number)[:, None, None] * height * np.exp(-square / (2 * SPOT**2))
    along, phase = rng.uniform(0, np.pi, (n, 1, 1)), angle()
    stripes = np.sin(6 * np.pi * (u * np.cos(along) + v * np.sin(along)) + phase)
    actin = 0.20 + 0.12 * in_cell * np.maximum(0, 1 + 2 * fibre * stripes)
    actin = actin + cortex * np.exp(-(((away - cell) / 0.09) ** 2))
    body = np.maximum(0, in_cell - in_nucleus) * np.exp(-np.maximum(0, away - nucleus) / reach)
    body = body * (1 + polarity * np.cos(around - angle())) * np.maximum(0, 1 + 0.25 * fine)
    tubes = 0.12 + tubulin * body + 0.05 * in_cell
    neighbours = np.minimum(4, rng.poisson(1.5, n))
    for number in range(4):
        there = (neighbours > number)[:, None, None]
        out, at, theirs = rng.uniform(0.95, 1.35, (n, 1, 1)), angle(), 0.36 * np.exp(drawn(0.15))
        distance = np.hypot(u - out * np.cos(at), v - out * np.sin(at))
        inside = there * expit((theirs - distance) / EDGE)
        dna = np.maximum(dna, 0.35 * np.exp(drawn(0.2)) * inside)
        damage = damage + 0.10 * inside
        tubes = tubes + there * 0.22 * np.exp(-np.abs(distance - theirs - 0.05) / 0.15)
    return np.stack((damage, actin, dna, tubes), 1)


def _field(rng: np.random.Generator, n: int, size: int, width: float) -> np.ndarray:
    """Smooth random fields [n, S, S] of variance one, without edges."""
    smooth = gaussian_filter(rng.normal(size=(n, size, size)), (0, width, width), mode="wrap")
    return smooth / smooth.std((1, 2), keepdims=True)


def _photographed(rng: np.random.Generator, images: np.ndarray, well: np.ndarray, n_wells: int) -> np.ndarray:
    """The images through the optics of their wells, with noise, float32 in [0, 1]."""
    size = images.shape[-1]
    line = (2 * np.arange(size) + 1) / size - 1
    out = np.empty(images.shape, dtype=np.float32)
    for code in range(n_wells):
        blur = rng.uniform(0.2, 0.8) * size / 32
        gain, offset = np.exp(0.15 * rng.normal(size=(4, 1, 1))), 0.03 * rng.normal(size=(4, 1, 1))
        tilt = 0.1 * rng.normal(size=2)
        rows = np.flatnonzero(well == code)
        seen = gaussian_filter(images[rows], (0, 0, blur, blur))
        seen = seen * gain * (1 + tilt[0] * line + tilt[1] * line[:, None]) + offset
        noise = np.sqrt(np.maximum(0, 0.0015 * seen) + 0.0002) * rng.normal(size=seen.shape)
        out[rows] = np.clip(seen + noise, 0, 1)
    return out
