"""ECVL's phase II with the towers in the loop: slow, exact, and the yardstick for cached views."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import Ladder, backbone_settings
from ltpipe.data.loading import open_split
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore
from ltpipe.features.vision_language import ladder_augment, open_towers, tower_embedder
from ltpipe.stage2.ecvl.training import Batch
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import stream_seed


class OnlineViews:
    """The batches of `CachedViews`, each image augmented by its own memory and embedded afresh.

    Raises:
        InputError: RandAugment is asked for and the store's backbone says nothing of it.
    """

    def __init__(self, job: Job, store: FeatureStore, *, randaugment: bool) -> None:
        described = str(store.attributes.get("ladder", ""))
        if randaugment and not described:
            raise InputError(
                f"{store.path}: the backbone has no features.ladder, which says how RandAugment is "
                "drawn; set it, or randaugment: false in the method"
            )
        self.ladder = Ladder.model_validate(json.loads(described)) if described else Ladder()
        self.job = job
        backbone = backbone_settings(job.spec["backbones"]["features"])
        subset = read_subset(job.file("data", "subset.h5"))
        packed = job.packed_images()
        self.split = open_split(
            job.spec["dataset"], subset, "train", job.device, job.root, packed=packed
        )
        self.labels = self.split.labels.to(job.device)
        towers = open_towers(job, backbone, "stage1.features")
        self.embed = tower_embedder(towers, self.split.pixels, torch.float32, job.device)

    def epoch(
        self,
        order: Tensor,
        memory: Tensor | None,
        views: int,
        batch_size: int,
        draws: torch.Generator,
    ) -> Iterator[Batch]:
        """Yield batches as `CachedViews.epoch` does, of one point."""
        device = self.job.device
        base = int(torch.randint(2**62, (), generator=draws))
        streams = []
        for view in range(views):
            stream = torch.Generator(device).manual_seed(stream_seed(base, "augment", view))
            streams.append(self.split.batches.epoch(order[0], batch_size, stream))
        batches = zip(*streams, strict=True)
        for index, images in zip(order.to(device).split(batch_size, 1), batches, strict=True):
            features = []
            with torch.no_grad():
                for batch in images:
                    if memory is not None:
                        asked = memory[0, index[0]]
                        batch = ladder_augment(batch, asked, self.ladder, draws)
                    features.append(self.embed(batch))
            yield index, self.labels[index], torch.stack(features).unsqueeze(0)
