"""The contrast of views against loops in NumPy, its gradient against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltpipe.stage2.ecvl.losses import instance_contrast


def made(index, dimension=6):
    stream = np.random.default_rng(1)
    views = stream.normal(size=(2 * len(index), dimension))
    return views / np.linalg.norm(views, axis=1, keepdims=True)


def loop(views, index, temperature):
    batch = len(index)
    images = [*index, *index]
    losses = np.zeros(batch)
    for i in range(2 * batch):
        partner = (i + batch) % (2 * batch)
        total = np.exp(views[i] @ views[partner] / temperature)
        for j in range(2 * batch):
            if images[j] != images[i]:
                total += np.exp(views[i] @ views[j] / temperature)
        losses[i % batch] += np.log(total) - views[i] @ views[partner] / temperature
    return losses / 2


@pytest.mark.parametrize("index", [[3, 1, 4, 5, 9, 2], [3, 1, 3, 3, 9, 1], [7, 7]])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_against_a_loop(index, temperature):
    """Tail images are drawn several times in a batch: a copy is no negative."""
    views = made(index)
    found, _ = instance_contrast(torch.from_numpy(views), torch.tensor(index), temperature)
    np.testing.assert_allclose(found, loop(views, index, temperature), rtol=1e-10, atol=1e-12)


def test_images_drawn_alone_have_nothing_to_be_told_from():
    found, gradient = instance_contrast(
        torch.from_numpy(made([7, 7, 7])), torch.tensor([7, 7, 7]), 0.2
    )
    torch.testing.assert_close(found, torch.zeros_like(found))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_the_gradient_is_that_of_the_mean_loss():
    index = torch.tensor([3, 1, 3, 5, 9, 2])
    leaf = torch.from_numpy(made(index)).requires_grad_()
    images = torch.cat([index, index])
    logits = leaf @ leaf.T / 0.3
    partner = torch.arange(12).roll(6)
    positive = F.one_hot(partner, 12).bool()
    masked = logits.masked_fill((images[:, None] == images) & ~positive, -torch.inf)
    F.cross_entropy(masked, partner).backward()
    losses, gradient = instance_contrast(leaf.detach(), index, 0.3)
    torch.testing.assert_close(gradient, leaf.grad)
    torch.testing.assert_close(losses.mean(), F.cross_entropy(masked, partner).detach())


def test_models_side_by_side_are_those_alone():
    index = torch.tensor([[0, 1, 2, 1], [5, 5, 6, 7]])
    views = torch.from_numpy(np.stack([made(index[0]), made(index[1])[::-1].copy()]))
    losses, gradients = instance_contrast(views, index, 0.2)
    for place in range(2):
        alone = instance_contrast(views[place], index[place], 0.2)
        torch.testing.assert_close(losses[place], alone[0])
        torch.testing.assert_close(gradients[place], alone[1])
