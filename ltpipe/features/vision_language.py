"""Dump vision-language towers: image features, the classes' texts, views of rising strength."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import (
    Ladder,
    VisionLanguage,
    VisionLanguageFeatures,
    backbone_settings,
)
from ltpipe.data.augment import Normalise
from ltpipe.data.loading import ImageSplit, Pixels
from ltpipe.data.randaugment import rand_augment
from ltpipe.data.subset import Subset, read_subset
from ltpipe.features.extract import (
    Embed,
    described,
    embedded,
    open_splits,
    provenance,
    view_draws,
    write_empty,
)
from ltpipe.features.store import Blocks, write_features
from ltpipe.models.building import place
from ltpipe.models.vision_language import (
    build_prompts,
    build_towers,
    encode_images,
    encode_texts,
    load_towers,
)
from ltpipe.training.devices import precision
from ltpipe.training.engine import autocast_to
from ltpipe.utils.progress import say, track
from ltpipe.utils.seeding import generator

_LATENCY_IMAGES = 100
_LATENCY_ROUNDS = 3


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5.

    Files and inputs are those of `ltpipe.features.extract`. Features are the image tower's output
    before it is brought to unit length; `text` are the classes' texts as unit vectors, also as
    the rows of a cosine classifier with the attribute `logit_scale`. Views of the training set are
    `features.views` of the training augmentation alone, strength 0, then those of the ladder.
    """
    settings = VisionLanguageFeatures.model_validate(job.spec["features"])
    backbone = backbone_settings(job.spec["backbone"])
    subset = read_subset(job.file("data", "subset.h5"))
    towers = open_towers(job, backbone, "stage1")
    dtype = precision(settings.precision, job.device, "extraction")
    with torch.inference_mode():
        prompts = build_prompts(towers, subset.class_names, backbone)
        text = encode_texts(towers, prompts).cpu()
    attributes = {
        **provenance(job, settings, subset, dtype),
        "backbone": backbone.network,
        "head": "cosine",
        "towers": backbone.origin(),
        "logit_scale": float(towers.logit_scale.exp()),
        "ladder": "" if settings.ladder is None else json.dumps(settings.ladder.model_dump()),
    }
    dimension, images, seconds, latency = text.shape[1], 0, 0.0, float("nan")
    for name, split in open_splits(job, subset):
        if split is None:
            write_empty(job, name, subset, dimension)
            continue
        embed = tower_embedder(towers, split.pixels, dtype, job.device)
        started = time.perf_counter()
        with torch.inference_mode():
            images += _write_split(job, name, split, embed, settings, subset, text, attributes)
            seconds += time.perf_counter() - started
            if name == "test":
                latency = _latency(split, embed, settings.batch_size)
    say(
        f"embedded {images} images in {seconds:.1f} s ({images / seconds:.0f} images/s) with "
        f"{backbone.origin()}; 100 images take {latency:.3f} s"
    )
    return {
        "checkpoint_sha256": attributes["checkpoint"],
        "towers": backbone.origin(),
        "precision": attributes["precision"],
        "images_per_second": round(images / seconds, 1),
        "latency_s_per_100_images": round(latency, 4),
    }


def open_towers(job: Job, backbone: VisionLanguage, role: str) -> Any:
    """Return the trained towers of an input, on the job's device."""
    towers = build_towers(backbone, with_weights=False)
    load_towers(towers, job.file(role, "model.safetensors"))
    return place(towers, job.device).requires_grad_(False)


class TowerEmbedder(nn.Module):
    """Maps uint8 batches (B, C, H, W) to float32 features (B, D); products are in `dtype`."""

    def __init__(self, visual: nn.Module, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__()
        self.visual = visual
        self.normalise = Normalise(pixels.mean, pixels.std, torch.float32)
        self.dtype = dtype

    def forward(self, batch: Tensor) -> Tensor:
        images = self.normalise(batch)
        with autocast_to(self.dtype, batch.device):
            return encode_images(self, images).float()


def tower_embedder(
    towers: Any, pixels: Pixels, dtype: torch.dtype, device: torch.device
) -> TowerEmbedder:
    """Return a function from uint8 batches (B, C, H, W) to float32 features (B, D)."""
    return TowerEmbedder(towers.visual, pixels, dtype).to(device)


def ladder_strengths(ladder: Ladder | None) -> list[float]:
    """Return the strength of each view of the ladder, from the weakest."""
    if ladder is None:
        return []
    rungs = [round(rung / ladder.strengths, 6) for rung in range(1, ladder.strengths + 1)]
    return [rung for rung in rungs for _ in range(ladder.draws)]


def ladder_augment(
    images: Tensor, memory: Tensor, ladder: Ladder, draws: torch.Generator
) -> Tensor:
    """Return the batch as the ladder's settings augment samples of this memory (B,)."""
    return rand_augment(
        images,
        memory,
        draws,
        operations=ladder.operations,
        floor=ladder.floor,
        random_strength=ladder.random_strength,
    )


def _write_split(
    job: Job,
    name: str,
    split: ImageSplit,
    embed: Embed,
    settings: VisionLanguageFeatures,
    subset: Subset,
    text: Tensor,
    attributes: dict[str, Any],
) -> int:
    """Write one split's file; return how many images were embedded for it."""
    seed, samples = job.seed, len(split.labels)
    order = torch.arange(samples)

    def stream(view: int | None, change: Callable[[Tensor], Tensor]) -> Iterator[np.ndarray]:
        draws = view_draws(settings, seed, view, job.device)
        batches = split.batches.epoch(order, settings.batch_size, draws)
        yield from embedded(map(change, batches), embed, job.device)

    features = np.concatenate(list(track(stream(None, lambda batch: batch), f"{name} features")))
    strengths = [0.0] * settings.views + ladder_strengths(settings.ladder)

    def all_views() -> Iterator[np.ndarray]:
        for view, strength in enumerate(track(strengths, "augmented views")):
            yield from stream(view, _change(settings, strength, seed, view))

    views = None
    if name == "train" and strengths:
        shape = (len(strengths), samples, features.shape[1])
        views = Blocks(shape, settings.view_dtype, all_views())
    units = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    write_features(
        job.output / f"{name}.h5",
        features=features,
        **described(name, split, subset),
        attributes={**attributes, "mean": split.pixels.mean, "std": split.pixels.std},
        views=views,
        view_strength=None if views is None else np.array(strengths, np.float32),
        logits=(attributes["logit_scale"] * units @ text.numpy().T).astype(np.float32),
        text=text.numpy(),
        classifier_weight=text.numpy(),
    )
    return samples * (1 + (len(strengths) if views is not None else 0))


def _change(
    settings: VisionLanguageFeatures, strength: float, seed: int, view: int
) -> Callable[[Tensor], Tensor]:
    """Return what happens to the batches of a view beyond the training augmentation."""
    ladder = settings.ladder
    if ladder is None or not strength:
        return lambda batch: batch
    draws = generator(settings.view_seed, "randaugment", seed, view)

    def change(batch: Tensor) -> Tensor:
        memory = torch.full((len(batch),), strength, device=batch.device)
        return ladder_augment(batch, memory, ladder, draws)

    return change


def _latency(split: ImageSplit, embed: Embed, batch_size: int) -> float:
    """Return the seconds that 100 images take from bytes to features, the best of some rounds."""
    count = min(_LATENCY_IMAGES, len(split.labels))
    order = torch.arange(count)
    best = float("inf")
    for _ in range(_LATENCY_ROUNDS):
        started = time.perf_counter()
        for batch in split.batches.epoch(order, batch_size, None):
            embed(batch).cpu()
        best = min(best, time.perf_counter() - started)
    return best * _LATENCY_IMAGES / count
