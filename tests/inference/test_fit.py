"""The loop, the fit and its file: reproducible, restartable, interruptible, and clear about what goes wrong."""

import errno
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from fieldguide.catalog import get
from fieldguide.catalog.ppca import PPCA
from fieldguide.inference import ELBO, IWAE, SchemaError, fit, load

RNG = np.random.default_rng(0)
X = {"x": (RNG.normal(size=(300, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(300, 5)))}
QUICK = {"max_epochs": 3, "progress": False}


def quick(**settings):
    return fit("ppca", X, n_latent=2, **(QUICK | settings))


def test_training_reaches_the_best_possible_likelihood():
    result = quick(max_epochs=120, learning_rate=5e-2, batch_size=100, cooldown=0.3, validation=0, early_stopping=None)
    x = torch.tensor(X["x"], dtype=torch.float32)
    evidence = result.program.exact_log_evidence(x).mean().item()
    covariance = np.cov(X["x"].T, bias=True)
    ceiling = -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + 5)
    assert ceiling - 0.15 < evidence <= ceiling + 1e-3
    assert result.bound(objective=IWAE(200)).mean() == pytest.approx(evidence, abs=0.02)


def test_the_same_seed_gives_the_same_fit_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = quick(seed=1)
    assert torch.rand(1) == expected
    second, other = quick(seed=1), quick(seed=2)
    for a, b, c in zip(*(r.program.parameters() for r in (first, second, other)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    pd.testing.assert_frame_equal(first.history.drop(columns="seconds"), second.history.drop(columns="seconds"))
    np.testing.assert_array_equal(first.posterior(particles=30).log_weights, second.posterior(particles=30).log_weights)


def test_the_optimisers_settings_are_the_calls_else_the_entrys_else_the_published():
    """An epsilon far above every gradient holds the parameters where they are."""
    still = replace(get("ppca"), defaults={"epsilon": 1e9})
    start, usual = quick(learning_rate=1e-12).program.loadings, quick().program.loadings
    held = fit(still, X, n_latent=2, **QUICK)
    torch.testing.assert_close(held.program.loadings, start, rtol=0, atol=1e-6)
    assert (usual - start).abs().max() > 1e-3
    assert torch.equal(fit(still, X, n_latent=2, epsilon=0.01, **QUICK).program.loadings, usual)
    assert torch.equal(quick(epsilon=0.01, learning_rate=1e-3).program.loadings, usual)
    guides = [
        held.refit("elbo", progress=False, max_epochs=3, **s).program.guide_loc.weight for s in ({}, {"epsilon": 0.01})
    ]
    unmoved = held.refit("elbo", progress=False, max_epochs=3, learning_rate=1e-12).program.guide_loc.weight
    torch.testing.assert_close(guides[0], unmoved, rtol=0, atol=1e-6)
    assert (guides[1] - unmoved).abs().max() > 1e-3
    for setting in ({"epsilon": 0.0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} must be a number above 0, not"):
            quick(**setting)


def test_history_and_split():
    result = quick(max_epochs=8, validation=0.2, kl_warmup=4)
    assert list(result.history.columns) == ["train", "validation", "kl_weight", "seconds"]
    assert len(result.history) == 8 and result.history["kl_weight"].iloc[3:].eq(1).all()
    assert result.history["kl_weight"].iloc[:3].is_monotonic_increasing and result.history["kl_weight"].iloc[0] < 1
    assert len(result.validation_rows) == 60 and len(result.train_rows) == 240
    assert not set(result.validation_rows) & set(result.train_rows)
    given = quick(validation=np.arange(10))
    assert given.validation_rows.tolist() == list(range(10))
    assert "validation" not in quick(validation=0).history


def test_early_stopping_restores_the_best_parameters():
    settings = {"max_epochs": 60, "learning_rate": 0.5, "kl_warmup": 0, "seed": 3}
    seen = []
    result = quick(early_stopping=5, callbacks=[lambda program, row: seen.append(row["validation"])], **settings)
    best = int(np.argmin(seen))
    assert len(result.history) == best + 6
    held_out = {"x": X["x"][result.validation_rows]}
    restored = -result.bound(held_out, ELBO(200)).mean()
    last = -quick(early_stopping=None, **(settings | {"max_epochs": len(seen)})).bound(held_out, ELBO(200)).mean()
    assert restored < last


def test_a_callback_can_stop_and_an_interrupt_leaves_a_usable_fit(tmp_path):
    assert len(quick(callbacks=[lambda program, row: row["epoch"] == 1]).history) == 2

    def interrupt(program, row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 2 epochs"):
        result = quick(callbacks=[interrupt], checkpoint=tmp_path / "fit.safetensors")
    assert result.interrupted and result.latent().shape == (300, 2)
    with pytest.warns(UserWarning, match="fit.safetensors was interrupted after 2 epochs"):
        again = load(tmp_path / "fit.safetensors")
    assert again.interrupted
    np.testing.assert_array_equal(again.latent(X), result.latent())


def test_saving_and_loading_changes_nothing(tmp_path, pbmc):
    data = pbmc[:, :80].copy()
    data = data[np.asarray(data.X.sum(1)).ravel() > 0].copy()
    data.obs["batch"] = np.where(np.arange(data.n_obs) % 2, "a", "b")
    arguments = {"n_hidden": 16, "likelihood": "zinb", "library": "latent"}
    result = fit("scvi", data, objective=IWAE(3), max_epochs=2, progress=False, **arguments)
    result.save(tmp_path / "fit.safetensors")
    loaded = load(tmp_path / "fit.safetensors")
    new = data[:50].copy()
    np.testing.assert_array_equal(result.latent(new), loaded.latent(new))
    np.testing.assert_array_equal(result.bound(new), loaded.bound(new))
    np.testing.assert_array_equal(result.posterior(new, 30).log_weights, loaded.posterior(new, 30).log_weights)
    pd.testing.assert_frame_equal(result.history, loaded.history)
    assert loaded.objective == IWAE(3)
    np.testing.assert_array_equal(loaded.validation_rows, result.validation_rows)
    with pytest.raises(ValueError, match="holds no data"):
        loaded.latent()
    new.obs["batch"] = "c"
    with pytest.raises(SchemaError, match="category 'c'"):
        loaded.latent(new)
    result.write(data, "guide")
    assert data.obsm["guide_latent"].shape == (data.n_obs, 10) and data.uns["guide"]["entry"] == "scvi"


def test_damaged_and_foreign_files_are_refused(tmp_path):
    result = quick()
    path = tmp_path / "fit.safetensors"
    result.save(path)
    content = path.read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(tmp_path / "cut")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not one that fieldguide wrote"):
        load(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "absent")
    fit("ppca", X, objective=lambda step: ELBO()(step), **QUICK).save(path)
    with pytest.warns(UserWarning, match="callable of its own and is not saved"):
        assert load(path).objective == ELBO()
    assert (
        repr(result)
        == "<Fit of ppca by ELBO(particles=1, gradient='reparam', kl='sampled'): 3 epochs on 270 cells and 30 held out>"
    )
    own = fit(PPCA, X, n_features=5, **QUICK)
    own.save(path)
    with pytest.raises(ValueError, match="pass that class as program="):
        load(path)
    with pytest.raises(ValueError, match="not of SCVI"):
        load(path, get("scvi").program)
    np.testing.assert_array_equal(load(path, PPCA).latent(X), own.latent())


def test_a_full_disk_leaves_the_old_file_intact(tmp_path, monkeypatch):
    path = tmp_path / "fit.safetensors"
    first = quick(seed=0)
    first.save(path)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left.*an older file there is unchanged"):
        quick(seed=1).save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(load(path).latent(X), first.latent())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        first.save(tmp_path / "absent" / "fit.safetensors")


def test_a_loss_that_is_not_finite_names_cell_and_site():
    class Bad(PPCA):
        def model(self, batch):
            super().model(batch | {"x": torch.where(batch["index"][:, None] == 17, batch["x"] / 0, batch["x"])})

    with pytest.raises(FloatingPointError, match="epoch 0, minibatch .*site 'x' for row 17"):
        fit(Bad, X, n_features=5, validation=0, **QUICK)
    with pytest.raises(FloatingPointError, match="the loss is not finite in epoch 0, minibatch 1: .* of site"):
        quick(learning_rate=1e12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu0"}, "device 'gpu0' is not known"),
        ({"validation": 1.0}, "validation must be a number in .0, 1., not 1"),
        ({"validation": np.array([300])}, "value 0 of it is 300, and there is no such row"),
        ({"validation": np.arange(299)}, "leaves 1 of 300 cells for training"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"objective": "elob"}, "no objective 'elob'"),
        ({"fields": {"y": "X"}}, "no field 'y'"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        quick(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_absent_is_an_error():
    with pytest.raises(ValueError, match="device 'cuda' is not available"):
        quick(device="cuda")


def test_entries_and_arguments_that_do_not_exist():
    with pytest.raises(KeyError, match="no catalog entry 'scvj'; there are .*ppca, .*scvi"):
        fit("scvj", X)
    with pytest.raises(TypeError, match="PPCA has no argument 'n_latents'; it has n_features, n_latent"):
        fit("ppca", X, n_latents=3, **QUICK)
    with pytest.raises(ValueError, match="dispersion='gene-label' needs a label field"):
        fit("scvi", {"counts": np.ones((9, 3))}, dispersion="gene-label", **QUICK)
    with pytest.raises(KeyError, match="no latent site 'w'; the guide has z"):
        quick().latent(site="w")
    with pytest.raises(TypeError, match="already built"):
        fit(PPCA(5), X, n_latent=3, **QUICK)


def test_more_cells_in_a_batch_than_there_are_and_a_batch_with_one_cell(pbmc):
    data = pbmc[:20]
    data = data[:, np.asarray(data.X.sum(0)).ravel() > 0].copy()
    data.obs["batch"] = ["lonely"] + ["crowd"] * 19
    result = fit("scvi", data, batch_size=512, validation=0, library="latent", n_hidden=8, **QUICK)
    assert np.isfinite(result.latent()).all() and np.isfinite(result.bound()).all()


def test_compiled_training_equals_eager_and_falls_back_with_a_reason():
    eager = quick(kl_warmup=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled = quick(kl_warmup=0, compile=True)
    assert compiled.history["train"].iloc[-1] == pytest.approx(eager.history["train"].iloc[-1], rel=0.05)

    class Branching(PPCA):
        def model(self, batch):
            if batch["x"].sum() > 1e9:
                raise RuntimeError
            super().model(batch)

    with pytest.warns(UserWarning, match="step of Branching cannot be captured"):
        fit(Branching, X, n_features=5, compile=True, **QUICK)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import numpy as np, os
            from fieldguide.inference import fit
            counts = np.random.default_rng(0).poisson(2, size=(301, 12))
            settings = {{"max_epochs": 12, "batch_size": 32, "progress": False, "n_hidden": 8, "early_stopping": 2}}
            result = fit("scvi", {{"counts": counts}}, learning_rate=0.1, kl_warmup=0, **settings)
            state = [v.double().numpy().ravel() for v in result.program.state_dict().values()]
            flat = np.concatenate([[len(result.history)], *state])
            np.save(r"{tmp_path}" + f"/rank{{os.environ['RANK']}}.npy", flat)
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29713", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    first, second = (np.load(tmp_path / f"rank{r}.npy") for r in (0, 1))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["svae", "comparative", "fcr"])
def test_two_processes_decide_alike_in_the_middle_of_training(entry, tmp_path):
    """Axes that are turned, latents that are cut off: by what both have seen."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import numpy as np, os, pandas as pd, anndata, warnings
            from fieldguide.inference import Groups, Perturbations, fit
            warnings.simplefilter("ignore")
            rng = np.random.default_rng(0)
            cells = np.arange(600)
            obs = pd.DataFrame(index=cells.astype(str))
            obs["perturbation"] = np.array(["ctrl", "a", "b", "c"])[cells % 4]
            obs["context"] = obs["group"] = np.array(["u", "v", "w"])[cells // 4 % 3]
            rates = rng.gamma(2, 2, (4, 12))[cells % 4] * rng.gamma(3, 0.5, (3, 12))[cells // 4 % 3]
            data = anndata.AnnData(rng.poisson(rates).astype("float32"), obs=obs)
            fields = {{"perturbation": Perturbations(control="ctrl")}}
            fields = {{"group": Groups(background="u")}} if {entry!r} == "comparative" else fields
            settings = {{"max_epochs": 12, "batch_size": 32, "progress": False, "n_hidden": 8}}
            result = fit({entry!r}, data, fields=fields, **settings)
            state = [v.double().numpy().ravel() for v in result.program.state_dict().values()]
            np.save(r"{{}}/rank{{}}.npy".format(r"{tmp_path}", os.environ["RANK"]), np.concatenate(state))
            assert not result.program.unfinished()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29714", str(script)]
    done = subprocess.run(command, capture_output=True, timeout=300, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (np.load(tmp_path / f"rank{r}.npy") for r in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_settings_of_a_fresh_guide_are_checked_by_name():
    x = {"x": np.random.default_rng(0).normal(size=(40, 3))}
    first = fit("ppca", x, n_latent=1, max_epochs=1, progress=False)
    with pytest.raises(TypeError, match="'max_epoch': the settings of training are max_epochs, batch_size"):
        first.refit("elbo", max_epoch=3)
