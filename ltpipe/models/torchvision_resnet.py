"""torchvision's ImageNet ResNets behind the interface of `ltpipe.models.resnet`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ltpipe.compat import import_torchvision
from ltpipe.config.registry import network
from ltpipe.models.heads import build_head
from ltpipe.models.published import load_published, read_published
from ltpipe.utils.errors import InputError


class TorchvisionResNet(nn.Module):
    """A torchvision ResNet without its classifier, for images (B, in_channels, H, W)."""

    def __init__(
        self, name: str, num_classes: int, head: str, in_channels: int, weights: str | Path | None
    ) -> None:
        super().__init__()
        self.frozen: list[nn.Module] = []
        self.body = getattr(import_torchvision().models, name)(weights=None)
        self.feature_dim: int = self.body.fc.in_features
        self.body.fc = nn.Identity()
        if in_channels != 3:
            self.body.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            _load_body(self.body, _read_weights(name, weights), f"weights {weights}")
        self.head = build_head(head, self.feature_dim, num_classes)
        if isinstance(self.head, nn.Linear):
            # The published ImageNet recipes start from torch's own initial values.
            nn.Linear.reset_parameters(self.head)

    def features(self, x: Tensor) -> Tensor:
        """Return the globally pooled last map, (B, feature_dim)."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's outputs, (B, num_classes)."""
        return self.head(self.features(x))

    def trunk_and_last(self) -> tuple[nn.Sequential, nn.Module]:
        """Return all before the last block, images to maps, and the last block."""
        body = self.body
        stages = [body.layer1, body.layer2, body.layer3, *list(body.layer4)[:-1]]
        first = (body.conv1, body.bn1, body.relu, body.maxpool)
        return nn.Sequential(*first, *stages), body.layer4[-1]

    def freeze_early_stages(self) -> None:
        """Train the last stage and the classifier only; what is before keeps its statistics."""
        self.frozen = [
            module
            for name, module in self.body.named_children()
            if name not in ("layer4", "avgpool", "fc")
        ]
        for module in self.frozen:
            module.requires_grad_(False)
            module.eval()

    def train(self, mode: bool = True) -> TorchvisionResNet:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def _load_body(body: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load weights under torchvision's names, or ours (`body.` before them), less the classifier's.

    Raises:
        InputError: they do not fit the network; `origin` names them in the message.
    """
    state = {
        key.removeprefix("body."): value
        for key, value in weights.items()
        if not key.startswith(("fc.", "head."))
    }
    load_published(body, state, origin)


def _read_weights(network: str, weights: str | Path) -> dict[str, Tensor]:
    """Read a local file, or where there is none, torchvision's published weights of that name.

    Raises:
        InputError: the file is missing or unreadable, or published weights cannot be fetched.
    """
    path = Path(weights)
    if path.is_file():
        return read_published(path)
    # Names that the enumeration lists; its alias DEFAULT changes with torchvision's version.
    entries = import_torchvision().models.get_model_weights(network)
    published = {entry.name: entry.url for entry in entries}
    if str(weights) not in published:
        raise InputError(f"weights file {path} does not exist")
    return _fetch(f"{network} {weights}", published[str(weights)])


def _fetch(title: str, url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    # The network, a wrong checksum, and a damaged file in torch hub's cache raise nearly anything.
    except Exception as error:
        raise InputError(
            f"torchvision's weights {title} cannot be fetched ({type(error).__name__}): "
            f"download {url} and name the file as weights: PATH"
        ) from error


@network("resnet50", paper="He et al., CVPR 2016")
def resnet50(
    num_classes: int, head: str = "linear", in_channels: int = 3, weights: str | Path | None = None
) -> TorchvisionResNet:
    """Return a ResNet-50 with 2,048 features, at random or with `weights`.

    `weights` is a safetensors file or a saved state dict, or the name of weights that torchvision
    publishes for this network, such as IMAGENET1K_V2, which are fetched into torch hub's cache.
    Their classifier is left out.

    Raises:
        InputError: there is no head of this name, or `weights` cannot be used.
    """
    return TorchvisionResNet("resnet50", num_classes, head, in_channels, weights)


@network("resnet101", paper="He et al., CVPR 2016")
def resnet101(
    num_classes: int, head: str = "linear", in_channels: int = 3, weights: str | Path | None = None
) -> TorchvisionResNet:
    """Return a ResNet-101; see `resnet50`."""
    return TorchvisionResNet("resnet101", num_classes, head, in_channels, weights)


@network("resnet152", paper="He et al., CVPR 2016")
def resnet152(
    num_classes: int, head: str = "linear", in_channels: int = 3, weights: str | Path | None = None
) -> TorchvisionResNet:
    """Return a ResNet-152; see `resnet50`."""
    return TorchvisionResNet("resnet152", num_classes, head, in_channels, weights)


@network("resnext50", paper="Xie et al., CVPR 2017")
def resnext50(
    num_classes: int, head: str = "linear", in_channels: int = 3, weights: str | Path | None = None
) -> TorchvisionResNet:
    """Return a ResNeXt-50 (32x4d); see `resnet50`."""
    return TorchvisionResNet("resnext50_32x4d", num_classes, head, in_channels, weights)
