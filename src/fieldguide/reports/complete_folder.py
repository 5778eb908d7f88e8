"""A folder that appears complete or not at all, also where several processes write the same one."""

import ctypes
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fieldguide.inference.checks.files import checked_path, ended, process_mark, umask

MARK = "report.html"
"""A folder with this file is one that a report was written into, and may be replaced."""


@contextmanager
def complete_folder(
    path: str | Path, overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write into; it takes its place once the block is done.

    When the block raises, nothing is left behind and an older folder is as it was. Of several processes that replace
    one folder the last one wins, whole; what a killed process left beside it is cleared away by the next one.

    Parameters
    ----------
    path : path
        Must not exist, or be empty, unless ``overwrite``.
    overwrite : bool
        Replace an older report (and only that).
    inputs : iterable of path
        Files that are read: none of them may be in the folder.

    Raises
    ------
    FileExistsError
        If there is something at ``path`` that must not be replaced, or another process is about to write there.
    FileNotFoundError
        If the folder above it does not exist.
    OSError
        If the folder above it cannot be written.
    ValueError
        If an input is in the folder.
    """
    path = checked_path("output", path).resolve()
    if path.parent.is_dir():
        _clear(path)
    _check(path, overwrite)
    for given in inputs:
        if given is not None and Path(given).resolve().is_relative_to(path):
            raise ValueError(f"{given} is an input: a report at {path} would be written over it; choose another folder")
    partial = path.with_name(f"{_start(path)}{process_mark()}-{time.time_ns()}-{secrets.token_hex(4)}")
    try:  # from here on an interrupt finds the folder by its name, made or not
        try:
            partial.mkdir(mode=0o700)
        except OSError as error:
            raise type(error)(error.errno, f"cannot write into {path.parent}: {error.strerror}") from error
        if not overwrite:
            _check_alone(path, partial)
        yield partial
        partial.chmod(0o777 & ~umask())
        _check(path, overwrite)
        _replace(partial, path)
    finally:
        _remove(partial)  # what was not finished, or what was there before


def _remove(folder: Path) -> None:
    """Remove a folder, also where an interrupt comes while that is done."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file, not a folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {path} cannot be written")
    if any(path.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{path} exists already: choose another folder, or ask to overwrite it")
        if not (path / MARK).is_file():
            raise FileExistsError(f"{path} is not overwritten: it has no {MARK}, so it is not an older report")


def _start(path: Path) -> str:
    return f".{path.name[:100]}."


def _others(path: Path) -> list[Path]:
    """The temporary folders of this path, of whatever process."""
    return [other for other in path.parent.iterdir() if other.name.startswith(_start(path)) and other.is_dir()]


def _clear(path: Path) -> None:
    """Remove what processes left that were killed; an older report that one had put aside comes back first."""
    for left in _others(path):
        if ended(left.name.removeprefix(_start(path))):
            if left.name.endswith(ASIDE) and not path.exists():
                with suppress(OSError):
                    left.rename(path)
            shutil.rmtree(left, ignore_errors=True)


def _check_alone(path: Path, mine: Path) -> None:
    """Raise before the work where another process of this machine came first: its report could not be replaced."""
    machine, _, started = _mark(path, mine)
    for other in _others(path):
        there, _, then = _mark(path, other)
        if there == machine and (then, other.name) < (started, mine.name) and not other.name.endswith(ASIDE):
            raise FileExistsError(f"another process is writing {path}: choose another folder, or ask to overwrite it")


def _mark(path: Path, folder: Path) -> list[str]:
    """Machine, process and start of the one that writes a temporary folder."""
    return (folder.name.removeprefix(_start(path)).split("-") + ["", ""])[:3]


ASIDE = "-aside"
"""End of the name of an older folder, where the system cannot exchange two names at once."""


def _replace(partial: Path, path: Path) -> None:
    """Give the new folder its name; an older one is in its place afterwards, for the caller to remove."""
    for _ in range(1000):  # another writer may come between any two steps
        with suppress(FileNotFoundError):
            if _exchange(partial, path):
                return
        try:
            partial.rename(path)  # an empty folder gives way
            return
        except OSError:
            if not path.is_dir():
                raise
        aside = partial.with_name(partial.name + ASIDE)
        with suppress(FileNotFoundError):
            path.rename(aside)
        try:
            partial.rename(path)
        except OSError:
            if not path.exists():
                aside.rename(path)
                raise
        else:
            shutil.rmtree(aside, ignore_errors=True)
            return
        shutil.rmtree(aside, ignore_errors=True)  # replaced by another writer's, which this one is about to replace
    raise OSError(f"{path} is replaced by others all the time; the new folder could not be put there")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or file system cannot."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = library.renamex_np(os.fsencode(one), os.fsencode(other), 2)
        else:
            done = library.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2)
    except (AttributeError, OSError, TypeError):  # a system without such a call
        return False
    if done and ctypes.get_errno() == 2:
        raise FileNotFoundError(2, os.strerror(2), str(other))
    return done == 0
