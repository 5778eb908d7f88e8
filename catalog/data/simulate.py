"""Simulators of the published benchmarks: counts with the truth beside them.

Each function returns an AnnData whose ``X`` holds integer counts (CSR, float32) and whose other slots hold what
produced them, so that a fitted model can be compared with the truth instead of with another model. Randomness comes
from one NumPy generator seeded by ``seed``: the same arguments give the same data. Shapes: N cells, G genes,
D latents, T types, R batches, H hidden units.

- `scvi_counts`: data from the scVI model itself, five clusters and two batches (recovery)
- `poisson_lognormal`: two or five types with known log fold changes (false discovery rate)
- `sparse_counts`: large sparse data in the likeness of droplet sequencing (speed, memory)
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from fieldguide.inference.checks.ranges import Seed, Size, checked

__all__ = [
    "SparseCounts",
    "pair_truth",
    "poisson_lognormal",
    "population_lfc",
    "scvi_counts",
    "sparse_counts",
]

BLOCK = 4_096  # cells drawn at a time by SparseCounts; part of its definition: every block has its own stream


def softmax(logits: np.ndarray) -> np.ndarray:
    """Proportions over the last axis."""
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


def negative_binomial(rng: np.random.Generator, mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Counts with variance ``mean + mean**2 / theta`` (a Poisson whose rate is Gamma)."""
    return rng.poisson(rng.gamma(theta, 1.0, mean.shape) * (mean / theta))


def _named(word: str, codes: np.ndarray) -> pd.Categorical:
    """Codes as categories type_0, type_1, ... in the order of the codes (type_2 before type_10)."""
    return pd.Categorical.from_codes(codes, [f"{word}_{k}" for k in range(codes.max() + 1)])


def _annotated(counts, types, batches=None) -> anndata.AnnData:
    """Wrap counts [N, G] and integer codes [N] into a named AnnData."""
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(counts.shape[0])])
    obs["cell_type"] = _named("type", types)
    if batches is not None:
        obs["batch"] = _named("batch", batches)
    var = pd.DataFrame(index=[f"gene_{g}" for g in range(counts.shape[1])])
    return anndata.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)


@checked
def scvi_counts(
    n_cells: Size = 3_000,
    n_genes: Size = 500,
    *,
    n_types: Size = 5,
    n_latent: Size = 5,
    n_batches: int = 2,
    batch_sd: float = 0.6,
    seed: Seed = 0,
) -> anndata.AnnData:
    """Draw counts from the scVI model, with clusters in the latent space and gene-specific batch effects.

    - type, batch: uniform and independent of each other
    - z given type t: Normal(centre_t, 0.5² I); centres orthogonal, 2.5 from the origin
    - hidden: tanh(z A + a), A ~ Normal(0, 1/D) [D, H], a ~ Normal(0, 1), H = 32
    - rho: softmax(base + hidden W + beta_batch); base ~ Normal(0, 1),
      W ~ Normal(0, 2/H) [H, G], beta ~ Normal(0, batch_sd²) [R, G]
    - log library: Normal(7, 0.4²)
    - log theta: Normal(0, 1) per gene
    - counts: zero with probability sigmoid(-2), else NB(library * rho, theta)

    Parameters
    ----------
    n_cells, n_genes
        Size of the data set.
    n_types, n_latent
        Number of clusters and of latent dimensions; ``n_types <= n_latent`` because the centres are orthogonal.
    n_batches
        Number of batches.
    batch_sd
        Standard deviation of the batch effects on the logits; at 0.6 batches separate unless they are modelled.
    seed
        Seed of the generator.

    Returns
    -------
    AnnData
        ``obs``: cell_type, batch, log_library; ``obsm["z"]`` [N, D]; ``layers["rho"]`` [N, G];
        ``var``: theta, zero_logit; ``uns["simulation"]``: centres [T, D], z_sd, decoder (input [D, H], bias [H],
        output [H, G], base [G], batch [R, G]).

    Raises
    ------
    ValueError
        If there are more types than latent dimensions.

    Notes
    -----
    Cells without any count are improbable (1,000 counts a cell at the default size) and would be kept. Source of the
    settings: the recovery experiment asked of an scVI implementation; model of Lopez et al. 2018, equations 1 to 6.

    Examples
    --------
    >>> data = scvi_counts(100, 50, seed=1)
    >>> data.shape, data.obsm["z"].shape
    ((100, 50), (100, 5))
    """
    if n_types > n_latent:
        raise ValueError(f"n_types={n_types} exceeds n_latent={n_latent}: the cluster centres are orthogonal")
    rng = np.random.default_rng(seed)
    n_hidden, z_sd, zero_logit = 32, 0.5, -2.0
    centres = 2.5 * np.linalg.qr(rng.normal(size=(n_latent, n_latent)))[0][:n_types]
    decoder = {
        "input": rng.normal(0, n_latent**-0.5, (n_latent, n_hidden)),
        "bias": rng.normal(size=n_hidden),
        "output": rng.normal(0, (2 / n_hidden) ** 0.5, (n_hidden, n_genes)),
        "base": rng.normal(size=n_genes),
        "batch": rng.normal(0, batch_sd, (n_batches, n_genes)),
    }
    theta = np.exp(rng.normal(size=n_genes))
    types, batches = rng.integers(n_types, size=n_cells), rng.integers(n_batches, size=n_cells)
    z = centres[types] + z_sd * rng.normal(size=(n_cells, n_latent))
    log_library = rng.normal(7.0, 0.4, n_cells)
    hidden = np.tanh(z @ decoder["input"] + decoder["bias"])
    rho = softmax(decoder["base"] + hidden @ decoder["output"] + decoder["batch"][batches])
    counts = negative_binomial(rng, np.exp(log_library)[:, None] * rho, theta)
    counts[rng.random(counts.shape) < 1 / (1 + np.exp(-zero_logit))] = 0

    data = _annotated(counts, types, batches)
    data.obs["log_library"] = log_library
    data.obsm["z"] = z
    data.layers["rho"] = rho
    data.var["theta"], data.var["zero_logit"] = theta, zero_logit
    data.uns["simulation"] = {
        "name": "scvi_counts",
        "seed": seed,
        "centres": centres,
        "z_sd": z_sd,
        "decoder": decoder,
    }
    return data


@checked
def poisson_lognormal(
    n_cells: Size = 1_000, n_genes: Size = 100, *, n_types: Size = 2, seed: Seed = 1
) -> anndata.AnnData:
    """Draw counts of cell types with known log fold changes, from a Poisson-log-normal with correlated genes.

    - baseline: rate m ~ 10 + 50 Uniform(0, 1) per gene: the mean of type 0
    - log2 fold change: of every other type against type 0, per gene: with probability one half
      Normal(0, 0.16²), else +1 or -1 (equal chance) plus Normal(0, 0.16²)
    - covariance: 0.08 (2 a aᵀ + 0.5 diag(1 + 0.5 u)), a and u ~ Uniform(-1, 1) per gene
    - log rate h: Normal(ln m + LFC ln 2, covariance), natural log, per cell
    - counts: Poisson(exp h), each set to zero with probability 0.3

    Parameters
    ----------
    n_cells, n_genes
        Size of the data set; cells are split evenly over the types.
    n_types
        Number of types. The released code of the paper has two types and 1,000 cells, its text five types and 10,000
        cells; there the further types are independent copies of the fold changes of type 1.
    seed
        Seed of the generator.

    Returns
    -------
    AnnData
        ``obs``: cell_type; ``layers["log_rate"]`` h [N, G] (before the zeros); ``varm["log_rate_mean"]`` [G, T],
        natural log; ``varm["lfc"]`` [G, T], log2 against type_0; ``uns["simulation"]``: covariance [G, G].

    Notes
    -----
    Source: Lopez et al. 2020 (Decision-making with auto-encoding variational Bayes), single-cell experiment. Cells
    without any count are left out.

    Examples
    --------
    >>> data = poisson_lognormal(seed=3)
    >>> data.obs["cell_type"].value_counts().to_dict()
    {'type_0': 500, 'type_1': 500}
    """
    rng = np.random.default_rng(seed)
    baseline = 10 + 50 * rng.random(n_genes)
    jump = rng.choice([-1.0, 1.0], (n_genes, n_types)) * (rng.random((n_genes, n_types)) < 0.5)
    lfc = jump + 0.16 * rng.normal(size=(n_genes, n_types))
    lfc[:, 0] = 0.0
    means = np.log(baseline)[:, None] + lfc * np.log(2)
    loading, wobble = rng.uniform(-1, 1, (2, n_genes))
    covariance = 0.08 * (2 * np.outer(loading, loading) + 0.5 * np.diag(1 + 0.5 * wobble))

    types = np.arange(n_cells) * n_types // n_cells
    noise = rng.normal(size=(n_cells, n_genes)) @ np.linalg.cholesky(covariance).T
    log_rate = means.T[types] + noise
    counts = rng.poisson(np.exp(log_rate))
    counts[rng.random(counts.shape) < 0.3] = 0

    keep = counts.sum(1) > 0
    data = _annotated(counts[keep], types[keep])
    data.layers["log_rate"] = log_rate[keep]
    data.varm["log_rate_mean"], data.varm["lfc"] = means, lfc
    data.uns["simulation"] = {"name": "poisson_lognormal", "seed": seed, "covariance": covariance}
    return data


def population_lfc(data: anndata.AnnData, group: str, reference: str, *, proportions: bool = False) -> np.ndarray:
    """Log2 fold change between the populations of two types of `poisson_lognormal`.

    All types share one covariance, so the ratio of mean rates equals the ratio of median rates. A gene is truly
    differential at threshold delta when ``abs(lfc) >= delta``.

    Parameters
    ----------
    data
        Result of `poisson_lognormal`.
    group, reference
        Names of two cell types; positive values are higher in `group`.
    proportions
        Divide each type's rates by their sum over genes first. A model of proportions sees this quantity: where the
        total changes, every gene shifts by the same amount.

    Returns
    -------
    ndarray [G]
    """
    means = data.varm["log_rate_mean"][:, [_type_code(data, group), _type_code(data, reference)]]
    if proportions:
        half_variance = np.diag(data.uns["simulation"]["covariance"]) / 2
        means = means - np.log(np.exp(means + half_variance[:, None]).sum(0))
    return (means[:, 0] - means[:, 1]) / np.log(2)


@checked
def pair_truth(
    data: anndata.AnnData,
    group: str,
    reference: str,
    *,
    threshold: float = 0.5,
    n_pairs: int = 10_000,
    seed: Seed = 0,
) -> np.ndarray:
    """Genes that differ between at least half of random pairs of cells: the paper's own definition of the truth.

    It answers another question than `population_lfc`: two random cells of *one* type can differ by the threshold.

    Parameters
    ----------
    data
        Result of `poisson_lognormal`.
    group, reference
        Names of two cell types.
    threshold
        Least absolute difference of the natural-log rates h; multiply by ln 2 for a threshold in log2.
    n_pairs
        Number of pairs, drawn with replacement.
    seed
        Seed of the pairs.

    Returns
    -------
    ndarray [G] of bool
    """
    rng = np.random.default_rng(seed)
    for name in (group, reference):
        _type_code(data, name)
    rows = [rng.choice(np.flatnonzero(data.obs["cell_type"] == name), n_pairs) for name in (group, reference)]
    log_rate = data.layers["log_rate"]
    return np.mean(np.abs(log_rate[rows[0]] - log_rate[rows[1]]) >= threshold, axis=0) >= 0.5


def _type_code(data: anndata.AnnData, name: str) -> int:
    names = list(data.obs["cell_type"].cat.categories)
    if name not in names:
        raise ValueError(f"obs['cell_type'] has no type {name!r}; types are {names}")
    return names.index(name)


@dataclass(frozen=True)
class SparseCounts:
    """Large sparse over-dispersed counts, drawn block by block so that memory does not grow with the number of cells.

    - gene: base ~ Normal(0, 1.5²), theta ~ 0.1 + Gamma(2, 1), batch effect ~ Normal(0, 0.3²)
      (batch 0 is the reference)
    - type: a tenth of the genes gets a shift ~ Normal(0, 1.5²); type shares ~ Dirichlet(5)
    - cell: batch shares ~ Dirichlet(5) for every type, so type and batch correlate mildly;
      four programs f ~ Normal(0, 1) whose loadings ~ Normal(0, 0.3²) touch a tenth of the genes;
      log depth ~ Normal(log scale, 0.35²)
    - counts: NB(depth * softmax(base + shift + batch effect + f loadings), theta)

    ``scale`` is found by bisection so that the expected share of zeros is `zeros`. Defaults give 2,000 genes, about 241
    counts a cell.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_batches
        Size of the data.
    zeros
        Expected share of zero entries, in (0, 1).
    seed
        Seed; block b of 4,096 cells uses the stream ``(seed, 1 + b)``.
    """

    n_cells: int = 10_000
    n_genes: int = 2_000
    n_types: int = 8
    n_batches: int = 2
    zeros: float = 0.92
    seed: int = 0

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        """Shared parameters: base, theta [G], batch [R, G], shift [T, G], loadings [4, G], shares of types, scale."""
        rng = np.random.default_rng((self.seed, 0))
        types, batches, genes = self.n_types, self.n_batches, self.n_genes
        truth = {
            "base": rng.normal(0, 1.5, genes),
            "theta": 0.1 + rng.gamma(2.0, 1.0, genes),
            "batch": rng.normal(0, 0.3, (batches, genes)) * (np.arange(batches) > 0)[:, None],
            "shift": rng.normal(0, 1.5, (types, genes)) * (rng.random((types, genes)) < 0.1),
            "loadings": rng.normal(0, 0.3, (4, genes)) * (rng.random((4, genes)) < 0.1),
            "type_share": rng.dirichlet(np.full(types, 5.0)),
            "batch_share": rng.dirichlet(np.full(batches, 5.0), size=types),
            "scale": np.array(1.0),
        }
        _, _, mean = self.draw_cells(rng, truth, 1_000)
        low, high = 0.0, 30.0  # natural log of the scale
        while high - low > 1e-9:
            middle = (low + high) / 2
            zero = (1 + np.exp(middle) * mean / truth["theta"]) ** -truth["theta"]
            low, high = (middle, high) if zero.mean() > self.zeros else (low, middle)
        return truth | {"scale": np.exp(low)}

    @staticmethod
    def draw_cells(rng: np.random.Generator, truth: dict, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Types [n], batches [n] and NB means [n, G] of n new cells."""
        types = rng.choice(len(truth["type_share"]), n, p=truth["type_share"])
        bounds = truth["batch_share"][types].cumsum(1)[:, :-1]
        batches = (rng.random(n)[:, None] > bounds).sum(1)
        depth = truth["scale"] * np.exp(rng.normal(0, 0.35, n))
        logits = truth["base"] + truth["shift"][types] + truth["batch"][batches]
        return types, batches, depth[:, None] * softmax(logits + rng.normal(size=(n, 4)) @ truth["loadings"])

    def blocks(self) -> Iterator[tuple[sp.csr_matrix, np.ndarray, np.ndarray]]:
        """Yield counts (CSR, float32), type codes and batch codes of at most 4,096 cells; empty cells are left out."""
        for number, start in enumerate(range(0, self.n_cells, BLOCK)):
            rng = np.random.default_rng((self.seed, 1 + number))
            types, batches, mean = self.draw_cells(rng, self.truth, min(BLOCK, self.n_cells - start))
            counts = negative_binomial(rng, mean, self.truth["theta"])
            keep = counts.any(1)
            yield sp.csr_matrix(counts[keep], dtype=np.float32), types[keep], batches[keep]


@checked
def sparse_counts(n_cells: Size = 10_000, n_genes: Size = 2_000, *, seed: Seed = 0, **options) -> anndata.AnnData:
    """Draw a whole `SparseCounts` data set into memory.

    Parameters
    ----------
    n_cells, n_genes, seed, **options
        Fields of `SparseCounts`.

    Returns
    -------
    AnnData
        ``obs``: cell_type, batch; ``var``: base, theta; ``varm``: shift [G, T], batch [G, R];
        ``uns["simulation"]``: the arguments.

    Examples
    --------
    >>> data = sparse_counts(500, 300, zeros=0.8)
    >>> data.shape, round(1 - data.X.nnz / 500 / 300, 1)
    ((500, 300), 0.8)
    """
    source = SparseCounts(n_cells, n_genes, seed=seed, **options)
    counts, types, batches = zip(*source.blocks(), strict=True)
    data = _annotated(sp.vstack(counts, format="csr"), np.concatenate(types), np.concatenate(batches))
    data.var["base"], data.var["theta"] = source.truth["base"], source.truth["theta"]
    data.varm["shift"], data.varm["batch"] = source.truth["shift"].T, source.truth["batch"].T
    data.uns["simulation"] = {"name": "sparse_counts"} | asdict(source)
    return data
