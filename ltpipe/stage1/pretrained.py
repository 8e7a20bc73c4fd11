"""Train a part of a network that others trained: its classifier, last stage, adapters, or all.

With adapters, a cosine classifier that starts at the classes' texts and the logit-adjusted loss
this is LIFT: Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML
2024.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.compat import import_open_clip
from ltpipe.config.backbones import Pretrained, backbone_settings
from ltpipe.data.augment import normalise
from ltpipe.losses.building import build_loss
from ltpipe.models.building import place
from ltpipe.models.pretrained import (
    PretrainedNetwork,
    add_trained_parts,
    build_pretrained,
    load_pretrained,
    network_input,
)
from ltpipe.models.vision_language import build_prompts, encode_texts, load_towers
from ltpipe.stage1.frozen import weights_path
from ltpipe.stage1.job import Images, open_images, open_training, train_task
from ltpipe.training.engine import SupervisedTask
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say

_BATCH = 256


def run(job: Job) -> dict[str, Any]:
    """Train what `job.spec` says; files and inputs are those of supervised training.

    Raises:
        InputError: the weights are missing, damaged or of another network, or the network has no
            place for what is to be trained.
    """
    seen = network_input(backbone_settings(job.spec["backbone"]))
    images = open_images(job, seen)

    def build(settings: Pretrained, classes: int, channels: int) -> PretrainedNetwork:
        network = build_pretrained(settings)
        path = weights_path(settings)
        if path is not None:
            load_pretrained(network, settings, path)
        add_trained_parts(network, settings, classes)
        if settings.start != "random":
            assert network.head is not None
            rows = (
                _texts(settings, path, images.subset.class_names)
                if settings.start == "texts"
                else _class_means(network, images, job.device)
            )
            with torch.no_grad():
                network.head.get_parameter("weight").copy_(F.normalize(rows))
        return network

    training = open_training(job, images, build=build)
    settings = training.settings
    trained = sum(p.numel() for p in training.network.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in training.network.parameters())
    say(f"{settings.origin()}: {trained:,} of {everything:,} weights")
    loss = build_loss(settings.loss, training.data.class_counts)
    task = SupervisedTask(training.network, loss, training.data, settings, job.seed, job.device)
    return {
        **train_task(job, training, task),
        "origin": settings.origin(),
        "trained_weights": trained,
        "weights": everything,
    }


@torch.no_grad()
def _class_means(network: PretrainedNetwork, images: Images, device: torch.device) -> Tensor:
    """Return the mean of each class's features of unit length (C, D), images as they are."""
    split = images.split
    body = place(network.eval(), device)
    features = torch.cat(
        [
            body.features(normalise(batch, split.pixels.mean, split.pixels.std, torch.float32))
            for batch in split.batches.epoch(torch.arange(len(split.labels)), _BATCH, None)
        ]
    ).cpu()
    network.cpu()
    sums = torch.zeros(len(images.subset.class_names), features.shape[1])
    return sums.index_add(0, split.labels, F.normalize(features))


@torch.no_grad()
def _texts(settings: Pretrained, path: Path | None, class_names: list[str]) -> Tensor:
    """Return the classes' texts (C, D), led back through the projection that features lie before.

    As LIFT does: ``w_c = e_c proj'`` of the text's unit vector e_c. That is not quite the
    zero-shot classifier, since the projection is not orthogonal.
    """
    open_clip = import_open_clip()
    config = copy.deepcopy(open_clip.get_model_config(settings.name().model))
    if config.get("custom_text"):
        raise InputError(f"start: texts: the text tower of {settings.network} is none of CLIP's")
    towers = open_clip.CLIP(**config).eval()
    if path is not None:
        load_towers(towers, path)
    prompting: Any = settings
    texts = encode_texts(towers, build_prompts(towers, class_names, prompting))
    return texts if settings.projection else texts @ towers.visual.proj.T
