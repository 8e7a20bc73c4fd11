"""From a data set's settings to its images: which reader, which options, which samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ltpipe.config.datasets import InputSettings, NetworkInput
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import AnyBatches, open_batches
from ltpipe.data.images import FileImages, FiveCrops
from ltpipe.data.opening import dataset_settings, split_part
from ltpipe.data.packed import open_packed
from ltpipe.data.subset import Subset
from ltpipe.utils.errors import InputError


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each channel, in units of the full range 0 .. 1."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split on a device: batches, labels (N,) int64 on the CPU, statistics."""

    batches: AnyBatches
    labels: Tensor
    index: np.ndarray
    pixels: Pixels
    channels: int


def open_split(
    identity: Mapping[str, Any],
    subset: Subset,
    split: Literal["train", "val", "test"],
    device: torch.device,
    root: Path | None,
    network: NetworkInput | None = None,
    margin: int | None = None,
    packed: Path | None = None,
) -> ImageSplit:
    """Open one split's images for `device`; on the device itself where they fit.

    For a network that brings its own statistics, files are decoded to its size. Images that come
    as arrays keep theirs, and the network enlarges them. With `margin`, files are five crops each
    of an image that many pixels larger, one below the other. Other networks' images are taken from
    the file `packed` where there is one.

    Raises:
        InputError: files are missing or damaged, or are no longer those that the subset was
            drawn from.
    """
    settings = dataset_settings(identity)
    index = getattr(subset, f"{split}_index")
    labels = getattr(subset, f"{split}_labels")
    if packed is not None and network is None:
        wanted = settings.input
        mapped = open_packed(packed, split, wanted.kept)
        batches = open_batches(mapped, np.arange(len(index)), _augmentation(wanted), device)
        return _image_split(batches, labels, index, wanted)
    native = settings.input.size
    if network is not None:
        settings = settings.seen_by(network)
    source = settings.read(root)
    part = split_part(source, subset, split, settings.source)
    images, wanted, size = part.images, settings.input, native
    if isinstance(images, FileImages):
        size = wanted.size
        if wanted.fit == "whole":
            raise InputError(
                "input.fit: whole images are taken from packed ones; run `ltpipe decode`"
            )
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
    augmentation = replace(_augmentation(wanted), size=(size[0], size[1]))
    batches = open_batches(images, index, augmentation, device)
    return _image_split(batches, labels, index, wanted)


def _augmentation(wanted: InputSettings) -> Augmentation:
    return Augmentation(
        size=(wanted.size[0], wanted.size[1]),
        padding=wanted.padding,
        flip=wanted.flip,
        resized_crop=wanted.resized_crop,
        crop_scale=(wanted.crop_scale[0], wanted.crop_scale[1]),
        interpolation=wanted.interpolation,
        color_jitter=wanted.color_jitter,
    )


def _image_split(
    batches: AnyBatches, labels: np.ndarray, index: np.ndarray, wanted: InputSettings
) -> ImageSplit:
    return ImageSplit(
        batches=batches,
        labels=torch.from_numpy(labels),
        index=index,
        pixels=Pixels(wanted.mean, wanted.std),
        channels=wanted.channels,
    )
