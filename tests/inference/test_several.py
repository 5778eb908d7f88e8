"""One objective for each group of cells: shares against brute force, gradients against those of the groups, saving."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fieldguide.inference as fi
from fieldguide.catalog.ppca import PPCA
from fieldguide.inference.objectives.several import RULES, smallest

INNER = [
    fi.ELBO(),
    fi.ELBO(kl="analytic"),
    fi.ELBO(3, "stl"),
    fi.ELBO(3, "score"),
    fi.IWAE(3),
    fi.IWAE(3, "reparam"),
    fi.Renyi(0.5, 3),
    fi.VRMax(3),
]
SMALL = {"n_latent": 2, "max_epochs": 2, "progress": False}


@pytest.fixture
def step():
    """A minibatch of two groups of unequal size."""
    torch.manual_seed(0)
    program = PPCA(3, 2)
    batch = {"x": torch.randn(9, 3), "group": torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 1]), "index": torch.arange(9)}

    def make(rows=slice(None), weights=None) -> fi.Step:
        made = fi.Step(program, {name: v[rows] for name, v in batch.items()}, 100)
        made.cell_weights = weights
        return made

    return make


def gradient(objective: Any, step: fi.Step) -> torch.Tensor:
    torch.manual_seed(1)
    members = list(step.program.parameters())
    parts = torch.autograd.grad(objective(step), members, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(members, parts, strict=True)])


def of_groups(objective: Any, step: Any) -> torch.Tensor:
    """Gradients of the mean loss of each group, from the same draws: cells weighted, and nothing else."""
    group = step().batch["group"]
    return torch.stack([gradient(objective, step(weights=(group == g) / (group == g).float().mean())) for g in (0, 1)])


# ---- shares ------------------------------------------------------------------------------------------------
@given(arrays(float, (3, 4), elements=st.floats(-3, 3)), st.booleans())
def test_the_shares_make_the_shortest_vector_of_the_hull(rows, equalise):
    gradients = torch.tensor(rows)
    shares = smallest(gradients, equalise)
    assert shares.min() >= 0 and shares.sum() == pytest.approx(1)
    norms = gradients.norm(dim=1)
    if equalise and norms.min() < 1e-3:
        return
    unit = gradients / norms[:, None] if equalise else gradients
    weights = shares * norms if equalise else shares
    length = (weights @ unit).norm() / weights.sum()
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 21, dtype=torch.float64)] * 3)[1:]
    best = (grid / grid.sum(1, keepdim=True) @ unit).norm(dim=1).min()
    assert length <= best + 1e-5 * (1 + best)


def test_the_shares_of_two_are_those_of_the_closed_form():
    """clip((g_2 - g_1) g_2 / |g_1 - g_2|^2, 0, 1), as published."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, two = torch.tensor(rng.normal(size=(2, 5)) * [[1.0], [rng.uniform(0.2, 5)]])
        share = float((((two - one) @ two) / (one - two).square().sum()).clamp(0, 1))
        assert smallest(torch.stack((one, two)))[0] == pytest.approx(share, abs=1e-6)


# ---- gradients ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("objective", [*INNER, fi.WakeWake(3), fi.Chi(3)], ids=str)
def test_balanced_is_the_mean_of_the_gradients_of_the_groups(step, objective):
    parts = of_groups(objective, step)
    torch.testing.assert_close(gradient(fi.Several(objective, rule="balanced"), step()), parts.mean(0))


@pytest.mark.parametrize("objective", INNER, ids=str)
def test_mgda_lowers_the_loss_of_every_group(step, objective):
    parts = of_groups(objective, step).double()
    for rule, unit in (("mgda", torch.ones(2, 1).double()), ("equalised", parts.norm(dim=1, keepdim=True))):
        moved = gradient(fi.Several(objective, rule=rule), step()).double()
        along = (parts / unit) @ moved
        assert along.min() > 0
        shares = smallest(parts, rule == "equalised")
        torch.testing.assert_close(moved, shares @ parts, rtol=1e-4, atol=1e-5)


def test_pooled_is_the_objective_and_so_is_one_group(step):
    alone = gradient(fi.IWAE(3), step())
    torch.testing.assert_close(gradient(fi.Several(fi.IWAE(3), rule="pooled"), step()), alone, rtol=0, atol=0)
    of_one = step().batch["group"] == 1
    alone = gradient(fi.ELBO(), step(of_one))
    torch.testing.assert_close(gradient(fi.Several(fi.ELBO()), step(of_one)), alone, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_the_value_is_that_of_the_objective_on_all_cells(step, rule):
    torch.manual_seed(1)
    plain = fi.ELBO(2)(step()).detach()
    torch.manual_seed(1)
    assert float(fi.Several(fi.ELBO(2), rule=rule)(step()).detach()) == pytest.approx(float(plain), rel=1e-6)
    torch.manual_seed(1)
    with torch.no_grad():
        assert float(fi.Several(fi.ELBO(2), rule=rule)(step())) == pytest.approx(float(plain), rel=1e-6)


def test_weights_of_cells_count_within_their_group(step):
    weights = torch.linspace(0.5, 2, 9)
    group = step().batch["group"]
    parts = [gradient(fi.ELBO(), step(weights=weights * (group == g) * 9 / weights[group == g].sum())) for g in (0, 1)]
    moved = gradient(fi.Several(fi.ELBO(), rule="balanced"), step(weights=weights))
    torch.testing.assert_close(moved, sum(parts) / 2)


# ---- in a fit ----------------------------------------------------------------------------------------------
class Grouped(PPCA):
    """Probabilistic PCA of cells that have groups."""


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(60, 3)), "group": np.arange(60) % 6 // 5}


def test_a_program_of_ones_own_is_fitted_by_several_and_the_objective_is_saved(data, tmp_path):
    objective = fi.Several(fi.IWAE(3), by="group", rule="equalised")
    fitted = fi.fit(Grouped, data, objective=objective, n_features=3, **SMALL)
    assert np.isfinite(fitted.history["train"]).all()
    assert fitted.bound().shape == (60,)
    fitted.save(tmp_path / "a.safetensors")
    again = fi.load(tmp_path / "a.safetensors", program=Grouped)
    assert again.objective == objective
    np.testing.assert_array_equal(again.bound(data), fitted.bound(data))


def test_what_cannot_be_is_said(data, step):
    for wrong in (fi.ELBO, "elbo", fi.ForwardKL(3), fi.CUBO(particles=3), lambda step: 0, fi.Several()):
        with pytest.raises(TypeError, match="bound for each cell|loss for each parameter group"):
            fi.Several(wrong)(step())
    with pytest.raises(ValueError, match="rule must be"):
        fi.Several(rule="sum")
    with pytest.raises(ValueError, match=r"Several\(by='batch'\): the program reads no such field; it reads x, group"):
        fi.fit(Grouped, data, objective=fi.Several(by="batch"), n_features=3, **SMALL)
    with pytest.raises(ValueError, match="'svae' is not for the objective 'cubo'"):
        fi.entry.require_supported(fi.entry.find("svae"), fi.Several(fi.CUBO()))
