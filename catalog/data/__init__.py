"""The small real data sets that come with the library; origin and licence of each are in ``LICENSES.md`` beside them.

Every function reads its file anew, so that the caller owns (and may change) what it returns.
"""

import gzip
from importlib.resources import as_file, files
from io import StringIO

import pandas as pd
from anndata import AnnData, read_h5ad

__all__ = ["open_bandit", "pbmc68k_700", "thornton"]


def pbmc68k_700() -> AnnData:
    """Blood cells of one healthy donor: 700 cells x 765 genes, counts of unique molecules (UMIs).

    A sample of the 68 thousand peripheral blood mononuclear cells of Zheng et al. (2017), with the genes of
    highest dispersion. It is the data of ``fieldguide compare`` when no file is given.

    Returns
    -------
    AnnData
        ``X``: int32 counts, CSR, shape [700, 765], 0 to 259 molecules a cell and gene; no cell and no gene is empty.
        ``var_names``: gene symbols. ``obs``:

        * ``bulk_labels``: cell type (10 categories), by correlation with sorted populations;
        * ``n_counts``, ``n_genes``: molecules and genes of the cell over *all* genes, before the 765 were chosen;
        * ``percent_mito``: fraction (0 to 1) of the cell's molecules that are mitochondrial.

    References
    ----------
    Zheng et al., "Massively parallel digital transcriptional profiling of single cells", Nature Communications 8,
    14049 (2017). Licence CC BY 4.0; taken from scanpy 1.11.5, see ``LICENSES.md``.

    Examples
    --------
    >>> data = pbmc68k_700()
    >>> data.shape, data.X.dtype.name
    ((700, 765), 'int32')
    >>> int((data.obs["bulk_labels"] == "Dendritic").sum())
    240
    """
    with as_file(files(__name__) / "pbmc68k_700.h5ad") as path:
        return read_h5ad(path)


def open_bandit(policy: str = "random") -> pd.DataFrame:
    """Logged recommendations of a fashion shop: 10,000 impressions of 80 items under one of two policies.

    The campaign "all" of the small Open Bandit Dataset (Saito et al. 2021). Both policies ran side by side, so that
    each log says what the other's estimates should find. Clicks are rare: 38 and 42.

    Parameters
    ----------
    policy : {"random", "bts"}
        Uniformly random, or Bernoulli Thompson sampling.

    Returns
    -------
    DataFrame
        ``timestamp``; ``item_id`` (0 to 79); ``position`` on the page (1 to 3); ``click`` (0 or 1);
        ``propensity_score``, the probability of the item at its position under the policy; ``user_feature_0`` to
        ``user_feature_3``, hashed.

    References
    ----------
    Saito, Aihara, Matsutani and Narita, "Open Bandit Dataset and Pipeline", NeurIPS Datasets and Benchmarks 2021.
    Licence CC BY 4.0; taken from obp 0.4.1, see ``LICENSES.md``.

    Examples
    --------
    >>> data = open_bandit("bts")
    >>> data.shape, int(data["click"].sum())
    ((10000, 9), 42)
    """
    if policy not in ("random", "bts"):
        raise ValueError(f"policy must be 'random' or 'bts', not {policy!r}")
    with as_file(files(__name__) / f"open_bandit_{policy}.csv.gz") as path:
        text = gzip.decompress(path.read_bytes()).decode()  # whole: pandas takes an interrupt for an error of the file
    return pd.read_csv(StringIO(text), parse_dates=["timestamp"])


def thornton() -> pd.DataFrame:
    """Cash incentives to learn a test result: 2,004 people of rural Malawi in a randomised trial.

    Each drew a voucher of 0 to about 3 dollars, to be paid when the result of a test was collected at a temporary
    centre; also the distance of the centre was random. (Two thirds of the villages of Thornton 2008; the result
    itself is not here.)

    Returns
    -------
    DataFrame
        ``villnum``: village; ``got``: whether the result was collected (0 or 1); ``distvct``: distance of the centre
        in km; ``tinc``: incentive in US dollars; ``any``: whether it is above 0; ``age`` in years.

    References
    ----------
    Thornton, "The demand for, and impact of, learning HIV status", American Economic Review 98 (2008). Taken from
    causaldata 0.1.5 (MIT), see ``LICENSES.md``.

    Examples
    --------
    >>> data = thornton()
    >>> data.groupby("any")["got"].mean().round(2).tolist()
    [0.35, 0.79]
    """
    with as_file(files(__name__) / "thornton.csv") as path:
        return pd.read_csv(StringIO(path.read_text()))
