"""Cells under interventions that were never made, drawn from a fitted causal graph."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from inspect import signature

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from fieldguide.decisions.graphs.program import GraphProgram, gene_names, graph_program
from fieldguide.decisions.messages import real_array
from fieldguide.inference.checks.aligning import missing, order_of, unnamed
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.data.interventions import NONE
from fieldguide.inference.fitted import Fit

CELLS = 4096
"""Cells that are drawn at a time."""


def sample_under(
    fitted: Fit,
    targets: Sequence,
    values: ArrayLike | Mapping | None = None,
    n: int = 1000,
    seed: int = 0,
    **solver: float,
) -> pd.DataFrame:
    """Draw cells under an intervention, seen or not, on any genes.

    From an acyclic graph ("dcdfg") by ancestral sampling: each gene given its parents, in causal order, in the graph
    that `fieldguide.decisions.causal_graph` returns. From a graph with cycles ("nodags") by fixed-point iteration to
    the steady state of each cell.

    Parameters
    ----------
    fitted : Fit
        Of a program with a method ``simulate``: "dcdfg" or "nodags".
    targets : sequence of genes
        Names, or numbers where the data had none; empty for no intervention.
    values : array [T] or [n, T], Series, DataFrame, or mapping of gene to value, optional
        What the targets are forced to, in the units of the data. Left out if there are none, and for a fit with
        ``interventions="imperfect"``, where a target has the gain, shift and scale that were learnt.
    n : int
        Cells.
    seed : int
    **solver
        Of graphs with cycles: ``tolerance`` (largest error of a gene, 1e-6) and ``max_iterations`` (10,000) of
        `fieldguide.catalog.parts.steady_state.steady_state`.

    Returns
    -------
    DataFrame [n, genes]

    Raises
    ------
    ValueError
        For a target that is no gene or is there twice, or values that do not fit.
    TypeError
        If the program has no such method.
    ConvergenceError
        If there is no steady state within the tolerance.
    """
    program: GraphProgram = graph_program(fitted, "simulate")
    names = gene_names(fitted)
    place = {name: i for i, name in enumerate(names)}
    targets = list(targets) if isinstance(targets, Iterable) and not isinstance(targets, str) else [targets]
    unknown = next((t for t in targets if not isinstance(t, Hashable) or t not in place), None)
    if unknown is not None:
        raise ValueError(f"target {unknown!r} is none of the {len(names)} genes")
    if len(set(targets)) < len(targets):
        raise ValueError(f"a target is given twice among {targets}")
    n, seed = checked_int("n", n, 1), checked_seed(seed)
    forcing = getattr(program, "interventions", "perfect") == "perfect"
    table = _values(values, targets, n) if forcing else None
    if not forcing and values is not None:
        raise ValueError("this fit is of imperfect interventions, which force no value on a gene: leave values out")
    known = signature(program.simulate).parameters
    unknown = next((name for name in solver if name not in known), None)
    if unknown is not None:
        own = ", ".join(name for name in known if name not in ("noise", "targets", "held")) or "none"
        raise TypeError(f"{type(program).__name__} has no setting '{unknown}' of a solver; it has {own}")
    if "tolerance" in solver:
        checked_real("tolerance", solver["tolerance"], above=0)
    if "max_iterations" in solver:
        checked_int("max_iterations", solver["max_iterations"], 1)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, len(names), generator=generator, dtype=torch.float64)
    codes = torch.tensor([[place[t] for t in targets] or [NONE]], dtype=torch.int64, device=fitted.device)
    wide = torch.zeros_like(noise)
    if table is not None:
        wide[:, [place[t] for t in targets]] = torch.from_numpy(table)
    parts = []
    for e, held in zip(noise.split(CELLS), wide.split(CELLS), strict=True):
        drawn = program.simulate(e.to(fitted.device), codes.expand(len(e), -1), held.to(fitted.device), **solver)
        parts.append(drawn.double().cpu())
    x = torch.cat(parts).numpy()
    if table is not None:
        x[:, [place[t] for t in targets]] = table
    return pd.DataFrame(x, columns=names)


def _values(values: ArrayLike | Mapping | None, targets: list, n: int) -> np.ndarray:
    """What each target is forced to in each cell [n, T]."""
    if values is None:
        if targets:
            raise ValueError(f"values must say what the targets {targets} are forced to")
        values = []
    if isinstance(values, Mapping):
        absent = next((t for t in targets if t not in values), None)
        if absent is not None or len(values) != len(targets):
            raise ValueError(f"values are for {list(values)}, targets are {targets}")
        values = [values[t] for t in targets]
    table = real_array("values", values)
    if isinstance(values, pd.Series | pd.DataFrame):  # by the names of the targets, where it has them
        given, wanted = values.index if isinstance(values, pd.Series) else values.columns, pd.Index(targets)
        others = pd.Index([]) if unnamed(given) else missing(wanted, given).append(missing(given, wanted))
        if len(others):
            raise ValueError(f"values are for {list(given)}, targets are {targets}")
        table = table[..., order_of("values", given, wanted, "targets")]
    if table.shape not in ((len(targets),), (n, len(targets))):
        raise ValueError(f"values have shape {table.shape}; {len(targets)} targets and {n} cells need one or both")
    if not np.isfinite(table).all():
        raise ValueError("values are not all finite")
    return np.broadcast_to(table, (n, len(targets))).copy()
