"""Dump the features of a pretrained network, with images as that network was trained on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import PretrainedFeatures, backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.data.augment import Normalise
from ltpipe.data.loading import ImageSplit
from ltpipe.data.subset import Subset, read_subset
from ltpipe.features.extract import Embed, described, open_splits, view_draws, write_empty
from ltpipe.features.store import Blocks, write_features
from ltpipe.models.building import load_weights, place
from ltpipe.models.pretrained import build_pretrained, network_input
from ltpipe.training.devices import precision
from ltpipe.training.engine import autocast_to
from ltpipe.utils.io import file_sha256
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


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5: features, and views of the training images.

    Files and inputs are those of `ltpipe.features.extract`. A network that is not trained here has
    no classifier over these classes, and its stores have no logits.
    """
    settings = PretrainedFeatures.model_validate(job.spec["features"])
    backbone = backbone_settings(job.spec["backbone"])
    subset = read_subset(job.file("data", "subset.h5"))
    weights = job.file("stage1", "model.safetensors")
    network = build_pretrained(backbone)
    load_weights(network, weights)
    network = place(network.eval(), job.device)
    seen = network_input(backbone)
    dtype = precision(settings.precision, job.device, "extraction")
    embed = PretrainedEmbedder(network, seen, dtype).to(job.device)
    attributes = {
        "backbone": backbone.network,
        "towers": backbone.origin(),
        "input": seen.model_dump_json(),
        "mean": seen.mean,
        "std": seen.std,
        "checkpoint": file_sha256(weights),
        "draw": subset.digest,
        "seed": job.seed,
        "view_seed": settings.view_seed,
        "batch_size": settings.batch_size,
        "precision": str(dtype).removeprefix("torch."),
    }
    dimension, images, started = 0, 0, time.perf_counter()
    for name, split in open_splits(job, subset, seen):
        if split is None:
            write_empty(job, name, subset, dimension, attributes)
            continue
        with torch.inference_mode():
            dimension = _write_split(job, name, split, embed, settings, subset, attributes)
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


def _write_split(
    job: Job,
    name: str,
    split: ImageSplit,
    embed: Embed,
    settings: PretrainedFeatures,
    subset: Subset,
    attributes: dict[str, Any],
) -> int:
    """Write one split's file; return the width of its features."""
    samples = len(split.labels)
    order = torch.arange(samples)

    def stream(view: int | None) -> Iterator[np.ndarray]:
        draws = view_draws(settings, job.seed, view, job.device)
        for batch in split.batches.epoch(order, settings.batch_size, draws):
            yield embed(batch).cpu().numpy()

    batches = -(-samples // settings.batch_size)
    features = np.concatenate(list(track(stream(None), f"{name} features", batches)))

    def all_views() -> Iterator[np.ndarray]:
        for view in track(range(settings.views), "augmented views"):
            yield from stream(view)

    views = None
    if name == "train" and settings.views:
        shape = (settings.views, samples, features.shape[1])
        views = Blocks(shape, settings.view_dtype, all_views())
    write_features(
        job.output / f"{name}.h5",
        features=features,
        **described(split, subset),
        attributes=attributes,
        views=views,
    )
    return features.shape[1]
