"""Real data sets that may not be redistributed, read from the folder FIELDGUIDE_DATA; see benchmarks/README.md."""

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from benchmarks.metrics import log_normalised


def folder(relative):
    """Path of one file under FIELDGUIDE_DATA; ends the script with a clear message when it is not there."""
    root = os.environ.get("FIELDGUIDE_DATA")
    if root is None:
        raise SystemExit("skipped: set FIELDGUIDE_DATA to the folder of real data sets (see benchmarks/README.md)")
    path = Path(root) / relative
    if not path.exists():
        raise SystemExit(f"skipped: {path} does not exist (benchmarks/README.md says where it comes from)")
    return path


def genes_with_most(score, data, n):
    """The n genes of largest score, in file order."""
    return data[:, np.sort(np.argsort(-score, kind="stable")[:n])].copy()


def zeisel(n_genes=558):
    """Mouse cortex, 3,005 cells, seven types (``obs["level1class"]``); genes of largest raw standard deviation."""
    data = anndata.read_h5ad(folder("zeisel_cortex/zeisel_4000.h5ad"))
    return genes_with_most(data.X.toarray().std(0), data, n_genes)


def cellbench(n_genes=2_000):
    """Three cell lines by two protocols, 499 cells; genes of largest variance within a protocol, averaged."""
    data = anndata.read_h5ad(folder("cellbench/three_lines_two_protocols.h5ad"))
    values = log_normalised(data.X.toarray())
    inside = [values[data.obs["protocol"] == name].var(0) for name in data.obs["protocol"].cat.categories]
    return genes_with_most(np.mean(inside, 0), data, n_genes)


def kang():
    """Control cells of eight donors (12,261 x 1,287, eight types), and the microarray tables of the genes they share.

    Returns the cells and a table indexed by gene id: ``CD_*`` compares CD8 with CD4 T cells, ``BDC_*`` dendritic with
    B cells (positive ``logFC``: higher in the former).
    """
    data = anndata.read_h5ad(folder("kang_ifnb/kang_ctrl_8types.h5ad"))
    reference = pd.read_csv(folder("kang_ifnb/microarray_reference.csv.gz")).drop_duplicates("ENSG").set_index("ENSG")
    return data, reference.loc[[gene for gene in data.var_names if gene in reference.index]]
