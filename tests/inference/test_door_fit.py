"""What `fit` looks at before the first epoch: arguments, rows, the program itself; and what is not finite later."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import IWAE, Constraint, Program, fit, fit_best, hsic, load
from fieldguide.inference.conformance import ConformanceError, check
from fieldguide.inference.constraints import checked_constraints
from fieldguide.inference.overrides import with_overrides
from fieldguide.inference.soundness import CELLS, require_sound
from fieldguide.inference.training.settings import Settings

X = {"x": np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)}
QUICK = {"max_epochs": 2, "progress": False, "batch_size": 20}


class Mean(Program):
    """One latent a cell; subclasses have one thing wrong each."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.guide_loc = nn.Linear(3, 1)

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.loc + z[..., None], 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.guide_loc(batch["x"]).squeeze(-1), 1.0))


class Outside(Mean):
    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(self.loc + z[..., None], 1.0).to_event(2), obs=batch["x"])


class OtherPlate(Mean):
    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(batch["x"]), dim=-1):
            pyro.sample("x", dist.Normal(self.loc + z[..., None], 1.0).to_event(1), obs=batch["x"])


class Factor(Mean):
    def model(self, batch):
        super().model(batch)
        pyro.factor("penalty", -batch["x"].square().sum(-1))


class PriorOutside(Mean):
    """Right in the guide alone: the evidence lacked log p(z)."""

    def model(self, batch):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(batch["x"])), 1.0).to_event(1))
        with self.cells(batch):
            pyro.sample("x", dist.Normal(self.loc + z[..., None], 1.0).to_event(1), obs=batch["x"])


class GuideElsewhere(Mean):
    def guide(self, batch):
        with pyro.plate("data", len(batch["x"]), dim=-1):
            pyro.sample("z", dist.Normal(self.guide_loc(batch["x"]).squeeze(-1), 1.0))


class Empty(Program):
    def model(self, batch):
        with self.cells(batch):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=batch["x"])

    def guide(self, batch):
        pass


class Store(Mean):
    def guide(self, batch):
        shift = pyro.param("shift", torch.zeros(()))
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.guide_loc(batch["x"]).squeeze(-1) + shift, 1.0))


class Module(Mean):
    def guide(self, batch):
        pyro.module("encoder", nn.Linear(2, 2))
        super().guide(batch)


class Ungrouped(Mean):
    def groups(self):
        return {"theta": [self.loc], "phi": [self.guide_loc.weight]}


class Twice(Mean):
    def groups(self):
        return {"theta": list(self.parameters()), "phi": list(self.guide_loc.parameters())}


class Prior(Mean):
    """Factors and observations of the whole data set are right, also of as many numbers as cells are looked at."""

    def __init__(self):
        super().__init__()
        self.many = nn.Parameter(torch.zeros(CELLS))

    def model(self, batch):
        super().model(batch)
        pyro.factor("prior", -self.loc.square().sum())
        with pyro.plate("many", CELLS, dim=-1):
            pyro.factor("prior of many", -self.many.square())
        pyro.sample("pilot", dist.Normal(self.loc[0], 1.0), obs=torch.tensor(0.3))


class Blind(Mean):
    def model(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.loc[0], 1.0))


class NoEvent(Mean):
    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.loc + z[..., None], 1.0), obs=batch["x"])


class OtherField(Mean):
    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.guide_loc(batch["counts"]).squeeze(-1), 1.0))


WRONG = {
    Blind: "the model of Blind observes nothing: give the site of the data obs=",
    NoEvent: r"of NoEvent: Shape mismatch inside plate\('cells'\) at site x .*end the distribution by .to_event",
    OtherField: "guide of OtherField reads 'counts', which is no field of the data: there are x",
    Outside: "site 'x' is observed outside the plate 'cells'.*with self.cells",
    OtherPlate: "site 'x' is observed under the plate 'data', not 'cells'",
    Factor: "site 'penalty' is observed outside the plate 'cells'",
    PriorOutside: "site 'z' is latent outside the plate 'cells'.*in the model",
    GuideElsewhere: "site 'z' is latent under the plate 'data', not 'cells'.*in the guide",
    Store: "pyro.param 'shift' would never be trained",
    Module: "pyro.module 'encoder' would never be trained",
    Ungrouped: "parameter 'guide_loc.bias' is in no group",
    Twice: "parameter 'guide_loc.weight' is in two groups, 'theta' and 'phi'",
}


@pytest.mark.parametrize("program", WRONG, ids=lambda p: p.__name__)
def test_fit_and_check_name_what_a_program_would_not_count_or_train(program):
    epochs = []
    with pytest.raises(ValueError, match=WRONG[program]):
        fit(program, X, callbacks=[lambda p, row: epochs.append(row)], **QUICK)
    assert not epochs and "shift" not in pyro.get_param_store()
    with pytest.raises((ConformanceError, ValueError), match=WRONG[program]):
        check(program, X)


def test_a_program_with_a_loss_of_its_own_need_not_observe():
    class Scored(Blind):
        def training_loss(self, step, objective):
            return objective(step) + self.loc.square().sum()

    assert np.isfinite(fit(Scored, X, **QUICK).history["train"]).all()


def test_a_sound_program_is_left_as_it_was():
    program = Prior()
    program.guide_loc.eval()
    state = torch.get_rng_state()
    require_sound(program, {"x": torch.zeros(4, 3), "index": torch.arange(4)})
    assert program.training and not program.guide_loc.training
    assert "particles" not in pyro.get_param_store() and len(state)
    fitted = fit(Prior, X, **QUICK)
    assert np.isfinite(fitted.history["train"]).all()
    with pytest.warns(UserWarning, match="factors outside the data plate are no part of the bound of a cell"):
        fitted.bound()
    with pytest.raises(ValueError, match="Empty has no parameter"):
        fit(Empty, X, **QUICK)


def test_a_bound_for_each_cell_refuses_latents_of_the_whole_data():
    class Global(Mean):
        def model(self, batch):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with self.cells(batch):
                pyro.sample("x", dist.Normal(self.loc + m[..., None], 1.0).to_event(1), obs=batch["x"])

        def guide(self, batch):
            pyro.sample("m", dist.Normal(self.guide_loc.bias[0], 1.0))

    fitted = fit(Global, X, **QUICK)
    with pytest.raises(ValueError, match="site 'm' is outside the plate 'cells': there is no bound for each cell"):
        fitted.bound()


def test_a_mask_of_held_out_cells_is_the_same_as_their_rows():
    mask = np.zeros(60, dtype=bool)
    mask[[3, 5, 59]] = True
    for given in (mask, mask.tolist(), torch.from_numpy(mask), [59, 3, 5], np.array([3.0, 5.0, 59.0])):
        assert fit("ppca", X, validation=given, n_latent=1, **QUICK).validation_rows.tolist() == [3, 5, 59]
    with pytest.raises(ValueError, match="validation is 60 zeros and ones.*make it a mask"):
        fit("ppca", X, validation=mask.astype(int), n_latent=1, **QUICK)
    share = fit("ppca", X, validation=np.float32(0.25), n_latent=1, **QUICK)
    assert len(share.validation_rows) == 15


def test_rows_of_a_posterior_are_whole_and_in_range():
    posterior = fit("ppca", X, n_latent=1, **QUICK).posterior(particles=3)
    mask = np.zeros(60, dtype=bool)
    mask[[7, 9]] = True
    np.testing.assert_array_equal(posterior.draw("z", cells=mask), posterior.draw("z", cells=[7, 9]))
    assert posterior.expect(lambda v: v["z"], cells=mask).shape == (2, 1)
    refused = {
        (0.5, 1.5): "value 0 of it is 0.5",
        (-1,): "value 0 of it is -1",
        (2, 60): "value 1 of it is 60",
        (): "cells is empty",
        "all": "cells must be row numbers",
        (True, False): "a mask of length 2, but there are 60 cells",
    }
    for rows, message in refused.items():
        for ask in (posterior.draw, posterior.expect):
            with pytest.raises((ValueError, TypeError), match=message):
                ask("z" if ask == posterior.draw else torch.clone, cells=rows if isinstance(rows, str) else list(rows))
    with pytest.raises(ValueError, match="overrides: field 'code' holds whole numbers, not 0.7"):
        with_overrides({"code": torch.zeros(3, dtype=torch.int64)}, {"code": 0.7})
    with pytest.raises(ValueError, match="draws must be a whole number of at least 1, not 0"):
        posterior.draw("z", draws=0)


SETTINGS = {
    "max_epochs": (0, -1, 1.5, "3", True),
    "batch_size": (0, 2.0, None),
    "learning_rate": (0, -1, float("nan"), float("inf"), "1e-3", True),
    "epsilon": (0, float("inf")),
    "cooldown": (-0.1, 1.5, float("nan")),
    "seed": (-1, 0.5, "0", 2**63),
    "early_stopping": (0, -1, 1.5, True),
    "kl_warmup": (-1, float("nan"), 0.5),
    "compile": (1, "yes"),
    "progress": (0, None),
    "callbacks": (3, "x", [3], print),
    "checkpoint": (3, "", True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_the_training_is_checked_by_name(name):
    for value in SETTINGS[name]:
        with pytest.raises((ValueError, TypeError), match=name):
            Settings(**{"max_epochs": 2, name: value})


def test_numbers_of_numpy_are_numbers_and_false_is_no_patience():
    settings = Settings(
        max_epochs=np.int64(3),
        learning_rate=np.float32(0.5),
        seed=np.uint8(4),
        early_stopping=False,
        kl_warmup=np.int8(0),
    )
    assert (settings.max_epochs, settings.learning_rate, settings.seed, settings.early_stopping) == (3, 0.5, 4, None)
    assert {type(v) for v in (settings.max_epochs, settings.seed, settings.kl_warmup)} == {int}
    assert Settings(max_epochs=1, early_stopping=np.False_).early_stopping is None
    assert len(fit("ppca", X, n_latent=1, early_stopping=False, **QUICK).history) == 2


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_first_epoch(tmp_path):
    epochs = []
    keep = [lambda p, row: epochs.append(row)]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fit("ppca", X, n_latent=1, checkpoint=tmp_path / "absent" / "fit", callbacks=keep, **QUICK)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        fit("ppca", X, n_latent=1, checkpoint=tmp_path, callbacks=keep, **QUICK)

    class Odd(PPCA):
        def __init__(self, n_features, odd):
            super().__init__(n_features, 1)

    with pytest.raises(TypeError, match="argument 'odd' of the program is a set"):
        fit(Odd, X, n_features=3, odd={1}, checkpoint=tmp_path / "fit", callbacks=keep, **QUICK)
    assert not epochs and not list(tmp_path.iterdir())


def test_a_checkpoint_that_fails_later_is_a_warning_and_the_fit_is_returned(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match="no checkpoint was written: .*No space left"):
        fitted = fit("ppca", X, n_latent=1, checkpoint=tmp_path / "fit", **QUICK)
    assert len(fitted.history) == 2 and not list(tmp_path.iterdir())


def test_what_is_interrupted_before_an_epoch_is_complete_is_no_fit(tmp_path):
    class Impatient(PPCA):
        def training_loss(self, step, objective):
            raise KeyboardInterrupt

    old = fit("ppca", X, n_latent=1, **QUICK)
    old.save(tmp_path / "fit")
    before = (tmp_path / "fit").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fit(Impatient, X, n_features=3, n_latent=1, checkpoint=tmp_path / "fit", **QUICK)
    assert (tmp_path / "fit").read_bytes() == before


def test_an_interrupt_ends_all_restarts():
    seeds = []

    def interrupt(program, row):
        seeds.append(row["epoch"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted after 1 epochs"):
        fit_best(3, "ppca", X, n_latent=1, callbacks=[interrupt], **QUICK)
    assert seeds == [0]


def test_held_out_cells_without_a_finite_loss_are_named():
    class Outlier(PPCA):
        def model(self, batch):
            wrong = batch["index"][:, None] == 17
            super().model(batch | {"x": torch.where(wrong, batch["x"] / 0, batch["x"])})

    with pytest.warns(UserWarning, match="the held-out loss is not finite in epoch 0.*'x' for row 17"):
        fitted = fit(Outlier, X, n_features=3, n_latent=1, validation=[17, 20], **QUICK)
    assert len(fitted.history) == 2


def test_a_last_step_that_is_not_finite_is_told():
    class Last(Mean):
        def training_loss(self, step, objective):
            loss = objective(step)
            if "progress" not in step.scalars:  # a held-out cell
                return loss
            nothing = 0 * self.loc.sum()
            nothing.register_hook(lambda gradient: gradient * torch.nan if step.scalars["progress"] >= 1 else gradient)
            return loss + nothing

    with pytest.raises(FloatingPointError, match="parameter 'loc' is not finite after 2 epochs"):
        fit(Last, X, early_stopping=None, **QUICK)


def test_normalising_programs_need_two_cells_in_a_minibatch():
    class Normalised(Mean):
        def __init__(self):
            super().__init__()
            self.guide_norm = nn.BatchNorm1d(3)

    with pytest.raises(ValueError, match="batch_size must be at least 2: Normalised normalises"):
        fit(Normalised, X, batch_size=1, max_epochs=1, progress=False)
    assert len(fit("ppca", X, n_latent=1, batch_size=1, max_epochs=1, progress=False).history) == 1


def test_devices_and_constraints_are_named():
    for device in ("mps", "tpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}'"):
            fit("ppca", X, n_latent=1, device=device, **QUICK)
    for constraints in (hsic("z", "x"), "hsic", 3, [3]):
        with pytest.raises(TypeError, match="constraints must be"):
            checked_constraints(constraints)
    for bound in (float("nan"), float("inf"), "low"):
        with pytest.raises((ValueError, TypeError), match="bound must be"):
            Constraint(lambda step: step.value("z").mean(), bound=bound)


def test_whatever_is_no_entry_is_told_so():
    for entry in (lambda batch: None, ("ppca",), 3, None, np.zeros(3)):
        with pytest.raises(TypeError, match="an entry is a name, an Entry, a Program class or a Program|'what'"):
            fit(entry, X, **QUICK)


def test_numbers_of_numpy_in_an_objective_can_be_saved(tmp_path):
    fitted = fit("ppca", X, n_latent=1, objective=IWAE(np.int64(5)), **QUICK)
    fitted.save(tmp_path / "fit")
    assert load(tmp_path / "fit").objective == IWAE(5)
