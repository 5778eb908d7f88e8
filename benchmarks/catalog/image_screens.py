"""Representations of genes in a simulated optical screen: which find complexes, and how much of the well is left?

5,400 cells of 48 genes (eight complexes of five) and controls in eight wells, images of four channels and 32 pixels
(`ops_sim`); three fifths are learnt from. Profiles of held-out cells: wells brought to their controls, guides averaged.
Mean average precision (chance about .15) of complexes, agreement of clusters (ARI, AMI), recall of pairs (two-sided, at
10 %), and macro F1 of the well from cells by logistic regression (chance .125).

Recorded (one seed, 45 to 120 CPU seconds each): pixels .296, VAE .271, supervised classifier .433 to .477, handcrafted
features .511 to .541, contrastive embeddings .288 to .352, rows of a prototype of `grape_vi` .37 to .39.
"""

import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import parser, show
from fieldguide.catalog.data.screened_images import CONTROL, ops_sim
from fieldguide.catalog.parts.images.networks import ResidualEncoder, turned_and_flipped
from fieldguide.decisions import cluster_agreement, complex_recall, perturbation_profiles, retrieval
from fieldguide.inference import Images, fit

PLACES = {"image": Images(standardise=True), "label": "gene", "environment": "well"}


def scores(profiles: pd.DataFrame, complexes: pd.Series) -> dict:
    """How well profiles find complexes."""
    known = complexes[complexes != ""]
    shares = cluster_agreement(profiles, known)
    return {
        "mAP": retrieval(profiles, complexes, permutations=99).diagnostics["map"].iloc[0],
        "ARI": shares["ari"],
        "AMI": shares["ami"],
        "recall": complex_recall(profiles, known, "two_sided").table.loc[90, "recall"],
    }


def of_cells(values: np.ndarray, obs: pd.DataFrame, complexes: pd.Series) -> dict:
    """Scores of the profiles of cells, and what is left of the well."""
    profiles = perturbation_profiles(values, "gene", well="well", guide="guide", control=CONTROL, obs=obs)
    half = np.arange(len(values)) % 2 == 0
    well = obs["well"].astype(str).to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(values[half], well[half])
    return scores(profiles, complexes) | {
        "well F1": f1_score(well[~half], probe.predict(values[~half]), average="macro")
    }


def supervised(images: np.ndarray, genes: np.ndarray, learnt: np.ndarray, seed: int, epochs: int) -> np.ndarray:
    """Features of all cells by a classifier of genes, with the encoder of the others."""
    torch.manual_seed(seed)
    x = torch.as_tensor(images)
    x = (x - x[learnt].mean((0, 2, 3), keepdim=True)) / x[learnt].std((0, 2, 3), keepdim=True)
    codes = torch.as_tensor(pd.factorize(genes, sort=True)[0])
    encoder = ResidualEncoder(x.shape[1])
    head = torch.nn.Linear(encoder.width, int(codes.max()) + 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-3)
    rows = torch.as_tensor(learnt)
    for _ in range(epochs):
        for chunk in rows[torch.randperm(len(rows))].split(256):
            optimizer.zero_grad()
            F.cross_entropy(head(encoder(turned_and_flipped(x[chunk]))), codes[chunk]).backward()
            optimizer.step()
    encoder.eval()
    with torch.no_grad():
        return torch.cat([encoder(part) for part in x.split(512)]).numpy()


def screen(seed: int, epochs: int, wanted: list[str]) -> list[dict]:
    world = ops_sim(seed)
    data, obs = world.data, world.data.obs
    order = np.random.RandomState(seed).permutation(data.n_obs)
    learnt, held = np.sort(order[: int(0.6 * len(order))]), np.sort(order[int(0.6 * len(order)) :])
    train, rows = data[learnt].copy(), []
    images: Any = data.obsm["image"]

    def judge(name: str, values: np.ndarray, seconds: float) -> None:
        rows.append(
            {"method": name, "seed": seed} | of_cells(values, obs.iloc[held], world.complexes) | {"CPU s": seconds}
        )
        print(rows[-1], flush=True)

    def trained(entry: str, **given):
        start = time.process_time()
        options = {"max_epochs": epochs, "batch_size": 256, "progress": False, "device": "cpu", "validation": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fit(entry, train, fields=PLACES, seed=seed, **options | given), start

    traits: Any = data.obsm["traits"]
    pixels = images.reshape(len(images), -1)
    judge("traits that made the images", traits[held], 0.0)
    judge("64 components of pixels", PCA(64, random_state=0).fit(pixels[learnt]).transform(pixels[held]), 0.0)
    if "supervised" in wanted:
        start = time.process_time()
        values = supervised(images, obs["gene"].to_numpy(), learnt, seed, epochs)[held]
        judge("classifier of genes", values, time.process_time() - start)
    for name, given in {"vae": {"prior": "standard"}, "ivae": {}}.items():
        if name in wanted:
            fitted, start = trained("image_ivae", **given)
            judge(f"image_ivae, {name}", fitted.latent(data[held], "z_c"), time.process_time() - start)
    for form, alpha in (("ce", 0.0), ("ce", 4.0), ("count", 2.0)):
        if "scbd" in wanted:
            fitted, start = trained("scbd", alpha=alpha, invariance=form, augment=True)
            seconds = time.process_time() - start
            judge(f"scbd {form} {alpha:g}, z_c", fitted.latent(data[held]), seconds)
            judge(f"scbd {form} {alpha:g}, z_s", fitted.latent(data[held], "z_s"), seconds)
    for alpha in (0.0, 1.0, 10.0):
        if "grape_vi" in wanted:
            fitted, start = trained("grape_vi", alpha=alpha)
            seconds = time.process_time() - start
            judge(f"grape_vi {alpha:g}, s", fitted.latent(data[held]), seconds)
            names = fitted.schema.states["label"]["categories"]  # pyright: ignore
            table = pd.DataFrame(fitted.program.rows.detach().numpy(), names)  # pyright: ignore
            table = (table - table.loc[CONTROL]).drop(CONTROL)
            for said, profiles in (("rows", table), ("rows, z-scored", (table - table.mean()) / table.std(ddof=0))):
                rows.append({"method": f"grape_vi {alpha:g}, {said}", "seed": seed} | scores(profiles, world.complexes))
                print(rows[-1], flush=True)
    return rows


def main():
    p = parser(__doc__)
    p.add_argument("--parts", nargs="*", default=["supervised", "vae", "ivae", "scbd", "grape_vi"])
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    p.add_argument("--epochs", type=int, default=60)
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in a.seeds for row in screen(seed, a.epochs, a.parts)]
    show(f"simulated optical screens, {a.epochs} epochs", rows)
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
