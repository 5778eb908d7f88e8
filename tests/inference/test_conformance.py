"""Every catalog entry passes the conformance checks, and programs with one thing wrong fail the one that names it."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.catalog import entries, get
from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import Program, join_modalities
from fieldguide.inference.conformance import ConformanceError, check

X = {"x": np.random.default_rng(0).normal(size=(40, 3))}
PARTLY = {"x": 1 / (1 + np.exp(-X["x"])), "labels": np.where(np.arange(40) % 3, np.nan, np.arange(40) % 2)}


RANDOM = np.random.default_rng(1)
LOGGED = {
    "x": RANDOM.normal(size=(40, 3)).astype(np.float32),
    "candidates": np.stack([RANDOM.permutation(9)[:4] for _ in range(40)]),
    "log_propensity": np.log(RANDOM.dirichlet(np.ones(5), 40)[:, :4]).astype(np.float32),
    "position": RANDOM.integers(-1, 4, (40, 2)),
    "reward": RANDOM.random((40, 2)).astype(np.float32),
    "weight": RANDOM.uniform(1, 5, (40, 2)).astype(np.float32),
}
"""A log for policies: contexts, candidate actions, and what was logged."""

OFFERED = {
    "x": X["x"].astype(np.float32),
    "level": np.arange(40) % 3,
    "response": (np.arange(40) % 2).astype(np.float32),
}
"""Customers who were offered levels of an incentive."""

PERTURBED = {"x": X["x"].astype(np.float32), "targets": np.arange(40) % 4 - 1}
"""Cells of three genes, one of which was intervened on in most."""


PICTURED = {
    "image": RANDOM.random((40, 2, 8, 8)).astype(np.float32),
    "label": np.arange(40) % 3,
    "environment": np.arange(40) % 2,
}
"""Images of three labels in two environments."""


NOT_ASKED = {
    "dcdfg": {"bounds"},  # cells share the masks of edges, so there is no bound for one cell
    "scbd": {"bounds", "independence"},  # the cells of a minibatch are the context of one another
    "grape": {"export"},  # a captured step takes no slope of the critic
}
"""Checks that do not apply to an entry, and why."""
SMALL = {
    "comparative": {"n_hidden": 16, "n_latent": 3, "n_salient": 3},
    "scbd": {"widths": (4, 8), "n_latent": 4},
    "image_ivae": {"widths": (4, 8), "n_latent": 4, "n_spurious": 2},
    "grape": {"n_row": 4, "n_style": 3, "width": 3, "mapping_width": 6},
    "grape_vi": {"widths": (4, 8), "n_latent": 4, "n_style": 2},
}
"""Entries that are checked in a smaller size than their own, to take seconds."""


@pytest.fixture
def small_counts(pbmc):
    cells = pbmc[:60]
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0][:, :100].copy()
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    cells.obs["labels"] = np.where(np.arange(cells.n_obs) % 4, "p", "q")
    cells.obs["batch"] = np.where(np.arange(cells.n_obs) % 3, "a", "b")
    cells.obs["quality"] = cells.obs["percent_mito"]
    cells.obs["perturbation"] = np.array(["a", "b", "a+b", "ctrl"])[np.arange(cells.n_obs) % 4]
    cells.obs["context"] = np.where(np.arange(cells.n_obs) % 5 < 2, "c1", "c2")
    cells.obs["group"] = np.where(np.arange(cells.n_obs) % 2, "background", "target")
    return cells


def two_modalities(cells):
    """Every other cell lacks every fifth gene; cells keep at least one count."""
    lacks = np.arange(cells.n_vars) % 5 == 0
    spatial = cells[1::2, ~lacks].copy()
    spatial = spatial[np.asarray(spatial.X.sum(1)).ravel() > 0].copy()
    first = cells[::2].copy()
    first = first[np.asarray(first.X[:, ~lacks].sum(1)).ravel() > 0].copy()
    joined = join_modalities({"sequencing": first, "spatial": spatial}, batch="batch")
    return joined[:, np.asarray(joined.X.sum(0)).ravel() > 0].copy()


@pytest.mark.parametrize("name", entries().index)
def test_every_entry_conforms(name, small_counts):
    fields = get(name).schema.fields
    if "modality" in fields:
        small_counts = two_modalities(small_counts)
    data = small_counts if "counts" in fields else PARTLY if "labels" in fields else X
    data = LOGGED if "candidates" in fields else OFFERED if "level" in fields else data
    data = PERTURBED if "targets" in fields else data
    data = PICTURED if "image" in fields else data
    report = check(name, data, **SMALL.get(name, {}))
    assert report["passed"].dropna().all()
    assert set(report.index[report["passed"].isna()]) <= {"device"} | NOT_ASKED.get(name, set())


@pytest.mark.parametrize(
    "arguments",
    [
        {"likelihood": "zinb", "dispersion": "gene-batch", "library": "latent"},
        {"likelihood": "poisson", "n_layers": 2, "encode_covariates": True},
        {"dispersion": "gene-cell"},
    ],
    ids=str,
)
def test_scvi_conforms_in_its_variants(arguments, small_counts):
    check("scvi", small_counts, n_hidden=16, n_latent=3, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rank": None, "mechanism": "linear"},
        {"rank": None, "interventions": "imperfect", "masks": None},
        {"rank": 2, "mechanism": "linear", "masks": 1, "prior": 0.1},
        {"rank": 2, "masks": 2, "prior": 0.3, "interventions": "imperfect"},
    ],
    ids=str,
)
def test_dcdfg_conforms_in_its_variants(arguments):
    check("dcdfg", PERTURBED, **arguments)


class TwoPlates(Program):
    """Features in an inner plate, as a Pyro user would write them."""

    depth = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.guide_slope, self.guide_log_scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(()))

    def model(self, batch):
        features = pyro.plate("features", 3, dim=-2)
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with features:
                pyro.sample("x", dist.Normal(z * self.weight[:, None], 1.0), obs=batch["x"].T)

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(batch["x"] @ self.guide_slope, self.guide_log_scale.exp()))


class GlobalScale(Program):
    """A latent outside the data plate."""

    latent = "mu"

    def __init__(self):
        super().__init__()
        self.guide_loc, self.guide_log_scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def model(self, batch):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with self.cells(batch):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        pyro.sample("mu", dist.Normal(self.guide_loc, self.guide_log_scale.exp()).to_event(1))


class Coins(Program):
    """A discrete latent."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Parameter(torch.zeros(3))
        self.guide_logit = nn.Parameter(torch.zeros(3))

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(z[..., None] * self.heads, 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Bernoulli(logits=batch["x"] @ self.guide_logit))


@pytest.mark.parametrize("program", [TwoPlates, GlobalScale, Coins])
def test_programs_of_other_shapes_conform(program):
    torch.manual_seed(0)
    check(program(), X)


class Coupled(PPCA):
    """The likelihood of a cell depends on the mean of its minibatch."""

    def model(self, batch):
        super().model(batch | {"x": batch["x"] - batch["x"].mean(0)})


class Stored(PPCA):
    """A parameter in Pyro's store, which the loop never sees."""

    def model(self, batch):
        super().model(batch | {"x": batch["x"] + pyro.param("shift", torch.zeros(3))})


class Idle(PPCA):
    def __init__(self, n_features):
        super().__init__(n_features)
        self.unused = nn.Parameter(torch.zeros(()))


class Mixed(PPCA):
    """The guide uses a parameter of the model."""

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(batch["x"] @ self.loadings + self.guide_loc(batch["x"]), 1.0).to_event(1))


class Lost(PPCA):
    def groups(self):
        return {"theta": [self.loadings]}


class Random(PPCA):
    """Initial values that do not come from the seed."""

    def __init__(self, n_features):
        super().__init__(n_features)
        with torch.no_grad():
            self.loadings.add_(np.random.default_rng().normal())


class Broken(PPCA):
    def model(self, batch):
        super().model(batch | {"x": batch["x"].log()})


class Secretive(PPCA):
    """Changed by loading."""

    def __init__(self, n_features):
        super().__init__(n_features)
        self.register_load_state_dict_post_hook(lambda module, _: module.mean.data.add_(1).sum and None)


@pytest.mark.parametrize(
    ("program", "failing"),
    [
        (Coupled, "independence"),
        (Stored, "sites: ValueError: pyro.param 'shift' would never be trained"),
        (Idle, "gradients: AssertionError: parameter 'unused'"),
        (Mixed, "groups: AssertionError: model parameter 'loadings' acts on the guide"),
        (Lost, "groups: ValueError: parameter 'mean' is in no group"),
        (Random, "seeds: AssertionError: 'loadings' differs"),
        (Broken, "sites: ValueError: Expected value argument"),
        (Secretive, "saving: AssertionError: 'mean' changed"),
    ],
)
def test_a_program_with_one_thing_wrong_fails(program, failing):
    with pytest.raises(ConformanceError, match=failing):
        check(program, X, n_features=3)


def test_the_program_that_is_checked_is_left_alone():
    torch.manual_seed(0)
    program = PPCA(3, 2)
    before = copy.deepcopy(program.state_dict())
    check(program, X)
    for name, value in program.state_dict().items():
        torch.testing.assert_close(value, before[name])
    with pytest.raises(ValueError, match="3 cells are too few"):
        check("ppca", {"x": np.zeros((3, 2))})
