"""The retrieval losses against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltpipe.losses.retrieval import retrieval_loss

SCALE = 7.0


def made(batch=9, classes=5, dimension=6):
    stream = np.random.default_rng(0)
    images = stream.normal(size=(batch, dimension))
    texts = stream.normal(size=(classes, dimension))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    # Class 4 has no image in the batch, class 0 several.
    return images, texts, np.array([0, 0, 1, 2, 0, 3, 1, 0, 2])


def log_softmax(row):
    return row - np.log(np.exp(row - row.max()).sum()) - row.max()


def find_texts(images, texts, target, in_batch):
    losses = []
    for i, image in enumerate(images):
        if in_batch:
            row = log_softmax(np.array([SCALE * image @ texts[k] for k in target]))
            losses.append(-np.mean([row[j] for j in range(len(target)) if target[j] == target[i]]))
        else:
            losses.append(-log_softmax(SCALE * texts @ image)[target[i]])
    return np.mean(losses)


def find_images(images, texts, target, in_batch):
    losses = []
    for k in target if in_batch else sorted(set(target.tolist())):
        column = log_softmax(SCALE * images @ texts[k])
        losses.append(-np.mean([column[j] for j in range(len(target)) if target[j] == k]))
    return np.mean(losses)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_against_loops(in_batch, both):
    images, texts, target = made()
    expected = find_texts(images, texts, target, in_batch)
    if both:
        expected = (expected + find_images(images, texts, target, in_batch)) / 2
    arguments = (torch.from_numpy(value) for value in (images, texts, target))
    found = retrieval_loss(*arguments, SCALE, in_batch=in_batch, both=both)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_same_class_pairs_of_a_batch_are_no_negatives():
    """With one class, all pairs are right: nothing distinguishes them, and nothing is pushed."""
    images, texts, _ = made()
    target = torch.zeros(9, dtype=torch.int64)
    leaf = torch.from_numpy(images).requires_grad_()
    loss = retrieval_loss(leaf, torch.from_numpy(texts), target, SCALE, in_batch=True)
    assert loss.item() == pytest.approx(np.log(9))
    loss.backward()
    torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf.grad))


def test_gradients_reach_both_towers_and_the_scale():
    images, texts, target = (torch.from_numpy(value) for value in made())
    leaves = [images.requires_grad_(), texts.requires_grad_(), torch.tensor(2.0).requires_grad_()]
    torch.autograd.gradcheck(
        lambda v, u: retrieval_loss(v, u, target, SCALE, both=True), (leaves[0], leaves[1])
    )
    retrieval_loss(leaves[0], leaves[1], target, leaves[2].exp()).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
