"""Several assays of one tissue in one AnnData: cells below each other, genes joined, a mask of who measured what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from fieldguide.inference.checks.arguments import checked_text
from fieldguide.inference.checks.labels import label_text, label_texts
from fieldguide.inference.data.fields import Category
from fieldguide.inference.data.matrices import check_counts, table_of
from fieldguide.inference.data.reading import SchemaError, categories_of, cell_name, codes_of, column_of
from fieldguide.inference.data.storage import DenseStore

COLUMN = "modality"
MASK = "measured"


def join_modalities(
    modalities: Mapping[str, anndata.AnnData],
    *,
    hide: Mapping[str, Sequence[str]] | None = None,
    genes: Sequence[str] | None = None,
    batch: str | None = None,
) -> anndata.AnnData:
    """Return one AnnData with the cells of all modalities and the union of their genes; the given ones stay unchanged.

    Parameters
    ----------
    modalities : mapping of str to AnnData
        Raw counts in ``X``, genes by name and in any order. The first is the reference (sequencing): a modality that
        did not measure a gene borrows from it what the model needs to predict counts.
    hide : mapping of str to sequence of str, optional
        Genes of a modality to be treated as not measured: their counts are left out.
    genes : sequence of str, optional
        The genes of the result, in this order, in place of the union: those of the training data, to join new cells
        (then a single modality will do). Genes outside are dropped.
    batch : str, optional
        A column of every ``obs``. Its values, marked with their modality, become ``obs["batch"]``.

    Returns
    -------
    AnnData
        ``X``: counts, CSR float32, zero where a gene was not measured. ``obs["modality"]``: names in the given order;
        the cells keep their names, marked with their modality. ``varm["measured"]``: a table genes x modalities, true
        where it was measured. ``obs`` columns and ``obsm["spatial"]`` are kept (missing where a modality has none; a
        column that holds numbers in one modality and text in another becomes text).

    Raises
    ------
    ValueError
        If two modalities have no gene in common, directly or through others; if none of the genes that a modality
        shares has any count in it; if a cell has none on the genes that its modality shares (naming it); if a gene or
        cell appears twice; if a gene to be hidden does not exist; if counts are not non-negative integers.

    Examples
    --------
    >>> rna = anndata.AnnData(np.array([[1, 2, 3], [0, 4, 5]]), var=pd.DataFrame(index=["a", "b", "c"]))
    >>> fish = anndata.AnnData(np.array([[7, 6]]), var=pd.DataFrame(index=["b", "a"]))
    >>> both = join_modalities({"rna": rna, "fish": fish})
    >>> both.X.toarray()[-1].tolist(), both.varm["measured"]["fish"].tolist()
    ([6.0, 7.0, 0.0], [True, True, False])
    """
    if not isinstance(modalities, Mapping):
        raise TypeError(f"modalities must be a mapping of names to AnnData, not {type(modalities).__name__}")
    if not modalities:
        raise ValueError("there is no modality to join")
    batch = None if batch is None else checked_text("batch", batch)
    if genes is not None and (isinstance(genes, str) or np.ndim(genes) != 1):
        raise TypeError(f"genes must be a list of names, not {genes!r:.60}")
    hidden = _hidden(modalities, hide or {})
    measures = {name: [g for g in _names(name, data) if g not in hidden[name]] for name, data in modalities.items()}
    if genes is not None:
        union = pd.Index([str(g) for g in genes])
        if union.has_duplicates:
            raise ValueError(f"gene {union[union.duplicated()][0]!r} appears twice in genes")
        measures = {name: [g for g in names if g in union] for name, names in measures.items()}
        for name, names in measures.items():
            if not names:
                raise ValueError(f"modality '{name}' measures none of the given genes")
    else:
        union = pd.Index(list(dict.fromkeys(g for data in modalities.values() for g in data.var_names.astype(str))))
    measured = pd.DataFrame({name: union.isin(names) for name, names in measures.items()}, index=union)
    if len(modalities) > 1:
        _require_connected(measured)
    shared = measured.sum(axis=1) > (1 if len(modalities) > 1 else 0)
    matrices, tables = [], []
    for name, data in modalities.items():
        if len(data) == 0:
            raise ValueError(f"modality '{name}' has no cells")
        matrix = _counts(name, data)
        columns = union.get_indexer(measures[name])
        source = pd.Index(data.var_names.astype(str)).get_indexer(measures[name])
        spread = sp.csr_matrix(
            (np.ones(len(columns), dtype=np.float32), (source, columns)), shape=(data.n_vars, len(union))
        )
        matrix = sp.csr_matrix(matrix @ spread)
        _require_counts(name, data, matrix, (shared & measured[name]).to_numpy())
        matrices.append(matrix)
        tables.append(_table(name, data, batch))
    obs = pd.concat(tables, axis=0, sort=False)
    obs = obs.apply(_of_one_kind)
    obs[COLUMN] = pd.Categorical(obs[COLUMN], categories=list(modalities))
    joined = anndata.AnnData(sp.csr_matrix(sp.vstack(matrices)), obs=obs, var=pd.DataFrame(index=union))
    joined.varm[MASK] = measured
    places = [data.obsm.get("spatial") for data in modalities.values()]
    width = next((np.asarray(p).shape[1] for p in places if p is not None), 0)
    if width:
        blank = [np.full((len(d), width), np.nan) for d in modalities.values()]
        joined.obsm["spatial"] = np.concatenate(
            [b if p is None else np.asarray(p, dtype=float) for b, p in zip(blank, places, strict=True)]
        )
    return joined


@dataclass(frozen=True)
class Modality(Category):
    """The modality of each cell (``obs``), int64 [N], and which genes it measures (``varm["measured"]``, optional).

    Codes are in the order of a categorical column (sorted otherwise); the first is the reference. Without the table,
    every modality is taken to measure every gene. New data may lack modalities, not bring others, and its table, where
    it has one, must measure what the training data measured.
    """

    def learn(self, name, data, place):
        if isinstance(data, anndata.AnnData) and place not in data.obs:
            raise SchemaError(
                f"field '{name}': no column {place!r} in obs: join the assays first, by join_modalities or `fieldguide "
                "join`"
            )
        column = column_of(name, data, place)
        names = categories_of(name, place, column)
        if isinstance(column.dtype, pd.CategoricalDtype):
            names = [label_text(c) for c in column.cat.categories if label_text(c) in names]
        mask = _mask(name, data, names)
        if mask is not None:
            for modality, row in zip(names, mask, strict=True):
                if not row.any():
                    raise SchemaError(f"field '{name}': modality '{modality}' measures no gene")
        if mask is None:
            return {"categories": names, "measured": None}
        genes = data.var_names.astype(str)
        return {
            "categories": names,
            "measured": mask.astype(int).tolist(),
            "measures": [[str(g) for g in genes[row]] for row in mask],
        }

    def read(self, name, data, place, state):
        codes = codes_of(name, place, column_of(name, data, place), state["categories"])
        if state["measured"] is not None and isinstance(data, anndata.AnnData) and MASK in data.varm:
            here = [c for k, c in enumerate(state["categories"]) if (codes == k).any()]
            mask = _mask(name, data, here)
            table = pd.DataFrame(np.asarray(mask), index=here, columns=data.var_names.astype(str))
            for modality in here:
                trained = state["measures"][state["categories"].index(modality)]
                lacking = [g for g in trained if g not in table.columns or not table.loc[modality, g]]
                if lacking:
                    raise SchemaError(
                        f"field '{name}': gene {lacking[0]!r} was measured by modality '{modality}' in the training "
                        f"data, and is not here ({len(lacking)} such genes)"
                    )
        return DenseStore(codes)

    def sizes(self, name, state):
        return {f"n_{name}": len(state["categories"]), MASK: state["measured"]}


def _mask(name: str, data, modalities: list[str]) -> np.ndarray | None:
    """Which genes each modality measures, bool [M, G]."""
    if not isinstance(data, anndata.AnnData) or MASK not in data.varm:
        return None
    table = data.varm[MASK]
    if not isinstance(table, pd.DataFrame):
        raise SchemaError(f"field '{name}': varm['{MASK}'] must be a table with the modalities as columns")
    missing = [m for m in modalities if m not in table.columns]
    if missing:
        raise SchemaError(f"field '{name}': varm['{MASK}'] has no column for modality '{missing[0]}'")
    return table[modalities].to_numpy(dtype=bool).T


def _names(name: str, data: anndata.AnnData) -> list[str]:
    if not isinstance(data, anndata.AnnData):
        raise TypeError(f"modality {name!r} must be an AnnData, not {type(data).__name__}")
    names = pd.Index(data.var_names.astype(str))
    if names.has_duplicates:
        raise ValueError(f"modality '{name}': gene {names[names.duplicated()][0]!r} appears twice; sum or rename them")
    return [str(gene) for gene in names]


def _hidden(modalities: Mapping[str, anndata.AnnData], hide: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    if not isinstance(hide, Mapping):
        raise TypeError(f"hide must be a mapping of modalities to lists of genes, not {type(hide).__name__}")
    unknown = sorted(set(hide) - set(modalities), key=str)
    if unknown:
        raise ValueError(f"hide names modality '{unknown[0]}'; there are {', '.join(modalities)}")
    for name, genes in hide.items():
        if isinstance(genes, str):
            raise ValueError(f"hide['{name}'] must be a list of genes, not the text {genes!r}")
        absent = [g for g in genes if str(g) not in set(modalities[name].var_names.astype(str))]
        if absent:
            raise ValueError(f"hide names gene {str(absent[0])!r}, which modality '{name}' does not have")
    return {name: {str(g) for g in hide.get(name, ())} for name in modalities}


def _require_connected(measured: pd.DataFrame) -> None:
    """Raise unless every modality shares genes with another one that leads, through others, to the first."""
    mask = measured.to_numpy().T
    reached = np.zeros(len(mask), dtype=bool)
    reached[0] = True
    for _ in mask:
        reached |= (mask & mask[reached].any(0)).any(1)
    if not reached.all():
        raise ValueError(
            f"modality '{measured.columns[~reached][0]}' shares no gene with '{measured.columns[0]}' (compare their "
            "var_names: symbols against identifiers, upper and lower case)"
        )


def _counts(name: str, data: anndata.AnnData) -> sp.csr_matrix:
    try:
        table = table_of(name, data.to_memory() if data.isbacked else data, "X")
        check_counts(name, data, table, empty=True)
    except SchemaError as error:
        raise ValueError(f"modality {str(error).removeprefix('field ')}") from None
    return sp.csr_matrix(table.values, dtype=np.float32)


def _require_counts(name: str, data: anndata.AnnData, matrix: sp.csr_matrix, shared: np.ndarray) -> None:
    totals = np.asarray(matrix[:, np.flatnonzero(shared)].sum(1)).ravel()
    if not totals.any():
        raise ValueError(f"modality '{name}' has no count at all on the {shared.sum()} genes that it shares")
    empty = np.flatnonzero(totals == 0)
    if empty.size:
        raise ValueError(
            f"modality '{name}': cell {cell_name(data, empty[0])!r} has no count on the genes that it shares "
            f"({empty.size} such cells); remove them first"
        )


def _table(name: str, data: anndata.AnnData, batch: str | None) -> pd.DataFrame:
    if not data.obs_names.is_unique:
        raise ValueError(f"modality '{name}': cell {data.obs_names[data.obs_names.duplicated()][0]!r} appears twice")
    table = pd.DataFrame(data.obs).drop(columns=["batch", COLUMN], errors="ignore").copy()
    if batch is not None:
        if batch not in data.obs:
            raise ValueError(f"batch: modality '{name}' has no column {batch!r} in obs")
        try:
            categories_of(name, batch, data.obs[batch])
        except SchemaError as error:
            raise ValueError(f"modality {str(error).removeprefix('field ')}") from None
        table["batch"] = [f"{name}: {value}" for value in label_texts(data.obs[batch])]
    table.index = pd.Index([f"{name}: {cell}" for cell in data.obs_names])
    table[COLUMN] = name
    return table


def _of_one_kind(column: pd.Series) -> pd.Series:
    """Return a column that files can hold: values of several kinds, of which each assay had one, become text.

    Floating-point numbers of pandas' own types, which files cannot hold, become plain ones with NaN.
    """
    if column.dtype != object and not isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
        return pd.Series(column.to_numpy(dtype=np.float64, na_value=np.nan), index=column.index)
    kinds = {type(value) for value in column.dropna()} if column.dtype == object else set()
    if not kinds - {str}:
        return column
    if kinds <= {bool, np.bool_}:
        return column.astype("boolean")
    return pd.Series(pd.Categorical(label_texts(column)), index=column.index)
