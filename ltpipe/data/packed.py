"""Decoded images in one file, from which every training and view takes them.

An HDF5 file with the data sets `pixels` (bytes) uint8, all images one after another; `sizes` (N, 2)
height and width of each; `starts` (N + 1) where each begins in `pixels`; and the attributes
`format`, `channels`, `decoder`, and for each split the `first` of its rows and their `count`.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from ltpipe.utils.errors import InputError

FORMAT = "ltpipe-images/1"
FILE = "images.h5"
SPLITS = ("train", "val", "test")


class PackedImages:
    """N images of one size, mapped from a packed file.

    Attributes:
        array: (N, H, W, C) uint8, mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.array)

    def nbytes(self, n: int) -> int:
        """Bytes that `n` of the images take as uint8."""
        return n * int(np.prod(self.shape))

    def load(self, index: np.ndarray) -> np.ndarray:
        """Return the images at `index` (n,) as (n, H, W, C) uint8."""
        return self.array[index]


class WholeImages:
    """N images of sizes of their own, mapped from a packed file.

    Attributes:
        sizes: (N, 2) height and width of each.
        channels: of every image.
        kept: (height, width) of the middle that the plain test view is the middle of.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        channels: int,
        kept: tuple[int, int],
    ) -> None:
        self._pixels = pixels
        self._starts = starts
        self.sizes = sizes
        self.channels = channels
        self.kept = kept

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, place: int) -> np.ndarray:
        """Return one image (H, W, C) uint8."""
        height, width = self.sizes[place]
        start = self._starts[place]
        flat = self._pixels[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels)

    def crops(self, places: np.ndarray, boxes: np.ndarray, canvas: np.ndarray) -> None:
        """Copy a box of each image into the top left corner of its canvas.

        Args:
            places: (b,) of the images.
            boxes: (b, 4) int64 top, left, height, width.
            canvas: (b, H, W, C) uint8, at least as large as each box.
        """
        for out, place, (top, left, height, width) in zip(
            canvas, places.tolist(), boxes.tolist(), strict=True
        ):
            image = self.image(place)
            out[:height, :width] = image[top : top + height, left : left + width]


def middle_boxes(sizes: np.ndarray, kept: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the box (N, 4) of the plain test view: of the middle `kept`, the middle `size`.

    Both are rounded as ltpipe.data.images and ltpipe.data.augment.centre_crop do.
    """
    boxes = np.empty((len(sizes), 4), np.int64)
    for axis in (0, 1):
        outer = np.rint((sizes[:, axis] - kept[axis]) / 2).astype(np.int64)
        boxes[:, axis] = outer + (kept[axis] - size[axis]) // 2
        boxes[:, 2 + axis] = size[axis]
    return boxes


def open_packed(path: Path, split: str, kept: tuple[int, int]) -> PackedImages | WholeImages:
    """Map the images of one split of a packed file.

    Raises:
        InputError: the file is not one that was packed to the end.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"{path}: not a file of packed images")
            first, count = (int(value) for value in file.attrs[split])
            channels = int(file.attrs["channels"])
            sizes = file["sizes"][first : first + count].astype(np.int64)
            starts = file["starts"][first : first + count + 1]
            offset, length = file["pixels"].id.get_offset(), len(file["pixels"])
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from None
    if offset is None or path.stat().st_size < offset + length:
        raise InputError(f"{path}: damaged; delete it and run again")
    # Copy on write: nobody writes, and torch takes only arrays that could be written.
    pixels = np.memmap(path, np.uint8, "c", offset, (length,))
    if count and (sizes == sizes[0]).all() and tuple(sizes[0]) == kept:
        shape = (count, *kept, channels)
        return PackedImages(pixels[starts[0] : starts[-1]].reshape(shape))
    if not count:
        return PackedImages(np.empty((0, *kept, channels), np.uint8))
    return WholeImages(pixels, starts, sizes, channels, kept)


def create(path: Path, sizes: np.ndarray, channels: int, splits: dict[str, int]) -> int:
    """Write the file without its pixels, whose place is reserved; return where they begin.

    Args:
        sizes: (N, 2) height and width of each image, those of the splits one after another.
        splits: images of each.

    Raises:
        OSError: there is no room for it.
    """
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes.astype(np.int64).prod(1) * channels, out=starts[1:])
    with h5py.File(path, "w", libver="latest") as file:
        file["sizes"] = sizes.astype(np.int32)
        file["starts"] = starts
        first = 0
        for name, count in splits.items():
            file.attrs[name] = [first, count]
            first += count
        file.attrs["channels"] = channels
        file.attrs["format"] = FORMAT
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.CONTIGUOUS)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((max(int(starts[-1]), 1),))
        made = h5py.h5d.create(file.id, b"pixels", h5py.h5t.NATIVE_UINT8, space, plan)
        offset = made.get_offset()
    with path.open("r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, offset + int(starts[-1]))
    return int(offset)
