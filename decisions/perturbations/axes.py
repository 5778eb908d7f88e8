"""Axes of latents along which the shifts of perturbations are sparse, or independent."""

import warnings

import numpy as np
from scipy.optimize import minimize

STARTS = 5
"""From how many independent components, and from the axes as they are, the search for sparse axes starts."""
PRICE = 0.2


def shift_cost(shifts: np.ndarray, price: float = PRICE) -> np.ndarray:
    """Return what shifts cost, in nats a cell: ``mu^2 / 2`` where there is no shift, else about ``price log mu^2``.

    It is the smallest ``(1 - psi) mu^2 / 2 - price log(1 - psi)`` over the probability psi of a shift: of cells at mu,
    what the standard normal prior loses, or what sVAE+ pays for a shift.
    """
    gain = shifts**2 / 2
    return np.where(gain < price, gain, price * (1 + np.log(np.maximum(gain, price) / price)))


def sparse_axes(shifts: np.ndarray, weights: np.ndarray, price: float = PRICE, seed: int = 0) -> np.ndarray:
    """Return an invertible matrix [D, D] whose rows are axes of length one, in which few latents are shifted.

    The axes minimise the mean cost of the shifts less the log determinant, which is what the bound of sVAE+ loses when
    its latents, which spread by one around their shift, are written in these axes.

    Parameters
    ----------
    shifts : array [K, D]
        One row a perturbation, from an origin at which most perturbations leave most latents.
    weights : array [K]
        How much each perturbation counts: its cells.
    price : float
    seed : int
        Where the searches start: independent components (`independent_axes`), and the axes as they are.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> few = rng.normal(size=(60, 3)) * 5 * (rng.random((60, 3)) < 0.4)
    >>> turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    >>> np.abs(sparse_axes(few @ turn, np.ones(60)) @ turn.T).max(1).round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    size, share = shifts.shape[1], weights[:, None] / weights.sum()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        free = flat.reshape(size, size)
        length = np.linalg.norm(free, axis=1, keepdims=True)
        axes = free / length
        along = shifts @ axes.T
        small = along**2 / 2 < price
        slope = np.where(small, along, 2 * price / np.where(small, 1.0, along))
        value = float((share * shift_cost(along, price)).sum()) - np.linalg.slogdet(axes)[1]
        gradient = (share * slope).T @ shifts - np.linalg.inv(axes).T
        return value, ((gradient - (gradient * axes).sum(1, keepdims=True) * axes) / length).ravel()

    starts = [np.eye(size), *(independent_axes(shifts, seed + k) for k in range(STARTS))]
    ends = [minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500}) for start in starts]
    best = min(ends, key=lambda end: end.fun).x.reshape(size, size)
    return best / np.linalg.norm(best, axis=1, keepdims=True)


def independent_axes(shifts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return an invertible matrix [D, D] whose rows are axes of length one along which shifts [K, D] are independent.

    Independent component analysis (FastICA) of the shifts: along the axes of sparse shifts these are as far from
    Gaussian as they can be. Where the shifts span fewer than D dimensions, the other axes are orthonormal and
    orthogonal to these.

    Parameters
    ----------
    shifts : array [K, D]
        One row a perturbation.
    seed : int
        Where the search starts.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> few = rng.normal(size=(200, 2)) * (rng.random((200, 2)) < 0.2)
    >>> turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    >>> np.abs(independent_axes(few @ turn) @ turn.T).max(1).round(1).tolist()
    [1.0, 1.0]
    """
    from sklearn.decomposition import FastICA

    size = shifts.shape[1]
    spans = np.linalg.svd(shifts - shifts.mean(0), compute_uv=False) if len(shifts) > 1 else np.zeros(1)
    rank = int((spans > 1e-6 * max(spans.max(initial=0.0), 1e-12)).sum())
    if not rank:
        return np.eye(size)
    search = FastICA(rank, whiten="unit-variance", random_state=seed, max_iter=1000, tol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a search that has not converged is a start like another
        search.fit(shifts)
    axes = search.components_ / np.linalg.norm(search.components_, axis=1, keepdims=True)
    return np.concatenate([axes, np.linalg.svd(axes)[2][rank:]])


AXES = ("none", "ica", "sparse")
"""Names of the axes that latents can be written in."""


def chosen_axes(name: str, shifts: np.ndarray, weights: np.ndarray, price: float = PRICE) -> np.ndarray:
    """Return the axes [D, D] of a name of `AXES`."""
    if name == "none":
        return np.eye(shifts.shape[1])
    return independent_axes(shifts) if name == "ica" else sparse_axes(shifts, weights, price)
