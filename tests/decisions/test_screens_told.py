"""What newcomers to screens were not told: missing intervals, few cells, small doses, units, fields not read."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

import fieldguide.inference as fi
from fieldguide.catalog.data.factor_blocks import factor_sim
from fieldguide.catalog.data.simulate import sparse_counts
from fieldguide.catalog.data.two_populations import salient_sim
from fieldguide.cli import main
from fieldguide.decisions import context_responses, independence, salient_genes
from fieldguide.decisions.fdr import calls
from fieldguide.decisions.perturbations.effects import estimated_shifts, normal_errors, shift_probabilities

QUICK = {"n_hidden": 16, "progress": False, "seed": 0, "device": "cpu"}
SIZES = {"n_latent_x": 1, "n_latent_tx": 1, "n_latent_t": 1}
PLACE = {"counts": None, "values": "X", "perturbation": fi.Perturbations("treatment", control="control")}


@pytest.fixture(scope="module")
def blocks():
    data = factor_sim(0, n_contexts=3, n_treatments=4, n_cells=30, n_genes=20).data
    return data, fi.fit("fcr", data, fields=PLACE, max_epochs=10, **SIZES, **QUICK)


def test_controls_alone_give_a_response_without_an_interval_and_ask_for_pairs(blocks):
    data, fitted = blocks
    controls = data[data.obs["treatment"] == "control"].copy()
    with pytest.warns(UserWarning, match="intervals are missing"):
        alone = context_responses(fitted, [("c0", "t1")], controls, draws=4).table
    assert alone[["low", "high"]].isna().all().all() and alone["response"].notna().all()
    with pytest.raises(ValueError, match="no treated cell: say which pairs are asked for"):
        context_responses(fitted, None, controls, draws=4)


def test_a_response_does_not_depend_on_the_place_of_its_pair(blocks):
    _, fitted = blocks
    several = context_responses(fitted, [("c2", "t3"), ("c0", "t1"), ("c2", "t3")], draws=6).table
    parts = np.split(several[["response", "low", "high"]].to_numpy(), 3)
    np.testing.assert_array_equal(parts[0], parts[2])
    single = context_responses(fitted, [("c0", "t1")], draws=6).table[["response", "low", "high"]].to_numpy()
    np.testing.assert_allclose(parts[1], single, atol=1e-6)


# ---- few cells --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("freedom", [1, 3, 10, 100])
def test_errors_of_few_degrees_of_freedom_have_the_tails_of_students_t(freedom):
    values = np.array([0.1, 1.0, 3.0, 10.0])
    z = values / normal_errors(values, np.ones(4), freedom)
    np.testing.assert_allclose(norm.isf(student.sf(values, freedom)), z, rtol=0.06)


@pytest.mark.parametrize("cells", [14, 16, 40])
def test_noise_has_no_targets_however_few_the_cells(cells):
    false = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        codes = np.r_[np.arange(12), np.full(cells - 12, -1)][:, None]
        shifts = estimated_shifts(rng.normal(size=(cells, 3)), codes, 12)
        scaled, error = shifts.estimate / shifts.deviation, shifts.error / shifts.deviation
        probability, _ = shift_probabilities(scaled, error, 0.5, "empirical", shifts.freedom)
        false.append(calls(probability.ravel(), 0.05).any())
    assert np.mean(false) <= 0.14


# ---- doses ------------------------------------------------------------------------------------------------------
def test_small_doses_are_told_apart():
    data = factor_sim(0, n_contexts=2, n_treatments=2, n_cells=40, n_genes=12).data
    dose = np.array([0.001, 0.01, 0.1, 10.0])[np.arange(data.n_obs) % 4]
    data.obs["dose"] = np.where(data.obs["treatment"] == "control", 0.0, dose)
    fields = PLACE | {"dose": fi.Doses("dose", beside="treatment", control="control")}
    fitted = fi.fit("fcr", data, fields=fields, max_epochs=6, **SIZES, **QUICK)
    inside = (data.obs["context"] == "c0") & (data.obs["treatment"] == "t1")
    for share in (1e-4, 1e-3, 1e-2, 1.0):
        diagnostics = context_responses(fitted, [("c0", "t1")], dose=share, draws=3).diagnostics
        assert diagnostics["n_cells"].iloc[0] == (inside & np.isclose(data.obs["dose"], 10 * share)).sum() > 0
    assert context_responses(fitted, [("c0", "t1")], dose=0, draws=3).diagnostics["n_cells"].iloc[0] == 0
    batch = {"context": torch.zeros(4).long(), "perturbation": torch.zeros(4, 1).long()}
    shares = torch.tensor([[1e-4], [1e-3], [0.123], [1.0]])
    known = fitted.program.conditions(batch | {"dose": shares})[:, -1] * 1e-7
    np.testing.assert_allclose(known, [1e-4, 1e-3, 0.12, 1.0])
    other = data.copy()
    other.obs["dose"] *= 1000
    with pytest.warns(UserWarning, match="'dose': doses of column 'dose' are up to 1e[+]03 times the largest"):
        fitted.latent(other)


# ---- size factors -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def counted():
    data = sparse_counts(60, 20, seed=0)
    data.obs["total"] = np.asarray(data.X.sum(1)).ravel()
    fitted = fi.fit("scvi", data, fields={"size_factor": "total"}, max_epochs=2, **QUICK)
    return data, fitted


def test_size_factors_of_another_scale_are_told(counted, recwarn):
    data, fitted = counted
    fitted.bound(data)
    assert not [w for w in recwarn if "size_factor" in str(w.message)]
    other = data.copy()
    other.obs["total"] = other.obs["total"] / 1000
    with pytest.warns(UserWarning, match="times the counts that column 'total' lets expect"):
        fitted.bound(other)
    odd = data.copy()
    odd.obs["total"] = odd.obs["total"].astype(float)
    odd.obs.iloc[3, odd.obs.columns.get_loc("total")] = 1e12
    with pytest.warns(UserWarning, match=f"column 'total' of cell '{data.obs_names[3]}' is 1e[+]12"):
        fi.fit("scvi", odd, fields={"size_factor": "total"}, max_epochs=1, **QUICK)


def test_half_precision_counts_have_a_total(counted):
    data, fitted = counted
    half = data.copy()
    half.X = np.asarray(half.X if isinstance(half.X, np.ndarray) else half.X.toarray()).astype(np.float16) * 30
    half.obs["total"] = half.X.sum(1, dtype=np.float64)
    made = fi.fit("scvi", half, fields={"size_factor": "total"}, max_epochs=1, **QUICK)
    assert made.schema is not None and made.schema.states["size_factor"]["scale"] == pytest.approx(1.0)


def test_size_factors_that_are_not_read_are_told(counted):
    data, _ = counted
    with pytest.warns(UserWarning, match="'size_factor': SCVI as it is set up does not read it"):
        fi.fit("scvi", data, fields={"size_factor": "total"}, library="latent", max_epochs=1, **QUICK)
    world = factor_sim(0, n_contexts=2, n_treatments=2, n_cells=10, n_genes=8).data
    world.obs["total"] = 2.0
    with pytest.warns(UserWarning, match="'size_factor': FCR as it is set up does not read it"):
        fi.fit("fcr", world, fields=PLACE | {"size_factor": "total"}, max_epochs=2, **SIZES, **QUICK)


# ---- groups -----------------------------------------------------------------------------------------------------
def test_salient_genes_need_counts_and_a_salient_site():
    data = salient_sim(0, 40, 40, 2, 1, 20, 20, 800.0).data
    place = {"group": fi.Groups("population", background="background")}
    sizes = {"n_latent": 2, "n_salient": 1, "dimensions": "fixed", "max_epochs": 1}
    fitted = fi.fit("comparative", data, fields=place, **sizes, **QUICK)
    with pytest.raises(ValueError, match="site 'z' holds the latents that all groups share"):
        salient_genes(fitted, "target", site="z")
    with pytest.warns(UserWarning, match="group 'background' has no salient latents in use"):
        salient_genes(fitted, "background", draws=20)
    real = fi.fit("comparative", data, fields=place | {"counts": None, "values": "X"}, **sizes, **QUICK)
    with pytest.raises(TypeError, match="genes are told from a fit of counts"):
        salient_genes(real, "target")


@pytest.mark.parametrize(
    ("latents", "nuisance", "message"),
    [
        (
            np.where(np.arange(60)[:, None] == 7, np.nan, 1.0 * np.arange(60)[:, None]),
            np.arange(60),
            "latents of row 7",
        ),
        (np.ones((60, 2)), np.arange(60), "the same in all cells"),
        (np.random.default_rng(0).normal(size=(9, 2)), np.arange(9), "there are not 20 cells, which least=20 asks for"),
        (np.random.default_rng(0).normal(size=(60, 2)), np.ones(60, dtype=int), r"constant \(1\)"),
    ],
    ids=["missing", "constant", "few", "nothing"],
)
def test_independence_says_what_is_wrong(latents, nuisance, message):
    with pytest.raises(ValueError, match=message):
        independence(latents, {"n": nuisance})


# ---- the command line -------------------------------------------------------------------------------------------
def test_a_figure_is_written_whole_or_not_at_all(blocks, tmp_path, monkeypatch):
    data, fitted = blocks
    files = [str(tmp_path / "fit.safetensors"), str(tmp_path / "cells.h5ad")]
    fitted.save(files[0])
    data.write_h5ad(files[1])
    plot = tmp_path / "old.png"
    plot.write_bytes(b"older")
    from matplotlib.figure import Figure

    def broken(self, file, **given):
        file.write(b"half") if hasattr(file, "write") else open(file, "wb").write(b"half")
        raise OSError("No space left on device")

    given = ["contexts", *files, "--pairs", "c0=t1", "--draws", "3", "--plot", str(plot)]
    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", broken)
        assert main(given) != 0
    assert plot.read_bytes() == b"older"
    assert main(given) == 0 and plot.read_bytes()[:4] == b"\x89PNG"
    assert main(["contexts", *files, "--effects", "--dose", "0.5"]) == 2
    assert main(["contexts", *files, "--min-effect", "0.1"]) == 2
