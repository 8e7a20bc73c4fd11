"""Stored images: arrays in memory, or files decoded when asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ltpipe.config.datasets import InputSettings
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.io import open_regular, printable
from ltpipe.utils.outside import read_bytes
from ltpipe.utils.progress import track

# Pillow's own warning limit, about a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485
# Far more than any image of so many pixels takes.
MAX_BYTES = 1 << 30
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FITS = ("cover", "stretch", "whole")
_MODES = {1: "L", 3: "RGB"}
# EXIF orientations that swap height and width.
_LYING = (5, 6, 7, 8)


class Images(Protocol):
    """N stored images of one size."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        ...

    def __len__(self) -> int: ...

    def nbytes(self, n: int) -> int:
        """Bytes that `n` of the images take as uint8."""
        ...

    def load(self, index: np.ndarray) -> np.ndarray:
        """Return the images at `index` (n,) as (n, H, W, C) uint8."""
        ...


class ArrayImages:
    """Images held in memory as one array.

    Raises:
        InputError: the array is not (N, H, W, C) uint8.
    """

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype != np.uint8 or array.ndim != 4:
            raise InputError(
                f"images are {array.dtype} of shape {array.shape}: (N, H, W, C) uint8 is needed"
            )
        self._array = array

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self._array.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self._array)

    def nbytes(self, n: int) -> int:
        return n * int(np.prod(self.shape))

    def load(self, index: np.ndarray) -> np.ndarray:
        return self._array[index]


class FileImages:
    """Image files, decoded when asked for.

    To ``cover``, the shorter side is resized (antialiased) so that the image just covers the stored
    size, and the middle is kept; the longer side is cut to whole pixels and the middle's place
    rounded to even, as torchvision, and so CLIP, have them. To ``stretch``, both sides are resized
    to the stored ones, which keeps all of the image but not its aspect ratio. ``whole`` images are
    packed with nothing cut off, and else are as with ``cover``.

    Args:
        paths: N image files.
        size: stored (height, width).
        channels: 3 (RGB) or 1 (grey).
        interpolation: ``bilinear`` or ``bicubic``.
        fit: ``cover``, ``stretch`` or ``whole``.
        orientation: ``exif`` turns images as their EXIF tags say; ``stored`` takes them as they
            lie in the file, as the published pipelines do.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        channels: int = 3,
        interpolation: str = "bilinear",
        fit: str = "cover",
        orientation: str = "stored",
    ) -> None:
        if channels not in _MODES:
            raise InputError(f"channels is {channels}: images have 3 (RGB) or 1 (grey)")
        if interpolation not in INTERPOLATIONS:
            raise InputError(
                f"unknown interpolation {interpolation!r}{nearest(interpolation, INTERPOLATIONS)}: "
                f"one of {', '.join(INTERPOLATIONS)}"
            )
        if fit not in FITS:
            raise InputError(f"unknown fit {fit!r}{nearest(fit, FITS)}: one of {', '.join(FITS)}")
        if min(size) < 1:
            raise InputError(f"image size is {size}: both sides must be positive")
        self._paths = list(paths)
        self._size = size
        self._channels = channels
        self._interpolation = INTERPOLATIONS[interpolation]
        self._stretch = fit == "stretch"
        self._whole = fit == "whole"
        self._turns = orientation == "exif"

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return self._paths

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self._size, self._channels)

    def __len__(self) -> int:
        return len(self._paths)

    def nbytes(self, n: int) -> int:
        return n * int(np.prod(self.shape))

    def load(self, index: np.ndarray) -> np.ndarray:
        """Decode the images at `index`, one after another.

        Raises:
            InputError: a file is missing, damaged, has more than 8 bits a channel, or is too big.
        """
        batch = np.empty((len(index), *self.shape), dtype=np.uint8)
        for row, position in zip(batch, index, strict=True):
            row[:] = self._decode(self._paths[position])
        return batch

    def _decode(self, path: Path) -> np.ndarray:
        name = f"image {printable(path)}"
        with _readable(name), Image.open(io.BytesIO(read_bytes(path, MAX_BYTES))) as image:
            return self.prepared(image, name)

    def prepared(self, image: Image.Image, name: str) -> np.ndarray:
        """Return an opened image as it is stored, uint8 (H, W, C).

        Raises:
            InputError: it is damaged, has more than 8 bits a channel, or is too big.
        """
        with _readable(name):
            pixels = self._fit(self._converted(image, name))
            return np.asarray(pixels, dtype=np.uint8).reshape(self.shape)

    def _converted(self, image: Image.Image, name: str) -> Image.Image:
        _check(image, name)
        if self._turns:
            image = ImageOps.exif_transpose(image)
        return image.convert(_MODES[self._channels])

    def whole(self, place: int) -> np.ndarray:
        """Decode one image as it is packed, uint8 (H, W, C); with `whole` nothing is cut off.

        Raises:
            InputError: as `load`.
        """
        if not self._whole:
            return self._decode(self._paths[place])
        path = self._paths[place]
        name = f"image {printable(path)}"
        with _readable(name), Image.open(io.BytesIO(read_bytes(path, MAX_BYTES))) as image:
            pixels = self._resized(self._converted(image, name))
            return np.asarray(pixels, dtype=np.uint8).reshape(
                (pixels.height, pixels.width, self._channels)
            )

    def whole_size(self, place: int) -> tuple[int, int]:
        """Return height and width of what `whole` gives, by the file's header alone.

        Raises:
            InputError: the file is missing or no image.
        """
        if not self._whole:
            return self._size
        path = self._paths[place]
        name = f"image {printable(path)}"
        with _readable(name), open_regular(path) as handle, Image.open(handle) as image:
            lies = self._turns and image.getexif().get(ExifTags.Base.Orientation, 1) in _LYING
            seen = image.size[::-1] if lies else image.size
            width, height = self._resized_size(seen)
            return height, width

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self._size
        if self._stretch:
            return image.resize((width, height), self._interpolation)
        image = self._resized(image)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _resized(self, image: Image.Image) -> Image.Image:
        """Return the image so that it just covers the stored size."""
        resized = self._resized_size(image.size)
        return image if resized == image.size else image.resize(resized, self._interpolation)

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        (height, width), (wide, tall) = self._size, size
        if wide * height >= width * tall:
            resized = wide * height // tall, height
        else:
            resized = width, tall * width // wide
        if resized[0] * resized[1] > MAX_PIXELS:
            raise ValueError(
                f"{wide} x {tall} pixels are too long and thin to cover {width} x {height}: crop "
                "it or take it out"
            )
        return resized


class FiveCrops(FileImages):
    """Image files as five crops each, one below the other: four corners and the middle.

    The shorter side is resized to that of `size` and `margin` more, the other in proportion.
    """

    def __init__(
        self, paths: Sequence[Path], size: tuple[int, int], margin: int, stored: InputSettings
    ) -> None:
        height, width = size
        super().__init__(
            paths,
            (5 * height, width),
            stored.channels,
            stored.interpolation,
            orientation=stored.orientation,
        )
        self._crop = size
        self._margin = margin

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self._crop
        shorter = min(height, width) + self._margin
        longer = shorter * max(image.size) // min(image.size)
        sides = (longer, shorter) if image.width >= image.height else (shorter, longer)
        image = image.resize(sides, self._interpolation)
        stacked = Image.new(image.mode, (width, 5 * height))
        for number, (top, left) in enumerate(crop_places((image.height, image.width), self._crop)):
            box = (left, top, left + width, top + height)
            stacked.paste(image.crop(box), (0, number * height))
        return stacked


def crop_places(image: tuple[int, int], crop: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (top, left) of the crops of torchvision's FiveCrop: corners, then the middle."""
    down, right = image[0] - crop[0], image[1] - crop[1]
    return [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]


def stored_images(paths: Sequence[Path], settings: InputSettings) -> FileImages:
    """Return image files as a data set's settings say that they are kept."""
    return FileImages(
        paths,
        settings.kept,
        settings.channels,
        settings.interpolation,
        settings.fit,
        settings.orientation,
    )


def find_damaged(paths: Sequence[Path]) -> dict[int, str]:
    """Return which of these image files can't be used, and why, by their places.

    Every file is decoded, JPEG files at an eighth of their size.
    """

    def reason(path: Path) -> str:
        name = f"image {path}"
        try:
            with _readable(name), Image.open(io.BytesIO(read_bytes(path))) as image:
                _check(image, name)
                image.draft("RGB", (1, 1))
                image.load()
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        found = track(pool.map(reason, paths), "looking at images", len(paths))
        return {place: text for place, text in enumerate(found) if text}


def _check(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{name} has {image.width} x {image.height} pixels, more than "
            f"{MAX_PIXELS}: shrink it or take it out"
        )
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{name} has mode {image.mode}, more than 8 bits a channel: convert it to 8 bits"
        )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what Pillow raises at an image into one error that names it."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too big: {error}") from error
    except UnidentifiedImageError:
        raise InputError(f"{name} can't be read: it is no image of a known format") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{name} can't be read: {reason}") from error
