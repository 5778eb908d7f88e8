"""Priors of three blocks of latents: one given the context of a cell, one given its treatment, one given both.

Perturbations of one cell, and their doses, add up: in the mean of a latent, and in the logarithm of its scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsmr
from torch import Tensor, nn

SITES = ("z_x", "z_tx", "z_t")
BOUND = 5.0
"""Most that the logarithm of a scale is, in size."""
FEW_PAIRS = 6
"""Pairs of context and treatment from which on what is common to them is estimated."""
CHANCE = 2.0
"""How many times the variance of chance a line has to explain before it is believed at all."""
TINY = 1e-6


@dataclass(frozen=True)
class Law:
    """Gaussian prior of the latents of a block, for each cell.

    Attributes
    ----------
    loc, scale : Tensor [B, D]
    unknown : Tensor [B, D]
        Standard deviation of what is not known of ``loc``: 0, but for pairs of context and treatment that training
        has not, the control among them. It is part of ``total``.
    """

    loc: Tensor
    scale: Tensor
    unknown: Tensor

    @property
    def total(self) -> Tensor:
        """Standard deviation of a latent, what is not known of its mean with it, [B, D]."""
        return (self.scale.square() + self.unknown.square()).sqrt()


class BlockPrior(nn.Module):
    """Means and scales of three blocks.

    Parameters
    ----------
    n_context, n_treatment : int
        C and T, the control not counted.
    sizes : mapping of str to int
        Latents of each block, 0 for none.
    centred : bool
        Whether the means of the latents of both are centred: over treatments in each context, and over contexts for
        each treatment, so that main effects are left to the other blocks.

    Attributes
    ----------
    pairs : Tensor [C, 1 + T]
        Training cells under each treatment in each context; the control first.
    """

    pairs: Tensor

    def __init__(self, n_context: int, n_treatment: int, sizes: Mapping[str, int], centred: bool = False) -> None:
        super().__init__()
        self.sizes, self.centred = dict(sizes), centred
        shapes = {"z_x": (n_context,), "z_tx": (n_context, n_treatment + 1), "z_t": (n_treatment + 1,)}
        for kind in ("loc", "log_scale"):
            for site, shape in shapes.items():
                if self.sizes[site]:
                    start = torch.randn if kind == "loc" else torch.zeros
                    setattr(self, f"{kind}_{site}", nn.Parameter(start(*shape, self.sizes[site])))
        self.register_buffer("pairs", torch.zeros(n_context, n_treatment + 1))

    def count(self, context: Tensor, codes: Tensor) -> None:
        """Count the training cells of each pair of context [N] and perturbation, codes [N, M]."""
        self.pairs.zero_()
        control = (codes < 0).all(-1)
        width = self.pairs.shape[1]
        spots = context[:, None] * width + codes + 1
        used = (codes >= 0) | (control[:, None] & (torch.arange(codes.shape[1], device=codes.device) == 0))
        self.pairs.view(-1).index_add_(0, spots[used], torch.ones_like(spots[used], dtype=self.pairs.dtype))

    def laws(self, context: Tensor, codes: Tensor, doses: Tensor | None = None) -> dict[str, Law]:
        """Return the prior of each block that has latents, for cells of contexts [B] under codes [B, M] at doses."""
        weight = (codes >= 0).to(self.pairs.dtype)
        weight = (weight if doses is None else weight * doses).unsqueeze(-1)
        width = self.pairs.shape[1]
        first = {"z_tx": context * width, "z_t": torch.zeros_like(context)}
        laws = {}
        for site in SITES:
            if not self.sizes[site]:
                continue
            loc, log_scale = getattr(self, f"loc_{site}"), getattr(self, f"log_scale_{site}")
            if site == "z_x":
                loc, log_scale, unknown = loc[context], log_scale[context], None
            else:
                unknown = None
                if site == "z_tx":
                    loc, log_scale, unknown = self.interactions(loc, log_scale)
                rows = first[site].unsqueeze(-1) + codes + 1
                loc, log_scale = (_added(table.flatten(0, -2), first[site], rows, weight) for table in (loc, log_scale))
                if unknown is not None:
                    treated = (weight * unknown.flatten(0, -2)[rows]).square().sum(-2).sqrt()
                    control = (codes < 0).all(-1, keepdim=True)
                    unknown = torch.where(control, unknown.flatten(0, -2)[first[site]], treated)
            unknown = torch.zeros_like(loc) if unknown is None else unknown
            laws[site] = Law(loc, log_scale.clamp(-BOUND, BOUND).exp(), unknown)
        return laws

    def interactions(self, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return means and log scales [C, 1 + T, D] of the latents of both, and what is not known of the means."""
        if self.centred and loc.shape[0] > 1 and loc.shape[1] > 1:
            loc = loc - loc.mean(0, keepdim=True) - loc.mean(1, keepdim=True) + loc.mean((0, 1), keepdim=True)
        unseen = self.unseen
        if self.training or not unseen.any():
            return loc, log_scale, None
        known, lacking = ~unseen, unseen[:, :1].unsqueeze(-1)
        if lacking.any() and not lacking.all():  # controls of a context are taken to be like those of the others
            others = loc[~unseen[:, 0], :1]
            usual, spread = others.mean(0), others.std(0, correction=0)
            loc = torch.cat((torch.where(lacking, usual, loc[:, :1]), loc[:, 1:] + lacking * (loc[:, :1] - usual)), 1)
        else:
            spread = torch.zeros_like(loc[0, :1])
        known = torch.cat((torch.ones_like(known[:, :1]), known[:, 1:]), 1)
        loc, unknown = completed(loc, known)
        unknown = torch.cat((torch.where(lacking, spread, 0.0).expand_as(loc[:, :1]), unknown[:, 1:]), 1)
        mean = (log_scale * known.unsqueeze(-1)).sum((0, 1)) / known.sum().clamp(min=1)
        return loc, torch.where(known.unsqueeze(-1), log_scale, mean), unknown

    @property
    def unseen(self) -> Tensor:
        """Which pairs training had no cell of, bool [C, 1 + T]; none before it has begun."""
        return (self.pairs == 0) & (self.pairs.sum() > 0)

    @torch.no_grad()
    def start(
        self, site: str, mean: np.ndarray, variance: np.ndarray, cells: np.ndarray, kinds: np.ndarray, dose: np.ndarray
    ) -> None:
        """Set a block to the moments [K, D] of its latents in conditions, by weighted least squares.

        Parameters
        ----------
        site : str
        mean, variance : float arrays [K, D]
        cells : array [K]
            Of each condition.
        kinds : int array [K, 1 + M]
            Context and perturbations of each condition, -1 for none.
        dose : float array [K, M]
        """
        for group in np.unique(kinds[:, 0]) if site != "z_t" else [None]:
            rows = np.full(len(kinds), True) if group is None else kinds[:, 0] == group
            design = _design(kinds[rows, 1:], dose[rows], 0 if site == "z_x" else self.pairs.shape[1] - 1)
            root = np.sqrt(cells[rows])
            loc = _solved(design, mean[rows], root)
            square = variance[rows] + (mean[rows] - design @ loc) ** 2
            log_scale = _solved(design, np.log(np.maximum(square, TINY)) / 2, root)
            for name, values in (("loc", loc), ("log_scale", log_scale)):
                table = getattr(self, f"{name}_{site}")
                values = torch.as_tensor(values, dtype=table.dtype, device=table.device)
                if site == "z_x":
                    table[int(group)] = values[0]
                elif site == "z_tx":
                    table[int(group)] = values
                else:
                    table.copy_(values)


def _design(codes: np.ndarray, dose: np.ndarray, n_treatment: int) -> csr_matrix:
    """Return a column of ones and one of the dose of each treatment, [K, 1 + T], sparse."""
    rows, at = np.nonzero(codes >= 0) if n_treatment else (np.empty(0, int), np.empty(0, int))
    ones = np.arange(len(codes))
    values = np.concatenate((np.ones(len(codes)), dose[rows, at]))
    places = np.concatenate((ones, rows)), np.concatenate((np.zeros(len(codes), int), codes[rows, at] + 1))
    return csr_matrix((values, places), shape=(len(codes), 1 + n_treatment))


def _solved(design: csr_matrix, values: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Return the coefficients [1 + T, D] of weighted least squares, the smallest of them where there are several."""
    weighted = design.multiply(root[:, None]).tocsr()
    return np.stack([lsmr(weighted, root * column, damp=TINY)[0] for column in values.T], 1)


def completed(table: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Fill a table of pairs [C, 1 + T, D] in; return it, and the standard deviation of what was filled in.

    A pair is predicted by a line through the average of its treatment over the other contexts and that of its context
    over the other treatments; the line is fitted to the known pairs, each predicted without itself. Its slopes are
    positive, and shrunk by what chance would explain as well (`_slopes`): where pairs have nothing in common, a pair is
    predicted by the average of all. The first column, the controls, is taken for known.
    """
    there = known.unsqueeze(-1).to(table.dtype)
    there = torch.cat((torch.zeros_like(there[:, :1]), there[:, 1:]), 1)
    values = torch.where(there > 0, table, 0.0)
    grand = values.sum((0, 1)) / there.sum((0, 1)).clamp(min=1)
    predictors = []
    for axis in (0, 1):
        rest, count = values.sum(axis, keepdim=True) - values, there.sum(axis, keepdim=True) - there
        predictors.append(torch.where(count > 0, rest / count.clamp(min=1) - grand, 0.0))
    rows = there.squeeze(-1) > 0
    spread = torch.zeros_like(table)
    filled = table.clone()
    missing = ~known
    for d in range(table.shape[-1]):
        first, second = (p[..., d] for p in predictors)
        target = table[..., d][rows] - grand[d]
        if int(rows.sum()) >= FEW_PAIRS:
            design = torch.stack((first[rows], second[rows]), -1)
            slope = _slopes(design, target)
            left = target - design @ slope
        else:
            slope, left = torch.zeros(2, dtype=table.dtype, device=table.device), target
        guess = grand[d] + slope[0] * first + slope[1] * second
        filled[..., d] = torch.where(missing, guess, table[..., d])
        width = left.square().mean().sqrt() if len(left) else table.new_zeros(())
        spread[..., d] = torch.where(missing, width, 0.0)
    return filled, spread


def _slopes(design: Tensor, target: Tensor) -> Tensor:
    """Return positive slopes [2] of a line through predictors [P, 2] of a target [P], shrunk as Stein's estimator is.

    By the factor ``1 - CHANCE / F``, F the variance that a predictor explains over that which is left, where that is
    positive.
    """
    x, y = design.detach().double().cpu().numpy(), target.detach().double().cpu().numpy()
    slope, left = nnls(x, y)
    explained = ((x @ slope) ** 2).sum() / 2
    if explained > 0:
        slope *= max(0.0, 1 - CHANCE * left**2 / (len(y) - 2) / explained)
    return torch.as_tensor(slope, dtype=design.dtype, device=design.device)


def _added(table: Tensor, first: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of controls [B] plus those of perturbations [B, M], weighted [B, M, 1], of a table: [B, D]."""
    return table[first] + (weight * table[rows]).sum(-2)
