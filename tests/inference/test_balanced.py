"""Minibatches of a few labels with several cells of each."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fieldguide.inference as fi


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(4, 30), st.booleans())
def test_each_label_comes_once_in_a_minibatch_with_as_many_cells(seed, cells, size, even):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 6, (60, 1))
    batches = fi.Balanced("y", cells, even).draw(codes, size, rng)
    assert len(batches) == -(-60 // size)
    counts = np.bincount(codes.ravel())
    for rows in batches:
        assert len(set(rows.tolist())) == len(rows)
        kinds, number = np.unique(codes[rows, 0], return_counts=True)
        assert len(kinds) == min(max(size // cells, 1), len(counts[counts > 0]))
        each = max(cells, size // len(kinds))  # few labels fill the minibatch with more cells of each
        np.testing.assert_array_equal(number, np.minimum(each, counts[kinds]))


def test_labels_are_drawn_in_proportion_to_their_cells_or_evenly():
    codes = np.repeat([0, 1, 2], [10, 30, 60])[:, None]
    for even, wanted in ((False, [0.1, 0.3, 0.6]), (True, [1 / 3] * 3)):
        rng = np.random.default_rng(0)
        drawn = [codes[fi.Balanced("y", 2, even).draw(codes, 2, rng)[k][0], 0] for _ in range(40) for k in range(50)]
        np.testing.assert_allclose(np.bincount(drawn) / len(drawn), wanted, atol=0.05)


def test_combinations_of_fields_are_labels():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(5, 0)
    rows = fi.Balanced(["y", "e"], 3).draw(codes, 12, np.random.default_rng(0))[0]
    assert np.unique(codes[rows], axis=0, return_counts=True)[1].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("given", [{"by": ()}, {"by": 3}, {"cells": 1}, {"even": "yes"}], ids=str)
def test_what_does_not_balance_is_named(given: Any):
    with pytest.raises((TypeError, ValueError), match=next(iter(given))):
        fi.Balanced(**given)


class Meeting(fi.Program):
    """A mean by label, and a factor for each cell that has another of its label beside it."""

    def __init__(self, by: str = "y") -> None:
        super().__init__()
        self.balanced = fi.Balanced(by, 4)
        self.loc, self.met = torch.nn.Parameter(torch.zeros(3)), []
        self.guide_shift = torch.nn.Parameter(torch.zeros(1))

    def model(self, batch):
        if self.training:
            self.met.append(torch.bincount(batch["y"], minlength=3).tolist())
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.loc[batch["y"]], 1.0), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(batch["x"] / 2 + self.guide_shift, 0.7))


def test_a_program_says_how_its_minibatches_are_drawn():
    rng = np.random.default_rng(0)
    data = {"y": np.repeat([0, 1, 2], [20, 40, 60]), "x": rng.normal(size=120)}
    program = Meeting()
    fitted = fi.fit(program, data, max_epochs=2, batch_size=8, progress=False, device="cpu")
    met = [counts for counts in program.met if sum(counts) == 8]
    assert len(met) >= 2 * -(-108 // 8) and all(sorted(counts) == [0, 4, 4] for counts in met)
    assert len(fitted.history) == 2 and fitted.latent().shape == (120,)
    with pytest.raises(ValueError, match="minibatches are balanced by 'label', which is no field of one code a cell"):
        fi.fit(Meeting("label"), data, max_epochs=1, progress=False)
