"""Heat maps of a trained backbone on image files that the user names (HRJBA, Figs 3 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ltpipe.artifacts.reading import open_artifact
from ltpipe.config.backbones import HybridBranch, backbone_settings
from ltpipe.data.augment import centre_crop, normalise
from ltpipe.data.head_tail import group_classes
from ltpipe.data.images import stored_images
from ltpipe.data.opening import dataset_settings
from ltpipe.data.subset import read_subset
from ltpipe.evaluation.style import STYLE
from ltpipe.models.building import build_network, load_weights
from ltpipe.models.cam import channel_maps, class_activation_maps, grad_cam, overlay
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.io import atomic_path
from ltpipe.utils.seeding import generator, stream_seed

METHODS = ("grad-cam", "cam")


@dataclass(frozen=True)
class Explained:
    """A trained backbone, what its outputs are called, and how it sees images."""

    network: Any
    untrained: Any
    names: list[str]
    input: Any


def draw_heatmaps(
    folder: Path,
    images: Sequence[Path],
    output: Path,
    *,
    method: str = "grad-cam",
    label: str | None = None,
    channels: int = 0,
    untrained: bool = False,
) -> list[Path]:
    """Draw where a backbone sees a class in each image; return the files, IMAGE-METHOD.png.

    Args:
        folder: a stage-one artifact, such as results/stage1/DATASET/BACKBONE/DIGEST/seed0.
        images: image files, brought to the network's size as its test images were.
        method: ``grad-cam`` or ``cam``.
        label: the class to look for; the one that the network predicts unless given.
        channels: how many single channels' maps to show beside, drawn at random.
        untrained: show the same network with its initial weights, too.

    Raises:
        InputError: the folder holds no such backbone, an image cannot be read, or the class or
            method is unknown.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: one of {', '.join(METHODS)}")
    explained = open_backbone(folder)
    wanted = explained.input
    size = (wanted.size[0], wanted.size[1])
    files = stored_images(images, wanted)
    pixels = torch.from_numpy(files.load(np.arange(len(files))))
    shown = centre_crop(pixels, size)
    inputs = normalise(shown, wanted.mean, wanted.std, torch.float32)
    with torch.no_grad():
        shares = explained.network(inputs).softmax(1)
    places = _places(shares, explained.names, label)
    panels = heat_panels(explained, inputs, places, method, channels, untrained)
    output.mkdir(parents=True, exist_ok=True)
    drawn = []
    for row, path in enumerate(images):
        name = explained.names[int(places[row])]
        title = f"{name}: {100 * float(shares[row, places[row]]):.0f} %"
        target = output / f"{path.stem}-{method}.png"
        _draw(shown[row], title, [(text, maps[row]) for text, maps in panels], target)
        drawn.append(target)
    return drawn


def heat_panels(
    explained: Explained,
    inputs: Tensor,
    places: Tensor,
    method: str,
    channels: int = 0,
    untrained: bool = False,
) -> list[tuple[str, Tensor]]:
    """Return named maps (B, h, w) of normalised images (B, C, H, W) for the outputs (B,)."""
    heat = grad_cam if method == "grad-cam" else class_activation_maps
    panels = [(method, heat(explained.network, inputs, places))]
    if untrained:
        panels.append(("untrained", heat(explained.untrained, inputs, places)))
    if channels:
        width = explained.network.head.weight.shape[1]
        order = torch.randperm(width, generator=generator(0, "channels"))[:channels]
        single = channel_maps(explained.network, inputs, places, order)
        panels += [(f"channel {k}", single[:, n]) for n, k in enumerate(order.tolist())]
    return panels


def open_backbone(folder: Path) -> Explained:
    """Return the backbone of a stage-one artifact.

    Raises:
        InputError: there is none, or its outputs are no classes of images.
    """
    try:
        artifact = open_artifact(folder)
        spec, subset_file = artifact.spec, artifact.inputs("data")[""].file("subset.h5")
        settings = backbone_settings(spec["backbone"])
    except (InputError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder}: no trained backbone ({type(error).__name__}: {error}); name a folder such "
            "as results/stage1/DATASET/BACKBONE/DIGEST/seed0"
        ) from None
    if settings.splits_classes() or not hasattr(settings, "network") or settings.loss is None:
        raise InputError(f"{folder}: system {settings.system!r} has no classifier over classes")
    subset = read_subset(subset_file)
    names = list(subset.class_names)
    if isinstance(settings, HybridBranch):
        counts = subset.class_counts
        names = [names[c] for c in group_classes(counts, settings.tail_share, settings.group)]
    channels = dataset_settings(spec["dataset"]).input.channels
    weights = artifact.file("model.safetensors")
    _check_outputs(weights, len(names))
    networks = []
    for trained in (True, False):
        torch.manual_seed(stream_seed(spec.get("seed", 0), "weights"))
        fresh = settings.model_copy(update={"weights": None})
        network = build_network(fresh, len(names), channels).eval()
        if trained:
            load_weights(network, weights)
        if not hasattr(network, "trunk_and_last"):
            raise InputError(f"{folder}: network {settings.network} has no last maps to show")
        networks.append(network)
    return Explained(networks[0], networks[1], names, dataset_settings(spec["dataset"]).input)


def _check_outputs(weights: Path, classes: int) -> None:
    try:
        with safe_open(weights, "pt") as file:
            outputs = file.get_slice("head.weight").get_shape()[0]
    except (OSError, SafetensorError):
        raise InputError(f"{weights}: missing or damaged; train the backbone again") from None
    if outputs != classes:
        raise InputError(f"{weights}: has {outputs} outputs for {classes} classes")


def _places(shares: Tensor, names: list[str], label: str | None) -> Tensor:
    if label is None:
        return shares.argmax(1)
    if label not in names:
        raise InputError(
            f"the backbone knows no class {label!r}{nearest(label, names)}; it knows "
            f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        )
    return torch.full((len(shares),), names.index(label))


def as_picture(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) as matplotlib takes it: (H, W, 3), or (H, W) where it is grey."""
    picture = image.permute(1, 2, 0).numpy()
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def draw_panel(axes: Any, picture: np.ndarray, heat: Tensor | None, title: str) -> None:
    """Draw an image, and a map (h, w) over it where there is one."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    if heat is not None:
        size = (picture.shape[0], picture.shape[1])
        axes.imshow(overlay(heat[None], size)[0].numpy(), cmap="jet", alpha=0.5)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    axes.grid(visible=False)


def _draw(
    image: Tensor,
    title: str,
    panels: list[tuple[str, Tensor]],
    target: Path,
) -> None:
    picture = as_picture(image)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * (1 + len(panels)), 2.7), layout="constrained")
        all_axes = np.atleast_1d(figure.subplots(1, 1 + len(panels)))
        for axes, (text, heat) in zip(all_axes, [(title, None), *panels], strict=True):
            draw_panel(axes, picture, heat, text)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
