"""From the words of the command line to arguments and data, with an error that names what is wrong."""

import re
import sys
from ast import literal_eval
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from tyro.conf import Positional, arg

CONSTRAINT_SETTINGS = ("weight", "bound", "given", "estimator", "rule")
RULES = ("penalty", "lagrangian")
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
EntryName = Annotated[Positional[str], arg(metavar="NAME")]
FitFile = Annotated[Positional[Path], arg(metavar="FIT")]
DataFile = Annotated[Positional[Path], arg(metavar="DATA")]
Fields = Annotated[
    tuple[str, ...],
    arg(
        metavar="FIELD=PLACE",
        help="Where a field lives, such as batch=sample; several columns as a,b; with settings of the field, as in "
        "'perturbation=guide(control=AAVS1)' or 'group=condition(background=CTRL)'; none switches a field off.",
    ),
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


class UsageError(ValueError):
    """The words of a command are not of the form that it takes."""


def check_paths(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Raise before the work where an output cannot be written, is an input, or is given twice."""
    from fieldguide.inference.checks.files import check_outputs

    check_outputs(outputs, inputs)


def check_seed(seed: int) -> None:
    """Raise before the work on a seed that is none."""
    from fieldguide.inference.checks.arguments import checked_seed

    checked_seed(seed, "--seed")


def check_whole(**options: int | None) -> None:
    """Raise before the work on numbers below 1; None, which leaves an option to its default, passes."""
    from fieldguide.inference.checks.arguments import checked_int

    for name, value in options.items():
        if value is not None:
            checked_int(f"--{name.replace('_', '-')}", value, at_least=1)


def in_one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(text.split()) or type(error).__name__


def print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Show a warning as one line (takes the place of ``warnings.showwarning``); those for programmers are left out."""
    if issubclass(category, DeprecationWarning | FutureWarning):
        return
    print(f"fieldguide: warning: {message}", file=sys.stderr)


def read_h5ad(path: Path, backed: bool = False) -> Any:
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
        raise ValueError(f"{path} cannot be read as an h5ad file: {in_one_line(error)}") from error


def read_fit(path: Path) -> Any:
    """Read the file of a fit; data in its place are named."""
    import h5py

    from fieldguide.inference import load

    if path.is_file() and h5py.is_hdf5(path):
        raise ValueError(f"{path} is an h5ad file, not a fit: FIT comes first, and DATA after it")
    return load(path)


def field_places(entry: str, words: Sequence[str]) -> dict[str, Any] | None:
    """Read FIELD=PLACE for an entry; several places, separated by commas, are a list; settings stand in brackets."""
    from fieldguide.catalog import get

    fields = get(entry).schema.fields
    places: dict[str, Any] = {}
    for name, place in pairs(words, "--fields", "FIELD=PLACE").items():
        asked = re.fullmatch(r"([^(]*)\((.*=.*)\)", place)
        if place == "none":
            places[name] = None
        elif asked and name in fields:
            places[name] = _with_settings(name, fields[name], *asked.groups())
        else:
            places[name] = place.split(",") if "," in place else place
    return places or None


def _with_settings(name: str, field: Any, place: str, words: str) -> Any:
    """The field with a place and settings of its own; a setting that is given twice has several values."""
    from dataclasses import fields, replace

    known = [f.name for f in fields(field) if f.name not in ("place", "optional")]
    settings: dict[str, Any] = {}
    for word in words.split(","):
        key, value = pair(word.strip(), f"--fields: {name}", "SETTING=VALUE")
        if key not in known:
            some = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"--fields: {name} has no setting '{key}' ({type(field).__name__}); {some}")
        if isinstance(getattr(field, key), bool):
            if value not in ("True", "False"):
                raise ValueError(f"--fields: {key} of {name} must be True or False, not {value!r}")
            value = value == "True"
        settings[key] = (
            (*settings[key], value)
            if isinstance(settings.get(key), tuple)
            else ((settings[key], value) if key in settings else value)
        )
    return replace(field, place=place or field.place, **settings)


def model_arguments(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE for the constructor of an entry's program; values are Python literals, or else strings."""
    from inspect import signature

    from fieldguide.catalog import get

    parameters = signature(get(name).program, eval_str=True).parameters
    known = [p for p in parameters if p != "self"]
    arguments: dict[str, Any] = {}
    for key, value in pairs(words, "--model", "NAME=VALUE").items():
        if key not in known:
            raise ValueError(f"--model: {name} has no argument '{key}'; there are {', '.join(known)}")
        try:
            arguments[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
        _check_kind(f"--model: {key} of {name}", arguments[key], parameters[key].annotation)
    return arguments


def _check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raise ValueError where a value is none of the plain types that an argument is annotated with."""
    parts = (annotation,) if get_origin(annotation) is Annotated else get_args(annotation) or (annotation,)
    kinds = {part.__origin__ if get_origin(part) is Annotated else part for part in parts}
    if kinds <= set(KINDS) and type(value) not in kinds and not (type(value) is int and float in kinds):
        wanted = " or ".join(KINDS[kind] for kind in KINDS if kind in kinds)
        raise ValueError(f"{name} must be {wanted}, not {value!r}")


def chosen_objective(name: str, objective: str | None, particles: int | None) -> Any:
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


def constraints_of(words: Sequence[str]) -> tuple | None:
    """Read constraints such as ``hsic(z,n_genes)`` or ``hsic(z,batch,given=cell_type,bound=independent)``.

    Variables come first, then settings as KEY=VALUE. The one word ``none`` leaves out those of the entry, and no word
    leaves them as they are.
    """
    from fieldguide.inference import AugmentedLagrangian, hsic

    if list(words) == ["none"]:
        return ()
    constraints = []
    for word in words:
        match = re.fullmatch(r"\s*hsic\((.*)\)\s*", word)
        if match is None:
            raise UsageError(f"--constraint takes hsic(SITE,COLUMN,...) or none, not {word!r}")
        parts = [part.strip() for part in match[1].split(",")]
        names = [part for part in parts if "=" not in part]
        if not all(parts) or parts[: len(names)] != names:
            raise UsageError(f"--constraint {word!r}: names first, then settings as KEY=VALUE, separated by commas")
        settings: dict[str, Any] = {}
        for part in parts[len(names) :]:
            key, value = pair(part.replace(" ", ""), f"--constraint {word!r}", "KEY=VALUE")
            if key not in CONSTRAINT_SETTINGS:
                raise UsageError(f"--constraint {word!r}: {key!r} is none of {', '.join(CONSTRAINT_SETTINGS)}")
            if key in settings:
                raise UsageError(f"--constraint {word!r}: {key!r} is given twice")
            settings[key] = _number(value) if key in ("weight", "bound") else value
        if settings.get("rule", "penalty") not in RULES:
            raise UsageError(f"--constraint {word!r}: rule must be one of {', '.join(RULES)}")
        if settings.pop("rule", "penalty") == "lagrangian":
            settings["rule"] = AugmentedLagrangian()
        if isinstance(settings.get("weight", 0.0), str):
            raise UsageError(f"--constraint {word!r}: weight must be a number, not {settings['weight']!r}")
        constraints.append(hsic(*names, **settings))
    return tuple(constraints) or None


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def pair(word: str, option: str, form: str) -> tuple[str, str]:
    """Split a word of the form NAME=VALUE."""
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise UsageError(f"{option} takes {form}, not {word!r}")
    return key, value


def pairs(words: Sequence[str], option: str, form: str) -> dict[str, str]:
    """Split words of the form NAME=VALUE, each name given once."""
    values: dict[str, str] = {}
    for word in words:
        key, value = pair(word, option, form)
        if key in values:
            raise UsageError(f"{option}: {key!r} is given twice, {key}={values[key]} and {word}")
        values[key] = value
    return values
