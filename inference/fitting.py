"""The one training loop: any program, any objective, one loss or one loss for each parameter group."""

import inspect
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from fieldguide.inference.constraints import Active, Constraint, Source
from fieldguide.inference.data.minibatches import Dataset, Loader, read
from fieldguide.inference.entry import find
from fieldguide.inference.fitted import Fit
from fieldguide.inference.objectives import Objective, resolve
from fieldguide.inference.program import Batch, Program
from fieldguide.inference.step import Step
from fieldguide.inference.training.backward import attach
from fieldguide.inference.training.capture import Losses, capture
from fieldguide.inference.training.held_out import first_loss, mean_loss, to_device
from fieldguide.inference.training.non_finite import describe_non_finite
from fieldguide.inference.training.optimizer import Optimizer
from fieldguide.inference.training.processes import average_buffers, average_gradients
from fieldguide.inference.training.progress import progress_bar

CHECKPOINT_SECONDS = 60
ADAM = {"learning_rate": 1e-3, "epsilon": 0.01, "cooldown": 0.0}
"""Settings of the optimiser where neither the call nor the entry says otherwise: as published for scVI."""
Callback = Callable[[Program, dict[str, Any]], bool | None]


def fit(
    entry,
    data,
    *,
    fields: Mapping[str, Any] | None = None,
    objective: str | Objective | None = None,
    constraints: Iterable[Constraint] | None = None,
    max_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float | None = None,
    epsilon: float | None = None,
    cooldown: float | None = None,
    seed: int = 0,
    device: str = "auto",
    validation: float | np.ndarray | None = None,
    early_stopping: int | None = 30,
    kl_warmup: int | None = None,
    compile: bool = False,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **model_arguments,
) -> Fit:
    """Fit a catalog entry or a program of your own, and return the `Fit`.

    Parameters
    ----------
    entry : str, Entry, Program class or Program
        What to fit. A name is looked up in the catalog.
    data : AnnData, DataFrame or dict of arrays
        Never changed.
    fields : mapping, optional
        Where fields live when not at their default place, such as ``{"batch": "sample"}``; see `Schema`.
    objective : str or callable, optional
        A short name ("elbo", "iwae", "wake", "chi", ...), an objective, or any callable from a Step to a loss or to a
        dict of one loss for each parameter group. By default the entry's own, or the ELBO.
    constraints : iterable of Constraint, optional
        What the guide is held to besides, such as ``[hsic("z", "n_genes")]``; by default the entry's own, ``()`` for
        none. The loss in the history is the objective's alone; measures and multipliers have columns of their own.
    max_epochs : int, optional
        By default the entry's, or about eight million visits to a cell, at most 400 epochs.
    batch_size : int
        Cells in a minibatch (all cells, when there are fewer).
    learning_rate, epsilon : float, optional
        Step size of Adam, and what it adds to the root mean square of a gradient: gradients below it make small steps.
        By default the entry's, or 1e-3 and 0.01, as published for scVI. The weight decay is 1e-6.
    cooldown : float, optional
        Share of the epochs, the last ones, over which the step size falls linearly to zero, by default the entry's, or
        0. It settles what noisy steps keep moving; a training that stops early does not come to it.
    seed : int
        Seeds initial values, shuffling, dropout and draws; the global random state is left as it was.
    device : str
        "auto" (an accelerator if there is one), "cpu", "cuda" or "cuda:1".
    validation : float or array of int, optional
        Share of the cells, or the row numbers, that are held out of training; by default the entry's, or 0.1.
    early_stopping : int, optional
        Stop after so many epochs without improvement on the held-out cells, and restore the best parameters.
        None trains to the end and keeps the last. Epochs count after the warm-up of the Kullback-Leibler term, and when
        the program has no stage before it that it trains otherwise (`Program.unfinished`).
    kl_warmup : int, optional
        Epochs over which the weight of the Kullback-Leibler term rises linearly from 0 to 1, by default the
        entry's, or a quarter of ``max_epochs``; held-out values are always at weight 1.
    compile : bool
        Capture the training step and compile it; where that is impossible, warn and go on without.
    callbacks : iterable of callable
        Called as ``callback(program, row_of_history)`` after each epoch; returning True stops the training.
    checkpoint : path, optional
        File to keep up to date while training (once a minute), and when interrupted.
    progress : bool
        Whether to show a progress bar.
    **model_arguments
        Passed to the constructor of the program.

    Raises
    ------
    SchemaError
        If the data does not fit, naming the cell, gene or column.
    FloatingPointError
        If the loss is not finite, naming epoch, minibatch, cell and site.

    Warns
    -----
    UserWarning
        Of what the program remarks on what it learnt (`Program.remarks`).
    """
    spec = find(entry) if isinstance(entry, str) else entry
    schema = getattr(spec, "schema", None)
    fitted_schema = schema.learn(data, fields) if schema is not None else None
    if fields and schema is None:
        raise ValueError("fields=... needs an entry with a schema")
    dataset = read(data, fitted_schema)
    defaults = _given(spec)
    target = resolve(objective or getattr(spec, "objective", None) or "elbo")
    fabric = _fabric(device)
    validation = defaults.get("validation", 0.1) if validation is None else validation
    train_rows, held_out = _split(dataset.n_cells, validation, seed)
    max_epochs = defaults.get("max_epochs") if max_epochs is None else max_epochs
    adam = adam_settings(spec, learning_rate, epsilon, cooldown)
    max_epochs = min(400, max(1, round(8e6 / dataset.n_cells))) if max_epochs is None else max_epochs
    kl_warmup = defaults.get("kl_warmup", max_epochs // 4) if kl_warmup is None else kl_warmup
    seeds = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=seeds), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        program, arguments = build(spec, fitted_schema, model_arguments)
        loader = Loader(dataset, train_rows, batch_size, True, seed, fabric.global_rank, fabric.world_size)
        program.prepare(Loader(dataset, train_rows, batch_size))
        program.to(fabric.device)
        torch.manual_seed(seed + 7919 * fabric.global_rank)
        result = Fit(program, spec, fitted_schema, target, arguments, dataset, train_rows, held_out)
        if program is spec:
            result.initial = {k: v.detach().clone() for k, v in program.state_dict().items()}
        loader.dataset = dataset = dataset.to(fabric.device) if _fits(dataset, fabric.device) else dataset
        result.constraints = tuple(getattr(spec, "constraints", ()) if constraints is None else constraints)
        source = Source(data, dataset, train_rows, batch_size, program)
        result.annotation = source.table()
        active = Active(result.constraints, source)
        held = Loader(dataset, held_out, batch_size)
        trainer = _Trainer(result, fabric, loader, held, adam, compile, active)
        trainer.run(max_epochs, kl_warmup, early_stopping, tuple(callbacks), checkpoint, progress)
    for said in program.remarks():
        warnings.warn(said, stacklevel=2)
    return result


class _Trainer:
    """State of one run of the loop."""

    def __init__(
        self,
        result: Fit,
        fabric,
        loader: Loader,
        held_out: Loader,
        adam: Mapping[str, float],
        compile: bool,
        constraints: Active,
        mode=Program.train,
    ):
        self.result, self.program, self.fabric = result, result.program, fabric
        self.loader, self.held_out, self.mode, self.constraints = loader, held_out, mode, constraints
        self.groups = {k: [p for p in v if p.requires_grad] for k, v in self.program.groups().items()}
        self.parameters = [p for group in self.groups.values() for p in group]
        fused = fabric.device.type in ("cpu", "cuda")
        self.optimizer = Optimizer(
            self.program, self.parameters, adam["learning_rate"], adam["epsilon"], fused, adam["cooldown"]
        )
        self.total = len(loader.rows)
        self.kl_weight = torch.ones((), device=fabric.device)
        self.progress = torch.ones((), device=fabric.device)
        if compile and len(constraints):
            warnings.warn("constraints are measured without compilation: compile=True is left out", stacklevel=4)
            compile = False
        self.losses = capture(self.program, result.objective, self.total) if compile else self.eager

    def eager(self, batch: Batch, scalars: Mapping[str, float | Tensor]) -> tuple[Losses, dict[str, Tensor]]:
        step = Step(self.program, batch, self.total, scalars)
        losses = self.program.training_loss(step, self.result.objective)
        if torch.is_grad_enabled():
            step.logs |= self.constraints.measured(step)
        return losses, step.logs

    def run(self, max_epochs, kl_warmup, patience, callbacks, checkpoint, progress) -> None:
        best, best_state, since, saved = np.inf, None, 0, time.monotonic()
        priced = self.constraints.shown()
        rows: list[dict[str, Any]] = []
        try:
            with progress_bar(progress and self.fabric.is_global_zero, max_epochs) as advance:
                for epoch in range(max_epochs):
                    row = self.epoch(epoch, max_epochs, kl_warmup)
                    rows.append(row)
                    self.result.history = pd.DataFrame(rows).set_index("epoch")
                    advance(row)
                    ready = row["kl_weight"] >= 1 and not self.program.unfinished()
                    if patience is not None and "validation" in row and ready:
                        prices = self.constraints.shown()
                        if prices != priced:  # what is minimised has changed
                            best, since, priced = np.inf, 0, prices
                        value = row["validation"] + self.constraints.price(row)
                        if value < best:
                            best, since = value, 0
                            best_state = {k: v.detach().clone() for k, v in self.program.state_dict().items()}
                        else:
                            since += 1
                    stop = [callback(self.program, row) for callback in callbacks]
                    if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS and self.fabric.is_global_zero:
                        self.result.save(checkpoint)
                        saved = time.monotonic()
                    if any(stop) or (patience is not None and since >= patience):
                        break
        except KeyboardInterrupt:
            self.result.interrupted = True
            warnings.warn(f"interrupted after {len(rows)} epochs; the fit holds what was learnt so far", stacklevel=3)
        self.program.eval()
        if best_state is not None:
            self.program.load_state_dict(best_state)
        if checkpoint and self.fabric.is_global_zero:
            self.result.save(checkpoint)

    def epoch(self, epoch: int, max_epochs: int, kl_warmup: int) -> dict[str, Any]:
        start = time.perf_counter()
        self.loader.epoch = epoch
        self.mode(self.program)
        steps = len(self.loader)
        total, cells, weight = 0.0, 0, 1.0
        logged: dict[str, Tensor] = {}
        for number, batch in enumerate(self.loader):
            batch = to_device(batch, self.fabric.device)
            done = epoch * steps + number + 1
            weight = min(1.0, done / (kl_warmup * steps)) if kl_warmup else 1.0
            scalars = {"kl_weight": self.kl_weight.fill_(weight) if weight < 1 else 1.0}
            scalars["progress"] = self.progress.fill_(done / (max_epochs * steps))
            losses, logs = self.losses(batch, scalars)
            self.backward(losses, self.constraints.terms(logs))
            if done == 1:
                self.warn_of_idle_groups(losses)
            value = first_loss(losses)
            if self.fabric.device.type == "cpu" and not torch.isfinite(value):
                self.complain(epoch, number, batch)
            self.optimizer.step((done - 1) / (max_epochs * steps))
            size = len(batch["index"])
            total, cells = total + value * size, cells + size
            logged = {name: logged.get(name, 0.0) + noted.detach() * size for name, noted in logs.items()}
        row = {"epoch": epoch, "train": self.mean(total / cells)}
        if not np.isfinite(row["train"]):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lower the learning rate")
        if self.fabric.world_size > 1:
            average_buffers(self.fabric, self.program)
        if len(self.held_out.rows):
            row["validation"] = mean_loss(
                self.program, self.result.objective, self.held_out, self.total, self.fabric.device
            )
        row |= {name: self.mean(noted / cells) for name, noted in logged.items()}
        if len(self.constraints):
            row |= self.constraints.update(row, self.last(batch), steps, epoch)
        return row | {"kl_weight": weight, "seconds": time.perf_counter() - start}

    def last(self, batch: Batch) -> Step | None:
        """The minibatch for permutation tests, where a bound needs one."""
        return Step(self.program, batch, self.total) if self.constraints.tested else None

    def mean(self, value: Any) -> float:
        """Mean over the processes."""
        return float(self.fabric.all_reduce(torch.as_tensor(value), reduce_op="mean"))

    def backward(self, losses: Losses, terms=()) -> None:
        self.optimizer.zero_grad()
        losses, pulls = attach(losses, terms, self.groups)
        if isinstance(losses, Tensor):
            losses.backward()
        else:
            unknown = sorted(set(losses) - set(self.groups))
            if unknown:
                raise KeyError(f"the objective has a loss for '{unknown[0]}'; groups are {', '.join(self.groups)}")
            for group, loss in losses.items():
                if not self.groups[group]:  # frozen, or without parameters
                    continue
                gradients = torch.autograd.grad(loss, self.groups[group], retain_graph=True, allow_unused=True)
                for parameter, gradient in zip(self.groups[group], gradients, strict=True):
                    parameter.grad = gradient
        for parameter, gradient in pulls:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if self.fabric.world_size > 1:
            average_gradients(self.fabric, self.parameters)

    def warn_of_idle_groups(self, losses: Losses) -> None:
        idle = [] if isinstance(losses, Tensor) else [k for k, v in self.groups.items() if v and k not in losses]
        if idle:
            warnings.warn(
                f"{self.result.objective} does not train group '{idle[0]}': its parameters keep their initial values",
                stacklevel=6,
            )

    def complain(self, epoch: int, number: int, batch: Batch) -> None:
        where = describe_non_finite(self.program, batch, self.result.dataset.obs)
        raise FloatingPointError(f"the loss is not finite in epoch {epoch}, minibatch {number}: {where}")


def adam_settings(
    spec, learning_rate: float | None, epsilon: float | None, cooldown: float | None = None
) -> dict[str, float]:
    """Settings of the optimiser: as given, else the entry's, else `ADAM`."""
    given = {"learning_rate": learning_rate, "epsilon": epsilon, "cooldown": cooldown}
    known = ADAM | {k: v for k, v in _given(spec).items() if k in ADAM}
    found = known | {k: v for k, v in given.items() if v is not None}
    if not 0 <= found["cooldown"] <= 1:
        raise ValueError(f"cooldown must be a share in [0, 1], not {found['cooldown']}")
    for name, value in found.items():
        if name != "cooldown" and not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    return found


def _given(spec) -> dict[str, Any]:
    """The settings that an entry has of its own."""
    return {k: v for k, v in vars(getattr(spec, "defaults", object)).items() if v is not None and not k.startswith("_")}


def build(spec, schema, arguments: dict[str, Any]) -> tuple[Program, dict[str, Any]]:
    """Return the program of an entry or class, with the sizes that the data implies, and its arguments."""
    if isinstance(spec, Program):
        if arguments:
            raise TypeError(f"{type(spec).__name__} is already built: it takes no {', '.join(arguments)}")
        return spec, {}
    cls = spec if isinstance(spec, type) else spec.program
    known = inspect.signature(cls).parameters
    unknown = [] if any(p.kind is p.VAR_KEYWORD for p in known.values()) else sorted(set(arguments) - set(known))
    if unknown:
        raise TypeError(f"{cls.__name__} has no argument '{unknown[0]}'; it has {', '.join(known)}")
    implied = schema.sizes() if schema else {}
    arguments = {name: value for name, value in implied.items() if name in known} | arguments
    return cls(**arguments), arguments


def _split(n_cells: int, validation: float | np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(validation, float | int):
        if not 0 <= validation < 1:
            raise ValueError(f"validation must be a share in [0, 1), not {validation}")
        order = np.random.default_rng(seed).permutation(n_cells)
        held_out = np.sort(order[: int(validation * n_cells)])
    else:
        held_out = np.unique(np.asarray(validation, dtype=np.int64))
        if held_out.size and (held_out[0] < 0 or held_out[-1] >= n_cells):
            raise ValueError(f"validation names row {held_out[-1]}, but there are {n_cells} cells")
    rows = np.setdiff1d(np.arange(n_cells), held_out)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} cells are left for training; at least 2 are needed")
    return rows, held_out


def _fabric(device: str):
    from lightning_fabric import Fabric

    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(device)
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not known: 'auto', 'cpu', 'cuda' or 'cuda:0'") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available: torch sees no CUDA device")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    devices: Any = processes if processes > 1 or chosen.index is None else [chosen.index]
    nodes = int(os.environ.get("WORLD_SIZE", 1)) // processes
    fabric = Fabric(accelerator=chosen.type, devices=devices, num_nodes=nodes)
    fabric.launch()
    return fabric


def _fits(dataset: Dataset, device: torch.device) -> bool:
    """Whether the data takes less than half of the accelerator's free memory."""
    if device.type != "cuda" or dataset.backed:
        return False
    return 2 * sum(store.nbytes for store in dataset.stores.values()) < torch.cuda.mem_get_info(device)[0]
