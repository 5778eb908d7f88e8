"""Images as a field: channels first, one scale for all, checked before anything is learnt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np

from fieldguide.inference.checks.arguments import checked_flag, checked_int, checked_real, set_fields
from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.image_stacks import ArrayStack, ImageStore, PagedStack, is_stack, open_stack
from fieldguide.inference.data.matrices import real_array, shown
from fieldguide.inference.data.reading import SchemaError, cell_name, n_rows
from fieldguide.inference.data.storage import BLOCK
from fieldguide.inference.messages import caution

FULL = {"uint8": 255.0, "uint16": 65535.0}
"""Full intensity of the kinds of whole numbers that images are stored in."""
CHANNELS = 4
"""Most channels that the last of four axes is taken for, where images look like [N, H, W, C]."""


@dataclass(frozen=True)
class Images(Field):
    """Images of cells, channels first; float32 [N, C, H, W].

    They are an array in ``obsm`` or in a dict, or a stack on disk that is read by blocks and never held as a whole:
    ``fields={"image": "cells.npy"}``, an npz file that is not compressed or a zarr store (``"cells.zarr/NAME"``), or a
    TIFF file of one page a channel. Whole numbers are divided by full intensity, so that a batch has numbers in [0, 1].

    Attributes
    ----------
    channels : sequence of str
        Names of the channels; c0, c1, ... by default.
    size : int, optional
        Height and width in pixels to bring the images to.
    scale : float, optional
        Full intensity; by default 255 and 65,535 for whole numbers of 8 and 16 bits, 1 for real numbers.
    standardise : bool
        Take from each channel its mean over the training images, and divide by its standard deviation.
    """

    place: str = "obsm/image"
    channels: Any = ()
    size: Any = None
    scale: Any = None
    standardise: bool = False

    def __post_init__(self) -> None:
        names = [self.channels] if isinstance(self.channels, str) else list(self.channels)
        set_fields(
            self,
            channels=[str(name) for name in names],
            size=None if self.size is None else checked_int("size", self.size, 1),
            scale=None if self.scale is None else checked_real("scale", self.scale, above=0),
            standardise=checked_flag("standardise", self.standardise),
        )

    def learn(self, name, data, place):
        stack = self.stack(name, data, place)
        _, n_channels, height, width = stack.shape
        if self.channels and len(self.channels) != n_channels:
            raise SchemaError(f"field '{name}': {len(self.channels)} names for {n_channels} channels")
        if self.size is None and height != width:
            side = min(height, width)
            raise SchemaError(
                f"field '{name}': images of {height} x {width} pixels must be square: Images(size={side}) resizes "
                "them, or cut them"
            )
        channels = self.channels or [f"c{k}" for k in range(n_channels)]
        divisor = self.divisor(name, stack)
        total, squares = np.zeros(n_channels), np.zeros(n_channels)
        for _, block in checked_blocks(name, data, stack, divisor, channels):
            scaled = block.astype(np.float64) / divisor
            total += scaled.sum((0, 2, 3))
            squares += (scaled**2).sum((0, 2, 3))
        pixels = stack.shape[0] * height * width
        mean = total / pixels
        deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        flat = np.flatnonzero(deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-30))
        if flat.size:
            said = f"field '{name}': channel {channels[flat[0]]!r} is constant in all images"
            if self.standardise:
                raise SchemaError(f"{said}: leave it out, or standardise=False")
            caution(f"{said}: nothing can be learnt from it")
        side = self.size or height
        state = {"channels": channels, "size": side, "resized": self.size is not None, "divisor": divisor}
        plain = {"mean": [0.0] * n_channels, "deviation": [1.0] * n_channels}
        return state | ({"mean": mean.tolist(), "deviation": deviation.tolist()} if self.standardise else plain)

    def read(self, name, data, place, state):
        stack = self.stack(name, data, place)
        _, n_channels, height, width = stack.shape
        if n_channels != len(state["channels"]):
            raise SchemaError(
                f"field '{name}': {n_channels} channels, but {len(state['channels'])} were trained on "
                f"({', '.join(state['channels'])})"
            )
        if not state["resized"] and (height, width) != (state["size"],) * 2:
            raise SchemaError(
                f"field '{name}': images of {height} x {width} pixels, but {state['size']} x {state['size']} were "
                "trained on: fit with Images(size=...) to bring all to one size"
            )
        for _ in checked_blocks(name, data, stack, state["divisor"], state["channels"]):
            pass
        size = state["size"] if state["resized"] else None
        return ImageStore(stack, state["divisor"], size, state["mean"], state["deviation"])

    def sizes(self, name, state):
        return {"n_channels": len(state["channels"]), "image_size": state["size"]}

    def stack(self, name: str, data: Any, place: Any) -> ArrayStack | PagedStack:
        """Return the images at a place; SchemaError for what has not the shape [N, C, H, W]."""
        if is_stack(place) and not (isinstance(data, dict) and place in data):
            try:
                stack = open_stack(place)
            except ValueError as error:
                raise SchemaError(f"field '{name}': {error}") from None
            cells = n_rows(data)
            if cells != stack.shape[0]:
                raise SchemaError(f"field '{name}': {place!r} has {stack.shape[0]} images, and the data {cells} cells")
        else:
            stack = ArrayStack(_array(name, data, place))
        check_shape(name, stack.shape)
        return stack

    def divisor(self, name: str, stack: Any) -> float:
        """Return full intensity."""
        if self.scale is not None:
            return float(self.scale)
        if stack.dtype.kind == "f":
            return 1.0
        if stack.dtype.name not in FULL:
            raise SchemaError(
                f"field '{name}': say what full intensity is, Images(scale=...): {stack.dtype} has none that is usual"
            )
        return FULL[stack.dtype.name]


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise SchemaError, saying what to do, unless a shape is that of images with channels first."""
    if len(shape) == 3:
        raise SchemaError(
            f"field '{name}': images of the shape {shape} have no axis of channels: images[:, None] makes it one"
        )
    if len(shape) != 4 or 0 in shape[1:]:
        raise SchemaError(f"field '{name}': images have the shape [cells, channels, height, width], not {shape}")
    if shape[-1] <= CHANNELS < min(shape[1:3]):
        raise SchemaError(
            f"field '{name}': images of the shape {shape} have their channels last; numpy.moveaxis(images, -1, 1) puts "
            "them first"
        )


def checked_blocks(name: str, data: Any, stack: Any, divisor: float, channels: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield first row and images of each block; SchemaError names cell and channel of what is no intensity."""
    for begin in range(0, stack.shape[0], BLOCK):
        block = stack.rows(np.arange(begin, min(begin + BLOCK, stack.shape[0])))
        whole = block.dtype.kind in "iu"
        with np.errstate(over="ignore"):
            wrong = (block < 0) | (block > divisor) if whole else ~np.isfinite(block.astype(np.float32, copy=False))
        if wrong.any():
            at = np.argwhere(wrong)[0]
            cell, value = cell_name(data, begin + at[0]), shown(block[tuple(at)])
            said = f"field '{name}': cell {cell!r}, channel {channels[at[1]]!r}, pixel ({at[2]}, {at[3]}) is {value}"
            raise SchemaError(f"{said}, outside 0 to {divisor:g}, full intensity" if whole else f"{said}, not finite")
        yield begin, block


def _array(name: str, data: Any, place: Any) -> np.ndarray:
    """An array of real numbers, of any shape."""
    if isinstance(data, anndata.AnnData):
        kind, _, key = str(place).partition("/")
        if kind != "obsm" or key not in data.obsm:
            there = ", ".join(f"'obsm/{k}'" for k in data.obsm) or "none"
            raise SchemaError(
                f"field '{name}': images are an array in obsm ({there} there) or a file ('cells.npy', 'cells.zarr', "
                f"'cells.tif'), not at {place!r}"
            )
        raw: Any = data.obsm[key]
    else:
        key = name if name in data and place not in data else str(place).removeprefix("obsm/")
        if key not in data:
            raise SchemaError(f"field '{name}': no array {key!r} in the data; there are {', '.join(map(str, data))}")
        raw = data[key]
    if isinstance(raw, list | tuple) or (isinstance(raw, np.ndarray) and raw.dtype.kind == "O"):
        shapes = [np.shape(image) for image in raw]
        other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is not None:
            raise SchemaError(
                f"field '{name}': the image of cell {cell_name(data, other)!r} has the shape {shapes[other]}, that of "
                f"the first {shapes[0]}: bring them to one size"
            )
        raw = np.stack([np.asarray(image) for image in raw])
    values = real_array(name, raw, data)
    return values.astype(np.uint8) * np.uint8(255) if values.dtype.kind == "b" else values
