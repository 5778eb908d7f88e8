"""DCD-FG: its equations, interventions and masks against their definitions, and graphs that it finds."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from fieldguide.catalog import get
from fieldguide.catalog.data.factor_graphs import factor_graph_sim
from fieldguide.catalog.dcdfg import DCDFG
from fieldguide.catalog.parts.edge_masks import GumbelOneHot, one_hot_of_largest
from fieldguide.decisions import causal_graph, graph_scores, interventional_scores
from fieldguide.decisions.graphs.dag import acyclic_factors, acyclic_part, is_acyclic
from fieldguide.inference import ELBO, fit, load, split_interventions
from fieldguide.inference.step import Step
from fieldguide.inference.weights.weigh import weigh

FAST = {"max_epochs": 120, "batch_size": 256, "learning_rate": 2e-2, "progress": False}


def minibatch(d=6, cells=12, seed=0):
    torch.manual_seed(seed)
    targets = torch.arange(cells)[:, None] % (d + 1) - 1
    return {"x": torch.randn(cells, d), "targets": targets, "index": torch.arange(cells)}


def program(seed=1, d=6, **arguments):
    torch.manual_seed(seed)
    made = DCDFG(d, **({"rank": 3} | arguments))
    with torch.no_grad():
        made.guide_logits.copy_(torch.randn(made.shape))
        made.bias.copy_(torch.randn(d))
        made.log_variance.copy_(torch.randn(d))
    return made.eval()


@pytest.mark.parametrize("mechanism", ["mlp", "linear"])
@pytest.mark.parametrize("rank", [3, None], ids=str)
def test_the_equations_gene_by_gene(mechanism, rank):
    made, batch = program(mechanism=mechanism, rank=rank), minibatch()
    made.prepare([batch])
    made.settle_graph()
    with torch.no_grad():
        mean, log_density, _ = made.one_step(batch)
        z = (batch["x"] - made.centre) / made.spread
        settled = made.settled_edges()
        into = torch.as_tensor(settled[0] if rank else settled).float()
        h = torch.zeros(len(z), into.shape[1])
        for f in range(into.shape[1]):
            seen = z * into[:, f]
            if mechanism == "linear":
                h[:, f] = seen @ made.weight[f]
                continue
            one = F.leaky_relu(seen @ made.w1[f].T + made.w1_bias[f])
            two = F.leaky_relu(one @ made.w2[f].T + made.w2_bias[f])
            h[:, f] = (two @ made.w3[f].T + made.w3_bias[f])[:, 0]
        wanted = made.bias + (h if rank is None else h @ (torch.as_tensor(settled[1]) * made.decoder).T)
        wanted = made.centre + made.spread * wanted
        torch.testing.assert_close(mean, wanted)
        scale = made.spread * (made.log_variance.exp() + 1e-4).sqrt()
        torch.testing.assert_close(log_density, torch.distributions.Normal(wanted, scale).log_prob(batch["x"]))
        weights = weigh(made, batch, 3)
        counted = torch.where(made.intervened(batch), 0.0, log_density).sum(1)
        torch.testing.assert_close(weights.log_p, counted.expand(3, -1), msg="the settled graph is all there is")


def test_centre_and_spread_leave_interventions_out():
    batch = minibatch(cells=70)
    batch["x"] += 5 * made_mask(batch)
    made = program()
    made.prepare([batch])
    for j in range(6):
        own = batch["x"][batch["targets"][:, 0] != j, j]
        torch.testing.assert_close(made.centre[j], own.mean())
        torch.testing.assert_close(made.spread[j], own.std(correction=0))


def made_mask(batch):
    return F.one_hot(batch["targets"][:, 0] + 1, 7)[:, 1:].float()


@pytest.mark.parametrize("rank", [3, None], ids=str)
def test_a_perfect_intervention_cuts_its_gene_off_and_nothing_else(rank):
    batch = minibatch()
    batch["targets"] = torch.full((12, 1), 2)
    made = program(rank=rank)
    made.guide_logits.data[2, :, 0] = 9.0
    loss = ELBO(1)(Step(made, batch))
    loss.backward()
    for name in ("bias", "log_variance"):
        gradient = getattr(made, name).grad
        assert gradient[2] == 0.0 and (gradient[[0, 1, 3, 4, 5]] != 0).all()
    if rank is None:
        assert not made.w1.grad[2].any() and made.w1.grad[[0, 1]].any()
    else:
        assert not made.decoder.grad[2].any()
    assert (made.w1.grad[:, :, 2] != 0).any(), "the intervened gene still acts on the others"
    imperfect = program(interventions="imperfect")
    ELBO(1)(Step(imperfect, batch)).backward()
    assert imperfect.shift.grad is not None and imperfect.shift.grad[2] != 0 and imperfect.bias.grad[2] != 0
    assert not imperfect.shift.grad[[0, 1, 3, 4, 5]].any()


def test_imperfect_interventions_have_parameters_of_their_own():
    made, batch = program(interventions="imperfect"), minibatch()
    with torch.no_grad():
        made.gain.copy_(torch.randn(6)), made.shift.copy_(torch.randn(6)), made.own_log_variance.copy_(torch.randn(6))
        on = made_mask(batch).bool()
        masks = made.acyclic_masks()
        plain = made.expected(batch["x"], masks)
        mean, scale, counts = made.conditional(batch, masks)
        torch.testing.assert_close(mean, torch.where(on, made.gain * plain + made.shift, plain))
        variance = torch.where(on, made.own_log_variance.exp(), made.log_variance.exp()) + 1e-4
        torch.testing.assert_close(scale, variance.sqrt())
        assert counts.all()


def test_draws_of_masks_are_one_hot_and_follow_their_probabilities():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, -0.5, 0.2], requires_grad=True)
    drawn = GumbelOneHot(logits=logits).rsample((20000,))
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and (drawn.sum(-1) == 1).all()
    share = torch.softmax(logits, -1).detach()
    assert ((drawn.mean(0) - share).abs() < 4 * (share * (1 - share) / 20000).sqrt()).all()
    (gradient,) = torch.autograd.grad(drawn[:, 0].mean(), logits)
    assert gradient[0] > 0 and gradient[1] < 0 and gradient[2] < 0
    assert gradient.sum().abs() < 1e-6
    tied = one_hot_of_largest(torch.tensor([[0.2, 0.4, 0.4], [0.0, 0.0, 0.0]]))
    assert tied.tolist() == [[0, 1, 0], [1, 0, 0]], "equal ones are one"
    one = GumbelOneHot(logits=logits)
    torch.testing.assert_close(one.log_prob(torch.tensor([0.0, 1.0, 0.0])), share.log()[1])


@pytest.mark.parametrize("mechanism", ["mlp", "linear"])
@pytest.mark.parametrize("rank", [3, None], ids=str)
@pytest.mark.parametrize("cells", [3, 23, 120])
def test_a_cell_follows_the_masks_of_its_group_whatever_the_others_are(cells, rank, mechanism):
    made, x = program(mechanism=mechanism, rank=rank), minibatch(cells=cells)["x"]
    for groups in (1, 5, cells):
        masks = GumbelOneHot(logits=made.logits().expand(2, groups, *made.shape)).sample()
        with torch.no_grad():
            alone = [made.expected(x[i : i + 1], masks[:, i % groups, None]) for i in range(cells)]
            torch.testing.assert_close(made.expected(x, masks), torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 5, None], ids=str)
def test_cells_share_the_masks_of_their_group(groups, training):
    made, batch = program(masks=groups).train(training), minibatch(cells=12)
    batch = {"x": batch["x"][:1].expand(12, -1), "index": torch.arange(12)}
    torch.manual_seed(3)
    with torch.no_grad():
        drawn = weigh(made, batch, 2).draws["expected"]
    patterns = len(torch.unique(drawn[0].round(decimals=5), dim=0))
    assert patterns == (groups or 12)
    assert not torch.allclose(drawn[0], drawn[1]), "particles have masks of their own"
    if groups == 2:
        torch.testing.assert_close(drawn[0, ::2], drawn[0, :1].expand(6, -1))


def test_a_prior_on_edges_counts_once_however_many_groups_there_are():
    batch = minibatch()
    wanted = []
    for groups in (1, 3):
        made = program(masks=groups, prior=0.2)
        weights = weigh(made, batch, 2, "analytic")
        q = torch.softmax(made.logits(), -1)
        p = torch.tensor([0.1, 0.1, 0.8])
        wanted = (q * (q.log() - p.log())).sum()
        torch.testing.assert_close(weights.globals, -wanted.expand(2))
    free = weigh(program(masks=3), batch, 2, "analytic")
    assert not free.globals.any(), "no prior, no divergence"


def test_settling_keeps_an_acyclic_graph_for_good():
    made = program(d=8, rank=4)
    before = made.edge_probabilities()
    made.settle_graph()
    into, out_of = made.settled_edges()
    assert is_acyclic(into @ out_of.T) and not (into & out_of).any()
    torch.testing.assert_close(made.edge_probabilities(), before, msg="probabilities stay known")
    a, b = made.edge_weights()
    assert np.array_equal(a.detach().numpy() > 0.5, into) and float((a * (1 - a)).detach().abs().max()) == 0
    a.sum().backward()
    assert not made.guide_logits.grad.any()
    found = causal_graph(type("Fitted", (), {"program": made, "schema": None})())
    assert np.array_equal(found.edges.to_numpy(), (into.astype(int) @ out_of.T.astype(int)) > 0)


@pytest.mark.parametrize("rank", [4, None], ids=str)
def test_a_fixed_order_allows_no_cycle_and_forgets_how_sure_it_was(rank):
    made = program(d=8, rank=rank)
    with torch.no_grad():
        made.guide_logits.mul_(4)
    before, conflict = made.edge_probabilities(), made.left_out()
    assert conflict[0] > 0
    made.fix_order()
    assert made.left_out() == conflict, "what stood against the order is remembered"
    allowed = made.allowed[..., :-1].permute(2, 0, 1).numpy()
    if rank is None:
        pairs, chances = allowed[0], made.edge_probabilities()[None]
        kept, before = acyclic_part(before, 0.0), before[None]
        assert (pairs | pairs.T | np.eye(8, dtype=bool)).all(), "every pair has a direction"
    else:
        pairs, chances = allowed[0] @ allowed[1].T, torch.stack(made.edge_probabilities())
        kept, before = np.stack(acyclic_factors(*before, 0.0)), torch.stack(before)
    assert is_acyclic(pairs) and np.array_equal(allowed, kept if rank else kept[None])
    assert made.allowed[..., -1].all(), "no edge is forced"
    at = torch.tensor(allowed)
    assert (chances[~at] == 0).all() and (chances[at] <= 1 / (1 + np.exp(-1)) + 1e-6).all()
    rises = (before[at][:, None] < before[at]) & (chances[at][:, None] > chances[at] + 1e-6)
    assert rank or not rises.any(), "the more probable stays so"
    drawn = GumbelOneHot(logits=made.logits()).sample((50,))[..., :-1]
    assert not (drawn.bool() & ~made.allowed[..., :-1]).any()
    made.settle_graph()
    settled = made.settled_edges()
    assert not (np.stack(settled if rank else [settled]) & ~allowed).any()


def test_stages_come_at_their_share_and_early_stopping_waits_for_the_last(found_out):
    data, seen = found_out[0].data[::3].copy(), []

    def watch(made, row):
        seen.append((bool((made.against >= 0).all()), bool(made.settled), row["edges"]))

    settings = {"rank": 4, "mechanism": "linear", "validation": 0.1, "progress": False, "callbacks": [watch]}
    shares = {"max_epochs": 20, "order": 0.52, "settle": 0.77, "kl_warmup": 0}
    fitted = fit("dcdfg", data, early_stopping=1, learning_rate=1e-6, **shares, **settings)
    assert [i for i, (fixed, _, _) in enumerate(seen) if fixed][0] == 10 and fitted.program.settled
    assert [i for i, (_, settled, _) in enumerate(seen) if settled][0] == 15, "no epoch before is the best"
    edges = [e for _, _, e in seen[:10]]
    assert edges == pytest.approx([edges[0] * (2 * i + 1) for i in range(10)], rel=0.2), "the price of edges grows"
    seen.clear()
    free = fit("dcdfg", data, max_epochs=5, order=1.0, settle=0.7, **settings)
    assert not any(fixed for fixed, _, _ in seen) and free.program.allowed.all()


@pytest.fixture(scope="module")
def found_out():
    """Twelve genes that act through three factors in linear equations, fitted in seconds."""
    world = factor_graph_sim(101, d=12, m=3, n_regimes=12, cells=125, p_factor=0.4, p_gene=0.4)
    split = split_interventions(world.data, 0.2, seed=0)
    seen = world.data[split.seen].copy()
    return world, split, fit("dcdfg", seen, rank=8, mechanism="linear", validation=split.within_seen, **FAST)


def test_a_small_linear_graph_is_found(found_out):
    world, _, fitted = found_out
    found = causal_graph(fitted)
    assert found.is_dag and list(found.edges.index) == list(world.data.var_names)
    scores, none = graph_scores(found, world.edges), world.edges.to_numpy().sum()
    assert scores["f1"] > 0.6 and scores["shd"] < none / 2, "half of what is left out without a graph"
    share = none / (12 * 11)
    assert scores["average_precision"] > 5 * share, "by chance it is the share of edges"
    acyclicity = fitted.history["acyclicity"]
    assert acyclicity.iloc[-1] == 0.0 and acyclicity.max() > 0
    assert (acyclicity.iloc[: int(0.29 * FAST["max_epochs"])] == 0).all(), "the likelihood settles first"


def test_regimes_that_were_held_out_are_predicted(found_out):
    world, split, fitted = found_out
    held, seen = world.data[split.held_out].copy(), world.data[split.seen]
    scores = interventional_scores(fitted, held)
    assert sorted(scores.table.index) == sorted(split.held_out_regimes) and scores.table["cells"].sum() == held.n_obs
    alone = torch.distributions.Normal(torch.tensor(seen.X.mean(0)), torch.tensor(seen.X.std(0)))
    targets = held.obs["targets"].str.split(",")
    off = np.array([[g not in t for g in held.var_names] for t in targets])
    baseline = float(-alone.log_prob(torch.tensor(held.X)).numpy()[off].mean())
    nll, mae, nll_all = (scores.diagnostics.loc[n, "mean"] for n in ("nll", "mae", "nll_all"))
    assert nll < baseline - 0.05
    with torch.no_grad():
        batch = fitted.read(held).batch(np.arange(held.n_obs))
        expected, log_density, _ = fitted.program.one_step(batch)
    error = np.abs(held.X - expected.numpy())
    assert nll == pytest.approx(-log_density.numpy()[off].mean(), rel=1e-5)
    assert mae == pytest.approx(error[off].mean(), rel=1e-5)
    assert nll_all == pytest.approx(nll * off.mean(), rel=1e-6)
    regime = split.held_out_regimes[0]
    own = (held.obs["targets"] == regime).to_numpy()
    assert scores.table.loc[regime, "mae"] == pytest.approx(error[own][off[own]].mean(), rel=1e-5)


def test_a_settled_fit_is_saved_and_loaded(found_out, tmp_path):
    _, _, fitted = found_out
    fitted.save(tmp_path / "fit.safetensors")
    loaded = load(tmp_path / "fit.safetensors")
    one, other = causal_graph(fitted), causal_graph(loaded)
    pd.testing.assert_frame_equal(one.table, other.table)
    assert loaded.program.settled and [c.name for c in loaded.constraints] == ["acyclicity", "edges"]


def test_observational_data_alone_come_with_a_remark(found_out):
    data = found_out[0].data[:100].copy()
    with pytest.warns(UserWarning, match="no cell has a target"):
        fit("dcdfg", data, fields={"targets": None}, max_epochs=2, progress=False, rank=2)
    with pytest.warns(UserWarning, match="before the graph was settled"):
        fit("dcdfg", data, max_epochs=3, progress=False, rank=2, callbacks=[lambda *_: True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mechanism": "cubic"}, "mechanism must be one of mlp, linear, not 'cubic'"),
        ({"interventions": "soft"}, "interventions must be one of"),
        ({"rank": 0}, "at least 1"),
        ({"prior": 0.1, "masks": None}, "needs masks that cells share"),
        ({"prior": 1.0}, "prior must be a number in .0, 1., not 1"),
        ({"settle": 0.0}, "settle must be a number in .0, 1., not 0"),
        ({"order": 1.2}, "order must be a number in .0, 1., not 1.2"),
        ({"n_features": 1}, "at least two genes, not 1"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCDFG(**({"n_features": 4} | arguments))


def test_scores_need_a_program_that_predicts():
    with pytest.raises(TypeError, match="needs a method one_step"):
        interventional_scores(type("Fitted", (), {"program": torch.nn.Linear(1, 1)})())


@pytest.mark.parametrize("mechanism", ["linear", "nonlinear"])
def test_the_simulator_keeps_its_graph(mechanism):
    world = factor_graph_sim(3, d=12, m=3, n_regimes=6, cells=400, mechanism=mechanism, p_factor=0.4, p_gene=0.4)
    assert is_acyclic(world.edges) and world.edges.to_numpy().any()
    x, targets = world.data.X, world.data.obs["targets"].str.split(",")
    for j, gene in enumerate(world.data.var_names):
        own = x[targets.map(lambda t, g=gene: g in t).to_numpy(), j]
        assert not len(own) or abs(own.mean()) < 5 / len(own) ** 0.5
    parents = [np.flatnonzero(world.edges.to_numpy()[:, j]) for j in range(12)]
    source = next(j for j in range(12) if not len(parents[j]))
    free = ~targets.map(lambda t: world.data.var_names[source] in t).to_numpy()
    assert x[free, source].std() == pytest.approx(0.4, rel=0.1)
    if mechanism == "linear":
        child = max(range(12), key=lambda j: len(parents[j]))
        free = ~targets.map(lambda t: world.data.var_names[child] in t).to_numpy()
        inputs = x[free][:, parents[child]]
        left = x[free, child] - inputs @ np.linalg.lstsq(inputs, x[free, child], rcond=None)[0]
        assert left.std() == pytest.approx(0.4, rel=0.1), "parents explain all but the noise"
    again = factor_graph_sim(3, d=12, m=3, n_regimes=6, cells=400, mechanism=mechanism, p_factor=0.4, p_gene=0.4)
    assert np.array_equal(again.data.X, x)
    for wrong in ({"mechanism": "cubic"}, {"m": 99}, {"most_targets": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "m" not in wrong else "99"):
            factor_graph_sim(0, **wrong)


def test_the_entry_is_what_it_says():
    declared = get("dcdfg")
    assert declared.program is DCDFG and declared.supports == ("elbo",)
    assert [c.group for c in declared.constraints] == ["phi", "phi"]
