"""Dump a trained backbone's embeddings, plain and augmented, to the feature store."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import FeatureSettings, HybridBranch, backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.data.augment import Normalise, normalise
from ltpipe.data.head_tail import group_classes
from ltpipe.data.loading import ImageSplit, Pixels, open_split
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import Subset, read_subset
from ltpipe.features.store import Blocks, write_features
from ltpipe.losses.building import build_loss
from ltpipe.models.building import build_network, load_weights, place
from ltpipe.models.fold import fold_batchnorm
from ltpipe.models.mapping import copy_splitting, read_splitting
from ltpipe.training.devices import precision
from ltpipe.utils.io import file_sha256
from ltpipe.utils.progress import say, track
from ltpipe.utils.seeding import generator

# The batches of the official FFN code, which leaves the CE branch's BatchNorm in training mode.
TRAIN_BN_BATCH = {"train": 64, "val": 256, "test": 256}

# Images at once in a thread: their maps stay in its share of the cache.
_CHUNK = 16

Embed = Callable[[Tensor], Tensor]


class Embedder(nn.Module):
    """Maps uint8 batches (B, C, H, W) to float32 features (B, D) by a network in `dtype`."""

    def __init__(self, network: nn.Module, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Any = network
        self.normalise = Normalise(pixels.mean, pixels.std, dtype)

    def forward(self, batch: Tensor) -> Tensor:
        return self.network.features(self.normalise(batch)).float()


def embedder(
    network: nn.Module, pixels: Pixels, dtype: torch.dtype, device: torch.device
) -> Embedder:
    """Return a function from uint8 batches (B, C, H, W) to float32 features (B, D).

    BatchNorm uses its running statistics and is folded into the convolutions; everything runs in
    `dtype`.
    """
    folded = place(fold_batchnorm(network.eval()), device, dtype)
    return Embedder(folded, pixels, dtype).to(device)


def train_bn_embedder(network: nn.Module, pixels: Pixels, device: torch.device) -> Embed:
    """Return a function like `embedder`'s whose BatchNorm uses each batch's own statistics.

    It repeats a defect of the official FFN code: what a sample's feature is depends on the batch
    that it comes in.
    """
    training = place(network.train(), device)

    def embed(batch: Tensor) -> Tensor:
        return training.features(normalise(batch, pixels.mean, pixels.std, torch.float32)).float()

    return embed


def re_estimate(
    network: nn.Module, split: ImageSplit, classes: int, batch_size: int, seed: int, device: Any
) -> None:
    """Move BatchNorm's stored statistics on by an epoch of augmented, class-balanced batches.

    What MiSLAS (Zhong et al., CVPR 2021, section 3.3) does along its second stage, whose network is
    frozen but for these: momentum 0.1 from the statistics of stage one. In float32.
    """
    training = place(network.train(), device)
    order = epoch_order(split.labels, classes, "balanced", generator(seed, "statistics"))
    draws = generator(seed, "statistics augment", device=device)
    for batch in split.batches.epoch(order, batch_size, draws):
        if len(batch) > 1:
            training.features(normalise(batch, split.pixels.mean, split.pixels.std, torch.float32))


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5: features, logits, and views of the training images.

    `job.spec` has `dataset`, `backbone`, `features` and `seed`; `job.inputs` has `stage1` and
    `data`. Views of one seed are equal for all backbones: view v of a sample is the same crop
    whichever network sees it. A split without samples gives a file without rows. Of a backbone over
    subclasses, logits and classifier are over these, and its splitting.safetensors comes along. A
    backbone that did not converge gives zeros, and the reason as the attribute `diverged`.
    """
    settings = FeatureSettings.model_validate(job.spec["features"])
    # The trained weights follow: those that training started from need not be at hand.
    backbone = backbone_settings({**job.spec["backbone"], "weights": None})
    subset = read_subset(job.file("data", "subset.h5"))
    weights = job.file("stage1", "model.safetensors")
    outputs = len(subset.class_names)
    attributes: dict[str, Any] = {}
    if backbone.splits_classes():
        copy_splitting(job.inputs["stage1"], job.output)
        subclasses = read_splitting(job.output).subclasses
        outputs = sum(subclasses)
        scale = build_loss(backbone.loss, subset.class_counts).logits(torch.ones(1)).item()
        attributes |= {"subclasses": subclasses, "logit_scale": scale}
    if isinstance(backbone, HybridBranch):
        counts = subset.class_counts
        classes = group_classes(counts, backbone.tail_share, backbone.group)
        outputs = len(classes)
        attributes["classes"] = classes
    lost = read_divergence(job.inputs["stage1"])
    if lost:
        attributes["diverged"] = lost[0]
    started = time.perf_counter()
    images = 0
    dimension = 0
    dtype = precision(settings.precision, job.device, "extraction")
    moved: dict[str, Tensor] = {}
    for name, split in open_splits(job, subset):
        if split is None:
            write_empty(job, name, subset, dimension, attributes)
            continue
        network = build_network(backbone, outputs, split.channels)
        if "diverged" in attributes:
            for parameter in network.parameters():
                nn.init.zeros_(parameter)
        else:
            load_weights(network, weights)
        if settings.batch_norm == "re-estimated":
            # The training images come first; the other splits see the statistics found on them.
            if not moved:
                with torch.no_grad():
                    re_estimate(
                        network,
                        split,
                        len(subset.class_names),
                        backbone.batch_size,
                        job.seed,
                        job.device,
                    )
                moved = {name: value.cpu() for name, value in network.named_buffers()}
            network.load_state_dict(moved, strict=False)
        with torch.inference_mode():
            dimension = _write_split(
                job, name, split, network, settings, backbone, subset, dtype, attributes
            )
        images += len(split.labels) * (1 + (settings.views if name == "train" else 0))
    seconds = time.perf_counter() - started
    say(f"embedded {images} images in {seconds:.1f} s ({images / seconds:.0f} images/s)")
    return {
        "checkpoint_sha256": file_sha256(weights),
        "precision": str(dtype).removeprefix("torch."),
        "images_per_second": round(images / seconds, 1),
    }


def _write_split(
    job: Job,
    name: str,
    split: ImageSplit,
    network: Any,
    settings: FeatureSettings,
    backbone: Any,
    subset: Subset,
    dtype: torch.dtype,
    attributes: dict[str, Any],
) -> int:
    seed = job.seed
    samples = len(split.labels)
    order = torch.arange(samples)
    batch_size = settings.batch_size
    if settings.train_bn:
        embed = train_bn_embedder(network, split.pixels, job.device)
        batch_size = TRAIN_BN_BATCH[name]
        if name == "train":
            order = torch.randperm(samples, generator=generator(seed, "train_bn"))
    else:
        embed = embedder(network, split.pixels, dtype, job.device)
    place = torch.argsort(order).numpy()

    def stream(view: int | None) -> Iterator[np.ndarray]:
        draws = view_draws(settings, seed, view, job.device)
        for batch in split.batches.epoch(order, batch_size, draws):
            yield embed(batch).cpu().numpy()

    features = np.concatenate(list(track(stream(None), f"{name} features")))[place]
    head = copy.deepcopy(network.head).to("cpu").float().eval()
    logits = Head(head, backbone, subset.class_counts)(torch.from_numpy(features)).numpy()
    dimension = features.shape[1]

    def all_views() -> Iterator[np.ndarray]:
        for view in track(range(settings.views), "augmented views"):
            if settings.train_bn:
                yield np.concatenate(list(stream(view)))[place]
            else:
                yield from stream(view)

    views = None
    if name == "train" and settings.views:
        views = Blocks((settings.views, samples, dimension), settings.view_dtype, all_views())
    state = head.state_dict()
    write_features(
        job.output / f"{name}.h5",
        features=features,
        **described(name, split, subset),
        attributes={
            **provenance(job, settings, subset, dtype),
            "backbone": backbone.network,
            "head": backbone.head,
            "mean": split.pixels.mean,
            "std": split.pixels.std,
            "train_bn": settings.train_bn,
            **({"batch_norm": settings.batch_norm} if settings.batch_norm != "stored" else {}),
            "batch_size": batch_size,
            **attributes,
        },
        views=views,
        logits=logits,
        classifier_weight=state["weight"].numpy(),
        classifier_bias=state["bias"].numpy() if "bias" in state else None,
    )
    return dimension


class Head(nn.Module):
    """Maps features (N, D) to the logits (N, C') that a backbone has at test time."""

    def __init__(self, head: nn.Module, backbone: Any, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.loss = None if backbone.loss is None else build_loss(backbone.loss, class_counts)

    def forward(self, features: Tensor) -> Tensor:
        outputs = self.head(features)
        return outputs if self.loss is None else self.loss.logits(outputs)


def open_splits(
    job: Job, subset: Subset, network: NetworkInput | None = None
) -> Iterator[tuple[str, ImageSplit | None]]:
    """Yield each split's name and images, the training ones first; None where it has none.

    `network` is how a network sees images that brings its own statistics.
    """
    splits: tuple[Literal["train", "test", "val"], ...] = ("train", "test", "val")
    packed = job.packed_images()
    for name in splits:
        if len(getattr(subset, f"{name}_index")):
            dataset = job.spec["dataset"]
            yield (
                name,
                open_split(dataset, subset, name, job.device, job.root, network, packed=packed),
            )
        else:
            yield name, None


def embedded(batches: Iterable[Tensor], embed: Embed, device: torch.device) -> Iterator[np.ndarray]:
    """Yield what `embed` makes of each batch, for large networks: on a CPU, chunks in threads.

    A thread computes alone, so features are the same bytes whatever the number of threads, and no
    operation waits for another thread.
    """
    if device.type != "cpu":
        for batch in batches:
            yield embed(batch).cpu().numpy()
        return

    def one(chunk: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return embed(chunk).numpy()

    threads = torch.get_num_threads()
    pending: deque[list[Future[np.ndarray]]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for batch in batches:
                pending.append([pool.submit(one, chunk) for chunk in batch.split(_CHUNK)])
                while sum(map(len, pending)) > 2 * threads:
                    yield np.concatenate([chunk.result() for chunk in pending.popleft()])
            for chunks in pending:
                yield np.concatenate([chunk.result() for chunk in chunks])
    finally:
        # The number that a thread sets is that of threads to come, too.
        torch.set_num_threads(threads)


def view_draws(
    settings: FeatureSettings, seed: int, view: int | None, device: torch.device
) -> torch.Generator | None:
    """Return the stream of a view's augmentation, the same for every backbone; None for none."""
    if view is None:
        return None
    return generator(settings.view_seed, "view", seed, view, device=device)


def provenance(
    job: Job, settings: FeatureSettings, subset: Subset, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what every feature file says of how it was made."""
    return {
        "checkpoint": file_sha256(job.file("stage1", "model.safetensors")),
        "draw": subset.digest,
        "seed": job.seed,
        "view_seed": settings.view_seed,
        "batch_size": settings.batch_size,
        "precision": str(dtype).removeprefix("torch."),
    }


def described(name: str, split: ImageSplit, subset: Subset) -> dict[str, Any]:
    """Return what the file of the split `name` says of its samples and classes."""
    return {
        "labels": split.labels.numpy(),
        "index": split.index,
        "paths": subset.paths.get(name),
        "class_names": subset.class_names,
        "class_counts": subset.class_counts,
    }


def write_empty(
    job: Job,
    name: str,
    subset: Subset,
    dimension: int,
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the file of a split that has no samples."""
    write_features(
        job.output / f"{name}.h5",
        features=np.empty((0, dimension), np.float32),
        labels=np.empty(0, np.int64),
        class_names=subset.class_names,
        class_counts=subset.class_counts,
        attributes={"draw": subset.digest, **attributes},
    )
