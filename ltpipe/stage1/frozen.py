"""Set up a pretrained network that is not trained: its weights, as other stages read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import Pretrained, backbone_settings
from ltpipe.models.building import save_weights
from ltpipe.models.pretrained import build_pretrained, download, load_pretrained
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.progress import say
from ltpipe.utils.seeding import stream_seed

_HISTORY = "epoch,learning_rate,loss,accuracy,seconds\n"


def run(job: Job) -> dict[str, Any]:
    """Write model.safetensors, the weights of `job.spec`'s network, and an empty history.csv.

    Raises:
        InputError: the weights are missing, damaged or of another network.
    """
    settings = backbone_settings(job.spec["backbone"])
    torch.manual_seed(stream_seed(job.seed, "weights"))
    network = build_pretrained(settings)
    path = weights_path(settings)
    if path is not None:
        load_pretrained(network, settings, path)
    save_weights(network, job.output / "model.safetensors")
    write_text_atomic(job.output / "history.csv", _HISTORY)
    say(settings.origin())
    return {"origin": settings.origin()}


def weights_path(settings: Pretrained) -> Path | None:
    """Return the file that the network starts from; None for random numbers.

    Raises:
        InputError: the weights are not there.
    """
    if settings.weights is None:
        return None
    return settings.find_weights() or download(settings)
