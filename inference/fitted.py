"""A fitted program: what it learnt, and what can be asked of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from fieldguide.inference.checkpoint import (
    describe_constraint,
    describe_objective,
    plain,
    table_text,
    versions,
    write_file,
)
from fieldguide.inference.checks.aligning import unnamed
from fieldguide.inference.checks.arguments import checked_int, checked_seed
from fieldguide.inference.checks.files import checked_path
from fieldguide.inference.checks.labels import label_texts
from fieldguide.inference.constraints import Constraint, checked_constraints
from fieldguide.inference.data.minibatches import Dataset, Loader, read
from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.entry import Defaults, as_entry, require_supported
from fieldguide.inference.fresh_guide import frozen_model, guide_training, with_fresh_guide
from fieldguide.inference.messages import caution
from fieldguide.inference.objectives import Objective, resolve
from fieldguide.inference.posterior import ELEMENTS, Posterior
from fieldguide.inference.program import Program
from fieldguide.inference.randomness import isolated, stream
from fieldguide.inference.soundness import few_cells, require_same_model, require_sound
from fieldguide.inference.training.held_out import mean_loss
from fieldguide.inference.training.settings import Settings
from fieldguide.inference.training.trainer import launch, train
from fieldguide.inference.weights.tracing import is_deterministic
from fieldguide.inference.weights.weigh import weigh


@dataclass(repr=False)
class Fit:
    """A program with the parameters that were learnt, returned by `fieldguide.inference.fit`.

    Attributes
    ----------
    program : Program
        In evaluation mode.
    entry : Entry
        What was fitted; of a program class or a program of one's own, the entry that `as_entry` makes.
    schema : FittedSchema or None
        What new data has to match.
    objective : callable
    arguments : dict
        Constructor arguments of the program.
    dataset : Dataset or None
        The training data; None for a fit that was loaded from a file.
    train_rows, validation_rows : array of int
        Which cells were trained on and held out.
    history : DataFrame
        One row an epoch: ``train`` and ``validation`` loss per cell, what the objective logs (such as ``cubo``),
        the measure and the multipliers of each constraint, ``kl_weight``, ``seconds``.
    interrupted : bool
        Whether training was interrupted from the keyboard; saved with the fit.
    constraints : tuple of Constraint
        What the guide was held to besides the objective.
    annotation : DataFrame, dict of arrays or None
        Where constraints find their columns; None for a fit that was loaded from a file.
    initial : dict of str to Tensor
        Where the parameters of a program that was built by its user started; a guide can start there again.
    restarts : DataFrame or None
        Seeds and held-out losses of all fits of which this is the best; see `fieldguide.inference.fit_best`.
    cells : str
        Digest of the names of the cells in their order; empty where they have none.
    """

    program: Program
    entry: Any
    schema: FittedSchema | None
    objective: Objective
    arguments: dict[str, Any]
    dataset: Dataset | None
    train_rows: np.ndarray
    validation_rows: np.ndarray
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    interrupted: bool = False
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    annotation: Any = None
    restarts: pd.DataFrame | None = None
    cells: str = ""

    def __post_init__(self) -> None:
        self.entry = as_entry(self.entry)
        if self.dataset is not None:
            self.cells = cells_of(self.dataset.obs)

    @property
    def name(self) -> str:
        """Name of the catalog entry, or of the program class."""
        return self.entry.name

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.program.parameters()).device

    def read(self, data=None) -> Dataset:
        """Return ``data`` as the program reads it (checked against the training data), or the training data.

        Raises
        ------
        SchemaError
            If new data does not match: a missing gene or column, an unseen category, values that are not counts.
        """
        if data is None:
            if self.dataset is None:
                raise ValueError(
                    "this fit holds no data (it was loaded from a file, or has learnt new perturbations): pass the data"
                )
            self.dataset.require_unchanged()
            return self.dataset
        return read(data, self.schema)

    def remarks(self) -> list[str]:
        """Return what the program remarks on what it learnt; ``{field 2}`` in its words is a label of the data."""
        states = {} if self.schema is None else self.schema.states

        def named(match: re.Match) -> str:
            state = states.get(match[1], {})
            labels = state.get("categories") or state.get("perturbations") or []
            return repr(str(labels[int(match[2])])) if int(match[2]) < len(labels) else f"number {match[2]}"

        return [re.sub(r"\{(\w+) (\d+)\}", named, said) for said in self.program.remarks()]

    def held_out_loss(self, batch_size: int = 128) -> float:
        """Return the loss per cell of the held-out cells, as the history has it, by the parameters that were kept.

        Raises
        ------
        ValueError
            If no cell was held out, or the fit was loaded from a file.
        """
        if not len(self.validation_rows):
            raise ValueError("no cell was held out: fit with validation=0.1, say")
        held_out = Loader(self.read(), self.validation_rows, checked_int("batch_size", batch_size, 1))
        with pyro.validation_enabled(False):
            return mean_loss(self.program, self.objective, held_out, len(self.train_rows), self.device)

    def latent(self, data=None, site: str | None = None, batch_size: int = 1024) -> np.ndarray:
        """Return the guide's mean of the latent site for each cell, float32 [N, D].

        Parameters
        ----------
        data : AnnData, DataFrame or dict of arrays, optional
            New cells; the training data by default.
        site : str, optional
            A latent site, or a deterministic one of the guide; the program's main one by default.
        """
        dataset, site = self.read(data), self.program.latent if site is None else site
        batch_size = checked_int("batch_size", batch_size, 1)
        parts = []
        with torch.no_grad(), pyro.validation_enabled(False), isolated(self.device, 0):
            for batch in Loader(dataset, np.arange(dataset.n_cells), batch_size):
                batch = {k: v.to(self.device) for k, v in batch.items()}
                trace = poutine.trace(self.program.guide).get_trace(batch)
                there = _latents(trace) + [n for n, node in trace.nodes.items() if is_deterministic(node)]
                if site not in there:
                    raise KeyError(f"no latent site '{site}'; the guide has {', '.join(there)}")
                parts.append(trace.nodes[site]["fn"].mean.cpu())
        return torch.cat(parts).numpy()

    def bound(
        self, data=None, objective: str | Objective | None = None, seed: int = 0, batch_size: int = 1024
    ) -> np.ndarray:
        """Return the bound on each cell's log evidence under an objective with ``per_cell``, float64 [N], in nats.

        Parameters
        ----------
        data : optional
            New cells; the training data by default (see `validation_rows` for the cells held out).
        objective : str or objective, optional
            Such as ``IWAE(1000)``; the one used for training by default. Minibatches shrink with its particles.

        Warns
        -----
        UserWarning
            If the objective is `CUBO` and for some cells the weights are too uneven for it to be a bound.

        Raises
        ------
        TypeError
            If the objective has no bound for a cell: it is a callable without ``per_cell``.
        """
        target: Any = resolve(objective) if objective is not None else self.objective
        if not hasattr(target, "per_cell"):
            raise TypeError(
                f"{target} has no bound for a cell (a method per_cell); pass objective=, such as IWAE(1000)"
            )
        require_supported(self.entry, target)
        dataset, seed = self.read(data), checked_seed(seed)
        batch_size = checked_int("batch_size", batch_size, 1)
        rows = max(1, min(batch_size, int(ELEMENTS / (target.particles * max(dataset.width, 1)))))
        kind = "analytic" if getattr(target, "kl", "") == "analytic" else "reparam"
        parts, log_weights, told = [], [], False
        with torch.no_grad(), pyro.validation_enabled(False), isolated(self.device, seed):
            for batch in Loader(dataset, np.arange(dataset.n_cells), rows):
                batch = {k: v.to(self.device) for k, v in batch.items()}
                weights = weigh(self.program, batch, target.particles, kind)
                if not told and not weights.global_latents and bool((weights.globals != 0).any()):
                    told = True
                    caution("factors outside the data plate are no part of the bound of a cell")
                if weights.global_latents:
                    raise ValueError(
                        f"site '{weights.global_latents[0]}' is outside the plate '{self.program.plate}': there is no "
                        "bound for each cell"
                    )
                parts.append(target.per_cell(weights).double().cpu())
                if hasattr(target, "caveat"):
                    log_weights.append(weights.log_w.double().cpu().numpy())
        if log_weights and (said := target.caveat(np.concatenate(log_weights, 1))):
            caution(said)
        return torch.cat(parts).numpy()

    def posterior(self, data=None, particles: int = 200, seed: int = 0) -> Posterior:
        """Return the `Posterior` over the latents of each cell, by importance sampling from the guide.

        Parameters
        ----------
        data : optional
            New cells; the training data by default.
        particles : int
            S, draws for each cell.
        seed : int
            Equal seeds give equal draws.
        """
        return Posterior(self.program, self.read(data), particles, seed, self.schema)

    def refit(
        self,
        objective: str | Objective,
        *,
        guide: str | Program | None = None,
        data=None,
        constraints: Iterable[Constraint] | None = None,
        device: str = "auto",
        **settings,
    ) -> "Fit":
        """Fit a fresh guide to the model as it is, and return a new fit.

        The model's parameters and buffers stay bit for bit, and it runs in evaluation mode: no dropout, and batch
        normalisation by its running statistics. The guide has new initial values and is trained on the same cells.

        Parameters
        ----------
        objective : str or objective
            How the guide is fitted, whatever the model was fitted by. The losses of other groups than ``phi`` are left
            out.
        guide : str or Program, optional
            Family of the guide, for entries that take the argument ``guide``. For a program that you built yourself, a
            newly built program whose guide is to be trained. By default the guide is as it was: built anew, or, in a
            program that you built, with every layer that has a ``reset_parameters`` drawn anew and other parameters
            starting where they started.
        data : optional
            The training data of a fit that was loaded from a file.
        constraints : iterable of Constraint, optional
            By default those of the first fit.
        device : str
            As in `fieldguide.inference.fit`.
        **settings
            ``seed``, ``max_epochs`` (by default as many as the first fit had), ``batch_size``, ``learning_rate``,
            ``epsilon``, ``cooldown``, ``early_stopping``, ``compile``, ``callbacks``, ``checkpoint`` and ``progress``
            as in `fieldguide.inference.fit`; ``kl_warmup`` (by default 0: a frozen model cannot learn to ignore its
            latents).

        Examples
        --------
        >>> import fieldguide.inference as fi
        >>> x = np.random.default_rng(0).normal(size=(200, 4))
        >>> first = fi.fit("ppca", {"x": x}, n_latent=2, max_epochs=5, progress=False)
        >>> second = first.refit("iwae", guide="full_covariance", progress=False)
        >>> torch.equal(first.program.loadings, second.program.loadings), second.arguments["guide"]
        (True, 'full_covariance')
        """
        fabric = launch(device)
        wanted = {"max_epochs": max(1, len(self.history)), "kl_warmup": 0}
        wanted |= {name: value for name, value in settings.items() if value is not None or name not in wanted}
        chosen = Settings.of(Defaults.of(self.entry.defaults), wanted)
        dataset = self.read(data)
        cells = len(self.train_rows) + len(self.validation_rows)
        if dataset.n_cells != cells:
            raise ValueError(
                f"the guide is fitted to the {cells} cells of the first fit, but the data has {dataset.n_cells}"
            )
        given = "" if data is None else cells_of(dataset.obs)
        if self.cells and given and given != self.cells:
            raise ValueError(
                "data: these are not the cells of the first fit in their order, by their names; which are held out is "
                "known by their places: put them in that order"
            )
        target, purpose = resolve(objective), "fresh guide"
        require_supported(self.entry, target)
        with isolated(fabric.device, stream(chosen.seed, purpose)), pyro.validation_enabled(False):
            made_of = (self.entry, self.schema, self.arguments, self.initial)
            program, arguments = with_fresh_guide(self.program, *made_of, guide)
            entry = self.entry if self.entry.built is None else replace(self.entry, built=program)
            rows = (self.train_rows, self.validation_rows)
            fresh = Fit(program, entry, self.schema, target, arguments, dataset, *rows, initial=self.initial)
            fresh.constraints = self.constraints if constraints is None else checked_constraints(constraints)
            few = few_cells(dataset, self.train_rows, program)
            require_sound(program, few, describe_objective(target) is not None)
            if isinstance(guide, Program):
                require_same_model(self.program, program, few)
            with frozen_model(program):
                columns = self.annotation if data is None else data
                train(fresh, chosen, fabric, columns, purpose, guide_training)
        return fresh

    def save(self, path: str | Path) -> None:
        """Write parameters, settings and history to one file (safetensors with JSON metadata, no pickle).

        An existing file is replaced only once the new one is complete and on the disk.

        Raises
        ------
        OSError
            If the file cannot be written.
        TypeError
            If an argument of the program is no plain value, naming it.
        """
        write_file(checked_path("path", path), self.program.state_dict(), self.describe())

    def describe(self) -> dict[str, Any]:
        """Return everything but the parameters as plain values, as `save` writes it.

        Raises
        ------
        TypeError
            Naming an argument of the program that is no plain value.
        """
        return {
            "program": type(self.program).__qualname__,
            "entry": self.entry.name if self.entry.listed else None,
            "arguments": plain(self.arguments),
            "objective": describe_objective(self.objective),
            "constraints": [describe_constraint(c) for c in self.constraints],
            "schema": self.schema.describe() if self.schema else None,
            "interrupted": self.interrupted,
            "versions": versions(),
            "history": table_text(self.history.reset_index()),
            "train_rows": self.train_rows.tolist(),
            "validation_rows": self.validation_rows.tolist(),
            "cells": self.cells,
        }

    def write(self, adata: anndata.AnnData, key: str = "fieldguide") -> None:
        """Write the latent means into ``adata.obsm[key + "_latent"]`` and the settings into ``adata.uns[key]``."""
        if not isinstance(adata, anndata.AnnData):
            raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}")
        adata.obsm[f"{key}_latent"] = self.latent(adata)
        adata.uns[key] = {"entry": self.name, "objective": str(self.objective)}

    def __repr__(self) -> str:
        cells = f"{len(self.train_rows)} cells and {len(self.validation_rows)} held out"
        return f"<Fit of {self.name} by {self.objective}: {len(self.history)} epochs on {cells}>"


def cells_of(obs: pd.DataFrame | None) -> str:
    """Return a digest of the names of cells in their order; empty where they have none, or the numbers of pandas."""
    if obs is None or unnamed(obs.index):
        return ""
    return sha256("\0".join(map(str, label_texts(obs.index))).encode()).hexdigest()


def _latents(trace) -> list[str]:
    return [n for n in trace.stochastic_nodes if not site_is_subsample(trace.nodes[n])]
