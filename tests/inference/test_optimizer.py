"""The step size falls at the end where it is asked to, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.catalog import get
from fieldguide.inference import fit
from fieldguide.inference.training.optimizer import Optimizer

X = {"x": torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()}


def moves(cooldown, steps, sparse=False):
    """Sizes of the steps of Adam under a constant gradient, which are the step size."""
    program = torch.nn.Embedding(1, 1, sparse=sparse).double()
    optimizer, sizes = Optimizer(program, program.parameters(), 0.1, 1e-12, False, cooldown), []
    for done in range(steps):
        before = program.weight.item()
        optimizer.zero_grad()
        program(torch.tensor([0])).sum().backward()
        optimizer.step(done / steps)
        sizes.append(before - program.weight.item())
    return torch.tensor(sizes).double()


@given(cooldown=st.floats(0, 1), steps=st.integers(1, 40), sparse=st.booleans())
def test_steps_fall_linearly_over_the_last_share_of_the_training(cooldown, steps, sparse):
    progress = torch.arange(steps).double() / steps
    wanted = 0.1 * ((1 - progress) / cooldown).clamp(max=1.0) if cooldown else torch.full((steps,), 0.1).double()
    torch.testing.assert_close(moves(cooldown, steps, sparse), wanted, rtol=1e-4, atol=1e-9)


def test_a_fit_cools_down_as_the_call_says_else_as_the_entry_does_else_not_at_all():
    settings = {"n_latent": 1, "max_epochs": 10, "validation": 0.0, "progress": False, "learning_rate": 0.05}

    def last(entry="ppca", **more):
        """How far each epoch moved the loadings."""
        seen = []
        fitted = fit(entry, X, callbacks=[lambda p, _: seen.append(p.loadings.detach().clone())], **settings | more)
        found = torch.stack(seen).diff(dim=0).norm(dim=(1, 2))
        return fitted.program.loadings, found / found[:4].mean()

    plain, cooled = last(), last(cooldown=0.5)
    assert plain[1][-1] > 3 * cooled[1][-1]
    assert torch.equal(last(cooldown=0.0)[0], plain[0]) and not torch.equal(cooled[0], plain[0])
    declared = replace(get("ppca"), defaults={"cooldown": 0.5})
    assert torch.equal(last(declared)[0], cooled[0]) and torch.equal(last(declared, cooldown=0.0)[0], plain[0])
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"cooldown must be a number in .0, 1., not"):
            last(cooldown=wrong)


def test_a_refit_of_the_guide_cools_down_too():
    fitted = fit("ppca", X, n_latent=1, max_epochs=2, progress=False)
    one, other = (
        fitted.refit("elbo", max_epochs=5, progress=False, cooldown=c, early_stopping=None).program.guide_loc.weight
        for c in (0.0, 1.0)
    )
    assert not torch.equal(one, other)
