"""A screen in several contexts: what was done to each cell, where, and what is observed under each condition."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fieldguide.decisions.perturbations.targets import perturbation_field
from fieldguide.inference.checks.labels import find_label
from fieldguide.inference.fitted import Fit
from fieldguide.inference.program import Batch

CONTROL = "control"
"""Name of what is done to cells without a perturbation."""
PSEUDO = 1e-5
"""Added to mean proportions before the logarithm."""
BLOCK = 4096


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


@dataclass
class Screen:
    """Cells by condition: a context and what was done, several perturbations joined by "+".

    Attributes
    ----------
    fitted : Fit
    dataset : Dataset
    contexts : list of str
    perturbations : list of str
        Names of single perturbations.
    context : int array [N]
    labels : list of str
        What was done, in the data: the first is the control, if there is one.
    label : int array [N]
    codes : int array [L, M]
        Perturbations of each label, -1 for none.
    """

    fitted: Fit
    dataset: Any
    contexts: list[str]
    perturbations: list[str]
    context: np.ndarray
    labels: list[str]
    label: np.ndarray
    codes: np.ndarray

    @property
    def n_cells(self) -> np.ndarray:
        """Cells under each label in each context, int [C, L]."""
        table = np.zeros((len(self.contexts), len(self.labels)), dtype=int)
        np.add.at(table, (self.context, self.label), 1)
        return table

    def genes(self, size: int) -> list[str]:
        """Names of the genes, or their numbers."""
        states = {} if self.fitted.schema is None else self.fitted.schema.states
        names = states.get("counts", {}).get("genes") or states.get("values", {}).get("features")
        return [str(name) for name in (names or range(size))]

    def label_of(self, name: str, wanted: Any) -> tuple[str, np.ndarray]:
        """Return the name and the codes [M] of what a user calls for, known in the data or made of known parts.

        Raises
        ------
        SchemaError, ValueError
            For what has a part that was not in the training data.
        """
        field_name, field, state = perturbation_field(self.fitted)
        parts = [] if str(wanted) == CONTROL else field.parts(str(wanted), state["control"])
        codes = sorted(find_label(name, part, self.perturbations, "perturbation") for part in parts)
        return label_text([self.perturbations[code] for code in codes]), np.array(codes or [-1])

    def sums(self, name: str) -> np.ndarray:
        """Return the sums over cells of a matrix by condition, float64 [C, L, G]."""
        store, total = self.dataset.stores[name], None
        for begin in range(0, self.dataset.n_cells, BLOCK):
            rows = np.arange(begin, min(begin + BLOCK, self.dataset.n_cells))
            values = store.gather(rows).double().numpy()
            if total is None:
                total = np.zeros((len(self.contexts), len(self.labels), values.shape[1]))
            np.add.at(total, (self.context[rows], self.label[rows]), values)
        assert total is not None
        return total

    def levels(self) -> tuple[str, np.ndarray]:
        """Return the level of each gene by condition [C, L, G], NaN without cells, and its scale.

        Of counts the scale is "log2": of the mean proportion, all counts of a condition together; else "mean".
        """
        n_cells = self.n_cells
        with np.errstate(invalid="ignore", divide="ignore"):
            if "values" in self.dataset.stores:
                return "mean", self.sums("values") / n_cells[..., None]
            sums = self.sums("counts")
            return "log2", np.log2(sums / sums.sum(-1, keepdims=True) + PSEUDO)


def label_text(parts: list[str]) -> str:
    """Name of several perturbations together."""
    return "+".join(parts) or CONTROL


def read_screen(fitted: Any, data: Any = None) -> Screen:
    """Return the screen that a program with contexts and perturbations was fitted to, or another.

    Raises
    ------
    TypeError
        For a fit of a program that reads no contexts or no perturbations, or has no blocks of latents.
    """
    name, _, state = perturbation_field(fitted)
    schema = fitted.schema
    if schema is None or "context" not in schema.states or not isinstance(fitted.program, BlockProgram):
        raise TypeError(f"{fitted.name} has no contexts of perturbed cells: fit an entry with them, such as 'fcr'")
    dataset = fitted.read(data)
    everything = np.arange(dataset.n_cells)
    codes = dataset.stores[name].gather(everything).numpy()
    context = dataset.stores["context"].gather(everything).numpy()
    kinds, label = np.unique(codes, axis=0, return_inverse=True)
    perturbations = list(state["perturbations"])
    labels = [label_text([perturbations[c] for c in kind if c >= 0]) for kind in kinds]
    contexts = [str(c) for c in schema.states["context"]["categories"]]
    return Screen(fitted, dataset, contexts, perturbations, context, labels, label.ravel(), kinds)


def conditioned(screen: Screen, batch: Batch, context: int, codes: np.ndarray, dose: float) -> Batch:
    """Return a minibatch whose cells are all in one context under given perturbations, at a dose."""
    name = perturbation_field(screen.fitted)[0]
    size = len(batch["context"])
    given: Tensor = batch[name].new_tensor(codes).expand(size, -1)
    changed = batch | {name: given, "context": batch["context"].new_full((size,), context)}
    if "dose" in batch:
        changed["dose"] = batch["dose"].new_full(given.shape, dose) * (given >= 0)
    return changed
