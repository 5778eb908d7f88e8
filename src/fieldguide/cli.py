"""The command ``fieldguide``, built from the signatures below: the arguments of a function are those of its command.

This file stands above the rooms and imports them only inside the functions, so that ``--help`` answers at once.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from fieldguide import __version__
from fieldguide.arguments import (
    check_output,
    chosen_objective,
    constraints_of,
    field_places,
    in_one_line,
    model_arguments,
    pair,
    print_warning,
    read_h5ad,
    show_table,
    write_table,
)
from fieldguide.policy_commands import POLICY, allocate

DESCRIPTION = (
    "Probabilistic models in Pyro, inference objectives that can be swapped, and decisions from posteriors. "
    "`fieldguide compare` without arguments compares objectives on 700 real blood cells. "
    "Any command with --debug shows the traceback of an error; --version prints the version."
)
USER_ERRORS = (ValueError, KeyError, TypeError, OSError, FloatingPointError)
Fields = Annotated[
    tuple[str, ...],
    arg(metavar="FIELD=PLACE", help="Where a field lives, such as batch=sample; several columns as a,b."),
]
Model = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE", help="Arguments of the model, such as n_latent=20.")]
Constraints = Annotated[
    tuple[str, ...],
    arg(
        metavar="hsic(SITE,COLUMN)",
        help="What the latents shall be independent of, such as 'hsic(z,n_genes,weight=300)' "
        "(also bound, given, estimator, rule=lagrangian); none: not even the entry's own.",
    ),
]
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:1.")]


def list_() -> None:
    """List the catalog: models, what they read, objectives and citation keys."""
    from fieldguide.catalog import entries

    show_table(entries().reset_index().astype(str))


def cite(name: Positional[str]) -> None:
    """Print the BibTeX entry of the publication behind a model.

    Args:
        name: Name of the catalog entry.
    """
    from fieldguide.catalog import citation

    print(citation(name))


def fit(
    name: Positional[str],
    data: Positional[Path],
    output: Path = Path("fit.safetensors"),
    fields: Fields = (),
    objective: str | None = None,
    particles: int | None = None,
    constraint: Constraints = (),
    max_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    device: Device = "auto",
    validation: float | None = None,
    early_stopping: int | None = 30,
    compile: bool = False,
    backed: bool = False,
    model: Model = (),
) -> None:
    """Fit a model to an h5ad file and save it.

    Args:
        name: Name of the catalog entry.
        data: The h5ad file; it is not changed.
        output: File to write the fit to.
        objective: Short name, such as elbo or iwae; by default the entry's own.
        particles: K, draws for each cell in the objective; by default the objective's own.
        max_epochs: By default the entry's, or about eight million visits to a cell, at most 400 epochs.
        batch_size: Cells in a minibatch.
        learning_rate: Step size of Adam; by default the entry's, or 0.001.
        seed: Equal seeds give equal fits.
        validation: Share of the cells that are held out (default: the entry's, or 0.1).
        early_stopping: Epochs without improvement on the held-out cells after which to stop; None never stops.
        compile: Compile the training step.
        backed: Leave the matrix on disk and read it by blocks, for data larger than memory.
    """
    check_output(output)
    from fieldguide import inference

    arguments = model_arguments(name, model)
    fitted = inference.fit(
        name,
        read_h5ad(data, backed),
        fields=field_places(fields),
        objective=chosen_objective(name, objective, particles),
        constraints=constraints_of(constraint),
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        validation=validation,
        early_stopping=early_stopping,
        compile=compile,
        **arguments,
    )
    fitted.save(output)
    last = fitted.history.iloc[-1]
    losses = ", ".join(f"{name} {last[name]:.2f}" for name in ("train", "validation") if name in last)
    print(f"{fitted.name} under {fitted.objective}: {len(fitted.history)} epochs, loss per cell: {losses}")
    print(f"saved to {output}")


def compare(
    name: Positional[str] = "scvi",
    data: Positional[Path | None] = None,
    objectives: tuple[str, ...] = (),
    output: Path = Path("fieldguide-compare"),
    overwrite: bool = False,
    groupby: str | None = None,
    group: str | None = None,
    reference: str | None = None,
    delta: float | None = None,
    fdr: float = 0.05,
    unit: str = "group",
    fields: Fields = (),
    particles: int | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    device: Device = "auto",
    validation: float = 0.1,
    draws: int = 1000,
    posterior_draws: int = 200,
    mix: bool = True,
    model: Model = (),
) -> None:
    """Fit a model under several objectives, compare fits and decisions, and write a report.

    Without arguments: scVI on the embedded 700 blood cells, B cells against dendritic cells.

    Args:
        name: Name of the catalog entry.
        data: An h5ad file, which is not changed; by default the embedded blood cells.
        objectives: Short names; by default elbo, iwae, wake and chi, as far as the model supports them.
        particles: K, of the objectives that draw several particles; by default their own (embedded cells: 5).
        output: Folder for report.html, tables, results.h5ad and posterior draws.
        overwrite: Replace an older report at that place.
        groupby: Column of obs with the groups of a differential expression question.
        group: The group that is compared.
        reference: What it is compared with; by default all other cells.
        delta: Least log2 fold change of interest; by default 0.25 (embedded cells: 1).
        fdr: Target of the expected false discovery rate.
        unit: group (populations), cells (pairs of random cells), or the obs column of subjects.
        max_epochs: By default about eight million visits to a cell, at most 400 epochs (embedded cells: 50).
        batch_size: Cells in a minibatch; by default 128 (embedded cells: 64).
        learning_rate: Step size of Adam; by default the entry's own, or 0.001 (embedded cells: 0.005).
        seed: Equal seeds give equal tables.
        validation: Share of the cells that are held out.
        draws: S, draws for each held-out cell in the evaluation.
        posterior_draws: S, draws for each cell in the decision.
        mix: Go on with the best model: fit fresh guides to it by each objective, and mix them.
    """
    from rich.console import Console

    from fieldguide.reports.complete_folder import MARK, complete_folder
    from fieldguide.reports.report_files import write
    from fieldguide.reports.study import compare
    from fieldguide.reports.summary import COLUMNS, findings, question, shown

    if group is None and (groupby is not None or reference is not None) and data is not None:
        raise ValueError("--groupby and --reference ask for a --group to compare")
    given = {
        "particles": particles,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    settings = {key: value for key, value in given.items() if value is not None} | model_arguments(name, model)
    with complete_folder(output, overwrite) as folder:
        study = compare(
            name,
            None if data is None else read_h5ad(data),
            list(objectives) or None,
            groupby=groupby,
            group=group,
            reference=reference,
            delta=delta,
            fdr=fdr,
            unit=unit,
            mix=mix,
            posterior_draws=posterior_draws,
            seed=seed,
            fields=field_places(fields),
            device=device,
            validation=validation,
            draws=draws,
            **settings,
        )
        if data is not None:
            study.settings["data"] = data.name
        write(study, folder)
    titles = {name: title for name, (title, _) in COLUMNS.items()}
    show_table(shown(study).rename(columns=titles).reset_index(), right=True)
    if study.steps is not None:
        print(f"\nGuides fitted to the model of {study.steps.model}, and their mixture with the prior:")
        show_table(shown(study.steps).rename(columns=titles).reset_index(), right=True)
    console = Console(highlight=False)
    for topic, sentence in [*([("Question", question(study))] if study.decisions else []), *findings(study)]:
        console.print(f"[bold]{topic}[/bold]  ", end="")
        console.print(sentence, markup=False)
    print(f"\nreport: {output / MARK}")


def de(
    fit: Positional[Path],
    data: Positional[Path],
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
        output: CSV file for the table of all genes.
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
    if output is not None:
        check_output(output)
    from fieldguide.decisions import differential_expression
    from fieldguide.inference import load

    posterior = load(fit).posterior(read_h5ad(data), draws, seed)
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
    show_table(
        decision.table.loc[:, columns].head(top).rename_axis("gene").reset_index().round(3).astype(str), right=True
    )
    for note in decision.notes:
        print(note)
    settings = decision.settings
    called = int(decision.table["is_de"].sum())
    print(f"{settings['group']} against {settings['reference']}: {called} of {len(decision.table)} genes are called")
    if output is not None:
        write_table(decision.table, output)
        print(f"all genes: {output}")


def join(modalities: Positional[tuple[str, ...]], output: Path = Path("joined.h5ad"), batch: str | None = None) -> None:
    """Join the h5ad files of several assays of one tissue into one, for gimvi.

    Args:
        modalities: NAME=FILE for each assay, the reference (sequencing) first.
        output: The h5ad file to write.
        batch: A column of obs in every file that says which batch a cell is of.
    """
    check_output(output)
    from fieldguide.inference import join_modalities

    pairs = [pair(word, "join", "NAME=FILE") for word in modalities]
    joined = join_modalities({name: read_h5ad(Path(path)) for name, path in pairs}, batch=batch)
    joined.write_h5ad(output)
    table = joined.varm["measured"]
    counts = joined.obs["modality"].value_counts()
    for name, _ in pairs:
        print(f"{name}: {counts[name]} cells, {int(table[name].sum())} of {joined.n_vars} genes")
    print(f"saved to {output}")


def impute(
    fit: Positional[Path],
    data: Positional[Path],
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
    check_output(output)
    from fieldguide.decisions import impute_genes
    from fieldguide.inference import load

    posterior = load(fit).posterior(read_h5ad(data), draws, seed)
    imputed = impute_genes(posterior, modality, head=head, interval=interval)
    imputed.to_anndata().write_h5ad(output)
    columns = ["trust", "trust_se", "reference_score", "reference_detection", "imputed_detection"]
    table = imputed.table.sort_values("trust", ascending=False).loc[:, columns]
    show_table(table.head(top).reset_index().round(3).astype(str), right=True)
    for note in imputed.notes:
        print(note)
    print(f"{len(table)} genes in {len(imputed.counts)} cells of {imputed.settings['modality']}, saved to {output}")


def policy() -> None:
    """Learn policies from logs, and evaluate them: fieldguide policy evaluate, fieldguide policy learn (--help)."""
    raise ValueError("fieldguide policy takes evaluate or learn; --help says what each needs")


COMMANDS = {function.__name__: function for function in (compare, fit, de, join, impute, policy, allocate)}
COMMANDS |= {"list": list_, "cite": cite}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 2 for an error that the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        print(f"fieldguide {__version__}")
        return 0
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    with warnings.catch_warnings():
        warnings.showwarning = print_warning
        try:
            commands, name = COMMANDS, "fieldguide"
            if words[0] == "policy" and len(words) > 1:
                commands, name, words = POLICY, "fieldguide policy", words[1:]
            tyro.extras.subcommand_cli_from_dict(commands, prog=name, description=DESCRIPTION, args=words)
        except KeyboardInterrupt:
            print("fieldguide: interrupted", file=sys.stderr)
            return 130
        except USER_ERRORS as error:
            if debug:
                raise
            print(f"fieldguide: error: {in_one_line(error)}", file=sys.stderr)
            return 2
    return 0
