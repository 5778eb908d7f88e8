"""A folder that appears complete or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "report.html"
"""A folder with this file is one that a report was written into, and may be replaced."""


@contextmanager
def complete_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write into; it takes its place once the block is done.

    When the block raises, nothing is left behind and an older folder is as it was.

    Parameters
    ----------
    path : path
        Must not exist, or be empty, unless ``overwrite``.
    overwrite : bool
        Replace an older report (and only that).

    Raises
    ------
    FileExistsError
        If there is something at ``path`` that must not be replaced.
    FileNotFoundError
        If the folder above it does not exist.
    OSError
        If the folder above it cannot be written.
    """
    path = Path(path).expanduser().resolve()
    _check(path, overwrite)
    try:
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise type(error)(error.errno, f"cannot write into {path.parent}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        _check(path, overwrite)
        _replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def _replace(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
    path.rename(old)  # an empty folder gives way
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
