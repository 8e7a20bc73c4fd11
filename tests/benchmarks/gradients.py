"""Steps of stage two by gradients written by hand and by autograd, on the same losses."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import ceilings
import torch
import work
from measure import CPU, Result, Run, one_thread, seconds_of
from torch import Tensor
from torch.nn import functional as F

from ltpipe.losses.base import Loss
from ltpipe.losses.margin import LDAMLoss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.fit import Model, Parameters, Recipe, fit
from ltpipe.stage2.core.heads import CosineModel, LinearModel
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.ecvl.adapter import Adapter
from ltpipe.stage2.ecvl.losses import instance_contrast, text_gradient
from ltpipe.training.optimizers import SGD
from ltpipe.utils.seeding import generator

ROUNDS = 7


class Autograd:
    """The models of a head by autograd through the loss as it is defined."""

    def __init__(self, logits: Callable[[Parameters, Tensor], Tensor], loss: Loss) -> None:
        self.logits = logits
        self.loss = loss

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        logits = self.logits(leaves, inputs)
        targets = target.unsqueeze(2).expand(logits.shape[:3])
        losses = self.loss.per_sample(logits.flatten(0, 2), targets.flatten())
        value = losses.view(targets.shape).mean(1).sum()
        return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def linear(parameters: Parameters, inputs: Tensor) -> Tensor:
    """Return logits (1, B, M, C) of inputs (1, B, D)."""
    weight, bias = parameters["weight"], parameters["bias"]
    return F.linear(inputs, weight.flatten(0, 1), bias.flatten()).unflatten(2, bias.shape)


def cosine(parameters: Parameters, inputs: Tensor) -> Tensor:
    """Return cosines (M, B, 1, C) of inputs (M, B, D)."""
    return (inputs @ F.normalize(parameters["weight"], dim=2).mT).unsqueeze(2)


def fit_steps(models: int, classes: int, dimension: int, head: str, steps: int) -> list[float]:
    """Return the medians of the seconds that steps at batch 64 take, by hand and by autograd."""
    draws = generator(0, "gradients")
    groups = models if head == "cosine" else 1
    inputs = torch.randn(groups, 64, dimension, generator=draws)
    target = torch.randint(classes, (groups, 64), generator=draws)
    weight = torch.randn(models, classes, dimension, generator=draws)
    ours: Model
    if head == "cosine":
        loss: Loss = LDAMLoss([100] * classes)
        ours, theirs = CosineModel(logit_gradient(loss)), Autograd(cosine, loss)
        start = {"weight": weight}
    else:
        loss = CrossEntropyLoss()
        ours = LinearModel(logit_gradient(loss), ("weight", "bias"))
        theirs = Autograd(linear, loss)
        start = {"weight": weight, "bias": torch.zeros(models, classes)}
    recipe = Recipe(1, 64, 0.01, "constant", 0.9, 5e-4)

    def run(model: Model) -> None:
        parameters = {name: value.clone() for name, value in start.items()}
        fit(parameters, model, lambda epoch: iter([(inputs, target)] * steps), recipe)

    return medians(lambda: run(ours), lambda: run(theirs))


def ecvl_steps(dimension: int, steps: int) -> list[float]:
    """Return the medians of the seconds that ECVL's steps take, two views of 64 images."""
    draws = generator(0, "gradients")
    text = F.normalize(torch.randn(10, dimension, generator=draws), dim=1)
    index = torch.arange(64).unsqueeze(0)
    target = torch.randint(10, (1, 64), generator=draws)
    features = F.normalize(torch.randn(1, 128, dimension, generator=draws), dim=2)
    partner = torch.arange(128).roll(64)

    def start() -> tuple[Adapter, SGD]:
        adapter = Adapter(dimension, [0.2], 0, CPU)
        assert adapter.bias is not None
        return adapter, SGD([adapter.weight, adapter.bias], momentum=0.9, weight_decay=5e-4)

    @torch.inference_mode()
    def ours() -> None:
        adapter, optimizer = start()
        for _ in range(steps):
            adapted = adapter.units(features)
            _, by_units = instance_contrast(adapted.units, index, 0.2)
            by_units[:, :64].add_(text_gradient(adapted.units[:, :64], text, target, 10.0))
            adapter.backward(adapted, by_units)
            optimizer.step(0.01)

    def theirs() -> None:
        adapter, optimizer = start()
        itself = torch.eye(128, dtype=torch.bool)
        for _ in range(steps):
            assert adapter.bias is not None
            hidden = F.linear(features, adapter.weight[0], adapter.bias[0]).relu()
            units = F.normalize(torch.lerp(features, hidden, adapter.share), dim=2)[0]
            logits = (5 * units @ units.T).masked_fill(itself, -torch.inf)
            value = F.cross_entropy(logits, partner)
            value = value + F.cross_entropy(10 * units[:64] @ text.T, target[0])
            value.backward()
            optimizer.step(0.01)

    return medians(ours, theirs)


def medians(ours: Callable[[], None], theirs: Callable[[], None]) -> list[float]:
    """Return the median seconds of both, taken in turns after one round that does not count."""
    calls = (ours, theirs)
    for call in calls:
        call()
    taken = [[seconds_of(call) for call in calls] for _ in range(ROUNDS)]
    return [statistics.median(seconds) for seconds in zip(*taken, strict=True)]


def gradients(run: Run) -> Iterator[Result]:
    """What gradients by hand gain: they stay where it is at least 1.3 times."""
    few, many = (3, 20) if run.quick else (20, 300)
    ecvl = {size: 64 * 2 * 6 * size * size + 4 * 128 * 128 * size for size in (64, 1024)}
    cases: list[tuple[str, int, float, Callable[[int], list[float]]]] = [
        (
            "linear, 64-d, 10 classes, 11 models",
            many,
            11 * work.linear_step_flops(64, 10, 64),
            lambda n: fit_steps(11, 10, 64, "linear", n),
        ),
        (
            "cosine, 64-d, 10 classes, 11 models",
            many,
            11 * work.linear_step_flops(64, 10, 64),
            lambda n: fit_steps(11, 10, 64, "cosine", n),
        ),
        (
            "linear, 2048-d, 1000 classes",
            few,
            work.linear_step_flops(64, 1000, 2048),
            lambda n: fit_steps(1, 1000, 2048, "linear", n),
        ),
        ("ECVL, 64-d", many, ecvl[64], lambda n: ecvl_steps(64, n)),
        ("ECVL, 1024-d", few, ecvl[1024], lambda n: ecvl_steps(1024, n)),
    ]
    for name, steps, flops, call in cases:
        with one_thread():
            by_hand, by_autograd = call(steps)
        yield Result(
            f"gradients by hand, {name}",
            "steps/s",
            steps / by_hand,
            steps / by_autograd,
            f"batch 64; peer: torch.autograd; medians of {ROUNDS}",
            ceilings.product_name(torch.float32, 1),
            flops,
        )
