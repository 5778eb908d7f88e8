"""The tests that every program has to pass, for our own catalog and for a program of your own."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch

from fieldguide.inference.data.minibatches import Dataset, read
from fieldguide.inference.entry import Entry, as_entry
from fieldguide.inference.fitting import fit
from fieldguide.inference.loading import load
from fieldguide.inference.objectives import (
    CUBO,
    ELBO,
    IWAE,
    Chi,
    ForwardKL,
    Objective,
    Renyi,
    VRMax,
    WakeWake,
)
from fieldguide.inference.program import Batch, Program
from fieldguide.inference.soundness import CELLS, explained, require_groups, require_sound
from fieldguide.inference.step import Step
from fieldguide.inference.training.capture import SCALARS, export_step
from fieldguide.inference.weights.tracing import Substitute
from fieldguide.inference.weights.weigh import weigh

OBJECTIVES: dict[str, list[Objective]] = {
    "elbo": [ELBO(2), ELBO(2, kl="analytic"), ELBO(2, "stl"), ELBO(2, "score")],
    "iwae": [IWAE(3, "reparam"), IWAE(3, "dreg"), IWAE(3, "score")],
    "renyi": [Renyi(0.5, 3, "reparam"), Renyi(0.5, 3, "dreg"), Renyi(0.5, 3, "score")],
    "vrmax": [VRMax(3, "reparam"), VRMax(3, "score")],
    "wake": [WakeWake(3, "dreg"), WakeWake(3, "score")],
    "chi": [Chi(3, "path"), Chi(3, "score"), Chi(3, "path", fallback=2), Chi(21, "path", smooth="psis")],
    "forward_kl": [ForwardKL(3, "dreg"), ForwardKL(3, "score")],
    "cubo": [CUBO(2, 3, "path"), CUBO(2, 3, "score")],
}
"""Every objective with every gradient, by short name: what `check` goes through."""


class ConformanceError(AssertionError):
    """A program failed a check; the message names each check and what was found."""


@dataclass
class _Case:
    entry: Entry
    program: Program
    data: Any
    dataset: Dataset
    batch: Batch
    arguments: dict[str, Any]
    reparameterised: bool
    local: bool
    supports: tuple[str, ...]
    summed: bool


def check(entry, data, **model_arguments) -> pd.DataFrame:
    """Run the conformance checks on a program and raise if one fails.

    The checks: latent sites of model and guide match; each parameter acts on its own side; losses and gradients are
    finite under every supported objective and gradient; bounds are ordered; the weights of a cell do not depend on
    the other cells of its minibatch, so that minibatches are unbiased; equal seeds give equal fits; a fit survives
    saving and loading; the program runs on an accelerator where there is one; the training step can be exported.

    Parameters
    ----------
    entry : str, Entry, Program class or Program
    data : AnnData, DataFrame or dict of arrays
        A small data set, of at least 8 cells.
    **model_arguments
        Passed to the constructor of the program.

    Returns
    -------
    DataFrame
        One row a check, with columns ``passed`` (None where it does not apply) and ``detail``.

    Raises
    ------
    ConformanceError
        Naming the checks that failed.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> check("ppca", {"x": x}, n_latent=2).loc["sites", "passed"]
    True
    """
    rows = {}
    with pyro.validation_enabled(True), pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = _case(as_entry(entry), data, model_arguments)
        for name, function in CHECKS.items():
            try:
                outcome = function(case)
                rows[name] = {"passed": None if outcome else True, "detail": outcome or ""}
            except Exception as error:
                rows[name] = {"passed": False, "detail": f"{type(error).__name__}: {error}"}
    report = pd.DataFrame.from_dict(rows, orient="index").rename_axis("check").astype(object)
    failed = report[report["passed"].eq(False)]
    if len(failed):
        lines = "\n".join(f"- {name}: {row.detail}" for name, row in failed.iterrows())
        raise ConformanceError(f"{type(case.program).__name__} fails {len(failed)} of {len(report)} checks:\n{lines}")
    return report


def _case(entry: Entry, data, arguments: dict[str, Any]) -> _Case:
    schema = entry.schema.learn(data) if entry.schema is not None else None
    dataset = read(data, schema)
    if dataset.n_cells < 8:
        raise ValueError(f"{dataset.n_cells} cells are too few to check a program on; give at least 8")
    program, _ = replace(entry, built=copy.deepcopy(entry.built)).build(schema, arguments)
    batch = dataset.batch(np.arange(min(CELLS, dataset.n_cells)))
    program.prepare([batch])
    with torch.no_grad(), pyro.validation_enabled(False), explained(program, "model or guide", batch):
        weights = weigh(program.eval(), batch, 2)
        guide = pyro.poutine.trace(program.guide).get_trace(batch)
    drawn = [n for n in weights.latents if n not in weights.enumerated]
    reparameterised = all(guide.nodes[n]["fn"].has_rsample for n in drawn)
    local = program.independent and not weights.global_latents
    summed = any(f"{name}_guide" in weights.draws for name in weights.enumerated)
    supports = entry.supports if entry.listed or local else ("elbo",)
    return _Case(entry, program, data, dataset, batch, arguments, reparameterised, local, supports, summed)


def _objectives(case: _Case) -> Iterator[Any]:
    for name in case.supports:
        for objective in OBJECTIVES[name]:
            score = getattr(objective, "gradient", "") == "score"
            if case.summed and isinstance(objective, ForwardKL | WakeWake) and not score:
                continue  # they say so themselves
            if score != case.reparameterised or (score and case.local):
                yield objective


def _sites(case: _Case) -> None:
    weights = weigh(case.program, case.batch, 3, "reparam" if case.reparameterised else "score")
    cells = len(case.batch["index"])
    require_sound(case.program, case.batch)
    assert weights.log_p.shape == weights.log_q.shape == (3, cells)
    assert torch.isfinite(weights.log_w).all(), "log weights are not finite at the initial parameters"
    for name in weights.latents:
        assert weights.draws[name].shape[0] == 3, f"site '{name}' has no particle dimension"


def _groups(case: _Case) -> None:
    require_groups(case.program)
    groups = case.program.groups()
    if {"theta", "phi"} <= set(groups):
        weights = weigh(case.program, case.batch, 2, "score")
        _untouched(case, weights.log_p.sum(), groups["phi"], "guide parameter '{}' acts on the model")
        _untouched(case, weights.log_q.sum(), groups["theta"], "model parameter '{}' acts on the guide")


def _untouched(case: _Case, value: torch.Tensor, parameters, message: str) -> None:
    if not value.requires_grad or not parameters:
        return
    names = {id(p): n for n, p in case.program.named_parameters()}
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert gradient is None or not gradient.any(), message.format(names[id(parameter)])


def _gradients(case: _Case) -> None:
    case.program.train()
    used: set[str] = set()
    for objective in _objectives(case):
        losses = case.program.training_loss(Step(case.program, case.batch, case.dataset.n_cells), objective)
        for group, loss in (losses if isinstance(losses, dict) else {"all": losses}).items():
            members = dict(case.program.named_parameters())
            if group != "all":
                addressed = {id(p) for p in case.program.groups()[group]}
                members = {n: p for n, p in members.items() if id(p) in addressed}
            assert torch.isfinite(loss), f"{objective} is {loss.item()}"
            members = {n: p for n, p in members.items() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(members.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(members, gradients, strict=True):
                if gradient is not None:
                    assert torch.isfinite(gradient).all(), f"gradient of '{name}' under {objective} is not finite"
                    used.add(name)
    case.program.eval()
    idle = [name for name, p in case.program.named_parameters() if p.requires_grad and name not in used]
    assert not idle, f"parameter '{idle[0]}' gets no gradient from any objective"


def _bounds(case: _Case) -> str | None:
    if not case.local:
        return "per-cell bounds do not exist for this program"
    with torch.no_grad():
        log_w = torch.cat([weigh(case.program, case.batch, 50).log_w for _ in range(4)]).double()
    single = log_w.mean(0)
    several = (torch.logsumexp(log_w.view(40, 5, -1), 1) - np.log(5)).mean(0)
    many = torch.logsumexp(log_w, 0) - np.log(len(log_w))
    assert (several >= single - 1e-9).all() and (many >= several - 1e-9).all(), "K-sample bounds are not ordered"
    return None


def _independence(case: _Case) -> str | None:
    if not case.program.independent:
        return "the program declares that its cells are coupled"
    with torch.no_grad():
        whole = weigh(case.program, case.batch, 3)
        cells = len(case.batch["index"])
        for part in np.array_split(np.arange(cells), 3):
            index, axis = torch.from_numpy(part), case.program.depth
            local = [n for n in whole.traced if n not in whole.global_latents]
            lead = {n: whole.traced[n].dim() - whole.draws[n].dim() for n in whole.traced}
            values = {n: whole.traced[n] for n in whole.global_latents}
            values |= {n: whole.traced[n].index_select(axis + lead[n], index) for n in local}
            with Substitute(values):
                alone = weigh(case.program, {k: v[part] for k, v in case.batch.items()}, 3)
            torch.testing.assert_close(alone.log_w, whole.log_w[:, part], rtol=1e-4, atol=1e-3)
    return None


def _fitted(case: _Case, **settings):
    entry = replace(case.entry, built=copy.deepcopy(case.program) if case.entry.built else None)
    objective = next(iter(_objectives(case)))
    shared = {"objective": objective, "max_epochs": 2, "batch_size": 16, "progress": False} | settings
    return fit(entry, case.data, **shared, **case.arguments)


def _seeds(case: _Case) -> None:
    first, second = (_fitted(case, seed=3).program.state_dict() for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"'{name}' differs between two fits with the same seed"


def _saving(case: _Case) -> None:
    fitted = _fitted(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.safetensors"
        fitted.save(path)
        unnamed = copy.deepcopy(case.program) if case.entry.built else type(case.program)
        loaded = load(path, None if case.entry.listed else unnamed)
    for name, value in fitted.program.state_dict().items():
        assert torch.equal(value.cpu(), loaded.program.state_dict()[name]), f"'{name}' changed by saving and loading"


def _device(case: _Case) -> str | None:
    if not torch.cuda.is_available():
        return "no accelerator here"
    _fitted(case, device="cuda")
    return None


def _export(case: _Case) -> str | None:
    if case.entry.built and not case.reparameterised:
        return "discrete guides are trained without capture"
    objective = ELBO() if case.reparameterised else ELBO(2, "score")
    with pyro.validation_enabled(False):
        try:
            step = export_step(case.program.train(), objective, case.batch, case.dataset.n_cells)
        except NotImplementedError as error:  # the program itself says that its step cannot be captured
            return str(error)
        loss, _ = step(case.batch, {name: torch.ones(()) for name in SCALARS})
    case.program.eval()
    losses = list(loss.values()) if isinstance(loss, dict) else [loss]
    assert all(torch.isfinite(value) for value in losses), "the exported step gives a loss that is not finite"
    return None


CHECKS: dict[str, Callable[[_Case], str | None]] = {
    "sites": _sites,
    "groups": _groups,
    "gradients": _gradients,
    "bounds": _bounds,
    "independence": _independence,
    "seeds": _seeds,
    "saving": _saving,
    "device": _device,
    "export": _export,
}
