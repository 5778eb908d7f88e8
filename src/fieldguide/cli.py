"""The command ``fieldguide``, built from the signatures below: the arguments of a function are those of its command.

This file stands above the rooms and imports them only inside the functions, so that ``--help`` answers at once.
"""

import os
import sys
import warnings
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from fieldguide import __version__

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
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:1.")]


def list_() -> None:
    """List the catalog: models, what they read, objectives and citation keys."""
    from fieldguide.catalog import entries

    _show(entries().reset_index().astype(str))


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
    max_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: Device = "auto",
    validation: float = 0.1,
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
        max_epochs: By default about eight million visits to a cell, at most 400 epochs.
        batch_size: Cells in a minibatch.
        learning_rate: Step size of Adam.
        seed: Equal seeds give equal fits.
        validation: Share of the cells that are held out.
        early_stopping: Epochs without improvement on the held-out cells after which to stop; None never stops.
        compile: Compile the training step.
        backed: Leave the matrix on disk and read it by blocks, for data larger than memory.
    """
    _check_output(output)
    from fieldguide import inference

    arguments = _arguments(name, model)
    found = inference.fit(
        name,
        _read(data, backed),
        fields=_fields(fields),
        objective=_objective(name, objective, particles),
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
    found.save(output)
    last = found.history.iloc[-1]
    losses = ", ".join(f"{name} {last[name]:.2f}" for name in ("train", "validation") if name in last)
    print(f"{found.name} under {found.objective}: {len(found.history)} epochs, loss per cell: {losses}")
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
    learning_rate: float | None = None,
    seed: int = 0,
    device: Device = "auto",
    validation: float = 0.1,
    draws: int = 1000,
    posterior_draws: int = 200,
    model: Model = (),
) -> None:
    """Fit a model under several objectives, compare fits and decisions, and write a report.

    Without arguments: scVI on the embedded 700 blood cells, B cells against dendritic cells.

    Args:
        name: Name of the catalog entry.
        data: An h5ad file, which is not changed; by default the embedded blood cells.
        objectives: Short names; by default every objective that the model supports.
        particles: K, of the objectives that draw several particles; by default their own (embedded cells: 5).
        output: Folder for report.html, tables, results.h5ad and posterior draws.
        overwrite: Replace an older report at that place.
        groupby: Column of obs with the groups of a differential expression question.
        group: The group that is compared.
        reference: What it is compared with; by default all other cells.
        delta: Least log2 fold change of interest; by default 0.25 (embedded cells: 1).
        fdr: Target of the expected false discovery rate.
        unit: group (populations), cells (pairs of random cells), or the obs column of subjects.
        max_epochs: By default about eight million visits to a cell, at most 400 epochs (embedded cells: 150).
        learning_rate: Step size of Adam; by default 0.001 (embedded cells: 0.003).
        seed: Equal seeds give equal tables.
        validation: Share of the cells that are held out.
        draws: S, draws for each held-out cell in the evaluation.
        posterior_draws: S, draws for each cell in the decision.
    """
    from rich.console import Console

    from fieldguide.catalog.comparison import compare
    from fieldguide.catalog.folder import MARK, complete_folder
    from fieldguide.catalog.output import write
    from fieldguide.catalog.summary import COLUMNS, findings, question, shown

    if group is None and (groupby is not None or reference is not None) and data is not None:
        raise ValueError("--groupby and --reference ask for a --group to compare")
    given = {"particles": particles, "max_epochs": max_epochs, "learning_rate": learning_rate}
    settings = {key: value for key, value in given.items() if value is not None} | _arguments(name, model)
    with complete_folder(output, overwrite) as folder:
        study = compare(
            name,
            None if data is None else _read(data),
            list(objectives) or None,
            groupby=groupby,
            group=group,
            reference=reference,
            delta=delta,
            fdr=fdr,
            unit=unit,
            posterior_draws=posterior_draws,
            seed=seed,
            fields=_fields(fields),
            device=device,
            validation=validation,
            draws=draws,
            **settings,
        )
        if data is not None:
            study.settings["data"] = data.name
        write(study, folder)
    table = shown(study).rename(columns={name: title for name, (title, _) in COLUMNS.items()}).reset_index()
    _show(table, right=True)
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
        draws: S, posterior draws for each cell.
        seed: Equal seeds give equal tables.
        top: Genes to print.
    """
    if output is not None:
        _check_output(output)
    from fieldguide.decisions import differential_expression
    from fieldguide.inference import load

    posterior = load(fit).posterior(_read(data), draws, seed)
    options = {"mode": mode, "delta": delta, "fdr": fdr, "unit": unit, "estimator": estimator, "seed": seed}
    decision = differential_expression(posterior, groupby, group, reference, **options)
    columns = ["lfc", "lfc_low", "lfc_high", "probability", "fdr", "is_de"]
    _show(decision.table[columns].head(top).reset_index(names="gene").round(3).astype(str), right=True)
    for note in decision.notes:
        print(note)
    settings = decision.settings
    called = int(decision.table["is_de"].sum())
    print(f"{settings['group']} against {settings['reference']}: {called} of {len(decision.table)} genes are called")
    if output is not None:
        _write_table(decision.table, output)
        print(f"all genes: {output}")


COMMANDS = {"compare": compare, "fit": fit, "de": de, "list": list_, "cite": cite}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 2 for an error that the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        print(f"fieldguide {__version__}")
        return 0
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="fieldguide", description=DESCRIPTION, args=words)
        except KeyboardInterrupt:
            print("fieldguide: interrupted", file=sys.stderr)
            return 130
        except USER_ERRORS as error:
            if debug:
                raise
            print(f"fieldguide: error: {_in_one_line(error)}", file=sys.stderr)
            return 2
    return 0


def _in_one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"fieldguide: warning: {message}", file=sys.stderr)


def _read(path: Path, backed: bool = False) -> Any:
    """Read an h5ad file; whatever is wrong with the file is an error that names it."""
    import anndata
    import h5py

    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file() or not h5py.is_hdf5(path):
        raise ValueError(f"{path} is not an h5ad file")
    try:
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an h5ad file: {_in_one_line(error)}") from error


def _fields(words: Sequence[str]) -> dict[str, Any] | None:
    """Read FIELD=PLACE; several places, separated by commas, are a list."""
    pairs = [_pair(word, "--fields", "FIELD=PLACE") for word in words]
    return {name: place.split(",") if "," in place else place for name, place in pairs} or None


def _arguments(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE for the constructor of an entry's program; values are Python literals, or else strings."""
    from inspect import signature

    from fieldguide.catalog import get

    known = [p for p in signature(get(name).program).parameters if p != "self"]
    found: dict[str, Any] = {}
    for key, value in (_pair(word, "--model", "NAME=VALUE") for word in words):
        if key not in known:
            raise ValueError(f"--model: {name} has no argument '{key}'; there are {', '.join(known)}")
        try:
            found[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _objective(name: str, objective: str | None, particles: int | None) -> Any:
    """The objective by name, or the entry's own, with K particles where that is asked."""
    from dataclasses import replace

    from fieldguide.catalog import get
    from fieldguide.inference import resolve

    chosen: Any = resolve(objective or get(name).objective)
    if particles is None:
        return chosen
    if not hasattr(chosen, "particles"):
        raise ValueError(f"--particles: {chosen} does not draw particles")
    return replace(chosen, particles=particles)


def _pair(word: str, option: str, form: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise ValueError(f"{option} takes {form}, not {word!r}")
    return key, value


def _check_output(path: Path) -> None:
    """Raise before the work rather than after it."""
    folder = path.resolve().parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {path.name} into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {folder} cannot be written")


def _write_table(table: Any, path: Path) -> None:
    """Write a CSV file that appears complete or not at all."""
    partial = path.with_name(f".{path.name}.part")
    try:
        table.to_csv(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _show(table: Any, right: bool = False) -> None:
    """Print a table of strings; all but its first column to the right where they are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, name in enumerate(table.columns):
        shown.add_column(str(name), justify="right" if right and number else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
