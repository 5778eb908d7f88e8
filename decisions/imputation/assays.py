"""Who measured what: cells, genes and counts of a joint posterior, and what its program says of one assay's cells.

Shapes: n cells of the reference, m of the target, P genes that both measure, H genes to predict, S particles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.cells import fields_of_kind
from fieldguide.decisions.draws import shares
from fieldguide.inference.data.minibatches import Dataset
from fieldguide.inference.data.modalities import Modality
from fieldguide.inference.data.storage import DenseStore
from fieldguide.inference.posterior import Posterior

SITES = ("rho", "log_library", "log_theta", "measured")
WITHHELD = "withheld"


class Assays:
    """The cells to predict in (the target), those of the reference, and their counts.

    Attributes
    ----------
    modality, names : str, list of str
        The target, and all modalities; the first is the reference.
    genes, columns : Index [H], array of int [H]
        What is to be predicted.
    target, reference : array of int
        Rows of the posterior.
    shared, shared_names : array of int [P], Index [P]
    counts : [array [n, P], array [m, P]]
        Counts of the shared genes in reference and target.
    totals : [array [n], array [m]]
        Their sums.
    hidden : array [n, H]
        Counts of the genes to predict, in the reference.

    Raises
    ------
    ValueError
        Naming the argument, gene or modality that does not fit.
    """

    def __init__(self, posterior: Posterior, modality: str | None, genes: Sequence[str] | None) -> None:
        self.names, measured = modalities(posterior)
        if posterior.var_names is None:
            raise ValueError("genes have no names: the posterior must be of an AnnData (see join_modalities)")
        all_genes = pd.Index([str(gene) for gene in posterior.var_names])
        self.modality = _target(modality, self.names, measured)
        code = self.names.index(self.modality)
        self.columns = _wanted(genes, all_genes, measured[0], measured[code], self.names[0], self.modality)
        self.genes = all_genes[self.columns]
        codes = posterior.dataset.batch(np.arange(posterior.n_cells))["modality"].cpu().numpy()
        self.target, self.reference = np.flatnonzero(codes == code), np.flatnonzero(codes == 0)
        for name, rows in ((self.modality, self.target), (self.names[0], self.reference)):
            if len(rows) < 2:
                raise ValueError(f"the posterior has {len(rows)} cells of modality '{name}'; at least 2 are needed")
        self.shared = np.flatnonzero(measured[code] & measured[0])
        if not len(self.shared):
            raise ValueError(f"'{self.modality}' and the reference '{self.names[0]}' measure no gene in common")
        store = posterior.dataset.stores["counts"]
        both = [store.gather(rows).double().cpu().numpy() for rows in (self.reference, self.target)]
        self.shared_names = all_genes[self.shared]
        self.counts = [counts[:, self.shared] for counts in both]
        self.hidden = both[0][:, self.columns]
        self.totals = [counts.sum(1).clip(min=1) for counts in self.counts]

    @property
    def efficiency(self) -> float:
        """Spread over shared genes of the log ratio of mean shares in target and reference."""
        means = [(counts.sum(0) + 0.5) / (counts.sum() + 0.5 * counts.shape[1]) for counts in self.counts]
        ratio = np.log(means[1]) - np.log(means[0])
        return float(np.subtract(*np.quantile(ratio, [0.75, 0.25])) / 1.349)


def modalities(posterior: Posterior) -> tuple[list[str], np.ndarray]:
    """Names of the modalities and the mask [M, G], as the program was fitted."""
    for state in fields_of_kind(posterior, Modality).values():
        shape = (len(state["categories"]), posterior.dataset.stores["counts"].shape[1])
        mask = np.ones(shape, bool) if state["measured"] is None else np.asarray(state["measured"], bool)
        return list(state["categories"]), mask
    raise ValueError("the posterior is of a program without modalities: fit gimvi on the result of join_modalities")


def _target(modality: str | None, names: list[str], measured: np.ndarray) -> str:
    """The modality to predict in: as it was given, or the one that lacks genes."""
    lacking = [name for name, row in zip(names, measured, strict=True) if not row.all()]
    if modality is None:
        if len(lacking) != 1:
            raise ValueError(f"say which modality: {', '.join(lacking) or 'none'} lack genes")
        modality = lacking[0]
    if modality not in names:
        raise ValueError(f"no modality '{modality}'; there are {', '.join(names)}")
    if modality == names[0]:
        raise ValueError(f"'{modality}' is the reference: genes are predicted in the other modalities")
    return modality


def _wanted(
    genes: Sequence[str] | None,
    all_genes: pd.Index,
    in_reference: np.ndarray,
    in_target: np.ndarray,
    reference: str,
    target: str,
) -> np.ndarray:
    """Columns of the genes to predict [H]: those given, or all that only the reference measures."""
    if genes is None:
        columns = np.flatnonzero(~in_target & in_reference)
        if not len(columns):
            raise ValueError(f"modality '{target}' lacks no gene of '{reference}'")
        return columns
    if isinstance(genes, str) or np.ndim(genes) != 1:
        raise TypeError(f"genes must be a list of names of genes, not {genes!r}")
    genes = list(genes)
    columns = all_genes.get_indexer([str(gene) for gene in genes])
    for place, gene in zip(columns, genes, strict=True):
        if place < 0:
            raise ValueError(f"gene {str(gene)!r} is not in the model")
        if in_target[place]:
            raise ValueError(f"gene {str(gene)!r} was measured by '{target}': nothing to impute")
        if not in_reference[place]:
            raise ValueError(f"gene {str(gene)!r} was not measured by the reference '{reference}' either")
    if not len(columns):
        raise ValueError("genes names no gene")
    twice = next((gene for gene in genes if genes.count(gene) > 1), None)
    if twice is not None:
        raise ValueError(f"genes names {str(twice)!r} twice")
    return columns


@dataclass
class Moments:
    """What the program says of some genes in some cells.

    Attributes
    ----------
    mean, sd : array [m, H]
        Of the expression, relative to the total of the genes that the cell's modality measures.
    log_sd : array [m, H]
        Standard deviation of its logarithm.
    theta : array [m, H]
        Inverse dispersion of the counts.
    library : array [m]
        Mean of the total count.
    log_weights : array [S, m]
    """

    mean: np.ndarray
    sd: np.ndarray
    log_sd: np.ndarray
    theta: np.ndarray
    library: np.ndarray
    log_weights: np.ndarray


def moments(posterior: Posterior, rows: np.ndarray, columns: np.ndarray, estimator: str) -> Moments:
    """Return the `Moments` of these genes in these cells, in one pass over the posterior."""
    parts: list[tuple[Any, ...]] = []
    for _, weights, values in posterior.chunks(rows):
        missing = [name for name in SITES if name not in values]
        if missing:
            there = ", ".join(sorted(values))
            raise ValueError(f"the program has no deterministic site '{missing[0]}'; it has {there}")
        share = shares(weights, estimator).cpu().numpy()
        share = share / share.sum(0)
        rho = values["rho"][..., columns].double().cpu().numpy()
        library = np.broadcast_to(values["log_library"].double().exp().cpu().numpy(), share.shape)
        theta = values["log_theta"][..., columns].double().clamp(-20, 20).exp().cpu().numpy()
        mean, sd = _mean_and_sd(share, rho)
        log_sd = _mean_and_sd(share, np.log(rho.clip(1e-30)))[1]
        theta = np.broadcast_to(theta.reshape(-1, *theta.shape[-2:])[0], mean.shape)
        parts.append((mean, sd, log_sd, theta, (share * library).sum(0), weights.log_w.double().cpu().numpy()))
    *joined, log_weights = zip(*parts, strict=True)
    mean, sd, log_sd, theta, library = (np.concatenate(part) for part in joined)
    return Moments(mean, sd, log_sd, theta, library, np.concatenate(log_weights, 1))


def withhold(posterior: Posterior, genes: np.ndarray) -> Posterior:
    """Return the posterior of the same cells with some genes taken for not measured (field ``withheld``), no refit.

    Raises
    ------
    ValueError
        If the program uses them all the same.
    """
    row = torch.zeros(posterior.dataset.stores["counts"].shape[1])
    row[torch.from_numpy(genes)] = 1
    store = DenseStore(row.expand(posterior.n_cells, -1))
    dataset = Dataset(posterior.dataset.stores | {WITHHELD: store}, posterior.obs, posterior.var_names)
    without = Posterior(
        posterior.program, dataset, posterior.particles, posterior.seed, posterior.schema, posterior.proposal
    )
    _, _, values = next(without.chunks(np.arange(1)))
    if "measured" not in values or values["measured"][..., genes].any():
        raise ValueError(f"{type(posterior.program).__name__} cannot withhold genes (batch field '{WITHHELD}')")
    return without


def _mean_and_sd(share: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [b, H] over particles, with shares [S, b], of values [S, b, H]."""
    mean = np.einsum("sb,sbg->bg", share, values)
    return mean, np.sqrt(np.einsum("sb,sbg->bg", share, (values - mean) ** 2))
