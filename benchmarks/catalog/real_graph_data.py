"""Real interventions with something to compare with: Sachs, DREAM4, melanoma, Papalexi; see benchmarks/README.md."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from benchmarks.datasets import folder


@dataclass
class Screen:
    """Cells, or samples, under interventions.

    Attributes
    ----------
    x : float32 array [N, d]
    targets : int64 array [N]
        The gene intervened on, -1 for none.
    genes : list of str
    truth : bool array [d, d] or None
        Known edges, from row to column.
    """

    x: np.ndarray
    targets: np.ndarray
    genes: list[str]
    truth: np.ndarray | None = None

    @property
    def arrays(self):
        """What ``fit`` takes."""
        return {"x": self.x, "targets": self.targets}

    @property
    def forced(self):
        """Which genes were intervened on, bool [N, d]."""
        return self.targets[:, None] == np.arange(len(self.genes))

    def rows(self, keep):
        """The rows of a mask, or by number."""
        return Screen(self.x[keep], self.targets[keep], self.genes, self.truth)


def standardised(x, targets):
    """Each gene by mean and standard deviation over the rows in which it was not intervened on."""
    own = np.ma.masked_array(x, mask=targets[:, None] == np.arange(x.shape[1]))
    return np.asarray((x - own.mean(0).data) / own.std(0).data, dtype=np.float32)


def edges(table, genes):
    """Adjacency from a table with columns ``cause`` and ``effect``."""
    place = {g: i for i, g in enumerate(genes)}
    found = np.zeros((len(genes),) * 2, dtype=bool)
    found[table["cause"].map(place), table["effect"].map(place)] = True
    return found


def sachs():
    """Eleven proteins and phospholipids, 7,466 cells in nine regimes, logarithms; 18 consensus edges."""
    table = pd.read_csv(folder("sachs/sachs_nine_conditions.csv.gz"))
    genes = list(table.columns[:11])
    targets = table["target"].map({g: i for i, g in enumerate(genes)}).fillna(-1).to_numpy(np.int64)
    x = standardised(np.log(table[genes].to_numpy()), targets)
    return Screen(x, targets, genes, edges(pd.read_csv(folder("sachs/consensus_edges.csv")), genes))


def dream4(net):
    """A network of 100 simulated genes, each knocked out once; no sample without a knock-out."""
    table = pd.read_csv(folder(f"dream4/net{net}_knockouts.csv"), index_col=0)
    genes = list(table.columns)
    targets = np.array([genes.index(name) for name in table.index])
    truth = edges(pd.read_csv(folder(f"dream4/net{net}_edges.csv")), genes)
    return Screen(standardised(table.to_numpy(), targets), targets, genes, truth)


def melanoma(condition, split):
    """Melanoma cells of the Perturb-CITE-seq screen, 61 genes: regimes to train on ("tr"), or held out ("va")."""
    file = np.load(folder("causal/perturb_cite_seq61.npz"))
    x = file[f"{condition}_{split}_X"].astype(np.float32) - file[f"{condition}_obs_mean"].astype(np.float32)
    targets = file[f"{condition}_{split}_targets"][file[f"{condition}_{split}_regime"]]
    return Screen(x, targets, [f"gene{i}" for i in range(x.shape[1])])


def papalexi(n_genes=50):
    """THP-1 cells with one guide, against a measured gene or none: the targets, and genes of most variance in controls.

    Log of counts scaled to 10,000 by the depth of the whole measurement, standardised.
    """
    data = anndata.read_h5ad(folder("perturb_seq/papalexi_eccite.h5ad"))
    names = data.obs["target"].astype(str)
    measured = [g for g in data.var_names if g in set(names)]
    data = data[((data.obs["guide_umi_share"] > 0.8) & names.isin([*measured, "non-targeting"])).to_numpy()]
    x = np.log1p(1e4 * data.X.toarray() / data.obs["total_counts_all_genes"].to_numpy()[:, None])
    control = (data.obs["target"] == "non-targeting").to_numpy()
    spread = pd.Series(x[control].var(0), index=data.var_names)
    others = spread.drop(measured).nlargest(n_genes - len(measured)).index
    genes = [*measured, *others]
    x = x[:, data.var_names.get_indexer(genes)]
    targets = data.obs["target"].astype(str).map({g: i for i, g in enumerate(genes)}).fillna(-1).to_numpy(np.int64)
    return Screen(standardised(x, targets), targets, genes)
