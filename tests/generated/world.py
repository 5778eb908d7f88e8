"""Random data sets and the fits of them: what all cases of one seed share."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from fieldguide import inference


class World:
    """One seed: how many cells and genes there are, what they are called, and fits of each entry, made once."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.n = int(self.rng.integers(30, 70))
        self.n_genes = int(self.rng.integers(8, 16))
        stem, gene = self.rng.choice(["cell", "AACG-", "s1:"]), self.rng.choice(["g", "ENSG0", "Mt-"])
        self.names = pd.Index([f"{stem}{row}" for row in self.rng.permutation(self.n)])
        self.genes = pd.Index([f"{gene}{column}" for column in self.rng.permutation(self.n_genes)])
        self.folder = Path(tempfile.mkdtemp(prefix="generated-"))
        self._kept: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what ``make`` gives, made at the first call."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def data(self, entry: str) -> ad.AnnData:
        """The data of an entry, which every case shares and none may change."""
        return self.once(("data", entry), lambda: ENTRIES[entry].make(self))

    def new(self, entry: str) -> ad.AnnData:
        """Data of an entry to change at will."""
        return ENTRIES[entry].make(self)

    def fit(self, entry: str) -> inference.Fit:
        """A fit of an entry to `data`."""
        return self.once(("fit", entry), lambda: fitted(entry, self.data(entry)))

    def posterior(self, entry: str) -> inference.Posterior:
        """A posterior of `fit`."""
        return self.once(("posterior", entry), lambda: self.fit(entry).posterior(particles=20))

    def path(self, end: str = "") -> Path:
        """A path in a folder of this world where no file is."""
        return self.folder / f"{self.rng.integers(10**12)}{end}"


@dataclass(frozen=True)
class Small:
    """An entry at its smallest: data, where fields live, constructor arguments, and a question to a fit."""

    make: Callable[[World], ad.AnnData]
    fields: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    ask: Callable[[inference.Fit], Any] = lambda fit: fit.latent()
    counts: bool = False
    matrix: bool = True
    """Whether it reads a matrix of cells and features."""
    layers: bool = True
    """Whether its matrix may be named by ``layers/raw``."""


def fitted(entry: str, data: Any, fields: dict[str, Any] | None = None, **settings: Any) -> inference.Fit:
    """Fit an entry at its smallest, for one epoch."""
    small = ENTRIES[entry]
    given = {"max_epochs": 1, "progress": False, "device": "cpu"} | small.sizes | settings
    places = (
        fields if fields is not None and not isinstance(fields, dict) else {**small.fields, **(fields or {})} or None
    )
    return inference.fit(entry, data, fields=places, **given)


def asked(entry: str, data: Any, fields: dict[str, Any] | None = None, **settings: Any) -> list[Any]:
    """Fit, and return the numbers that a user may come to see."""
    fit = fitted(entry, data, fields, **settings)
    return [fit.history, *fit.program.state_dict().values(), ENTRIES[entry].ask(fit)]


def counts(world: World, rows: int | None = None, columns: int | None = None) -> np.ndarray:
    """Counts of cells whose genes differ in their means; no cell is empty."""
    shape = rows or world.n, columns or world.n_genes
    means = world.rng.gamma(1.0, 2.0, shape) * world.rng.lognormal(0, 0.5, (1, shape[1]))
    found = np.minimum(world.rng.poisson(means), 120)
    found[np.arange(shape[0]), world.rng.integers(0, shape[1], shape[0])] += 1
    return found.astype("float32")


def annotated(world: World, matrix: np.ndarray, genes: pd.Index | None = None) -> ad.AnnData:
    """Cells with one column of every kind; which cell is of which group is drawn anew."""
    rng, n = world.rng, len(matrix)
    turn = rng.permutation(n)
    obs = pd.DataFrame(index=world.names[:n])
    obs["batch"] = pd.Categorical(np.array(["b0", "b1"])[turn % 2])
    obs["group"] = pd.Categorical(np.array(["A", "B", "C"])[turn % 3])
    obs["number"] = turn % 3
    obs["yes"] = turn % 2 == 0
    obs["level"] = turn % 3
    obs["donor"] = [f"d{t % 6}" for t in turn]
    obs["q1"], obs["q2"] = rng.normal(size=n), rng.normal(size=n) + 3
    obs["depth"] = rng.random(n) + 0.5
    obs["response"] = rng.permutation(np.arange(n) % 2).astype(float)
    some = np.array(["A", "B", "C"], dtype=object)[turn % 3]
    some[turn % 5 == 4] = None
    obs["labels"] = pd.Categorical(some)
    genes = world.genes[: matrix.shape[1]] if genes is None else genes
    made = ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes))
    made.layers["raw"] = matrix.copy()
    return made


def _counts(world: World) -> ad.AnnData:
    return annotated(world, counts(world))


def _shares(world: World) -> ad.AnnData:
    return annotated(world, world.rng.random((world.n, 6)).astype("float32"))


def _features(world: World) -> ad.AnnData:
    return annotated(world, world.rng.normal(size=(world.n, 6)).astype("float32"))


def _perturbed(world: World) -> ad.AnnData:
    data = _features(world)
    data.obs["targets"] = np.array(["", *data.var_names[:4]])[world.rng.permutation(world.n) % 5]
    return data


def _screened(world: World) -> ad.AnnData:
    data = _counts(world)
    data.obs["perturbation"] = np.array(["control", "p1", "p2", "p1+p2"])[world.rng.permutation(world.n) % 4]
    return data


def _contexts(world: World) -> ad.AnnData:
    data = _screened(world)
    data.obs["context"] = np.array(["c1", "c2"])[world.rng.permutation(world.n) % 2]
    return data


def _joined(world: World) -> ad.AnnData:
    return inference.join_modalities(assays(world))


def assays(world: World) -> dict[str, ad.AnnData]:
    """Two assays, of which the second lacks three genes."""
    full, narrow = counts(world), counts(world)[:, :-3]
    for matrix in (full, narrow):  # no cell is empty on the genes of both, nor without the first, which a case hides
        matrix[:, 1] += matrix[:, 1 : narrow.shape[1]].sum(1) == 0
    return {"seq": annotated(world, full), "spatial": annotated(world, narrow)}


def _slates(world: World) -> ad.AnnData:
    rng, n, k = world.rng, world.n, 4
    data = _features(world)
    data.obsm["candidates"] = np.argsort(rng.random((n, 7)), axis=1)[:, :k]
    data.obsm["log_propensity"] = np.full((n, k), np.log(1 / 7), dtype="float32")
    data.obsm["position"] = rng.integers(0, k, (n, 1))
    data.obsm["reward"] = rng.integers(0, 2, (n, 1)).astype("float32")
    data.obsm["weight"] = np.ones((n, 1), dtype="float32")
    return data


def _images(world: World) -> ad.AnnData:
    data = _features(world)
    data.obsm["image"] = world.rng.integers(0, 256, (world.n, 2, 8, 8)).astype(np.uint8)
    return data


def _nothing(fit: inference.Fit) -> list[Any]:
    return []


PICTURED = {"label": "group", "environment": "batch"}
SCREEN = inference.Perturbations(control="control")

ENTRIES: dict[str, Small] = {
    "ppca": Small(_features, sizes={"n_latent": 2}),
    "scvi": Small(_counts, sizes={"n_hidden": 8, "n_latent": 2}, counts=True),
    "hcv": Small(_counts, {"quality": ["q1", "q2"]}, {"n_hidden": 8}, counts=True),
    "gimvi": Small(_joined, sizes={"n_hidden": 8, "n_latent": 3}, counts=True, layers=False),
    "m1m2": Small(_shares, sizes={"n_hidden": 8, "n_latent": 2}),
    "mvae": Small(_shares, {"x": "X", "counts": None}, {"n_hidden": 8}),
    "svae": Small(_screened, {"perturbation": SCREEN}, {"n_hidden": 8, "n_latent": 2}, counts=True),
    "comparative": Small(
        _counts, sizes={"n_hidden": 8, "n_latent": 2, "n_salient": 2, "table": "multigroup"}, counts=True
    ),
    "fcr": Small(
        _contexts,
        {"perturbation": SCREEN},
        {"n_hidden": 8, "n_latent_x": 1, "n_latent_tx": 2, "n_latent_t": 1},
        counts=True,
    ),
    "scbd": Small(_images, PICTURED, {"n_latent": 4, "widths": (4, 8), "partners": 3}, matrix=False),
    "image_ivae": Small(_images, PICTURED, {"n_latent": 3, "n_spurious": 2, "widths": (4, 8)}, matrix=False),
    "grape_vi": Small(_images, PICTURED, {"n_latent": 3, "n_style": 2, "widths": (4, 8), "partners": 3}, matrix=False),
    "grape": Small(
        _images,
        {"label": "group"},
        {"n_row": 4, "n_noise": 2, "n_style": 3, "width": 3, "mapping_width": 5, "mapping_layers": 2},
        matrix=False,
    ),
    "poxm": Small(_slates, sizes={"n_hidden": 8}, ask=_nothing),
    "incentives": Small(_features, sizes={"n_hidden": 8, "n_representation": 4, "n_head": 4}, ask=_nothing),
    "nodags": Small(_perturbed, ask=_nothing),
    "dcdfg": Small(_perturbed, sizes={"rank": 3}, ask=_nothing),
}
"""A new entry joins the generated cases by its row here; its arguments have one in `settings.py`."""
