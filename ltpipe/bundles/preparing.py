"""From what users have, files, pictures or arrays, to what the network's test images were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltpipe.config.datasets import NetworkInput
from ltpipe.data.images import FileImages
from ltpipe.utils.errors import InputError

Given = str | Path | Image.Image | np.ndarray
# Sources whose images come as arrays of one size: to that size others are brought.
_NATIVE = {"digits": [8, 8], "cifar10": [32, 32], "cifar100": [32, 32]}


def input_rule(dataset: Any, network: NetworkInput | None = None) -> dict[str, Any]:
    """Return how the test images of a data set reach the network, for bundle.json.

    `network` is how one sees them that brings its own statistics; it enlarges those of arrays.

    `stored` is height and width to which an image is brought first, as `fit` says (`pad`: smaller
    images get zeros around them, larger ones are covered), `size` those of the middle that is kept.
    """
    is_array = dataset.source in _NATIVE or dataset.source == "medmnist"
    settings = dataset.input
    if network is not None:
        settings = dataset.seen_by(network).input
        if is_array:
            kept = dataset.input.model_dump(include={"size", "stored", "fit", "interpolation"})
            settings = settings.model_copy(update=kept)
    return {
        "size": list(settings.size),
        "stored": _NATIVE.get(dataset.source) or list(settings.stored or settings.size),
        "channels": settings.channels,
        "interpolation": settings.interpolation,
        "fit": "pad" if dataset.source == "medmnist" else settings.fit,
        "orientation": settings.orientation,
        "mean": list(settings.mean),
        "std": list(settings.std),
    }


class GivenImages(FileImages):
    """Image files, Pillow images and uint8 arrays, prepared as a data set's images were.

    Arrays are (H, W), (H, W, 1) or (H, W, 3).

    Attributes:
        bad: where `skip_bad`, the message of each image that could not be used, by its place.
    """

    def __init__(
        self, items: Sequence[Given], rule: Mapping[str, Any], *, skip_bad: bool = False
    ) -> None:
        pads = rule["fit"] == "pad"
        super().__init__(
            [],
            (rule["stored"][0], rule["stored"][1]),
            rule["channels"],
            rule["interpolation"],
            "cover" if pads else rule["fit"],
            rule.get("orientation", "stored"),
        )
        self._items = items
        self._pads = pads
        self._skip_bad = skip_bad
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._items)

    def load(self, index: np.ndarray) -> np.ndarray:
        """Prepare the images at `index`, uint8 (n, H, W, C).

        Raises:
            InputError: an image can't be used, and none is to be skipped; it is named.
        """
        batch = np.zeros((len(index), *self.shape), dtype=np.uint8)
        for row, place in zip(batch, index.tolist(), strict=True):
            try:
                row[:] = self._load_one(place)
            except InputError as error:
                if not self._skip_bad:
                    raise
                self.bad[place] = str(error)
        return batch

    def _load_one(self, place: int) -> np.ndarray:
        item = self._items[place]
        if isinstance(item, str | Path):
            return self._decode(Path(item))
        name = f"image {place}"
        if isinstance(item, np.ndarray):
            item = _picture(item, name)
        if not isinstance(item, Image.Image):
            raise InputError(
                f"{name} is a {type(item).__name__}: a path, a Pillow image or a uint8 array is "
                "needed"
            )
        return self.prepared(item, name)

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self._size
        if not self._pads or image.height > height or image.width > width:
            return super()._fit(image)
        padded = Image.new(image.mode, (width, height))
        padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return padded


def _picture(array: np.ndarray, name: str) -> Image.Image:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise InputError(
            f"{name} is an array of {array.dtype} and shape {array.shape}: uint8 of (H, W), "
            "(H, W, 1) or (H, W, 3) is needed"
        )
    return Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array)
