"""HRJBA: one branch of the hybrid network, on the head classes or on the tail classes.

The two branches share no parameter and no sample, so the gradient of the fused loss ``lambda L_head
+ (1 - lambda) L_tail`` (eqs. 4 to 10) is for each branch that of its own loss times its weight:
two jobs train what one joint loop would. Both go through the same batches of all classes with the
same augmentation and take their own samples out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import HybridBranch
from ltpipe.data.head_tail import group_classes
from ltpipe.data.sampling import epoch_order
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.stage1.job import open_images, open_training, train_task
from ltpipe.training import distributed
from ltpipe.training.engine import NetworkTask, TrainingSet, batch_sums, epoch_stream
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Train the branch of `job.spec`; files and inputs are those of supervised training.

    Raises:
        InputError: several processes are to train it, or a group has no class.
    """
    if distributed.size() > 1:
        raise InputError("system hrjba-branch trains in one process: a group's batches are small")
    settings = HybridBranch.model_validate(job.spec["backbone"])
    images = open_images(job)
    counts = images.subset.class_counts
    classes = group_classes(counts, settings.tail_share, settings.group)
    training = open_training(job, images, outputs=len(classes))
    loss = build_loss(settings.loss, [counts[label] for label in classes])
    task = BranchTask(
        training.network, loss, training.data, settings, job.seed, job.device, classes
    )
    run_info = train_task(job, training, task, samples=sum(counts[label] for label in classes))
    return {**run_info, "group_classes": classes}


class BranchTask(NetworkTask):
    """A network on the samples of some classes, taken from batches of all.

    Args:
        classes: the group's, in rising order; output j is class ``classes[j]``.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Loss,
        data: TrainingSet,
        settings: HybridBranch,
        seed: int,
        device: torch.device,
        classes: Sequence[int],
    ) -> None:
        super().__init__(network, loss, data, settings, seed, device)
        counts = [data.class_counts[label] for label in classes]
        self.phases = phases(settings.rule, counts, settings.epochs)
        self.local = torch.full((len(data.class_counts),), -1)
        self.local[list(classes)] = torch.arange(len(classes))

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        weights = self.phases[epoch].weights
        self.loss.reweight(None if weights is None else weights.to(self.device))
        self.loss.on_epoch(epoch)
        self.network.train()
        order = epoch_order(
            self.data.labels,
            len(self.data.class_counts),
            "shuffle",
            generator(self.seed, "order", epoch),
        )
        size = self.settings.batch_size
        targets = self.local[self.data.labels[order]].split(size)
        stream = epoch_stream(self.seed, "augment", epoch, self.device)
        batches = self.data.labelled(order, size, stream, self.device)
        share = self.settings.gradient_weight()
        sums = torch.zeros(2, device=self.device)
        # What belongs to the group is known on the host: no batch waits for the device.
        for (images, _), local in zip(batches, targets, strict=True):
            inside = (local >= 0).nonzero().squeeze(1)
            if len(inside) < 2:
                # One sample has no variance for BatchNorm, none has no loss.
                continue
            chosen = images.index_select(0, inside.to(self.device, non_blocking=True))
            target = local[inside].to(self.device, non_blocking=True)
            with self.autocast():
                logits = self.forward(chosen)
                value = self.loss(logits, target)
            self.steps.descend(share * value, rate)
            sums += batch_sums(value, logits, target)
        total, correct = sums.tolist()
        return total, correct
