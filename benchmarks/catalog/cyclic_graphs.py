"""Graphs with cycles from interventions: `nodags` beside the official NODAGS-Flow, LLC, and having no graph at all.

Fixed data sets, causal/*.npz under FIELDGUIDE_DATA:

- ``lin_0`` to ``lin_2``, ``nnl_0`` to ``nnl_2``: 20 genes, an intervention on each in 300 cells, linear or SELU; scored
  on ten regimes of two targets. Official scores were measured with the released modules on these very values (800 steps
  of the gated form), LLC by least squares.
- ``control``, ``cocult``, ``ifn``: 61 genes of the melanoma Perturb-CITE-seq screen (Frangieh et al. 2021), 55 regimes
  for training and 6 held out. Published: the authors' follow-up (arXiv 2508.08450), means over its own splits.

Ours: exact log-determinants, absolute weights penalised by 0.01, mixed minibatches of 1000 cells, Adam 0.02 that falls
to zero over the last 30 % of the steps; 420 steps for simulated data, 800 for real; edges are strengths of at least
0.05 everywhere. The linear sets and the real data use the linear map; nnl sets SELU without a bound on the slope, which
an exact determinant does not need (by the bound the simulator's maps are not contractive). These settings had been
tried on these sets before, the fall of the step size once, with other seeds. ``--published`` fits the published form
instead: a gate for each edge and cell, roulette, penalty 0.001, Adam 0.1 throughout, 800 steps. Targets are for means
over seeds.

    python -m benchmarks.catalog.cyclic_graphs [--sets lin_0 nnl_0 cocult ...] [--published] [--seeds 1]

NLL: mean negative log likelihood of a held-out cell over genes that are no target, divided by the number of all genes.
AP: average precision over the d (d - 1) possible edges. SHD: missing, extra and reversed edges, one each.
"""

import argparse
import time

import numpy as np
import pandas as pd

from benchmarks.catalog.real_graph_data import melanoma
from benchmarks.common import show, verdict
from benchmarks.datasets import folder
from fieldguide.catalog import edge_strengths
from fieldguide.decisions import interventional_scores
from fieldguide.inference import fit

OFFICIAL = {  # data: (AP, SHD, NLL, MAE) of gst; then of LLC; NLL of the true mechanism, and of no graph
    "lin_0": ((1.000, 1, 0.6665, 0.4764), (0.9995, 43, 0.6737, 0.4791), 0.6585, 0.7936),
    "lin_1": ((1.000, 1, 0.6635, 0.4373), (0.9969, 45, 0.6694, 0.4386), 0.6584, 0.7482),
    "lin_2": ((1.000, 1, 0.6484, 0.4455), (1.0000, 27, 0.6502, 0.4497), 0.6407, 0.7509),
    "nnl_0": ((0.903, 14, 0.6571, 0.4583), (0.881, 38, 0.6614, 0.4636), 0.6459, 0.7564),
    "nnl_1": ((0.921, 12, 0.6695, 0.4305), (0.884, 41, 0.6707, 0.4321), 0.6620, 0.7550),
    "nnl_2": ((0.929, 7, 0.6630, 0.4497), (0.943, 40, 0.6716, 0.4515), 0.6544, 0.7739),
}
NLL_TARGET = {"lin_0": 0.661, "lin_1": 0.660, "lin_2": 0.642, "nnl_0": 0.648, "nnl_1": 0.664, "nnl_2": 0.656}
REAL = {  # NLL of NODAGS, LLC, a Gaussian for each gene, one full Gaussian; MAE of NODAGS, of 0, of ridge regression
    "control": (1.465, 1.385, 1.384, 1.363, 0.847, 0.860, 0.817),
    "cocult": (1.406, 1.325, 1.353, 1.307, 0.762, 0.803, 0.755),
    "ifn": (1.504, 1.430, 1.436, 1.419, 0.861, 0.920, 0.879),
}
REAL_TARGET = {"control": (1.366, 0.84), "cocult": (1.306, 0.78), "ifn": (1.419, 0.90)}
THRESHOLD = {"ours": 0.05, "published": 0.7}


def average_precision(truth, score):
    """Mean, over true edges, of the precision among all that rank at least as high."""
    off = ~np.eye(len(truth), dtype=bool)
    truth, score = truth[off], score[off]
    at_least = score[None, :] >= score[truth][:, None]
    return (at_least[:, truth].sum(1) / at_least.sum(1)).mean()


def hamming(truth, found):
    """Structural Hamming distance: a reversed edge counts once."""
    missing, extra = truth & ~found, found & ~truth
    return int(missing.sum() + extra.sum() - (missing & extra.T).sum())


def codes(targets):
    """Codes of targets [regimes, M] from a table of zeros and ones."""
    width = int(targets.sum(1).max())
    return np.stack([np.pad(np.flatnonzero(row), (0, width - row.sum()), constant_values=-1) for row in targets > 0])


def learn(data, steps, seed, published=False, **model):
    """A fit and its seconds."""
    batch = 512 if published else min(1000, len(data["x"]))
    epochs = max(1, round(steps / -(-len(data["x"]) // batch)))
    settings = {"max_epochs": epochs, "batch_size": batch, "seed": seed, "learning_rate": 0.1 if published else 0.02}
    if published:
        model |= {"gates": "per_cell", "log_det": "roulette", "stop": 0.5, "sparsity": 1e-3}
        settings["cooldown"] = 0.0
    start = time.perf_counter()
    fitted = fit("nodags", data, validation=0.0, early_stopping=None, progress=False, **settings, **model)
    return fitted, time.perf_counter() - start


def figures(score):
    """Published figures: both are over all genes; the standard error is over regimes."""
    (nll, se), mae = score.loc["nll_all", ["mean", "se"]], score.loc["mae_all", "mean"]
    return {"NLL": nll, "se": se, "MAE": mae}


def simulated(name, seed, published):
    """One row for a simulated set."""
    file = np.load(folder(f"causal/nodags_{name}.npz"))
    data = {"x": file["X"].astype(np.float32), "targets": codes(file["targets"])[file["regime"]]}
    held = {"x": file["X_val"].astype(np.float32), "targets": codes(file["targets_val"])[file["regime_val"]]}
    model = {} if name.startswith("lin") else {"activation": "selu"}
    if not published and name.startswith("nnl"):
        model["contraction"] = None
    fitted, seconds = learn(data, 800 if published else 420, seed, published, **model)
    strengths = edge_strengths(fitted, kind="gates" if published else "jacobian").to_numpy()
    truth = file["adj"] > 0
    score = interventional_scores(fitted, held).diagnostics
    found = strengths >= THRESHOLD["published" if published else "ours"]
    row = {"set": name, "seed": seed, "AP": average_precision(truth, strengths), "SHD": hamming(truth, found)}
    row |= {
        "NLL": score.loc["nll_all", "mean"],
        "se": score.loc["nll_all", "se"],
        "MAE": score.loc["mae_all", "mean"],
        "seconds": seconds,
    }
    official, llc, best, empty = OFFICIAL[name]
    row |= dict(zip(("off. AP", "off. SHD", "off. NLL", "off. MAE"), official, strict=True))
    return row | {"LLC AP": llc[0], "LLC SHD": llc[1], "LLC NLL": llc[2], "true NLL": best, "empty NLL": empty}


def real(name, seed):
    """One row for a condition of the screen."""
    fitted, seconds = learn(melanoma(name, "tr").arrays, 800, seed)
    score = interventional_scores(fitted, melanoma(name, "va").arrays).diagnostics
    row = {
        "set": name,
        "seed": seed,
        "NLL": score.loc["nll_all", "mean"],
        "se": score.loc["nll_all", "se"],
        "MAE": score.loc["mae_all", "mean"],
    }
    row |= {"edges": int((edge_strengths(fitted).to_numpy() >= 0.05).sum()), "seconds": seconds}
    titles = ("NODAGS", "LLC", "each gene", "full Gaussian", "NODAGS MAE", "MAE of 0", "ridge MAE")
    return row | dict(zip(titles, REAL[name], strict=True))


def judge(row, published):
    """Print the targets of the means of a set; return whether all are met."""
    name, nll = row["set"], row["NLL"]
    if name in REAL:
        bound, mae = REAL_TARGET[name]
        best = min(REAL[name][:4])
        verdict(f"{name}: (wanted, not required) NLL below the best of all others, {best}: {nll:.4f}", nll < best)
        met = nll <= bound and row["MAE"] <= mae
        return verdict(f"{name}: NLL {nll:.4f} <= {bound}, MAE {row['MAE']:.3f} <= {mae}", met)
    if published:
        close = abs(nll - row["off. NLL"]) <= 0.006
        ap, shd = (0.998, 2) if name.startswith("lin") else (row["off. AP"] - 0.03, 16)
        met = close and row["AP"] >= ap and row["SHD"] <= shd
        return verdict(f"{name}: NLL within 0.006 of {row['off. NLL']}, AP >= {ap:.3f}, SHD <= {shd}", met)
    met = nll <= NLL_TARGET[name] and (not name.startswith("lin") or row["AP"] >= 0.998)
    return verdict(f"{name}: NLL {nll:.4f} <= {NLL_TARGET[name]}" + ", AP >= 0.998" * name.startswith("lin"), met)


def means(rows):
    """Mean over the seeds of each set."""
    if not rows:
        return []
    return pd.DataFrame(rows).groupby("set", sort=False).mean(numeric_only=True).reset_index().to_dict("records")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*OFFICIAL, *REAL]
    p.add_argument("--sets", nargs="+", choices=known, default=known)
    p.add_argument("--published", action="store_true", help="the published form instead (simulated sets)")
    p.add_argument("--seeds", type=int, default=1)
    arguments = p.parse_args()
    ok, pairs = [], [(name, seed) for name in arguments.sets for seed in range(arguments.seeds)]
    rows = [simulated(n, s, arguments.published) for n, s in pairs if n in OFFICIAL]
    if rows:
        show("Simulated graphs (20 genes)", rows)
    screen = [] if arguments.published else [real(n, s) for n, s in pairs if n in REAL]
    if screen:
        show("Perturb-CITE-seq, held-out regimes (the last columns: recorded)", screen)
    ok += [judge(row, arguments.published) for row in means(rows) + means(screen)]
    for family, limit in (("lin", 2), ("nnl", 6)):
        mine = [r for r in rows if r["set"].startswith(family)]
        if mine and not arguments.published and {r["set"][-1] for r in mine} == set("012"):
            mean = {k: np.mean([r[k] for r in mine]) for k in ("SHD", "AP", "seconds")}
            ok.append(verdict(f"{family}: mean SHD {mean['SHD']:.1f} <= {limit}", mean["SHD"] <= limit))
            if family == "nnl":
                ok.append(verdict(f"nnl: mean AP {mean['AP']:.3f} >= 0.935", mean["AP"] >= 0.935))
    raise SystemExit(0 if all(ok) else 1)


if __name__ == "__main__":
    main()
