"""Shifts of latents by perturbations, and the probability of each to be there: arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_ndtr
from scipy.stats import norm

from fieldguide.inference.checks.arguments import checked_real, one_of

ROUNDS = 200
"""Most rounds of the estimation of how many shifts there are and how large."""
CHANGE = 1e-8
TINY = 1e-12
ESTIMABLE = 1e-6
"""What a sum of shifts may differ from one that the cells determine."""
DEAD = 1e-9
"""Standard deviation of a latent among cells alike, as a share of the largest, up to which it does not vary."""


@dataclass(frozen=True)
class Shifts:
    """Least-squares shifts [K, D], their standard errors [K, D], the standard deviation of cells [D], its freedom."""

    estimate: np.ndarray
    error: np.ndarray
    deviation: np.ndarray
    freedom: int


def estimated_shifts(latents: np.ndarray, codes: np.ndarray, n_perturbations: int) -> Shifts:
    """Return the shift of the latents by each perturbation, against controls, in units of the latents.

    Where cells have several perturbations their shifts are taken to add, and are told apart by least squares. What the
    cells do not tell apart, as perturbations that never occur apart, has an infinite error; only sums are known, and
    are shared out evenly. Without controls, shifts are counted from the median of the perturbations that can be told
    from one another. A latent that does not vary among cells alike has the shift 0 and an infinite error.

    Parameters
    ----------
    latents : float array [N, D]
    codes : int array [N, M]
        Perturbations of each cell, -1 for none.
    n_perturbations : int
        K. Those without a cell have the shift 0 and an infinite error.

    Raises
    ------
    ValueError
        If no two cells with the same perturbations differ: nothing says how much cells vary.
    """
    n_cells, size = np.zeros(n_perturbations), latents.shape[1]
    np.add.at(n_cells, codes[codes >= 0], 1)
    there = n_cells > 0
    control = bool((codes < 0).all(1).any())
    several = (codes >= 0).sum(1).max(initial=0) > 1
    estimate, error = np.zeros((n_perturbations, size)), np.full((n_perturbations, size), np.inf)
    solve = _jointly if several else _one_by_one
    estimate[there], spread, residual = solve(latents, codes, there, control)
    freedom = len(latents) - int(there.sum()) - int(control or several)
    deviation = np.sqrt((residual**2).sum(0) / max(freedom, 1))
    dead = dead_latents(deviation, freedom)
    if not control:
        sure = there & np.isin(np.arange(n_perturbations), np.flatnonzero(there)[np.isfinite(spread)])
        estimate[there] -= np.median(estimate[sure if sure.any() else there], 0)
    error[there] = np.sqrt(spread)[:, None] * deviation
    estimate[:, dead], error[:, dead], deviation[dead] = 0.0, np.inf, 1.0
    return Shifts(estimate, error, deviation, freedom)


def dead_latents(deviation: np.ndarray, freedom: int) -> np.ndarray:
    """Return which latents do not vary among cells alike, bool [D]; ValueError where nothing does.

    Parameters
    ----------
    deviation : float array [D]
    freedom : int
        Cells less the means that were taken from them.
    """
    dead = ~(deviation > DEAD * max(float(deviation.max(initial=0)), DEAD))
    if freedom < 1 or dead.all():
        raise ValueError(
            "the cells do not say how much cells alike vary: two different cells with the same perturbations, in one "
            "context where there are several, are needed"
        )
    return dead


def checked_least(name: str, value: float, null: str) -> float:
    """Return the least effect of interest; ValueError for 0 beside an empirical null, which would be all effects."""
    one_of("null", null, ("empirical", "zero"))
    least = checked_real(name, value, at_least=0)
    if null == "empirical" and least == 0:
        raise ValueError(f"{name}=0 needs null='zero': without a least effect, small leaks cannot be told from effects")
    return least


def _one_by_one(latents: np.ndarray, codes: np.ndarray, there: np.ndarray, control: bool):
    """Shifts [K', D], their variances [K'] where cells have variance one, and residuals [N, D]; one a cell at most."""
    rows = codes.max(1)
    none = rows < 0
    origin = latents[none].mean(0) if control else np.zeros(latents.shape[1])
    sums, n_cells = np.zeros((len(there), latents.shape[1])), np.bincount(rows[~none], minlength=len(there))
    np.add.at(sums, rows[~none], latents[~none] - origin)
    estimate = np.zeros_like(sums)
    estimate[there] = sums[there] / n_cells[there, None]
    residual = latents - origin - np.where(none[:, None], 0, estimate[np.maximum(rows, 0)])
    return estimate[there], 1 / n_cells[there] + (1 / none.sum() if control else 0), residual


def _jointly(latents: np.ndarray, codes: np.ndarray, there: np.ndarray, control: bool):
    """The same where cells have several: by regression on an intercept and all perturbations."""
    from scipy.sparse import csr_matrix, hstack

    cells, at = np.nonzero(codes >= 0)
    which = csr_matrix((np.ones(len(cells)), (cells, codes[cells, at])), shape=(len(codes), len(there)))
    design = hstack((np.ones((len(codes), 1)), which[:, np.flatnonzero(there)])).tocsr()
    products = (design.T @ design).toarray()
    inverse = np.linalg.pinv(products, hermitian=True)
    coefficients = inverse @ (design.T @ latents)
    wanted = np.eye(len(products))[1:]  # shifts, or their differences from the mean one
    if not control:
        sure = _told_apart(products)
        wanted[:, 1:] -= sure / sure.sum()
    known = np.abs(wanted @ (inverse @ products) - wanted).max(1) < ESTIMABLE
    spread = np.where(known, np.einsum("ij,jk,ik->i", wanted, inverse, wanted), np.inf)
    return wanted @ coefficients, spread, latents - design @ coefficients


def _told_apart(products: np.ndarray) -> np.ndarray:
    """The largest set of perturbations whose differences the cells determine, bool [K']."""
    values, vectors = np.linalg.eigh(products)
    free = vectors[1:, values < ESTIMABLE * values.max()]  # what the cells say nothing of
    kinds, size = np.unique(np.round(free, 6) + 0.0, axis=0, return_inverse=True, return_counts=True)[1:]
    return kinds.ravel() == size.argmax()


def shift_probabilities(
    estimate: np.ndarray, error: np.ndarray, least: float = 0.0, null: str = "empirical", freedom: float = np.inf
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the posterior probability that a shift is one, and larger than ``least``, and the prior behind it.

    A share pi of the entries are shifts, Normal(0, s^2); the others are Normal(0, s_0^2), with s_0 smaller: leaks of
    axes that are not quite right, and small consequences; it is at most ``least``, where that is given. Estimates have
    normal errors besides. The prior is that of largest likelihood, found by expectation-maximisation over all entries
    (an empirical null; Efron 2004).

    Parameters
    ----------
    estimate, error : float arrays of one shape
        Of infinite error where nothing is known: there the probability is that of the prior.
    least : float
        In the units of the estimates.
    null : {"empirical", "zero"}
        "zero": s_0 = 0, so that any shift counts that is larger than its error says.
    freedom : float
        Degrees of freedom of the errors. Where they are few, an error is larger than it looks, and most so for
        estimates that are many errors from 0: errors are those of normal estimates of the same tail probability.

    Returns
    -------
    probability : float array
    prior : dict
        ``share``, pi; ``size``, s; ``null``, s_0.

    Examples
    --------
    >>> probability, prior = shift_probabilities(np.array([0.3, -0.2, 3.0, 0.0, 0.4, -2.5]), np.full(6, 0.1), 0.5)
    >>> probability.round(2).tolist()
    [0.0, 0.0, 1.0, 0.0, 0.03, 1.0]
    """
    known = np.isfinite(error)
    value, variance = estimate[known], normal_errors(estimate[known], error[known], freedom) ** 2
    prior = _prior(value, variance, null == "empirical", least**2 or np.inf)
    probability = np.empty(estimate.shape)
    probability[known] = _inclusion(value, variance, *prior) * _beyond(value, variance, prior[1], least)
    probability[~known] = prior[0] * 2 * norm.sf(least, scale=np.sqrt(prior[1]))
    share, slab, spike = prior
    return probability, {"share": float(share), "size": float(np.sqrt(slab)), "null": float(np.sqrt(spike))}


def normal_errors(estimate: np.ndarray, error: np.ndarray, freedom: float) -> np.ndarray:
    """Return errors with which normal estimates have the tail probabilities of Student's t (Wallace 1959).

    Examples
    --------
    >>> normal_errors(np.array([12.706, 1.984]), np.ones(2), 1).round(1).tolist()  # 2.5 % of a t beyond 12.706
    [6.9, 1.9]
    """
    if not np.isfinite(freedom):
        return error
    t = np.maximum(np.abs(estimate) / error, 1e-6)
    z = (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t**2 / freedom))
    return error * t / z


def _prior(value: np.ndarray, variance: np.ndarray, empirical: bool, most: float) -> tuple[float, float, float]:
    """Share of shifts and the variances of these and of the others (at most so much), by expectation-maximisation."""
    if not value.size:
        return 0.5, 1.0, 0.0
    squares = np.sort(value**2)
    share, slab = 0.2, max(float(squares[int(0.8 * len(squares)) :].mean()), TINY)
    spike = min(float(np.median(squares)), slab / 4, most) if empirical else 0.0
    for _ in range(ROUNDS):
        before = np.array([share, slab, spike])
        on = _inclusion(value, variance, share, slab, spike)
        share = float((on.sum() + 1) / (on.size + 2))
        slab = _variance(on, value, variance, slab)
        spike = min(_variance(1 - on, value, variance, spike), slab, most) if empirical else 0.0
        if np.abs(np.array([share, slab, spike]) - before).max() < CHANGE * slab:
            break
    return share, slab, spike


def _variance(weights: np.ndarray, value: np.ndarray, variance: np.ndarray, prior: float) -> float:
    """Mean square of the true values of a component, given its variance before."""
    shrink = prior / np.maximum(prior + variance, TINY)
    second = (shrink * value) ** 2 + shrink * variance
    return max(float((weights * second).sum() / max(weights.sum(), TINY)), TINY)


def _inclusion(value: np.ndarray, variance: np.ndarray, share: float, slab: float, spike: float) -> np.ndarray:
    """Probability of an entry to be a shift; of two components of one width, nothing but the size tells them apart."""
    wide, narrow = np.sqrt(slab + variance), np.sqrt(np.maximum(spike + variance, TINY))
    return expit(np.log(share) - np.log1p(-share) + norm.logpdf(value, scale=wide) - norm.logpdf(value, scale=narrow))


def _beyond(value: np.ndarray, variance: np.ndarray, slab: float, least: float) -> np.ndarray:
    """Probability that a shift is larger than ``least`` in size."""
    weight = slab / (slab + variance)
    mean, scale = weight * value, np.sqrt(np.maximum(weight * variance, TINY))
    return np.exp(log_ndtr((mean - least) / scale)) + np.exp(log_ndtr((-mean - least) / scale))
