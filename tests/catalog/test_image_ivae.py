"""The image VAE in two blocks: conformance, priors by label, cells whose codes are not known."""

import numpy as np
import pandas as pd
import pytest
import torch

import fieldguide.inference as fi
from fieldguide.catalog import get
from fieldguide.catalog.data.screened_images import ops_sim
from fieldguide.inference.conformance import check

PLACES = {"label": "gene", "environment": "well"}
TINY = {"widths": (4, 8), "n_latent": 4, "n_spurious": 3}


@pytest.fixture(scope="module")
def screen():
    return ops_sim(0, 2, 2, 0, 2, 10, 8, size=8).data


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{}, {"sees_environment": True}, {"prior": "standard", "n_spurious": 0}, {"likelihood": "bernoulli"}],
    ids=str,
)
def test_it_conforms(screen, given):
    data = screen.copy()
    data.obs["label"], data.obs["environment"] = data.obs["gene"], data.obs["well"]
    assert check("image_ivae", data, **(TINY | given))["passed"].ne(False).all()


def test_priors_move_with_labels_and_bounds_of_cells_without_codes_are_finite(screen):
    fitted = fi.fit("image_ivae", screen, fields=PLACES, max_epochs=3, progress=False, device="cpu", **TINY)
    new = screen[:6].copy()
    new.obs = pd.DataFrame({"gene": ["elsewhere"] * 6}, index=new.obs_names)
    assert np.isfinite(fitted.bound(new)).all()
    np.testing.assert_allclose(fitted.latent(new), fitted.latent(screen[:6]), atol=1e-5)
    program = fitted.program
    batch = {
        "image": torch.zeros(3, 4, 8, 8),
        "label": torch.tensor([0, 1, -1]),
        "environment": torch.tensor([0, 1, -1]),
    }
    law = program.prior_of("z_c", batch)
    assert not torch.equal(law.mean[0], law.mean[1])
    assert law.mean[2].abs().max() == 0 and (law.variance[2] == 1).all()


def test_a_guide_that_sees_the_environment_is_moved_by_it():
    torch.manual_seed(0)
    program = get("image_ivae").program(4, 8, 2, 2, sees_environment=True, **TINY).eval()
    batch = {"image": torch.rand(2, 4, 8, 8)[:1].repeat(2, 1, 1, 1), "label": torch.zeros(2).long()}
    draws = fi.Step(program, batch | {"environment": torch.tensor([0, 1])}).weights(1)
    means = program.encoder_heads["z_s"].weight[:, -2:]
    assert draws.log_w.isfinite().all() and not torch.equal(means[:, 0], means[:, 1])
