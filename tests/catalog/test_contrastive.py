"""Terms that couple a minibatch: against loops over pairs, closed forms, and the values of the published losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.catalog.parts.images.contrastive import dependence, log_partners, supervised_contrast


def some(seed: int, cells: int = 12, size: int = 5, kinds: int = 3):
    torch.manual_seed(seed)
    z = F.normalize(torch.randn(cells, size, dtype=torch.float64), dim=-1)
    return z, torch.randint(0, kinds, (cells,)), torch.randint(0, kinds, (cells,))


@given(st.integers(0, 1000), st.booleans())
def test_the_contrast_is_the_log_probability_of_partners_of_the_label(seed, itself):
    z, y, _ = some(seed)
    for i in range(len(z)):
        scores = {k: float(z[i] @ z[k]) / 0.1 for k in range(len(z)) if itself or k != i}
        top = max(scores.values())
        total = top + np.log(sum(np.exp(s - top) for s in scores.values()))
        logs = [scores[j] - total for j in scores if j != i and y[j] == y[i]]
        wanted = np.mean(logs) if logs else 0.0
        assert float(supervised_contrast(z, y, 0.1, itself)[i]) == pytest.approx(wanted, abs=1e-9)


def test_drawn_partners_have_the_same_likelihood_in_the_mean():
    """The factor is that of an observed categorical site, averaged over which partner is observed."""
    z, y, _ = some(0, 40)
    law = torch.distributions.Categorical(logits=z @ z.T / 0.5)
    torch.manual_seed(0)
    positive = (y[:, None] == y) & ~torch.eye(40, dtype=torch.bool)
    drawn = torch.distributions.Categorical(probs=positive.double()).sample((4000,))
    values = law.log_prob(drawn)
    error = values.std(0) / 4000**0.5
    assert ((values.mean(0) - supervised_contrast(z, y, 0.5)).abs() < 4 * error + 1e-9).all()


@given(st.integers(0, 1000), st.sampled_from([2, 3, 34]))
def test_counts_compare_mean_embeddings(seed, kinds):
    z, _, e = some(seed, 80, kinds=kinds)
    value = dependence(z, e, 0.1, 34, "count")
    for i in range(0, 80, 13):
        same = [j for j in range(80) if j != i and e[j] == e[i]]
        away = [j for j in range(80) if e[j] != e[i]]
        wanted = float((z[i] @ (z[same].mean(0) - z[away].mean(0))).abs()) / 0.1 if same and away else 0.0
        assert float(value[i]) == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(dependence(z, e, 0.1, 34, "count", itself=False), value)


@pytest.mark.parametrize(("kinds", "cells", "wanted"), [(34, 2048, 9.54), (3, 256, 3.38), (2, 256, 0.056)])
def test_the_published_form_has_the_values_of_its_losses(kinds, cells, wanted):
    torch.manual_seed(0)
    z, e = F.normalize(torch.randn(cells, 128), dim=-1), torch.arange(cells) % kinds
    assert float(dependence(z, e, 0.1, 34, "batch").mean()) == pytest.approx(wanted, abs=0.03)


def test_the_published_form_is_half_of_counts_where_two_environments_are_equal():
    z, _, _ = some(3, 64, 8)
    e = torch.arange(64) % 2
    half = 0.5 * dependence(z, e, 0.1, 34, "count")
    assert float((dependence(z, e, 0.1, 34, "batch") - half).abs().max()) < 2 / 64 / 0.1 + 2 / 64 * np.log(
        64 * np.exp(10)
    )


@given(st.integers(0, 1000), st.booleans())
def test_shares_of_environments_are_compared_with_those_among_partners(seed, given_labels):
    z, y, e = some(seed)
    value = dependence(z, e, 0.3, 34, "ce", within=y if given_labels else None)
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and (not given_labels or y[j] == y[i])]
        weight = np.exp([float(z[i] @ z[j]) / 0.3 for j in others])
        wanted = 0.0
        for kind in {int(e[j]) for j in others}:
            at = np.array([int(e[j]) == kind for j in others])
            wanted += at.mean() * np.log(at.mean() / (weight[at].sum() / weight.sum()))
        assert float(value[i]) == pytest.approx(wanted, abs=1e-9)
        assert float(value[i]) > -1e-9


@pytest.mark.parametrize("form", ["count", "ce"])
def test_what_does_not_depend_on_the_environment_costs_nothing(form):
    points = F.normalize(torch.randn(10, 4, dtype=torch.float64), dim=-1)
    z, e = points.repeat(3, 1), torch.arange(3).repeat_interleave(10)  # each point once in each environment
    y = torch.arange(10).repeat(3)
    apart = dependence(z, e, 0.5, 34, form, within=y)
    assert float(apart.max()) < 1e-9
    with_own = dependence(F.normalize(z + F.one_hot(e, 4) * 2.0, dim=-1), e, 0.5, 34, form)
    assert float(with_own.mean()) > 0.1


@pytest.mark.parametrize("form", ["batch", "count", "ce"])
def test_particles_are_kept_apart(form):
    z = F.normalize(torch.randn(3, 8, 4), dim=-1)
    y, e = torch.arange(8) % 2, torch.arange(8) // 4
    both = dependence(z, e, 0.2, 34, form, within=y), supervised_contrast(z, y, 0.2)
    for k in range(3):
        torch.testing.assert_close(both[0][k], dependence(z[k], e, 0.2, 34, form, within=y))
        torch.testing.assert_close(both[1][k], supervised_contrast(z[k], y, 0.2))


@pytest.mark.parametrize("form", ["batch", "count", "ce"])
def test_gradients_are_finite_also_where_a_cell_is_alone(form):
    z = F.normalize(torch.randn(6, 3), dim=-1).requires_grad_()
    y, e = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 2, 2, 1])
    loss = dependence(z, e, 0.1, 34, form, within=y).sum() - supervised_contrast(z, y, 0.1, False).sum()
    loss.backward()
    assert z.grad is not None and torch.isfinite(z.grad).all() and torch.isfinite(loss)
    assert torch.isneginf(log_partners(z, 0.1, itself=False).diagonal()).all()
    with pytest.raises(ValueError, match="invariance must be one of batch, count, ce"):
        dependence(z, e, 0.1, 34, "mean")
