"""Stacks of images [N, C, H, W] in memory or on disk, read by rows, and the store that scales them."""

import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from fieldguide.inference.data.storage import BLOCK, WINDOW, DenseStore, Store

WINDOW_BYTES = 2**28
"""Most bytes of a stack on disk that are held in memory and shuffled together."""
SUFFIXES = (".npy", ".npz", ".zarr", ".tif", ".tiff")


class Stack(Protocol):
    """Images that can be read by rows."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Return the images of sorted rows, as they are stored."""
        ...


class ArrayStack:
    """An array in memory, one mapped from a file, or one of zarr."""

    def __init__(self, values: Any, on_disk: bool = False) -> None:
        self.values, self.on_disk = values, on_disk
        self.shape, self.dtype = tuple(values.shape), np.dtype(values.dtype)

    def rows(self, index):
        if not len(index):
            return np.empty((0, *self.shape[1:]), self.dtype)
        if hasattr(self.values, "oindex"):  # of zarr: whole chunks, and then the rows
            begin = int(index[0])
            return np.asarray(self.values[begin : int(index[-1]) + 1])[index - begin]
        return np.asarray(self.values[index])


class PagedStack:
    """A TIFF file of one page a channel, or one an image."""

    on_disk = True

    def __init__(self, path: Path) -> None:
        try:
            import tifffile
        except ImportError:
            raise _lacking("TIFF files", "tifffile") from None
        self.file = tifffile.TiffFile(path)
        series = self.file.series[0]
        self.shape, self.dtype = tuple(series.shape), np.dtype(series.dtype)
        self.pages = series.pages

    def rows(self, index):
        each = len(self.pages) // self.shape[0]
        images = [np.stack([self.pages[int(row) * each + k].asarray() for k in range(each)]) for row in index]
        return np.array(images, self.dtype).reshape(len(index), *self.shape[1:])


def open_stack(place: str) -> ArrayStack | PagedStack:
    """Return the images of a file; ``cells.npz/NAME`` and ``cells.zarr/NAME`` are one of its arrays.

    Raises
    ------
    ValueError
        For a file that is not there, or in which that array is not.
    ImportError
        Naming what to install.
    """
    path, inside = divided(place)
    if not path.exists():
        raise ValueError(f"there is no file {str(path)!r}")
    kind = path.suffix.lower()
    if kind == ".npy":
        return ArrayStack(np.load(path, mmap_mode="r"), True)
    if kind == ".npz":
        return _of_npz(path, inside)
    if kind == ".zarr":
        try:
            import zarr
        except ImportError:
            raise _lacking("zarr stores", "zarr") from None
        found: Any = zarr.open(str(path), mode="r")
        if inside or hasattr(found, "array_keys"):
            keys = list(found.array_keys())
            found = found[_named(path, inside, keys)]
        return ArrayStack(found, True)
    return PagedStack(path)


def divided(place: str) -> tuple[Path, str]:
    """Return the file of a place, and what is meant in it."""
    parts = Path(place).parts
    at = next((k for k, part in enumerate(parts) if part.lower().endswith(SUFFIXES)), len(parts) - 1)
    return Path(*parts[: at + 1]), "/".join(parts[at + 1 :])


def is_stack(place: Any) -> bool:
    """Whether a place is a file of images."""
    return isinstance(place, str) and any(part.lower().endswith(SUFFIXES) for part in Path(place).parts)


def _named(path: Path, inside: str, keys: list[str]) -> str:
    if inside in keys:
        return inside
    if not inside and len(keys) == 1:
        return keys[0]
    said = f"{str(path)!r} has {', '.join(keys) or 'no array'}"
    raise ValueError(f"{said}, and no {inside!r}" if inside else f"{said}: say which, '{path}/{(keys or ['NAME'])[0]}'")


def _of_npz(path: Path, inside: str) -> ArrayStack:
    """An array of an npz file: mapped where it is stored as it is, in memory where it is compressed."""
    with zipfile.ZipFile(path) as file:
        name = _named(path, inside, [member.removesuffix(".npy") for member in file.namelist()])
        member = file.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            with np.load(path) as arrays:
                return ArrayStack(arrays[name])
        with file.open(member) as opened:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(opened)
            header = opened.tell()
    with open(path, "rb") as raw:
        raw.seek(member.header_offset + 26)
        lengths = np.frombuffer(raw.read(4), "<u2")
    offset = member.header_offset + 30 + int(lengths.sum()) + header
    order = "F" if by_column else "C"
    return ArrayStack(np.memmap(path, dtype, "r", offset, shape, order), True)


def _lacking(what: str, package: str) -> ImportError:
    return ImportError(f"{what} are read by {package}: pip install 'fieldguide[images]'")


class ImageStore(Store):
    """Images in float32 [N, C, H, W]: divided by full intensity, of one size, with means and deviations if wanted.

    Parameters
    ----------
    stack : Stack
    divisor : float
    size : int, optional
        Height and width to bring them to: averages of areas where they are larger, linear between pixels otherwise.
    mean, deviation : float array [C]
        Of each channel, after the division.
    """

    def __init__(self, stack: Any, divisor: float, size: int | None, mean: Any, deviation: Any) -> None:
        self.stack, self.divisor, self.size = stack, float(divisor), size
        self.mean, self.deviation = (torch.as_tensor(np.asarray(v), dtype=torch.float32) for v in (mean, deviation))
        side = (size, size) if size else stack.shape[2:]
        self.shape = (*stack.shape[:2], *side)
        self.backed = bool(getattr(stack, "on_disk", False))

    @property
    def window(self) -> int:
        """Rows that are held in memory together, where they come from disk."""
        each = int(np.prod(self.stack.shape[1:])) * self.stack.dtype.itemsize
        return int(np.clip(WINDOW_BYTES // max(each, 1) // BLOCK * BLOCK, BLOCK, WINDOW))

    def gather(self, rows):
        order = np.argsort(rows, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(rows))
        return self.scaled(self.stack.rows(rows[order])[back])

    def scaled(self, images: np.ndarray) -> torch.Tensor:
        """Return images as they are stored in float32, scaled."""
        pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)) / self.divisor
        if self.size and pixels.shape[-2:] != (self.size, self.size):
            smaller = min(pixels.shape[-2:]) >= self.size
            how: dict[str, Any] = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
            pixels = F.interpolate(pixels, (self.size, self.size), **how)
        return (pixels - self.mean[:, None, None]) / self.deviation[:, None, None]

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * 4

    def to(self, device):
        return self if device.type == "cpu" else DenseStore(self.gather(np.arange(self.shape[0])).to(device))

    def load(self, rows):
        order = np.argsort(rows, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(rows))
        inside = ArrayStack(self.stack.rows(rows[order])[back])
        return ImageStore(inside, self.divisor, self.size, self.mean, self.deviation)

    def mark(self):
        if self.backed:
            return 0
        return DenseStore(np.asarray(self.stack.values).reshape(-1)).mark()
