"""The commands ``fieldguide targets``, ``contexts`` and ``salient``: decisions on perturbed cells from a fit."""

from io import BytesIO
from pathlib import Path
from typing import Any

from fieldguide.arguments import (
    DataFile,
    FitFile,
    UsageError,
    check_paths,
    check_seed,
    check_whole,
    read_fit,
    read_h5ad,
)
from fieldguide.tables import check_written, show_table, write_table

PICTURES = (".png", ".svg", ".pdf")
"""Endings of figures."""


def targets(
    fit: FitFile,
    data: DataFile,
    output: Path | None = None,
    plot: Path | None = None,
    rotate: str = "none",
    min_shift: float = 0.5,
    null: str = "empirical",
    fdr: float = 0.05,
    top: int = 20,
) -> None:
    """List which latents each perturbation shifts, with probabilities, at a stated expected false discovery rate.

    Args:
        fit: File that `fieldguide fit svae` (or another model of perturbations) saved.
        data: An h5ad file with the genes of the fit; it is not changed.
        output: File for the table of all pairs of perturbation and latent: CSV, or by its ending .parquet or .feather.
        plot: File for the figure: .png, .svg or .pdf.
        rotate: none, ica or sparse: axes in which the shifts are told.
        min_shift: Least shift of interest, in standard deviations of a latent.
        null: empirical (small leaks are no shifts) or zero.
        fdr: Target of the expected false discovery rate.
        top: Rows to print.
    """
    _check([output, plot], [fit, data], plot, output, top=top)
    from fieldguide.decisions import perturbation_targets

    settings = {"rotate": rotate, "min_shift": min_shift, "null": null, "fdr": fdr}
    decision = perturbation_targets(read_fit(fit), read_h5ad(data), **settings)
    called = int(decision.table["is_target"].sum())
    _show(decision, top, output, plot, f"{called} of {len(decision.table)} pairs are called targets")


def contexts(
    fit: FitFile,
    data: DataFile,
    pairs: tuple[str, ...] = (),
    output: Path | None = None,
    plot: Path | None = None,
    effects: bool = False,
    dose: float = 1.0,
    draws: int = 100,
    seed: int = 0,
    min_effect: float = 0.5,
    fdr: float = 0.05,
    top: int = 20,
) -> None:
    """Predict what treatments do in contexts, pairs never made among them; or list what is particular to a context.

    Args:
        fit: File that `fieldguide fit fcr` saved.
        data: An h5ad file with the genes of the fit, and controls of each context; it is not changed.
        pairs: CONTEXT=TREATMENT for each pair to predict, such as A172=EGFR; by default all.
        output: File for the table of all genes (or effects): CSV, or by its ending .parquet or .feather.
        plot: File for the figure: .png, .svg or .pdf.
        effects: List what is particular to a context, and predict nothing.
        dose: As a share of the largest of each treatment, where doses were read.
        draws: Draws of what is not known.
        seed: Equal seeds give equal tables.
        min_effect: Least effect of interest, in standard deviations of a latent.
        fdr: Target of the expected false discovery rate of effects.
        top: Rows to print.
    """
    _check([output, plot], [fit, data], plot, output, top=top, draws=draws)
    check_seed(seed)
    wanted = [tuple(pair.split("=", 1)) for pair in pairs]
    if any(len(pair) != 2 for pair in wanted):
        raise UsageError(f"--pairs takes CONTEXT=TREATMENT, such as A172=EGFR, not {' '.join(pairs)}")
    if wanted and effects:
        raise UsageError("--effects is about all pairs of the data: leave --pairs out")
    if effects and (dose != 1 or draws != 100):
        raise UsageError("--effects predicts nothing: leave --dose and --draws out")
    if not effects and (min_effect != 0.5 or fdr != 0.05):
        raise UsageError("--min-effect and --fdr are of --effects: add it, or leave them out")
    from fieldguide.decisions import context_effects, context_responses

    fitted, cells = read_fit(fit), read_h5ad(data)
    if effects:
        decision: Any = context_effects(fitted, cells, min_effect=min_effect, fdr=fdr)
        called = int(decision.table["is_specific"].sum())
        _show(decision, top, output, plot, f"{called} of {len(decision.table)} effects are called particular")
        return
    decision = context_responses(fitted, wanted or None, cells, dose=dose, draws=draws, seed=seed)
    show_table(decision.diagnostics.round(3), right=True)
    _show(decision, top, output, plot, f"{len(decision.diagnostics)} pairs; R2 is of the response over genes")


def salient(
    fit: FitFile,
    data: DataFile,
    group: str,
    output: Path | None = None,
    plot: Path | None = None,
    delta: float = 0.25,
    fdr: float = 0.05,
    draws: int = 500,
    seed: int = 0,
    top: int = 20,
) -> None:
    """List the genes that the salient latents of a group change: what it has that the background has not.

    Args:
        fit: File that `fieldguide fit comparative` saved.
        data: An h5ad file with the genes of the fit; it is not changed.
        group: The group.
        output: File for the table of all genes: CSV, or by its ending .parquet or .feather.
        plot: File for the figure: .png, .svg or .pdf.
        delta: Least log2 fold change of interest.
        fdr: Target of the expected false discovery rate.
        draws: Of cells and latents together.
        seed: Equal seeds give equal tables.
        top: Genes to print.
    """
    _check([output, plot], [fit, data], plot, output, top=top, draws=draws)
    check_seed(seed)
    from fieldguide.decisions import salient_genes

    decision = salient_genes(read_fit(fit), group, read_h5ad(data), delta=delta, fdr=fdr, draws=draws, seed=seed)
    called = int(decision.table["is_de"].sum())
    _show(decision, top, output, plot, f"{called} of {len(decision.table)} genes are called")


def _check(outputs: list[Path | None], inputs: list[Path], plot: Path | None, table: Path | None, **whole: int) -> None:
    """Raise before the work on what cannot be written, or numbers below 1."""
    check_paths(outputs, inputs)
    check_written(table)
    check_whole(**whole)
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot writes {', '.join(PICTURES)} files, not {plot.name}")


def _show(decision: Any, top: int, output: Path | None, plot: Path | None, said: str) -> None:
    """Print the first rows and the notes; write what was asked for, whole or not at all."""
    from fieldguide.inference.checks.files import write_bytes

    frame = decision.table.head(top)
    frame = frame if frame.index.name is None else frame.reset_index()
    show_table(frame.round(3), right=True)
    for note in decision.notes:
        print(note)
    print(said)
    if output is not None:
        write_table(decision.table, output)
        print(f"all rows: {output}")
    if plot is not None:
        picture = BytesIO()
        decision.plot().savefig(picture, format=plot.suffix[1:].lower())
        write_bytes(plot, picture.getvalue())
        print(f"figure: {plot}")
