"""How files are written: whole, then in the place of an older one; and never over what was read."""

import errno
import os
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

PART = ".part"
"""End of the name of a file that is not whole yet."""


def checked_path(name: str, path: Any) -> Path:
    """Return a path; TypeError, naming the argument, for what is none."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(f"{name} must be the path of a file, not {path!r} ({type(path).__name__})")
    return Path(path).expanduser()


def check_output(path: str | Path, inputs: Iterable[Path | None] = ()) -> Path:
    """Return the path of a file that can be written; raise before the work rather than after it.

    Parameters
    ----------
    path : path
    inputs : iterable of path
        Files that are read: the output must be none of them, by whatever name or link.

    Raises
    ------
    OSError
        If it is a folder, its folder is not there, or either cannot be written.
    ValueError
        If it is one of the inputs.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no file but a device or pipe, which would be replaced: give the name of a file")
    folder = path.resolve().parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {path.name} into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {folder} cannot be written")
    for given in inputs:
        if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
            raise ValueError(f"{path} is an input: it would be written over; choose another output")
    return path


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Check several outputs (None are left out): each can be written, none is an input, no two are one file."""
    inputs, taken = tuple(inputs), {}
    for path in outputs:
        if path is None:
            continue
        place = check_output(path, inputs).resolve()
        if place in taken:
            raise ValueError(f"{path} is given for two outputs; choose another for one of them")
        taken[place] = path


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file that appears complete or not at all, and is on the disk when this returns.

    An older one is replaced at that moment, not before. Where the system knows files without a name (Linux), a process
    that is killed leaves nothing; elsewhere its part is cleared away by the next one that writes this file.

    Raises
    ------
    OSError
        Naming the path; an older file there is as it was, and nothing else is left.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # what a link names is replaced, not the link
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"could not write {path}: it is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, f"could not write {path}: it is no file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    _clear(path)
    partial = path.with_name(f"{_start(path)}{process_mark()}-{secrets.token_hex(4)}{PART}")
    try:
        _write(partial, content)
        os.chmod(partial, _mode(path))
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        said = f"could not write {path} ({error.strerror}); an older file there is unchanged"
        raise type(error)(error.errno, said) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, content: str) -> None:
    """Write text, UTF-8, as `write_bytes` does."""
    write_bytes(path, content.encode("utf-8"))


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a new file whole; it has a name from the beginning only where it cannot be given one at the end."""
    handle = None
    if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
        with suppress(OSError):  # a file system without such files
            handle = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
    nameless = handle is not None
    if handle is None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)
        if nameless:
            handles = os.open("/proc/self/fd", os.O_RDONLY)
            try:
                os.link(str(handle), path, src_dir_fd=handles)  # a folder is named, so that Python follows the link
            finally:
                os.close(handles)


def umask() -> int:
    """Return the permissions that new files do not have."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def process_mark() -> str:
    """Return what names of temporary files begin with: this machine and this process."""
    return f"{_machine()}-{os.getpid()}"


def ended(mark: str) -> bool:
    """Whether text that begins with a `process_mark` is of a process of this machine that runs no more.

    A folder may be shared by several machines: what another one writes is its own.

    Examples
    --------
    >>> ended(process_mark() + "-part"), ended("notes")
    (False, False)
    """
    machine, _, rest = mark.partition("-")
    process = rest.partition("-")[0]
    return machine == _machine() and process.isdigit() and not alive(int(process))


def _machine() -> str:
    return f"{crc32(socket.gethostname().encode()):08x}"


def _start(path: Path) -> str:
    return f".{path.name[:100]}."


def _mode(path: Path) -> int:
    """Temporary files are private; the file has the permissions of the one that it replaces, or those of a new one."""
    return path.stat().st_mode & 0o777 if path.is_file() else 0o666 & ~umask()


def _clear(path: Path) -> None:
    """Remove parts of this file whose process is gone."""
    start = _start(path)
    for part in path.parent.iterdir():
        if part.name.startswith(start) and part.name.endswith(PART):
            if ended(part.name[len(start) :]):
                with suppress(OSError):
                    part.unlink()


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
