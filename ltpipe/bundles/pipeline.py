"""A bundle at work: from images, or features, to probabilities, as the pipeline computed them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltpipe.bundles.format import METHOD, load_tensors
from ltpipe.config.backbones import backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.config.methods import settings_of
from ltpipe.config.registry import module_of
from ltpipe.data.loading import Pixels
from ltpipe.features.extract import Head, embedder
from ltpipe.features.pretrained import pretrained_embedder
from ltpipe.features.vision_language import TowerEmbedder
from ltpipe.models.building import build_network, place
from ltpipe.models.pretrained import add_trained_parts, build_pretrained
from ltpipe.models.vision_language import build_towers
from ltpipe.stage2.core.cascade import Filter
from ltpipe.stage2.core.filters import flow_of
from ltpipe.stage2.core.inference import Embedded, Fitted, Logits, Samples
from ltpipe.stage2.core.results import under
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.stage2.core.texts import text_logits
from ltpipe.training.devices import precision
from ltpipe.utils.errors import InputError


def logits_of(kind: str) -> Logits:
    """Return a method's function `logits`.

    Raises:
        InputError: its module has none.
    """
    module = module_of("method", kind)
    function = getattr(importlib.import_module(module), "logits", None)
    if function is None:
        raise InputError(
            f"method {kind} can't predict: {module} has no function logits(fitted, samples)"
        )
    return function


class Tensors(nn.Module):
    """Tensors by any name, kept as buffers, so that they move with the module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._places = {name: f"tensor{place}" for place, name in enumerate(tensors)}
        for name, place_name in self._places.items():
            self.register_buffer(place_name, tensors[name])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return those whose names begin with `prefix` and a dot, without it."""
        places = under(self._places, prefix)
        return {name: getattr(self, place_name) for name, place_name in places.items()}


class Branch(nn.Module):
    """One backbone: uint8 images (B, C, h, w) to features, and to logits where it has a head."""

    def __init__(self, embed: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.embed = embed
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.embed(images)
        return features, None if self.head is None else self.head(features)


class Pipeline(nn.Module):
    """Backbones, filters and the method's point of a bundle, in evaluation mode on a device.

    Args:
        folder: the bundle's.
        description: its bundle.json, checked.
        exact: compute in float32, whatever the features were dumped in.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], device: torch.device, *, exact: bool
    ) -> None:
        super().__init__()
        self.counts: list[int] = description["classes"]["counts"]
        kind = description["method"]["kind"]
        roles = description["backbones"]
        self.settings = settings_of(kind).model_validate(
            {**description["method"], "backbones": {role: role for role in roles}}
        )
        self.point: dict[str, float] = description["point"]["parameters"]
        self.facts: dict[str, Any] = description["facts"]
        self.logits = logits_of(kind)
        self.attributes = {role: dict(values["attributes"]) for role, values in roles.items()}
        self.dimensions: dict[str, int] = {role: roles[role]["dimension"] for role in roles}
        self.tensors = Tensors(load_tensors(folder / METHOD))
        self.branches = nn.ModuleDict()
        if description["input"] is not None:
            pixels = Pixels(description["input"]["mean"], description["input"]["std"])
            channels = description["input"]["channels"]
            for role, values in roles.items():
                self.branches[role] = _branch(
                    folder / values["file"],
                    values,
                    self.counts,
                    (pixels, channels, "fp32" if exact else values["precision"]),
                    device,
                )
        self.thresholds: list[float] = description["filters"]
        self.flows = nn.ModuleList()
        cascade = self.settings.filters()
        if cascade is not None:
            flow_filter = FlowFilter.model_validate(cascade[0])
            dimension = self.dimensions[self.settings.filter_role()]
            for number in range(1, len(self.thresholds) + 1):
                state = self.tensors.under(f"filter{number}")
                self.flows.append(flow_of(state, flow_filter, dimension))
        self.to(device).eval().requires_grad_(False)

    @property
    def roles(self) -> list[str]:
        """The roles of the backbones, in the order of their features."""
        return list(self.dimensions)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return probabilities (B, C) of uint8 images (B, channels, h, w), or of features.

        A bundle without backbones takes features (B, D), one tensor a role.
        """
        embedded = [branch(inputs[0]) for branch in self.branches.values()]
        pairs = embedded or [(features, None) for features in inputs]
        samples = {
            role: self._embedded(role, *pair) for role, pair in zip(self.roles, pairs, strict=True)
        }
        return self._probabilities(samples)

    def _embedded(self, role: str, features: Tensor, logits: Tensor | None) -> Embedded:
        text = self.tensors.under("text").get(role)
        if text is not None:
            logits = text_logits(features, text, float(self.attributes[role]["logit_scale"]))
        return Embedded(features, logits, text, self.attributes[role], role)

    def _probabilities(self, samples: Samples) -> Tensor:
        filters = [
            Filter(flow, threshold)
            for flow, threshold in zip(self.flows, self.thresholds, strict=True)
        ]
        weights = self.tensors.under("method")
        fitted = Fitted(self.settings, weights, self.point, self.counts, self.facts, filters)
        return torch.softmax(self.logits(fitted, samples), dim=1)


def _branch(
    path: Path,
    values: Mapping[str, Any],
    counts: list[int],
    seen: tuple[Pixels, int, str],
    device: torch.device,
) -> Branch:
    pixels, channels, wanted = seen
    settings = backbone_settings({**values["settings"], "weights": None})
    # Half precision is for devices that have units for it; elsewhere float32 is as good and faster.
    dtype = precision("auto" if wanted == "bf16" else "fp32", device, "extraction")
    state = load_tensors(path)
    if settings.system == "vision-language":
        visual = build_towers(settings, with_weights=False).visual
        _fill(visual, state, path)
        return Branch(TowerEmbedder(place(visual, device), pixels, dtype), None)
    if settings.system == "pretrained":
        seen_as = NetworkInput.model_validate_json(values["attributes"]["input"])
        pretrained = build_pretrained(settings)
        if settings.trained != "none":
            add_trained_parts(pretrained, settings, values["outputs"])
        _fill(pretrained, state, path)
        embed = pretrained_embedder(pretrained, seen_as, dtype, device)
        own = pretrained.head
        return Branch(embed, None if own is None else Head(own.float(), settings, counts))
    network = build_network(settings, values["outputs"], channels)
    _fill(network, state, path)
    head = Head(network.head.float(), settings, counts)
    return Branch(embedder(network, pixels, dtype, device), head)


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: these weights are not the backbone's: {reason}") from None
