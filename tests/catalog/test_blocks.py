"""Axes of blocks of latents, and the Gaussian prior of each pair under which they are found."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from fieldguide.catalog.parts.block_axes import assigned_blocks, block_axes, dependence, diagonal_axes
from fieldguide.catalog.parts.block_prior import BlockPrior, completed
from fieldguide.catalog.parts.coupled_prior import CoupledPrior, WhitenedNormal


# ---- axes of blocks ---------------------------------------------------------------------------------------
@settings(max_examples=10)
@given(st.integers(0, 50))
def test_axes_that_make_all_covariances_diagonal_are_recovered(seed):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(4, 4)) + 2 * np.eye(4)
    scales = rng.uniform(0.2, 3, (12, 4))
    covariances = torch.tensor(mixing @ (scales[..., None] * np.eye(4)) @ mixing.T)
    axes = diagonal_axes(covariances, torch.full((12,), 1e6)).numpy()
    product = np.abs(axes @ mixing)
    product /= product.max(1, keepdims=True)
    rows, columns = linear_sum_assignment(-product)
    assert sorted(columns) == [0, 1, 2, 3] and np.partition(product, -2, 1)[:, -2].max() < 1e-3
    share = torch.full((12,), 1 / 12, dtype=torch.float64)
    assert float(dependence(torch.as_tensor(axes), covariances, share)) < 1e-5
    average = (axes @ covariances.numpy().mean(0) @ axes.T).diagonal()
    np.testing.assert_allclose(average, 1, rtol=1e-6)


@pytest.mark.parametrize("by", ["means", "scales"])
@given(st.integers(0, 50))
def test_axes_are_given_to_the_block_that_their_law_speaks_for(by, seed):
    rng = np.random.default_rng(seed)
    context, treatment = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(4), indexing="ij"))
    laws = {"x": (context, 2), "tx": (context * 4 + treatment, 3), "t": (treatment, 1)}
    means, variances = [], []
    for group, size in laws.values():
        levels, widths = rng.normal(0, 2, (12, size)), rng.uniform(0.2, 1, (12, size))
        levels, widths = (levels, np.ones_like(widths)) if by == "means" else (np.zeros_like(levels), widths)
        means.append(levels[group]), variances.append(widths[group])
    shuffled = rng.permutation(6)
    table = [np.hstack(v)[:, shuffled] for v in (means, variances)]
    order = assigned_blocks(*table, np.full(12, 200), context, treatment, (2, 3, 1))
    blocks = np.array([0, 0, 1, 1, 1, 2])
    assert (blocks[shuffled][order] == blocks).all()


# ---- the prior of each pair -------------------------------------------------------------------------------
def test_the_whitened_normal_is_the_gaussian_of_that_covariance():
    torch.manual_seed(0)
    lower = torch.randn(5, 3, 3, dtype=torch.float64).tril(-1) + torch.diag_embed(torch.rand(5, 3).double() + 0.5)
    loc, value = torch.randn(5, 3).double(), torch.randn(2, 5, 3).double()
    white = torch.linalg.solve_triangular(lower, torch.eye(3).double().expand(5, 3, 3), upper=False)
    ours, theirs = WhitenedNormal(loc, white), MultivariateNormal(loc, scale_tril=lower)
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.expand((2, 5)).log_prob(value), theirs.log_prob(value))
    guide = Normal(torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.2)
    exact = kl_divergence(MultivariateNormal(guide.loc, torch.diag_embed(guide.scale**2)), theirs)
    torch.testing.assert_close(kl_divergence(torch.distributions.Independent(guide, 1), ours), exact)
    drawn = ours.rsample((20_000,))
    torch.testing.assert_close(drawn.mean(0), loc, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn[:, 0].T.cov(), theirs.covariance_matrix[0], atol=0.2, rtol=0.05)


def test_the_coupled_prior_is_set_to_the_moments_of_its_cells():
    torch.manual_seed(0)
    conditions = torch.tensor([[0, -1], [0, 1], [1, 1]]).repeat_interleave(torch.tensor([300, 200, 100]), 0)
    prior = CoupledPrior(conditions, 3)
    mixing = torch.randn(3, 3)
    loc = torch.randn(600, 3) @ mixing + conditions[:, :1] * 2
    scale = torch.full((600, 3), 0.3)
    prior.update(loc, scale, prior.rows(conditions))  # all cells at once
    rows = prior.rows(conditions)
    for code in range(3):
        own = loc[rows == code]
        torch.testing.assert_close(prior.mean[code], own.mean(0), atol=1e-5, rtol=1e-5)
        second = (own - own.mean(0)).T @ (own - own.mean(0)) / len(own) + 0.09 * torch.eye(3)
        torch.testing.assert_close(prior.covariance[code], second, atol=1e-4, rtol=1e-4)
    assert prior.rows(torch.tensor([[7, 7], [0, 1]])).tolist()[0] == 3, "a condition that training has not"
    torch.testing.assert_close(prior.mean[3], loc.mean(0), atol=1e-4, rtol=1e-4)  # is any of those it has
    whole = (loc - loc.mean(0)).T @ (loc - loc.mean(0)) / 600 + 0.09 * torch.eye(3)
    torch.testing.assert_close(prior.covariance[3], whole, atol=1e-4, rtol=1e-4)
    z = torch.randn(600, 3)
    first = prior.block(rows, [], 2).log_prob(z[:, :2])
    chain = first + prior.block(rows, [z[:, :2]], 1).log_prob(z[:, 2:])
    whole = WhitenedNormal(prior.mean[rows], prior.white[rows]).log_prob(z)
    torch.testing.assert_close(chain, whole, atol=1e-3, rtol=1e-4)


def some_laws(rng, context, treatment):
    """Means and scales [K, 6] of two latents of each block, in each condition."""
    groups = (context, context * 9 + treatment, treatment)
    means = [rng.normal(0, 2, (40, 2))[group] for group in groups]
    scales = [rng.uniform(0.3, 1.2, (40, 2))[group] for group in groups]
    return np.hstack(means), np.hstack(scales)


@settings(max_examples=8)
@given(st.integers(0, 50))
def test_axes_are_turned_on_to_those_of_the_blocks(seed):
    """From axes that are not quite right: what is mixed into a block from outside becomes less."""
    rng = np.random.default_rng(seed)
    context, treatment = (v.ravel() for v in np.meshgrid(np.arange(4), np.arange(5), indexing="ij"))
    means, scales = some_laws(rng, context, treatment)
    covariances = torch.as_tensor(scales[..., None] ** 2 * np.eye(6))
    start = torch.as_tensor(np.eye(6) + 0.15 * rng.normal(size=(6, 6)))
    parts = torch.as_tensor(means), covariances, torch.full((20,), 500.0)
    found = block_axes(start, *parts, torch.as_tensor(context), torch.as_tensor(treatment), (2, 2, 2))

    def mixed(axes):
        weight = (axes * torch.as_tensor(scales.mean(0))).abs().numpy()
        inside = np.kron(np.eye(3), np.ones((2, 2)))
        return (weight * (1 - inside)).max() / weight.max()

    assert mixed(found) < 0.08 and mixed(found) < mixed(start) / 2
    average = (found @ covariances.mean(0) @ found.T).diagonal()
    torch.testing.assert_close(average, torch.ones_like(average))


def test_what_differs_between_contexts_is_of_the_contexts_whatever_chance_adds():
    """Two axes in use and two that are not; pairs differ by chance, more so in the former."""
    rng = np.random.default_rng(0)
    context, treatment = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(10), indexing="ij"))
    means = np.hstack((np.array([[-3.0, 2], [0, -3], [3, 1]])[context], np.zeros((30, 2))))
    means += rng.normal(0, [0.2, 0.2, 0.05, 0.05], (30, 4))
    order = assigned_blocks(means, np.ones((30, 4)), np.full(30, 80), context, treatment, (2, 2, 0))
    assert set(order[:2]) == {0, 1}


# ---- pairs that training has not ------------------------------------------------------------------------
def test_a_pair_that_training_has_not_is_predicted_and_its_doubt_stated():
    torch.manual_seed(0)
    context, treatment = torch.randn(6, 1, 1), torch.randn(1, 9, 1)
    table = torch.cat((torch.zeros(6, 1, 1), context + treatment), 1)
    known = torch.ones(6, 10, dtype=torch.bool)
    known[2, 4] = False
    noisy = table + torch.cat((torch.zeros(6, 1, 1), 0.1 * torch.randn(6, 9, 1)), 1)
    filled, spread = completed(noisy.where(known.unsqueeze(-1), torch.tensor(99.0)), known)
    assert abs(float(filled[2, 4] - table[2, 4])) < 0.4 and 0.05 < float(spread[2, 4]) < 0.4
    assert torch.equal(filled[known], noisy[known]) and not spread[known].any()
    alone = torch.cat((torch.zeros(6, 1, 1), torch.randn(6, 9, 1)), 1)  # each pair its own
    filled, spread = completed(alone, known)
    assert abs(float(filled[2, 4])) < 1 and 0.6 < float(spread[2, 4]) < 1.4
    there = known[:, 1:]
    errors = []
    for _ in range(40):  # where pairs have nothing in common, next to their average
        alone = torch.cat((torch.zeros(6, 1, 1), torch.randn(6, 9, 1)), 1)
        errors.append(float(completed(alone, known)[0][2, 4] - alone[:, 1:][there].mean()))
    assert np.mean(np.abs(errors) < 0.05) > 0.7 and np.abs(errors).max() < 1


def test_controls_that_training_has_not_are_like_those_of_the_other_contexts():
    """And pairs that it has stay what they are."""
    prior = BlockPrior(3, 2, {"z_x": 1, "z_tx": 2, "z_t": 1}).eval()
    torch.nn.init.normal_(prior.log_scale_z_tx)
    codes = torch.tensor([[-1], [0], [1]]).repeat(3, 1)
    context = torch.arange(3).repeat_interleave(3)
    prior.count(context, codes)
    before = prior.laws(context, codes)["z_tx"]
    prior.count(context[1:], codes[1:])  # no control in the first context
    after = prior.laws(context, codes)["z_tx"]
    torch.testing.assert_close(after.loc[1:], before.loc[1:])
    torch.testing.assert_close(after.loc[0], before.loc[[3, 6]].mean(0))
    torch.testing.assert_close(after.unknown[0], (before.loc[3] - before.loc[6]).abs() / 2)
    assert not after.unknown[1:].any() and not before.unknown.any()
