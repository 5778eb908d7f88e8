"""What several fits share and what lies between a fit and its data: memory, threads, names of cells, other programs."""

import threading
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from fieldguide.inference import Program, compare, fit, fit_best, hsic, load, mix, three_step
from fieldguide.inference.data.fields import UnitInterval
from fieldguide.inference.data.minibatches import read
from fieldguide.inference.data.schema import Schema
from fieldguide.inference.entry import as_entry, find
from fieldguide.inference.overrides import require_constants, with_overrides
from fieldguide.inference.soundness import require_sound

RNG = np.random.default_rng(0)
X = {"x": RNG.normal(size=(60, 3)).astype(np.float32)}
QUICK = {"max_epochs": 1, "progress": False}
SMALL = {"n_latent": 2, "n_hidden": 8} | QUICK


def cells(sparse=False):
    counts = np.random.default_rng(1).poisson(3.0, (60, 5)).astype(np.float32) + 1
    obs = pd.DataFrame({"q": np.random.default_rng(2).normal(size=60)}, index=[f"c{i}" for i in range(60)])
    return anndata.AnnData(sp.csr_matrix(counts) if sparse else counts, obs=obs)


class Own(Program):
    def __init__(self, noise=1.0):
        super().__init__()
        self.noise = noise
        self.loc = nn.Parameter(torch.ones(3))
        self.guide_loc = nn.Linear(3, 1)
        self.register_buffer("guide_runs", torch.zeros(()))

    def likelihood(self, z):
        return dist.Normal(z[..., None] * self.loc, self.noise).to_event(1)

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", self.likelihood(z), obs=batch["x"])

    def guide(self, batch):
        self.guide_runs += 1
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.guide_loc(batch["x"]).squeeze(-1), 0.8))


@pytest.mark.parametrize("sparse", [False, True])
def test_data_that_are_changed_in_place_are_noticed(sparse):
    data = cells(sparse)
    fitted = fit("scvi", data, **SMALL)
    posterior = fitted.posterior(particles=5)
    before = posterior.log_evidence
    if sparse:
        data.X.data[:] = np.log1p(data.X.data)
    else:
        data.X[:] = np.log1p(data.X)
    for ask in (fitted.latent, fitted.held_out_loss, fitted.posterior, fitted.bound, lambda: posterior.khat.sum()):
        if ask is not fitted.held_out_loss or len(fitted.validation_rows):
            with pytest.raises(ValueError, match="the data were changed in place since they were read"):
                posterior._log_weights = None
                ask()
    again = cells(sparse)
    np.testing.assert_array_equal(fitted.posterior(again, particles=5).log_evidence, before)
    changed = dict(X) | {"x": X["x"].copy()}
    own = fit("ppca", changed, n_latent=1, **QUICK)
    changed["x"][0] += 1
    with pytest.raises(ValueError, match="field 'x': the data were changed in place"):
        own.latent()


def test_threads_wait_for_each_other():
    def loss(seed):
        return (
            fit("ppca", X, n_latent=2, seed=seed, max_epochs=4, batch_size=20, progress=False).history["train"].iloc[-1]
        )

    right, state = {seed: loss(seed) for seed in range(4)}, torch.get_rng_state()
    seen: dict[int, float] = {}
    threads = [threading.Thread(target=lambda s=s: seen.update({s: loss(s)})) for s in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == right and torch.equal(torch.get_rng_state(), state)


def test_each_objective_of_a_comparison_has_a_program_of_its_own():
    program, kw = Own(), {"draws": 25, "learning_rate": 0.1} | QUICK
    start = {name: value.clone() for name, value in program.state_dict().items()}
    study = compare(program, X, ["elbo", "iwae"], **kw)
    assert study.fits["elbo"].program is not study.fits["iwae"].program
    assert all(torch.equal(value, start[name]) for name, value in program.state_dict().items())
    with pytest.raises(TypeError, match="Own is already built: give its class"):
        fit_best(2, as_entry(program), X, **QUICK)


def test_what_can_be_read_once_is_there_for_every_fit():
    called = []
    given = {"constraints": [hsic("z", "q")], "callbacks": [lambda program, row: called.append(row)]}
    listed = fit_best(2, "scvi", cells(), **given, **SMALL)
    once = fit_best(2, "scvi", cells(), **{name: iter(values) for name, values in given.items()}, **SMALL)
    assert once.constraints == listed.constraints and once.restarts.equals(listed.restarts) and len(called) == 4
    compare("ppca", X, ["elbo", "iwae"], n_latent=1, draws=25, callbacks=iter(given["callbacks"]), **QUICK)
    assert len(called) == 6


def test_what_is_wrong_with_a_comparison_is_told_before_the_first_fit(tmp_path):
    epochs = []
    watched = {"callbacks": [lambda program, row: epochs.append(row)], "n_latent": 1, "draws": 25} | QUICK
    for wrong, message in (
        ({"validation": 0}, "0 held-out cell"),
        ({"validation": 0.01}, "0 held-out cell"),
        ({"objectives": {1: "elbo", "1": "iwae"}}, "two objectives have the label '1'"),
        ({"checkpoint": tmp_path / "x"}, "checkpoint is no setting of compare"),
        ({"objective": "elbo"}, "compare takes objectives"),
        ({"objectives": 3}, "objectives must be a list"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            compare("ppca", X, **{"objectives": ["elbo"]} | watched | wrong)
    with pytest.raises(TypeError, match="checkpoint is no setting of fit_best"):
        fit_best(2, "ppca", X, checkpoint=tmp_path / "x", **QUICK)
    study = compare("ppca", X, ["elbo", "iwae"], n_latent=1, draws=25, **QUICK)
    for wrong, message in (
        ({"weights": "equall"}, "weights must be 'equal', 'optimised' or 2 shares, not 'equall'"),
        ({"weights": np.ones(1)}, "weights must be one share for each of 2 fits"),
        ({"prior": 1.0}, "prior must be a number in"),
        ({"guide": {"iwae": "nope"}}, "guide must be one of"),
        ({"checkpoint": tmp_path / "x"}, "checkpoint is no setting of three_step"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            three_step(study, callbacks=watched["callbacks"], **QUICK | wrong)
    assert not epochs


def test_a_new_guide_is_for_the_model_as_it_was():
    first = fit(Own(), X, **QUICK)
    same = first.refit("elbo", guide=Own(), **QUICK)
    assert mix([first, same]).posterior(X, particles=20).n_cells == 60
    with pytest.raises(ValueError, match="the model of the program with the new guide is another one"):
        first.refit("elbo", guide=Own(noise=3.0), **QUICK)


def test_cells_of_a_loaded_fit_are_those_it_was_fitted_to(tmp_path):
    data = cells()
    fit("scvi", data, **SMALL).save(tmp_path / "fit")
    loaded = load(tmp_path / "fit")
    again = loaded.refit("elbo", data=cells(), **QUICK)
    np.testing.assert_array_equal(again.validation_rows, loaded.validation_rows)
    with pytest.raises(ValueError, match="these are not the cells of the first fit in their order"):
        loaded.refit("elbo", data=data[::-1].copy(), **QUICK)


def test_a_loaded_fit_reads_what_it_was_trained_to_read(tmp_path):
    entry = replace(find("ppca"), schema=Schema(x=UnitInterval("X")))
    shares = anndata.AnnData(RNG.random((60, 3)).astype(np.float32))
    fit(entry, shares, n_latent=1, **QUICK).save(tmp_path / "fit")
    loaded = load(tmp_path / "fit")
    assert loaded.latent(shares).shape == (60, 1)
    shares.X = shares.X * 9
    with pytest.raises(ValueError, match="field 'x'"):
        loaded.latent(shares)


def test_a_look_at_a_program_leaves_its_buffers():
    program = Own()
    require_sound(program, {"x": torch.from_numpy(X["x"]), "index": torch.arange(60)})
    assert float(program.guide_runs) == 0


class Summed(Own):
    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("all", self.likelihood(z).log_prob(batch["x"]).sum())


class Constant(Own):
    """A factor of each cell that is one number by right."""

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", self.likelihood(z), obs=batch["x"])
            pyro.factor("constant", torch.tensor(-1.5))


class Loop(Own):
    def model(self, batch):
        for i in pyro.plate("cells", len(batch["x"])):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{i}", self.likelihood(z), obs=batch["x"][i])

    def guide(self, batch):
        for i in pyro.plate("cells", len(batch["x"])):
            pyro.sample(f"z{i}", dist.Normal(self.guide_loc(batch["x"][i]).squeeze(-1), 0.8))


class Inner(Own):
    def cells(self, batch):
        return pyro.plate("cells", len(batch["x"]), dim=-2)


class Listed(Own):
    def groups(self):
        return [self.loc]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (Summed, "factor 'all' of the model is one number for all cells"),
        (Loop, "site 'z0' of the guide is in a loop over the plate 'cells'"),
        (Inner, "the plate 'cells' is the innermost, dim=-1"),
        (Listed, r"groups\(\) of Listed must return a dict"),
    ],
)
def test_programs_whose_cells_are_not_counted_one_by_one(program, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(program, X, **QUICK)
    assert np.isfinite(fit(Constant, X, **QUICK).history["train"]).all()


def test_gradients_and_types_of_torch():
    with torch.no_grad(), pytest.raises(RuntimeError, match="a fit is trained by gradients"):
        fit("ppca", X, n_latent=1, **QUICK)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="of PPCA mixes numbers of torch.float32 and torch.float64"):
            fit("ppca", X, n_latent=1, **QUICK)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["bool", "boolean", "object", "category", "Sparse[bool]"])
def test_masks_are_aligned_by_their_names_whatever_their_type(kind):
    data, turn = cells(), RNG.permutation(60)
    mask = pd.Series(np.arange(60) < 5, index=data.obs_names).iloc[turn].astype(kind)
    fitted = fit("scvi", data, validation=mask, **SMALL)
    assert fitted.validation_rows.tolist() == fitted.posterior(particles=3).rows(mask).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="cells must be row numbers .*; value 2 of it is .* among True and False"):
        fitted.posterior(particles=3).rows([True, False, 5])
    with pytest.raises(ValueError, match=r"the value at \[1\] of it is masked"):
        fitted.posterior(particles=3).rows(np.ma.masked_array([3, 4], [False, True]))


def test_fields_are_set_to_one_number():
    data = cells()
    data.obs["batch"] = pd.Categorical(np.arange(60) % 2)
    posterior = fit("scvi", data, **SMALL).posterior(particles=3)
    batch, codes = posterior.dataset.batch(np.arange(60)), np.arange(60) % 2
    for wrong in (pd.Series(codes, index=data.obs_names), True, codes):
        with pytest.raises(TypeError, match="overrides: field 'batch' is set to one number for all cells"):
            require_constants({"batch": wrong}, posterior.dataset.stores)
    assert with_overrides(batch, {"batch": np.int64(1)})["batch"].tolist() == [1] * 60
    with pytest.raises(KeyError, match="no field 'index' to override"):
        posterior.expect(lambda sites: sites["rho"], overrides={"index": 0})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({1: X["x"], "1": X["x"]}, "several fields are called '1'"),
        ({"x": X["x"], "index": np.arange(60)}, "field 'index' has the name of the numbers of the cells"),
        ({"x": X["x"], "id": np.full(60, 2**63 + 5, np.uint64)}, "field 'id': 9223372036854775813 is beyond"),
    ],
)
def test_fields_of_a_dict_that_would_be_lost(data, message):
    with pytest.raises(ValueError, match=message):
        read(data, None)


def test_a_change_is_seen_whatever_the_number_of_columns():
    for columns in (1, 2, 3, 4, 5, 8):
        values = np.zeros((3 * 2**16 // columns, columns))
        values[:, -1] = 1.0
        dataset = read({"x": values.astype(np.float32)}, None)
        dataset.require_unchanged()
        dataset.stores["x"].values[:, -1] = 0.7
        with pytest.raises(ValueError, match="changed in place"):
            dataset.require_unchanged()


class Shared(Own):
    """A global latent and a factor of each cell, which is alike where the data are; a buffer that is one value."""

    def __init__(self):
        super().__init__()
        self.register_buffer("guide_wide", torch.zeros(1).expand(3), persistent=False)
        self.guide_theta = nn.Parameter(torch.zeros(()))

    def model(self, batch):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with self.cells(batch):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("seen", dist.Bernoulli(logits=theta).log_prob(torch.ones(len(batch["x"]))))

    def guide(self, batch):
        pyro.sample("theta", dist.Normal(self.guide_theta, 1.0))
        super().guide(batch)


class Mixed(Own):
    """A discrete site in the model alone, which is summed out."""

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal((z + k)[..., None] * self.loc, 1.0).to_event(1), obs=batch["x"])


class Blind(Own):
    def model(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.loc[0], 1.0))


def test_what_is_right_is_taken():
    assert np.isfinite(fit(Shared, X, **QUICK).history["train"]).all()
    mixed = fit(Mixed(), X, **QUICK)
    assert np.isfinite(mixed.refit("elbo", guide=Mixed(), **QUICK).history["train"]).all()
    assert len(compare("ppca", X, ["elbo"], n_latent=1, draws=25, validation=None, **QUICK).table) == 1
    with pytest.raises(ValueError, match="no array 'X' in the data"):  # as fit says it
        compare("ppca", {}, ["elbo"], n_latent=1, draws=25, **QUICK)
    reads = fit(Blind, X, objective=lambda step: (step.batch["x"] - step.program.loc).square().mean(), **QUICK)
    assert np.isfinite(reads.history["train"]).all()
    data = cells()
    fitted = fit("scvi", data, **SMALL)
    data.obs_names = [f"A-{name}" for name in data.obs_names]
    assert fitted.refit("elbo", **QUICK).history["train"].notna().all()
