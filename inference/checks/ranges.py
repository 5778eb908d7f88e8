"""Arguments that are checked by their annotations: ``n_latent: Size = 10`` says all that there is to check."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from fieldguide.inference.checks.arguments import LARGEST_SEED, checked_flag, checked_int, checked_real

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Limits of a number, as the metadata of an annotation: ``Annotated[float, Range(above=0, below=1)]``."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None


Size = Annotated[int, Range(at_least=1)]
"""A number of things of which there is at least one."""
Number = Annotated[int, Range(at_least=0)]
"""A number of things of which there may be none."""
Classes = Annotated[int, Range(at_least=2)]
"""A number of things that are told apart."""
Share = Annotated[float, Range(at_least=0, below=1)]
"""A share that is not all, such as dropout."""
Chance = Annotated[float, Range(above=0, below=1)]
"""A probability that is neither 0 nor 1."""
Part = Annotated[float, Range(above=0, at_most=1)]
"""A share of which there is some, up to all of it."""
Weight = Annotated[float, Range(at_least=0)]
"""A weight or a standard deviation: at least 0, and finite."""
Scale = Annotated[float, Range(above=0)]
"""A scale or a temperature: above 0, and finite."""
Seed = Annotated[int, Range(at_least=0, at_most=LARGEST_SEED)]
"""What a stream of random numbers starts from."""


def checked(function: F) -> F:
    """Return the function with its whole numbers, reals and flags checked before it is called.

    What is annotated ``int``, ``float`` or ``bool``, alone or with a `Range` or with None, goes through `checked_int`,
    `checked_real` or `checked_flag`, so that numbers of NumPy arrive as plain ones and a wrong one is an error with its
    name. Other annotations, and defaults, are left alone.

    Examples
    --------
    >>> @checked
    ... def halve(n_cells: Size, share: Share | None = None):
    ...     return n_cells // 2
    >>> halve(4)
    2
    >>> halve(0)
    Traceback (most recent call last):
    ...
    ValueError: n_cells must be a whole number of at least 1, not 0
    """
    signature = inspect.signature(function)
    checks = {name: _check(parameter.annotation) for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args, **kwargs):
        given = signature.bind_partial(*args, **kwargs)
        for name, value in given.arguments.items():
            check = checks[name]
            given.arguments[name] = value if check is None else check(name, value)
        return function(*given.args, **given.kwargs)

    return typing.cast(F, call)


def _check(annotation: Any) -> Callable[[str, Any], Any] | None:
    """What checks a value of this annotation; None where nothing does."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(parts) == 2 and type(None) in parts:
        inner = _check(parts[0] if parts[1] is type(None) else parts[1])
        return None if inner is None else lambda name, value: None if value is None else inner(name, value)
    limits = next((part for part in parts if isinstance(part, Range)), Range())
    known = {key: limit for key, limit in asdict(limits).items() if limit is not None}
    kind = parts[0] if typing.get_origin(annotation) is Annotated else annotation
    if kind is bool:
        return checked_flag
    if kind in (int, float):
        check = checked_int if kind is int else checked_real
        return lambda name, value: check(name, value, **known)
    return None
