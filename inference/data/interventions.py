"""Interventions: which genes were intervened on in each cell, as codes and masks, and splits that hold regimes out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed, checked_text
from fieldguide.inference.checks.labels import find_label, given_labels, label_texts
from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.matrices import dense, shown, table_of
from fieldguide.inference.data.reading import SchemaError, cell_name, check_data, column_of
from fieldguide.inference.data.storage import DenseStore
from fieldguide.inference.messages import caution

NONE = -1
"""Code of "no (further) target"."""
CONTROL = "control"
"""Name of the regime without a target."""
USUAL = (
    *("control", "ctrl", "ctl", "neg", "negative", "negctrl", "negcontrol", "negativectrl", "negativecontrol"),
    *("nt", "ntc", "nontargeting", "nontargetingcontrol", "nontarget", "safetargeting", "safe", "safeharbor"),
    *("scramble", "scrambled", "nontargetingscramble", "intergenic", "none", "unperturbed", "untreated", "mock"),
    *("wt", "wildtype", "vehicle", "dmso", "nan", "na"),
)
"""Words that say "no target" in public data, in small letters, without hyphens and what number follows one."""
SEPARATORS = ("+", ";", "|", "_", "/", "&", ":", "-", " ")


@dataclass(frozen=True)
class Targets(Field):
    """The genes that were intervened on in each cell; their codes, int64 [N, M], in ascending order, then -1.

    In an AnnData, a column of ``obs`` with names of genes (``var_names``), several separated by ``separator``. In a
    dict of arrays, codes: whole numbers [N, M] or [N], -1 where there is none. M is the largest number of targets of a
    cell, at least 1; new data may have more than the data trained on had.

    No target has a cell whose value is missing or empty, or one of ``control``; and, unless the data have a gene of
    this name, one of the usual words, whatever their case and hyphens, and with a number after one ("NT-5", not "NT5",
    which is a gene): control, ctrl, non-targeting, NT, negative control, safe-targeting, scramble, none and the like. A
    warning says which of them were taken so.

    Other labels than the default ones are passed with the place:
    ``fields={"targets": Targets("guide", control="AAVS1", separator="+")}``.

    Attributes
    ----------
    control : str or tuple of str
        What says that a cell has no target, besides the above; it comes before a gene of the same name.
    separator : str
    beside : str
        In a dict of arrays, the matrix [N, G] whose columns are the genes.
    """

    place: str = "targets"
    control: str | Sequence[str] = (CONTROL,)
    separator: str = ","
    beside: str = "x"

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", given_labels("control", self.control))
        checked_text("separator", self.separator)

    def learn(self, name, data, place):
        genes, n_genes = _genes(name, data, self.beside)
        codes = self.codes(name, data, place, genes, n_genes, remark=True)
        if (codes == NONE).all():
            raise SchemaError(
                f"field '{name}': {place!r} names no target in any cell; for observational data alone, leave it out "
                f"(fields={{'{name}': None}})"
            )
        return {"genes": genes, "n_genes": n_genes, "control": list(self.control), "separator": self.separator}

    def read(self, name, data, place, state):
        genes, n_genes = _genes(name, data, self.beside)
        if genes is not None and state["genes"] is not None and genes != state["genes"]:
            at = next((i for i, (a, b) in enumerate(zip(genes, state["genes"], strict=False)) if a != b), None)
            where = f"{len(genes)} genes, not {len(state['genes'])}" if at is None else f"gene {genes[at]!r} at {at}"
            raise SchemaError(
                f"field '{name}': the genes must be those of the training data, in order: {where}; put them in order "
                "by adata[:, names]"
            )
        settings = {key: state[key] for key in ("control", "separator") if key in state}
        learnt = replace(self, **settings)
        return DenseStore(learnt.codes(name, data, place, state["genes"], state["n_genes"]))

    def codes(
        self, name: str, data, place: str, genes: list[str] | None, n_genes: int | None, remark: bool = False
    ) -> np.ndarray:
        """Return the codes [N, M]; raises SchemaError naming the cell and what is not a gene."""
        if isinstance(data, Mapping):
            return _tidy(self._numbers(name, data, place, n_genes))
        column = column_of(name, data, place)
        if genes is None or not isinstance(data, anndata.AnnData):
            raise SchemaError(f"field '{name}': targets are read from an AnnData or a dict of arrays")
        known, coded, taken = {g: i for i, g in enumerate(genes)}, {}, {}
        text = np.array([value or "" for value in label_texts(column)], dtype=object)
        for value in dict.fromkeys(text):
            if value in self.control:
                coded[value] = []
                continue
            parts = [value.strip()] if value.strip() in known else [p.strip() for p in value.split(self.separator)]
            usual = [p for p in parts if p not in known and p not in self.control and says_none(p)]
            taken |= dict.fromkeys(usual, value)
            parts = [p for p in parts if p and p not in self.control and p not in usual]
            wrong = next((p for p in parts if p not in known), None)
            if wrong is not None:
                raise SchemaError(self._unknown(name, place, wrong, known, data, text == value))
            coded[value] = sorted({known[p] for p in parts})
        if taken and remark:
            words = ", ".join(repr(word) for word in list(taken)[:5]) + (", ..." if len(taken) > 5 else "")
            caution(
                f"field '{name}': {words} in {place!r} is no gene of the data and read as no target; "
                "Targets(control=...) with these words says so too, and without this warning"
            )
        width = max([1, *map(len, coded.values())])
        padded = {value: codes + [NONE] * (width - len(codes)) for value, codes in coded.items()}
        return np.array([padded[value] for value in text], dtype=np.int64).reshape(-1, width)

    def _unknown(self, name: str, place: str, wrong: str, known: Mapping[str, int], data, cells: np.ndarray) -> str:
        """What is said of a target that is no gene: the separator that would make genes of it, or what else to do."""
        where = f"target {wrong!r} of cell {cell_name(data, np.flatnonzero(cells)[0])!r}"
        said = f"field '{name}': {where} is none of the {len(known)} genes ({int(cells.sum())} such cells); "
        for mark in SEPARATORS:
            parts = [p.strip() for p in wrong.split(mark)]
            if len(parts) > 1 and all(p in known or p in self.control or says_none(p) for p in parts):
                way = f"fields={{'{name}': Targets({place!r}, separator={mark!r})}}"
                return f"{said}its parts are, separated by {mark!r}: pass separator={mark!r}, as in {way}"
        words = ", ".join(repr(word) for word in dict.fromkeys((*self.control, "non-targeting", "NT")))
        return (
            f"{said}keep its gene in the data, or leave the cells out; or if it says that there is no target (as "
            f"{words} do), pass fields={{'{name}': Targets({place!r}, control={wrong!r})}}"
        )

    def _numbers(self, name: str, data, place: str, n_genes: int | None) -> np.ndarray:
        table = table_of(name, data, place, flat=True)
        values = np.asarray(dense(table.values))
        limit = np.inf if n_genes is None else n_genes
        wrong = np.argwhere(~((values >= NONE) & (values < limit) & (values == np.floor(values))))
        if wrong.size:
            row, column = wrong[0]
            genes = "" if n_genes is None else f" of {n_genes}"
            raise SchemaError(
                f"field '{name}': target {shown(values[row, column])} of cell {cell_name(data, row)!r} is not the code "
                f"of a gene{genes}, nor {NONE} for none"
            )
        return values.astype(np.int64)


def says_none(word: str) -> bool:
    """Whether a word says that there is no target, whatever its case, hyphens and the number after one.

    A number that follows at once makes another word: WT1 and NT5 are genes.

    Examples
    --------
    >>> [says_none(word) for word in ("Non-Targeting_12", "NT-3", "ctrl", "", "17", "WT1")]
    [True, True, True, False, False, False]
    """
    unnumbered = re.sub(r"([\W_]+[0-9]+)+$", "", word.lower())
    return re.sub(r"[\W_]+", "", unnumbered) in USUAL


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


def intervention_regimes(
    data,
    field: Targets | None = None,
    place: str | None = None,
    *,
    control: str | Sequence[str] | None = None,
    separator: str | None = None,
) -> pd.Series:
    """Return the regime of each cell [N]: its set of targets as text, in the order of the genes; "control" for none.

    Parameters
    ----------
    data : AnnData or dict of arrays
    field : Targets, optional
        How targets are written, if not in the default way.
    place, control, separator : optional
        Settings of `Targets` in place of those of ``field``: where targets are, labels of cells without any, and what
        stands between several.
    """
    check_data(data)
    given = {"place": place, "control": control, "separator": separator}
    field = replace(field or Targets(), **{key: value for key, value in given.items() if value is not None})
    genes, n_genes = _genes("targets", data, field.beside)
    codes = field.codes("targets", data, field.place, genes, n_genes, remark=True)
    rows, which = np.unique(codes, axis=0, return_inverse=True)
    labels = [",".join(str(c) if genes is None else genes[c] for c in row if c != NONE) or CONTROL for row in rows]
    index = data.obs_names if isinstance(data, anndata.AnnData) else pd.RangeIndex(len(codes))
    return pd.Series(np.array(labels, dtype=object)[which.ravel()], index=index, name="regime")


def split_interventions(
    data,
    held_out: Any = 0.2,
    seed: Any = 0,
    *,
    validation: Any = 0.2,
    least: Any = 2,
    field: Targets | None = None,
    place: str | None = None,
    control: str | Sequence[str] | None = None,
    separator: str | None = None,
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
    place, control, separator : optional
        As in `intervention_regimes`.

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
    validation = checked_real("validation", validation, at_least=0, below=1)
    seed, least = checked_seed(seed), checked_int("least", least, at_least=1)
    regimes = intervention_regimes(data, field, place, control=control, separator=separator)
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


def _chosen(held_out: Any, targeted: list[str], known: list[str], rng: np.random.Generator) -> list[str]:
    if isinstance(held_out, str):
        raise ValueError(f"held_out must be a share, a number or a list of regimes: [{held_out!r}]")
    if isinstance(held_out, Iterable):
        return [known[k] for k in dict.fromkeys(find_label("held_out", name, known) for name in held_out)]
    is_share = isinstance(held_out, float | np.floating)
    number = checked_real("held_out", held_out) if is_share else checked_int("held_out", held_out)
    if not (0 < number < 1 if is_share else 1 <= number < len(known)):
        raise ValueError(f"held_out must be a share in (0, 1) or fewer than the {len(known)} regimes, not {number:g}")
    count = max(1, round(number * len(targeted))) if is_share else int(number)
    count = min(count, len(targeted))
    return [targeted[i] for i in np.sort(rng.choice(len(targeted), count, replace=False))]


def _genes(name: str, data, beside: str) -> tuple[list[str] | None, int | None]:
    """Return names and number of the genes, as far as the data say."""
    if isinstance(data, anndata.AnnData):
        genes = [str(g) for g in data.var_names]
        if len(set(genes)) < len(genes):
            twice = data.var_names[data.var_names.duplicated()][0]
            raise SchemaError(f"field '{name}': gene {str(twice)!r} is there twice; make var_names unique")
        return genes, len(genes)
    if isinstance(data, Mapping) and (beside in data or "X" in data):
        return None, table_of(beside, data, "X").width
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
