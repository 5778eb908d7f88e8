"""sVAE+: the simulator, the exact expectation over masks, closed-form shifts, the turn of the axes, and the entry."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import fieldguide.inference as fi
from fieldguide.catalog import get, learn_perturbations
from fieldguide.catalog.data.sparse_shift import sparse_shift_sim
from fieldguide.catalog.parts.shifts import ExactShifts, SampledShifts
from fieldguide.catalog.parts.turning import turn
from fieldguide.catalog.svae import SVAE
from fieldguide.decisions.perturbations.axes import independent_axes, shift_cost, sparse_axes
from fieldguide.inference.conformance import check

QUICK = {"n_latent": 5, "n_hidden": 64, "max_epochs": 45, "learning_rate": 5e-3, "batch_size": 64, "progress": False}


def mean_correlation(truth, latent):
    """Mean absolute correlation of matched latents, and which latent stands for each true one."""
    size = truth.shape[1]
    table = np.abs(np.corrcoef(truth, latent, rowvar=False)[:size, size:])
    rows, columns = linear_sum_assignment(-table)
    return table[rows, columns].mean(), columns


@pytest.fixture(scope="module")
def world():
    return sparse_shift_sim(0, n_cells=20, n_perturbations=40, n_latent=5, n_genes=50)


@pytest.fixture(scope="module")
def fitted(world):
    known = world.data[world.data.obs["perturbation"].cat.codes < 36].copy()
    return fi.fit("svae", known, seed=1, **QUICK)


# ---- the simulator ----------------------------------------------------------------------------------------
def test_the_simulator_draws_the_published_counts():
    """Sums, density and first values are those of the published simulator after ``numpy.random.seed``."""
    world = sparse_shift_sim(3, n_cells=20, n_perturbations=30, n_latent=6, n_genes=50)
    assert world.data.X.sum(dtype=np.float64) == 50010469
    assert world.targets.mean() == pytest.approx(0.29444444444444445)
    assert world.data.X[:3, :6].astype(int).tolist() == [
        [1141, 1767, 1233, 338, 668, 309],
        [1667, 1166, 1788, 3276, 1170, 1477],
        [659, 2163, 1264, 338, 912, 158],
    ]
    assert list(world.data.obs["perturbation"][:6]) == ["p26", "p22", "p21", "p6", "p26", "p28"]
    large = sparse_shift_sim(0, n_cells=250)
    assert large.data.X.sum(dtype=np.float64) == 100007602 and large.targets.mean() == pytest.approx(0.128)
    assert large.data.X[:2, :6].astype(int).tolist() == [[5, 38, 40, 53, 28, 31], [54, 23, 78, 38, 19, 15]]
    assert large.data.X.sum(1).mean() == pytest.approx(4000, abs=1)


def test_the_simulator_of_the_paper_and_with_few_targets():
    cells = sparse_shift_sim(0, n_cells=20, n_perturbations=10, n_latent=6, n_genes=50, normalise="genes").data
    np.testing.assert_allclose(cells.X.sum(1), 1e5, rtol=0.02)
    few = sparse_shift_sim(0, n_cells=5, n_perturbations=50, n_latent=6, n_genes=50, most_targeted=2)
    assert few.targets[:, :2].any(0).all() and not few.targets[:, 2:].any()
    moved = sparse_shift_sim(1, n_cells=400, n_perturbations=3, n_latent=4, n_genes=50)
    codes, latent = moved.data.obs["perturbation"].cat.codes.to_numpy(), moved.data.obsm["latent"]
    for code, shift in enumerate(moved.shift):
        np.testing.assert_allclose(latent[codes == code].mean(0), shift, atol=5 / 20)
    for wrong in ({"n_latent": 41}, {"n_genes": 30}, {"n_latent": 4, "most_targeted": 5}, {"normalise": "rows"}):
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            sparse_shift_sim(0, **wrong)


# ---- the expectation over masks ---------------------------------------------------------------------------
def some_shifts(seed=0, n=4, size=3):
    torch.manual_seed(seed)
    shifts = ExactShifts(n, size, 0.2).double()
    shifts.mean.copy_(2 * torch.randn(n, size))
    shifts.share.copy_(torch.rand(n, size))
    return shifts


@pytest.mark.parametrize("several", [False, True])
def test_the_expectation_over_masks_is_exact(several):
    """Against all masks: E log Normal(z; sum_a gamma_a mu_a, 1) by enumeration."""
    shifts, z = some_shifts(), torch.randn(2, 3, dtype=torch.float64)
    codes = torch.tensor([[0, 2], [3, -1]] if several else [[1], [3]])
    loc, spread = shifts(codes)
    exact = torch.distributions.Normal(loc, 1.0).log_prob(z).sum(-1) - spread / 2
    total = torch.zeros(2, dtype=torch.float64)
    for cell in range(2):
        parts = [c for c in codes[cell].tolist() if c >= 0]
        for bits in itertools.product((0.0, 1.0), repeat=3 * len(parts)):
            mask = torch.tensor(bits, dtype=torch.float64).view(len(parts), 3)
            chance = torch.where(mask > 0, shifts.share[parts], 1 - shifts.share[parts]).prod()
            mean = (mask * shifts.mean[parts]).sum(0)
            total[cell] += chance * torch.distributions.Normal(mean, 1.0).log_prob(z[cell]).sum()
    torch.testing.assert_close(exact, total, rtol=1e-10, atol=1e-10)


def test_the_exact_bound_is_the_mean_of_bounds_with_drawn_masks(world):
    """As published, a mask is drawn for each cell: within three standard errors of 10,000 draws of one cell."""
    torch.manual_seed(0)
    programs = [SVAE(50, 40, n_latent=5, n_hidden=16, **o).eval() for o in ({}, {"mask": "sampled", "alpha": 5.0})]
    exact, sampled = programs
    mean, logits = torch.randn(40, 5), torch.randn(40, 5)
    exact.shifts.mean.copy_(mean), exact.shifts.share.copy_(torch.sigmoid(logits))
    sampled.shifts.load_state_dict({"mean": mean, "logits": logits})
    sampled.load_state_dict({k: v for k, v in exact.state_dict().items() if "shifts" not in k}, strict=False)
    sampled.shifts.train()  # masks are drawn
    n = 10_000
    batch = {"counts": torch.as_tensor(world.data.X[:1]).expand(n, -1), "perturbation": torch.full((n, 1), 7)}
    values = []
    with torch.no_grad():
        for program in programs:
            torch.manual_seed(1)  # the same z, which are drawn before the masks
            values.append(fi.weigh(program, batch | {"index": torch.arange(n)}, 1, "analytic").log_w[0].double())
    difference = values[1] - values[0]
    error = float(difference.std() / n**0.5)
    assert abs(float(difference.mean())) < 3 * error and 1e-4 < error < 0.1


def test_a_full_mask_is_ivae_and_an_empty_one_vae(world):
    batch = {"counts": torch.as_tensor(world.data.X[:8]), "index": torch.arange(8)}
    batch["perturbation"] = torch.arange(8)[:, None]
    torch.manual_seed(0)
    plus = SVAE(50, 40, n_latent=5, n_hidden=16).eval()
    plus.shifts.mean.normal_()
    bounds = {}
    for prior, share in (("ivae", 1.0), ("vae", 0.0)):
        other = SVAE(50, 40, n_latent=5, n_hidden=16, prior=prior).eval()
        state = plus.state_dict() | {"shifts.share": torch.full((40, 5), share)}
        other.load_state_dict({k: v for k, v in state.items() if k in other.state_dict()})
        plus.shifts.share.fill_(share)
        with torch.no_grad():
            pair = []
            for program in (plus, other):
                torch.manual_seed(3)
                pair.append(fi.weigh(program, batch, 2, "analytic").log_w)
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)
        bounds[prior] = pair[0]
    assert (bounds["ivae"] - bounds["vae"]).abs().max() > 1


# ---- what is set in closed form ---------------------------------------------------------------------------
@given(st.floats(0.01, 3), st.floats(-6, 6))
def test_the_share_is_the_best_there_is(price, mean):
    """Against a grid: the largest psi gain + price log(1 - psi)."""
    shifts = ExactShifts(1, 1, price).double()
    shifts.mean.fill_(mean)
    shifts.settle()
    grid = np.linspace(0, 1 - 1e-9, 20_001)
    best = grid[np.argmax(grid * mean**2 / 2 + price * np.log1p(-grid))]
    assert float(shifts.share) == pytest.approx(best, abs=1e-4)


def test_alpha_is_the_price_of_all_cells():
    by_alpha, by_price = ExactShifts(3, 2, alpha=21.0), ExactShifts(3, 2, price=0.2)
    for shifts in (by_alpha, by_price):
        shifts.n_cells.fill_(100)
        shifts.mean.copy_(torch.tensor([[0.5, 1.0], [-3.0, 0.7], [0.0, 2.0]]))
        shifts.settle()
    torch.testing.assert_close(by_alpha.share, by_price.share)
    assert by_alpha.share[0, 0] == 0 and by_alpha.share[1, 0] == pytest.approx(1 - 0.2 / 4.5)


def test_shifts_become_the_means_of_their_cells():
    """Without a price, passes over the cells of single perturbations end at centroids, of several at least squares."""
    rng = np.random.default_rng(0)
    codes = np.array([[0, -1], [1, -1], [2, -1], [0, 1], [1, 2], [-1, -1]]).repeat(30, 0)
    truth = rng.normal(size=(3, 2))
    design = np.stack([(codes == k).any(1) for k in range(3)], 1).astype(float)
    z = design @ truth + rng.normal(size=(len(codes), 2))
    shifts = ExactShifts(3, 2, masked=False).double()
    shifts.n_cells.copy_(torch.as_tensor(design.sum(0)))
    for _ in range(60):
        shifts.update(torch.as_tensor(z), torch.as_tensor(codes))
    np.testing.assert_allclose(shifts.mean, np.linalg.lstsq(design, z, rcond=None)[0], atol=1e-6)
    learnt = ExactShifts(3, 2, masked=False).double()
    learnt.mean[0] = torch.as_tensor(truth[0])
    learnt.learn(torch.as_tensor(z), torch.as_tensor(codes), 1)
    rest = np.linalg.lstsq(design[:, 1:], z - np.outer(design[:, 0], truth[0]), rcond=None)[0]
    np.testing.assert_allclose(learnt.mean, np.concatenate([truth[:1], rest]), atol=1e-10)
    with pytest.raises(ValueError, match="occur together alone"):
        learnt.learn(torch.as_tensor(z[:60]), torch.tensor([[1, 2]]).repeat(60, 1), 1)


def test_drawn_masks_are_right_in_the_mean_and_carry_the_published_gradient():
    torch.manual_seed(0)
    shifts = SampledShifts(2, 3).double()
    with torch.no_grad():
        shifts.logits.uniform_(-2, 2)
    codes = torch.tensor([[0, 1]]).repeat(40_000, 1)
    moved, spread = shifts(codes)
    assert not spread.any() and set(torch.unique(moved[:, 0]).tolist()) <= {
        float((a * shifts.mean[0, 0] + b * shifts.mean[1, 0]).detach()) for a in (0, 1) for b in (0, 1)
    }
    expected = (shifts.share * shifts.mean).sum(0)
    torch.testing.assert_close(moved.mean(0), expected, atol=0.05, rtol=0)
    gradient = torch.autograd.grad(moved.mean(0).sum(), shifts.logits)[0]
    # of the unrounded mask at temperature 1: the mean of s (1 - s), s = sigmoid(logit + logistic noise)
    noise = torch.logit(torch.rand(200_000, 2, 3, dtype=torch.float64))
    soft = torch.sigmoid(shifts.logits + noise)
    torch.testing.assert_close(gradient, shifts.mean * (soft * (1 - soft)).mean(0), atol=0.02, rtol=0)


def test_the_published_penalties():
    torch.manual_seed(0)
    batch = {"counts": torch.ones(6, 50), "perturbation": torch.arange(6)[:, None] % 4, "index": torch.arange(6)}
    for prior in ("svae+", "svae"):
        program = SVAE(50, 4, n_latent=3, n_hidden=8, prior=prior, mask="sampled", alpha=7.0)
        with torch.no_grad():
            program.shifts.logits.normal_()
        share = program.shifts.share.detach()
        values = []
        for step in (fi.Step(program, batch, 60, {"kl_weight": 0.5}), fi.Step(program, batch, 60, {"kl_weight": 0.5})):
            torch.manual_seed(1)
            objective = fi.ELBO(kl="analytic")
            values.append(program.training_loss(step, objective) if not values else objective(step))
        beta = torch.distributions.Beta(torch.ones(()), 7.0).log_prob(share) - np.log(7)
        added = -0.5 * beta.sum() / 60 if prior == "svae+" else 7 * share.mean()
        assert float(values[0] - values[1]) == pytest.approx(float(added), rel=1e-3)


# ---- the turn of the axes ---------------------------------------------------------------------------------
def test_networks_do_the_same_in_other_axes():
    torch.manual_seed(0)
    program = SVAE(50, 4, n_latent=3, n_hidden=8, n_batch=2).eval()
    x, batches = torch.rand(5, 50), torch.eye(2)[[0, 1, 0, 1, 1]]
    axes, origin = torch.randn(3, 3), torch.randn(3)
    before = program.encoder_z(x).mean
    decoded = program.decoder(before, batches)
    turn(program.encoder_z, program.decoder, axes, origin)
    after = program.encoder_z(x).mean
    torch.testing.assert_close(after, (before - origin) @ axes.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(program.decoder(after, batches), decoded, rtol=1e-4, atol=1e-4)


def test_shifts_are_written_in_the_axes_of_the_latents():
    """The mean of a perturbation's cells is turned as its cells are, and its mask is set there."""
    shifts, axes, origin = some_shifts(), torch.randn(3, 3).double(), torch.randn(3).double()
    cells = shifts.mean.clone()
    shifts.turn(axes, origin)
    torch.testing.assert_close(shifts.mean, (cells - origin) @ axes.T)
    torch.testing.assert_close(shifts.share, (1 - 0.2 / (shifts.mean**2 / 2)).clamp(min=0))


def test_sparse_axes_undo_a_rotation():
    world = sparse_shift_sim(0, n_cells=1, n_perturbations=100, n_latent=6, n_genes=50)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    near = independent_axes(world.shift @ turned)
    axes = sparse_axes(world.shift @ turned, np.ones(100))
    assert np.abs(axes @ turned.T).max(1).min() > 0.9999 > 0.95 > np.abs(near @ turned.T).max(1).min() > 0.85
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([near, axes]), axis=1), 1)
    few = independent_axes(world.shift[:3] @ turned)  # three shifts span two dimensions about their mean
    assert few.shape == (6, 6) and np.linalg.matrix_rank(few) == 6
    np.testing.assert_allclose(independent_axes(np.ones((1, 4))), np.eye(4))


@given(st.floats(-5, 5), st.floats(0.01, 2))
def test_the_cost_of_a_shift_is_the_smallest_over_its_probability(shift, price):
    grid = np.linspace(0, 1 - 1e-9, 20_001)
    best = ((1 - grid) * shift**2 / 2 - price * np.log1p(-grid)).min()
    assert shift_cost(np.array(shift), price) == pytest.approx(best, abs=1e-4)


# ---- the entry --------------------------------------------------------------------------------------------
def test_latents_and_their_targets_are_recovered(fitted, world):
    cells = world.data.obs["perturbation"].cat.codes < 36
    score, order = mean_correlation(world.data.obsm["latent"][cells], fitted.latent())
    assert score > 0.85
    names = fitted.schema.states["perturbation"]["perturbations"]
    truth = world.targets[[int(name[1:]) for name in names]]
    share = fitted.program.shifts.share.numpy()[:, order]
    assert ((share > 0.5) == truth).mean() > 0.8


@pytest.mark.slow
def test_without_the_turn_they_are_not(fitted, world):
    cells = world.data.obs["perturbation"].cat.codes < 36
    truth, known = world.data.obsm["latent"][cells], world.data[cells].copy()
    plain = fi.fit("svae", known, rotate="none", seed=1, **QUICK)
    assert mean_correlation(truth, plain.latent())[0] < mean_correlation(truth, fitted.latent())[0] - 0.1


def test_new_perturbations_are_learnt_with_the_networks_as_they_are(fitted, world, tmp_path):
    new = world.data[world.data.obs["perturbation"].cat.codes >= 36].copy()
    with pytest.raises(fi.SchemaError, match=r"perturbation 'p\d+' of cell 'cell\d+' was not in the training data"):
        fitted.latent(new)
    grown = learn_perturbations(fitted, new)
    assert grown.schema.states["perturbation"]["perturbations"][-4:] == ["p36", "p37", "p38", "p39"]
    old = fitted.program.state_dict()
    for name, value in grown.program.state_dict().items():
        torch.testing.assert_close(value[: len(old[name])] if value.dim() else value, old[name], rtol=0, atol=0)
    z, codes = grown.latent(new), new.obs["perturbation"].astype(str).to_numpy()
    for row in range(36, 40):
        np.testing.assert_allclose(grown.program.shifts.mean[row], z[codes == f"p{row}"].mean(0), atol=1e-4)
    grown.save(tmp_path / "grown")
    again = fi.load(tmp_path / "grown")
    np.testing.assert_array_equal(again.bound(new, fi.IWAE(5)), grown.bound(new, fi.IWAE(5)))
    with pytest.raises(ValueError, match="no perturbation that the fit does not know"):
        learn_perturbations(grown, new)
    with pytest.raises(TypeError, match="'svae' with mask='exact'"):
        learn_perturbations(fi.fit("ppca", {"x": np.eye(8)}, n_latent=2, max_epochs=1, progress=False), new)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"prior": "ivae"}, marks=pytest.mark.slow),
        pytest.param({"prior": "vae"}, marks=pytest.mark.slow),
        {"mask": "sampled", "alpha": 5.0},
        pytest.param({"alpha": 5.0}, marks=pytest.mark.slow),
    ],
)
def test_conformance(world, options):
    small = world.data[:40].copy()
    small.obs["perturbation"] = pd.Categorical(np.resize(["control", "a", "b", "a+b"], 40))
    entry = get("svae")
    with pytest.warns(UserWarning, match="'control' in 'perturbation' is read as no perturbation"):
        check(entry, small, n_latent=2, n_hidden=8, **options)


def test_what_does_not_go_together_is_refused():
    for options, message in (
        ({"mask": "sampled"}, "mask='sampled' needs alpha"),
        ({"alpha": 0.5}, "alpha must be at least 1"),
        ({"prior": "svae"}, "prior='svae' is the published baseline"),
        ({"prior": "beta"}, "prior must be one of"),
        ({"rotate": "varimax"}, "rotate must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            SVAE(50, 4, **options)


def test_an_upper_bound_is_refused_by_name(world):
    """The mask's expectation is a lower bound, of which CUBO would bound nothing."""
    with pytest.raises(ValueError, match="cubo"):
        fi.fit("svae", world.data, objective=fi.CUBO(2, 3), max_epochs=1, progress=False)


def test_a_training_without_the_turn_says_so():
    program = SVAE(50, 4, n_latent=3, n_hidden=8)
    assert program.unfinished() and "were not turned" in program.remarks()[0]
    program.turned.fill_(True)
    assert not program.unfinished() and not program.remarks()
    assert not SVAE(50, 4, n_latent=3, n_hidden=8, rotate="none").unfinished()
    program = SVAE(50, 2, n_latent=3, n_hidden=8, rotate="none")
    assert "more latents (3) than perturbations (2)" in program.remarks()[0]
    assert not SVAE(50, 2, n_latent=3, n_hidden=8, prior="vae").remarks()


def test_beta_weighs_the_divergence_in_training_alone():
    torch.manual_seed(0)
    batch = {"counts": torch.randint(1, 9, (6, 50)).float(), "perturbation": torch.zeros(6, 1).long()}
    batch["index"] = torch.arange(6)
    losses = []
    for beta in (0.0, 1.0, 4.0):
        torch.manual_seed(1)
        program = SVAE(50, 4, n_latent=3, n_hidden=8, prior="vae", beta=beta).eval()
        torch.manual_seed(2)
        losses.append(float(program.training_loss(fi.Step(program, batch, 6), fi.ELBO(kl="analytic"))))
    base = program.encoder_z(batch["counts"].log1p()).base_dist
    unit = torch.distributions.Normal(0.0, 1.0)
    divergence = float(torch.distributions.kl_divergence(base, unit).sum(-1).mean())
    assert losses[1] - losses[0] == pytest.approx(divergence, rel=1e-3)
    assert losses[2] - losses[0] == pytest.approx(4 * divergence, rel=1e-3)


def test_batches_that_share_no_perturbation_are_said(world):
    some = world.data[world.data.obs["perturbation"].cat.codes < 4].copy()
    codes = some.obs["perturbation"].cat.codes.to_numpy()
    quick = QUICK | {"max_epochs": 1, "n_hidden": 8, "rotate": "none"}
    some.obs["batch"] = np.where(codes < 2, "one", "two")
    with pytest.warns(UserWarning, match="each batch has perturbations of its own"):
        fi.fit("svae", some, **quick)
    some.obs["batch"] = np.where((codes < 2) & (np.arange(len(codes)) % 2 == 0), "one", "two")
    assert not fi.fit("svae", some, **quick | {"n_latent": 4}).program.remarks()
