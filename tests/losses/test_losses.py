"""What holds for every loss, and the lazy package."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

import ltpipe.losses
from ltpipe.config.backbones import Backbone
from ltpipe.config.registry import registered
from ltpipe.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CrossEntropyLoss,
    FocalLoss,
    KPSLoss,
    LabelAwareSmoothingLoss,
    LabelSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    effective_number_weights,
    inverse_frequency_weights,
)
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.utils.errors import InputError

COUNTS = [7, 120, 31, 2]
WEIGHT = torch.tensor([0.7, 0.1, 0.4, 2.8])
LOSSES = {
    "ce": lambda: CrossEntropyLoss(),
    "ce weighted": lambda: CrossEntropyLoss(WEIGHT),
    "balanced softmax": lambda: BalancedSoftmaxLoss(COUNTS),
    "logit adjusted": lambda: LogitAdjustedLoss(COUNTS, tau=1.5),
    "label smoothing": lambda: LabelSmoothingLoss(0.1),
    "label smoothing weighted": lambda: LabelSmoothingLoss(0.2, weight=WEIGHT),
    "label-aware smoothing": lambda: LabelAwareSmoothingLoss(COUNTS),
    "label-aware smoothing weighted": lambda: LabelAwareSmoothingLoss(COUNTS, weight=WEIGHT),
    "class-balanced": lambda: ClassBalancedLoss(COUNTS),
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


def cross_entropy(scores: Sequence[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in scores)) - scores[label]


def smoothed(row: Sequence[float], label: int, amount: float) -> float:
    everywhere = sum(cross_entropy(row, c) for c in range(4)) / 4
    return (1 - amount) * cross_entropy(row, label) + amount * everywhere


def focal(row: Sequence[float], label: int) -> float:
    return (1 - math.exp(-cross_entropy(row, label))) * cross_entropy(row, label)


def shifted(row: Sequence[float], prior: Sequence[float]) -> list[float]:
    return [value + math.log(share) for value, share in zip(row, prior, strict=True)]


def ldam(row: Sequence[float], label: int) -> float:
    margin = 0.5 * (min(COUNTS) / COUNTS[label]) ** 0.25
    return cross_entropy([30 * (v - margin * (c == label)) for c, v in enumerate(row)], label)


def kps(row: Sequence[float], label: int) -> float:
    sizes = [math.log(50 * n / min(COUNTS)) for n in COUNTS]
    margin = 0.2 * (max(sizes) + min(sizes) - sizes[label]) / max(sizes)
    stretched = [size / min(sizes) * v for size, v in zip(sizes, row, strict=True)]
    return cross_entropy([15 * (v - margin * (c == label)) for c, v in enumerate(stretched)], label)


def label_aware(row: Sequence[float], label: int) -> float:
    share = (COUNTS[label] - min(COUNTS)) / (max(COUNTS) - min(COUNTS))
    return smoothed(row, label, 0.3 * math.sin(math.pi * share / 2))


def balanced_binary(row: Sequence[float], label: int) -> float:
    own = [1 / (1 - 0.9999**n) for n in COUNTS]
    shares = [math.exp(-cross_entropy(row, c)) for c in range(4)]
    terms = [math.log(p if c == label else 1 - p) for c, p in enumerate(shares)]
    return -own[label] / sum(own) * sum(terms)


# One sample's loss under the default settings, from the papers; every registered loss has one.
FORMULAS: dict[str, Callable[[Sequence[float], int], float]] = {
    "ce": cross_entropy,
    "focal": focal,
    "class-balanced": cross_entropy,
    "class-balanced-binary": balanced_binary,
    "balanced-softmax": lambda row, label: cross_entropy(shifted(row, COUNTS), label),
    "logit-adjustment": lambda row, label: cross_entropy(
        shifted(row, [n / sum(COUNTS) for n in COUNTS]), label
    ),
    "ldam": ldam,
    "kps": kps,
    "label-smoothing": lambda row, label: smoothed(row, label, 0.1),
    "label-aware-smoothing": label_aware,
}
# Weights that a loss has of its own; they multiply those of a rule.
OWN_WEIGHTS = {"class-balanced": [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS]}
RULE_WEIGHTS = [0.3, 0.05, 0.65, 3.0]
LABELS = [3, 0, 1, 2, 2, 1, 1]


def weighted_mean(name: str, rows: np.ndarray, rule: Sequence[float]) -> float:
    own = OWN_WEIGHTS.get(name, [1.0] * 4)
    total = weights = 0.0
    for row, label in zip(rows.tolist(), LABELS, strict=True):
        weight = own[label] * rule[label]
        total += weight * FORMULAS[name](row, label)
        weights += weight
    return total / weights


def slopes(name: str, rows: np.ndarray, rule: Sequence[float]) -> np.ndarray:
    """Central differences of the formula in each number of `rows`."""
    found = np.zeros_like(rows)
    for place in np.ndindex(rows.shape):
        step = np.zeros_like(rows)
        step[place] = 1e-5
        rise = weighted_mean(name, rows + step, rule) - weighted_mean(name, rows - step, rule)
        found[place] = rise / 2e-5
    return found


@pytest.mark.parametrize("rule", [None, RULE_WEIGHTS], ids=["plain", "reweighted"])
@pytest.mark.parametrize("name", registered("loss"))
def test_every_registered_loss_is_its_formula(name: str, rule: list[float] | None) -> None:
    head = "cosine" if name in ("ldam", "kps") else "linear"
    settings = Backbone.model_validate(
        {"network": "resnet8", "head": head, "loss": {"name": name}, "epochs": 1}
    )
    loss = build_loss(settings.loss, COUNTS)
    loss.reweight(None if rule is None else torch.tensor(rule))
    z = cosines(len(LABELS)).requires_grad_()
    value = loss(z, torch.tensor(LABELS))
    value.backward()
    rows, factors = z.detach().numpy(), rule or [1.0] * 4
    assert value.item() == pytest.approx(weighted_mean(name, rows, factors), rel=1e-6)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad, slopes(name, rows, factors), rtol=1e-5, atol=1e-6)


def test_a_rule_may_take_its_weights_back(loss: Loss) -> None:
    z, target = cosines(7), torch.tensor(LABELS)
    before = loss(z, target)
    loss.reweight(torch.tensor(RULE_WEIGHTS))
    assert not torch.isclose(loss(z, target), before, rtol=1e-4)
    loss.reweight(None)
    assert torch.equal(loss(z, target), before)


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
        LogitAdjustedLoss,
        LabelAwareSmoothingLoss,
        ClassBalancedLoss,
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
