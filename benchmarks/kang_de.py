"""Differential expression against an independent experiment: single cells of eight donors against sorted microarrays.

Dendritic against B cells and CD8 against CD4 T cells among Kang's control cells; the reference is the limma table of
microarrays of sorted cells that the scVI paper used. Score: Spearman correlation of fold changes over the shared genes,
and AUROC of |score| for the genes the microarrays call (adjusted p < 0.05). Published (other cells, more genes): AUROC
0.73 and 0.82.
"""

import numpy as np
from common import Bench, comparison, parser, show, verdict
from datasets import kang
from metrics import against_reference, log_normalised, wilcoxon
from sklearn.metrics import roc_auc_score

QUESTIONS = {"dendritic_B": ("Dendritic cells", "B cells", "BDC"), "CD8_CD4": ("CD8 T cells", "CD4 T cells", "CD")}
PUBLISHED = {"dendritic_B": 0.730, "CD8_CD4": 0.818}


def main():
    p = parser(__doc__)
    p.add_argument("--epochs", type=int, default=50)
    p.add_argument("--seeds", type=int, default=1)
    a = p.parse_args()
    bench, (data, reference) = Bench(a, "kang_de"), kang()
    h5ad, values = bench.file(data, "kang"), log_normalised(data.X.toarray(), 1e4)
    rows = {name: np.flatnonzero(data.obs["cell_type"] == name) for name in data.obs["cell_type"].cat.categories}
    queries = {
        f"{name}_{mode}": comparison(rows[group], rows[other], mode=mode)
        for name, (group, other, _) in QUESTIONS.items()
        for mode in ("change", "vanilla")
    }
    runs = {
        (system, seed): bench.run(
            system, f"seed{seed}", h5ad, batch_key="donor", epochs=a.epochs, seed=seed, de=queries
        )
        for seed in range(a.seeds)
        for system in bench.systems
    }
    ok = True
    for name, (group, other, prefix) in QUESTIONS.items():
        genes = list(reference.index)
        fold, significant = reference[f"{prefix}_logFC"], reference[f"{prefix}_adj.P.Val"] < 0.05
        columns = data.var_names.get_indexer(genes)
        pair = values[rows[group]][:, columns], values[rows[other]][:, columns]
        plain = against_reference(pair[0].mean(0) - pair[1].mean(0), fold, significant)
        p_value = wilcoxon(*pair)[0]
        table = [
            {"method": "mean log-normalised difference"} | plain,
            {"method": "Wilcoxon -log p", "AUROC": roc_auc_score(significant, -p_value)},
        ]
        for (system, seed), run in runs.items():
            for mode in ("change", "vanilla"):
                de = run.tables[f"{name}_{mode}"].loc[genes]
                sure = de["probability"] if mode == "change" else de["bayes_factor"].abs()
                scores = against_reference(de["lfc"], fold, significant)
                sure = {"AUROC of certainty": roc_auc_score(significant, sure), "called": int(de["called"].sum())}
                table.append({"method": f"{system} {mode} seed {seed}"} | scores | sure)
                if system == "ours" and mode == "change":
                    better = scores["Spearman"] > plain["Spearman"] and scores["AUROC"] > plain["AUROC"]
                    ok &= verdict(f"{name}, seed {seed}: above the plain difference in both figures", better)
        show(
            f"{group} against {other}: {len(genes)} shared genes, {int(significant.sum())} called by microarray",
            table,
            f"published AUROC of scVI's Bayes factor on its PBMC data: {PUBLISHED[name]}",
        )
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
