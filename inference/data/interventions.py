"""Interventions: which genes were intervened on in each cell, as codes and masks, and splits that hold regimes out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.reading import SchemaError, cell_name, column_of, matrix_of
from fieldguide.inference.data.storage import DenseStore

NONE = -1
"""Code of "no (further) target"."""
CONTROL = "control"
"""Name of the regime without a target."""


@dataclass(frozen=True)
class Targets(Field):
    """The genes that were intervened on in each cell; their codes, int64 [N, M], in ascending order, then -1.

    In an AnnData, a column of ``obs`` with names of genes (``var_names``), several separated by ``separator``. In a
    dict of arrays, codes: whole numbers [N, M] or [N], -1 where there is none. M is the largest number of targets of a
    cell, at least 1; new data may have more than the data trained on had.

    Attributes
    ----------
    control : tuple of str
        What says that a cell has no target, besides a missing value.
    separator : str
    beside : str
        In a dict of arrays, the matrix [N, G] whose columns are the genes.
    """

    place: str = "targets"
    control: tuple[str, ...] = ("", CONTROL)
    separator: str = ","
    beside: str = "x"

    def learn(self, name, data, place):
        genes, n_genes = _genes(name, data, self.beside)
        codes = self.codes(name, data, place, genes, n_genes)
        if (codes == NONE).all():
            raise SchemaError(
                f"field '{name}': {place!r} names no target in any cell; for observational data alone, leave it out "
                f"(fields={{'{name}': None}})"
            )
        return {"genes": genes, "n_genes": n_genes}

    def read(self, name, data, place, state):
        genes, n_genes = _genes(name, data, self.beside)
        if genes is not None and state["genes"] is not None and genes != state["genes"]:
            at = next((i for i, (a, b) in enumerate(zip(genes, state["genes"], strict=False)) if a != b), None)
            where = f"{len(genes)} genes, not {len(state['genes'])}" if at is None else f"gene {genes[at]!r} at {at}"
            raise SchemaError(f"field '{name}': the genes must be those of the training data, in order: {where}")
        return DenseStore(self.codes(name, data, place, state["genes"], state["n_genes"]))

    def codes(self, name: str, data, place: str, genes: list[str] | None, n_genes: int | None) -> np.ndarray:
        """Return the codes [N, M]; raises SchemaError naming the cell and what is not a gene."""
        if isinstance(data, Mapping):
            return _tidy(self._numbers(name, data, place, n_genes))
        column = column_of(name, data, place)
        if genes is None or not isinstance(data, anndata.AnnData):
            raise SchemaError(f"field '{name}': targets are read from an AnnData or a dict of arrays")
        known, coded = {g: i for i, g in enumerate(genes)}, {}
        text = column.astype(object).where(column.notna(), "").astype(str).to_numpy()
        for value in dict.fromkeys(map(str, text)):
            parts = [] if value.strip() in self.control else [p.strip() for p in value.split(self.separator)]
            parts = [p for p in parts if p not in self.control]
            wrong = next((p for p in parts if p not in known), None)
            if wrong is not None:
                row = int(np.flatnonzero(text == value)[0])
                raise SchemaError(
                    f"field '{name}': target {wrong!r} of cell {cell_name(data, row)!r} is none of the {len(genes)} "
                    f"genes ({int((text == value).sum())} such cells); keep its gene in the data, or leave the "
                    "cells out"
                )
            coded[value] = sorted({known[p] for p in parts})
        width = max([1, *map(len, coded.values())])
        padded = {value: codes + [NONE] * (width - len(codes)) for value, codes in coded.items()}
        return np.array([padded[value] for value in text], dtype=np.int64).reshape(-1, width)

    def _numbers(self, name: str, data, place: str, n_genes: int | None) -> np.ndarray:
        values = np.asarray(matrix_of(name, data, place))
        if values.ndim == 1:
            values = values[:, None]
        if not np.issubdtype(values.dtype, np.number):
            raise SchemaError(f"field '{name}': in a dict of arrays targets are whole numbers, not {values.dtype}")
        limit = np.inf if n_genes is None else n_genes
        wrong = np.argwhere(~((values >= NONE) & (values < limit) & (values == np.floor(values))))
        if wrong.size:
            row, column = wrong[0]
            genes = "" if n_genes is None else f" of {n_genes}"
            raise SchemaError(
                f"field '{name}': target {values[row, column]} of cell {cell_name(data, row)!r} is not the code of a "
                f"gene{genes}, nor {NONE} for none"
            )
        return values.astype(np.int64)


def intervention_mask(targets: Tensor, n_genes: int) -> Tensor:
    """Return which genes were intervened on, bool [..., B, G], from codes [..., B, M] with -1 for none.

    Examples
    --------
    >>> intervention_mask(torch.tensor([[2, -1], [0, 1], [-1, -1]]), 3).int().tolist()
    [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    """
    wide = torch.zeros((*targets.shape[:-1], n_genes + 1), dtype=torch.bool, device=targets.device)
    return wide.scatter(-1, torch.where(targets < 0, n_genes, targets), True)[..., :n_genes]


@dataclass
class InterventionSplit:
    """Rows for training, validation and test.

    Attributes
    ----------
    train, validation : int64 arrays
        Rows of the regimes that are trained on; pass ``validation=split.validation`` to ``fit`` after leaving
        ``held_out`` out, or see ``within_seen``.
    held_out : int64 array
        Rows of the regimes that no training sees.
    regimes : Series [N]
        Regime of each cell: names of its targets, or codes, joined by commas; "control" for none.
    held_out_regimes : tuple of str
    """

    train: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray
    regimes: pd.Series
    held_out_regimes: tuple[str, ...]

    @property
    def seen(self) -> np.ndarray:
        """Rows that are not held out, in order: the data to give to ``fit``."""
        return np.sort(np.concatenate([self.train, self.validation]))

    @property
    def within_seen(self) -> np.ndarray:
        """Places of the validation rows among ``seen``: what to give to ``fit`` as ``validation``."""
        return np.flatnonzero(np.isin(self.seen, self.validation))


def intervention_regimes(data, field: Targets | None = None, place: str | None = None) -> pd.Series:
    """Return the regime of each cell [N]: its set of targets as text, in the order of the genes; "control" for none."""
    field = field or Targets()
    place = place or field.place
    genes, n_genes = _genes("targets", data, field.beside)
    codes = field.codes("targets", data, place, genes, n_genes)
    rows, which = np.unique(codes, axis=0, return_inverse=True)
    labels = [",".join(str(c) if genes is None else genes[c] for c in row if c != NONE) or CONTROL for row in rows]
    index = data.obs_names if isinstance(data, anndata.AnnData) else pd.RangeIndex(len(codes))
    return pd.Series(np.array(labels, dtype=object)[which.ravel()], index=index, name="regime")


def split_interventions(
    data,
    held_out: float | int | Sequence[str] = 0.2,
    seed: int = 0,
    *,
    validation: float = 0.2,
    least: int = 2,
    field: Targets | None = None,
    place: str | None = None,
) -> InterventionSplit:
    """Hold whole regimes out, and split the cells of the others into training and validation.

    Parameters
    ----------
    data : AnnData or dict of arrays
    held_out : float, int or names
        Share or number of the regimes with targets, drawn without replacement; or their names (of
        `intervention_regimes`). The regime without targets is held out only by name.
    seed : int
    validation : float
        Share of the cells of each other regime, rounded; at least one cell of each stays in training.
    least : int
        Cells that every regime must have.
    field : Targets, optional
        How targets are written, if not in the default way.
    place : str, optional
        Where they are, if not in ``obs["targets"]``.

    Raises
    ------
    ValueError
        If there is no intervention, a regime has too few cells, or nothing would be left to train on.

    Examples
    --------
    >>> data = {"x": np.zeros((12, 3)), "targets": np.repeat([0, 1, 2, -1], 3)}
    >>> split = split_interventions(data, held_out=["1"], validation=0.34)
    >>> len(split.train), len(split.validation), split.held_out.tolist()
    (6, 3, [3, 4, 5])
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share in [0, 1), not {validation}")
    regimes = intervention_regimes(data, field, place)
    sizes = regimes.value_counts().reindex(pd.unique(regimes))
    targeted = [str(r) for r in sizes.index if r != CONTROL]
    if not targeted:
        raise ValueError("no cell has a target: there is no regime to hold out")
    small = sizes.index[sizes < least]
    if len(small):
        row = int(np.flatnonzero(regimes == small[0])[0])
        raise ValueError(
            f"regime {small[0]!r} has {sizes[small[0]]} cells (the first: {cell_name(data, row)!r}; {len(small)} such "
            f"regimes), fewer than least={least}: leave these cells out, or lower least"
        )
    rng = np.random.default_rng(seed)
    chosen = _chosen(held_out, targeted, list(map(str, sizes.index)), rng)
    if len(chosen) == len(sizes):
        raise ValueError(f"all {len(chosen)} regimes would be held out: nothing is left to train on")
    train, held_in = [], []
    for regime in sizes.index:
        if regime in chosen:
            continue
        rows = rng.permutation(np.flatnonzero(regimes == regime))
        size = min(round(validation * len(rows)), len(rows) - 1)
        held_in.append(rows[:size])
        train.append(rows[size:])
    out = np.flatnonzero(regimes.isin(chosen))
    return InterventionSplit(
        np.sort(np.concatenate(train)), np.sort(np.concatenate(held_in)), out, regimes, tuple(chosen)
    )


def _chosen(held_out, targeted: list[str], known: list[str], rng: np.random.Generator) -> list[str]:
    if isinstance(held_out, str):
        raise ValueError(f"held_out must be a share, a number or a list of regimes: [{held_out!r}]")
    if isinstance(held_out, Iterable):
        names = [str(name) for name in held_out]
        unknown = next((n for n in names if n not in known), None)
        if unknown is not None:
            raise ValueError(f"held_out: no cell is in regime {unknown!r}; there are {', '.join(known[:10])}")
        return list(dict.fromkeys(names))
    is_share = isinstance(held_out, float)
    if not (0 < held_out < 1 if is_share else 1 <= held_out < len(known)):
        raise ValueError(f"held_out must be a share in (0, 1) or fewer than the {len(known)} regimes, not {held_out}")
    count = max(1, round(held_out * len(targeted))) if is_share else int(held_out)
    count = min(count, len(targeted))
    return [targeted[i] for i in np.sort(rng.choice(len(targeted), count, replace=False))]


def _genes(name: str, data, beside: str) -> tuple[list[str] | None, int | None]:
    """Return names and number of the genes, as far as the data say."""
    if isinstance(data, anndata.AnnData):
        genes = [str(g) for g in data.var_names]
        if len(set(genes)) < len(genes):
            twice = next(g for i, g in enumerate(genes) if g in genes[:i])
            raise SchemaError(f"field '{name}': gene {twice!r} is there twice; make var_names unique")
        return genes, len(genes)
    if isinstance(data, Mapping) and (beside in data or "X" in data):
        return None, int(matrix_of(beside, data, "X").shape[1])
    return None, None


def _tidy(codes: np.ndarray) -> np.ndarray:
    """Sort the codes of each row, each once, -1 last, and drop columns that no row uses."""
    if not codes.size:
        return np.full((len(codes), 1), NONE, dtype=np.int64)
    top = np.iinfo(np.int64).max
    codes = np.sort(np.where(codes == NONE, top, codes), 1)
    codes[:, 1:][codes[:, 1:] == codes[:, :-1]] = top
    codes = np.sort(codes, 1)
    width = max(1, int((codes != top).sum(1).max()))
    return np.where(codes == top, NONE, codes)[:, :width]
