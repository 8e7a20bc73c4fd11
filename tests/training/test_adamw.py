"""Our AdamW against torch's."""

from __future__ import annotations

import pytest
import torch

from ltpipe.training.adamw import AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_it_computes_what_torch_computes(weight_decay):
    stream = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=stream), torch.randn(5, generator=stream)]
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    adamw = AdamW(ours, weight_decay=weight_decay)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=weight_decay)
    for step in range(8):
        for parameters in (ours, theirs):
            used = parameters if step != 3 else parameters[:1]
            sum((p**3 - p * (step + 1)).sum() for p in used).backward()
        rate = 0.01 / (step + 1)
        adamw.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        reference.zero_grad()
        assert all(p.grad is None for p in ours)
        if step < 3:
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    parameters = [torch.ones(3).requires_grad_(), torch.ones(2).requires_grad_()]
    adamw = AdamW(parameters, weight_decay=0.5)
    parameters[0].sum().backward()
    adamw.step(0.1)
    assert torch.equal(parameters[1], torch.ones(2))
    assert (parameters[0] < 1).all()


def test_its_buffers_are_all_that_is_resumed():
    def step(parameter, adamw, number):
        (parameter**2 * number).sum().backward()
        adamw.step(0.1)

    whole = torch.ones(4).requires_grad_()
    unbroken = AdamW([whole])
    for number in range(1, 7):
        step(whole, unbroken, number)
        if number == 3:
            kept = [whole.detach().clone(), *(buffer.clone() for buffer in unbroken.buffers)]
    part = kept[0].requires_grad_()
    resumed = AdamW([part])
    for buffer, value in zip(resumed.buffers, kept[1:], strict=True):
        buffer.copy_(value)
    for number in range(4, 7):
        step(part, resumed, number)
    assert torch.equal(part, whole)
