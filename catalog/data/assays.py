"""Two assays of one tissue, drawn from gimVI itself: all genes by sequencing, some in space, the truth beside them."""

import anndata
import numpy as np
import pandas as pd

from fieldguide.inference.checks.ranges import Seed, Size, checked


@checked
def two_assays(
    n_genes: Size = 200,
    n_measured: int = 100,
    cells: tuple[int, int] = (3000, 2000),
    n_latent: Size = 8,
    clusters: int = 6,
    totals: tuple[float, float] = (2000.0, 300.0),
    capture: float = 0.0,
    seed: Seed = 0,
) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Return sequencing counts of all genes and spatial counts of the first ones, of different cells.

    For a cell of cluster k, z ~ Normal(centre_k, I), centre_k ~ Normal(0, 2 I), and the expression of its genes is
    softmax(W z + b), W ~ Normal(0, 0.6), b ~ Normal(0, 1.5). Counts are negative binomial, of inverse dispersion
    Gamma(2, 1) + 0.1 for each gene and assay, and totals log-normal (standard deviation of the logarithm 0.4 and 0.5).

    Parameters
    ----------
    n_genes, n_measured : int
        Genes in sequencing, and of these in space.
    cells : (int, int)
        Of sequencing, in space; cells without a count on the genes that both measure are left out.
    n_latent, clusters : int
    totals : (float, float)
        Median total count of a cell in either.
    capture : float
        Standard deviation of the log efficiency with which sequencing captures each gene; 0: all alike.
    seed : int

    Returns
    -------
    sequencing, spatial : AnnData
        ``obs["cluster"]``; ``spatial.obsm["truth"]`` is a table, cells x genes that space lacks, of their true
        expression relative to the total of the measured genes.

    Raises
    ------
    ValueError
        If not at least one gene is measured in space, and one is not.

    Examples
    --------
    >>> rna, fish = two_assays(n_genes=12, n_measured=8, cells=(50, 40), n_latent=2)
    >>> rna.n_vars, fish.n_vars, fish.obsm["truth"].shape[1]
    (12, 8, 4)
    """
    if not 0 < n_measured < n_genes:
        raise ValueError(
            f"n_measured must be between 1 and {n_genes - 1}, the genes that sequencing has, not {n_measured}"
        )
    rng = np.random.default_rng(seed)
    loadings, level = rng.normal(0, 0.6, (n_latent, n_genes)), rng.normal(0, 1.5, n_genes)
    centres = rng.normal(0, np.sqrt(2), (clusters, n_latent))
    efficiency = np.exp(rng.normal(0, capture, n_genes))
    names = np.array([f"gene{g}" for g in range(n_genes)])
    assays = []
    for number, (count, total, spread) in enumerate(zip(cells, totals, (0.4, 0.5), strict=True)):
        cluster = rng.integers(clusters, size=count)
        rate = np.exp((centres[cluster] + rng.normal(size=(count, n_latent))) @ loadings + level)
        measured = n_genes if number == 0 else n_measured
        share = rate[:, :measured] * (efficiency if number == 0 else 1.0)
        depth = total * np.exp(rng.normal(0, spread, count))
        theta = rng.gamma(2, 1, measured) + 0.1
        mean = depth[:, None] * share / share.sum(1, keepdims=True)
        counts = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape)).astype(np.float32)
        rows = [str(i) for i in range(count)]
        obs = pd.DataFrame({"cluster": pd.Categorical(cluster.astype(str))}, index=rows)
        data = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=names[:measured]))
        if number == 1:
            truth = rate[:, n_measured:] / rate[:, :n_measured].sum(1, keepdims=True)
            data.obsm["truth"] = pd.DataFrame(truth, index=rows, columns=names[n_measured:])
        assays.append(data[counts[:, :n_measured].sum(1) > 0].copy())
    return assays[0], assays[1]
