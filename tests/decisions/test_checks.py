"""Denoised expression, imputation and posterior predictive checks, on programs whose answers are known."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.decisions import denoised_expression, impute, posterior_predictive_check
from fieldguide.inference import Posterior, Program, fit
from fieldguide.inference.data.minibatches import Dataset, read

GENES = 20


class Static(Program):
    """Poisson counts around fixed proportions; the one latent changes nothing, so that its posterior is the prior."""

    def __init__(self, genes: int = GENES, slope: float = 0.0, doubled: float = 0.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-2, 2, genes))
        self.slope, self.doubled = slope, doubled

    def model(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            tilt = self.slope * torch.linspace(-1, 1, len(self.logits))
            effect = (
                self.doubled * batch["batch"][:, None] * torch.linspace(0, 1, len(self.logits))
                if "batch" in batch
                else 0
            )
            rho = pyro.deterministic("rho", torch.softmax(self.logits + effect + z * tilt, -1), event_dim=1)
            rate = rho * batch["counts"].sum(-1, keepdim=True)
            pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=batch["counts"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(torch.zeros(len(batch["counts"]), 1), 1.0).to_event(1))


def posterior(counts, program=None, particles=30, **fields) -> Posterior:
    data = {"counts": np.asarray(counts, dtype=np.float32)} | {n: np.asarray(v) for n, v in fields.items()}
    return Posterior(program or Static(), read(data, None), particles)


def simulated(cells=300, library=60, genes=GENES, seed=0):
    rate = library * torch.softmax(torch.linspace(-2, 2, genes), -1).numpy()
    return np.random.default_rng(seed).poisson(rate, (cells, genes))


# Posterior predictive checks.


def test_data_of_the_model_itself_pass_every_check():
    check = posterior_predictive_check(posterior(simulated()), draws=40)
    table, levels = check.table, check.calibration
    for name in ("zero_fraction", "cv_genes"):
        row = table.loc[name]
        assert abs(row["observed"] - row["replicated"]) < 4 * row["sd"]
        assert 0.005 < row["share_above"] < 0.995
    np.testing.assert_allclose(levels["nominal"], [0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    np.testing.assert_allclose(levels["coverage"], levels["nominal"], atol=0.015)
    assert (levels["coverage_closed"] > levels["coverage"]).all(), "closed intervals of counts hold too much"
    assert table.loc["coverage", "error"] < 0.015
    inside = (check.genes["zero_fraction"] - check.genes["zero_fraction_replicated"]).abs() < 3 * check.genes[
        "zero_fraction_sd"
    ]
    assert inside.mean() > 0.9
    assert len(check.plot().axes) == 3


def test_coverage_is_exact_also_where_most_counts_are_zero():
    check = posterior_predictive_check(posterior(simulated(600, library=3)), draws=19)
    assert check.table.loc["zero_fraction", "observed"] > 0.8
    np.testing.assert_allclose(check.calibration["coverage"], check.calibration["nominal"], atol=0.01)


def test_surplus_zeros_and_surplus_variance_are_seen():
    counts = simulated()
    rng = np.random.default_rng(1)
    holes = counts * (rng.random(counts.shape) > 0.3)
    zeros = posterior_predictive_check(posterior(holes)).table.loc["zero_fraction"]
    assert zeros["observed"] > zeros["replicated"] + 10 * zeros["sd"] and zeros["error"] > 0.1
    assert zeros["share_above"] < 0.05
    bursts = counts * rng.integers(0, 3, counts.shape)
    check = posterior_predictive_check(posterior(bursts))
    assert (
        check.table.loc["cv_genes", "observed"]
        > check.table.loc["cv_genes", "replicated"] + 10 * check.table.loc["cv_genes", "sd"]
    )
    assert check.calibration["coverage"].iloc[-1] < 0.85, "95 % intervals are too narrow"


def test_the_statistics_are_those_of_the_data():
    counts = simulated(50)
    counts[:, 3] = 0
    check = posterior_predictive_check(posterior(counts), draws=5)
    np.testing.assert_allclose(check.genes["zero_fraction"], (counts == 0).mean(0))
    with np.errstate(invalid="ignore"):
        cv = counts.std(0) / counts.mean(0)
    np.testing.assert_allclose(check.genes["cv"], cv, rtol=1e-5)
    assert check.table.loc["zero_fraction", "observed"] == pytest.approx((counts == 0).mean())
    assert np.isnan(check.genes["cv"][3]) and check.table.notna().loc["cv_genes"].all()
    some = posterior_predictive_check(posterior(counts), draws=5, cells=np.arange(10, 30))
    np.testing.assert_allclose(some.genes["zero_fraction"], (counts[10:30] == 0).mean(0))
    pd.testing.assert_frame_equal(check.table, posterior_predictive_check(posterior(counts), draws=5).table)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"draws": 1}, "draws must be a whole number of at least 2, not 1"),
        ({"cells": np.array([2])}, "cells holds 1 cell"),
        ({"estimator": "is"}, "estimator must be one of snis, plugin"),
    ],
)
def test_misuse_of_the_check_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        posterior_predictive_check(posterior(simulated(5)), **options)


def test_a_check_without_counts_is_named():
    lost = posterior(simulated(5))
    lost.dataset = Dataset({"other": lost.dataset.stores["counts"]}, None, None)
    with pytest.raises(ValueError, match="needs a field 'counts'; data has other"):
        posterior_predictive_check(lost)


# Denoised expression and imputation.


def test_means_and_deviations_are_those_of_the_posterior():
    counts = simulated(40)
    source = posterior(counts, Static(slope=0.5), 4000)
    estimate = denoised_expression(source, cells=np.array([3, 5]))
    x = torch.tensor(counts[[3, 5]], dtype=torch.float32)
    grid = torch.linspace(-4, 4, 2001)[:, None, None]
    rho = torch.softmax(source.program.logits.detach() + grid * 0.5 * torch.linspace(-1, 1, GENES), -1)
    rate = rho * x.sum(-1, keepdim=True)
    share = torch.softmax((dist.Poisson(rate).log_prob(x)).sum(-1) - grid[:, :, 0] ** 2 / 2, 0)
    mean = torch.einsum("sb,sbg->bg", share, rho.expand(-1, 2, -1))
    sd = (torch.einsum("sb,sbg->bg", share, rho.expand(-1, 2, -1) ** 2) - mean**2).sqrt()
    np.testing.assert_allclose(estimate.table, mean, rtol=0.02)
    np.testing.assert_allclose(estimate.sd, sd, rtol=0.1)
    assert estimate.table.index.tolist() == [3, 5]
    plugin = denoised_expression(source, estimator="plugin", cells=np.array([3, 5]))
    assert (plugin.sd > 1.5 * estimate.sd).to_numpy().mean() > 0.9, "the guide is the prior: wider"


def test_scales_are_proportions_multiples_and_the_library_of_the_cell():
    counts = simulated(30)
    source = posterior(counts, Static(slope=0.5))
    one = denoised_expression(source)
    np.testing.assert_allclose(one.table.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(denoised_expression(source, scale=1e4).table, 1e4 * one.table, rtol=1e-4)
    np.testing.assert_allclose(denoised_expression(source, scale=1e4).sd, 1e4 * one.sd, rtol=1e-3, atol=1e-3)
    library = denoised_expression(source, scale="library")
    np.testing.assert_allclose(library.table.sum(axis=1), counts.sum(1), rtol=1e-5)
    np.testing.assert_allclose(library.table, impute(source, interval=0).table, rtol=1e-5)
    assert impute(source, interval=0).low is None
    assert len(library.plot().axes) == 1
    named = posterior(counts, Static(slope=0.5), size_factor=np.full(30, 7.0, dtype=np.float32))
    np.testing.assert_allclose(denoised_expression(named, scale="library").table.sum(axis=1), 7, rtol=1e-5)


def test_batches_are_decoded_as_asked():
    counts = simulated(12)
    source = posterior(counts, Static(doubled=1.0), batch=np.arange(12) % 2)
    own, first, second = (denoised_expression(source, batch=b).table.to_numpy() for b in (None, "0", "1"))
    np.testing.assert_allclose(own[::2], first[::2], rtol=1e-5)
    np.testing.assert_allclose(own[1::2], second[1::2], rtol=1e-5)
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(denoised_expression(source, batch=True).table, (first + second) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="batch: no batch 'z'; there are 0, 1"):
        denoised_expression(source, batch="z")
    with pytest.raises(ValueError, match="fitted without a field 'batch'"):
        denoised_expression(posterior(counts), batch="0")


def test_predictive_intervals_hold_new_counts_of_the_same_cells():
    estimate = impute(posterior(simulated(400, library=400)), interval=0.8, draws=200)
    again = simulated(400, library=400, seed=9)
    inside = ((again >= estimate.low) & (again <= estimate.high)).to_numpy().mean()
    assert 0.78 < inside < 0.92, "closed intervals of counts hold at least what they claim"
    assert (estimate.low <= estimate.high).to_numpy().all()
    assert estimate.table.to_numpy().mean() == pytest.approx(20, rel=0.01)


def test_misuse_is_named():
    source = posterior(simulated(5))
    with pytest.raises(ValueError, match="scale must be a number or 'library', not 'librry'"):
        denoised_expression(source, scale="librry")
    with pytest.raises(ValueError, match="interval must be a number"):
        impute(source, interval=90.0)
    with pytest.raises(ValueError, match="estimator must be one of snis, plugin"):
        impute(source, estimator="none")


def test_names_of_cells_and_genes_are_kept(pbmc):
    cells = pbmc[:60, np.asarray(pbmc[:60].X.sum(0)).ravel() > 0].copy()
    before = cells.copy()
    for library in ("observed", "latent"):
        source = fit("scvi", cells, max_epochs=1, n_hidden=8, library=library, progress=False).posterior(particles=30)
        estimate = impute(source, interval=0.5, draws=5)
        for frame in (estimate.table, estimate.sd, estimate.low, estimate.high):
            assert frame.index.equals(cells.obs_names) and list(frame.columns) == list(cells.var_names)
        check = posterior_predictive_check(source, draws=3)
        assert list(check.genes.index) == list(cells.var_names) and check.diagnostics.loc["cells", "cells"] == 60
    assert (before.X != cells.X).nnz == 0 and before.obs.equals(cells.obs) and not cells.uns
