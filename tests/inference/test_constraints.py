"""Constraints in the loop: they reach the guide alone, cost nothing at weight 0, and are saved with the fit."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.inference import (
    ELBO,
    IWAE,
    AugmentedLagrangian,
    Chi,
    Constraint,
    Groups,
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


def test_hsic_falls_and_the_fit_keeps_its_constraints(tmp_path):
    settings = {"max_epochs": 15, "learning_rate": 1e-2, "early_stopping": None}
    rule = AugmentedLagrangian(rho=1e3)
    bare, held = quick([hsic("z", "s", weight=0.0)], **settings), quick([hsic("z", "s", rule=rule)], **settings)
    assert held.history["hsic_z_s"].iloc[-1] < 0.7 * bare.history["hsic_z_s"].iloc[-1]
    assert held.history["hsic_z_s_multiplier"].iloc[-1] > 0
    held.save(tmp_path / "fit.safetensors")
    assert load(tmp_path / "fit.safetensors").constraints == held.constraints
    again = held.refit("elbo", max_epochs=1, progress=False)
    assert again.constraints == held.constraints and "hsic_z_s" in again.history


def test_any_entry_reads_columns_that_its_schema_does_not_name(pbmc):
    constraint = hsic("z", "n_genes", given="bulk_labels", bound="independent", rule=AugmentedLagrangian())
    found = fit(
        "scvi",
        pbmc,
        constraints=[constraint, hsic("z", "bulk_labels", estimator="block")],
        max_epochs=1,
        progress=False,
    )
    assert np.isfinite(found.history["hsic_z_n_genes_given_bulk_labels"]).all()
    assert found.history["hsic_z_n_genes_given_bulk_labels_bound"].iloc[-1] > 0


@pytest.mark.parametrize(
    ("constraint", "column", "message"),
    [
        (hsic("z", "depth"), None, "'depth' is neither a site of PPCA"),
        (hsic("z", "c"), np.ones(300), "column 'c' is constant"),
        (hsic("z", "c"), "nan", "column 'c' of cell '7' is missing or not finite"),
        (hsic("s", "x2"), S**2, "none of the variables is a site"),
        (hsic("z", "c", given="t"), "type", "constant within every category of 't'"),
        (hsic("z", "s", estimator="block", block=128), None, "needs 128 cells in a minibatch, not 64"),
    ],
    ids=["unknown", "constant", "nan", "columns", "collinear", "few"],
)
def test_bad_constraints_are_errors_that_name_what_is_wrong(constraint, column, message):
    codes = (np.arange(300) % 3 == 0).astype(int)
    columns = {"c": codes.astype(float), "t": codes, "x2": S**2}
    if isinstance(column, np.ndarray):
        columns["c"] = column
    if isinstance(column, str) and column == "nan":
        columns["c"] = np.where(np.arange(300) == 7, np.nan, S)
    source = Source(DATA | columns, quick(max_epochs=1).dataset, np.arange(300), 64, quick(max_epochs=1).program)
    with pytest.raises(ValueError, match=message):
        Active([constraint], source)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="two different variables"):
        hsic("z")
    with pytest.raises(ValueError, match="only estimator='v'"):
        hsic("z", "u", "s")
    with pytest.raises(ValueError, match="not both"):
        hsic("z", "s", weight=1.0, rule=Penalty())
    with pytest.raises(ValueError, match="needs estimator='v'"):
        hsic("z", "s", sqrt=True)
    with pytest.raises(ValueError, match="bound must be a number"):
        Constraint(lambda step: step.value("z").sum(), bound="none")


def test_a_field_of_the_program_may_be_given(tmp_path):
    """By its name in the program, where the column of the data is called otherwise; codes are categories."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(120)]
    obs = pd.DataFrame({"arm": np.array(["ctrl", "drug"])[np.arange(120) % 2]}, index=names)
    data = anndata.AnnData(rng.poisson(5.0, (120, 6)).astype(np.float32), obs=obs)
    place = {"group": Groups("arm", background="ctrl")}
    given = {"n_latent": 2, "n_salient": 1, "n_hidden": 8, "dimensions": "fixed", "fields": place}
    held = [[hsic("z", name, name="held")] for name in ("group", "arm")]
    fits = [fit("comparative", data, constraints=constraints, **given | QUICK) for constraints in held]
    np.testing.assert_allclose(fits[0].history["held"], fits[1].history["held"], rtol=1e-5)
    with pytest.raises(TypeError, match="program is the class that was fitted.*data go to the methods"):
        fits[0].save(tmp_path / "a.safetensors")
        load(tmp_path / "a.safetensors", data)


def test_bounds_of_permutations_come_from_a_full_minibatch(monkeypatch):
    """The last minibatch may be small, and its permutations wide."""
    judged = []
    update = Active.update

    def noted(self, means, step, steps, epoch):
        judged.append(len(step.batch["index"]))
        return update(self, means, step, steps, epoch)

    monkeypatch.setattr(Active, "update", noted)
    quick([hsic("z", "s", bound="independent")], batch_size=100, validation=0.0, max_epochs=2)
    quick([hsic("z", "s", bound="independent")], batch_size=140, validation=0.0, max_epochs=2)  # 140, 140, 20
    assert judged == [100, 100, 140, 140]
