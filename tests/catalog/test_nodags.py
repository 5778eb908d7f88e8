"""Graphs with cycles from interventions: the density, recovery from simulated cells, and what is asked of a fit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.catalog import (
    contractive_view,
    edge_strengths,
    sample_under,
)
from fieldguide.catalog.data.cyclic import cyclic_sim, random_graph
from fieldguide.catalog.nodags import NODAGS
from fieldguide.catalog.parts.steady_state import ConvergenceError
from fieldguide.decisions import causal_graph, interventional_scores
from fieldguide.inference import ELBO, SchemaError, fit
from fieldguide.inference.data.interventions import intervention_mask
from fieldguide.inference.step import Step

SEEDS = st.integers(0, 10_000)
SETTINGS = {"validation": 0.0, "early_stopping": None, "progress": False}


def program(seed, n=4, **arguments):
    torch.manual_seed(seed)
    made = NODAGS(n, **arguments)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made.double().eval()


def log_prob(made, x, targets):
    return made.state(targets).log_prob(x - made.centre)


@pytest.fixture(scope="module")
def cycle():
    """A cycle of three genes, and a two-cycle beside it: 2,000 cells of each single intervention."""
    edges = np.zeros((5, 5), dtype=bool)
    edges[[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]] = True
    made = cyclic_sim(3, cells=2000, graph=edges)
    arrays = made.arrays
    shifted = {"x": arrays["x"] + np.float32(10), "targets": arrays["targets"]}
    fitted = fit("nodags", shifted, max_epochs=16, batch_size=500, learning_rate=0.02, seed=0, **SETTINGS)
    return made, fitted


@pytest.mark.parametrize("activation", ["none", "tanh", "selu"])
@pytest.mark.parametrize("forced", [[], [1]], ids=["observed", "forced"])
@pytest.mark.parametrize("variant", [{}, {"n_hidden": 3}, {"precondition": True}], ids=str)
def test_the_density_integrates_to_one(activation, forced, variant):
    made = program(1, 2, activation=activation, contraction=0.8, **variant)
    grid = torch.linspace(-30, 30, 1200, dtype=torch.float64)  # none at 0, where the slope of some jumps
    with torch.no_grad():
        if forced:  # of gene 0 given what gene 1 was forced to
            x = torch.stack([grid, torch.full_like(grid, 0.7)], 1)
        else:
            x = torch.cartesian_prod(grid, grid)
        targets = torch.tensor([forced or [-1]]).expand(len(x), 1)
        total = log_prob(made, x, targets).exp().sum() * (grid[1] - grid[0]) ** (2 - len(forced))
    assert abs(float(total) - 1) < 2e-3


@given(seed=SEEDS, activation=st.sampled_from(["none", "tanh", "gelu"]), hidden=st.sampled_from([0, 2]))
@settings(max_examples=25)
def test_order_of_genes_does_not_matter(seed, activation, hidden):
    made = program(seed, activation=activation, n_hidden=hidden, precondition=True)
    order = torch.randperm(4)
    renamed = program(seed + 1, activation=activation, n_hidden=hidden, precondition=True)
    with torch.no_grad():
        renamed.map.weight.copy_(made.map.weight[:, order][:, :, order])
        if hidden:
            renamed.map.out.copy_(made.map.out[:, order])
        for name in ("loc", "log_noise", "centre"):
            getattr(renamed, name).copy_(getattr(made, name)[order])
        renamed.map.log_scale.copy_(made.map.log_scale[order])
    x, targets = torch.randn(6, 4).double(), torch.tensor([[0, 2], [1, -1], [-1, -1]] * 2)
    place = torch.empty(4, dtype=torch.int64)
    place[order] = torch.arange(4)
    moved = torch.where(targets < 0, -1, place[targets.clamp(min=0)])
    torch.testing.assert_close(log_prob(renamed, x[:, order], moved), log_prob(made, x, targets))


@given(seed=SEEDS, activation=st.sampled_from(["none", "tanh"]))
@settings(max_examples=25)
def test_forced_genes_drop_their_own_term_and_stay_causes(seed, activation):
    made = program(seed, activation=activation)
    x, targets = torch.randn(5, 4).double(), torch.tensor([[1], [1], [3], [0], [-1]])
    with torch.no_grad():
        wanted = []
        mechanism = made.map.settle()
        for row, which in zip(x, targets[:, 0].tolist(), strict=True):
            seen = [i for i in range(4) if i != which]
            off = row - mechanism.value(row) - made.loc
            terms = -0.5 * (off / made.log_noise.exp()).square() - made.log_noise - 0.5 * np.log(2 * np.pi)
            system = (torch.eye(4).double() - mechanism.jacobian(row))[seen][:, seen]
            wanted.append(terms[seen].sum() + torch.linalg.slogdet(system)[1])
        torch.testing.assert_close(log_prob(made, x, targets), torch.stack(wanted))
        made.loc[1] += 5
        made.log_noise[1] += 1
        torch.testing.assert_close(log_prob(made, x, targets)[:2], torch.stack(wanted)[:2])
        assert (log_prob(made, x, targets)[2:] - torch.stack(wanted)[2:]).abs().min() > 1e-3


@pytest.mark.parametrize("method", ["series", "roulette"])
@pytest.mark.parametrize("gates", ["none", "per_cell"])
def test_estimates_agree_with_the_exact_likelihood_on_average(method, gates):
    """The series is long enough for its bias not to show at this bound; the gates are all but open."""
    made = program(5, 3, activation="tanh", contraction=0.5, log_det=method, terms=25, gates=gates, sparsity=0.0)
    if made.map.gates is not None:
        with torch.no_grad():
            made.map.gates.logits.fill_(40.0)
    x, targets = torch.randn(400, 3).double(), torch.tensor([[1], [-1]] * 200)
    with torch.no_grad():
        exact = log_prob(made, x, targets)
        made.train()
        off = torch.stack([log_prob(made, x, targets) - exact for _ in range(60)])
    assert off.std() > 1e-3
    mean = off.mean(1)
    assert abs(float(mean.mean())) < 4 * float(mean.std()) / 60**0.5


def test_the_density_has_exact_gradients():
    made = program(2, 3, activation="tanh", n_hidden=2, precondition=True)
    x, targets = torch.randn(4, 3).double(), torch.tensor([[0], [2], [-1], [1]])
    members = dict(made.named_parameters())

    def total(*values):
        with torch.no_grad():
            for parameter, value in zip(members.values(), values, strict=True):
                parameter.copy_(value)
        return log_prob(made, x, targets).sum()

    start = [p.detach().clone() for p in members.values()]
    found = torch.autograd.grad(total(*start), list(members.values()))
    for i, (name, gradient) in enumerate(zip(members, found, strict=True)):
        direction = torch.randn_like(gradient)
        ends = []
        for sign in (1, -1):
            ends.append(total(*[v + sign * 1e-5 * direction if j == i else v for j, v in enumerate(start)]).item())
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-5), name


def test_the_penalty_is_on_edges_and_in_training_only():
    made = program(0, 3, sparsity=0.5)
    batch = {"x": torch.randn(8, 3).double(), "index": torch.arange(8)}
    plain = made.training_loss(Step(made, batch), ELBO())
    torch.testing.assert_close(plain, ELBO()(Step(made, batch)))
    made.train()
    penalised = made.training_loss(Step(made, batch), ELBO())
    torch.testing.assert_close(penalised - plain, 0.5 * made.map.sizes().sum())
    split = made.training_loss(Step(made, batch), lambda step: {"theta": ELBO()(step)})
    torch.testing.assert_close(split["theta"], penalised)


def test_edges_of_linear_cycles_are_found_and_no_others(cycle):
    made, fitted = cycle
    strengths = edge_strengths(fitted)
    assert ((strengths.to_numpy() >= 0.05) == made.adjacency).all()
    np.testing.assert_allclose(strengths, np.abs(made.weights), atol=0.05)
    assert (causal_graph(strengths, 0.05, acyclic=False).edges.to_numpy() == made.adjacency).all()
    acyclic = causal_graph(strengths, 0.05).edges.to_numpy()
    assert (acyclic <= made.adjacency).all() and acyclic.sum() == 3, "one edge of each of the two cycles is left out"
    np.testing.assert_allclose(fitted.program.log_noise.exp().detach(), 0.5, atol=0.02)
    np.testing.assert_allclose(edge_strengths(fitted, kind="weights"), strengths, atol=1e-6)


def test_scores_of_unseen_interventions_are_near_those_of_the_truth(cycle):
    made, fitted = cycle
    held = made.validation
    scores = interventional_scores(fitted, {"x": held.x + np.float32(10), "targets": held.targets})
    truth = held.x.astype(float) @ made.weights
    forced = intervention_mask(torch.from_numpy(held.targets), 5).numpy()
    terms = 0.5 * ((held.x - truth) / 0.5) ** 2 + np.log(0.5) + 0.5 * np.log(2 * np.pi)
    cells = [
        -np.linalg.slogdet(np.eye(5)[np.ix_(~f, ~f)] - made.weights[np.ix_(~f, ~f)])[1] + t[~f].sum()
        for f, t in zip(forced, terms, strict=True)
    ]
    best = np.mean(cells) / 5
    means = scores.diagnostics["mean"]
    assert abs(means["nll_all"] - best) < 0.01
    assert scores.table["cells"].sum() == len(held.x) == scores.settings["cells"]
    np.testing.assert_allclose(means["nll"], np.sum(cells) / (~forced).sum(), atol=0.02)
    error = np.abs(held.x - truth)
    np.testing.assert_allclose(means["mae_all"], error.mean(), atol=0.02)
    np.testing.assert_allclose(means["mae"], error[~forced].mean(), atol=0.02)
    bound = fitted.bound({"x": held.x + np.float32(10), "targets": held.targets})
    np.testing.assert_allclose(means["nll_all"], -bound.mean() / 5, rtol=1e-5)


def test_samples_of_an_unseen_pair_have_the_moments_of_the_linear_system(cycle):
    _, fitted = cycle
    p = fitted.program
    drawn = sample_under(fitted, [0, 3], {0: 12.0, 3: 9.0}, n=40_000, seed=1).to_numpy()
    with torch.no_grad():
        slope = p.map.settle().jacobian(torch.zeros(5)).double().numpy()
        loc, sd, centre = (t.double().numpy() for t in (p.loc, p.log_noise.exp(), p.centre))
    keep = np.diag([0.0, 1, 1, 0, 1])
    inverse = np.linalg.inv(np.eye(5) - keep @ slope)
    forced = np.array([12.0, 0, 0, 9.0, 0]) - centre * [1, 0, 0, 1, 0]
    mean = inverse @ (keep @ loc + forced) + centre
    covariance = inverse @ keep @ np.diag(sd**2) @ keep @ inverse.T
    seen = [1, 2, 4]
    off = np.abs(drawn.mean(0) - mean)[seen] / np.sqrt(np.diag(covariance)[seen] / 40_000)
    assert off.max() < 3.5
    assert (drawn[:, [0, 3]] == [12.0, 9.0]).all()
    found, wanted = np.cov(drawn.T)[np.ix_(seen, seen)], covariance[np.ix_(seen, seen)]
    error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / 40_000)
    assert (np.abs(found - wanted) < 3.5 * error).all()
    again = sample_under(fitted, [0, 3], [12.0, 9.0], n=40_000, seed=1)
    np.testing.assert_array_equal(again, drawn)
    each = np.random.default_rng(0).normal(size=(5, 1))
    np.testing.assert_array_equal(sample_under(fitted, [2], each, n=5)[2], each[:, 0])
    assert sample_under(fitted, [], [], n=3).shape == (3, 5)


@pytest.mark.parametrize(
    ("targets", "values", "message"),
    [
        ([7], [0.0], "target 7 is none of the 5 genes"),
        ([1, 1], [0.0, 0.0], "given twice"),
        ([1], {2: 0.0}, r"values are for \[2\], targets are \[1\]"),
        ([1], [0.0, 1.0], r"values have shape \(2,\); 1 targets and 4 cells"),
        ([1], [np.nan], "not all finite"),
    ],
    ids=["unknown", "twice", "mapping", "shape", "nan"],
)
def test_wrong_interventions_are_named(cycle, targets, values, message):
    with pytest.raises(ValueError, match=message):
        sample_under(cycle[1], targets, values, n=4)


def test_the_penalty_on_edges_joins_the_loss_of_the_model_where_there_is_one():
    made = program(0, 3, sparsity=0.1).train()
    penalty = 0.1 * made.map.sizes().sum()
    for losses in ({"theta": torch.ones(()), "phi": torch.ones(())}, {"phi": torch.ones(())}, torch.ones(())):
        found = made.training_loss(None, lambda step, losses=losses: losses)
        if not isinstance(losses, dict):
            torch.testing.assert_close(found, 1 + penalty)
            continue
        assert set(found) == set(losses) and found["phi"] == 1, "a group that is not trained stays so"
        if "theta" in losses:
            torch.testing.assert_close(found["theta"], 1 + penalty)


def test_names_of_genes_come_from_the_data():
    import anndata

    made = cyclic_sim(0, 3, 60, observational=30)
    data = anndata.AnnData(made.x)
    data.var_names = ["tp53", "myc", "jun"]
    data.obs["targets"] = [", ".join(data.var_names[c] for c in row if c >= 0) or "control" for row in made.targets]
    fitted = fit("nodags", data, max_epochs=2, activation="tanh", **SETTINGS)
    strengths = edge_strengths(fitted)
    assert list(strengths.index) == list(strengths.columns) == ["tp53", "myc", "jun"]
    assert (np.diag(strengths) == 0).all()
    assert list(interventional_scores(fitted).table.index) == ["control", "jun", "myc", "tp53"]
    assert (sample_under(fitted, "jun", [2.0], n=4)["jun"] == 2.0).all()
    np.testing.assert_allclose(fitted.program.centre, made.x[180:].mean(0), atol=1e-5)
    with pytest.raises(SchemaError, match="target 'fos' of cell '0'"):
        wrong = data.copy()
        wrong.obs["targets"] = ["fos", *data.obs["targets"][1:]]
        fitted.read(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_det": "guess"}, "log_det must be one of exact, series, roulette"),
        ({"contraction": None, "log_det": "series"}, "needs a contractive map"),
        ({"sparsity": -1.0}, "sparsity must be a number of at least 0, not -1"),
    ],
    ids=["log_det", "contraction", "sparsity"],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NODAGS(3, **arguments)


def test_what_cannot_be_answered_is_an_error(cycle):
    with pytest.raises(ValueError, match="no gates"):
        edge_strengths(cycle[1], kind="gates")
    with pytest.raises(ValueError, match="kind must be one of"):
        edge_strengths(cycle[1], kind="mass")
    ppca = fit("ppca", {"x": cycle[0].x[:50]}, max_epochs=1, **SETTINGS)
    with pytest.raises(TypeError, match="PPCA is no fit of a graph with cycles"):
        edge_strengths(ppca)
    always = {"x": cycle[0].x[:50], "targets": np.zeros(50, dtype=int)}
    with pytest.raises(ValueError, match="gene number 0 is a target in every training cell"):
        fit("nodags", always, max_epochs=1, **SETTINGS)
    loose = program(0, 2, contraction=None)
    with torch.no_grad():
        loose.map.weight.fill_(3.0)
    with pytest.raises(ConvergenceError, match="not contractive"):
        loose.state(torch.tensor([[-1]])).sample()


@pytest.mark.parametrize(
    "variant", [{"gates": "per_cell"}, {"gates": "shared", "log_det": "series"}, {"log_det": "roulette"}], ids=str
)
def test_published_variants_train(variant):
    made = cyclic_sim(1, 4, 250)
    fitted = fit(
        "nodags",
        made.arrays,
        max_epochs=12,
        batch_size=250,
        learning_rate=0.1,
        contraction=0.95,
        sparsity=0.001,
        **variant,
        **SETTINGS,
    )
    kind = "gates" if "gates" in variant else "jacobian"
    strengths = edge_strengths(fitted, kind=kind).to_numpy()
    off = ~np.eye(4, dtype=bool)
    edges, others = strengths[made.adjacency], strengths[off & ~made.adjacency]
    assert np.mean(edges[:, None] > others) >= 0.9, "edges rank above the others"


@given(seed=SEEDS, n=st.integers(2, 8), acyclic=st.booleans())
@settings(max_examples=40)
def test_a_contractive_view_is_the_same_map_in_other_units(seed, n, acyclic):
    rng = np.random.default_rng(seed)
    weights = random_graph(n, min(n, 3.0), rng, acyclic).T * rng.normal(size=(n, n)) * 3
    radius = np.abs(np.linalg.eigvals(np.abs(weights))).max()
    if not acyclic and radius > 0.85:
        weights *= 0.8 / radius
    view, scales = contractive_view(weights, 0.9)
    assert np.linalg.norm(view, 2) < 0.9 and (scales > 0).all()
    np.testing.assert_allclose(view / scales[:, None] * scales, weights, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="spectral radius of its absolute weights is 2"):
        contractive_view([[0, 2], [2, 0]])


@pytest.mark.parametrize("kind", ["linear", "selu", "mixed"])
def test_simulated_cells_solve_their_equations(kind):
    made = cyclic_sim(2, 6, 400, kind=kind, noise=0.5)
    forced = intervention_mask(torch.from_numpy(made.targets), 6).numpy()
    z = made.x.astype(float) @ made.weights
    if kind == "mixed":
        grid = np.linspace(-40, 40, 400_001)
        e = np.interp(made.x, (grid + np.tanh(grid)) / 2, grid) - z
    else:
        e = made.x - (z if kind == "linear" else torch.nn.functional.selu(torch.from_numpy(z)).numpy())
    assert np.abs(e[~forced].std() - 0.5) < 0.02 and np.abs(e[~forced].mean()) < 0.04
    assert np.abs(np.corrcoef(e[forced[:, 0] == 0].T)[0, 1:]).max() < 0.15
    assert made.x[forced].std() == pytest.approx(1, abs=0.06)
    held = made.validation.x.reshape(10, 80, 6).std(1)
    assert ((held < 1e-6).sum(1) == 2).all(), "two genes of each regime are held at one value"
    other = cyclic_sim(2, 6, 400, kind=kind)
    np.testing.assert_array_equal(other.x, made.x)


def test_simulators_refuse_what_has_no_steady_state():
    with pytest.raises(ValueError, match="acyclic=True"):
        cyclic_sim(contractive=False)
    with pytest.raises(ValueError, match="kind must be one of"):
        cyclic_sim(kind="cubic")
    with pytest.raises(ValueError, match="d must be at least 2"):
        random_graph(1, 1.0, np.random.default_rng(0))
    wide = cyclic_sim(0, 6, 5, acyclic=True, contractive=False)
    assert np.linalg.norm(wide.weights, 2) >= 1 and (np.tril(wide.weights) == 0).all()
