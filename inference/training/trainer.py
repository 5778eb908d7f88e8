"""The one training loop: any program, any objective, one loss or one loss for each parameter group."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fieldguide.inference.constraints import Active, Source
from fieldguide.inference.data.minibatches import Dataset, Loader
from fieldguide.inference.messages import caution
from fieldguide.inference.program import Batch, Program
from fieldguide.inference.randomness import stream
from fieldguide.inference.step import Losses, Step, require_losses
from fieldguide.inference.training.backward import attach
from fieldguide.inference.training.capture import capture
from fieldguide.inference.training.held_out import first_loss, first_non_finite, mean_loss, to_device
from fieldguide.inference.training.non_finite import describe_non_finite
from fieldguide.inference.training.optimizer import Optimizer
from fieldguide.inference.training.processes import average_buffers, average_gradients
from fieldguide.inference.training.progress import progress_bar
from fieldguide.inference.training.settings import Settings

CHECKPOINT_SECONDS = 60


@runtime_checkable
class Trainee(Protocol):
    """What is trained: a fit in the making. Its last three attributes are kept up to date, so that it can be saved."""

    program: Program
    objective: Any
    dataset: Any
    train_rows: np.ndarray
    validation_rows: np.ndarray
    constraints: tuple
    annotation: Any
    history: pd.DataFrame
    interrupted: bool

    def save(self, path: str | Path) -> None:
        """Write the fit as it is."""
        ...


def train(
    fit: Trainee,
    settings: Settings,
    fabric,
    columns: Any,
    purpose: str = "training",
    mode: Callable[[Program], Any] = Program.train,
) -> None:
    """Train the program of a fit on its training cells; its history and parameters are those of the training.

    Parameters
    ----------
    fit : Fit
    settings : Settings
    fabric
        From `launch`.
    columns : AnnData, DataFrame, dict of arrays or None
        Where constraints find what the program does not read.
    purpose : str
        Of the random numbers, see `fieldguide.inference.randomness`.
    mode : callable
        Puts the program into the state that it is trained in, before each epoch.
    """
    fit.program.to(fabric.device)
    torch.manual_seed(stream(settings.seed, purpose, fabric.global_rank))
    _Trainer(fit, settings, fabric, columns, mode).run()


class _Best:
    """The parameters of the epoch with the smallest held-out loss, and the epochs that passed since."""

    def __init__(self, program: Program, constraints: Active) -> None:
        self.program, self.constraints = program, constraints
        self.value, self.state, self.since = np.inf, None, 0
        self.prices = constraints.shown()

    def see(self, row: dict[str, Any]) -> None:
        """Judge an epoch, once the loss is what it stays: at full KL weight, and nothing left to settle."""
        if row["kl_weight"] < 1 or self.program.unfinished():
            return
        prices = self.constraints.shown()
        if prices != self.prices:  # what is minimised has changed
            self.value, self.since, self.prices = np.inf, 0, prices
        value = row["validation"] + self.constraints.price(row)
        if value < self.value:
            self.value, self.since = value, 0
            self.state = {k: v.detach().clone() for k, v in self.program.state_dict().items()}
        else:
            self.since += 1


class _Trainer:
    """State of one run of the loop."""

    def __init__(self, fit: Trainee, settings: Settings, fabric, columns, mode: Callable[[Program], Any]) -> None:
        self.fit, self.program, self.settings, self.fabric, self.mode = fit, fit.program, settings, fabric, mode
        data = fit.dataset.to(fabric.device) if _has_room(fit.dataset, fabric.device) else fit.dataset
        rows, size = fit.train_rows, settings.batch_size
        shared = (fabric.global_rank, fabric.world_size)
        self.loader = Loader(data, rows, size, True, settings.seed, *shared, balanced=self.program.balanced)
        self.held_out = Loader(data, fit.validation_rows, size)
        source = Source(columns, data, rows, size, self.program)
        fit.annotation = source.table()
        self.constraints = Active(fit.constraints, source)
        self.groups = {k: [p for p in v if p.requires_grad] for k, v in self.program.groups().items()}
        self.parameters = [p for group in self.groups.values() for p in group]
        fused = fabric.device.type in ("cpu", "cuda")
        self.optimizer = Optimizer(
            self.program, self.parameters, settings.learning_rate, settings.epsilon, fused, settings.cooldown
        )
        self.total = len(rows)
        self.kl_weight = torch.ones((), device=fabric.device)
        self.progress = torch.ones((), device=fabric.device)
        self.told = False
        if settings.batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.program.modules()):
            raise ValueError(
                f"batch_size must be at least 2: {type(self.program).__name__} normalises over the cells of a minibatch"
            )
        captured = settings.compile and not len(self.constraints)
        if settings.compile and not captured:
            caution("constraints are measured without compilation: compile=True is left out")
        self.losses = capture(self.program, fit.objective, self.total) if captured else self.eager

    def eager(self, batch: Batch, scalars: Mapping[str, float | Tensor]) -> tuple[Losses, dict[str, Tensor]]:
        step = Step(self.program, batch, self.total, scalars)
        losses = self.program.training_loss(step, self.fit.objective)
        if torch.is_grad_enabled():
            step.logs |= self.constraints.measured(step)
        return losses, step.logs

    def run(self) -> None:
        """Train to the end, or until held-out cells, a callback or the keyboard say stop."""
        epochs, patience = self.settings.max_epochs, self.settings.early_stopping
        best, saved = _Best(self.program, self.constraints), time.monotonic()
        rows: list[dict[str, Any]] = []
        try:
            with progress_bar(self.settings.progress and self.fabric.is_global_zero, epochs) as advance:
                for epoch in range(epochs):
                    row = self.epoch(epoch)
                    rows.append(row)
                    self.fit.history = pd.DataFrame(rows).set_index("epoch")
                    advance(row)
                    if patience is not None and "validation" in row:
                        best.see(row)
                    stop = [callback(self.program, row) for callback in self.settings.callbacks]
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self.save()
                        saved = time.monotonic()
                    if any(stop) or (patience is not None and best.since >= patience):
                        break
        except KeyboardInterrupt:
            if not rows:  # nothing is learnt yet
                raise
            self.fit.interrupted = True
            caution(f"interrupted after {len(rows)} epochs; the fit holds what was learnt so far")
        self.program.eval()
        if best.state is not None:
            self.program.load_state_dict(best.state)
        self.require_finite(len(rows))
        self.save()

    def require_finite(self, epochs: int) -> None:
        """Raise if a parameter is not finite at the end: no loss has shown what the last step did."""
        for name, parameter in self.program.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"parameter '{name}' is not finite after {epochs} epochs: lower the learning rate"
                )

    def save(self) -> None:
        """Write the checkpoint, where one is kept; one that cannot be written does not end the training."""
        if self.settings.checkpoint is None or not self.fabric.is_global_zero:
            return
        try:
            self.fit.save(self.settings.checkpoint)
        except OSError as error:
            caution(f"no checkpoint was written: {error}")

    def epoch(self, epoch: int) -> dict[str, Any]:
        start, kl_warmup = time.perf_counter(), self.settings.kl_warmup
        self.loader.epoch = epoch
        self.mode(self.program)
        steps = len(self.loader)
        last = self.settings.max_epochs * steps
        total, cells, weight, largest = 0.0, 0, 1.0, None
        logged: dict[str, Tensor] = {}
        for number, batch in enumerate(self.loader):
            batch = to_device(batch, self.fabric.device)
            done = epoch * steps + number + 1
            weight = min(1.0, done / (kl_warmup * steps)) if kl_warmup else 1.0
            scalars = {"kl_weight": self.kl_weight.fill_(weight) if weight < 1 else 1.0}
            scalars["progress"] = self.progress.fill_(done / last)
            losses, logs = self.losses(batch, scalars)
            if done == 1:
                require_losses(losses, self.fit.objective)
                self.warn_of_idle_groups(losses)
            self.backward(losses, self.constraints.terms(logs))
            value = first_loss(losses)
            if self.fabric.device.type == "cpu" and not torch.isfinite(value):
                self.complain(epoch, number, batch)
            self.optimizer.step((done - 1) / last)
            size = len(batch["index"])
            largest = batch if largest is None or size > len(largest["index"]) else largest
            total, cells = total + value * size, cells + size
            logged = {name: logged.get(name, 0.0) + noted.detach() * size for name, noted in logs.items()}
        row = {"epoch": epoch, "train": self.mean(total / cells)}
        if not np.isfinite(row["train"]):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lower the learning rate")
        if self.fabric.world_size > 1:
            average_buffers(self.fabric, self.program)
        if len(self.held_out.rows):
            shared = (self.total, self.fabric.device)
            row["validation"] = mean_loss(self.program, self.fit.objective, self.held_out, *shared)
            if not np.isfinite(row["validation"]) and not self.told:
                self.told = True
                cells = first_non_finite(self.program, self.fit.objective, self.held_out, *shared)
                where = describe_non_finite(self.program, cells, self.fit.dataset.obs)
                caution(f"the held-out loss is not finite in epoch {epoch}, which no best epoch can be: {where}")
        row |= {name: self.mean(noted / cells) for name, noted in logged.items()}
        if len(self.constraints):
            row |= self.constraints.update(row, self.judge(largest), steps, epoch)
        return row | {"kl_weight": weight, "seconds": time.perf_counter() - start}

    def judge(self, batch: Batch | None) -> Step | None:
        """The minibatch for permutation tests, where a bound needs one: a full one, as the mean is mostly of those."""
        return Step(self.program, batch, self.total) if batch is not None and self.constraints.tested else None

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
            caution(f"{self.fit.objective} does not train group '{idle[0]}': its parameters keep their initial values")

    def complain(self, epoch: int, number: int, batch: Batch) -> None:
        where = describe_non_finite(self.program, batch, self.fit.dataset.obs)
        raise FloatingPointError(f"the loss is not finite in epoch {epoch}, minibatch {number}: {where}")


def launch(device: str):
    """Return the lightning fabric of a device, and of the processes that were started together.

    Raises
    ------
    ValueError
        For a device that is not known or not there.
    RuntimeError
        Where torch keeps no gradients.
    """
    from lightning_fabric import Fabric

    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise RuntimeError("a fit is trained by gradients: call it outside torch.no_grad() and torch.inference_mode()")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(device)
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not known: 'auto', 'cpu', 'cuda' or 'cuda:0'") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: 'auto', 'cpu', 'cuda' or 'cuda:0'")
    if chosen.type == "cpu" and chosen.index:
        raise ValueError(f"device {device!r} is not known: there is one CPU, 'cpu'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available: torch sees no CUDA device")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    devices: Any = processes if processes > 1 or chosen.index is None else [chosen.index]
    nodes = int(os.environ.get("WORLD_SIZE", 1)) // processes
    fabric = Fabric(accelerator=chosen.type, devices=devices, num_nodes=nodes)
    fabric.launch()
    return fabric


def _has_room(dataset: Dataset, device: torch.device) -> bool:
    """Whether the data takes less than half of the accelerator's free memory."""
    if device.type != "cuda" or dataset.backed:
        return False
    return 2 * sum(store.nbytes for store in dataset.stores.values()) < torch.cuda.mem_get_info(device)[0]
