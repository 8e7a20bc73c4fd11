from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ltpipe.losses.contrastive import paco_loss

CLASSES, WIDTH = 4, 3
# Class 3 comes once in the batch and, in the queue, class 1 not at all.
TARGET = [1, 0, 1, 3, 2, 1]
QUEUE_TARGET = [0, 3, 2, 0, 0]


def unit_vectors(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def arguments(queue: int) -> dict[str, Any]:
    rng = np.random.default_rng(6)
    return {
        "centre_logits": torch.tensor(rng.normal(size=(6, CLASSES))),
        "queries": torch.tensor(unit_vectors(rng, 6)),
        "keys": torch.tensor(unit_vectors(rng, 6)),
        "queue": torch.tensor(unit_vectors(rng, 5)[:queue]),
        "target": torch.tensor(TARGET),
        "queue_target": torch.tensor(QUEUE_TARGET[:queue], dtype=torch.int64),
    }


def by_hand(
    values: dict[str, Any], alpha: float, centre_weight: float, temperature: float
) -> float:
    """Each query's weighted mean of log-softmax values, one after the other."""
    centres, queries = values["centre_logits"].tolist(), values["queries"].tolist()
    keys, queue = values["keys"].tolist(), values["queue"].tolist()
    stored = values["queue_target"].tolist()
    total = 0.0
    for i, query in enumerate(queries):
        entries = []
        for label, logit in enumerate(centres[i]):
            entries.append((logit, centre_weight if label == TARGET[i] else 0.0))
        samples = [(other, TARGET[j]) for j, other in enumerate(queries) if j != i]
        samples += list(zip(keys, TARGET, strict=True))
        samples += list(zip(queue, stored, strict=True))
        for other, label in samples:
            product = sum(a * b for a, b in zip(query, other, strict=True))
            entries.append((product / temperature, alpha if label == TARGET[i] else 0.0))
        partition = sum(math.exp(logit) for logit, _ in entries)
        row = sum(weight * math.log(math.exp(logit) / partition) for logit, weight in entries)
        total -= row / sum(weight for _, weight in entries)
    return total / len(queries)


@pytest.mark.parametrize("queue", [0, 1, 5])
@pytest.mark.parametrize(
    ("alpha", "centre_weight", "temperature"),
    [(0.05, 1.0, 0.2), (0.01, 1.0, 0.05), (0.7, 0.3, 1.0), (0.0, 1.0, 0.1)],
)
def test_paco(queue: int, alpha: float, centre_weight: float, temperature: float) -> None:
    settings = {"alpha": alpha, "centre_weight": centre_weight, "temperature": temperature}
    values = arguments(queue)
    assert paco_loss(**values, **settings).item() == pytest.approx(
        by_hand(values, **settings), rel=1e-12
    )


@pytest.mark.parametrize("queue", [0, 5])
def test_gradient_equals_finite_differences(queue: int) -> None:
    values = arguments(queue)

    def of(centre_logits: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        moved = {**values, "centre_logits": centre_logits, "queries": queries}
        return paco_loss(**moved, alpha=0.2, centre_weight=1.0, temperature=0.3)

    inputs = (values["centre_logits"].requires_grad_(), values["queries"].requires_grad_())
    assert torch.autograd.gradcheck(of, inputs)


def test_without_samples_that_weigh_it_is_cross_entropy_over_all_entries() -> None:
    values = arguments(5)
    value = paco_loss(**values, alpha=0.0, centre_weight=0.4, temperature=0.1)
    others = torch.cat([values["queries"], values["keys"], values["queue"]])
    similarity = values["queries"] @ others.T / 0.1
    similarity[range(6), range(6)] = -1e9
    entries = torch.cat([values["centre_logits"], similarity], dim=1)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(entries, values["target"]))


def test_half_precision_is_raised_to_float32() -> None:
    settings = {"alpha": 0.05, "centre_weight": 1.0, "temperature": 0.05}
    values = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in arguments(5).items()
    }
    exact = {
        name: value.double() if value.is_floating_point() else value
        for name, value in values.items()
    }
    value = paco_loss(**values, **settings)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(by_hand(exact, **settings), rel=1e-5)
