"""Of several fits, the one that predicts the same held-out cells best."""

import numpy as np
import pytest
import torch

from fieldguide.catalog import get
from fieldguide.inference import fit, fit_best

RNG = np.random.default_rng(0)
X = {"x": RNG.normal(size=(150, 2)) @ RNG.normal(size=(2, 5)) + 0.3 * RNG.normal(size=(150, 5))}
QUICK = {"n_latent": 2, "max_epochs": 4, "learning_rate": 0.02, "progress": False}


def test_the_held_out_loss_is_that_of_the_history():
    fitted = fit("ppca", X, validation=0.2, early_stopping=None, kl_warmup=0, **QUICK)
    assert fitted.held_out_loss() == fitted.history["validation"].iloc[-1]
    stopped = fit("ppca", X, validation=0.2, early_stopping=1, kl_warmup=0, **QUICK | {"learning_rate": 1.0})
    assert stopped.held_out_loss() == stopped.history["validation"].min()


def test_the_best_is_one_of_the_fits_by_the_same_held_out_cells():
    best = fit_best(4, "ppca", X, seed=3, validation=0.2, **QUICK)
    rows = fit("ppca", X, seed=3, validation=0.2, **QUICK).validation_rows
    np.testing.assert_array_equal(best.validation_rows, rows)
    losses = [fit("ppca", X, seed=s, validation=rows, **QUICK).held_out_loss() for s in range(3, 7)]
    assert best.restarts["seed"].tolist() == [3, 4, 5, 6] and best.restarts["loss"].tolist() == losses
    alone = fit("ppca", X, seed=3 + int(np.argmin(losses)), validation=rows, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(best.program.parameters(), alone.program.parameters(), strict=True))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="restarts must be a whole number of at least 1, not 0"):
        fit_best(0, "ppca", X, **QUICK)
    with pytest.raises(ValueError, match="no cell was held out"):
        fit_best(2, "ppca", X, validation=0.0, **QUICK)
    with pytest.raises(TypeError, match="PPCA is already built: give its class"):
        fit_best(2, get("ppca").program(n_features=5, n_latent=2), X, **{k: QUICK[k] for k in ("progress",)})
