"""Decisions from the posterior of a linear Gaussian model: one objective for the model, others for the guide.

The experiment on probabilistic PCA of Lopez et al. (NeurIPS 2020), with the generator of its released code. Everything
is known: the evidence, the posterior, and the answer P(z_1 <= nu | x) under the true parameters. Four models are fitted
by four objectives; for each, fresh guides are fitted by each objective (the chi one with a Student t too), and mixed
with the prior.

    python -m benchmarks.inference.ppca_decisions [--seeds 5] [--cross-seeds 5] [--epochs 100] [--particles 25]

MAE: over 200 held-out rows and 40 thresholds, against the exact answer under the true parameters, so that it contains
the error of the model. SNIS and plug: against the exact answer of the fitted model, from 200 draws, weighted and plain.
MIS uses as many draws as single guides; the paper's used five times as many here.
"""

import argparse
import pickle
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import nn

from benchmarks.common import show, verdict
from fieldguide.catalog.parts.guides import Encoder
from fieldguide.inference import ELBO, IWAE, Chi, Program, WakeWake, fit, mix

NU = np.geomspace(1e-2, 10, 40)
LATENTS, FEATURES, ROWS = 6, 10, 1000
GUIDES = ["VAE", "IWAE", "WW", "chi"]
REFITS = [*GUIDES, "chi t"]
MIXTURES = ["MIS", "MIS optimised"]

PAPER = pd.DataFrame(
    {
        "log p": [-17.65, -16.91, -16.93, -16.92],
        "MAE x100": [10.3, 3.2, 4.3, 3.0],
        "k-hat": [0.54, 0.53, 0.66, 0.47],
        "norm A": [1.69, 1.30, 2.32, 1.13],
    },
    index=GUIDES,
)
PAPER_CROSS = {  # MAE x100 / median k-hat; rows theta, columns phi
    "VAE": "10.26/.57 9.87/.35 9.68/.48 9.78/.17 9.80/.22 5.61/.31",
    "IWAE": "4.42/.76 3.23/.54 4.13/.63 3.14/.48 2.80/.43 2.47/.49",
    "WW": "4.53/.75 3.30/.53 4.32/.65 3.48/.45 3.00/.41 2.35/.51",
    "chi": "4.10/.76 3.03/.51 4.27/.66 3.09/.48 3.24/.43 2.40/.48",
}
REPLICATION = pd.DataFrame(  # an independent implementation of the same experiment, K = 25, 2 seeds
    {
        "log p": [-17.04, -16.84, -16.82, -16.82],
        "MAE x100": [6.44, 3.40, 2.92, 2.96],
        "k-hat": [0.56, 0.19, 0.49, 0.40],
        "norm A": [1.51, 0.94, 1.23, 0.92],
    },
    index=GUIDES,
)


def generate(seed=0):
    """Loadings A, noise variances and data, from one stream of numpy's legacy generator, as released (seed 0)."""
    np.random.seed(seed)
    loadings = np.random.normal(size=(FEATURES, LATENTS)) / np.sqrt(LATENTS)
    noise = np.random.normal(1, 2, size=FEATURES) ** 2
    covariance = np.diag(noise) + loadings @ loadings.T
    return loadings, noise, np.random.multivariate_normal(np.zeros(FEATURES), covariance, size=ROWS)


class Linear(Program):
    """z ~ N(0, I), x ~ N(A z, diag(noise)): A known, log noise learned; encoder 1 x 128 with dropout, as released."""

    def __init__(self, loadings, guide="mean_field"):
        super().__init__()
        self.register_buffer("loadings", torch.tensor(loadings, dtype=torch.float32))
        self.log_noise = nn.Parameter(torch.randn(FEATURES))
        self.encoder = Encoder(FEATURES, LATENTS, 128, guide, dropout=0.1, batch_norm=False)
        self.register_buffer("prior_loc", torch.zeros(LATENTS))

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            x = dist.Normal(z @ self.loadings.T, (0.5 * self.log_noise).exp()).to_event(1)
            pyro.sample("x", x, obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", self.encoder(batch["x"]))


def posterior_of(loadings, noise, x):
    """Mean [N, D], covariance and log evidence of each row under given parameters."""
    covariance = np.linalg.inv(np.eye(LATENTS) + loadings.T @ (loadings / noise[:, None]))
    mean = x @ (loadings / noise[:, None]) @ covariance
    evidence = stats.multivariate_normal(np.zeros(FEATURES), loadings @ loadings.T + np.diag(noise)).logpdf(x)
    return mean, covariance, evidence


def answers(mean, covariance):
    """P(z_1 <= nu | x) of each row [N, 40]."""
    return stats.norm.cdf((NU - mean[:, :1]) / np.sqrt(covariance[0, 0]))


def below(values):
    return (values["z"][..., :1] <= torch.as_tensor(NU, dtype=torch.float32)).float()


def measure(proposal, data, truth, exact, khat_draws, khat_rows, seed):
    """Errors and diagnostics of one proposal (a fit or a mixture) on held-out rows."""
    many, few = (proposal.posterior(data, particles=s, seed=seed) for s in (1000, 200))
    for_khat = proposal.posterior({"x": data["x"][:khat_rows]}, particles=khat_draws, seed=seed)
    return {
        "MAE": np.abs(many.expect(below) - truth).mean(),
        "k-hat": np.median(for_khat.khat),
        "ESS 200": np.median(few.ess),
        "SNIS 200": np.abs(few.expect(below) - exact).mean(),
        "plug 200": np.abs(few.expect(below, estimator="plugin") - exact).mean(),
    }


def spread(fitted, data, covariance):
    """Mean over rows of the norm of A = Sigma^1/2 S^-1 Sigma^1/2 - I, for the true covariance Sigma."""
    root = np.linalg.cholesky(covariance)
    with torch.no_grad():
        variance = fitted.program.encoder(torch.tensor(data["x"], dtype=torch.float32)).variance.double().numpy()
    found = root.T @ (root / variance[:, :, None]) - np.eye(LATENTS)
    return np.linalg.norm(found, 2, axis=(1, 2)).mean()


def objectives(particles):
    """What fits the model and its guide, and what fits fresh guides (by gradients of low variance)."""
    first = {
        "VAE": ELBO(particles),
        "IWAE": IWAE(particles, gradient="reparam"),
        "WW": WakeWake(particles, gradient="score"),
        "chi": Chi(particles, gradient="path"),
    }
    second = {
        "VAE": first["VAE"],
        "IWAE": IWAE(particles, gradient="dreg"),
        "WW": WakeWake(particles, gradient="dreg"),
        "chi": Chi(particles, gradient="path"),
        "chi t": Chi(particles, gradient="path"),
    }
    return first, second


def run(seed, arguments, crossed):
    """All rows of one seed; fresh guides for the models in ``crossed`` only."""
    loadings, noise, x = generate()
    order = np.random.default_rng(seed).permutation(ROWS)
    held_out, train = order[:200], order[200:]
    test, data = {"x": x[held_out]}, {"x": x[np.sort(train)]}
    mean, covariance, best = posterior_of(loadings, noise, test["x"])
    truth = answers(mean, covariance)
    first, second = objectives(arguments.particles)
    settings = {
        "max_epochs": arguments.epochs,
        "batch_size": 128,
        "learning_rate": 1e-2,
        "kl_warmup": 0,
        "early_stopping": None,
        "progress": False,
        "seed": seed,
    }
    rows = []
    for theta in GUIDES:
        start = time.time()
        fitted = fit(Linear, data, objective=first[theta], validation=0, loadings=loadings.tolist(), **settings)
        learned = np.exp(fitted.program.log_noise.detach().double().numpy())
        mean_, covariance_, evidence = posterior_of(loadings, learned, test["x"])
        exact = answers(mean_, covariance_)
        common = {"seed": seed, "theta": theta, "log p": evidence.mean(), "best log p": best.mean()}
        common["model error"] = np.abs(exact - truth).mean()
        rate = (arguments.khat_draws, arguments.khat_rows, seed)
        own = measure(fitted, test, truth, exact, *rate) | {"norm A": spread(fitted, test, covariance)}
        own["IWELBO"] = fitted.bound(test, IWAE(5000)).mean()
        rows.append(common | {"phi": "own"} | own)
        refits = {}
        for phi in REFITS if theta in crossed else []:
            guide = "student_t" if phi == "chi t" else "mean_field"
            refits[phi] = fitted.refit(second[phi], guide=guide, **settings)
            found = measure(refits[phi], test, truth, exact, *rate) | {"norm A": spread(refits[phi], test, covariance)}
            rows.append(common | {"phi": phi} | found)
        parts = [refits[phi] for phi in arguments.mixed.split(",") if refits]
        for name, weights in zip(MIXTURES, ("equal", "optimised"), strict=True) if refits else []:
            mixture = mix(parts, weights, prior=arguments.prior)
            found = measure(mixture, test, truth, exact, *rate)
            rows.append(common | {"phi": name, "shares": mixture.shares.round(3).tolist()} | found)
        print(f"seed {seed}, theta {theta}: {time.time() - start:.0f} s", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--cross-seeds", type=int, default=5, help="seeds with fresh guides for every model, not IWAE alone")
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--particles", type=int, default=25)
    p.add_argument("--prior", type=float, default=0.05)
    p.add_argument("--mixed", default="IWAE,WW,chi", help="guides in the mixture, besides the prior")
    p.add_argument("--khat-draws", type=int, default=5000)
    p.add_argument("--khat-rows", type=int, default=200)
    p.add_argument("--keep", type=Path, help="file of finished seeds, read and added to")
    arguments = p.parse_args()
    rows = pickle.loads(arguments.keep.read_bytes()) if arguments.keep and arguments.keep.exists() else []
    done = {row["seed"] for row in rows}
    for seed in reversed(range(arguments.seeds)):
        if seed not in done:
            rows += run(seed, arguments, GUIDES if seed < arguments.cross_seeds else ["IWAE"])
            if arguments.keep:
                arguments.keep.write_bytes(pickle.dumps(rows))
    report(pd.DataFrame(rows), arguments.particles)


def report(table, particles):
    """Print the tables and the targets."""
    own = table[table["phi"] == "own"].groupby("theta").mean(numeric_only=True).loc[GUIDES]
    both = pd.DataFrame({"theta": GUIDES})
    ours = {"log p": own["log p"], "MAE x100": 100 * own["MAE"], "k-hat": own["k-hat"], "norm A": own["norm A"]}
    for column in PAPER:
        both[column] = ours[column].to_numpy()
        both[f"{column} paper"] = PAPER[column].to_numpy()
        both[f"{column} repl."] = REPLICATION[column].to_numpy()
    seeds = table["seed"].nunique()
    show(
        f"model and guide by one objective, K = {particles}, {seeds} seeds (ours, the paper's, a replication's)",
        both.to_dict("records"),
        f"log p of the truth: {own['best log p'].mean():.3f}",
    )
    columns = [*REFITS, *MIXTURES]
    seeds_of = table[table["phi"] == "MIS"].groupby("theta")["seed"].nunique()
    shown = [t for t in GUIDES if t in seeds_of]
    cross = table.groupby(["theta", "phi"]).mean(numeric_only=True)
    errors = table.groupby(["theta", "phi"]).sem(numeric_only=True)
    paper = [
        {"theta": theta} | dict(zip([*REFITS, "MIS"], row.split(), strict=True)) for theta, row in PAPER_CROSS.items()
    ]
    for what, scale in (("MAE", 100), ("SNIS 200", 100), ("plug 200", 100), ("k-hat", 1), ("ESS 200", 1)):
        rows = [
            {"theta": t, "seeds": seeds_of[t]} | {phi: scale * cross.loc[(t, phi), what] for phi in columns}
            for t in shown
        ]
        show(f"{what}{' x100' if scale > 1 else ''}: rows theta, columns fresh guides", rows)
    show("the paper's cross table, MAE x100 / k-hat", paper)
    print(f"\nlargest standard error of MAE x100 over seeds: {100 * errors['MAE'].max():.2f}")
    print(f"model error x100 by theta: {(100 * own['model error']).round(2).to_dict()}\n")
    khat, mae = cross.loc["IWAE"]["k-hat"], own["MAE"]
    chi, anchor = own.loc["chi"], REPLICATION.loc["chi"]
    near = {
        "log p": chi["log p"] / anchor["log p"],
        "MAE": 100 * chi["MAE"] / anchor["MAE x100"],
        "k-hat": chi["k-hat"] / anchor["k-hat"],
        "norm A": chi["norm A"] / anchor["norm A"],
    }
    met = [
        verdict(f"log p of {t} at least -16.90: {own.loc[t, 'log p']:.3f}", own.loc[t, "log p"] >= -16.90)
        for t in GUIDES[1:]
    ]
    gap = own["log p"][GUIDES[1:]].min() - own.loc["VAE", "log p"]
    met.append(verdict(f"VAE at least 0.1 below the others: {gap:.3f}", gap >= 0.1))
    ordered = khat["VAE"] > khat["WW"] > max(khat["chi"], khat["IWAE"])
    shown = ", ".join(f"{phi} {khat[phi]:.2f}" for phi in ("VAE", "WW", "chi", "IWAE"))
    met.append(verdict(f"k-hat of fresh guides (IWAE theta), VAE > WW > chi, IWAE: {shown}", ordered))
    ratio = mae["VAE"] / mae[GUIDES[1:]].max()
    met.append(verdict(f"MAE of the VAE at least 1.5 times the others': {ratio:.2f}", ratio >= 1.5))
    text = ", ".join(f"{name} x{value:.2f}" for name, value in near.items())
    met.append(
        verdict(f"chi row within 20 % of the replication: {text}", all(abs(v - 1) <= 0.2 for v in near.values()))
    )
    raise SystemExit(not all(met))


if __name__ == "__main__":
    main()
