"""A fresh guide for a frozen model: nothing of the model moves, the guide improves, files keep it."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.catalog.parts.networks import Layers
from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import ELBO, IWAE, Program, Step, fit, load
from fieldguide.inference.fresh_guide import guide_names, guide_training, model_state

RNG = np.random.default_rng(0)
X = {"x": RNG.normal(size=(200, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(200, 5))}
QUICK = {"progress": False, "max_epochs": 3}


class Deep(Program):
    """A program of a user's own: batch normalisation and dropout on both sides, and bare parameters in the guide."""

    def __init__(self):
        super().__init__()
        self.decoder = Layers(2, 8, dropout=0.5)
        self.head = nn.Linear(8, 5)
        self.encoder = Layers(5, 8, dropout=0.5)
        self.encoder_head = nn.Linear(8, 2)
        self.guide_log_scale = nn.Parameter(torch.tensor([0.1, 0.2]))

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.head(self.decoder(z)), 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        loc = self.encoder_head(self.encoder(batch["x"]))
        with self.cells(batch):
            pyro.sample("z", dist.Normal(loc, self.guide_log_scale.exp()).to_event(1))


def assert_model_unchanged(before, after):
    first, second = model_state(before.program), model_state(after.program)
    assert first.keys() == second.keys() and first
    for name in first:
        assert torch.equal(first[name], second[name]), name


def wake_and_chi(step):
    """One loss for the model, which is frozen and must not matter, and one for the guide."""
    loss = IWAE(5)(step)
    return {"theta": loss, "phi": loss}


@pytest.mark.parametrize("objective", ["elbo", IWAE(5), wake_and_chi], ids=["elbo", "iwae", "wake and chi"])
@pytest.mark.parametrize("guide", [None, "student_t"])
def test_the_model_of_an_entry_stays_bit_for_bit(objective, guide, pbmc):
    cells = pbmc[:120, :50].copy()
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    first = fit("scvi", cells, n_hidden=16, n_latent=3, library="latent", **QUICK)
    state = copy.deepcopy(first.program.state_dict())
    second = first.refit(objective, guide=guide, **QUICK)
    assert_model_unchanged(first, second)
    for name, value in first.program.state_dict().items():
        assert torch.equal(value, state[name]), f"'{name}' of the first fit changed"
    assert not torch.equal(first.program.encoder_z.head.weight, second.program.encoder_z.head.weight)
    assert not torch.equal(
        first.program.encoder_z.layers.norm[0].running_mean, second.program.encoder_z.layers.norm[0].running_mean
    )
    np.testing.assert_array_equal(first.train_rows, second.train_rows)
    np.testing.assert_array_equal(first.validation_rows, second.validation_rows)
    assert len(second.history) == 3 and all(p.requires_grad for p in second.program.parameters())
    assert not second.program.training


@pytest.mark.slow
def test_the_guide_is_trained_and_another_family_finds_what_a_mean_field_cannot():
    """A posterior of correlation 0.9: the gap of a mean-field guide is -log(1 - 0.9 ** 2) / 2 at best."""
    torch.manual_seed(0)
    program = PPCA(5, 2)
    with torch.no_grad():
        program.loadings.copy_(torch.tensor([[1.0, 1.0]]).expand(5, 2) * 2 + 0.3 * torch.randn(5, 2))
    first = fit(program, X, progress=False, max_epochs=1, learning_rate=1e-9)
    settings = {"learning_rate": 0.03, "max_epochs": 40, "batch_size": 20, "progress": False, "early_stopping": None}
    x = torch.tensor(X["x"], dtype=torch.float32)
    with torch.no_grad():
        covariance = first.program.exact_posterior(x)[1]
        exact = first.program.exact_log_evidence(x).mean().item()
    correlation = covariance[0, 1].item() / covariance.diagonal().prod().sqrt().item()
    assert correlation < -0.8
    least = -0.5 * np.log(1 - correlation**2)

    def gap(fitted):
        return exact - fitted.bound(objective=ELBO(500)).mean()

    mean_field = first.refit("elbo", **settings)
    assert least - 0.05 < gap(mean_field) < least + 0.15 < gap(first)
    full = first.refit("elbo", guide=PPCA(5, 2, "full_covariance"), **settings)
    assert gap(full) < 0.5 * least
    assert_model_unchanged(first, full)


def test_seeds():
    first = fit("ppca", X, n_latent=2, seed=0, **QUICK)
    a, b, c = (first.refit("iwae", seed=seed, max_epochs=1, learning_rate=1e-9, progress=False) for seed in (0, 0, 1))
    weight = [f.program.guide_loc.weight for f in (a, b, c)]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])
    torch.manual_seed(0)
    start = PPCA(5, 2).guide_loc.weight
    assert not torch.allclose(weight[0], start, atol=1e-4), "the same seed as that of the fit gave the same start"
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    first.refit("elbo", max_epochs=1, progress=False)
    assert torch.rand(1) == expected


def test_a_program_of_a_users_own_class_or_instance(tmp_path):
    torch.manual_seed(0)
    instance = Deep()
    for entry in (Deep, instance):
        first = fit(entry, X, **QUICK)
        before = first.bound(objective=IWAE(50)).mean()
        second = first.refit("elbo", progress=False, max_epochs=10, learning_rate=0.01)
        assert_model_unchanged(first, second)
        assert second.program is not first.program
        assert second.bound(objective=IWAE(50)).mean() > before - 0.2
        assert not torch.equal(first.program.encoder_head.weight, second.program.encoder_head.weight)
        second.save(tmp_path / "refit.safetensors")
        loaded = load(tmp_path / "refit.safetensors", Deep() if entry is instance else Deep)
        np.testing.assert_array_equal(loaded.latent(X), second.latent())
        again = loaded.refit("elbo", data=X, **QUICK)
        assert_model_unchanged(first, again)
    new = first.refit("elbo", guide=Deep(), **QUICK)
    assert_model_unchanged(first, new)


def test_bare_parameters_of_a_users_guide_start_where_they_started():
    torch.manual_seed(0)
    program = Deep()
    first = fit(program, X, progress=False, max_epochs=20, learning_rate=0.05)
    assert not torch.allclose(first.program.guide_log_scale, torch.tensor([0.1, 0.2]), atol=1e-3)
    fresh = first.refit("elbo", progress=False, max_epochs=1, learning_rate=1e-9)
    torch.testing.assert_close(fresh.program.guide_log_scale, torch.tensor([0.1, 0.2]))
    assert not torch.allclose(fresh.program.encoder_head.weight, first.program.encoder_head.weight, atol=1e-3)


def test_only_the_guide_is_in_training_mode():
    program = Deep()
    guide_training(program)
    assert not program.training and not program.decoder.dropout.training and not program.decoder.norm[0].training
    assert program.encoder.dropout.training and program.encoder.norm[0].training
    assert {"encoder.norm.0.running_mean", "guide_log_scale", "encoder_head.bias"} <= guide_names(program)
    assert not any(name.startswith(("decoder", "head")) for name in guide_names(program))

    class Renamed(Deep):
        def groups(self):
            mine = [*self.encoder.parameters(), *self.encoder_head.parameters(), self.guide_log_scale]
            return {"phi": mine, "theta": [p for p in self.parameters() if not any(p is m for m in mine)]}

        guide_modules = ("nothing",)

    program = Renamed()
    guide_training(program)
    assert program.encoder.dropout.training and not program.decoder.dropout.training


def test_the_evaluation_of_the_model_sees_no_dropout():
    torch.manual_seed(0)
    first = fit(Deep, X, **QUICK)
    program = first.program
    guide_training(program)
    batch = {"x": torch.tensor(X["x"], dtype=torch.float32)}
    z = torch.randn(200, 2)
    found = [pyro.poutine.trace(pyro.poutine.condition(program.model, {"z": z})).get_trace(batch) for _ in range(2)]
    torch.testing.assert_close(found[0].nodes["x"]["fn"].mean, found[1].nodes["x"]["fn"].mean, rtol=0, atol=0)
    assert torch.isfinite(IWAE(3)(Step(program, batch)))


@pytest.mark.slow
def test_compiled_refit_leaves_the_model_alone():
    first = fit(Deep, X, **QUICK)
    second = first.refit("elbo", compile=True, max_epochs=2, progress=False)
    assert_model_unchanged(first, second)


class Plain(Program):
    """No guide parameters."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(5))

    def model(self, batch):
        with self.cells(batch):
            pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        pass


def test_errors(tmp_path):
    first = fit("ppca", X, n_latent=2, **QUICK)
    with pytest.raises(ValueError, match="guide must be one of"):
        first.refit("elbo", guide="vine", **QUICK)
    with pytest.raises(ValueError, match="fitted to the 200 cells of the first fit, but the data has 10"):
        first.refit("elbo", data={"x": X["x"][:10]}, **QUICK)
    with pytest.raises(ValueError, match="'mean' of the model differs|differs between the fit"):
        first.refit("elbo", guide=PPCA(4, 2), **QUICK)
    with pytest.raises(TypeError, match="guide is a Deep, whose model is not that of PPCA"):
        first.refit("elbo", guide=Deep(), **QUICK)
    with pytest.raises(TypeError, match="no argument 'width'|unexpected keyword argument 'width'"):
        first.refit("elbo", width=3)
    with pytest.raises(ValueError, match="Plain has no parameters in the group 'phi'"):
        fit(Plain, X, **QUICK).refit("elbo")
    built = fit(Deep(), X, **QUICK)
    with pytest.raises(TypeError, match="Deep was built by you: pass guide= a program"):
        built.refit("elbo", guide="flow")
    first.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no data"):
        load(tmp_path / "a.safetensors").refit("elbo")
