"""The entry hcv and its simulators: the model's terms, the default constraint, and decisions with u drawn anew."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp

from fieldguide.catalog import get
from fieldguide.catalog.data.quality import TwoFactors, linear_gaussian, quality_counts
from fieldguide.catalog.hcv import HCV
from fieldguide.decisions import denoised_expression, differential_expression
from fieldguide.inference import IWAE, Penalty, Posterior, Program, SchemaError, fit, hsic, load, weigh
from fieldguide.inference.conformance import check
from fieldguide.inference.data.minibatches import read

QUICK = {"max_epochs": 2, "progress": False, "n_hidden": 16}


@pytest.fixture(scope="module")
def cells():
    data = quality_counts(400, 40, seed=3)
    return data[:, np.asarray(data.X.sum(0)).ravel() > 0].copy()


# ---- the simulator ----------------------------------------------------------------------------------------
def test_the_simulator_draws_what_it_says():
    data = quality_counts(20_000, 100, seed=1)
    z, u, types = data.obsm["z"], data.obsm["u"], data.obs["cell_type"]
    centres = data.uns["simulation"]["centres"]
    assert np.abs(np.cov(u.T) - np.eye(3)).max() < 0.1, "u ~ Normal(0, I)"
    inside = z[types == "type_2"] - centres[2]
    assert np.abs(inside.mean(0)).max() < 5 / np.sqrt(len(inside)) and np.abs(np.cov(inside.T) - np.eye(5)).max() < 0.3
    assert np.abs([u[types == t].mean(0) for t in types.cat.categories]).max() < 0.15, "u does not know the type"
    assert (data.var["technical"] & ~data.var["biological"]).sum() == 0, "technical genes are biological ones too"
    expression = data.varm["expression"]
    np.testing.assert_allclose(expression.sum(0), 1, rtol=1e-6)
    found = np.stack([np.asarray(data.X[np.asarray(types == t)].sum(0)).ravel() for t in types.cat.categories], 1)
    lfc, seen = np.log2(expression[:, 0] / expression[:, 1]), np.log2((found / found.sum(0))[:, :2] + 1e-9)
    many = found[:, :2].min(1) > 500
    assert many.sum() > 10 and np.corrcoef(lfc[many], (seen[:, 0] - seen[:, 1])[many])[0, 1] > 0.98
    logits = data.obs[[f"logit_{j}" for j in range(5)]].to_numpy()
    predicted = u @ np.linalg.lstsq(u, logits, rcond=None)[0]
    assert np.std(logits - predicted) == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(data.obs["metric_0"], 1 / (1 + np.exp(-logits[:, 0])))


def test_equal_seeds_give_equal_data():
    first, second, other = (quality_counts(50, 20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    pd.testing.assert_frame_equal(first.obs, second.obs)
    assert not np.array_equal(first.X.toarray(), other.X.toarray())


def test_the_linear_gaussian_program_knows_its_posterior():
    """Importance weights of the exact guide are constant, and equal the evidence of x ~ Normal(0, N + L L')."""
    data, program = linear_gaussian(30, 6, n_v=2, n_u=3)
    torch.manual_seed(0)
    exact = TwoFactors(*(t.numpy() for t in program.loadings.split((2, 3), 1)), program.noise.numpy(), exact=True)
    factor = torch.linalg.cholesky(exact.posterior_covariance())
    with torch.no_grad():
        exact.guide_loc.weight.copy_(exact.posterior_map())
        exact.guide_loc.bias.zero_()
        exact.guide_log_scale.copy_(factor.diagonal().log())
        exact.guide_lower.copy_(factor.tril(-1))
        x = torch.as_tensor(data["x"], dtype=torch.float32)
        log_w = weigh(exact, {"x": x}, 4).log_w
        evidence = dist.MultivariateNormal(torch.zeros(6), exact.marginal_covariance().float()).log_prob(x)
    torch.testing.assert_close(log_w, evidence.expand(4, -1), rtol=1e-3, atol=2e-3)
    assert abs(exact.expected_gap()) < 1e-4
    torch.testing.assert_close(exact.aggregated_covariance(), torch.eye(5).double(), atol=1e-4, rtol=0)


# ---- the model --------------------------------------------------------------------------------------------
def test_u_alone_drives_zeros_and_metrics(cells):
    torch.manual_seed(0)
    program = HCV(40, 2, n_hidden=16, library="latent").eval()
    batch = {"counts": torch.ones(5, 40), "quality": torch.zeros(5, 2), "index": torch.arange(5)}

    def sites(z, u):
        latents = {"z": z, "u": u, "log_library": torch.zeros(5)}
        return pyro.poutine.trace(pyro.poutine.condition(program.model, data=latents)).get_trace(batch).nodes

    z, u = torch.randn(2, 5, 5), torch.randn(2, 5, 3)
    first, other_z, other_u = sites(z[0], u[0]), sites(z[1], u[0]), sites(z[0], u[1])
    for name in ("quality", "kept"):
        value = (lambda n: n["fn"].base_dist.loc) if name == "quality" else (lambda n: n["value"])
        assert torch.equal(value(first[name]), value(other_z[name])), f"z moves {name}"
        assert not torch.allclose(value(first[name]), value(other_u[name])), f"u leaves {name}"
    for other in (other_z, other_u):
        assert not torch.allclose(first["rho"]["value"], other["rho"]["value"])


def test_metrics_count_in_the_likelihood(cells):
    """log p of a cell is that of its counts plus that of its metrics, which the guide of u alone sees."""
    torch.manual_seed(0)
    program = HCV(40, 2, n_hidden=16).eval()
    counts = torch.as_tensor(cells.X[:6].toarray())
    batch = {"counts": counts, "quality": torch.randn(6, 2), "index": torch.arange(6)}
    moved = batch | {"quality": batch["quality"] + 1}
    with torch.no_grad():
        guide = [pyro.poutine.trace(program.guide).get_trace(b).nodes for b in (batch, moved)]
        assert torch.equal(guide[0]["z"]["fn"].mean, guide[1]["z"]["fn"].mean)
        assert not torch.allclose(guide[0]["u"]["fn"].mean, guide[1]["u"]["fn"].mean)
        weights = weigh(program, batch, 3)
        technical = program.technical(weights.draws["u"])
        own = program.metrics(technical).log_prob(batch["quality"])
        logits = program.head_rho(
            torch.cat((program.decoder(weights.draws["z"], weights.draws["u"]), weights.draws["u"]), -1)
        )
        library = counts.sum(-1, keepdim=True).log()
        theirs = program.observation(logits, library, program.head_gate(technical)).log_prob(counts)
        torch.testing.assert_close(weights.log_likelihood, own + theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [pytest.param({"likelihood": "nb"}, marks=pytest.mark.slow), {"n_layers": 2, "library": "latent"}],
    ids=str,
)
def test_it_conforms_in_its_variants(arguments, cells):
    cells = cells[:50].copy()
    cells.obs["quality"] = cells.obs["logit_0"]
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    check("hcv", cells, n_hidden=16, **arguments)


def test_the_entry_brings_its_constraint(cells, tmp_path):
    places = {"quality": ["logit_0", "logit_1"]}
    held = fit("hcv", cells, fields=places, **QUICK)
    assert [c.name for c in held.constraints] == ["hsic_z_u"] == [c.name for c in get("hcv").constraints]
    assert np.isfinite(held.history["hsic_z_u"]).all() and held.program.head_quality.out_features == 4
    assert "hsic_z_u" not in fit("hcv", cells, fields=places, constraints=(), **QUICK).history
    other = fit("hcv", cells, fields=places, constraints=[hsic("z", "u", weight=7.0)], **QUICK)
    assert other.constraints[0].rule == Penalty(7.0)
    held.save(tmp_path / "hcv.safetensors")
    again = load(tmp_path / "hcv.safetensors")
    assert again.constraints == held.constraints
    np.testing.assert_allclose(again.latent(cells, "u"), held.latent(site="u"), rtol=1e-5, atol=1e-6)


def test_missing_and_constant_metrics_are_named(cells):
    with pytest.raises(SchemaError, match="no column 'quality' in obs"):
        fit("hcv", cells, **QUICK)
    cells = cells.copy()
    cells.obs["flat"] = 1.0
    with pytest.raises(SchemaError, match="column 'flat' is constant"):
        fit("hcv", cells, fields={"quality": ["logit_0", "flat"]}, **QUICK)
    with pytest.raises(ValueError, match="likelihood must be one of zinb, nb, not 'poisson'"):
        HCV(3, likelihood="poisson")


# ---- decisions with u drawn anew ----------------------------------------------------------------------------
class Tinted(Program):
    """rho = softmax of (z, quality u) for two cells, both known: only decisions are tested with it."""

    nuisance = ("u",)

    def __init__(self) -> None:
        super().__init__()
        self.guide_shift = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("zero", torch.zeros(()))

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.zero, 1.0))
            u = pyro.sample("u", dist.Normal(self.zero, 1.0))
            logits = torch.stack((z, 2 * u, 0 * z), -1)
            pyro.deterministic("rho", torch.softmax(logits, -1), event_dim=1)
            pyro.sample("x", dist.Normal(torch.stack((z, u), -1), 0.01).to_event(1), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(batch["x"][:, 0] + self.guide_shift, 0.01))
            pyro.sample("u", dist.Normal(batch["x"][:, 1], 0.01))


def tinted(x, particles=60):
    return Posterior(Tinted(), read({"x": np.asarray(x, dtype=np.float32)}, None), particles)


def test_expression_is_averaged_over_the_prior_of_u():
    """E_u softmax(z, 2 u, 0) by quadrature, whatever the cell's own u."""
    posterior = tinted(np.repeat([[1.0, 3.0], [1.0, -3.0]], 40, 0))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    logits = np.stack((np.ones(60), 2 * nodes, np.zeros(60)), -1)
    exact = (weights / weights.sum()) @ np.exp(logits - logsumexp(logits, -1)[:, None])
    own = denoised_expression(posterior).table.to_numpy()
    redrawn = denoised_expression(posterior, nuisance=True).table.to_numpy()
    assert abs(own[:40, 1].mean() - own[40:, 1].mean()) > 0.9
    np.testing.assert_allclose(redrawn.mean(0), exact, atol=0.01)
    np.testing.assert_allclose(redrawn[:40].mean(0), redrawn[40:].mean(0), atol=0.02)


@pytest.mark.parametrize("unit", ["group", "cells"])
def test_groups_are_compared_at_equal_quality(unit):
    posterior = tinted(np.repeat([[1.0, 1.5], [1.0, -1.5]], 40, 0))
    groups = {"groupby": np.repeat(["a", "b"], 40), "group": "a", "reference": "b", "calibrate": False, "delta": 0.5}
    redrawn = differential_expression(posterior, unit=unit, draws=400, **groups)
    own = differential_expression(posterior, unit=unit, draws=400, nuisance=False, **groups)
    listed = differential_expression(posterior, unit=unit, draws=400, nuisance=["u"], **groups)
    assert own.table["lfc"].abs().max() > 2 and redrawn.table["lfc"].abs().max() < 0.1
    assert redrawn.settings["nuisance"] == ["u"] and own.settings["nuisance"] == []
    pd.testing.assert_frame_equal(listed.table, redrawn.table)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("w", "nuisance: no latent site 'w'; there are z, u"), (["z", "u"], "nuisance draws every latent site anew")],
)
def test_wrong_nuisance_is_named(wanted, message):
    posterior = tinted(np.zeros((8, 2)))
    with pytest.raises(ValueError, match=message):
        denoised_expression(posterior, nuisance=wanted)


def test_a_program_without_technical_sites_says_so():
    x = {"x": np.random.default_rng(0).normal(size=(20, 3))}
    posterior = fit("ppca", x, n_latent=2, max_epochs=1, progress=False).posterior(particles=3)
    with pytest.raises(ValueError, match="declares no latent site of technical quality"):
        denoised_expression(posterior, nuisance=True)


def test_expected_counts_know_the_zeros_of_quality(cells):
    """Calibration compares observed counts with expected ones, which zero inflation lowers."""
    from fieldguide.decisions.expression.reader import read_expression

    posterior = fit("hcv", cells, fields={"quality": "logit_0"}, library="latent", **QUICK).posterior(particles=4)
    chunk = next(read_expression(posterior, "plugin").chunks(np.arange(6)))
    values = chunk.values
    mean = values["log_library"].exp()[..., None] * values["rho"] * values["kept"]
    torch.testing.assert_close(chunk.expected_counts, mean.mean(0))
    assert (values["kept"] < 1).all()


def test_every_decision_on_expression_works(cells):
    found = fit("hcv", cells, fields={"quality": ["logit_0"]}, objective=IWAE(2), **QUICK)
    with pytest.warns(UserWarning):
        answer = differential_expression(found.posterior(particles=30), "cell_type", "type_0", "type_1", draws=200)
    assert answer.settings["nuisance"] == ["u"] and answer.table[["lfc", "fdr"]].notna().all().all()
