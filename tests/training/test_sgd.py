"""Our SGD against torch's."""

from __future__ import annotations

import pytest
import torch

from ltpipe.training.sgd import SGD


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_it_computes_what_torch_computes(nesterov, weight_decay):
    stream = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=stream), torch.randn(5, generator=stream)]
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    settings = {"momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov}
    sgd = SGD(ours, **settings)
    reference = torch.optim.SGD(theirs, lr=0.1, **settings)
    for step in range(6):
        for parameters in (ours, theirs):
            loss = sum((p**3 - p * (step + 1)).sum() for p in parameters)
            loss.backward()
        rate = 0.1 / (step + 1)
        sgd.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        reference.zero_grad()
        assert all(p.grad is None for p in ours)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
