"""The commands ``fieldguide de``, ``join`` and ``impute``: decisions from a fit, and the data of several assays."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fieldguide.arguments import DataFile, FitFile, check_paths, check_seed, check_whole, pairs, read_fit, read_h5ad
from fieldguide.tables import check_written, show_table, write_table


def de(
    fit: FitFile,
    data: DataFile,
    groupby: str,
    group: str,
    reference: str | None = None,
    output: Path | None = None,
    mode: str = "change",
    delta: float = 0.25,
    fdr: float = 0.05,
    unit: str | None = None,
    estimator: str = "snis",
    calibrate: bool = True,
    draws: int = 200,
    seed: int = 0,
    top: int = 20,
) -> None:
    """Call genes that differ between two groups of cells, at a stated expected false discovery rate.

    Args:
        fit: File that `fieldguide fit` saved.
        data: An h5ad file with the genes of the fit; it is not changed.
        groupby: Column of obs with the groups.
        group: The group that is compared; positive fold changes are higher in it.
        reference: What it is compared with; by default all other cells.
        output: File for the table of all genes: CSV, or by its ending .parquet or .feather.
        mode: change (is the fold change at least delta?) or vanilla (which random cell has more?).
        delta: Least log2 fold change of interest.
        fdr: Target of the expected false discovery rate.
        unit: group (populations, the default), cells (pairs of random cells), or the obs column of subjects.
        estimator: snis (importance-weighted) or plugin (the guide as it is).
        calibrate: Correct the levels of the groups by their counts, so that intervals are wide enough.
        draws: S, posterior draws for each cell.
        seed: Equal seeds give equal tables.
        top: Genes to print.
    """
    check_paths([output], [fit, data])
    check_written(output)
    check_seed(seed)
    check_whole(draws=draws, top=top)
    from fieldguide.decisions import differential_expression

    posterior = read_fit(fit).posterior(read_h5ad(data), draws, seed)
    decision = differential_expression(
        posterior,
        groupby,
        group,
        reference,
        mode=mode,
        delta=delta,
        fdr=fdr,
        unit=unit,
        estimator=estimator,
        calibrate=calibrate,
        seed=seed,
    )
    columns = ["lfc", "lfc_low", "lfc_high", "probability", "fdr", "is_de"]
    show_table(decision.table.loc[:, columns].head(top).rename_axis("gene").reset_index().round(3), right=True)
    for note in decision.notes:
        print(note)
    settings = decision.settings
    called = int(decision.table["is_de"].sum())
    print(f"{settings['group']} against {settings['reference']}: {called} of {len(decision.table)} genes are called")
    if output is not None:
        write_table(decision.table, output)
        print(f"all genes: {output}")


def join(
    modalities: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME=FILE")],
    output: Path = Path("joined.h5ad"),
    batch: str | None = None,
) -> None:
    """Join the h5ad files of several assays of one tissue into one, for gimvi.

    Args:
        modalities: NAME=FILE for each assay, the reference (sequencing) first.
        output: The h5ad file to write.
        batch: A column of obs in every file that says which batch a cell is of.
    """
    files = {name: Path(path) for name, path in pairs(modalities, "join", "NAME=FILE").items()}
    check_paths([output], files.values())
    from fieldguide.inference import join_modalities
    from fieldguide.reports.annotated_file import write_h5ad

    joined = join_modalities({name: read_h5ad(path) for name, path in files.items()}, batch=batch)
    write_h5ad(joined, output)
    table = joined.varm["measured"]
    counts = joined.obs["modality"].value_counts()
    for name in files:
        print(f"{name}: {counts[name]} cells, {int(table[name].sum())} of {joined.n_vars} genes")
    print(f"saved to {output}")


def impute(
    fit: FitFile,
    data: DataFile,
    output: Path = Path("imputed.h5ad"),
    modality: str | None = None,
    head: str = "blend",
    interval: float = 0.8,
    draws: int = 25,
    seed: int = 0,
    top: int = 20,
) -> None:
    """Predict the genes that an assay did not measure, from a fit of gimvi.

    Args:
        fit: File that `fieldguide fit gimvi` saved.
        data: The joined h5ad file (see `fieldguide join`); it is not changed.
        output: The h5ad file to write: predicted counts in X, interval and normalised values in layers, trust in var.
        modality: The assay to predict in; by default the one that lacks genes.
        head: blend, model or kernel.
        interval: Probability of the predictive interval of a count.
        draws: S, posterior draws for each cell.
        seed: Equal seeds give equal tables.
        top: Genes to print, those that can be trusted most first.
    """
    check_paths([output], [fit, data])
    check_seed(seed)
    check_whole(draws=draws, top=top)
    from fieldguide.decisions import impute_genes
    from fieldguide.reports.annotated_file import write_h5ad

    posterior = read_fit(fit).posterior(read_h5ad(data), draws, seed)
    imputed = impute_genes(posterior, modality, head=head, interval=interval)
    write_h5ad(imputed.to_anndata(), output)
    columns = ["trust", "trust_se", "reference_score", "reference_detection", "imputed_detection"]
    table = imputed.table.sort_values("trust", ascending=False).loc[:, columns]
    show_table(table.head(top).reset_index().round(3), right=True)
    for note in imputed.notes:
        print(note)
    print(f"{len(table)} genes in {len(imputed.counts)} cells of {imputed.settings['modality']}, saved to {output}")
