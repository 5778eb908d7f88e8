"""Content and style: conformance, rows that are found, their prior, and what new data need not have."""

import numpy as np
import pandas as pd
import pytest
import torch

import fieldguide.inference as fi
from fieldguide.catalog import get
from fieldguide.catalog.data.screened_images import ops_sim
from fieldguide.inference.conformance import check

TINY = {"widths": (4, 8), "n_latent": 4, "n_style": 3, "n_embedding": 2}
QUICK = {"max_epochs": 2, "progress": False, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def screen():
    return ops_sim(0, 2, 2, 0, 2, 12, 10, size=8).data


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [{"augment": False}, {"alpha": 0.0, "partners": 0}, {"likelihood": "bernoulli"}], ids=str
)
def test_it_conforms(screen, given):
    data = screen.copy()
    data.obs["label"], data.obs["environment"] = data.obs["gene"], data.obs["well"]
    assert check("grape_vi", data, **(TINY | given))["passed"].ne(False).all()


def test_new_images_need_neither_gene_nor_well(screen):
    places = {"label": "gene", "environment": "well"}
    fitted = fi.fit("grape_vi", screen, fields=places, **TINY, **QUICK)
    new = screen[:6].copy()
    new.obs = pd.DataFrame({"gene": ["elsewhere"] * 6}, index=new.obs_names)
    np.testing.assert_allclose(fitted.latent(new), fitted.latent(screen[:6]), atol=1e-5)
    assert np.isfinite(fitted.bound(new, fi.IWAE(5))).all()
    without = fi.fit("grape_vi", screen, fields={"label": "gene"}, **TINY, **QUICK)
    assert without.program.wells is None and np.isfinite(without.bound(screen)).all()


def test_rows_have_the_posterior_of_a_normal_mean(screen):
    """Gradients of the rows are those of the log posterior given the styles, for which it is known."""
    torch.manual_seed(0)
    program = get("grape_vi").program(2, 8, 3, 2, alpha=0.0, augment=False, **TINY)
    label = torch.tensor([0, 0, 0, 1])
    batch = {"image": torch.rand(4, 2, 8, 8), "label": label, "environment": torch.zeros(4).long()}
    program.prepare([batch])
    np.testing.assert_allclose(program.row_deviation().numpy() ** -2, [4, 2, 1])
    step = fi.Step(program, batch, total=4)
    loss = program.training_loss(step, fi.ELBO())
    (gradient,) = torch.autograd.grad(loss, [program.rows])
    styles = step.value("s")[0].detach()
    for gene in range(3):
        inside = styles[label == gene]
        score = (inside - program.rows[gene]).sum(0) - program.rows[gene]  # of the log posterior
        torch.testing.assert_close(-4 * gradient[gene], score.detach(), rtol=1e-4, atol=1e-5)


def test_the_content_is_held_from_the_gene():
    """The penalty reaches the guide alone, and is in no bound."""
    torch.manual_seed(0)
    data = {"image": torch.rand(12, 2, 8, 8), "label": torch.arange(12) % 3, "environment": torch.zeros(12).long()}
    program = get("grape_vi").program(2, 8, 3, 1, augment=False, **TINY).train()
    program.encoder.eval()
    program.decoder.eval()
    found = {}
    for alpha in (0.0, 5.0):
        program.alpha = alpha
        torch.manual_seed(1)
        step = fi.Step(program, data)
        loss = program.training_loss(step, fi.ELBO())
        gradients = torch.autograd.grad(loss, list(program.parameters()), allow_unused=True)
        names = [name for name, _ in program.named_parameters()]
        found[alpha] = dict(zip(names, gradients, strict=True)), fi.ELBO().per_cell(step.weights(1)).detach()
    for name, gradient in found[0.0][0].items():
        same = torch.equal(gradient, found[5.0][0][name])
        assert same != name.startswith(("encoder.", "encoder_c.")), name
    torch.testing.assert_close(found[0.0][1], found[5.0][1])
