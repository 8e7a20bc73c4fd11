from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ltpipe.models.attention import CBAM, ECA, SimAM, SqueezeExcitation, build_attention
from ltpipe.utils.errors import InputError

CHANNELS = 32


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, CHANNELS, 4, 6, generator=generator, dtype=torch.float64) * 2 + 1


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def sigmoid(value: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(value)))


def test_simam(x: torch.Tensor) -> None:
    result = SimAM()(x).numpy()
    for image, out in zip(x.numpy(), result, strict=True):
        for plane, gated in zip(image, out, strict=True):
            mean = plane.mean()
            variance = ((plane - mean) ** 2).sum() / (4 * 6 - 1)
            for (i, j), value in np.ndenumerate(plane):
                # The gate is the inverse of the neuron's least energy, eq. 5 of the paper.
                energy = 4 * (variance + 1e-4) / ((value - mean) ** 2 + 2 * variance + 2e-4)
                assert gated[i, j] == pytest.approx(value * sigmoid(1 / energy), abs=1e-12)


def test_simam_on_a_single_place_is_a_constant_gate() -> None:
    x = torch.tensor([[[[2.0]], [[-3.0]]]])
    expected = torch.tensor([2.0, -3.0]) * 0.6224593312
    torch.testing.assert_close(SimAM()(x).flatten(), expected)


def test_simam_computes_its_gate_in_float32(x: torch.Tensor) -> None:
    # Planes far from zero: in bfloat16 the mean alone is off by more than the deviations.
    far = (x * 0.1 + 100).bfloat16()
    expected = SimAM()(far.double())
    torch.testing.assert_close(SimAM()(far).double(), expected, rtol=2**-7, atol=0)


def test_squeeze_excitation(x: torch.Tensor) -> None:
    module = SqueezeExcitation(CHANNELS).double()
    p = arrays(module)
    assert p["squeeze.weight"].shape == (2, CHANNELS)
    result = module(x).detach().numpy()
    for image, out in zip(x.numpy(), result, strict=True):
        hidden = np.maximum(p["squeeze.weight"] @ image.mean(axis=(1, 2)), 0)
        gate = sigmoid(p["excite.weight"] @ hidden)
        for c in range(CHANNELS):
            np.testing.assert_allclose(out[c], gate[c] * image[c], atol=1e-12)


def test_cbam(x: torch.Tensor) -> None:
    module = CBAM(CHANNELS).double()
    p = arrays(module)

    def shared(pooled: np.ndarray) -> np.ndarray:
        hidden = np.maximum(p["squeeze.weight"] @ pooled + p["squeeze.bias"], 0)
        return p["excite.weight"] @ hidden + p["excite.bias"]

    result = module(x).detach().numpy()
    for image, out in zip(x.numpy(), result, strict=True):
        gate = sigmoid(shared(image.mean(axis=(1, 2))) + shared(image.max(axis=(1, 2))))
        image = gate[:, None, None] * image
        maps = np.pad(np.stack([image.mean(axis=0), image.max(axis=0)]), ((0, 0), (3, 3), (3, 3)))
        for i in range(4):
            for j in range(6):
                window = maps[:, i : i + 7, j : j + 7]
                place = sigmoid((p["spatial.weight"][0] * window).sum())
                np.testing.assert_allclose(out[:, i, j], place * image[:, i, j], atol=1e-12)


def test_eca(x: torch.Tensor) -> None:
    module = ECA(CHANNELS).double()
    taps = arrays(module)["conv.weight"][0, 0]
    result = module(x).detach().numpy()
    for image, out in zip(x.numpy(), result, strict=True):
        means = np.pad(image.mean(axis=(1, 2)), 1)
        for c in range(CHANNELS):
            gate = sigmoid(sum(taps[k] * means[c + k] for k in range(3)))
            np.testing.assert_allclose(out[c], gate * image[c], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("simam", 0),
        ("se", 2 * 2 * CHANNELS),
        ("cbam", 2 * 2 * CHANNELS + 2 + CHANNELS + 2 * 49),
        ("eca", 3),
    ],
)
def test_parameter_count_and_memory_format(kind: str, parameters: int, x: torch.Tensor) -> None:
    module = build_attention(kind, CHANNELS).double()
    assert sum(p.numel() for p in module.parameters()) == parameters
    out = module(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, module(x))


def test_unknown_attention_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'simam'"):
        build_attention("siman", 16)
