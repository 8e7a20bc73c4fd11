"""SGD and AdamW take torch's steps to the bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ltpipe.training.optimizers import SGD, AdamW

SGDS = [
    {"momentum": momentum, "nesterov": nesterov}
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
]


def parameters():
    stream = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=stream).requires_grad_() for n in ((3, 4), 5, (2, 3, 7))]


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(
    ("kind", "reference", "settings"),
    [(AdamW, torch.optim.AdamW, {}), *((SGD, torch.optim.SGD, values) for values in SGDS)],
)
def test_steps_are_those_of_torchs_optimizers(kind, reference, settings, weight_decay):
    ours, theirs = parameters(), parameters()
    optimizer = kind(ours, weight_decay=weight_decay, **settings)
    other = reference(theirs, lr=1.0, weight_decay=weight_decay, foreach=True, **settings)
    for step in range(8):
        # The last parameter has no gradient in the fourth step: it and what is kept of it stay.
        for values in (ours, theirs):
            used = values if step != 3 else values[:-1]
            sum((p**3 - p * (step + 1)).sum() for p in used).backward()
        before = ours[-1].detach().clone()
        rate = 0.01 / (step + 1)
        optimizer.step(rate)
        other.param_groups[0]["lr"] = rate
        other.step()
        other.zero_grad()
        assert all(p.grad is None for p in ours)
        assert torch.equal(ours[-1], before) == (step == 3)
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("kind", [lambda p: SGD(p, momentum=0.9), AdamW])
def test_buffers_are_all_that_is_resumed(kind):
    def step(values, optimizer, number):
        sum((p**2 * number).sum() for p in values).backward()
        optimizer.step(0.1)

    whole = parameters()
    unbroken = kind(whole)
    for number in range(1, 4):
        step(whole, unbroken, number)
    part = [p.detach().clone().requires_grad_() for p in whole]
    resumed = kind(part)
    for buffer, value in zip(resumed.buffers, unbroken.buffers, strict=True):
        buffer.copy_(value)
    for number in range(4, 7):
        step(whole, unbroken, number)
        step(part, resumed, number)
    assert all(map(torch.equal, part, whole))


def test_what_is_not_trained_is_left_alone():
    fixed, trained = torch.ones(3), torch.ones(2).requires_grad_()
    optimizer = AdamW([fixed, trained], weight_decay=0.5)
    trained.sum().backward()
    optimizer.step(0.1)
    assert torch.equal(fixed, torch.ones(3))
    assert (trained < 1).all()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_no_step_imports_torchs_compiler(name):
    code = (
        "import sys, torch\n"
        f"from ltpipe.training.optimizers import {name}\n"
        "weight = torch.ones(3).requires_grad_()\n"
        f"optimizer = {name}([weight])\n"
        "weight.sum().backward()\n"
        "optimizer.step(0.1)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
