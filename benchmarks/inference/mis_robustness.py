"""Is a mixture of guides nearly as good as the best of them, without knowing which that is?

Probabilistic PCA with known parameters (the generator of ppca_decisions.py, several data sets), so that the error is
that of inference alone: the mean absolute error of P(z_1 <= nu | x) from 200 draws against the exact posterior, over
200 held-out rows and 40 thresholds, averaged over repeated draws. Guides by four objectives are fitted to the true
model. In a second round one of them is spoilt: it is trained for one epoch only.

    python -m benchmarks.inference.mis_robustness [--datasets 4] [--seeds 2] [--epochs 100] [--particles 10]

Target: with optimised shares never worse than 1.05 times the best single guide.
"""

import argparse
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import show, verdict
from benchmarks.inference.ppca_decisions import LATENTS, ROWS, Linear, answers, below, generate, posterior_of
from fieldguide.inference import ELBO, IWAE, Chi, WakeWake, fit, mix

DRAWS, REPEATS = 200, 10


def error(proposal, data, exact):
    """Mean absolute error of 200 weighted draws, and the mean log effective sample size."""
    errors, sizes = [], []
    for seed in range(REPEATS):
        found = proposal.posterior(data, particles=DRAWS, seed=seed)
        errors.append(np.abs(found.expect(below) - exact).mean())
        sizes.append(np.log(found.ess).mean())
    return np.mean(errors), np.exp(np.mean(sizes))


def run(dataset, seed, arguments):
    loadings, noise, x = generate(dataset)
    order = np.random.default_rng(seed).permutation(ROWS)
    test, data = {"x": x[order[:200]]}, {"x": x[np.sort(order[200:])]}
    exact = answers(*posterior_of(loadings, noise, test["x"])[:2])
    settings = {"batch_size": 128, "learning_rate": 1e-2, "kl_warmup": 0, "early_stopping": None, "progress": False}
    settings["seed"] = seed
    truth = fit(Linear, data, max_epochs=1, validation=0, loadings=loadings.tolist(), **settings)
    with torch.no_grad():
        truth.program.log_noise.copy_(torch.as_tensor(np.log(noise), dtype=torch.float32))
    count = arguments.particles
    objectives = {
        "VAE": (ELBO(count), "mean_field"),
        "IWAE": (IWAE(count), "mean_field"),
        "WW": (WakeWake(count, gradient="dreg"), "mean_field"),
        "chi t": (Chi(count), "student_t"),
    }
    epochs = arguments.epochs
    guides = {
        name: truth.refit(objective, guide=guide, max_epochs=epochs, **settings)
        for name, (objective, guide) in objectives.items()
    }
    spoilt = truth.refit(objectives["IWAE"][0], guide="mean_field", max_epochs=1, **settings)
    rows = []
    for which, members in (("all trained", guides), ("one spoilt", guides | {"IWAE": spoilt})):
        found = {name: error(guide, test, exact) for name, guide in members.items()}
        row = {"data": dataset, "seed": seed, "guides": which} | {name: value for name, (value, _) in found.items()}
        for label, weights in (("equal", "equal"), ("optimised", "optimised")):
            mixture = mix(list(members.values()), weights, prior=arguments.prior, seed=seed)
            row[label], row[f"ESS {label}"] = error(mixture, test, exact)
        row["ESS best"] = max(size for _, size in found.values())
        row["shares"] = " ".join(f"{share:.2f}" for share in mixture.shares)
        rows.append(row)
        print({k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--datasets", type=int, default=4)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--particles", type=int, default=10)
    p.add_argument("--prior", type=float, default=0.05)
    p.add_argument("--keep", type=Path, help="file of finished runs, read and added to")
    arguments = p.parse_args()
    rows = pickle.loads(arguments.keep.read_bytes()) if arguments.keep and arguments.keep.exists() else []
    done = {(row["data"], row["seed"]) for row in rows}
    for dataset in range(arguments.datasets):
        for seed in range(arguments.seeds):
            if (dataset, seed) not in done:
                rows += run(dataset, seed, arguments)
                if arguments.keep:
                    arguments.keep.write_bytes(pickle.dumps(rows))
    table = pd.DataFrame(rows)
    single = ["VAE", "IWAE", "WW", "chi t"]
    best, worst = table[single].min(axis=1), table[single].max(axis=1)
    shown = table.copy()
    shown[[*single, "equal", "optimised"]] *= 100
    show(f"error x100 at {DRAWS} draws, {LATENTS} latents", shown.to_dict("records"))
    summary = []
    for which, part in table.groupby("guides"):
        for label in ("equal", "optimised", *single):
            ratio = part[label] / best[part.index]
            summary.append(
                {
                    "guides": which,
                    "proposal": label if label in single else f"MIS, {label}",
                    "over the best, worst case": ratio.max(),
                    "over the best, mean": ratio.mean(),
                    "over the worst, worst case": (part[label] / worst[part.index]).max(),
                }
            )
    show("error as a multiple of that of the best and of the worst single guide", summary)
    largest = (table["optimised"] / best).max()
    print()
    raise SystemExit(
        not verdict(f"MIS with optimised shares at most 1.05 times the best guide: {largest:.3f}", largest <= 1.05)
    )


if __name__ == "__main__":
    main()
