"""Genes that an assay did not measure: predicted expression and counts, intervals, and how far to trust each gene."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anndata
import numpy as np
import pandas as pd

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.figures import trust_of_genes
from fieldguide.decisions.particles import ESTIMATORS, shares
from fieldguide.decisions.regression import (
    across,
    expected_scores,
    log_shares,
    ridge,
    spearman,
    standardised,
    within,
)
from fieldguide.decisions.trust import diagnose
from fieldguide.inference.modalities import Modality
from fieldguide.inference.posterior import Posterior

HEADS = ("blend", "model", "ridge")
SITES = ("rho", "log_library", "log_theta")
NOTES = (
    "The parameters of the model are taken as known.",
    "No data say how this assay captures an unmeasured gene: levels and inverse dispersions are the reference's, "
    "and the interval allows for as much difference as the measured genes show.",
)


@dataclass
class Imputed(Decision):
    """Imputed genes: ``table`` has one row a gene, the attributes below one row a cell.

    Attributes
    ----------
    expression : DataFrame [n, H]
        Predicted expression relative to the total of the genes that the modality measures.
    counts : DataFrame [n, H]
        Predicted counts at the cell's own depth.
    low, high : DataFrame [n, H]
        Predictive interval of the counts.
    sd : DataFrame [n, H]
        Posterior standard deviation of the model's expression: what the model is unsure of, without noise of counts.
    """

    expression: pd.DataFrame = field(default_factory=pd.DataFrame)
    counts: pd.DataFrame = field(default_factory=pd.DataFrame)
    low: pd.DataFrame = field(default_factory=pd.DataFrame)
    high: pd.DataFrame = field(default_factory=pd.DataFrame)
    sd: pd.DataFrame = field(default_factory=pd.DataFrame)

    def write(self, adata: anndata.AnnData, key: str = "imputed") -> None:
        """Write into an AnnData of the same cells: ``obsm`` KEY, KEY_counts, KEY_low, KEY_high, and ``uns[KEY]``.

        The cells may have their names from before the modalities were joined.

        Raises
        ------
        ValueError
            If the cells differ, naming the first.
        """
        cells, here = [str(c) for c in self.counts.index], [str(c) for c in adata.obs_names]
        before = [name.partition(": ")[2] for name in cells]
        if here != cells and here != before:
            odd = next((h for h, c, b in zip(here, cells, before, strict=False) if h not in (c, b)), "none")
            raise ValueError(
                f"the data has {len(here)} cells, {len(cells)} were imputed; the first that differs: {odd!r}"
            )
        parts = {"": self.expression, "_counts": self.counts, "_low": self.low, "_high": self.high}
        for name, table in parts.items():
            adata.obsm[key + name] = table.set_axis(adata.obs_names, axis=0)
        adata.uns[key] = {"genes": self.table.copy(), "settings": {k: str(v) for k, v in self.settings.items()}}


def impute_genes(
    posterior: Posterior,
    modality: str | None = None,
    genes: Sequence[str] | None = None,
    head: str = "blend",
    interval: float = 0.8,
    draws: int = 200,
    efficiency: float | None = None,
    estimator: str = "plugin",
) -> Imputed:
    """Predict, in the cells of one modality, genes that it did not measure.

    Parameters
    ----------
    posterior : Posterior
        Of a joint program such as ``gimvi``, over the cells to predict in and those of the reference, the first
        modality.
    modality : str, optional
        Whose cells; by default the one modality that lacks genes.
    genes : sequence of str, optional
        Which genes; all that the modality lacks and the reference has by default.
    head : {"blend", "model", "ridge"}
        "model": posterior mean of the program's expression. "ridge": order of the cells by a ridge regression of the
        gene on the shared genes, trained in the reference and applied to the shared genes of the others, each
        standardised within its assay. "blend": by the mean of both. Level and spread over cells are the model's.
    interval : float
        Probability of the central predictive interval of a count.
    draws : int
        Draws of the counts behind it.
    efficiency : float, optional
        How differently assays capture a gene (standard deviation, natural log), which the interval allows for; by
        default the spread, over shared genes, of the log ratio of observed and model-free mean shares.
    estimator : {"plugin", "snis"}
        Whether draws of the guide count equally or by their importance weights.

    Returns
    -------
    Imputed
        ``table``, one row a gene:

        - reference_mean, reference_detection: mean count in the reference, and share of its cells with any
        - imputed_mean, imputed_detection: mean predicted count, and expected share of cells with any
        - relative_sd: posterior standard deviation of the model's expression over its mean, averaged over cells
        - reference_score: Spearman correlation of the gene with its prediction from the shared genes, within the
          reference (5-fold)
        - trust, trust_se: Spearman correlation (depth removed) of imputed and true expression to be expected, with its
          standard error over genes. The shared genes are left out in groups, predicted across the assays by the ridge
          regression, and compared with the truth; their scores are regressed on reference score and detection

        ``settings["scores"]``: the scores of the shared genes behind it.

    Raises
    ------
    ValueError
        Naming the argument, gene or modality that does not fit.
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, not {head!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}")
    if not 0 < interval < 1:
        raise ValueError(f"interval must be a probability between 0 and 1, not {interval}")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    case = _Assays(posterior, modality, genes)
    rng = np.random.default_rng([posterior.seed, 17])
    fractions = _fractions(case)
    tau = case.efficiency if efficiency is None else float(efficiency)
    if not tau >= 0:
        raise ValueError(f"efficiency must be at least 0, not {efficiency}")
    found = {name: [] for name in ("expression", "counts", "low", "high", "sd", "zero")}
    seen, log_weights, start = [], [], 0
    wanted = None if head == "model" else _order(case, posterior, estimator, fractions, head)
    for rows, w, values in posterior.chunks(case.target):
        share, rho, library, log_theta = _read(w, values, case.columns, estimator)
        mean = np.einsum("sb,sbg->bg", share, rho)
        found["sd"].append(np.sqrt(np.einsum("sb,sbg->bg", share, (rho - mean) ** 2)))
        best = mean if wanted is None else wanted[start : start + len(rows)]
        chosen = np.stack([rng.choice(len(share), draws, p=p) for p in share.T], 1)
        cell = np.arange(len(rows))
        rate = rho[chosen, cell] / mean.clip(1e-30) * best * library[chosen, cell][..., None]
        shift = np.exp(tau * rng.standard_normal((draws, 1, len(case.columns))) - tau**2 / 2)
        theta = np.exp(log_theta.clip(-50, 50))
        drawn = rng.poisson((rate * shift * rng.gamma(theta, 1 / theta, rate.shape)).clip(max=1e9))
        ends = np.quantile(drawn, [(1 - interval) / 2, (1 + interval) / 2], axis=0, method="inverted_cdf")
        found["low"].append(ends[0])
        found["high"].append(ends[1])
        found["zero"].append((drawn == 0).mean(0))
        found["expression"].append(best)
        found["counts"].append(best * np.einsum("sb,sb->b", share, library)[:, None])
        log_weights.append(w.log_w.double().cpu().numpy())
        seen.append(rows)
        start += len(rows)
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    index = pd.RangeIndex(posterior.n_cells)[case.target] if posterior.obs is None else posterior.obs.index[case.target]
    framed = {n: pd.DataFrame(v, index=index, columns=case.genes) for n, v in arrays.items() if n != "zero"}
    table, scores = _genes(case, fractions)
    table.insert(2, "imputed_mean", arrays["counts"].mean(0))
    table.insert(3, "imputed_detection", 1 - arrays["zero"].mean(0))
    table.insert(4, "relative_sd", (arrays["sd"] / arrays["expression"].clip(1e-30)).mean(0))
    settings = {
        "modality": case.modality, "reference": case.names[0], "head": head, "interval": interval, "draws": draws,
        "efficiency": tau, "estimator": estimator, "posterior_seed": posterior.seed, "scores": scores,
    }  # fmt: skip
    quality = diagnose(np.concatenate(log_weights, 1), "cells", len(case.target)).to_frame().T
    return Imputed(table, quality, settings, NOTES, trust_of_genes, **framed)


class _Assays:
    """Who measured what: cells, genes and counts of target and reference."""

    def __init__(self, posterior: Posterior, modality: str | None, genes: Sequence[str] | None) -> None:
        self.names, measured = _measured(posterior)
        if posterior.var_names is None:
            raise ValueError("genes have no names: the posterior must be of an AnnData (see join_modalities)")
        all_genes = pd.Index([str(g) for g in posterior.var_names])
        lacking = [m for m, row in zip(self.names, measured, strict=True) if not row.all()]
        if modality is None:
            if len(lacking) != 1:
                raise ValueError(f"say which modality: {', '.join(lacking) or 'none'} lack genes")
            modality = lacking[0]
        if modality not in self.names:
            raise ValueError(f"no modality '{modality}'; there are {', '.join(self.names)}")
        code = self.names.index(modality)
        if code == 0:
            raise ValueError(f"'{modality}' is the reference: genes are predicted in the other modalities")
        has = measured[code]
        if genes is None:
            self.columns = np.flatnonzero(~has & measured[0])
            if not len(self.columns):
                raise ValueError(f"modality '{modality}' lacks no gene of '{self.names[0]}'")
        else:
            self.columns = all_genes.get_indexer([str(g) for g in genes])
            for place, gene in zip(self.columns, genes, strict=True):
                if place < 0:
                    raise ValueError(f"gene {str(gene)!r} is not in the model")
                if has[place]:
                    raise ValueError(f"gene {str(gene)!r} was measured by '{modality}': nothing to impute")
                if not measured[0, place]:
                    raise ValueError(f"gene {str(gene)!r} was not measured by the reference '{self.names[0]}' either")
        self.modality, self.genes = modality, all_genes[self.columns]
        codes = posterior.dataset.batch(np.arange(posterior.n_cells))["modality"].cpu().numpy()
        self.target, self.reference = np.flatnonzero(codes == code), np.flatnonzero(codes == 0)
        for name, rows in ((modality, self.target), (self.names[0], self.reference)):
            if len(rows) < 2:
                raise ValueError(f"the posterior has {len(rows)} cells of modality '{name}'; at least 2 are needed")
        shared = np.flatnonzero(has & measured[0])
        both = [
            posterior.dataset.stores["counts"].gather(r).double().cpu().numpy() for r in (self.reference, self.target)
        ]
        self.shared_names = all_genes[shared]
        self.seen = [counts[:, shared] for counts in both]
        self.hidden = both[0][:, self.columns]
        self.totals = [counts.sum(1).clip(min=1) for counts in self.seen]

    @property
    def efficiency(self) -> float:
        """Spread over shared genes of the log ratio of mean shares in target and reference."""
        means = [(c.sum(0) + 0.5) / (c.sum() + 0.5 * c.shape[1]) for c in self.seen]
        ratio = np.log(means[1]) - np.log(means[0])
        return float(np.subtract(*np.quantile(ratio, [0.75, 0.25])) / 1.349)


def _measured(posterior: Posterior) -> tuple[list[str], np.ndarray]:
    """Names of the modalities and the mask [M, G], as the program was fitted."""
    if posterior.schema is not None:
        for name, state in posterior.schema.states.items():
            if isinstance(posterior.schema.schema.fields[name], Modality):
                shape = (len(state["categories"]), posterior.dataset.stores["counts"].shape[1])
                mask = np.ones(shape, bool) if state["measured"] is None else np.asarray(state["measured"], bool)
                return list(state["categories"]), mask
    raise ValueError("the posterior is of a program without modalities: fit gimvi on the result of join_modalities")


def _read(weights: Any, values: dict, columns: np.ndarray, estimator: str) -> tuple[np.ndarray, ...]:
    """Shares [S, b], expression [S, b, H], library [S, b] and log inverse dispersion [b, H]."""
    missing = [name for name in SITES if name not in values]
    if missing:
        raise ValueError(f"the program has no deterministic site '{missing[0]}'; it has {', '.join(sorted(values))}")
    share = shares(weights, estimator).cpu().numpy()
    share = share / share.sum(0)
    rho = values["rho"][..., columns].double().cpu().numpy()
    library = np.broadcast_to(values["log_library"].double().exp().cpu().numpy(), share.shape)
    log_theta = values["log_theta"][..., columns].double().cpu().numpy()
    return share, rho, library, log_theta.reshape(-1, *log_theta.shape[-2:])[0]


def _fractions(case: _Assays) -> dict[str, np.ndarray]:
    """Standardised log shares of the shared genes on both sides, and log shares of the hidden ones in the reference."""
    x, new = (standardised(log_shares(c, t)) for c, t in zip(case.seen, case.totals, strict=True))
    return {"x": x, "new": new, "y": log_shares(case.hidden, case.totals[0])}


def _order(case: _Assays, posterior: Posterior, estimator: str, fractions: dict, head: str) -> np.ndarray:
    """Expression [m, H] with the model's level and spread, and cells in the order of ridge or blend."""
    parts = []
    for _, w, values in posterior.chunks(case.target):
        share, rho, _, _ = _read(w, values, case.columns, estimator)
        parts.append(np.log(np.einsum("sb,sbg->bg", share, rho).clip(1e-30)))
    model = np.concatenate(parts)
    level, spread = model.mean(0), model.std(0)
    order = standardised(ridge(fractions["x"], fractions["y"], fractions["new"]))
    if head == "blend":
        order = standardised(order + standardised(np.exp(model - level)))
    found = np.exp(level + spread * order)
    return found * np.exp(model).mean(0) / found.mean(0)


def _genes(case: _Assays, fractions: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the hidden genes with their trust, and the scores of the shared ones behind it."""
    reference = case.seen[0]
    score = spearman(fractions["y"], within(fractions["x"], fractions["y"]))
    fold = np.random.default_rng(0).permutation(reference.shape[1]) % min(5, reference.shape[1])
    own = np.zeros(reference.shape[1])
    for k in np.unique(fold):
        left, kept = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        if len(kept):
            total = reference[:, kept].sum(1).clip(min=1)
            y = log_shares(reference[:, left], total)
            own[left] = spearman(y, within(standardised(log_shares(reference[:, kept], total)), y))
    known = np.column_stack([own, (reference > 0).mean(0)])
    found = across(*case.seen)
    detected = (case.hidden > 0).mean(0)
    trust, error = expected_scores(known, found, np.column_stack([score, detected]))
    table = pd.DataFrame(
        {
            "reference_mean": case.hidden.mean(0),
            "reference_detection": detected,
            "reference_score": score,
            "trust": trust,
            "trust_se": error,
        },
        index=pd.Index(case.genes, name="gene"),
    )
    scores = pd.DataFrame(
        {"score": found, "reference_score": own, "reference_detection": known[:, 1]},
        index=pd.Index(case.shared_names, name="gene"),
    )
    return table, scores
