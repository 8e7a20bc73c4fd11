"""Image and text towers, fine-tuned on prompts of the class names.

Phase I of ECVL and of BALLAD (Ma et al., "A Simple Long-Tailed Recognition Baseline via
Vision-Language Model", 2021): images and the prompts of their classes are brought together, without
any rebalancing. The towers may come from published weights, a file, or nothing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import VisionLanguage
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.losses.retrieval import retrieval_loss
from ltpipe.models.building import place
from ltpipe.models.vision_language import (
    MAX_LOGIT_SCALE,
    Prompts,
    build_prompts,
    build_towers,
    encode_images,
    encode_texts,
    token_rows,
)
from ltpipe.stage1.job import open_training, train_task
from ltpipe.training import distributed
from ltpipe.training.devices import precision
from ltpipe.training.engine import (
    TrainingSet,
    autocast,
    batch_sums,
    training_state,
)
from ltpipe.training.lean import Steps
from ltpipe.training.optimizers import SGD, AdamW
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256
from ltpipe.utils.progress import say
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Train the towers of `job.spec`; files and inputs are those of supervised training.

    model.safetensors is a file of open_clip's format.

    Raises:
        InputError: several processes are to train them, or their weights can't be had.
    """
    if distributed.size() > 1:
        raise InputError("system vision-language trains in one process")
    training = open_training(job, build=lambda settings, classes, channels: build_towers(settings))
    settings = training.settings
    names = read_subset(job.file("data", "subset.h5")).class_names
    prompts = build_prompts(training.network, names, settings)
    say(f"towers {settings.origin()}; prompts such as {prompts.texts[0]!r}")
    task = RetrievalTask(training.network, prompts, training.data, settings, job.seed, job.device)
    file = settings.weights_file()
    origin = {"towers": settings.origin()}
    return {
        **train_task(job, training, task),
        **(origin if file is None else {**origin, "weights_sha256": file_sha256(file)}),
    }


class RetrievalTask:
    """Images against the prompts of their classes.

    Of the token table only the rows that occur in prompts are trained: the others have no gradient,
    and decaying them would only wear them off.
    """

    def __init__(
        self,
        towers: nn.Module,
        prompts: Prompts,
        data: TrainingSet,
        settings: VisionLanguage,
        seed: int,
        device: torch.device,
    ) -> None:
        self.towers: Any = place(towers, device)
        self.prompts = Prompts(
            prompts.texts, prompts.rows.to(device), prompts.tokens.to(device), prompts.classes
        )
        self.data = data
        self.settings = settings
        self.seed = seed
        self.device = device
        self.autocast = functools.partial(autocast, settings, device)
        self.towers.token_embedding.requires_grad_(False)
        self.towers.logit_scale.requires_grad_(settings.learn_scale)
        self.table = token_rows(self.towers, self.prompts).clone().requires_grad_()
        self.optimizer = self._optimizer()
        dtype = precision(settings.precision, device, "training")
        # open_clip computes texts up to its first product in the type that this weight has.
        first = self.towers.transformer.resblocks[0].mlp.c_fc
        self.steps = Steps(self.towers, self.optimizer, dtype, compiled=False, kept=[first])

    def _optimizer(self) -> AdamW | SGD:
        parameters = [*self.towers.parameters(), self.table]
        settings = self.settings
        if settings.optimizer == "adamw":
            return AdamW(parameters, weight_decay=settings.weight_decay)
        return SGD(parameters, momentum=settings.momentum, weight_decay=settings.weight_decay)

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        settings = self.settings
        # Towers have no dropout: the mode is that of BatchNorm alone.
        self.towers.train(settings.batch_norm == "train")
        classes = len(self.data.class_counts)
        order = epoch_order(
            self.data.labels, classes, "shuffle", generator(self.seed, "order", epoch)
        )
        draws = generator(self.seed, "augment", epoch, device=self.device)
        sums = torch.zeros(2, device=self.device)
        for images, target in self.data.labelled(order, settings.batch_size, draws, self.device):
            if self.towers.training and len(target) < 2:
                # A batch of one has no variance for BatchNorm.
                continue
            with self.autocast():
                features = F.normalize(encode_images(self.towers, images).float(), dim=1)
                texts = encode_texts(self.towers, self.prompts, self.table)
            scale = self.towers.logit_scale.exp()
            value = retrieval_loss(
                features,
                texts,
                target,
                scale,
                in_batch=settings.text_targets == "in_batch",
                both=settings.directions == "both",
            )
            self.steps.descend(value, rate)
            if settings.learn_scale:
                with torch.no_grad():
                    self.towers.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
            sums += batch_sums(value, features.detach() @ texts.detach().T, target)
        self._write_back()
        total, correct = sums.tolist()
        return total, correct

    def state(self) -> dict[str, Tensor]:
        return {**training_state(self.towers, self.optimizer), "table": self.table}

    @torch.no_grad()
    def _write_back(self) -> None:
        """Put the trained rows of the token table into the towers."""
        self.towers.token_embedding.weight[self.prompts.rows] = self.table
