"""Classes from noisy labels (M-VAE of Langevin et al. 2018) on scikit-learn's digits, beside M1+M2 and cleanlab.

1,297 training images, all or 30 % of them labelled by a noisy annotator; accuracy on 500 test images with clean labels.
Targets: the figures of a prototype of the same methods, beside ours. All methods train on all 1,297 images; form C is
`fit("mvae", data)` as it stands.

`--select` is how settings were chosen: for each method the best of a small grid, by the mean over three kinds of noise
at seed 10 (form C also 11; those reported are 1, 2 and 3) of log sum_c q(c | x) T[c, y] on a fifth of the training
images, with their noisy labels; T is the method's own noise matrix, the identity where it has none. That code sees no
clean label. B takes the settings of C, and the rows "A, weight 10" and "B, weight 50, speed 1" those of A and B. The
grids were run at 60 epochs of constant steps and classes of equal size, the eighth of C's being the prototype's
settings. For the last three of C (120 epochs, a falling step size) the score is -1.635 at 60 epochs, -1.638 at 120,
-1.630 and -1.626 (the default) with falling steps; the accuracy of all of these had been seen at seeds 10 and 11, and
that of some settings at seed 0 (which is left out). M1+M2 trains for as long; A stays as it was chosen, as in 120
epochs it reaches 0.793 where it reaches 0.841. Classes of learned size are for osmFISH (`noisy_labels_real.py`); here
they change little.

cleanlab runs in an environment of its own, named by FIELDGUIDE_CLEANLAB_PYTHON; without it, that row is left out.
`noisy_labels_real.py` has the row of osmFISH.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from benchmarks.common import show, verdict
from fieldguide.catalog.data.noise import annotate, pair_noise, uniform_noise
from fieldguide.decisions import class_probabilities, relabel
from fieldguide.inference import fit

NOISES = {
    "pair .4": (pair_noise(10, 0.4), 1.0),
    "uniform .4": (uniform_noise(10, 0.4), 1.0),
    "uniform .6": (uniform_noise(10, 0.6), 1.0),
    "uniform .4, 30 %": (uniform_noise(10, 0.4), 0.3),
    "none": (uniform_noise(10, 0.0), 1.0),
}
PROTOTYPE = {
    "logistic regression": [0.666, 0.906, 0.831, 0.816, 0.956],
    "cleanlab": [0.781, 0.930, 0.852, 0.881, np.nan],
    "MLP": [0.703, 0.898, 0.714, 0.694, np.nan],
    "M1+M2": [0.787, 0.942, 0.851, 0.855, 0.970],
    "A, weight 1": [0.864, 0.866, 0.839, 0.784, 0.898],
    "A, weight 10": [0.596, np.nan, 0.682, 0.882, np.nan],
    "B, weight 50, speed 1": [0.780, 0.940, 0.872, 0.870, np.nan],
    "B": [0.920, 0.953, 0.897, 0.898, 0.980],
    "C": [0.919, 0.952, 0.897, 0.902, 0.978],
}
FORMS = {
    "A, weight 1": {"form": "A"},
    "A, weight 10": {"form": "A", "weight": 10.0},
    "B, weight 50, speed 1": {"form": "B", "weight": 50.0, "speed": 1.0},
    "B": {"form": "B"},
    "C": {"form": "C"},
}
SELECTION = {"noises": ["pair .4", "uniform .6", "uniform .4, 30 %"], "seeds": {"C": [10, 11]}}
GRID = {
    "logistic regression": [{"C": c} for c in (0.01, 0.1, 1.0)],
    "cleanlab": [{"C": c} for c in (0.01, 0.1, 1.0)],
    "MLP": [{"alpha": a} for a in (1e-4, 1e-1, 1.0)],
    "M1+M2": [{"learning_rate": r, "dropout": d} for r, d in ((2e-3, 0.1), (2e-3, 0.3), (5e-3, 0.1))],
    "A, weight 1": [
        {"learning_rate": r, "dropout": d, "kl_warmup": 15}
        for r, d in ((2e-3, 0.0), (2e-3, 0.3), (5e-3, 0.0), (1e-2, 0.0))
    ],
    "C": [
        *(
            {"learning_rate": 3e-3, "speed": 40.0, "weight": 5.0, "kl_warmup": w, "dropout": d}
            for w, d in ((0, 0.0), (30, 0.0), (0, 0.2))
        ),
        *({"learning_rate": 2e-3, "speed": 40.0, "weight": 5.0, "kl_warmup": 0, "dropout": d} for d in (0.0, 0.2)),
        *({"learning_rate": 2e-3, "speed": 40.0, "weight": 10.0, "kl_warmup": w} for w in (0, 30)),
        {"learning_rate": 2e-3, "speed": 15.0, "weight": 10.0, "kl_warmup": 30},
        *({"max_epochs": e, "cooldown": c} for e, c in ((120, 0.0), (60, 0.3), (120, 0.3))),
    ],
}
CHOSEN = {
    "logistic regression": {"C": 1.0},
    "cleanlab": {"C": 0.1},
    "MLP": {"alpha": 1.0},
    "M1+M2": {},
    "A, weight 1": {
        "learning_rate": 1e-2,
        "kl_warmup": 15,
        "max_epochs": 60,
        "cooldown": 0.0,
        "classes": "uniform",
    },
    "B": {},
    "C": {},
}
CHOSEN |= {"A, weight 10": CHOSEN["A, weight 1"], "B, weight 50, speed 1": CHOSEN["B"]}
"""What `--select` found: the entries' own settings where there are none (for m1m2 with Adam as mvae has it)."""
CLEANLAB = """
import sys, numpy as np
from cleanlab.classification import CleanLearning
from sklearn.linear_model import LogisticRegression
d = np.load(sys.argv[1])
model = CleanLearning(LogisticRegression(max_iter=2000, C=float(d["C"])), seed=0).fit(d["x"], d["y"])
np.savez(sys.argv[2], q=model.predict_proba(d["test"]), noise=np.asarray(model.noise_matrix).T)
"""


def digits(seed):
    """Images in [0, 1] and digits: 1,297 for training and 500 for testing."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    return (x[order[500:]] / 16, y[order[500:]]), (x[order[:500]] / 16, y[order[:500]])


def noisy(noise, seed):
    """Training images, their labels by a noisy annotator (-1 for none) and by truth; test images and truth."""
    matrix, labelled = NOISES[noise]
    (x, y), (test, truth) = digits(seed)
    given = annotate(y, matrix, seed + 100)
    given = np.where(np.random.default_rng(seed + 200).random(len(given)) < labelled, given, -1)
    return x, given, y, test, truth


def cleanlab(x, y, test, C):
    """Class probabilities and noise matrix of CleanLearning with logistic regression, in the peer's environment."""
    with tempfile.TemporaryDirectory() as folder:
        data, found = Path(folder) / "data.npz", Path(folder) / "found.npz"
        np.savez(data, x=x, y=y, test=test, C=C)
        call = [os.environ["FIELDGUIDE_CLEANLAB_PYTHON"], "-c", CLEANLAB, str(data), str(found)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"cleanlab failed:\n{done.stderr[-2000:]}")
        both = np.load(found)
        return both["q"], both["noise"]


def predict(method, x, given, test, seed, settings):
    """Class probabilities of the test images, the noise matrix, and the fit if it is one of ours."""
    known = given >= 0
    if method in ("logistic regression", "MLP"):
        models = {"l": LogisticRegression(max_iter=2000), "M": MLPClassifier((128,), random_state=seed)}
        model = models[method[0]].set_params(**settings).fit(x[known], given[known])
        return model.predict_proba(test), np.eye(10), None
    if method == "cleanlab":
        return *cleanlab(x[known], given[known], test, **settings), None
    data, settings = {"x": x, "labels": given}, settings | {"seed": seed, "progress": False, "validation": 0}
    if method == "M1+M2":
        shared = {"max_epochs": 120, "cooldown": 0.3, "epsilon": 1e-8, "learning_rate": 2e-3, "labelled": None}
        shared |= {"n_latent": 16}
        fitted, noise = fit("m1m2", data, **shared | settings), np.eye(10)
    else:
        fitted = fit("mvae", data, **FORMS[method] | settings)
        noise = fitted.program.noise()[0]
    found = class_probabilities(fitted.posterior({"x": test}, particles=20, seed=1)).to_numpy()
    return found, noise, fitted


def run(method, noise, seed):
    """Accuracy on clean test labels, mean row L1 error of the noise matrix, and the changed labels that were right."""
    x, given, y, test, truth = noisy(noise, seed)
    start = time.time()
    found, matrix, fitted = predict(method, x, given, test, seed, CHOSEN[method])
    row = {"accuracy": (found.argmax(1) == truth).mean(), "seconds": time.time() - start}
    if method in FORMS and fitted is not None:
        row["T error"] = np.abs(matrix - NOISES[noise][0]).sum(1).mean()
        changed = relabel(fitted.posterior(particles=20), fdr=0.1).table
        rows = changed.index[changed["wrong"]].to_numpy()
        row["FDR"] = (given[rows] == y[rows]).mean() if len(rows) else 0.0
        row["found"] = (given[rows] != y[rows]).sum() / max(1, ((given >= 0) & (given != y)).sum())
    return row


def select(methods, keep):
    """Choose the settings of each method by noisy labels of held-out training images."""
    done = kept(keep)
    runs = [(m, n, s) for m in methods for s in SELECTION["seeds"].get(m, [10]) for n in SELECTION["noises"]]
    for method, noise, seed in runs:
        x, given = noisy(noise, seed)[:2]
        held = np.random.default_rng(seed + 300).random(len(x)) < 0.2
        score = held & (given >= 0)
        for settings in GRID.get(method, []):
            key = (method, noise, seed, json.dumps(settings))
            if key not in done:
                q, matrix, _ = predict(method, x[~held], given[~held], x[score], seed, settings)
                likelihood = np.log((q @ matrix)[np.arange(score.sum()), given[score]].clip(1e-6)).mean()
                done[key] = note({"score": likelihood}, key, keep)
    table = pd.DataFrame(
        [dict(zip(("method", "noise", "seed", "settings"), k, strict=True)) | v for k, v in done.items()]
    )
    table = table.pivot_table(index=["method", "settings"], columns="noise", values="score")
    table["mean"] = table.mean(axis=1)
    print("\n" + table.round(3).to_string() + "\n")
    for method, part in table.groupby("method"):
        best = json.loads(part["mean"].idxmax()[1])
        print(f"{method}: {best}{'' if best.items() <= full(method).items() else ', NOT what CHOSEN has'}")


def full(method):
    """The settings that a row has, the entry's defaults among them."""
    usual = {"learning_rate": 2e-3, "dropout": 0.1} if method == "M1+M2" else {"learning_rate": 3e-3, "dropout": 0.0}
    return usual | {"max_epochs": 120, "cooldown": 0.3, "speed": 40.0, "weight": 5.0, "kl_warmup": 0} | CHOSEN[method]


def kept(path):
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {tuple(row.pop("key")): row for row in map(json.loads, lines)}


def note(row, key, path):
    print(*key, json.dumps(row), flush=True)
    if path:
        with path.open("a") as file:
            file.write(json.dumps({"key": key} | row) + "\n")
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--methods", nargs="*", default=list(PROTOTYPE))
    p.add_argument("--select", action="store_true", help="choose settings by noisy labels, on other seeds")
    p.add_argument("--keep", type=Path, help="file of results (JSON lines): read if there, and added to")
    a = p.parse_args()
    if "FIELDGUIDE_CLEANLAB_PYTHON" not in os.environ:
        print("FIELDGUIDE_CLEANLAB_PYTHON is not set (see benchmarks/README.md): cleanlab is left out")
        a.methods = [m for m in a.methods if m != "cleanlab"]
    warnings.simplefilter("ignore")  # matrices that are not diagonally dominant show in their errors
    if a.select:
        select(a.methods, a.keep)
        return True
    done = kept(a.keep)
    for key in product(range(1, a.seeds + 1), a.methods, NOISES):
        if key not in done:
            seed, method, name = key
            done[key] = note(run(method, name, seed), key, a.keep)
    rows = [{"method": m, "noise": n} | r for (s, m, n), r in done.items() if m in a.methods and s <= a.seeds]
    return report(pd.DataFrame(rows), a.methods)


def report(found, methods):
    def table(column):
        full = found.reindex(columns=found.columns.union([column]))  # plain classifiers have no noise matrix
        wide = full.pivot_table(index="method", columns="noise", values=column, dropna=False)
        return wide.reindex(methods, columns=list(NOISES))

    accuracy, errors = table("accuracy"), table("T error").dropna(how="all")
    both = [
        {"method": m} | {n: f"{accuracy.loc[m, n]:.3f} ({PROTOTYPE[m][i]:.3f})" for i, n in enumerate(NOISES)}
        for m in methods
    ]
    show("Accuracy on clean test labels (in brackets: the prototype)", both)
    start = {n: np.abs(0.8 * np.eye(10) + 0.2 / 9 * (1 - np.eye(10)) - t).sum(1).mean() for n, (t, _) in NOISES.items()}
    show(
        "Mean row L1 error of the noise matrix", [{"method": "start"} | start, *errors.reset_index().to_dict("records")]
    )
    for title, column in (
        ("Right labels among those that relabel changes (nominal 0.1)", "FDR"),
        ("Wrong labels found", "found"),
    ):
        show(title, table(column).dropna(how="all").reset_index().to_dict("records"))
    print()
    c, ok, others = (
        accuracy.loc["C"] if "C" in methods else None,
        [],
        [m for m in ("M1+M2", "cleanlab") if m in methods],
    )
    if "A, weight 1" in methods:
        for other in others:
            by = accuracy.loc["A, weight 1", "pair .4"] - accuracy.loc[other, "pair .4"]
            ok.append(verdict(f"(i) the paper's bound beats {other} at pair .4 by .04: {by:+.3f}", by >= 0.04))
    if c is None:
        return all(ok)
    for noise, least in zip(NOISES, (0.89, 0.93, 0.87, 0.87, 0.96), strict=True):
        ok.append(verdict(f"(ii) C, {noise}: at least {least}: {c[noise]:.3f}", c[noise] >= least))
    for other in others:
        for noise in NOISES:
            least = {"pair .4": 0.08, "uniform .6": 0.02}.get(noise, -0.01)
            by = c[noise] - accuracy.loc[other, noise]
            ok.append(verdict(f"(ii) C beats {other} at {noise} by {least}: {by:+.3f}", by >= least))
    for noise, before in start.items():
        after = errors.loc["C", noise]
        ok.append(verdict(f"(iii) error of T falls, {noise}: {before:.2f} to {after:.2f}", after < before))
    return all(ok)


if __name__ == "__main__":
    sys.exit(not main())
