from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ltpipe.models import resnet
from ltpipe.models.attention import SimAM
from ltpipe.models.heads import CosineHead
from ltpipe.models.resnet import BasicBlock, resnet8, resnet32
from ltpipe.utils.errors import InputError

ATTENTIONS = (None, "simam", "se", "cbam", "eca")


def images(size: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "count"), [(8, 0.08e6), (20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6)]
)
def test_depth_and_published_size(depth: int, count: float) -> None:
    network = getattr(resnet, f"resnet{depth}")(10)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert parameters(network) == pytest.approx(count, abs=0.006e6)


def test_resnet32_parameter_count() -> None:
    assert parameters(resnet32(10)) == 464_154
    # No bias, and SimAM has no parameters.
    assert parameters(resnet32(10, head="cosine", attention="simam")) == 464_154 - 10


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("size", [8, 32, 64])
def test_forward_is_the_head_of_the_features(attention: str | None, size: int) -> None:
    network = resnet8(5, head="cosine", attention=attention).eval()
    with torch.no_grad():
        features, logits = network.features(images(size)), network(images(size))
        assert features.shape == (4, network.feature_dim) == (4, 64)
        assert logits.shape == (4, 5)
        assert torch.equal(logits, network.head(features))


def test_images_may_have_one_channel() -> None:
    assert resnet8(10, in_channels=1)(images(channels=1)).shape == (4, 10)


def test_option_a_shortcut() -> None:
    block = BasicBlock(16, 32, stride=2, attention=None)
    x = images(9, 16)
    expected = np.zeros((4, 32, 5, 5), dtype=np.float32)
    for c in range(16):
        expected[:, 32 // 4 + c] = x.numpy()[:, c, 0::2, 0::2]
    np.testing.assert_array_equal(block.shortcut(x), expected)


def test_shortcut_inside_a_stage_is_the_identity() -> None:
    block = BasicBlock(16, 16, stride=1, attention=None)
    nn.init.zeros_(block.bn2.weight)
    x = images(8, 16)
    assert torch.equal(block(x), torch.relu(x))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_place_of_the_attention_module(attention: str | None) -> None:
    torch.manual_seed(0)
    block = BasicBlock(16, 32, stride=2, attention=attention)
    for norm in (block.bn1, block.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = images(8, 16)
    y = block.conv2(torch.relu(block.bn1(block.conv1(x))))
    y = block.bn2(SimAM()(y)) if attention == "simam" else block.attention(block.bn2(y))
    torch.testing.assert_close(block(x), torch.relu(y + block.shortcut(x)))
    assert isinstance(block.attention, nn.Identity) == (attention is None)


def test_convolutions_start_kaiming_normal() -> None:
    torch.manual_seed(0)
    for module in resnet32(10).modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 64:
            assert module.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_channels_last_is_kept_through_every_block(attention: str | None) -> None:
    network = resnet8(10, attention=attention)
    expected = network.features(images(16))
    network = network.to(memory_format=torch.channels_last)
    kept = []
    for block in network.blocks:
        block.register_forward_hook(
            lambda _module, _inputs, out: kept.append(
                out.is_contiguous(memory_format=torch.channels_last)
            )
        )
    x = images(16).to(memory_format=torch.channels_last)
    torch.testing.assert_close(network.features(x), expected, rtol=1e-4, atol=1e-4)
    assert kept == [True] * 3


def test_shortcut_keeps_channels_last() -> None:
    x = images(8, 16).to(memory_format=torch.channels_last)
    block = BasicBlock(16, 32, stride=2, attention=None)
    assert block.shortcut(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bfloat16_autocast_trains_and_agrees_with_float32(head: str, attention: str | None) -> None:
    torch.manual_seed(0)
    network = resnet8(10, head=head, attention=attention).to(memory_format=torch.channels_last)
    x = images(16).to(memory_format=torch.channels_last)
    expected = network.features(x)
    with torch.autocast("cpu", torch.bfloat16):
        features = network.features(x)
        logits = network(x)
    logits.float().logsumexp(1).sum().backward()
    assert torch.cosine_similarity(features.float(), expected).min() > 0.999
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_same_seed_same_network(head: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(resnet8(10, head=head).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_head_is_cosine_on_request() -> None:
    assert isinstance(resnet8(10, head="cosine").head, CosineHead)
    with pytest.raises(InputError, match="unknown head 'linera'"):
        resnet8(10, head="linera")
    with pytest.raises(InputError, match="unknown attention 'SE'"):
        resnet8(10, attention="SE")
