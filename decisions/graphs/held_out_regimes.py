"""How well a causal model predicts regimes that it has not seen."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.graphs.program import GraphProgram, graph_program, known_genes
from fieldguide.inference.data.interventions import CONTROL, NONE

BATCH = 1024
NOTES = (
    "each gene is predicted from the observed values of all others (one step), not by simulating the intervention.",
    "se is over regimes: cells of a regime are not independent of each other.",
)


@torch.no_grad()
def interventional_scores(fitted: Any, data: Any = None) -> Decision:
    """Return the negative log likelihood and absolute error of each gene given the others, by regime.

    Of a graph with cycles the log-determinant is part of the likelihood.

    Parameters
    ----------
    fitted : Fit
        Of a program with ``one_step(batch)``, see `fieldguide.decisions.graphs.program.GraphProgram`.
    data : AnnData or dict of arrays, optional
        Cells of regimes that were held out (see `fieldguide.inference.split_interventions`); the training data by
        default.

    Returns
    -------
    Decision
        ``table``, one row a regime: ``cells``; ``nll``, in nats a gene, and ``mae``, over the genes that were not
        intervened on; ``nll_all``, the same sum divided by all genes, as published (Lopez et al. 2022: too small by the
        share of intervened genes); ``mae_all``, over all genes, intervened ones included. ``diagnostics``: the mean
        over cells of each, and its standard error over regimes.

    Raises
    ------
    TypeError
        If the program does not predict genes from the others.
    """
    program: GraphProgram = graph_program(fitted, "one_step")
    dataset = fitted.read(data)
    fitted.program.eval()
    parts = []
    for rows in np.array_split(np.arange(dataset.n_cells), max(1, -(-dataset.n_cells // BATCH))):
        batch = {k: v.to(fitted.device) for k, v in dataset.batch(rows).items()}
        mean, log_density, counts = program.one_step(batch)
        counts = counts.to(mean.dtype)
        error = (batch["x"] - mean).abs()
        sums = [-(log_density * counts).sum(-1), (error * counts).sum(-1), counts.sum(-1), error.sum(-1)]
        parts.append(torch.stack(sums, -1).double().cpu())
    cells = pd.DataFrame(torch.cat(parts).numpy(), columns=["loss", "error", "counted", "error_all"])
    groups, n_genes = cells.groupby(_regimes(fitted, dataset), sort=True), mean.shape[-1]
    table = pd.DataFrame({"cells": groups.size()} | _means(groups.sum(), n_genes * groups.size()))
    table = table.rename_axis("regime")
    means = _means(cells.sum(), n_genes * len(cells))
    spread = table[list(means)].std(ddof=1) / np.sqrt(len(table))
    diagnostics = pd.DataFrame({"mean": means, "se": spread})
    return Decision(table, diagnostics, {"cells": len(cells), "regimes": len(table)}, NOTES)


def _means(total: Any, genes: Any) -> dict[str, Any]:
    """Means over what counts, and over all genes, from sums over cells."""
    return {
        "nll": total["loss"] / total["counted"],
        "mae": total["error"] / total["counted"],
        "nll_all": total["loss"] / genes,
        "mae_all": total["error_all"] / genes,
    }


def _regimes(fitted: Any, dataset: Any) -> np.ndarray:
    if "targets" not in dataset.stores:
        return np.full(dataset.n_cells, CONTROL, dtype=object)
    codes = dataset.stores["targets"].gather(np.arange(dataset.n_cells)).cpu().numpy()
    genes = known_genes(fitted, "targets")
    rows, which = np.unique(codes, axis=0, return_inverse=True)
    names = [",".join(str(c) if genes is None else genes[c] for c in row if c != NONE) or CONTROL for row in rows]
    return np.array(names, dtype=object)[which.ravel()]
