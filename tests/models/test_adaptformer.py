"""AdaptFormer against a plain re-derivation, and LIFT's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ltpipe.compat import import_open_clip, import_timm, import_torchvision
from ltpipe.models.adaptformer import add_adapters, default_bottleneck
from ltpipe.utils.errors import InputError

HEADS, WIDTH, PATCH = 2, 16, 8


def timm_vit():
    # Names: block, its norms, qkv, projection, perceptron, last norm, eps.
    body = import_timm().models.VisionTransformer(
        img_size=16, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=HEADS, num_classes=0
    )
    names = ("blocks.{}.", "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return body, names, 1e-6


def torchvision_vit():
    body = import_torchvision().models.VisionTransformer(16, PATCH, 2, HEADS, WIDTH, 4 * WIDTH)
    body.heads = torch.nn.Identity()
    names = (
        "encoder.layers.encoder_layer_{}.",
        *("ln_1", "self_attention.in_proj_", "self_attention.out_proj"),
        *("ln_2", "mlp.0", "mlp.3"),
    )
    return body, names, 1e-6


def open_clip_vit():
    towers = import_open_clip().CLIP(
        8,
        {"image_size": 16, "patch_size": PATCH, "layers": 2, "width": WIDTH, "head_width": 8},
        {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    )
    names = (
        "transformer.resblocks.{}.",
        *("ln_1", "attn.in_proj_", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    )
    return towers.visual, names, 1e-5


def linear(state, name, x):
    dot = "" if name.endswith("_") else "."
    return x @ state[f"{name}{dot}weight"].T + state[f"{name}{dot}bias"]


def norm(state, name, x, eps):
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def block(state, names, number, x, eps):
    prefix, norm1, qkv, projection, norm2, up, down = names
    at = prefix.format(number)
    normed = norm(state, at + norm1, x, eps)
    parts = linear(state, at + qkv, normed).split(WIDTH, -1)
    query, key, value = (
        part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in parts
    )
    weights = torch.softmax(query @ key.mT / math.sqrt(WIDTH / HEADS), -1)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    stream = x + linear(state, at + projection, mixed)
    inner = linear(state, at + up, norm(state, at + norm2, stream, eps))
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    own = at + "adapter."
    hidden = linear(state, own + "down", norm(state, own + "norm", stream, 1e-5)).clamp(min=0)
    adapted = state[own + "scale"] * linear(state, own + "up", hidden)
    return stream + linear(state, at + down, inner) + adapted


@pytest.mark.parametrize("make", [timm_vit, torchvision_vit, open_clip_vit])
def test_blocks_equal_a_plain_derivation_forward_and_backward(make):
    torch.manual_seed(0)
    body, names, eps = make()
    body = body.double().eval()
    for parameter in body.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for adapter in add_adapters(body, classes=10, bottleneck=3):
        adapter.double()
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    streams = []
    first, last = (body.get_submodule(names[0].format(number)[:-1]) for number in (0, 1))
    first.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
    last.register_forward_hook(lambda module, inputs, output: streams.append(output))
    body(images)
    start, found = streams
    state = {k: v.detach().clone().requires_grad_() for k, v in body.named_parameters()}
    expected = start.detach()
    for number in (0, 1):
        expected = block(state, names, number, expected, eps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    target = torch.randn_like(expected)
    F.mse_loss(found, target, reduction="sum").backward()
    F.mse_loss(expected, target, reduction="sum").backward()
    compared = [key for key in state if ".adapter." in key]
    assert len(compared) == 2 * 7
    for key in compared:
        torch.testing.assert_close(
            body.get_parameter(key).grad, state[key].grad, rtol=1e-6, atol=1e-6
        )


def test_numbers_are_lifts():
    """ViT-B/16, 100 classes: 8,453 weights a block, 101,436 in all; the start changes nothing."""
    body = import_timm().create_model("vit_base_patch16_224", num_classes=0, img_size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        before = body(images)
        adapters = add_adapters(body, classes=100)
        assert torch.equal(body(images), before)
    numbers = [sum(p.numel() for p in adapter.parameters()) for adapter in adapters]
    assert numbers == [8453] * 12
    widths = [default_bottleneck(classes, 12) for classes in (10, 100, 365, 1000, 8142)]
    assert widths == [1, 4, 8, 32, 256]
    assert [default_bottleneck(classes, 24) for classes in (100, 365, 1000, 8142)] == [
        2,
        4,
        16,
        128,
    ]


def test_what_is_no_vision_transformer_is_refused():
    with pytest.raises(InputError, match="vision transformers"):
        add_adapters(import_timm().create_model("resnet18"), 10)
