"""What a fitted graph with cycles says: the strength of its edges, and its map in units in which it is contractive."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from fieldguide.catalog.nodags import NODAGS
from fieldguide.decisions.graphs.program import gene_names
from fieldguide.inference.checks.arguments import checked_int, one_of
from fieldguide.inference.data.minibatches import Loader
from fieldguide.inference.fitted import Fit

KINDS = ("jacobian", "weights", "gates")


def edge_strengths(fitted: Fit, data=None, kind: str = "jacobian", batch_size: int = 256) -> pd.DataFrame:
    """Return the strength of each edge, genes x genes: from the gene of the row to the gene of the column.

    Parameters
    ----------
    fitted : Fit
        Of "nodags".
    data : optional
        Cells to average over; the training data by default. Not used by the other kinds.
    kind : {"jacobian", "weights", "gates"}
        "jacobian": mean over cells of ``|d f_j / d x_i|``, how much the column's gene follows the row's at a fixed
        value of all others (for a linear map the same in every cell). "weights": what the sparsity penalty is on.
        "gates": probabilities, of a model with gates.
    batch_size : int

    Returns
    -------
    DataFrame [n, n]
        Zeros on the diagonal.
    """
    one_of("kind", kind, KINDS)
    batch_size = checked_int("batch_size", batch_size, 1)
    program = _program(fitted)
    with torch.no_grad():
        if kind == "gates":
            if program.map.gates is None:
                raise ValueError(
                    "the model has no gates: fit it with gates='shared' or 'per_cell', or ask kind='jacobian'"
                )
            strength = program.map.gates.probability()
        elif kind == "weights":
            strength = program.map.sizes()
        else:
            mechanism = program.map.settle()
            if mechanism.constant:
                strength = mechanism.jacobian(torch.zeros_like(program.loc)).abs()
            else:
                dataset, strength = fitted.read(data), torch.zeros_like(program.map.off_diagonal)
                for batch in Loader(dataset, np.arange(dataset.n_cells), batch_size):
                    x = batch["x"].to(strength.device) - program.centre
                    strength = strength + mechanism.jacobian(x).abs().sum(0) / dataset.n_cells
    names = gene_names(fitted)
    return pd.DataFrame(strength.cpu().numpy().T.astype(np.float64), index=names, columns=names)


def contractive_view(weights: ArrayLike, bound: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """Write a linear map as a contractive one, by scales of the genes: ``W = S^-1 V S`` with ``|V| < bound``.

    Of all scales, those made of the left and right Perron vectors of |W| lower the norm of |W| most: to its spectral
    radius. An acyclic W has radius 0, so that it always has such a view; one with cycles does if its radius allows.

    Parameters
    ----------
    weights : array [n, n]
        Row i, column j: the effect of gene j on gene i.
    bound : float

    Returns
    -------
    V : array [n, n]
    scales : array [n]
        s; ``V = diag(s) W diag(1 / s)``, and ``V / s[:, None] * s`` is W again.

    Raises
    ------
    ValueError
        If the spectral radius of |W| is not below the bound.

    Examples
    --------
    >>> view, scales = contractive_view([[0.0, 0.0], [3.0, 0.0]], 0.9)
    >>> bool(np.linalg.norm(view, 2) < 0.9), np.allclose(view / scales[:, None] * scales, [[0, 0], [3, 0]])
    (True, True)
    """
    table = np.asarray(weights, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not np.isfinite(table).all():
        raise ValueError(f"weights must be a finite square matrix, not one of shape {table.shape}")
    if np.linalg.norm(table, 2) < bound:
        return table.copy(), np.ones(len(table))
    size = np.abs(table)
    for exponent in range(1, 13):
        positive = size + 10.0**-exponent * size.max()
        right, left = _perron(positive), _perron(positive.T)
        scales = np.sqrt(left / right)
        view = scales[:, None] * table / scales
        if np.linalg.norm(view, 2) < bound:
            return view, scales
    radius = np.abs(np.linalg.eigvals(size)).max()
    raise ValueError(
        f"no scales of the genes make this map contractive below {bound}: the spectral radius of its absolute weights "
        f"is {radius:.3g}"
    )


def _perron(positive: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eig(positive)
    return np.abs(np.real(vectors[:, np.argmax(np.real(values))])).clip(min=1e-300)


def _program(fitted: Fit) -> NODAGS:
    program = fitted.program if isinstance(fitted, Fit) else None
    if not isinstance(program, NODAGS):
        what = type(fitted if program is None else program).__name__
        raise TypeError(f"{what} is no fit of a graph with cycles: fit the entry 'nodags'")
    return program
