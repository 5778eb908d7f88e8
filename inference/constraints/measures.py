"""How dependent variables are: the Hilbert-Schmidt independence criterion (HSIC) and its estimators.

HSIC is the squared distance between a joint distribution and the product of its margins, in the feature space of a
kernel for each variable; it is zero only under independence. Estimators take Gram matrices of n points, [..., n, n],
so that blocks of points are one more dimension in front. They are computed in double precision: HSIC near independence
is a difference of terms of order one that leaves 1e-4.

Sources: Gretton et al. 2008; Song et al. 2012 (unbiased); Pfister et al. 2018 (d variables); Lopez et al. 2018.
"""

from collections.abc import Sequence
from math import gamma as gamma_function
from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 4
"""Points that the unbiased estimator needs."""


def analytic_gamma(dimension: int) -> float:
    """Return 1 / (2 g^2), g being the mean distance of two draws of a standard normal of this dimension.

    Examples
    --------
    >>> round(analytic_gamma(2), 6)
    0.159155
    """
    g = 2 * gamma_function((dimension + 1) / 2) / gamma_function(dimension / 2)
    return 1 / (2 * g**2)


def median_gamma(values: Tensor) -> float:
    """Return 1 / (2 m^2), m being the median distance of two different points of ``values`` [n, D].

    Where more than half of the pairs coincide, the mean distance stands in.
    """
    distances = torch.pdist(values.double())
    middle = distances.quantile(0.5)
    middle = middle if middle > 0 else distances.mean()
    if not middle > 0:
        raise ValueError("all points coincide: there is no distance to take the bandwidth from")
    return float(1 / (2 * middle**2))


def gaussian_gram(values: Tensor, gamma: float) -> Tensor:
    """Return exp(-gamma |a - b|^2) [..., n, n], float64, of ``values`` [..., n, D]."""
    return torch.exp(-gamma * _squares(values))


def delta_gram(codes: Tensor) -> Tensor:
    """Return the kernel of categories [..., n, n], float64: one where the codes [..., n] agree, zero elsewhere."""
    return (codes.unsqueeze(-1) == codes.unsqueeze(-2)).double()


def dhsic(*grams: Tensor) -> Tensor:
    """Return the V-statistic of d-variable HSIC [...], from d Gram matrices [..., n, n]; never negative.

    With two matrices it is tr(K H L H) / n^2. Under independence its mean is about (1 - E k)(1 - E l) / n, which is
    more than most dependences: prefer `hsic_unbiased` where there are two variables.
    """
    if len(grams) < 2:
        raise ValueError("dHSIC needs two variables or more")
    if len(grams) == 2:
        return (_centred(grams[0]) * _centred(grams[1])).mean((-2, -1))
    rows = [g.mean(-1) for g in grams]
    joint = torch.stack(grams).prod(0).mean((-2, -1))
    margins = torch.stack([r.mean(-1) for r in rows]).prod(0)
    return joint + margins - 2 * torch.stack(rows).prod(0).mean(-1)


def hsic_unbiased(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased estimate of HSIC [...] from two Gram matrices [..., n, n], n >= 4; it may be negative.

    The estimator of Song et al. 2012, in the form of an inner product of U-centred matrices.
    """
    n = first.shape[-1]
    if n < LEAST:
        raise ValueError(f"the unbiased estimator needs at least {LEAST} points, not {n}")
    return (_u_centred(first) * _u_centred(second)).sum((-2, -1)) / (n * (n - 3))


def blocks(values: Tensor, size: int) -> Tensor:
    """Cut points [n, ...] into blocks [n // size, size, ...]; the rest is left out."""
    count = len(values) // size
    return values[: count * size].unflatten(0, (count, size))


def random_features(values: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """Return features [n, F] whose inner products approximate the Gaussian kernel (Rahimi and Recht 2007).

    Parameters
    ----------
    values : Tensor [n, D]
    frequencies : Tensor [D, F]
        Drawn from Normal(0, 2 gamma).
    phases : Tensor [F]
        Drawn uniformly from [0, 2 pi).
    """
    return sqrt(2 / frequencies.shape[1]) * torch.cos(values @ frequencies + phases)


def draw_features(dimension: int, gamma: float, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return frequencies [D, F] and phases [F] for `random_features`."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = sqrt(2 * gamma) * torch.randn((dimension, features), generator=generator)
    return frequencies, 2 * pi * torch.rand(features, generator=generator)


def hsic_features(first: Tensor, second: Tensor, unbiased: bool = False) -> Tensor:
    """Return HSIC of the kernels whose features are [n, F] and [n, E], in time linear in n.

    The V-statistic is the squared norm of the cross-covariance of the features. The unbiased one takes out the pairs
    of a point with itself.
    """
    n = len(first)
    a, b = first - first.mean(0), second - second.mean(0)
    cross = (a.T @ b).square().sum()
    if not unbiased:
        return cross / n**2
    if n < LEAST:
        raise ValueError(f"the unbiased estimator needs at least {LEAST} points, not {n}")
    own_a, own_b = a.square().sum(1), b.square().sum(1)  # centred features: each row of the Gram matrix sums to zero
    total = cross - (own_a * own_b).sum()
    total = total + own_a.sum() * own_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (own_a * own_b).sum()
    return total / (n * (n - 3))


def multiquadric_gram(values: Tensor) -> Tensor:
    """Return the mean of five kernels c / (c + |a - b|^2), c = 2 D (1/5, 1/2, 1, 2, 5), [..., n, n], float64.

    Their unit suits a standard Gaussian of D dimensions; unlike a Gaussian kernel they have gradients far away
    (Tolstikhin et al. 2018).
    """
    squares = _squares(values)
    scales = [2 * values.shape[-1] * factor for factor in (0.2, 0.5, 1.0, 2.0, 5.0)]
    return torch.stack([c / (c + squares) for c in scales]).mean(0)


def mmd(gram: Tensor, codes: Tensor, groups: int = 2) -> Tensor:
    """Return the squared maximum mean discrepancy (V-statistic) between each group and all others, averaged.

    Between two groups it is n^4 / (2 n0^2 n1^2) times the HSIC with the kernel of categories.

    Parameters
    ----------
    gram : Tensor [n, n]
    codes : Tensor [n]
        The group of each point, from 0. A group without a point counts as equal to the others.
    groups : int
    """
    if groups < 2:
        raise ValueError(f"MMD compares two groups or more, not {groups}")
    member = F.one_hot(codes, groups).to(gram)
    inside = member.sum(0)
    outside = len(codes) - inside
    signed = member / inside.clamp(min=1) - (1 - member) / outside.clamp(min=1)
    form = torch.einsum("bm,bc,cm->m", signed, gram, signed)
    return torch.where((inside > 0) & (outside > 0), form, 0.0).mean()


def population_hsic(covariance: Tensor, sizes: Sequence[int], gammas: Sequence[float]) -> Tensor:
    """Return HSIC of two jointly Gaussian variables exactly, under Gaussian kernels.

    Parameters
    ----------
    covariance : Tensor [D + E, D + E]
    sizes : (D, E)
    gammas : bandwidth of each variable's kernel
    """
    c, d = covariance.double(), sizes[0]
    g = torch.cat([torch.full((size,), gamma, dtype=c.dtype) for size, gamma in zip(sizes, gammas, strict=True)])
    doubled = c.clone()
    doubled[:d, :d] *= 2
    doubled[d:, d:] *= 2

    def factor(matrix: Tensor, weights: Tensor, times: int) -> Tensor:
        return torch.det(torch.eye(len(matrix), dtype=c.dtype) + times * weights[:, None] * matrix).rsqrt()

    return factor(c, g, 4) + factor(c[:d, :d], g[:d], 4) * factor(c[d:, d:], g[d:], 4) - 2 * factor(doubled, g, 2)


def _squares(values: Tensor) -> Tensor:
    """Squared distances [..., n, n]."""
    x = values.double()
    squares = (x**2).sum(-1)
    return (squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * x @ x.mT).clamp(min=0)


def _centred(gram: Tensor) -> Tensor:
    rows = gram.mean(-1, keepdim=True)
    return gram - rows - rows.mT + rows.mean(-2, keepdim=True)


def _u_centred(gram: Tensor) -> Tensor:
    n = gram.shape[-1]
    off = 1 - torch.eye(n, dtype=gram.dtype, device=gram.device)
    rows = (gram * off).sum(-1, keepdim=True)
    centred = gram - rows / (n - 2) - rows.mT / (n - 2) + rows.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    return centred * off
