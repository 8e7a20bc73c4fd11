"""From a data set's settings to its images: which reader, which options, which samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ltpipe.config.datasets import Dataset, NetworkInput
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import ImageBatches, open_batches
from ltpipe.data.images import FileImages, FiveCrops
from ltpipe.data.subset import Subset
from ltpipe.utils.errors import InputError

_DATASET: TypeAdapter[Any] = TypeAdapter(Dataset)


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each channel, in units of the full range 0 .. 1."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split on a device: batches, labels (N,) int64 on the CPU, statistics."""

    batches: ImageBatches
    labels: Tensor
    index: np.ndarray
    pixels: Pixels
    channels: int


def dataset_settings(identity: Mapping[str, Any]) -> Any:
    """Return the data set's settings, defaults filled in, from a spec."""
    return _DATASET.validate_python(identity)


def open_split(
    identity: Mapping[str, Any],
    subset: Subset,
    split: Literal["train", "val", "test"],
    device: torch.device,
    root: Path | None,
    network: NetworkInput | None = None,
    margin: int | None = None,
) -> ImageSplit:
    """Open one split's images for `device`; on the device itself where they fit.

    For a network that brings its own statistics, files are decoded to its size. Images that come
    as arrays keep theirs, and the network enlarges them. With `margin`, files are five crops each
    of an image that many pixels larger, one below the other.

    Raises:
        InputError: files are missing or damaged, or are no longer those that the subset was
            drawn from.
    """
    settings = dataset_settings(identity)
    native = settings.input.size
    if network is not None:
        settings = settings.seen_by(network)
    source = settings.read(root)
    index = getattr(subset, f"{split}_index")
    labels = getattr(subset, f"{split}_labels")
    part = getattr(source, subset.val_part if split == "val" else split)
    if part is None:
        raise InputError(f"data source {settings.source!r} has no {split} images")
    if len(index) and (
        index.max() >= len(part.labels) or not np.array_equal(part.labels[index], labels)
    ):
        raise InputError(
            f"the {split} images of source {settings.source!r} changed since the subset was "
            "drawn; delete the data set's folder under results/data and run again"
        )
    images, wanted, size = part.images, settings.input, native
    if isinstance(images, FileImages):
        size = wanted.size
        if margin is not None:
            height, width = size
            images = FiveCrops(images.paths, (height, width), margin, wanted)
            size = [5 * height, width]
    shape = images.shape
    if shape[2] != wanted.channels:
        raise InputError(
            f"input.channels is {wanted.channels} but the images of source {settings.source!r} "
            f"have {shape[2]}"
        )
    batches = open_batches(
        images,
        index,
        Augmentation(
            size=(size[0], size[1]),
            padding=wanted.padding,
            flip=wanted.flip,
            resized_crop=wanted.resized_crop,
            crop_scale=(wanted.crop_scale[0], wanted.crop_scale[1]),
            interpolation=wanted.interpolation,
            color_jitter=wanted.color_jitter,
        ),
        device,
    )
    return ImageSplit(
        batches=batches,
        labels=torch.from_numpy(labels),
        index=index,
        pixels=Pixels(wanted.mean, wanted.std),
        channels=wanted.channels,
    )
