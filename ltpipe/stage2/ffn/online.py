"""FFN with both backbones in the loop: slow, exact, and the yardstick for cached views."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import backbone_settings
from ltpipe.data.loading import open_split
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.features.extract import Embed, embedder, train_bn_embedder
from ltpipe.features.store import FeatureStore
from ltpipe.models.building import build_network, load_weights
from ltpipe.utils.seeding import generator


class OnlineBatches:
    """The batches of `FusedBatches` for one seed, each image augmented and embedded afresh."""

    def __init__(
        self,
        job: Job,
        kps: FeatureStore,
        coefficients: Tensor,
        *,
        sampler: str,
        batch_size: int,
        train_bn: bool,
        normalise: bool = True,
    ) -> None:
        self.job = job
        self.sampler = sampler
        self.batch_size = batch_size
        self.train_bn = train_bn
        self.normalise = normalise
        self.coefficients = coefficients
        self.classes = len(kps.class_names)
        subset = read_subset(job.file("data", "subset.h5"))
        packed = job.packed_images()
        self.split = open_split(
            job.spec["dataset"], subset, "train", job.device, job.root, packed=packed
        )
        self.embed = {role: self._embedder(role) for role in ("ce", "kps")}

    def _embedder(self, role: str) -> Embed:
        backbone = backbone_settings({**self.job.spec["backbones"][role], "weights": None})
        network = build_network(backbone, self.classes, self.split.channels)
        load_weights(network, self.job.file(f"stage1.{role}", "model.safetensors"))
        if role == "ce" and self.train_bn:
            return train_bn_embedder(network, self.split.pixels, self.job.device)
        return embedder(network, self.split.pixels, torch.float32, self.job.device)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (P, B, D) and targets (P, B)."""
        seed = self.job.seed
        draws = generator(seed, "stage2", epoch)
        order = epoch_order(self.split.labels, self.classes, self.sampler, draws)
        targets = self.split.labels[order].to(self.job.device)
        augmentation = generator(seed, "online", epoch, device=self.job.device)
        w1 = self.coefficients.view(-1, 1, 1)
        start = 0
        with torch.no_grad():
            for images in self.split.batches.epoch(order, self.batch_size, augmentation):
                ce, kps = self.embed["ce"](images), self.embed["kps"](images)
                if self.normalise:
                    ce, kps = F.normalize(ce, dim=1), F.normalize(kps, dim=1)
                target = targets[start : start + len(images)]
                start += len(images)
                yield (
                    torch.lerp(ce[None], kps[None], w1),
                    target.expand(len(self.coefficients), -1),
                )
