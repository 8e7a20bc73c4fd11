from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltpipe.models.heads import CosineHead, LinearHead, build_head
from ltpipe.utils.errors import InputError


def test_linear_head_is_a_product_and_a_bias() -> None:
    head = LinearHead(5, 3).double()
    features = torch.randn(4, 5, dtype=torch.float64)
    expected = features.numpy() @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(head(features).detach(), expected, atol=1e-14)


def test_linear_head_starts_kaiming_normal() -> None:
    torch.manual_seed(0)
    weight = LinearHead(400, 500).weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.01)
    assert weight.abs().max().item() > 3 * math.sqrt(2 / 400)


def test_cosine_head_gives_cosines() -> None:
    head = CosineHead(5, 3).double()
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[1.0], [7.0], [0.1]]))
    features = torch.randn(4, 5, dtype=torch.float64)
    result = head(features).detach().numpy()
    for i, x in enumerate(features.numpy()):
        for c, w in enumerate(head.weight.detach().numpy()):
            expected = (x @ w) / math.sqrt((x @ x) * (w @ w))
            assert result[i, c] == pytest.approx(expected, abs=1e-14)


def test_cosine_head_starts_with_unit_rows_in_all_directions() -> None:
    torch.manual_seed(0)
    head = CosineHead(64, 100)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(100))
    assert head.weight.min() < 0 < head.weight.max()
    # Uniform entries are bounded: before scaling by a norm near sqrt(64 / 3), by 1.
    assert head.weight.abs().max().item() < 1 / math.sqrt(64 / 3) * 1.3


def test_cosine_of_a_zero_feature_is_zero() -> None:
    features = torch.zeros(1, 5, requires_grad=True)
    cosines = CosineHead(5, 3)(features)
    cosines.sum().backward()
    assert cosines.tolist() == [[0, 0, 0]]
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_cosine_head_stays_in_float32_under_autocast() -> None:
    head, features = CosineHead(64, 10), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = head(features)
    assert cosines.dtype == torch.float32
    assert torch.equal(cosines, head(features))


def test_cosine_head_takes_half_precision_features() -> None:
    head, features = CosineHead(64, 10), torch.randn(8, 64).bfloat16()
    assert torch.equal(head(features), head(features.float()))


def test_build_head() -> None:
    assert isinstance(build_head("linear", 4, 2), LinearHead)
    assert isinstance(build_head("cosine", 4, 2), CosineHead)
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        build_head("cosin", 4, 2)
