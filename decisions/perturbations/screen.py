"""A screen in several contexts: what was done to each cell, where, and what is observed under each condition."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fieldguide.decisions.perturbations.targets import CONTROL, codes_of_label, perturbation_field
from fieldguide.inference.fitted import Fit
from fieldguide.inference.program import Batch

PSEUDO = 1e-5
"""Added to mean proportions before the logarithm."""
BLOCK = 4096
ALIKE = 1e-3
"""By how much doses may differ that count as one, as a share of the larger."""


@runtime_checkable
class BlockProgram(Protocol):
    """A program with blocks of latents, some of which a treatment does not change.

    ``kept`` are the sites that stay as they are in a cell that is treated; `laws` gives the prior of all sites, by
    site, as objects with ``loc``, ``scale`` and ``unknown`` [B, D], the last the standard deviation of what is not
    known of the first.
    """

    kept: tuple[str, ...]

    def laws(self, batch: Batch) -> dict[str, Any]:
        """Return the prior of each site given the conditions of the cells."""
        ...

    def tried(self, batch: Batch) -> Tensor:
        """Return whether training had what was done to each cell, in its context, and controls there, bool [B]."""
        ...

    def unfinished(self) -> bool:
        """Whether the training ended before the latents were what they should be."""
        ...

    def remarks(self) -> list[str]:
        """What its user should know."""
        ...


@dataclass
class Screen:
    """Cells by condition: a context and what was done, with its doses.

    Attributes
    ----------
    fitted : Fit
    dataset : Dataset
    contexts, perturbations : list of str
        Names, the latter of single perturbations.
    context, kind : int array [N]
        Of each cell.
    codes : int array [L, M]
        Perturbations of each kind of treatment, -1 for none.
    doses : float array [L, M]
        1 where no doses were read.
    """

    fitted: Fit
    dataset: Any
    contexts: list[str]
    perturbations: list[str]
    context: np.ndarray
    kind: np.ndarray
    codes: np.ndarray
    doses: np.ndarray

    @property
    def control(self) -> np.ndarray:
        """Which kinds are no treatment, bool [L]."""
        return np.asarray((self.codes < 0).all(1))

    @cached_property
    def n_cells(self) -> np.ndarray:
        """Cells of each kind in each context, int [C, L]."""
        table = np.zeros((len(self.contexts), len(self.codes)), dtype=int)
        np.add.at(table, (self.context, self.kind), 1)
        return table

    @property
    def has_doses(self) -> bool:
        """Whether the fit read doses."""
        return "dose" in self.dataset.stores

    def name(self, codes: np.ndarray) -> str:
        """What a treatment is called: its perturbations, joined as in the data."""
        state = perturbation_field(self.fitted)[2]
        parts = [self.perturbations[code] for code in codes if code >= 0]
        if parts:
            return state["separator"].join(parts)
        return CONTROL if CONTROL not in self.perturbations else next(iter(state["control"]), "no perturbation")

    def kinds(self, codes: np.ndarray, dose: float) -> np.ndarray:
        """Which kinds are a treatment at a dose, bool [L]."""
        wanted = set(codes[codes >= 0].tolist())
        same = np.array([set(kind[kind >= 0].tolist()) == wanted for kind in self.codes])
        given = np.where(self.codes >= 0, self.doses, dose)
        return same & (np.abs(given - dose) <= ALIKE * np.maximum(given, dose)).all(1) if wanted else same

    def treatments(self) -> list[np.ndarray]:
        """Perturbations of the different treatments there are, without the control, as codes."""
        known = dict.fromkeys(tuple(kind[kind >= 0].tolist()) for kind in self.codes)
        return [np.array(kind) for kind in known if kind]

    def codes_of(self, name: str, wanted: Any) -> np.ndarray:
        """Return the codes of what a user calls for, -1 for a control; ValueError for what training did not have."""
        return codes_of_label(self.fitted, name, wanted)

    @cached_property
    def sums(self) -> np.ndarray:
        """Sums over cells of the observed matrix by condition, float64 [C, L, G]."""
        store, total = self.dataset.stores[self.observed], None
        for begin in range(0, self.dataset.n_cells, BLOCK):
            rows = np.arange(begin, min(begin + BLOCK, self.dataset.n_cells))
            values = store.gather(rows).double().numpy()
            if total is None:
                total = np.zeros((*self.n_cells.shape, values.shape[1]))
            np.add.at(total, (self.context[rows], self.kind[rows]), values)
        assert total is not None
        return total

    @property
    def observed(self) -> str:
        """The field that is observed: "values" or "counts"."""
        return "values" if "values" in self.dataset.stores else "counts"

    def level(self, context: int, kinds: np.ndarray) -> np.ndarray:
        """Return the level of each gene [G] in the cells of some kinds in a context; NaN where there are none.

        Of counts it is the log2 of the mean proportion, all counts together; else the mean.
        """
        total = self.sums[context, kinds].sum(0)
        cells = self.n_cells[context, kinds].sum()
        if not cells:
            return np.full(len(total), np.nan)
        return total / cells if self.observed == "values" else np.log2(total / total.sum() + PSEUDO)

    def response(self, context: int, codes: np.ndarray, dose: float) -> np.ndarray:
        """Return the observed response of each gene [G] to a treatment in a context; NaN without cells of both."""
        return self.level(context, self.kinds(codes, dose)) - self.level(context, self.control)

    def genes(self, size: int) -> list[str]:
        """Names of the genes, or their numbers."""
        states = {} if self.fitted.schema is None else self.fitted.schema.states
        names = states.get("counts", {}).get("genes") or states.get("values", {}).get("features")
        return [str(name) for name in (names or range(size))]


def read_screen(fitted: Any, data: Any = None) -> Screen:
    """Return the screen that a program with contexts and perturbations was fitted to, or another.

    Raises
    ------
    TypeError
        For a fit of a program that reads no contexts or no perturbations, or has no blocks of latents.
    ValueError
        For a fit whose training ended before its latents were what they should be.
    """
    name, _, state = perturbation_field(fitted)
    schema = fitted.schema
    if schema is None or "context" not in schema.states or not isinstance(fitted.program, BlockProgram):
        raise TypeError(f"{fitted.name} has no contexts of perturbed cells: fit an entry with them, such as 'fcr'")
    if fitted.program.unfinished():
        raise ValueError(f"the training of {fitted.name} ended too early: {' '.join(fitted.remarks())}")
    dataset = fitted.read(data)
    everything = np.arange(dataset.n_cells)
    codes = dataset.stores[name].gather(everything).numpy()
    doses = dataset.stores["dose"].gather(everything).numpy() if "dose" in dataset.stores else np.ones(codes.shape)
    doses = np.where(codes >= 0, np.round(doses.astype(float), 6), 0)
    table, kind = np.unique(np.hstack((codes, doses)), axis=0, return_inverse=True)
    width = codes.shape[1]
    return Screen(
        fitted,
        dataset,
        [str(c) for c in schema.states["context"]["categories"]],
        list(state["perturbations"]),
        dataset.stores["context"].gather(everything).numpy(),
        kind.ravel(),
        table[:, :width].astype(int),
        table[:, width:],
    )


def conditioned(fitted: Fit, batch: Batch, codes: np.ndarray, dose: float, context: int | None = None) -> Batch:
    """Return a minibatch whose cells are all under given perturbations at a dose, in one context or their own."""
    name = perturbation_field(fitted)[0]
    given: Tensor = batch[name].new_tensor(codes).expand(len(batch["index"]), -1)
    changed = batch | {name: given}
    if context is not None:
        changed["context"] = batch["context"].new_full((len(given),), context)
    if "dose" in batch:
        changed["dose"] = batch["dose"].new_full(given.shape, dose) * (given >= 0)
    return changed
