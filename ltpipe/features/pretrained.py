"""Dump the features of a pretrained network, with images as that network was trained on them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import PretrainedFeatures, backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.data.augment import Normalise
from ltpipe.data.images import crop_places
from ltpipe.data.loading import ImageSplit, open_split
from ltpipe.data.subset import Subset, read_subset
from ltpipe.features.extract import (
    Embed,
    Head,
    described,
    embedded,
    open_splits,
    provenance,
    view_draws,
    write_empty,
)
from ltpipe.features.store import Blocks, write_features
from ltpipe.models.building import load_weights, place
from ltpipe.models.fold import fold_batchnorm
from ltpipe.models.pretrained import add_trained_parts, build_pretrained, network_input
from ltpipe.training.devices import precision
from ltpipe.training.engine import autocast_to
from ltpipe.utils.progress import say, track


class PretrainedEmbedder(nn.Module):
    """Maps uint8 batches (B, C, H, W) to float32 features (B, D); products are in `dtype`.

    Images of another size than the network's are resized, grey ones are repeated.
    """

    def __init__(self, network: nn.Module, seen: NetworkInput, dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Any = network
        self.size = (seen.size[0], seen.size[1])
        self.interpolation = seen.interpolation
        self.normalise = Normalise(seen.mean, seen.std, torch.float32)
        self.dtype = dtype

    def forward(self, batch: Tensor) -> Tensor:
        images = self.normalise(resized(batch, self.size, self.interpolation))
        with autocast_to(self.dtype, batch.device):
            return self.network.features(images).float()


def resized(batch: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Return uint8 images (B, C, H, W) resized as Pillow does, antialiased and rounded."""
    if batch.shape[2:] == size:
        return batch
    if batch.device.type == "cpu":
        return F.interpolate(batch, size, mode=interpolation, antialias=True)
    # Only CPUs have this for bytes.
    enlarged = F.interpolate(batch.float(), size, mode=interpolation, antialias=True)
    return enlarged.round().clamp(0, 255).to(torch.uint8)


class CropEmbedder(nn.Module):
    """Maps uint8 batches to the features (B, 5, D) of five crops of each image.

    They are those that lie one below the other, or are cut out of images `margin` pixels larger.
    """

    def __init__(self, embed: PretrainedEmbedder, margin: int) -> None:
        super().__init__()
        self.embed = embed
        self.margin = margin

    def forward(self, batch: Tensor) -> Tensor:
        height, width = self.embed.size
        if batch.shape[2:] != (5 * height, width):
            scale = (min(height, width) + self.margin) / min(batch.shape[2:])
            larger = (math.floor(batch.shape[2] * scale), math.floor(batch.shape[3] * scale))
            whole = resized(batch, larger, self.embed.interpolation)
            places = crop_places(larger, (height, width))
            batch = torch.cat([whole[:, :, t : t + height, s : s + width] for t, s in places], 2)
        crops = batch.unflatten(2, (5, height)).transpose(1, 2).flatten(0, 1)
        return self.embed(crops.contiguous(memory_format=torch.channels_last)).unflatten(0, (-1, 5))


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5: features, and views of the training images.

    Files and inputs are those of `ltpipe.features.extract`. A network of which nothing is trained
    has no classifier over these classes, and its stores have no logits. With `ensemble`, logits of
    the validation and the test part are means over five crops.
    """
    settings = PretrainedFeatures.model_validate(job.spec["features"])
    backbone = backbone_settings(job.spec["backbone"])
    subset = read_subset(job.file("data", "subset.h5"))
    weights = job.file("stage1", "model.safetensors")
    lost = read_divergence(job.inputs["stage1"])
    seen = network_input(backbone)
    dtype = precision(settings.precision, job.device, "extraction")
    network = build_pretrained(backbone)
    if backbone.trained != "none":
        add_trained_parts(network, backbone, len(subset.class_names))
    if lost:
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
    else:
        load_weights(network, weights)
    embed = pretrained_embedder(network, seen, dtype, job.device)
    trained = None
    if network.head is not None:
        trained = Head(network.head.float().eval(), backbone, subset.class_counts)
    attributes: dict[str, Any] = {
        **provenance(job, settings, subset, dtype),
        "backbone": backbone.network,
        "towers": backbone.origin(),
        "input": seen.model_dump_json(),
        "mean": seen.mean,
        "std": seen.std,
    }
    if trained is not None:
        attributes["head"] = backbone.head
    if settings.ensemble is not None:
        attributes["ensemble"] = settings.ensemble
    if lost:
        attributes["diverged"] = lost[0]
    dump = _Dump(job, settings, subset, embed, trained, attributes)
    dimension, images, started = 0, 0, time.perf_counter()
    for name, split in open_splits(job, subset, seen):
        if split is None:
            write_empty(job, name, subset, dimension, attributes)
            continue
        with torch.inference_mode():
            dimension = dump.write(name, split, seen)
        images += len(split.labels) * (1 + (settings.views if name == "train" else 0))
    seconds = time.perf_counter() - started
    say(
        f"embedded {images} images in {seconds:.1f} s ({images / seconds:.0f} images/s) with "
        f"{backbone.network} at {seen.size[0]} x {seen.size[1]}"
    )
    return {
        "checkpoint_sha256": attributes["checkpoint"],
        "input": seen.model_dump(),
        "precision": attributes["precision"],
        "images_per_second": round(images / seconds, 1),
    }


def pretrained_embedder(
    network: nn.Module, seen: NetworkInput, dtype: torch.dtype, device: torch.device
) -> PretrainedEmbedder:
    """Return a function from uint8 batches (B, C, H, W) to float32 features (B, D)."""
    folded = place(fold_batchnorm(network), device)
    return PretrainedEmbedder(folded, seen, dtype).to(device)


@dataclass(frozen=True)
class _Dump:
    """Writes the stores of one job."""

    job: Job
    settings: PretrainedFeatures
    subset: Subset
    embed: PretrainedEmbedder
    head: Head | None
    attributes: dict[str, Any]

    def write(self, name: str, split: ImageSplit, seen: NetworkInput) -> int:
        """Write one split's file; return the width of its features."""
        job, settings, samples = self.job, self.settings, len(split.labels)
        batches = -(-samples // settings.batch_size)
        features = np.concatenate(
            list(track(self._stream(split, self.embed), f"{name} features", batches))
        )

        def all_views() -> Iterator[np.ndarray]:
            for view in track(range(settings.views), "augmented views"):
                draws = view_draws(settings, job.seed, view, job.device)
                yield from self._stream(split, self.embed, draws)

        views = None
        if name == "train" and settings.views:
            shape = (settings.views, samples, features.shape[1])
            views = Blocks(shape, settings.view_dtype, all_views())
        state: dict[str, Tensor] = {}
        logits = None
        if self.head is not None:
            state = self.head.head.state_dict()
            logits = self.head(torch.from_numpy(features)).numpy()
            if settings.ensemble is not None and name != "train":
                logits = self._ensemble(name, seen, settings.ensemble)
        write_features(
            job.output / f"{name}.h5",
            features=features,
            **described(name, split, self.subset),
            attributes=self.attributes,
            views=views,
            logits=logits,
            classifier_weight=state["weight"].numpy() if state else None,
            classifier_bias=state["bias"].numpy() if "bias" in state else None,
        )
        return features.shape[1]

    def _stream(
        self, split: ImageSplit, embed: Embed, draws: torch.Generator | None = None
    ) -> Iterator[np.ndarray]:
        order = torch.arange(len(split.labels))
        batches = split.batches.epoch(order, self.settings.batch_size, draws)
        yield from embedded(batches, embed, self.job.device)

    def _ensemble(self, name: Any, seen: NetworkInput, margin: int) -> np.ndarray:
        """Return each image's logits (N, C), the mean over five crops."""
        job = self.job
        split = open_split(
            job.spec["dataset"], self.subset, name, job.device, job.root, seen, margin
        )
        embed = CropEmbedder(self.embed, margin)
        crops = np.concatenate(list(track(self._stream(split, embed), f"{name} crops")))
        assert self.head is not None
        return (
            self.head(torch.from_numpy(crops).flatten(0, 1)).unflatten(0, (-1, 5)).mean(1).numpy()
        )
