"""Decisions on representations of genes: beside copairs, on a published gene table, and in a simulated screen.

``copairs``  the same profiles through copairs 0.5.5 (``--copairs PYTHON``, of an environment that has it): mean average
             precision to 1e-6, p-values of ``null="ranks"`` within four Monte Carlo errors. Beside them those of
             ``null="labels"``, and both where labels are shuffled: the share of p-values below .05.
``corum``    a gene table of Funk et al. 2022 (3,089 genes x 64, contrastive-ops), CORUM: share of pairs of one complex
             among the 5 % most and the 5 % least alike pairs of all genes; 45 % (64 features) and 44 % (the first 32).
``screen``   an optical screen of the simulator (`ops_sim`): traits that made the images, pixels, their components.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from benchmarks.common import parser, show, verdict
from benchmarks.datasets import folder
from fieldguide.catalog.data.screened_images import ops_sim
from fieldguide.decisions import cluster_agreement, complex_recall, perturbation_profiles, retrieval

HERE = Path(__file__).parent.parent


def screened(seed: int) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    """Profiles of each representation of the held-out cells, and the complexes."""
    world = ops_sim(seed)
    rng = np.random.RandomState(seed)
    held = np.sort(rng.permutation(world.data.n_obs)[int(0.6 * world.data.n_obs) :])
    obs = world.data.obs.iloc[held]
    place = {"well": "well", "guide": "guide", "control": "non-targeting", "obs": obs}
    images: Any = world.data.obsm["image"]
    pixels = images.reshape(world.data.n_obs, -1)
    learnt = np.setdiff1d(np.arange(len(pixels)), held)
    components = PCA(64, random_state=0).fit(pixels[learnt]).transform(pixels[held])
    traits: Any = world.data.obsm["traits"]
    values = {"traits (ceiling)": traits[held], "64 components of pixels": components}
    values["random"] = rng.normal(size=(len(held), 64))
    return {name: perturbation_profiles(v, "gene", **place) for name, v in values.items()}, world.complexes


def screen(seeds: list[int]) -> bool:
    rows = []
    for seed in seeds:
        profiles, complexes = screened(seed)
        for name, table in profiles.items():
            score = retrieval(table, complexes).diagnostics.iloc[0]
            shares = cluster_agreement(table, complexes[complexes != ""])
            recall = complex_recall(table, complexes[complexes != ""], "two_sided").table.loc[90, "recall"]
            row = {"method": name, "seed": seed, "mAP": score["map"], "p": score["p_value"]}
            rows.append(row | {"ARI": shares["ari"], "AMI": shares["ami"], "recall": recall})
    recorded = [("random", 0.135), ("traits (ceiling)", 0.828), ("64 components of pixels", 0.296)]
    show("screen", [*rows, *({"method": f"recorded, {n}", "mAP": v} for n, v in recorded)])
    mean = pd.DataFrame(rows).groupby("method")["mAP"].mean()
    ok = [verdict(f"{n}: mAP {mean[n]:.3f} within .06 of {v}", abs(mean[n] - v) <= 0.06) for n, v in recorded]
    return all(ok)


def corum() -> bool:
    genes = pd.read_parquet(folder("images/ops_gene_embedding.parquet")).drop("nontargeting")
    complexes = pd.read_csv(folder("complexes/corum_2018_human.csv.gz"))[["complex_id", "gene"]]
    ok = []
    for features, recorded in ((64, 0.45), (32, 0.44)):
        values = genes.iloc[:, :features]
        values = (values - values.mean()) / values.std(ddof=0)
        row = complex_recall(values, complexes, "two_sided", among="all").table.loc[95]
        said = f"{features} features: {row['recall']:.4f} of the pairs of one complex, recorded {recorded}"
        ok.append(verdict(said, abs(row["recall"] - recorded) <= 0.005))
    return all(ok)


def copairs(seeds: list[int], python: str | None) -> bool:
    if python is None:
        print("skipped: --copairs PYTHON of an environment with copairs==0.5.5")
        return True
    rows, gaps, errors = [], [], []
    for seed in seeds:
        profiles, complexes = screened(seed)
        for shuffled in (False, True):
            table = profiles["64 components of pixels"]
            known = complexes[table.index]
            if shuffled:
                known = pd.Series(np.random.default_rng(seed).permutation(known), known.index)
            theirs = _by_copairs(table, known, python)
            answers = {n: retrieval(table, known, null=n).table for n in ("ranks", "labels")}
            gaps.append(float((answers["ranks"]["map"] - theirs["mean_average_precision"]).abs().max()))
            p = theirs["p_value"]
            errors.append(
                float(((answers["ranks"]["p_value"] - p).abs() / np.sqrt(2 * p * (1 - p) / 1e4 + 1e-8)).max())
            )
            below = {"copairs": (p < 0.05).sum()} | {n: (a["p_value"] < 0.05).sum() for n, a in answers.items()}
            rows.append({"seed": seed, "complexes": "shuffled" if shuffled else "true", "n": len(p)} | below)
    show("p-values below .05", rows)
    ok = verdict(f"mean average precision: largest difference {max(gaps):.1e} <= 1e-6", max(gaps) <= 1e-6)
    return verdict(f"p-values: largest difference {max(errors):.1f} Monte Carlo errors <= 4", max(errors) <= 4) and ok


def _by_copairs(profiles: pd.DataFrame, complexes: pd.Series, python: str) -> pd.DataFrame:
    alone = [f"none{k}" for k in range(len(complexes))]
    with tempfile.TemporaryDirectory() as place:
        table = profiles.reset_index(drop=True)
        table.insert(0, "complex", np.where(complexes == "", alone, complexes))
        table.to_csv(f"{place}/in.csv", index=False)
        command = [python, str(HERE / "peer_copairs.py"), f"{place}/in.csv", f"{place}/out.csv"]
        subprocess.run(command, check=True, capture_output=True)
        return pd.read_csv(f"{place}/out.csv").set_index("complex")


def main():
    p = parser(__doc__)
    p.add_argument("--parts", nargs="*", default=["copairs", "corum", "screen"])
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    p.add_argument("--copairs", help="Python of an environment with copairs")
    a = p.parse_args()
    parts = {"copairs": lambda: copairs(a.seeds, a.copairs), "corum": corum, "screen": lambda: screen(a.seeds)}
    return all([parts[name]() for name in a.parts])


if __name__ == "__main__":
    raise SystemExit(not main())
