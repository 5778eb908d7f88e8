"""What a generated case is, and how its outcome is judged."""

import contextlib
import hashlib
import io
import pickle
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import fieldguide

PACKAGE = str(Path(fieldguide.__file__).parent)
CLEAR = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    FloatingPointError,
    NotImplementedError,
    ImportError,
)
"""What a user is told by; anything else is an accident."""
SECONDS = 30.0
"""A case that takes longer has hung."""


@dataclass(frozen=True)
class Case:
    """One call with one generated input.

    ``kind`` says what must come of it: "valid" works, with finite numbers; "invalid" is refused by a message that
    matches ``culprit``; "either" does one of the two. ``inputs`` must be as they were afterwards.
    """

    area: str
    name: str
    kind: Literal["valid", "invalid", "either"]
    run: Callable[[], Any]
    culprit: str = ""
    inputs: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case.

    ok; of invalid ones vague (the message does not name the culprit), deep (raised by another library, or by accident)
    and accepted; of valid ones refused, nan and wrong (another number than it must be); of all of them changed (an
    input), moved (a global random state) and timeout.
    """

    area: str
    name: str
    kind: str
    outcome: str
    seconds: float
    said: str = ""


class Refused(ValueError):
    """What a command said on leaving with another code than 0."""


class _Late(BaseException):
    pass


def judge(case: Case, seconds: float = SECONDS) -> Verdict:
    """Run a case and say what came of it."""
    before, random = [digest(value) for value in case.inputs], random_state()
    error, result, start = None, None, time.perf_counter()
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        quiet = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            result = case.run()
    except BaseException as raised:  # noqa: BLE001  # SystemExit of a command as well
        if isinstance(raised, KeyboardInterrupt):
            raise
        error = raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    took = time.perf_counter() - start
    if isinstance(error, _Late):
        outcome = "timeout"
    elif any(digest(value) != then for value, then in zip(case.inputs, before, strict=True)):
        outcome = "changed"
    elif random_state() != random:
        outcome = "moved"
    elif error is not None:
        outcome = _refusal(case, error)
    elif case.kind == "invalid":
        outcome = "accepted"
    else:
        outcome = "ok" if finite(result) else "nan"
    said = "" if error is None else f"{type(error).__name__} at {_place(error)}: {' '.join(str(error).split())[:300]}"
    return Verdict(case.area, case.name, case.kind, outcome, round(took, 3), said)


def _refusal(case: Case, error: BaseException) -> str:
    if case.kind == "valid":
        return "wrong" if isinstance(error, AssertionError) else "refused"
    if not clear(error):
        return "deep"
    return "ok" if re.search(case.culprit, str(error), re.IGNORECASE | re.DOTALL) else "vague"


def clear(error: BaseException) -> bool:
    """Whether an error was raised on purpose: by a line of the package, in the user's words."""
    if isinstance(error, Refused):
        return "Traceback" not in str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    bare = isinstance(error, KeyError) and " " not in str(error).strip()
    return ours and isinstance(error, CLEAR) and not isinstance(error, UnicodeError) and not bare


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.removeprefix(PACKAGE + '/')}:{frames[-1].lineno}" if frames else "-"


def _ring(*_: Any) -> None:
    raise _Late


def random_state() -> tuple[bytes, bytes]:
    """Return the global random states of NumPy and torch."""
    _, key, position, *_ = np.random.get_state()
    return np.asarray(key).tobytes() + bytes(str(position), "ascii"), torch.get_rng_state().numpy().tobytes()


def digest(value: Any) -> str:
    """Return a hash that changes with any number, name, type or order in a value."""
    hashed = hashlib.sha256()
    for part in _parts(value):
        hashed.update(part)
    return hashed.hexdigest()


def _parts(value: Any):
    """Yield the bytes that a value consists of."""
    yield type(value).__name__.encode()
    match value:
        case ad.AnnData() if value.isbacked:
            yield Path(str(value.filename)).read_bytes()
        case ad.AnnData():
            inside = (value.X, value.obs, value.var, value.layers, value.obsm, value.varm, value.uns)
            for part in inside:
                yield from _parts(dict(part) if isinstance(part, Mapping) else part)
        case pd.DataFrame():
            yield from _parts(value.columns)
            yield from _parts(value.index)
            for column in range(value.shape[1]):
                yield from _parts(value.iloc[:, column])
        case pd.Series() | pd.Index():
            yield str(value.dtype).encode()
            yield repr(value.tolist()).encode()
            if isinstance(value, pd.Series):
                yield from _parts(value.index)
            if isinstance(value.dtype, pd.CategoricalDtype):
                yield repr(list(value.dtype.categories)).encode()
        case np.ndarray():
            yield f"{value.dtype}{value.shape}".encode()
            yield pickle.dumps(value.tolist()) if value.dtype == object else np.ascontiguousarray(value).tobytes()
        case torch.Tensor():
            yield from _parts(value.detach().cpu().numpy())
        case dict():
            for key in value:
                yield repr(key).encode()
                yield from _parts(value[key])
        case list() | tuple():
            for part in value:
                yield from _parts(part)
        case Path():
            yield value.read_bytes() if value.is_file() else b"none"
        case str() | int() | float() | None:
            yield repr(value).encode()
        case _ if sp.issparse(value):  # of any format
            stored = value if hasattr(value, "indptr") else value.tocoo()
            for name in ("data", "indices", "indptr", "row", "col"):
                if hasattr(stored, name):
                    yield from _parts(getattr(stored, name))


def finite(value: Any) -> bool:
    """Whether every number in a result is finite; text, labels and flags are no numbers."""
    match value:
        case dict():
            return all(map(finite, value.values()))
        case list() | tuple():
            return all(map(finite, value))
        case pd.DataFrame():
            return all(finite(value.iloc[:, column]) for column in range(value.shape[1]))
        case pd.Series():
            return finite(value.to_numpy())
        case torch.Tensor():
            return bool(torch.isfinite(value).all())
        case float() | np.floating():
            return bool(np.isfinite(value))
        case np.ndarray() if value.dtype.kind == "f":
            return bool(np.isfinite(value).all())
    return True
