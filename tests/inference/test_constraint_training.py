"""Constraints and the rest of training: which parameters they move, one backward pass, early stopping, comparisons."""

import copy
import json

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.inference import (
    ELBO,
    AugmentedLagrangian,
    Chi,
    Constraint,
    Penalty,
    Program,
    Step,
    WakeWake,
    compare,
    fit,
    hsic,
)
from fieldguide.inference.training.backward import attach, reached
from fieldguide.reports import compare as study_of
from fieldguide.reports import report

RNG = np.random.default_rng(0)
S = RNG.normal(size=200)
X = RNG.normal(size=(200, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(200, 5)) + 1.5 * S[:, None]
DATA = {"x": X, "s": S}
QUICK = {"progress": False, "batch_size": 64, "n_latent": 2}


class Decoded(Program):
    """A model that shows what its decoder says."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 5)
        self.guide_loc = nn.Linear(5, 2)
        self.register_buffer("origin", torch.zeros(2))
        self.backward_passes = 0

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            loc = pyro.deterministic("loc", self.decoder(z), event_dim=1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=batch["x"])

    def guide(self, batch):
        loc = self.guide_loc(batch["x"])
        if loc.requires_grad:
            loc.register_hook(self.count)
        with self.cells(batch):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    def count(self, gradient):
        self.backward_passes += 1


def gradients(program, batch, objective, constraints):
    """Gradients of every parameter as the loop takes them."""
    torch.manual_seed(0)
    program.zero_grad(set_to_none=True)
    step = Step(program, batch, 200)
    losses = objective(step)
    terms = [(c.name, c.group, c.rule.term(c.measure(step), None, c.rule.start())) for c in constraints]
    losses, pulls = attach(losses, terms, program.groups())
    losses.backward()
    for parameter, gradient in pulls:
        parameter.grad = parameter.grad + gradient
    return {name: p.grad.clone() for name, p in program.named_parameters()}


def size(step):
    return step.value("loc").pow(2).mean()


@pytest.mark.parametrize("objective", [ELBO(), WakeWake(3)], ids=str)
def test_a_measure_of_the_decoder_leaves_the_decoder_as_it_is(objective):
    """The default group is the guide: without it the penalty would be met by a smaller decoder."""
    torch.manual_seed(1)
    program, batch = Decoded(), {"x": torch.as_tensor(X, dtype=torch.float32)}
    bare = gradients(program, batch, objective, [])
    held = gradients(program, batch, objective, [Constraint(size, rule=Penalty(10.0))]) if _kept(objective) else None
    if held is None:  # draws are constants there: such a measure says nothing about the guide
        with pytest.raises(ValueError, match="does not depend on a parameter of group 'phi'"):
            gradients(program, batch, objective, [Constraint(size, rule=Penalty(10.0))])
        return
    everything = gradients(program, batch, objective, [Constraint(size, rule=Penalty(10.0), group=None)])
    for name, before in bare.items():
        if name.startswith("decoder"):
            assert torch.equal(held[name], before) and not torch.allclose(everything[name], before)
        else:
            assert not torch.allclose(held[name], before)
            torch.testing.assert_close(held[name], everything[name])


def _kept(objective):
    return isinstance(objective, ELBO)


def test_a_measure_of_draws_shares_the_backward_pass_of_the_loss():
    torch.manual_seed(1)
    program, batch = Decoded(), {"x": torch.as_tensor(X, dtype=torch.float32)}
    drawn = Constraint(lambda step: step.draw("z").pow(2).mean(), rule=Penalty(10.0), name="drawn")
    bare = gradients(program, batch, ELBO(), [])
    program.backward_passes = 0
    held = gradients(program, batch, ELBO(), [drawn])
    assert program.backward_passes == 1
    assert torch.equal(held["decoder.weight"], bare["decoder.weight"])
    assert not torch.allclose(held["guide_loc.weight"], bare["guide_loc.weight"])
    program.backward_passes = 0
    gradients(program, batch, ELBO(), [Constraint(size)])
    assert program.backward_passes == 2, "a measure of the decoder's output has a pass of its own"
    step = Step(program, batch)
    names = {id(p): name for name, p in program.named_parameters()}
    assert {names[i] for i in reached(step.draw("z").sum())} == {"guide_loc.weight", "guide_loc.bias"}


def test_a_loss_for_each_group_takes_the_term_of_its_own():
    torch.manual_seed(1)
    program, batch = Decoded(), {"x": torch.as_tensor(X, dtype=torch.float32)}
    step = Step(program, batch)
    loss = ELBO()(step)
    groups, term = program.groups(), step.draw("z").sum()
    together, pulls = attach({"theta": loss, "phi": loss}, [("t", "phi", term)], groups)
    assert not pulls and together["theta"] is loss and together["phi"].item() == pytest.approx((loss + term).item())
    alone, pulls = attach({"theta": loss}, [("t", "phi", term)], groups)
    assert alone == {"theta": loss} and {id(p) for p, _ in pulls} == {id(p) for p in groups["phi"]}
    with pytest.raises(KeyError, match="no parameter group 'critic'; groups are theta, phi"):
        attach(loss, [("t", "critic", term)], groups)


@pytest.mark.parametrize("objective", [Chi(3), {"elbo": 1}], ids=["chi", "by group"])
def test_weight_zero_changes_no_bit_with_losses_of_any_form(objective):
    def by_group(step):
        loss = ELBO()(step)
        return {"theta": loss, "phi": loss}

    chosen = by_group if isinstance(objective, dict) else objective
    both = [
        fit("ppca", DATA, objective=chosen, constraints=c, max_epochs=3, **QUICK)
        for c in ((), [hsic("z", "s", weight=0.0)])
    ]
    for name, value in both[0].program.state_dict().items():
        assert torch.equal(value, both[1].program.state_dict()[name]), name


# ---- early stopping -----------------------------------------------------------------------------------------
def test_early_stopping_keeps_the_epoch_of_least_loss_and_price():
    weight, states = 2000.0, []

    def remember(program, row):
        states.append(copy.deepcopy(program.state_dict()))

    found = fit(
        "ppca",
        DATA,
        constraints=[hsic("z", "s", weight=weight)],
        max_epochs=40,
        early_stopping=5,
        learning_rate=0.03,
        kl_warmup=0,
        validation=0.3,
        callbacks=[remember],
        **QUICK,
    )
    priced = found.history["validation"] + weight * found.history["hsic_z_s"]
    best = int(priced.to_numpy().argmin())
    assert best != int(found.history["validation"].to_numpy().argmin()), "the price decides"
    for name, value in found.program.state_dict().items():
        assert torch.equal(value, states[best][name])
    assert len(states) in (best + 6, 40)


def test_training_goes_on_while_prices_rise():
    settings = {"max_epochs": 30, "early_stopping": 2, "learning_rate": 0.3, "kl_warmup": 0, "validation": 0.3}
    bare = fit("ppca", DATA, **settings, **QUICK)
    rising = Constraint(lambda step: step.draw("z").pow(2).mean() + 5, rule=AugmentedLagrangian(rho=1e-4), name="up")
    held = fit("ppca", DATA, constraints=[rising], **settings, **QUICK)
    assert len(bare.history) < 30, "it would stop"
    assert held.history["up_multiplier"].is_monotonic_increasing and len(held.history) == 30


# ---- comparisons --------------------------------------------------------------------------------------------
def test_a_comparison_holds_every_fit_to_the_constraints():
    wanted = hsic("z", "s", weight=5.0)
    study = compare(
        "ppca", DATA, ["elbo", "iwae"], constraints=iter([wanted]), max_epochs=1, draws=30, n_latent=2, progress=False
    )
    assert all(f.constraints == (wanted,) and "hsic_z_s" in f.history for f in study.fits.values())
    again = json.loads(json.dumps(study.settings))
    assert again["constraints"] == [repr(wanted)] and "weight=5.0" in again["constraints"][0]
    assert (
        json.loads(json.dumps(compare("ppca", DATA, ["elbo"], max_epochs=1, draws=30, progress=False).settings))[
            "constraints"
        ]
        == []
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_report_of_a_constrained_comparison_is_complete(pbmc, tmp_path):
    genes = np.sort(np.argsort(-np.asarray(pbmc.X.sum(0)).ravel())[:30])
    study = study_of(
        "scvi",
        pbmc[::5, genes].copy(),
        ["elbo", "iwae"],
        constraints=[hsic("z", "n_genes")],
        max_epochs=1,
        particles=2,
        draws=30,
        posterior_draws=30,
        n_latent=2,
        n_hidden=8,
        progress=False,
    )
    page = report(study, tmp_path / "out")
    assert "hsic" in json.loads((tmp_path / "out" / "settings.json").read_text())["constraints"][0].lower()
    assert "n_genes" in page.read_text()
    assert "hsic_z_n_genes" in pd.read_csv(tmp_path / "out" / "history_elbo.csv")
