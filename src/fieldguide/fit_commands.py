"""The commands ``fieldguide fit`` and ``fieldguide compare``: models from data."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fieldguide.arguments import (
    Constraints,
    DataFile,
    Device,
    EntryName,
    Fields,
    Model,
    UsageError,
    check_paths,
    check_seed,
    check_whole,
    chosen_objective,
    constraints_of,
    field_places,
    model_arguments,
    read_h5ad,
)
from fieldguide.tables import show_table


def fit(
    name: EntryName,
    data: DataFile,
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
        output: File to write the fit to, never the data. Ctrl-C saves what was learnt in the epochs that are complete.
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
    check_paths([output], [data])
    check_seed(seed)
    check_whole(max_epochs=max_epochs, batch_size=batch_size, early_stopping=early_stopping, particles=particles)
    arguments = model_arguments(name, model)
    from fieldguide import inference

    fitted = inference.fit(
        name,
        read_h5ad(data, backed),
        fields=field_places(name, fields),
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
    if fitted.interrupted and not len(fitted.history):
        raise KeyboardInterrupt("in the first epoch: nothing was learnt, and nothing is saved")
    fitted.save(output)
    last = fitted.history.iloc[-1]
    losses = ", ".join(f"{name} {last[name]:.2f}" for name in ("train", "validation") if name in last)
    print(f"{fitted.name} under {fitted.objective}: {len(fitted.history)} epochs, loss per cell: {losses}")
    print(f"saved to {output}")
    if fitted.interrupted:
        raise KeyboardInterrupt("before the training was done: the file holds what was learnt so far")


def compare(
    name: EntryName = "scvi",
    data: Annotated[Positional[Path | None], arg(metavar="DATA")] = None,
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
        output: Folder for report.html, tables, results.h5ad and posterior draws; the data may not be in it.
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
        raise UsageError("--groupby and --reference ask for a --group to compare")
    if group is not None and groupby is None:
        raise UsageError("--group asks for --groupby, the column of obs that it is a label of")
    check_seed(seed)
    check_whole(max_epochs=max_epochs, batch_size=batch_size, particles=particles)
    given = {
        "particles": particles,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    settings = {key: value for key, value in given.items() if value is not None} | model_arguments(name, model)
    with complete_folder(output, overwrite, [data]) as folder:
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
            fields=field_places(name, fields),
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
