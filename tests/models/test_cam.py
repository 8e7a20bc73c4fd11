"""Heat maps against their definitions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ltpipe.models.cam import channel_maps, class_activation_maps, grad_cam, overlay
from ltpipe.models.resnet import resnet8


def network_and_images():
    torch.manual_seed(0)
    network = resnet8(4).double().eval()
    return network, torch.randn(3, 3, 16, 16, dtype=torch.float64)


def last_maps(network, images):
    return network.blocks(F.relu(network.bn(network.conv(images))))


def test_cam_is_the_classifiers_weights_over_the_last_maps_by_loops():
    network, images = network_and_images()
    classes = torch.tensor([2, 0, 3])
    maps = last_maps(network, images)
    found = class_activation_maps(network, images, classes)
    for place, label in enumerate(classes.tolist()):
        expected = sum(network.head.weight[label, k] * maps[place, k] for k in range(64))
        torch.testing.assert_close(found[place], expected.detach())
    # Its mean is the logit but for the bias.
    logits = network(images)[torch.arange(3), classes] - network.head.bias[classes]
    torch.testing.assert_close(found.mean((1, 2)), logits.detach())


def test_channels_are_single_terms_of_the_sum():
    network, images = network_and_images()
    classes = torch.tensor([1, 1, 2])
    every = channel_maps(network, images, classes, torch.arange(64))
    whole = class_activation_maps(network, images, classes)
    torch.testing.assert_close(every.sum(1), whole)
    some = channel_maps(network, images, classes, torch.tensor([5, 63]))
    torch.testing.assert_close(some, every[:, [5, 63]])


def test_grad_cam_of_a_pooled_linear_network_is_the_positive_part_of_cam():
    network, images = network_and_images()
    classes = torch.tensor([0, 1, 3])
    cam = class_activation_maps(network, images, classes)
    # The gradient of a mean over h w places is w / (h w) everywhere.
    expected = F.relu(cam) / (cam.shape[1] * cam.shape[2])
    torch.testing.assert_close(grad_cam(network, images, classes), expected)


def test_an_overlay_fills_the_image_from_0_to_1():
    maps = torch.tensor([[[0.0, 1], [2, 4]], [[3, 3], [3, 3]]])
    large = overlay(maps, (8, 6))
    assert large.shape == (2, 8, 6)
    assert large[0].min() == 0
    assert large[0].max() == 1
    assert (large[1] == 0).all()
