"""Contexts and treatments: are the blocks of latents recovered, what does an unseen pair do, what is particular to one?

Simulated cells whose values are a random network of two latents of the context, two of the treatment and two of both
(`factor_sim`), of 3 contexts x 6 treatments x 200 cells and 5 x 8 x 100. Blocks are compared by R2 of ridge regression
with a Gaussian kernel: each on its true block, over all cells, and on the others, after the means of the conditions
are taken out. Parts:

``recover``   five data seeds of both sizes; of five starts the one with the least held-out loss. R2 at least 0.93 on
              every diagonal, at most 0.10 off it.
``free``      the same data with the priors of the blocks from the start, as published, with and without labels.
``pairs``     one pair left out at a time: R2 of its response over genes, beside the mean of the other contexts, none,
              and the true network of which only the latents of that pair are not known (``ceiling``).
``critic``    critics, and HSIC as a constraint: dependence of the blocks on held-out cells, and the bound.
``mcfaline``  three glioblastoma lines, nine knock-downs: every pair left out once, by ours and the baselines, and what
              is particular to a line.

No table of the paper could be read, and its released code does not run: the figures "recorded" are of the sheet's
clean prototype of its model.
"""

import time
import warnings
from typing import Any

import anndata
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.kernel_ridge import KernelRidge

from benchmarks.common import parser, show, verdict
from benchmarks.datasets import folder

SIZES = {"3 x 6 x 200": (3, 6, 200), "5 x 8 x 100": (5, 8, 100)}
SITES = ("z_x", "z_tx", "z_t")
BLOCKS = {"n_latent_x": 2, "n_latent_tx": 2, "n_latent_t": 2}
TRAINING: dict[str, Any] = {"batch_size": 256, "kl_warmup": 30, "progress": False, "device": "cpu"}
TRAINING |= {"early_stopping": None}
RECORDED = [
    {"data": "3 x 6 x 200", "seed": 0, "start": "recorded, plain", "z_x": 0.08, "z_tx": 0.59, "z_t": 0.62, "off": 0.64},
    {
        "data": "3 x 6 x 200",
        "seed": 2,
        "start": "recorded, plain",
        "z_x": 0.99,
        "z_tx": 0.94,
        "z_t": 0.97,
        "off": -0.04,
    },
    {"data": "5 x 8 x 100", "seed": 0, "start": "recorded, plain", "z_x": 0.95, "z_tx": 0.79, "z_t": 0.80, "off": 0.17},
]


def trained(data: anndata.AnnData, **given: Any) -> tuple[Any, float]:
    """Return a fit to simulated cells, and its CPU seconds."""
    from fieldguide.inference import Perturbations, fit

    place = {"counts": None, "values": "X", "perturbation": Perturbations("treatment", control="control")}
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = fit("fcr", data, fields=place, **TRAINING | BLOCKS | given)
    return done, time.process_time() - start


def kernel_r2(latent: np.ndarray, truth: np.ndarray, cells: int = 1200) -> float:
    """R2 on half of the cells of a kernel regression on the other half, the best of nine settings."""
    rows = np.random.default_rng(0).permutation(len(latent))[:cells]
    a, b = rows[: cells // 2], rows[cells // 2 :]
    latent = (latent - latent.mean(0)) / (latent.std(0) + 1e-9)
    squares = ((latent[a][:, None] - latent[a]) ** 2).sum(-1)
    gamma, level, scores = 1 / np.median(squares[squares > 0]), truth[a].mean(0), []
    for width in (0.3, 1.0, 3.0):
        for ridge in (1e-3, 1e-2, 1e-1):
            model = KernelRidge(alpha=ridge, kernel="rbf", gamma=gamma * width).fit(latent[a], truth[a] - level)
            left = truth[b] - level - model.predict(latent[b])
            scores.append(1 - (left**2).sum() / ((truth[b] - truth[b].mean(0)) ** 2).sum())
    return float(max(scores))


def scores(data: anndata.AnnData, fitted: Any) -> dict:
    """R2 of each block on its own, the largest within conditions on another, and correlations of matched latents."""
    pairs = data.obs["context"].cat.codes.to_numpy() * 100 + data.obs["treatment"].cat.codes.to_numpy()
    ours = {site: np.asarray(fitted.latent(data, site), dtype=float) for site in SITES}

    def within(values: np.ndarray) -> np.ndarray:
        left = values.copy()
        for pair in np.unique(pairs):
            left[pairs == pair] -= left[pairs == pair].mean(0)
        return left

    row = {site: kernel_r2(ours[site], data.obsm[site]) for site in SITES}
    others = [(a, b) for a in SITES for b in SITES if a != b]
    row["off"] = max(kernel_r2(within(ours[a]), within(data.obsm[b])) for a, b in others)
    table = np.abs(np.corrcoef(ours["z_tx"], data.obsm["z_tx"], rowvar=False))[:2, 2:]
    row["MCC z_tx"] = float(table[linear_sum_assignment(-table)].mean())
    return row


def starts(name: str, seed: int, numbers: range, **given: Any) -> list[dict]:
    """Scores of several starts on one data set, the one of least held-out loss marked."""
    from fieldguide.catalog.data.factor_blocks import factor_sim

    data, rows, held_out = factor_sim(seed, *SIZES[name]).data, [], 0.1
    for start in numbers:
        fitted, seconds = trained(data, seed=start, validation=held_out, **given)
        held_out = fitted.validation_rows
        row = {"data": name, "seed": seed, "start": start} | scores(data, fitted)
        rows.append(row | {"held-out loss": fitted.held_out_loss(), "CPU s": seconds})
    best = int(np.argmin([row["held-out loss"] for row in rows]))
    return [row | {"chosen": "*" if k == best else ""} for k, row in enumerate(rows)]


def recover(seeds: list[int], epochs: int) -> bool:
    """Blocks on every data seed."""
    rows = [row for name in SIZES for seed in seeds for row in starts(name, seed, range(5), max_epochs=epochs)]
    show(f"blocks of simulated cells, {epochs} epochs", [*rows, *RECORDED])
    chosen = [row for row in rows if row["chosen"]]
    least, most = (f(row[c] for row in chosen for c in columns) for f, columns in ((min, SITES), (max, ("off",))))
    every = min(row[site] for row in rows for site in SITES), max(row["off"] for row in rows)
    print(f"of all {len(rows)} starts, the chosen ones or not: least {every[0]:.3f}, largest off {every[1]:.3f}")
    ok = verdict(f"least R2 of a block on its own: {least:.3f} >= 0.93", least >= 0.93)
    return verdict(f"largest R2 on another: {most:.3f} <= 0.10", most <= 0.10) and ok


def free(seeds: list[int], epochs: int) -> bool:
    """The published training."""
    ways = {"free": {"axes": "free"}, "free, labels": {"axes": "free", "labels": True}}
    rows = []
    for name in SIZES:
        for seed in seeds:
            for way, given in ways.items():
                rows += [{"way": way} | row for row in starts(name, seed, range(1), max_epochs=epochs, **given)]
    show("priors of blocks from the start, as published, one start", rows)
    return True


def pairs(seeds: list[int], epochs: int) -> bool:
    """Responses of pairs that were left out."""
    from fieldguide.catalog.data.factor_blocks import factor_sim
    from fieldguide.decisions import context_responses
    from fieldguide.decisions.perturbations.pairs import explained

    rows = []
    for name, size in SIZES.items():
        for seed in seeds:
            world = factor_sim(seed, *size)
            obs = world.data.obs
            for number in range(3):
                rng = np.random.default_rng([seed, number])
                c, t = int(rng.integers(size[0])), int(rng.integers(1, size[1]))
                hidden = ((obs["context"] == f"c{c}") & (obs["treatment"] == f"t{t}")).to_numpy()
                fitted, _ = trained(world.data[~hidden].copy(), seed=number, max_epochs=epochs)
                answer = context_responses(fitted, [(f"c{c}", f"t{t}")], world.data)
                said, table = answer.diagnostics.iloc[0], answer.table
                held = (table["low"] <= table["observed"]) & (table["observed"] <= table["high"])
                ceiling = explained(
                    table["observed"].to_numpy(), known_network(world, c, t) - table["control"].to_numpy()
                )
                row = {"data": name, "seed": seed, "pair": f"c{c}, t{t}", "ours": said["r2"]}
                row |= {"other contexts": said["r2_additive"], "none": said["r2_no_effect"], "ceiling": ceiling}
                rows.append(row | {"intervals hold": float(held.mean())})
    show("R2 of the response of a pair left out", rows)
    mean = {
        k: float(np.mean([row[k] for row in rows])) for k in ("ours", "other contexts", "ceiling", "intervals hold")
    }
    middle = {k: float(np.median([row[k] for row in rows])) for k in ("ours", "other contexts", "ceiling")}
    print("mean", {k: round(v, 3) for k, v in mean.items()}, "median", {k: round(v, 3) for k, v in middle.items()})
    gain = mean["ours"] - mean["other contexts"]
    return verdict(f"mean R2 above that of the other contexts by {gain:.3f} >= 0.2", gain >= 0.2)


def known_network(world: Any, c: int, t: int, draws: int = 4000) -> np.ndarray:
    """Expected values of a pair where all is known but the mean and the scale of its own latents."""
    rng = np.random.default_rng(0)
    z_x = world.means["z_x"][c] + world.scales["z_x"][c] * rng.normal(size=(draws, 2))
    z_t = world.means["z_t"][t] + world.scales["z_t"][t] * rng.normal(size=(draws, 2))
    z_tx = rng.normal(0, 2, (draws, 2)) + rng.uniform(0.3, 1, (draws, 2)) * rng.normal(size=(draws, 2))
    return world.expected(np.hstack((z_x, z_tx, z_t))).mean(0)


def critic(seeds: list[int], epochs: int) -> bool:
    """Dependence of blocks on held-out cells, by what is asked of them."""
    from fieldguide.catalog.data.factor_blocks import factor_sim
    from fieldguide.inference import hsic
    from fieldguide.inference.constraints.measures import gaussian_gram, hsic_unbiased, median_gamma

    def dependence(data: anndata.AnnData, fitted: Any) -> dict:
        rows = fitted.validation_rows
        ours = {s: torch.as_tensor(np.asarray(fitted.latent(data, s), dtype=float))[rows] for s in SITES}
        said = {}
        for site, column in (("z_x", "context"), ("z_t", "treatment")):
            codes, total = data.obs[column].cat.codes.to_numpy()[rows], []
            for code in np.unique(codes):
                one, both = (ours[s][codes == code] for s in (site, "z_tx"))
                grams = [gaussian_gram(v, median_gamma(v)) for v in (one, both)]
                total.append(float(hsic_unbiased(*grams)) * len(one) / len(codes))
            said[f"HSIC {site}, z_tx given {column}"] = 1e3 * sum(total)
        return said

    given = [hsic("z_x", "z_tx", given="context"), hsic("z_t", "z_tx", given="treatment")]
    plain = {"axes": "free"}
    ways = {"free": plain, "free, critics": plain | {"critic": 1.0}, "free, HSIC": plain | {"constraints": given}}
    ways["turned"] = {}
    rows = []
    for seed in seeds:
        data = factor_sim(seed, 5, 8, 100).data
        for way, options in ways.items():
            fitted, seconds = trained(data, seed=0, max_epochs=epochs, validation=0.2, **options)
            row = {"seed": seed, "way": way, "held-out loss": fitted.held_out_loss()} | dependence(data, fitted)
            rows.append(row | scores(data, fitted) | {"CPU s": seconds})
    show("dependence of blocks on held-out cells, in thousandths", rows)
    return True


# ---- real cells -------------------------------------------------------------------------------------------
def mcfaline(seeds: list[int], epochs: int) -> bool:
    """Every pair of line and knock-down left out once."""
    from fieldguide.decisions import context_effects, context_responses
    from fieldguide.inference import Perturbations, fit

    cells = anndata.read_h5ad(folder("perturb_seq/mcfaline23_mini.h5ad"))
    cells.obs["total"] = cells.obs["total_counts_all_genes"].astype(float)
    place = {"context": "cell_type", "perturbation": Perturbations("perturbation", control="control")}
    sizes = {"n_latent_x": 4, "n_latent_tx": 4, "n_latent_t": 4, "n_hidden": 64, "dropout": 0.1}
    lines, treatments = (sorted(cells.obs[c].astype(str).unique()) for c in ("cell_type", "perturbation"))
    rows, lists = [], []
    for seed in seeds:
        for line in lines:
            for treatment in treatments:
                if treatment == "control":
                    continue
                hidden = ((cells.obs["cell_type"] == line) & (cells.obs["perturbation"] == treatment)).to_numpy()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    training = TRAINING | {"max_epochs": epochs, "seed": seed}
                    fitted = fit("fcr", cells[~hidden].copy(), fields=place, **sizes, **training)
                    answer = context_responses(fitted, [(line, treatment)], cells, draws=50)
                said = answer.diagnostics.iloc[0]
                row = {
                    "seed": seed,
                    "line": line,
                    "knock-down": treatment,
                    "cells": said["n_cells"],
                    "ours": said["r2"],
                }
                rows.append(row | {"other lines": said["r2_additive"], "none": said["r2_no_effect"]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = fit("fcr", cells, fields=place, **sizes, **TRAINING | {"max_epochs": epochs, "seed": seed})
        effects = context_effects(whole)
        lists.append(
            {"seed": seed, "called": int(effects.table["is_specific"].sum()), "pairs": len(effects.diagnostics)}
        )
        print(effects.table.head(8).round(3).to_string())
    show(f"glioblastoma lines: R2 of the response of a pair left out, {epochs} epochs", rows)
    show("particular to a line", lists)
    for column in ("ours", "other lines", "none"):
        values = np.array([row[column] for row in rows])
        print(f"{column}: mean {values.mean():.3f}, median {np.median(values):.3f}, best in", end=" ")
        print(sum(row[column] == max(row[k] for k in ("ours", "other lines", "none")) for row in rows), "of", len(rows))
    return True


def main():
    p = parser(__doc__)
    p.add_argument("--parts", nargs="*", default=["recover", "free", "pairs", "critic", "mcfaline"])
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    p.add_argument("--epochs", type=int, help="by default 400 (recover, free), 300 (pairs), 200 (critic), 60")
    a = p.parse_args()
    torch.set_num_threads(1)
    parts = {"recover": (recover, 400), "free": (free, 400), "pairs": (pairs, 300), "critic": (critic, 200)}
    parts["mcfaline"] = (mcfaline, 60)
    return all([function(a.seeds, a.epochs or usual) for function, usual in (parts[name] for name in a.parts)])


if __name__ == "__main__":
    raise SystemExit(not main())
