"""Discrete sites that are known for some cells, and those that cannot be summed out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fieldguide.inference import Program, weigh

SUMMED = {"enumerate": "parallel"}


class Masked(Program):
    """Labels observed for some cells: by two masked sites, as Pyro's ``obs_mask`` does, or as an observation of one."""

    def __init__(self, by_mask):
        super().__init__()
        self.by_mask, self.loc = by_mask, nn.Parameter(torch.tensor([-1.0, 0.3, 2.0]))
        self.guide_loc = nn.Parameter(torch.zeros(()))

    def model(self, batch):
        known = batch["label"] >= 0
        prior, label = dist.Categorical(logits=torch.tensor([0.2, 0.0, -0.5])), batch["label"].clamp(min=0)
        with self.cells(batch):
            if self.by_mask:
                with pyro.poutine.mask(mask=known):
                    pyro.sample("c_known", prior, obs=label)
                with pyro.poutine.mask(mask=~known):
                    c = pyro.sample("c", prior, infer=SUMMED)
                c = torch.where(known, label, c)
            else:
                c = pyro.sample("c", prior, infer=SUMMED)
                with pyro.poutine.mask(mask=known):
                    pyro.sample("label", dist.Delta(c), obs=label)
            z = pyro.sample("z", dist.Normal(self.loc[c], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            pyro.sample("z", dist.Normal(self.guide_loc + 0.5 * batch["x"], 1.0))


@pytest.mark.parametrize("by_mask", [True, False])
def test_labels_that_are_known_for_some_cells(by_mask):
    program = Masked(by_mask)
    batch = {"x": torch.tensor([0.5, 0.5, -1.0]), "label": torch.tensor([-1, 2, 0])}
    weights = weigh(program, batch, 4)
    z, c = weights.traced["z"], torch.arange(3).view(3, 1, 1)
    terms = torch.log_softmax(torch.tensor([0.2, 0.0, -0.5]), 0)[c] + dist.Normal(program.loc[c], 1.0).log_prob(z)
    rest = dist.Normal(z, 1.0).log_prob(batch["x"]) - dist.Normal(0.5 * batch["x"], 1.0).log_prob(z)
    expected = torch.stack([torch.logsumexp(terms, 0)[:, 0], terms[2, :, 1], terms[0, :, 2]], 1) + rest
    torch.testing.assert_close(weights.log_w, expected)
    assert torch.isfinite(torch.autograd.grad(weights.log_w.sum(), [program.loc])[0]).all()
    if not by_mask:
        assert weights.draws["c"][:, 1:].tolist() == [[2, 0]] * 4
        torch.testing.assert_close(weights.draws["c_posterior"][:, 1], torch.eye(3)[2].expand(4, 3))


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.floats(-3, 3))
def test_a_weight_lies_between_its_largest_summand_and_that_plus_log_c(logits, x):
    program = Masked(False)
    program.loc.data = torch.tensor(logits)
    weights = weigh(program, {"x": torch.tensor([x]), "label": torch.tensor([-1])}, 2)
    assert torch.isfinite(weights.log_w).all()
    share = weights.draws["c_posterior"]
    torch.testing.assert_close(share.sum(-1), torch.ones(2, 1))
    assert (share >= 0).all()


class InnerPlate(Masked):
    depth = 2

    def model(self, batch):
        with self.cells(batch), pyro.plate("inner", 2, dim=-2):
            pyro.sample("c", dist.Categorical(torch.ones(2)), infer=SUMMED)


class Global(Masked):
    def model(self, batch):
        pyro.sample("c", dist.Categorical(torch.ones(2)), infer=SUMMED)


class Unsaid(Masked):
    def model(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer=SUMMED)
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.deterministic("sum", z + c)


class Endless(Masked):
    def model(self, batch):
        with self.cells(batch):
            pyro.sample("c", dist.Poisson(torch.ones(())), infer=SUMMED)


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (
            InnerPlate,
            NotImplementedError,
            "'c' is enumerated, so it has to be inside the plate 'cells' and in no",
        ),
        (Global, NotImplementedError, "'c' is enumerated, so it has to be inside the plate 'cells'"),
        (Unsaid, ValueError, r"'sum' \(2, 2, 2\) may depend on an enumerated site: give it event_dim="),
        (Endless, ValueError, r"'c' \(Poisson\) has no finite list of values"),
    ],
)
def test_what_cannot_be_summed_out_says_so(program, error, message):
    with pytest.raises(error, match=message):
        weigh(program(False), {"x": torch.zeros(2), "label": torch.zeros(2, dtype=torch.long)}, 2)
