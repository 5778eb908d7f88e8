"""FCR: the simulator, the axes of blocks, the priors, the faults of the released code, and the entry."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch.distributions import Normal

import fieldguide.inference as fi
from fieldguide.catalog import get
from fieldguide.catalog.data.factor_blocks import factor_sim
from fieldguide.catalog.fcr import FCR
from fieldguide.catalog.parts.block_prior import SITES, BlockPrior
from fieldguide.catalog.parts.pair_critic import PairCritic, within_groups
from fieldguide.inference.conformance import check
from fieldguide.inference.step import Step

PLACE = {"counts": None, "values": "X", "perturbation": fi.Perturbations("treatment", control="control")}
BLOCKS = {"n_latent_x": 2, "n_latent_tx": 2, "n_latent_t": 2}
QUICK = {"max_epochs": 60, "batch_size": 128, "kl_warmup": 15, "n_hidden": 64, "progress": False}


@pytest.fixture(scope="module")
def world():
    return factor_sim(1, n_contexts=4, n_treatments=5, n_cells=80)


@pytest.fixture(scope="module")
def fitted(world):
    return fi.fit("fcr", world.data, fields=PLACE, seed=0, **QUICK, **BLOCKS)


def some_batch(values=True, n=6, dose=False):
    """Cells of two contexts under no, one or two of three perturbations."""
    torch.manual_seed(0)
    codes = torch.tensor([[-1, -1], [0, -1], [1, -1], [0, 2], [2, -1], [1, 2]])[:n]
    batch = {"context": torch.arange(n) % 2, "perturbation": codes, "index": torch.arange(n)}
    if dose:
        batch["dose"] = torch.rand(n, 2) * (codes >= 0)
    data = torch.randn(n, 4) if values else torch.randint(1, 9, (n, 4)).float()
    return {("values" if values else "counts"): data} | batch


def small(**given):
    torch.manual_seed(0)
    sizes = {"n_latent_x": 1, "n_latent_tx": 2, "n_latent_t": 1, "n_hidden": 8} | given
    program = FCR(n_values=4, n_context=2, n_perturbation=3, **sizes)
    for name, parameter in program.prior.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "scale" in name else 1.0)
    return program.eval()


# ---- the simulator ----------------------------------------------------------------------------------------
def by_hand(seed, n_x, n_t, n):
    """The recipe once more, in the order in which its numbers are drawn."""
    rng = np.random.default_rng(seed)
    mu = [rng.normal(0, 2, shape) for shape in ((n_x, 2), (n_t, 2), (n_x, n_t, 2))]
    sd = [rng.uniform(0.3, 1, shape) for shape in ((n_x, 2), (n_t, 2), (n_x, n_t, 2))]
    mu[1][0], mu[2][:, 0] = 0, 0
    x, t = np.repeat(np.arange(n_x), n_t * n), np.tile(np.repeat(np.arange(n_t), n), n_x)
    z_x = mu[0][x] + sd[0][x] * rng.normal(size=(len(x), 2))
    z_t = mu[1][t] + sd[1][t] * rng.normal(size=(len(x), 2))
    z_tx = mu[2][x, t] + sd[2][x, t] * rng.normal(size=(len(x), 2))
    weights = [np.linalg.qr(rng.normal(size=(b, a)))[0].T for a, b in ((6, 30), (30, 30), (30, 50))]
    h = np.hstack((z_x, z_tx, z_t))
    for w in weights[:2]:
        h = 1.4 * h @ w
        h = np.where(h > 0, h, 0.2 * h)
    f = h @ weights[2]
    return (f - f.mean(0)) / f.std() + rng.normal(0, 0.1, f.shape), z_x, z_tx, z_t


def test_the_simulator_follows_the_recipe_number_for_number():
    world = factor_sim(0)
    y, z_x, z_tx, z_t = by_hand(0, 3, 6, 200)
    np.testing.assert_array_equal(world.data.X, y.astype(np.float32))
    for name, block in (("z_x", z_x), ("z_tx", z_tx), ("z_t", z_t)):
        np.testing.assert_array_equal(world.data.obsm[name], block)
    assert y.shape == (3600, 50) and y.sum() == pytest.approx(-4.40002613977, abs=1e-6)
    assert list(world.data.obs["treatment"].unique()) == ["control", "t1", "t2", "t3", "t4", "t5"]
    latents = np.hstack([world.data.obsm[s] for s in SITES])
    assert np.std(world.data.X - world.expected(latents)) == pytest.approx(0.1, abs=0.002)


# ---- the priors of blocks ---------------------------------------------------------------------------------
def test_perturbations_and_doses_add_up():
    program = small()
    prior, batch = program.prior, some_batch(dose=True)
    laws = program.laws(batch)
    for b in range(6):
        c, codes, doses = int(batch["context"][b]), batch["perturbation"][b].tolist(), batch["dose"][b].tolist()
        used = [(code, dose) for code, dose in zip(codes, doses, strict=True) if code >= 0]
        t = prior.loc_z_t[0] + sum(dose * prior.loc_z_t[code + 1] for code, dose in used)
        tx = prior.loc_z_tx[c, 0] + sum(dose * prior.loc_z_tx[c, code + 1] for code, dose in used)
        scale = prior.log_scale_z_tx[c, 0] + sum(dose * prior.log_scale_z_tx[c, code + 1] for code, dose in used)
        torch.testing.assert_close(laws["z_t"].loc[b], t)
        torch.testing.assert_close(laws["z_tx"].loc[b], tx)
        torch.testing.assert_close(laws["z_tx"].scale[b], scale.exp())
        torch.testing.assert_close(laws["z_x"].loc[b], prior.loc_z_x[c])


def test_a_block_is_set_to_the_moments_of_conditions():
    """With doses and pairs of perturbations: moments of known coefficients give them back."""
    prior = BlockPrior(2, 3, {"z_x": 1, "z_tx": 2, "z_t": 1})
    kinds = np.array([[c, *k] for c in range(2) for k in ([-1, -1], [0, -1], [1, -1], [2, -1], [0, 2], [1, 2])])
    dose = np.random.default_rng(0).uniform(0.2, 1, (12, 2))
    truth = {s: torch.randn_like(getattr(prior, f"loc_{s}")) for s in SITES}
    with torch.no_grad():
        for site in SITES:
            getattr(prior, f"loc_{site}").copy_(truth[site])
            getattr(prior, f"log_scale_{site}").copy_(truth[site] / 4)
        args = (torch.as_tensor(kinds[:, 0]), torch.as_tensor(kinds[:, 1:]), torch.as_tensor(dose).float())
        laws = prior.laws(*args)
        for site in SITES:
            getattr(prior, f"loc_{site}").zero_()
            prior.start(site, laws[site].loc.numpy(), laws[site].scale.numpy() ** 2, np.full(12, 9), kinds, dose)
            torch.testing.assert_close(getattr(prior, f"loc_{site}").data, truth[site], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(getattr(prior, f"log_scale_{site}").data, truth[site] / 4, atol=1e-3, rtol=1e-3)


def test_the_doubt_of_a_pair_that_training_has_not_is_in_its_prior():
    program = small()
    program.prior.count(torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([[-1], [0], [1], [2], [-1], [0]]))
    assert program.prior.unseen.nonzero().tolist() == [[1, 2], [1, 3]]
    laws = program.laws(some_batch())
    assert (laws["z_tx"].unknown > 0).any(-1).tolist() == [False, False, False, True, False, True]
    two = torch.tensor([[1, 2]])  # of two parts that are unknown alike, squares add
    cell = {"context": torch.tensor([1])}
    one = [program.laws(cell | {"perturbation": c})["z_tx"].unknown for c in (two[:, :1], two[:, 1:])]
    both = program.laws(cell | {"perturbation": two})["z_tx"].unknown
    torch.testing.assert_close(both, (one[0] ** 2 + one[1] ** 2).sqrt())
    program.train()
    assert not program.laws(some_batch())["z_tx"].unknown.any(), "in training pairs are what they are"


def test_centred_interactions_have_no_main_effects():
    program = small(interaction="centred")
    loc = program.prior.interactions(program.prior.loc_z_tx, program.prior.log_scale_z_tx)[0]
    for axis in (0, 1):
        torch.testing.assert_close(loc.mean(axis), torch.zeros_like(loc.mean(axis)), atol=1e-6, rtol=0)


# ---- the faults of the released code (sheet, section 9) ---------------------------------------------------
def toy():
    """Two genes, one latent a block, networks that are linear."""
    torch.manual_seed(3)
    program = FCR(n_values=2, n_context=2, n_perturbation=1, n_latent_x=1, n_latent_tx=1, n_latent_t=1, n_hidden=4)
    batch = {
        "values": torch.randn(3, 2),
        "context": torch.tensor([0, 1, 1]),
        "perturbation": torch.tensor([[-1], [0], [-1]]),
        "index": torch.arange(3),
    }
    return program.double().eval(), {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def test_fault_1_and_9_the_bound_is_the_likelihood_less_kl_of_guide_and_prior_and_nothing_else():
    """By hand, to 1e-6: KL(q || p) with its variances, for the cells one by one; no KL between averages of cells."""
    program, batch = toy()
    weights = fi.weigh(program, batch, 1, "analytic")
    z = torch.cat([weights.draws[s][0] for s in SITES], -1)
    with torch.no_grad():
        mean = program.observation.head(program.decoder(z))
        noise = program.observation.log_noise[0].exp() + 1e-3
        expected = Normal(mean, noise).log_prob(batch["values"]).sum(-1)
        guide, laws = program.encoded(batch), program.laws(batch)
        for site in SITES:
            q, p = guide[site].base_dist, laws[site]
            divergence = torch.log(p.scale / q.scale) + (q.scale**2 + (q.loc - p.loc) ** 2) / (2 * p.scale**2) - 0.5
            expected = expected - divergence.sum(-1)
    torch.testing.assert_close(weights.log_w[0], expected, atol=1e-6, rtol=1e-6)


def test_fault_2_means_of_latents_take_both_signs(fitted):
    for site in SITES:
        loc = fitted.latent(site=site)
        assert (loc.min(0) < 0).all() and (loc.std(0) > 0.1).all()
    assert (fitted.program.prior.loc_z_t < 0).any()


def test_fault_3_the_guide_learns_from_the_critics_and_they_from_it():
    program = small(critic=1.0, axes="free").train()
    step = Step(program, some_batch())
    losses = program.training_loss(step, fi.ELBO())
    plain = fi.ELBO()(step)
    extra = losses["phi"] - plain
    encoder = torch.autograd.grad(extra, program.encoder.head.weight, retain_graph=True)[0]
    assert encoder.abs().max() > 0
    own = torch.autograd.grad(losses["critic"], list(program.critics.parameters()), retain_graph=True)
    assert all(g.abs().max() > 0 for g in own[::2])
    reach = torch.autograd.grad(losses["critic"], program.encoder.head.weight, allow_unused=True)[0]
    assert reach is None, "what catches is trained on constants"
    names = {id(p) for p in program.groups()["theta"]} & {id(p) for p in program.critics.parameters()}
    assert not names


def test_fault_4_it_is_the_block_of_both_that_is_lent_to_another_cell():
    program = small(critic=1.0, axes="free").train()
    seen = {}
    for site, critic in program.critics.items():
        critic.losses = lambda one, both, order, site=site: (
            seen.setdefault(site, (one, both, order)) and (one.sum() + both.sum(),) * 2
        )
    batch = some_batch(n=6)
    step = Step(program, batch)
    program.training_loss(step, fi.ELBO())
    for site in ("z_x", "z_t"):
        one, both, order = seen[site]
        torch.testing.assert_close(one, step.draw(site))
        torch.testing.assert_close(both, step.draw("z_tx"))
        groups = batch["context"] if site == "z_x" else batch["perturbation"]
        assert torch.equal(groups[order], groups)


def test_fault_5_the_loss_of_a_critic_has_no_floor():
    critic = PairCritic(1, 1)
    for parameter in critic.parameters():
        torch.nn.init.zeros_(parameter)
    one = torch.randn(50, 1)
    assert float(critic.losses(one, one, torch.randperm(50))[0].detach()) == pytest.approx(np.log(2))
    critic.forward = lambda first, second: 50 * (1 - 2 * (first != second).squeeze(-1).float())
    assert float(critic.losses(one, one, (torch.arange(50) + 1) % 50)[0]) == pytest.approx(0, abs=1e-6)


def test_fault_6_controls_are_decoded_with_their_own_context_latents():
    program, batch = toy()
    batch = {k: v[[0, 2]] for k, v in batch.items()} | {"index": torch.arange(2)}  # controls
    draws = {s: torch.zeros(2, 1, dtype=torch.float64) for s in SITES}
    means = []
    for moved in (None, *SITES):
        given = draws | ({moved: torch.ones(2, 1, dtype=torch.float64)} if moved else {})
        trace = pyro.poutine.trace(pyro.poutine.condition(program.model, data=given)).get_trace(batch)
        means.append(trace.nodes["mean"]["value"])
    assert all((m - means[0]).abs().max() > 1e-6 for m in means[1:])


def test_fault_7_the_likelihood_is_summed_over_genes():
    program, batch = toy()
    weights = fi.weigh(program, batch, 1, "analytic")
    z = torch.cat([weights.draws[s][0] for s in SITES], -1)
    mean = program.observation.head(program.decoder(z))
    noise = program.observation.log_noise[0].exp() + 1e-3
    per_gene = Normal(mean, noise).log_prob(batch["values"])
    torch.testing.assert_close(weights.log_likelihood[0], per_gene[:, 0] + per_gene[:, 1])


def test_fault_8_minibatches_are_shuffled_and_doses_are_numbers(world):
    seen = []

    class Watched(FCR):
        def training_loss(self, step, objective):
            seen.append(step.batch["context"].unique().numel())
            return super().training_loss(step, objective)

    fi.fit(replace(get("fcr"), program=Watched), world.data, fields=PLACE, **QUICK | {"max_epochs": 1}, **BLOCKS)
    assert np.mean(seen[:-1]) > 3.5, "cells are in the order of contexts in the data"
    program, batch = small(), some_batch(n=2)
    laws = [program.laws(batch | {"dose": torch.full((2, 2), d)})["z_t"].loc[1] for d in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(laws[1], (laws[0] + laws[2]) / 2)


def test_cells_change_partners_within_their_group_alone():
    torch.manual_seed(0)
    groups = torch.randint(0, 4, (400,))
    order = within_groups(groups)
    assert torch.equal(groups[order], groups) and sorted(order.tolist()) == list(range(400))
    assert float((order == torch.arange(400)).float().mean()) < 0.05


# ---- the entry --------------------------------------------------------------------------------------------
def kernel_r2(latent, truth):
    """R2 of the truth by kernel regression on latents, on the other half of the cells."""
    rows = np.random.default_rng(0).permutation(len(latent))
    a, b = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    latent, truth = ((v - v[a].mean(0)) / v[a].std(0) for v in (latent, truth))
    return KernelRidge(alpha=0.1, kernel="rbf", gamma=0.3).fit(latent[a], truth[a]).score(latent[b], truth[b])


def test_blocks_are_recovered(world, fitted):
    obs = world.data.obs
    pairs = obs["context"].astype(str) + obs["treatment"].astype(str)
    latents = {site: fitted.latent(site=site) for site in SITES}

    def within(values):
        return values - pd.DataFrame(values).groupby(pairs.to_numpy()).transform("mean").to_numpy()

    for site in SITES:
        assert kernel_r2(latents[site], world.data.obsm[site]) > 0.85
        for other in set(SITES) - {site}:
            assert kernel_r2(within(latents[site]), within(world.data.obsm[other])) < 0.1
    assert fitted.program.turned and fitted.program.coupled is None and not fitted.program.remarks()


@pytest.mark.parametrize("blocks", [(2, 0, 2), (0, 2, 0), (1, 2, 0)])
def test_any_block_may_be_left_out(world, blocks):
    sizes = dict(zip(("n_latent_x", "n_latent_tx", "n_latent_t"), blocks, strict=True))
    fitted = fi.fit("fcr", world.data, fields=PLACE, **QUICK | {"max_epochs": 3}, **sizes)
    posterior = fitted.posterior(world.data[:20], 4)
    there = {site for site, size in zip(SITES, blocks, strict=True) if size}
    assert set(posterior.latents) & set(SITES) == there
    assert fitted.program.latent in there and np.isfinite(fitted.held_out_loss())


@pytest.mark.parametrize(
    "given",
    [
        {"axes": "free", "labels": True},
        {"interaction": "centred"},
        {"axes": "free", "critic": 0.5},
        {"n_latent_tx": 0},
        {"dropout": 0.1, "n_layers": 1},
    ],
)
def test_variants_conform(given, world):
    rows = np.arange(0, world.data.n_obs, 40)
    data = {"X": world.data.X[rows], **{k: world.data.obs[k].to_numpy()[rows] for k in ("context", "treatment")}}
    data["dose"] = np.where(data["treatment"] == "control", 0.0, 1 + np.arange(len(rows)) % 3)
    schema = fi.Schema(
        values=fi.Values("X"),
        context=fi.Category("context"),
        perturbation=PLACE["perturbation"],
        dose=fi.Doses("dose", beside="treatment"),
    )
    report = check(replace(get("fcr"), schema=schema), data, n_hidden=16, **BLOCKS | given)
    assert report["passed"].dropna().all()


def test_a_fit_is_read_again_as_it_was(world, fitted, tmp_path):
    fitted.save(tmp_path / "fit.safetensors")
    again = fi.load(tmp_path / "fit.safetensors")
    np.testing.assert_array_equal(again.latent(world.data[:30]), fitted.latent(world.data[:30]))


def test_what_does_not_go_together_is_named(world):
    for wrong, message in (
        ({"labels": True}, "labels=True needs axes='free'"),
        ({"n_latent_x": 0, "n_latent_tx": 0, "n_latent_t": 0}, "there must be a latent"),
        ({"axes": "diagonal"}, "axes"),
        ({"interaction": "sparse"}, "interaction"),
    ):
        with pytest.raises(ValueError, match=message):
            FCR(n_values=4, **wrong)
    for sizes in ({}, {"n_genes": 4, "n_values": 4}):
        with pytest.raises(ValueError, match="counts or values, one of them"):
            FCR(**sizes)
    alone = world.data[~((world.data.obs["context"] == "c1") & (world.data.obs["treatment"] == "control"))].copy()
    with pytest.warns(UserWarning, match="no control of the context 'c1' is among the training cells"):
        fi.fit("fcr", alone, fields=PLACE, **QUICK | {"max_epochs": 2}, **BLOCKS)


def test_without_the_turn_it_is_said(world):
    program = small()
    assert program.unfinished() and "were not turned" in program.remarks()[0]
    assert not small(axes="free").unfinished()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_are_recovered_on_every_seed(seed):
    """Targets of the sheet, with one start: its plain training ends at .08 to .99."""
    world = factor_sim(seed)
    training = {"max_epochs": 200, "batch_size": 256, "kl_warmup": 30, "progress": False}
    fitted = fi.fit("fcr", world.data, fields=PLACE, **training, **BLOCKS)
    for site in SITES:
        assert kernel_r2(fitted.latent(site=site), world.data.obsm[site]) > 0.9
