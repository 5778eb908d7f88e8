"""Constraints in the loop: they reach the guide alone, cost nothing at weight 0, and are saved with the fit."""

import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.catalog import get
from fieldguide.inference import (
    IWAE,
    AugmentedLagrangian,
    Chi,
    Constraint,
    ELBO,
    Penalty,
    Step,
    WakeWake,
    fit,
    hsic,
    load,
)
from fieldguide.inference.constraints import Active, Source

RNG = np.random.default_rng(0)
S = RNG.normal(size=300)
X = RNG.normal(size=(300, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(300, 5)) + 1.5 * S[:, None]
DATA = {"x": X, "s": S}
TYPES = np.where(np.arange(300) % 3, "a", "b")
QUICK = {"max_epochs": 3, "progress": False, "batch_size": 64}


def quick(constraints=(), **settings):
    return fit("ppca", DATA, n_latent=2, constraints=constraints, **(QUICK | settings))


@pytest.mark.parametrize("objective", ["elbo", "iwae", "wake", "chi", ELBO(2, "stl"), ELBO(2, "score")], ids=str)
@pytest.mark.parametrize("rule", ["weight 0", "satisfied"])
def test_a_constraint_without_a_price_changes_no_bit(objective, rule):
    free = hsic("z", "s", weight=0.0) if rule == "weight 0" else hsic("z", "s", bound=10.0, rule=AugmentedLagrangian())
    bare, priced = quick(objective=objective), quick([free], objective=objective)
    for name, value in bare.program.state_dict().items():
        assert torch.equal(value, priced.program.state_dict()[name]), name
    columns = ["train", "validation", "kl_weight"]
    pd.testing.assert_frame_equal(bare.history[columns], priced.history[columns])
    assert np.isfinite(priced.history["hsic_z_s"]).all()


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), WakeWake(3), Chi(3)], ids=str)
def test_the_gradient_reaches_the_guide_alone(objective):
    program = quick().program.train()
    batch = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in DATA.items()} | {"index": torch.arange(300)}
    source = Source(DATA, quick().dataset, np.arange(300), 300, program)
    active = Active([hsic("z", "s")], source)
    step = Step(program, batch, 300)
    objective(step)
    (value,) = active.measured(step).values()
    groups = program.groups()
    found = torch.autograd.grad(value, groups["theta"] + groups["phi"], allow_unused=True)
    theta, phi = found[: len(groups["theta"])], found[len(groups["theta"]) :]
    assert theta and all(g is None or not g.any() for g in theta)
    assert any(g is not None and g.abs().max() > 0 for g in phi)
