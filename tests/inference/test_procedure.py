"""The three-step procedure: one model, a guide by each objective, and their mixture, on the same held-out cells."""

import numpy as np
import pytest

from fieldguide.inference import IWAE, compare, three_step
from fieldguide.inference.mixture import same_model

RNG = np.random.default_rng(0)
X = {"x": RNG.normal(size=(200, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(200, 5))}
SETTINGS = {"n_latent": 2, "max_epochs": 4, "learning_rate": 0.02, "draws": 100, "progress": False}


@pytest.fixture(scope="module")
def study():
    return compare("ppca", X, {"elbo": "elbo", "tight": IWAE(5)}, **SETTINGS)


def test_all_rows_are_of_the_best_model_on_the_same_cells(study):
    found = three_step(study, {"tight": "student_t"}, progress=False)
    assert list(found.table.index) == ["elbo", "tight", "mix"]
    assert list(found.table.columns) == list(study.table.columns)
    assert found.model == study.table["bound"].idxmax()
    same_model([study.fits[found.model], *found.fits.values()])
    assert found.fits["tight"].arguments["guide"] == "student_t" and "guide" not in found.fits["elbo"].arguments
    assert len(found.fits["elbo"].history) == 2  # half of the epochs of the model
    assert {p.particles for p in found.held_out.values()} == {100}
    assert {p.n_cells for p in found.held_out.values()} == {20}
    assert found.mixture.shares[-1] == 0.05
    rows = found.table
    assert rows.loc["mix", "loss"] == repr(found.mixture) and np.isnan(rows.loc["mix", "epochs"])
    assert rows.loc["mix", "bound"] > rows.loc[["elbo", "tight"], "bound"].min() - 0.05


def test_settings_are_carried_and_can_be_changed(study):
    found = three_step(study, weights="equal", prior=False, max_epochs=3, progress=False)
    assert len(found.fits["tight"].history) == 3 and found.mixture.names == ["elbo", "tight"]
    assert found.mixture.shares.tolist() == [0.5, 0.5]
    assert found.settings["model"] == found.model and found.settings["shares"] == found.mixture.shares.tolist()


def test_wrong_labels_are_refused(study):
    with pytest.raises(KeyError, match="guide names 'chi', but the comparison has elbo, tight"):
        three_step(study, {"chi": "student_t"}, progress=False)
    named = compare("ppca", X, {"mix": "elbo"}, **SETTINGS)
    with pytest.raises(ValueError, match="has the label 'mix'"):
        three_step(named, progress=False)
