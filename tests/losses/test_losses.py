"""What holds for every loss, and the lazy package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import ltpipe.losses
from ltpipe.errors import InputError
from ltpipe.losses import (
    BalancedSoftmaxLoss,
    CrossEntropyLoss,
    FocalLoss,
    KPSLoss,
    LDAMLoss,
    effective_number_weights,
    inverse_frequency_weights,
)
from ltpipe.losses.base import Loss

COUNTS = [7, 120, 31, 2]
WEIGHT = torch.tensor([0.7, 0.1, 0.4, 2.8])
LOSSES = {
    "ce": lambda: CrossEntropyLoss(),
    "ce weighted": lambda: CrossEntropyLoss(WEIGHT),
    "balanced softmax": lambda: BalancedSoftmaxLoss(COUNTS),
    "focal": lambda: FocalLoss(gamma=1),
    "focal 0.5 weighted": lambda: FocalLoss(gamma=0.5, weight=WEIGHT),
    "ldam": lambda: LDAMLoss(COUNTS),
    "ldam weighted": lambda: LDAMLoss(COUNTS, weight=WEIGHT),
    "kps": lambda: KPSLoss(COUNTS),
    "kps adjusted": lambda: KPSLoss(COUNTS, adjust_from=0),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return LOSSES[request.param]()


def cosines(rows: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(rows, 4, generator=generator, dtype=dtype) * 2 - 1


def test_gradient_equals_finite_differences(loss: Loss) -> None:
    target = torch.tensor([0, 1, 2, 3, 3])
    assert torch.autograd.gradcheck(loss, (cosines(5).requires_grad_(), target))


def test_is_the_weighted_mean_of_lone_samples(loss: Loss) -> None:
    z, target = cosines(6), torch.tensor([3, 0, 1, 2, 2, 1])
    alone = torch.stack([loss(z[i : i + 1], target[i : i + 1]) for i in range(6)])
    weight = getattr(loss, "weight", None)
    share = torch.ones(6) if weight is None else weight[target]
    torch.testing.assert_close(loss(z, target), (share * alone).sum() / share.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    z, target = cosines(4, torch.float32).to(dtype), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(z, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(z.float(), target))


def test_extreme_logits_stay_finite(loss: Loss) -> None:
    z = torch.tensor([[1e3, -1e3, 0, 0], [1e3, -1e3, 0, 0]], requires_grad=True)
    value = loss(z, torch.tensor([0, 1]))
    value.backward()
    assert value.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_nothing_is_learned_or_saved(loss: Loss) -> None:
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_buffers_follow_the_device(loss: Loss) -> None:
    moved = loss.to("meta")
    assert moved(torch.zeros(2, 4, device="meta"), torch.zeros(2, device="meta").long()).is_meta


@pytest.mark.parametrize(
    "make",
    [
        BalancedSoftmaxLoss,
        LDAMLoss,
        KPSLoss,
        effective_number_weights,
        inverse_frequency_weights,
    ],
)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 3, 0, 2], "class 2 has 0 training images"),
        ([5, -1], "class 1 has -1 training images"),
        ([], "at least one class"),
    ],
)
def test_unusable_counts_are_refused(
    make: Callable[[list[int]], object], counts: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(counts)


def test_counts_may_be_a_tensor_or_an_array() -> None:
    expected = LDAMLoss(COUNTS).margins
    assert torch.equal(LDAMLoss(torch.tensor(COUNTS)).margins, expected)
    assert torch.equal(LDAMLoss(torch.tensor(COUNTS).numpy()).margins, expected)


def test_the_package_imports_a_loss_only_when_it_is_asked_for() -> None:
    code = (
        "import sys, ltpipe.losses\n"
        "assert not [m for m in sys.modules if m.startswith('ltpipe.losses.')]\n"
        "ltpipe.losses.FocalLoss\n"
        "assert 'ltpipe.losses.margin' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_names_what_it_has() -> None:
    assert {"LDAMLoss", "KPSLoss", "FocalLoss"} <= set(dir(ltpipe.losses))
    for name in ltpipe.losses.__all__:
        assert getattr(ltpipe.losses, name).__name__ == name
    with pytest.raises(AttributeError, match="NoSuchLoss"):
        ltpipe.losses.NoSuchLoss  # noqa: B018
