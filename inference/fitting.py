"""How programs are fitted, whatever they are."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyro

from fieldguide.inference.checkpoint import describe_objective
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.checks.rows import row_numbers
from fieldguide.inference.constraints import Constraint, checked_constraints
from fieldguide.inference.data.minibatches import Loader, read
from fieldguide.inference.entry import Defaults, as_entry, require_supported
from fieldguide.inference.fitted import Fit
from fieldguide.inference.messages import caution
from fieldguide.inference.objectives import Objective, resolve
from fieldguide.inference.randomness import isolated, stream
from fieldguide.inference.soundness import few_cells, require_sound, warn_of_absent, warn_of_unread
from fieldguide.inference.training.settings import Callback, Settings
from fieldguide.inference.training.trainer import launch, train


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
    validation: float | npt.ArrayLike | None = None,
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
    validation : float, or array of int [n] or bool [N], optional
        Share of the cells, or the row numbers, or a mask of the cells, that are held out of training; by default the
        entry's, or 0.1.
    early_stopping : int, optional
        Stop after so many epochs without improvement on the held-out cells, and restore the best parameters. None (or
        False) trains to the end and keeps the last. Epochs count after the warm-up of the Kullback-Leibler term, and
        when the program has no stage before it that it trains otherwise (`Program.unfinished`).
    kl_warmup : int, optional
        Epochs over which the weight of the Kullback-Leibler term rises linearly from 0 to 1, by default the
        entry's, or a quarter of ``max_epochs``; held-out values are always at weight 1.
    compile : bool
        Capture the training step and compile it; where that is impossible, warn and go on without.
    callbacks : iterable of callable
        Called as ``callback(program, row_of_history)`` after each epoch; returning True stops the training.
    checkpoint : path, optional
        File to keep up to date while training (once a minute), and when interrupted. That it can be written is looked
        at before the first epoch; if it then cannot, a warning says so and the training goes on.
    progress : bool
        Whether to show a progress bar.
    **model_arguments
        Passed to the constructor of the program.

    Raises
    ------
    SchemaError
        If the data does not fit, naming the cell, gene or column.
    ValueError, TypeError
        If an argument is not what it may be, naming it; or if the program has sites outside its data plate, or
        parameters that nothing trains, naming the site or parameter.
    FloatingPointError
        If the loss is not finite, naming epoch, minibatch, cell and site; or a parameter after the last step.
    KeyboardInterrupt
        If interrupted before the first epoch is complete; later, the fit holds what was learnt so far
        (`Fit.interrupted`).

    Warns
    -----
    UserWarning
        Of what the program remarks on what it learnt (`Program.remarks`).
    """
    declared = as_entry(entry)
    if fields and declared.schema is None:
        raise ValueError("fields=... needs an entry with a schema")
    schema = None if declared.schema is None else declared.schema.learn(data, fields)
    dataset, defaults = read(data, schema), Defaults.of(declared.defaults)
    epochs = next(n for n in (max_epochs, defaults.max_epochs, _epochs(dataset.n_cells)) if n is not None)
    epochs = checked_int("max_epochs", epochs, 1)
    settings = Settings.of(
        defaults,
        {
            "max_epochs": max_epochs,
            "batch_size": checked_int("batch_size", batch_size, 1),
            "learning_rate": learning_rate,
            "epsilon": epsilon,
            "cooldown": cooldown,
            "seed": checked_seed(seed),
            "early_stopping": early_stopping,
            "kl_warmup": kl_warmup,
            "compile": compile,
            "callbacks": callbacks,
            "checkpoint": checkpoint,
            "progress": progress,
        },
        {"max_epochs": epochs, "kl_warmup": epochs // 4},
    )
    share = next(v for v in (validation, defaults.validation, 0.1) if v is not None)
    train_rows, held_out = _split(
        dataset.n_cells, share, settings.seed, None if dataset.obs is None else dataset.obs.index
    )
    if schema is not None:
        warn_of_absent(schema, dataset, train_rows)
    fabric = launch(device)
    with isolated(fabric.device, stream(settings.seed, "training")), pyro.validation_enabled(False):
        program, arguments = declared.build(schema, model_arguments)
        program.prepare(Loader(dataset, train_rows, settings.batch_size))
        target = resolve((declared.objective or "elbo") if objective is None else objective)
        require_supported(declared, target)
        result = Fit(program, declared, schema, target, arguments, dataset, train_rows, held_out)
        if declared.built is not None:
            result.initial = {k: v.detach().clone() for k, v in program.state_dict().items()}
        result.constraints = checked_constraints(declared.constraints if constraints is None else constraints)
        if settings.checkpoint is not None:
            result.describe()  # what cannot be saved is told before the first epoch
        few = few_cells(dataset, train_rows, program)
        require_sound(program, few, describe_objective(target) is not None)
        warn_of_unread(program, few, schema)
        train(result, settings, fabric, data)
    for remark in result.remarks():
        caution(remark)
    return result


def _epochs(n_cells: int) -> int:
    """About eight million visits to a cell, at most 400 epochs."""
    return min(400, max(1, round(8e6 / n_cells)))


def is_share(validation: Any) -> bool:
    """Whether cells to hold out are asked for by their share, and not by their rows."""
    single = getattr(validation, "ndim", None) == 0 or not isinstance(validation, Iterable)
    return single or isinstance(validation, str | bytes | Mapping)


def _split(n_cells: int, validation: Any, seed: int, names: pd.Index | None) -> tuple[np.ndarray, np.ndarray]:
    if is_share(validation):
        share = checked_real("validation", validation, at_least=0, below=1)
        order = np.random.default_rng(seed).permutation(n_cells)
        held_out = np.sort(order[: int(share * n_cells)])
    else:
        held_out = np.unique(row_numbers("validation", validation, n_cells, empty=True, names=names))
    rows = np.setdiff1d(np.arange(n_cells), held_out)
    if len(rows) < 2:
        raise ValueError(f"validation leaves {len(rows)} of {n_cells} cells for training; at least 2 are needed")
    return rows, held_out
