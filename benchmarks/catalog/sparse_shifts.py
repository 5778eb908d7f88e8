"""sVAE+: are latents and their targets recovered from sparse shifts, and what do held-out perturbations cost?

Cells of the published simulator: 15 latents, 100 genes, 100 perturbations of which 80 are trained on. Parts:

``small``     100 cells a perturbation. Targets: mean MCC over seeds at least 0.90, F1 at least 0.80.
``paper``     500 cells a perturbation. Targets: mean MCC at least 0.92, worst at least 0.90, F1 at least 0.95, R2 at
              least 0.82, standard deviation of the MCC at most 0.01.
``alpha``     the published alpha at 60, 100 and 200: the MCC changes by at most 0.06.
``few``       15, 7 and 1 latents ever targeted: the MCC falls by at least 0.10 each time, as published.
``transfer``  20 held-out perturbations with networks as they are: importance-weighted bound of each prior; ours lowest.
``step``      seconds of a step of 512 cells with 5,000 perturbations and 50 latents: at most 0.2.

Baselines under the same budget: VAE and iVAE as they are and in the axes of
`fieldguide.decisions.perturbations.axes`, and principal components without a network in the same axes. Scores of the
official modules were recorded by running them; the published ones are from Table 1 of the paper.
"""

import time
import warnings

import anndata
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from benchmarks.common import parser, show, verdict
from fieldguide.catalog import get, learn_perturbations
from fieldguide.catalog.data.sparse_shift import ShiftWorld, sparse_shift_sim
from fieldguide.decisions.perturbations.axes import chosen_axes
from fieldguide.decisions.perturbations.effects import estimated_shifts
from fieldguide.inference import IWAE, Fit, Step, fit

TRAINED = 80
PUBLISHED = {"method": "published (paper's cells)", "MCC": 0.88, "Spearman": 0.79, "R2": 0.86}
OFFICIAL = {
    "small": {
        "method": "official modules, alpha 20 (3 seeds)",
        "MCC": 0.590,
        "Spearman": 0.508,
        "R2": 0.858,
        "F1": 0.52,
    },
    "paper": {
        "method": "official modules, alpha 100 (1 seed)",
        "MCC": 0.916,
        "Spearman": 0.827,
        "R2": 0.855,
        "F1": 0.997,
    },
}
EPOCHS = {"small": 300, "paper": 60}
CELLS = {"small": 100, "paper": 500}
BATCHES = {"small": 512, "paper": 256}
"""Cells in a minibatch, of every method; published 128. With 512 at 60 epochs of the larger data the MCC is .88."""


def split(world: ShiftWorld) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Return the cells of the perturbations that are trained on, and of those held out."""
    known = (world.data.obs["perturbation"].cat.codes < TRAINED).to_numpy()
    parts = world.data[known].copy(), world.data[~known].copy()
    for part in parts:
        part.obs["perturbation"] = part.obs["perturbation"].astype(str)
    return parts


def scores(world: ShiftWorld, cells: anndata.AnnData, latent: np.ndarray, targets: np.ndarray | None = None) -> dict:
    """Return MCC, its rank form, R2 and, with estimated targets [80, p], precision, recall and F1 of both scorers."""
    truth = cells.obsm["latent"]
    size = truth.shape[1]
    table = np.corrcoef(truth, latent, rowvar=False)[:size, size:]
    rows, columns = linear_sum_assignment(-np.abs(table))
    ranks = np.abs(spearmanr(truth, latent)[0][:size, size:])
    result = {
        "MCC": np.abs(table)[rows, columns].mean(),
        "Spearman": ranks[linear_sum_assignment(-ranks)].mean(),
        "R2": LinearRegression().fit(latent, truth).score(latent, truth),
    }
    if targets is not None:
        result |= _graph(world.targets[:TRAINED], targets[:, columns])
        signed = linear_sum_assignment(-table)[1]
        all_rows = np.zeros_like(world.targets)
        all_rows[:TRAINED] = targets[:, signed]
        result["F1, official scorer"] = _graph(world.targets, all_rows)["F1"]
    return result


def _graph(truth: np.ndarray, found: np.ndarray) -> dict:
    hits = (truth & found).sum()
    precision, recall = hits / max(found.sum(), 1), hits / truth.sum()
    return {"P": precision, "R": recall, "F1": 2 * precision * recall / max(precision + recall, 1e-12)}


def in_axes(cells: anndata.AnnData, latent: np.ndarray, name: str) -> np.ndarray:
    """Return latents written in the axes of a name."""
    codes = cells.obs["perturbation"].astype("category").cat.codes.to_numpy()[:, None]
    shifts = estimated_shifts(latent.astype(float), codes, codes.max() + 1)
    axes = chosen_axes(name, shifts.estimate / shifts.deviation, np.bincount(codes[:, 0]).astype(float))
    return latent / shifts.deviation @ axes.T


def trained(cells: anndata.AnnData, seed: int, epochs: int, **options) -> tuple[Fit, float]:
    """Return a fit and its CPU seconds."""
    start = time.process_time()
    part = "paper" if cells.n_obs > 20_000 else "small"
    sizes = {"n_latent": 15, "max_epochs": epochs, "progress": False, "device": "cpu"}
    sizes |= {"batch_size": BATCHES[part], "learning_rate": 3e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fit("svae", cells, seed=seed, **sizes | options)
    return fitted, time.process_time() - start


def targets_of(fitted: Fit) -> np.ndarray:
    """Return the estimated targets [80, p], rows in the order of the simulator."""
    names = fitted.schema.states["perturbation"]["perturbations"]  # pyright: ignore
    share = fitted.program.shifts.share.detach().numpy() > 0.5  # pyright: ignore
    order = np.argsort([int(name[1:]) for name in names])
    return share[order]


def recovery(part: str, seeds: list[int], epochs: int) -> bool:
    """Print one seed a row, and say whether the targets are met."""
    rows, best = [OFFICIAL[part] | {}, PUBLISHED], []
    for seed in seeds:
        world = sparse_shift_sim(seed, n_cells=CELLS[part])
        cells, _ = split(world)
        fitted, seconds = trained(cells, seed, epochs)
        row = scores(world, cells, fitted.latent(), targets_of(fitted))
        best.append(row)
        held_out = fitted.history["validation"].iloc[-1]
        rows.append({"method": f"svae+, seed {seed}"} | row | {"validation": held_out, "CPU s": seconds})
        for prior in ("vae", "ivae"):
            plain, seconds = trained(cells, seed, epochs, prior=prior)
            latent, last = plain.latent(), plain.history["validation"].iloc[-1]
            rows.append(
                {"method": f"{prior}, seed {seed}"}
                | scores(world, cells, latent)
                | {"validation": last, "CPU s": seconds}
            )
            for axes in ("ica", "sparse"):
                rows.append(
                    {"method": f"{prior} in {axes} axes, seed {seed}"}
                    | scores(world, cells, in_axes(cells, latent, axes))
                )
        components = PCA(15, random_state=0).fit_transform(np.log1p(cells.X))
        for axes in ("ica", "sparse"):
            turned = scores(world, cells, in_axes(cells, components, axes))
            rows.append({"method": f"PCA in {axes} axes, seed {seed}"} | turned)
    mcc, f1 = np.array([r["MCC"] for r in best]), np.array([r["F1"] for r in best])
    show(
        f"{part}: {CELLS[part]} cells a perturbation, {epochs} epochs",
        rows,
        f"sVAE+ MCC {mcc.mean():.3f} +- {mcc.std():.3f}",
    )
    if part == "small":
        ok = verdict(f"mean MCC {mcc.mean():.3f} >= 0.90 (worst {mcc.min():.3f})", mcc.mean() >= 0.9)
        return verdict(f"mean F1 {f1.mean():.3f} >= 0.80 (worst {f1.min():.3f})", f1.mean() >= 0.8) and ok
    ok = verdict(f"mean MCC {mcc.mean():.3f} >= 0.92", mcc.mean() >= 0.92)
    ok &= verdict(f"worst MCC {mcc.min():.3f} >= 0.90", mcc.min() >= 0.90)
    ok &= verdict(f"standard deviation of the MCC {mcc.std():.4f} <= 0.01", mcc.std() <= 0.01)
    ok &= verdict(f"worst R2 {min(r['R2'] for r in best):.3f} >= 0.82", min(r["R2"] for r in best) >= 0.82)
    return verdict(f"mean F1 {f1.mean():.3f} >= 0.95 (worst {f1.min():.3f})", f1.mean() >= 0.95) and ok


def alphas(seeds: list[int], epochs: int) -> bool:
    """The published prior at three strengths."""
    rows, spread = [], 0.0
    for seed in seeds:
        world = sparse_shift_sim(seed, n_cells=CELLS["paper"])
        cells, _ = split(world)
        found = []
        for alpha in (60.0, 100.0, 200.0):
            fitted, _ = trained(cells, seed, epochs, alpha=alpha)
            found.append(scores(world, cells, fitted.latent(), targets_of(fitted)))
            rows.append({"method": f"alpha {alpha:g}, seed {seed}"} | found[-1])
        spread = max(spread, np.ptp([r["MCC"] for r in found]))
    show("alpha", rows, "published: .84 from 60 to 200")
    return verdict(f"largest spread of the MCC over alpha {spread:.3f} <= 0.06", spread <= 0.06)


def few_targets(seeds: list[int], epochs: int) -> bool:
    """Latents that no perturbation ever targets cannot be told apart."""
    rows, means = [], []
    for most in (15, 7, 1):
        found = []
        for seed in seeds:
            world = sparse_shift_sim(seed, n_cells=CELLS["small"], most_targeted=most)
            cells, _ = split(world)
            fitted, _ = trained(cells, seed, epochs)
            found.append(scores(world, cells, fitted.latent())["MCC"])
        means.append(np.mean(found))
        rows.append({"method": f"{most} of 15 latents targeted", "MCC": means[-1], "worst": min(found)})
    show("few", rows, "published, 500 cells a perturbation: .88, .71, .50")
    return verdict("the MCC falls by 0.10 each time", all(np.diff(means) <= -0.10))


def transfer(seeds: list[int], epochs: int, particles: int) -> bool:
    """Held-out perturbations: encoder and decoder as they are, shifts in closed form."""
    rows, ok = [], True
    for seed in seeds:
        world = sparse_shift_sim(seed, n_cells=CELLS["small"])
        cells, new = split(world)
        some = new[np.random.default_rng(0).permutation(new.n_obs)[:600]].copy()
        found = {}
        for prior in ("vae", "ivae", "svae+"):
            fitted, _ = trained(cells, seed, epochs, prior=prior)
            if prior == "vae":
                asked = some.copy()
                asked.obs["perturbation"] = "p0"  # it does not see them
            else:
                fitted, asked = learn_perturbations(fitted, new), some
            value = -fitted.bound(asked, IWAE(particles), seed=0)
            by_label = [
                value[(some.obs["perturbation"] == p).to_numpy()].mean() for p in some.obs["perturbation"].unique()
            ]
            found[prior] = float(np.mean(by_label))
        rows.append({"method": f"seed {seed}"} | found)
        ok &= found["svae+"] < found["ivae"] < found["vae"]
    show(
        f"transfer: importance-weighted bound, {particles} draws, nats a cell",
        rows,
        "recorded: VAE 452.7, iVAE 449.7, sVAE+ 447.6",
    )
    return verdict("svae+ < ivae < vae on every seed", ok)


def step_cost() -> bool:
    """Seconds of a training step with 5,000 perturbations."""
    torch.set_num_threads(1)
    entry = get("svae")
    program = entry.program(n_genes=2000, n_perturbation=5000, n_latent=50)
    rng = np.random.default_rng(0)
    batch = {
        "counts": torch.as_tensor(rng.poisson(0.5, (512, 2000)).astype(np.float32)) + 0,
        "perturbation": torch.as_tensor(rng.integers(0, 5000, (512, 1))),
        "index": torch.arange(512),
    }
    program.prepare([batch])
    program.turned.fill_(True)  # pyright: ignore
    seconds = []
    for _ in range(10):
        start = time.process_time()
        program.training_loss(Step(program, batch, 100_000, {"progress": 0.5}), entry.objective).backward()
        seconds.append(time.process_time() - start)
    best = float(np.median(seconds))
    return verdict(
        f"a step of 512 cells, 5,000 perturbations, 50 latents, 2,000 genes: {best:.3f} s <= 0.2", best <= 0.2
    )


def main():
    p = parser(__doc__)
    p.add_argument("--parts", nargs="*", default=["small", "paper", "alpha", "few", "transfer", "step"])
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    p.add_argument("--epochs", type=int, help="by default 300 (small) and 60 (paper)")
    p.add_argument("--particles", type=int, default=1000)
    a = p.parse_args()
    small, paper = a.epochs or EPOCHS["small"], a.epochs or EPOCHS["paper"]
    parts = {
        "small": lambda: recovery("small", a.seeds, small),
        "paper": lambda: recovery("paper", a.seeds, paper),
        "alpha": lambda: alphas(a.seeds[:1], paper),
        "few": lambda: few_targets(a.seeds, small),
        "transfer": lambda: transfer(a.seeds, small, a.particles),
        "step": step_cost,
    }
    return all([parts[name]() for name in a.parts])


if __name__ == "__main__":
    raise SystemExit(not main())
