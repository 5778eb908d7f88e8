"""Genes that an assay did not measure: predicted expression and counts, intervals, and how far to trust each gene."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anndata
import numpy as np
import pandas as pd

from fieldguide.decisions.cells import cell_names, require_posterior
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.diagnostics import diagnose_cells
from fieldguide.decisions.draws import ESTIMATORS
from fieldguide.decisions.imputation.assays import Assays, Moments, moments, withhold
from fieldguide.decisions.imputation.figures import trust_of_genes
from fieldguide.decisions.imputation.regression import (
    across,
    expected_log,
    expected_scores,
    groups_of,
    kernel,
    log_shares,
    ranks,
    spearman,
    standardised,
    within,
)
from fieldguide.inference.checks.arguments import checked_flag, checked_int, checked_real, one_of
from fieldguide.inference.posterior import Posterior

HEADS = ("blend", "model", "kernel")
FOLDS = 5
"""Groups in which shared genes are left out."""
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
"""Weights of the model beside the regression. Those in the middle are candidates for the blend, at most one half: the
model was fitted to the genes that are left out, so it looks better on them than it is."""
WEIGHT = 0.3
"""That of the blend where no gene is left out."""
CHUNK = 20_000_000
"""Draws that are held at a time."""
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
    normalised : DataFrame [n, H]
        What a normalised measurement of the cell would read on average: the mean of log(1 + count / total x median
        total), the total being that of the measured genes. Of rare genes it rises with depth, as such values do.
    low, high : DataFrame [n, H]
        Predictive interval of the counts.
    sd : DataFrame [n, H]
        Posterior standard deviation of the model's expression: what the model is unsure of, without noise of counts.
    """

    expression: pd.DataFrame = field(default_factory=pd.DataFrame)
    counts: pd.DataFrame = field(default_factory=pd.DataFrame)
    normalised: pd.DataFrame = field(default_factory=pd.DataFrame)
    low: pd.DataFrame = field(default_factory=pd.DataFrame)
    high: pd.DataFrame = field(default_factory=pd.DataFrame)
    sd: pd.DataFrame = field(default_factory=pd.DataFrame)

    def to_anndata(self) -> anndata.AnnData:
        """Return AnnData: counts in ``X``, layers normalised, low and high, the table of genes in ``var``."""
        layers = {name: getattr(self, name).to_numpy() for name in ("normalised", "low", "high")}
        obs = pd.DataFrame(index=self.counts.index.astype(str))
        return anndata.AnnData(self.counts.to_numpy(), obs=obs, var=self.table.rename_axis(None), layers=layers)

    def write(self, adata: anndata.AnnData, key: str = "imputed") -> None:
        """Write into an AnnData of the same cells: ``obsm`` KEY, KEY_counts, KEY_normalised, KEY_low,
        KEY_high, and ``uns[KEY]``.

        The cells are found by their names, whatever their order; these may be those from before the modalities were
        joined.

        Raises
        ------
        ValueError
            If the cells differ, naming the first, or if two have one name and others an order of their own.
        """
        cells, here = self.counts.index.astype(str), adata.obs_names.astype(str)
        before = pd.Index([name.partition(": ")[2] for name in cells])
        known = max((cells, before), key=lambda names: here.isin(names).sum())
        differ = here[~here.isin(known)].append(known[~known.isin(here)])
        if len(differ) or len(here) != len(known):
            odd = differ[0] if len(differ) else [*here[here.duplicated()], *known[known.duplicated()]][0]
            raise ValueError(
                f"the data has {len(here)} cells, {len(cells)} were imputed; the first that differs: {odd!r}"
            )
        order = np.arange(len(here))
        if not here.equals(known):
            if not here.is_unique:
                raise ValueError(f"several cells are called {here[here.duplicated()][0]!r}: make their names differ")
            order = known.get_indexer(here)
        parts = {"": self.expression, "_counts": self.counts, "_normalised": self.normalised}
        parts |= {"_low": self.low, "_high": self.high}
        for name, table in parts.items():
            adata.obsm[key + name] = table.iloc[order].set_axis(adata.obs_names, axis=0)
        settings = {name: str(value) for name, value in self.settings.items()}
        adata.uns[key] = {"genes": self.table.copy(), "settings": settings}


def impute_genes(
    posterior: Posterior,
    modality: str | None = None,
    genes: Sequence[str] | None = None,
    head: str = "blend",
    interval: float = 0.8,
    draws: int = 200,
    efficiency: float | None = None,
    estimator: str = "plugin",
    trust: bool = True,
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
    head : {"blend", "model", "kernel"}
        "model": posterior mean of the program's expression. "kernel": cells in the order of a kernel regression of the
        gene's ranks on the shared genes, trained in the reference and applied to the shared genes of the others, each
        standardised within its assay. "blend": by a weighted mean of both, each standardised; the weight is the one
        that does best on the shared genes, left out in groups. Level and spread over cells are the model's.
    interval : float
        Probability of the central predictive interval of a count.
    draws : int
        Draws of the counts behind it.
    efficiency : float, optional
        How differently assays capture a gene (standard deviation, natural log), which the interval allows for; by
        default the spread, over shared genes, of the log ratio of observed and model-free mean shares.
    estimator : {"plugin", "snis"}
        Whether draws of the guide count equally or by their importance weights.
    trust : bool
        Whether to leave the shared genes out, which takes most of the time. Without that nothing is said of trust, and
        the blend's weight is 0.3.

    Returns
    -------
    Imputed
        ``table``, one row a gene:

        - trust, trust_se: Spearman correlation of imputed and true normalised counts to be expected, with its standard
          error over genes. The shared genes are left out in groups, predicted by the regression and compared with the
          truth; their scores are regressed on reference score and detection
        - trust_model: the same by the model, which takes the genes for not measured, without a refit. It was fitted to
          them: where the assays differ its scores are optimistic, which is why ``trust`` is that of the regression
        - reference_score: Spearman correlation of the gene with its prediction from the shared genes, within the
          reference (3-fold)
        - reference_mean, reference_detection: mean count in the reference, and share of its cells with any
        - imputed_mean, imputed_detection: mean predicted count, and expected share of cells with any
        - relative_sd: posterior standard deviation of the model's expression over its mean, averaged over cells

        ``settings``: the arguments, ``weight`` of the model in the head, and ``scores`` of the shared genes, left out,
        by each head.

    Raises
    ------
    ValueError
        Naming the argument, gene or modality that does not fit.
    """
    one_of("head", head, HEADS)
    one_of("estimator", estimator, ESTIMATORS)
    interval, draws = checked_real("interval", interval, above=0, below=1), checked_int("draws", draws, 2)
    efficiency = None if efficiency is None else checked_real("efficiency", efficiency, at_least=0)
    trust, assays = checked_flag("trust", trust), Assays(require_posterior(posterior), modality, genes)
    spread = assays.efficiency if efficiency is None else efficiency
    scores, weight = _left_out(posterior, assays, estimator) if trust else (None, WEIGHT)
    weight = {"model": 1.0, "kernel": 0.0, "blend": weight}[head]
    told = moments(posterior, assays.target, assays.columns, estimator)
    predicted, known = _predict(assays, told, weight)
    rng = np.random.default_rng([posterior.seed, 17])
    zero, predicted["low"], predicted["high"] = _intervals(predicted["expression"], told, spread, interval, draws, rng)
    index = cell_names(posterior, assays.target)
    frames = {name: pd.DataFrame(values, index=index, columns=assays.genes) for name, values in predicted.items()}
    settings = {
        "modality": assays.modality,
        "reference": assays.names[0],
        "head": head,
        "weight": weight,
        "interval": interval,
        "draws": draws,
        "efficiency": spread,
        "estimator": estimator,
        "posterior_seed": posterior.seed,
        "scores": scores,
    }
    table = _of_genes(assays, told, predicted, known, scores, zero)
    return Imputed(table, diagnose_cells([told.log_weights]), settings, NOTES, trust_of_genes, **frames)


def _predict(assays: Assays, told: Moments, weight: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Predictions [m, H] by name, and what the reference says of each gene [H, 2]: own score, share detected."""
    x, new = (standardised(log_shares(*pair)) for pair in zip(assays.counts, assays.totals, strict=True))
    y = ranks(assays.hidden / assays.totals[0][:, None])
    regressed = kernel(x, y, new)
    best = np.exp(_ordered(np.log(told.mean.clip(1e-30)), regressed, weight))
    best = best * told.mean.mean(0) / best.mean(0)
    scale = float(np.median(assays.totals[1])) / assays.totals[1]
    predicted = {
        "expression": best,
        "counts": best * told.library[:, None],
        "normalised": _ordered(_normalised(told, scale), regressed, weight).clip(min=0),
        "sd": told.sd,
    }
    return predicted, np.column_stack([spearman(y, within(x, y)), (assays.hidden > 0).mean(0)])


def _of_genes(
    assays: Assays,
    told: Moments,
    predicted: dict[str, np.ndarray],
    known: np.ndarray,
    scores: pd.DataFrame | None,
    zero: np.ndarray,
) -> pd.DataFrame:
    """One row a gene: how far to trust it, what the reference says of it, and what is imputed."""
    expected = {name: (np.full(len(known), np.nan), np.nan) for name in ("kernel", "model")}
    if scores is not None:
        features = scores[["reference_score", "reference_detection"]].to_numpy()
        expected = {name: expected_scores(features, scores[name].to_numpy(), known) for name in expected}
    return pd.DataFrame(
        {
            "trust": expected["kernel"][0],
            "trust_se": expected["kernel"][1],
            "trust_model": expected["model"][0],
            "reference_score": known[:, 0],
            "reference_mean": assays.hidden.mean(0),
            "reference_detection": known[:, 1],
            "imputed_mean": predicted["counts"].mean(0),
            "imputed_detection": 1 - zero,
            "relative_sd": (told.sd / predicted["expression"].clip(1e-30)).mean(0),
        },
        index=pd.Index(assays.genes, name="gene"),
    )


def _ordered(model: np.ndarray, regressed: np.ndarray, weight: float) -> np.ndarray:
    """Values [m, H] with the level and spread of the model's, and cells in the order of a weighted mean."""
    order = weight * standardised(model) + (1 - weight) * standardised(regressed)
    return model.mean(0) + model.std(0) * standardised(order)


def _normalised(told: Moments, scale: np.ndarray) -> np.ndarray:
    """Mean of the normalised count [m, H] by the model; ``scale`` [m] is the median total over that of the cell."""
    spread = (1 + 1 / told.theta) * np.exp(told.log_sd**2) - 1  # squared coefficient of variation of the rate
    return expected_log(told.mean * told.library[:, None], 1 / spread, scale)


def _intervals(
    best: np.ndarray, told: Moments, efficiency: float, interval: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of predicted zeros of each gene [H], and ends of the central intervals of the counts [m, H].

    Expression is drawn log-normal with the posterior's spread, the assay's efficiency log-normal for each gene, and
    counts negative binomial.
    """
    low, high, zero = np.empty_like(best), np.empty_like(best), np.zeros(best.shape[1])
    shift = np.exp(efficiency * rng.standard_normal((draws, 1, best.shape[1])) - efficiency**2 / 2)
    size = max(1, CHUNK // (draws * best.shape[1]))
    for start in range(0, len(best), size):
        part = slice(start, start + size)
        rate, spread, theta = (best * told.library[:, None])[part], told.log_sd[part], told.theta[part]
        noise = np.exp(spread * rng.standard_normal((draws, *rate.shape)) - spread**2 / 2)
        drawn = rng.poisson((rate * shift * noise * rng.gamma(theta, 1 / theta, noise.shape)).clip(max=1e9))
        ends = [(1 - interval) / 2, (1 + interval) / 2]
        low[part], high[part] = np.quantile(drawn, ends, axis=0, method="inverted_cdf")
        zero += (drawn == 0).mean(0).sum(0)
    return zero / len(best), low, high


def _left_out(posterior: Posterior, assays: Assays, estimator: str) -> tuple[pd.DataFrame, float]:
    """How well model, kernel and blend predict the shared genes, left out in groups, and the blend's weight.

    The table also has what the reference says of each gene: how well it is predicted there, how often detected.
    """
    reference, target = assays.counts
    scores, own = np.zeros((len(WEIGHTS), reference.shape[1])), np.zeros(reference.shape[1])
    for left in groups_of(reference.shape[1], FOLDS):
        others = np.setdiff1d(np.arange(reference.shape[1]), left)
        total, sums = (counts[:, others].sum(1).clip(min=1) for counts in assays.counts)
        y = ranks(reference[:, left] / total[:, None])
        own[left] = spearman(y, within(standardised(log_shares(reference[:, others], total)), y))
        told = moments(withhold(posterior, assays.shared[left]), assays.target, assays.shared[left], estimator)
        model, regressed = _normalised(told, np.median(sums) / sums), across(reference, target, left)
        for row, weight in enumerate(WEIGHTS):
            scores[row, left] = spearman(target[:, left] / sums[:, None], _ordered(model, regressed, weight))
    best = 1 + int(scores[1:-1].mean(1).argmax())
    table = {"kernel": scores[0], "model": scores[-1], "blend": scores[best]}
    table |= {"reference_score": own, "reference_detection": (reference > 0).mean(0)}
    return pd.DataFrame(table, index=pd.Index(assays.shared_names, name="gene")), WEIGHTS[best]
