"""AdaptFormer: a small perceptron beside each block's own in a frozen vision transformer.

Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS
2022, as LIFT has it: Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning
Hurts", ICML 2024.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ltpipe.utils.errors import InputError

# Blocks that add attention and then the perceptron to one stream, and their second normalisation.
_BLOCKS = {
    ("timm.models.vision_transformer", "Block"): "norm2",
    ("open_clip.transformer", "ResidualAttentionBlock"): "ln_2",
    ("torchvision.models.vision_transformer", "EncoderBlock"): "ln_2",
}


class AdaptFormer(nn.Module):
    """The stream h (..., D) to ``s Up(ReLU(Down(LayerNorm(h))))``, zero at the start.

    `scale` s is learned and starts at 1, Up at 0.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, stream: Tensor) -> Tensor:
        return self.scale * self.up(torch.relu(self.down(self.norm(stream))))


def default_bottleneck(classes: int, blocks: int) -> int:
    """Return LIFT's width of adapters: about as many weights as the classifier has, a power of two.

    ``2 ** max(0, floor(log2(C / 2L)))`` of C classes and L blocks.
    """
    return 2 ** max(0, math.floor(math.log2(classes / (2 * blocks))))


def add_adapters(body: nn.Module, classes: int, bottleneck: int | None = None) -> list[AdaptFormer]:
    """Put an adapter beside the perceptron of each block of `body`, and return them.

    With h the stream after attention, a block then gives ``h + MLP(LN(h)) + adapter(h)``.

    Raises:
        InputError: `body` has no such blocks.
    """
    blocks = [(module, norm) for module in body.modules() if (norm := _second_norm(module))]
    if not blocks:
        raise InputError("trained: adapter is for plain vision transformers, of which this is none")
    adapters = []
    for block, norm in blocks:
        second: Any = block.get_submodule(norm)
        width = second.normalized_shape[0]
        adapter = AdaptFormer(width, bottleneck or default_bottleneck(classes, len(blocks)))
        _attach(block, second, adapter)
        adapters.append(adapter)
    return adapters


def _second_norm(module: nn.Module) -> str | None:
    return _BLOCKS.get((type(module).__module__, type(module).__name__))


def _attach(block: nn.Module, norm: nn.Module, adapter: AdaptFormer) -> None:
    # The second normalisation is where a block shows its stream after attention.
    streams: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        streams.append(inputs[0])

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + module.get_submodule("adapter")(streams.pop())

    block.add_module("adapter", adapter)
    norm.register_forward_pre_hook(keep)
    block.register_forward_hook(add)
