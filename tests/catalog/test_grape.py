"""The game of style transfer: both losses in plain torch, players that leave one another alone, averages, transfers."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import fieldguide.inference as fi
from fieldguide.catalog import get
from fieldguide.catalog.data.screened_images import ops_sim
from fieldguide.inference.conformance import check

TINY = {"n_row": 6, "n_noise": 3, "n_style": 4, "width": 4, "mapping_width": 8, "mapping_layers": 2}
QUICK = {"max_epochs": 2, "progress": False, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def screen():
    return ops_sim(0, 2, 2, 0, 2, 12, 10, size=8).data


def made(**given):
    torch.manual_seed(0)
    program = get("grape").program(2, 8, 3, augment=False, **TINY | given).train()
    batch = {"image": torch.randn(6, 2, 8, 8), "label": torch.arange(6) % 3, "index": torch.arange(6)}
    return program, batch | {"target": torch.tensor([2, 0, 1, 1, 2, 0])}


def test_both_losses_and_their_gradients_are_those_of_plain_torch():
    program, batch = made(style=0.7, cycle=1.3, penalty=2.0)
    step = fi.Step(program, batch)
    losses = program.training_loss(step, fi.ELBO())
    w, x, y, g = step.value("w")[0], batch["image"], batch["label"], batch["target"]
    p = program.live
    s = p["mapping"](p["rows"](g), w)
    fake = p["generator"](x, s)
    row = torch.arange(6)
    generator = F.softplus(-program.critic(fake)[row, g]).mean()
    generator = generator + 0.7 * (p["style"](fake) - s).abs().mean()
    generator = generator + 1.3 * (p["generator"](fake, p["style"](x)) - x).abs().mean()
    real = x.clone().requires_grad_()
    own = program.critic(real)[row, y]
    slope = torch.autograd.grad(own.sum(), real, create_graph=True)[0]
    critic = F.softplus(-own).mean() + F.softplus(program.critic(fake.detach())[row, g]).mean()
    critic = critic + 2.0 / 2 * slope.flatten(1).square().sum(1).mean()
    for name, wanted, members in (
        ("theta", generator, list(program.live.parameters())),
        ("critic", critic, list(program.critic.parameters())),
    ):
        assert losses[name].item() == pytest.approx(wanted.item(), abs=1e-5)
        ours, theirs = (torch.autograd.grad(v, members, retain_graph=True) for v in (losses[name], wanted))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("player", ["theta", "critic"])
def test_the_step_of_a_player_leaves_the_other_as_it_is(player, screen):
    """One is frozen: it does not move, and the other learns as it would."""
    program = get("grape").program(4, 8, 5, augment=False, **TINY)
    frozen = program.critic if player == "theta" else program.live
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    data = {"image": screen.obsm["image"], "label": screen.obs["gene"].cat.codes.to_numpy().astype(np.int64)}
    fi.fit(program, data, validation=0.0, **QUICK)
    for name, value in program.state_dict().items():
        own = name.startswith("live." if player == "theta" else "critic.")
        if own or name.startswith(("live.", "critic.")):
            assert torch.equal(value, before[name]) != own, name


@pytest.mark.slow
def test_it_conforms(screen):
    data = screen.copy()
    data.obs["label"] = data.obs["gene"]
    for given in ({}, {"diversity": 0.5, "partners": 3, "penalty": 0.0, "augment": False}):
        assert check("grape", data, **(TINY | given))["passed"].ne(False).all()


def test_averages_are_used_outside_training_and_follow(screen, tmp_path):
    fitted = fi.fit("grape", screen, fields={"label": "gene"}, **TINY, **QUICK | {"max_epochs": 8})
    program = fitted.program
    rows = [program.live["rows"].weight, program.averaged["rows"].weight]
    start = torch.zeros_like(rows[0])
    assert 0 < float((rows[0] - rows[1]).abs().max()) < float((rows[0] - start).abs().max())
    new = screen[:5].copy()
    new.obs = pd.DataFrame(index=new.obs_names)
    latent = fitted.latent(new)
    assert latent.shape == (5, 4) and np.isfinite(latent).all()
    fitted.save(tmp_path / "fit.safetensors")
    np.testing.assert_array_equal(fi.load(tmp_path / "fit.safetensors").latent(new), latent)
    assert {"critic"} <= set(fitted.history.columns)


def test_a_captured_step_takes_no_slope_of_the_critic(screen):
    with pytest.warns(UserWarning, match="leave compile=True out, or penalty=0"):
        fi.fit("grape", screen, fields={"label": "gene"}, compile=True, **TINY, **QUICK)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"n_label": 1}, "one gene"), ({"partners": 1}, "partners=1"), ({"halvings": 4, "image_size": 24}, "halvings=4")],
    ids=str,
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        get("grape").program(**({"n_channels": 2, "image_size": 16, "n_label": 3} | given))
