from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import nn

from ltpipe.config.backbones import Pretrained
from ltpipe.models.bilateral import bbn_resnet8
from ltpipe.models.fold import fold_batchnorm
from ltpipe.models.pretrained import build_pretrained
from ltpipe.models.resnet import resnet8
from ltpipe.models.torchvision_resnet import resnet50

Network = TypeVar("Network", bound=nn.Module)


def settled(network: Network) -> Network:
    """The network with BatchNorm statistics and weights that matter, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()
            for name in ("running_mean", "bias"):
                state[name].normal_(0, 0.3, generator=generator)
            for name in ("running_var", "weight"):
                state[name].uniform_(0.5, 1.5, generator=generator)
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("attention", "left"), [(None, 0), ("simam", 3), ("se", 0), ("cbam", 0), ("eca", 0)]
)
def test_folded_network_equals_the_original(head: str, attention: str | None, left: int) -> None:
    network = settled(resnet8(10, head=head, attention=attention)).double().eval()
    folded = fold_batchnorm(network)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(folded.features(x), network.features(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)
    assert norms(folded) == left


def test_downsampling_shortcuts_are_folded() -> None:
    network = settled(resnet50(4)).eval()
    folded = fold_batchnorm(network)
    assert norms(folded) == 0
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.features(x)
        torch.testing.assert_close(folded.features(x), expected, rtol=1e-3, atol=1e-3)


def test_the_original_is_left_as_it_was() -> None:
    network = settled(resnet8(10)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batchnorm(network)
    assert network.training
    assert not folded.training
    assert norms(network) == 7
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_channels_last_is_kept() -> None:
    network = resnet8(10).to(memory_format=torch.channels_last)
    weight = fold_batchnorm(network).state_dict()["blocks.2.conv2.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)


class Branching(nn.Module):
    """The convolution's output is also read beside its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + self.bn(y)


class Shared(Branching):
    """One convolution feeds its BatchNorm twice."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(self.conv(x)))


@pytest.mark.parametrize("make", [Branching, Shared])
def test_a_convolution_that_something_else_reads_is_not_folded(make: type[nn.Module]) -> None:
    network = settled(make()).eval()
    folded = fold_batchnorm(network)
    x = torch.randn(2, 3, 4, 4)
    assert norms(folded) == 1
    torch.testing.assert_close(folded.features(x), network.features(x))


def test_both_branches_of_a_bilateral_network_are_folded() -> None:
    network = settled(bbn_resnet8(3, in_channels=1)).eval()
    folded = fold_batchnorm(network)
    x = torch.randn(2, 1, 8, 8)
    assert norms(folded) == 0
    torch.testing.assert_close(folded.features(x), network.features(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet18.a1_in1k", "mobilenetv3_small_050"]
)
def test_normalisation_with_an_activation_in_it_is_folded(name: str) -> None:
    settings = Pretrained.model_validate(
        {"system": "pretrained", "network": f"timm:{name}", "weights": None, "size": [32, 32]}
    )
    network = settled(build_pretrained(settings)).double().eval()
    folded = fold_batchnorm(network)
    assert norms(folded) == 0 < norms(network)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network.features(x)
        torch.testing.assert_close(folded.features(x), expected, rtol=1e-8, atol=1e-8)
