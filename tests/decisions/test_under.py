"""Cells drawn under interventions never made: against closed forms of linear systems, and gene by gene."""

import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.catalog import sample_under
from fieldguide.catalog.data.factor_graphs import factor_graph_sim
from fieldguide.decisions import causal_graph, graph_ensemble, interventional_scores
from fieldguide.decisions.graphs.program import GraphProgram
from fieldguide.inference import fit

D, N = 5, 60_000
SHORT = {"rank": 2, "max_epochs": 2, "early_stopping": None, "progress": False}


@pytest.fixture(scope="module")
def world():
    return factor_graph_sim(1, d=D, m=2, n_regimes=D, cells=40, p_factor=0.5, p_gene=0.5)


def chain(world, **arguments):
    """A fit whose graph is made: genes 0, 1 -> factor 0 -> genes 2, 3; gene 3 -> factor 1 -> gene 4."""
    fitted = fit("dcdfg", world.data, **(SHORT | arguments))
    program = fitted.program
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in program.named_parameters():
            if name != "guide_logits":
                parameter.copy_(torch.randn(parameter.shape) * (0.5 if "log_variance" in name else 1.0))
        program.kept.zero_()
        for j, f, way in [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1), (3, 1, 0), (4, 1, 1)]:
            program.kept[j, f, way] = 1.0
        program.kept[..., 2] = 1 - program.kept[..., :2].sum(-1)
        program.settled.fill_(True)
    return fitted


def coefficients(program):
    """Of a linear fit: slope [effect, cause], constant and standard deviation of each gene, in units of the data."""
    into, out_of = program.kept[..., 0].double(), program.kept[..., 1].double()
    inner = (out_of * program.decoder.double()) @ (program.weight.double() * into.T)
    spread, centre = program.spread.double(), program.centre.double()
    slope = spread[:, None] * inner / spread
    constant = centre + spread * program.bias.double() - slope @ centre
    sd = spread * (program.log_variance.double().exp() + 1e-4).sqrt()
    return [t.detach().numpy() for t in (slope, constant, sd)]


@pytest.mark.parametrize("targets", [[], ["gene3"], ["gene0", "gene3"], ["gene4"]], ids=["none", "one", "two", "last"])
def test_moments_of_an_acyclic_linear_fit_are_those_of_the_system(world, targets):
    fitted = chain(world, mechanism="linear")
    slope, constant, sd = coefficients(fitted.program)
    values = {t: 1.5 - k for k, t in enumerate(targets)}
    drawn = sample_under(fitted, targets, values or None, n=N, seed=3)
    assert list(drawn.columns) == list(world.data.var_names)
    on = np.array([g in targets for g in drawn.columns])
    keep = np.diag(1.0 - on)
    inverse = np.linalg.inv(np.eye(D) - keep @ slope)
    held = np.array([values.get(g, 0.0) for g in drawn.columns])
    mean = inverse @ (keep @ constant + held)
    covariance = inverse @ keep @ np.diag(sd**2) @ keep @ inverse.T
    assert (drawn.loc[:, on] == held[on]).all(axis=None)
    free = ~on
    off = (drawn.to_numpy().mean(0) - mean)[free] / np.sqrt(np.diag(covariance)[free] / N)
    assert np.abs(off).max() < 3.5
    found, wanted = np.cov(drawn.to_numpy().T)[np.ix_(free, free)], covariance[np.ix_(free, free)]
    error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / N)
    assert (np.abs(found - wanted) < 3.5 * error).all()


@pytest.mark.parametrize("mechanism", ["mlp", "linear"])
def test_each_gene_follows_its_parents(world, mechanism):
    """With the same noise, gene by gene in causal order, each from the equation that the likelihood has."""
    fitted = chain(world, mechanism=mechanism)
    program = fitted.program
    order = causal_graph(fitted).order
    drawn = sample_under(fitted, ["gene3"], np.linspace(-1, 1, 7)[:, None], n=7, seed=5)
    noise = torch.randn(7, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64).float()
    x = torch.full((7, D), 7.0)
    targets = torch.full((7, 1), 3)
    for gene in order:
        j = list(world.data.var_names).index(gene)
        with torch.no_grad():
            mean, scale, _ = program.conditional({"x": x, "targets": targets}, program.kept)
        x[:, j] = torch.linspace(-1, 1, 7) if j == 3 else (mean + scale * noise)[:, j]
    np.testing.assert_allclose(drawn, x, rtol=1e-5, atol=1e-6)
    again = sample_under(fitted, ["gene3"], np.linspace(-1, 1, 7)[:, None], n=7, seed=5)
    np.testing.assert_array_equal(again, drawn)


def test_imperfect_interventions_shift_their_targets(world):
    fitted = chain(world, mechanism="linear", interventions="imperfect")
    program = fitted.program
    plain, shifted = (sample_under(fitted, t, n=N, seed=2).to_numpy() for t in ([], ["gene3"]))
    slope, constant, _ = coefficients(program)
    gain, shift, spread, centre = (
        t.detach().double().numpy()[3] for t in (program.gain, program.shift, program.spread, program.centre)
    )
    standard = (slope[3] @ plain.T + constant[3] - centre) / spread
    wanted = centre + spread * (gain * standard.mean() + shift)
    own = spread * float((program.own_log_variance[3].detach().exp() + 1e-4).sqrt())
    assert abs(shifted[:, 3].mean() - wanted) < 3.5 * np.sqrt((own**2 + (gain * spread * standard.std()) ** 2) / N)
    np.testing.assert_array_equal(plain[:, :3], shifted[:, :3])
    assert abs(shifted[:, 4].mean() - plain[:, 4].mean()) > 0.01, "what it acts on follows"
    with pytest.raises(ValueError, match="leave values out"):
        sample_under(fitted, ["gene3"], [1.0])


def test_before_the_graph_is_settled_the_one_that_would_be_is_drawn_from(world):
    fitted = chain(world, mechanism="linear", settle=1.0)
    program = fitted.program
    settled = sample_under(fitted, [], n=5)
    with torch.no_grad():
        program.guide_logits.copy_(20 * (program.kept - 0.5))
        program.settled.fill_(False)
    np.testing.assert_allclose(sample_under(fitted, [], n=5), settled)


def test_what_cannot_be_drawn(world):
    fitted = chain(world)
    assert isinstance(fitted.program, GraphProgram)
    with pytest.raises(ValueError, match="what the targets .'gene1'. are forced to"):
        sample_under(fitted, "gene1")
    with pytest.raises(ValueError, match="target 'tp53' is none of the 5 genes"):
        sample_under(fitted, ["tp53"], [0.0])
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, not 0"):
        sample_under(fitted, [], n=0)
    with pytest.raises(TypeError, match="tolerance"):
        sample_under(fitted, [], n=2, tolerance=1e-3)
    other = fit("ppca", {"x": world.data.X}, n_latent=1, max_epochs=1, progress=False)
    with pytest.raises(TypeError, match=r"PPCA has no causal graph .* needs a method simulate\(noise, targets, held\)"):
        sample_under(other, [])
    with pytest.raises(TypeError, match=r"PPCA has no graph: it needs a method edge_weights\(\)"):
        graph_ensemble([other])
    with pytest.raises(TypeError, match=r"it needs a method one_step\(batch\)"):
        interventional_scores(other)


def test_values_of_a_table_are_found_by_the_names_of_their_targets(world):
    fitted, targets = chain(world), ["gene3", "gene0"]
    wanted = sample_under(fitted, targets, {"gene0": 1.0, "gene3": 2.0}, n=3)
    series = pd.Series({"gene0": 1.0, "gene3": 2.0})
    for values in (series, series[::-1], pd.DataFrame([series] * 3), pd.Series([2.0, 1.0]), [2.0, 1.0]):
        pd.testing.assert_frame_equal(sample_under(fitted, targets, values, n=3), wanted)
    for values in (series.rename({"gene0": "gene1"}), pd.Series({"gene0": 1.0, "gene3": 2.0, "gene4": 0.0})):
        with pytest.raises(ValueError, match=r"values are for \['gene[01]', 'gene3'.*targets are \['gene3', 'gene0'\]"):
            sample_under(fitted, targets, values, n=3)
    with pytest.raises(ValueError, match=r"values: the value at \[0\] is masked"):
        sample_under(fitted, targets, np.ma.masked_array([1.0, 2.0], [1, 0]), n=3)
