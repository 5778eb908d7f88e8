"""Write a large simulated count matrix (`SparseCounts`) to an h5ad file block by block.

    python -m benchmarks.inference.make_counts out.h5ad --cells 200000 --genes 2000

Memory stays at one block of 4,096 cells, whatever the number of cells.
"""

import argparse

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import sparse_dataset, write_elem

from fieldguide.catalog.data.simulate import SparseCounts


def write(path, source: SparseCounts) -> int:
    """Draw `source`, write counts (CSR, float32) and obs (cell_type, batch) to `path`; return the number of cells."""
    types, batches = [], []
    for number, (counts, type_codes, batch_codes) in enumerate(source.blocks()):
        if number == 0:
            anndata.AnnData(counts).write_h5ad(path)
        else:
            with h5py.File(path, "r+") as file:
                sparse_dataset(file["X"]).append(counts)
        types.append(type_codes)
        batches.append(batch_codes)
    columns = {"cell_type": ("type", source.n_types, types), "batch": ("batch", source.n_batches, batches)}
    obs = pd.DataFrame(
        {
            name: pd.Categorical.from_codes(np.concatenate(codes), [f"{word}_{k}" for k in range(n)])
            for name, (word, n, codes) in columns.items()
        }
    )
    with h5py.File(path, "r+") as file:
        del file["obs"]
        write_elem(file, "obs", obs.set_index("cell_" + obs.index.astype(str)))
    return len(obs)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--cells", type=int, default=200_000)
    p.add_argument("--genes", type=int, default=2_000)
    p.add_argument("--zeros", type=float, default=0.92)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    print(write(a.out, SparseCounts(a.cells, a.genes, zeros=a.zeros, seed=a.seed)), "cells")


if __name__ == "__main__":
    main()
