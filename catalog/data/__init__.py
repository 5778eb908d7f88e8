"""The small real data sets that come with the library; origin and licence of each are in ``LICENSES.md`` beside them.

Every function reads its file anew, so that the caller owns (and may change) what it returns.
"""

from importlib.resources import as_file, files

from anndata import AnnData, read_h5ad

__all__ = ["pbmc68k_700"]


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
