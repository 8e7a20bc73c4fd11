"""The released views of contrastive training, against Pillow, torchvision and plain loops."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ltpipe.compat import import_torchvision
from ltpipe.data.two_views import (
    CIFAR_OPERATIONS,
    CIFAR_POLICY,
    LEVEL_OPERATIONS,
    auto_augment,
    blur,
    cut_out,
    rand_augment,
    turn_hue,
    two_views,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=24, height=20, width=24, channels=3):
    """Smooth images with some noise, so that neighbours differ little and all values occur."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (count, channels, 4, 4)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), (height, width), mode="bilinear"
    )
    noise = torch.from_numpy(rng.normal(0, 6, smooth.shape).astype(np.float32))
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def as_image(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def test_the_policy_is_the_published_one():
    """Each pair's names, probabilities and levels are those of torchvision's table."""
    transforms = import_torchvision().transforms
    published = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies
    names = [operation.name.replace("_", "") for operation in CIFAR_OPERATIONS]
    assert len(CIFAR_POLICY) == len(published) == 25
    plain = ("autocontrast", "equalize", "invert")
    for pair, theirs in zip(CIFAR_POLICY, published, strict=True):
        for (number, share, level), (name, probability, magnitude) in zip(
            pair, theirs, strict=True
        ):
            assert names[int(number)] == name.lower()
            assert share == probability
            assert names[int(number)] in plain or level == magnitude


def test_the_levels_are_those_of_the_released_policies():
    """Tables of ten levels, as the code that PaCo uses writes them."""
    by_name = {operation.name: operation for operation in CIFAR_OPERATIONS}
    levels = torch.arange(10) / 9
    for name, table in {
        "shear_x": np.linspace(0, 0.3, 10),
        "translate_y": np.linspace(0, 150 / 331, 10),
        "rotate": np.linspace(0, 30, 10),
        "color": np.linspace(0, 0.9, 10),
        "posterize": np.linspace(8, 4, 10),
        "solarize": np.linspace(256, 0, 10),
    }.items():
        np.testing.assert_allclose(by_name[name].value(levels), table, atol=1e-5)
    by_name = {operation.name: operation for operation in LEVEL_OPERATIONS}
    assert len(by_name) == 15
    assert "cutout" not in by_name
    assert by_name["sharpness"].value(torch.tensor(1.0)) == pytest.approx(1.9)
    assert by_name["translate_x"].value(torch.tensor(1.0)) == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("name", "value", "theirs"),
    [
        ("color", 0.7, lambda image: ImageEnhance.Color(image).enhance(1.7)),
        ("contrast", -0.6, lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
        ("brightness", 0.3, lambda image: ImageEnhance.Brightness(image).enhance(1.3)),
        ("posterize", 5.3, lambda image: ImageOps.posterize(image, 5)),
        ("solarize", 100.0, lambda image: ImageOps.solarize(image, 100)),
        ("equalize", 0.0, ImageOps.equalize),
        ("invert", 0.0, ImageOps.invert),
    ],
)
def test_an_operation_of_the_policy_is_pillows(name, value, theirs):
    images = pictures()
    operation = next(found for found in CIFAR_OPERATIONS if found.name == name)
    found = operation.apply(images, torch.full((len(images),), value), torch.zeros(2, len(images)))
    for changed, image in zip(found, images, strict=True):
        expected = np.asarray(theirs(as_image(image))).astype(int)
        assert np.abs(changed.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_what_moves_in_from_outside_is_grey():
    images = torch.full((1, 3, 10, 10), 7, dtype=torch.uint8)
    operation = next(found for found in CIFAR_OPERATIONS if found.name == "translate_x")
    found = operation.apply(images, torch.tensor([0.3]), torch.zeros(2, 1))
    assert sorted(found.unique().tolist()) == [7, 128]
    assert (found == 128).sum() == 3 * 10 * 3


def test_solarize_add_brightens_the_dark():
    operation = next(found for found in LEVEL_OPERATIONS if found.name == "solarize_add")
    images = torch.tensor([0, 60, 127, 128, 255], dtype=torch.uint8).view(1, 1, 1, 5)
    found = operation.apply(images, torch.tensor([110.9]), torch.zeros(2, 1))
    assert found.flatten().tolist() == [110, 170, 237, 128, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_half_of_each_draw_of_rand_augment_acts(channels):
    """A quarter of the images draws no operation; invert and the like always change."""
    images = pictures(400, channels=channels)
    found = rand_augment(images, generator(1))
    changed = (found != images).flatten(1).any(1).float().mean()
    assert 0.6 < changed < 0.78
    assert torch.equal(found, rand_augment(images, generator(1)))


def test_each_image_goes_through_its_own_pair_of_the_policy():
    """One image after another, by the table and the same random numbers."""
    images = pictures(60)
    found = auto_augment(images, generator(2))
    draws = generator(2)
    pair = torch.randint(25, (60,), generator=draws).tolist()
    uniform = torch.rand((2, 2, 60), generator=draws)
    for i in range(60):
        image = images[i : i + 1]
        for step in range(2):
            number, share, level = CIFAR_POLICY[pair[i]][step]
            operation = CIFAR_OPERATIONS[int(number)]
            value = operation.value(torch.tensor([level / 9]))
            if operation.signed and uniform[step, 1, i] < 0.5:
                value = -value
            if uniform[step, 0, i] < share:
                image = operation.apply(image, value, torch.zeros(2, 1))
        assert torch.equal(found[i], image[0])
    assert 0.5 < (found != images).flatten(1).any(1).float().mean() < 0.95


def test_a_square_is_cut_out_about_a_pixel():
    images = torch.full((50, 3, 12, 16), 200, dtype=torch.uint8)
    found = cut_out(images, generator(3), 6)
    draws = generator(3)
    y = torch.randint(12, (50, 1), generator=draws)
    x = torch.randint(16, (50, 1), generator=draws)
    for i in range(50):
        expected = np.full((12, 16), 200)
        top, left = int(y[i]), int(x[i])
        expected[max(0, top - 3) : top + 3, max(0, left - 3) : left + 3] = 0
        for channel in found[i]:
            np.testing.assert_array_equal(channel.numpy(), expected)


def test_a_turned_hue_is_that_of_the_colour_circle():
    images = pictures(4, 6, 6)
    turn = torch.tensor([0.1, -0.1, 0.05, 0.0])
    found = turn_hue(images, turn)
    for image, changed, amount in zip(images, found, turn.tolist(), strict=True):
        for pixel, result in zip(image.flatten(1).T.tolist(), changed.flatten(1).T, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
            expected = colorsys.hsv_to_rgb((hue + amount) % 1, saturation, value)
            np.testing.assert_allclose(result, np.array(expected) * 255, atol=0.51)


def test_blur_is_a_gaussian_of_each_images_own_width():
    images, sigma = pictures(3, 9, 11), torch.tensor([0.1, 1.0, 2.0])
    found = blur(images, sigma)
    offsets = np.arange(-6, 7)
    for image, changed, s in zip(images.double().numpy(), found, sigma.tolist(), strict=True):
        kernel = np.exp(-0.5 * (offsets / s) ** 2)
        kernel /= kernel.sum()
        expected = np.zeros_like(image)
        for dy, wy in zip(offsets, kernel, strict=True):
            for dx, wx in zip(offsets, kernel, strict=True):
                rows = np.clip(np.arange(9) + dy, 0, 8)
                columns = np.clip(np.arange(11) + dx, 0, 10)
                expected += wy * wx * image[:, rows][:, :, columns]
        assert np.abs(changed.numpy() - expected).max() <= 0.51
    assert torch.equal(found[0], images[0])


@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_two_views_differ_in_kind_and_come_from_their_streams(kind, channels):
    images = pictures(64, 32, 32, channels).permute(0, 2, 3, 1).contiguous()
    strong, simclr = two_views(kind, (32, 32), "bilinear")
    first, second = (
        strong(images, generator(), generator(1)),
        simclr(images, generator(), generator(1)),
    )
    assert first.shape == second.shape == (64, channels, 32, 32)
    assert first.dtype == second.dtype == torch.uint8
    assert torch.equal(first, strong(images, generator(), generator(1)))
    assert not torch.equal(first, strong(images, generator(), generator(2)))
    if channels == 3:
        grey = [(v[:, 0] == v[:, 1]).flatten(1).all(1).float().mean() for v in (first, second)]
        assert grey[0] < 0.05
        assert 0.08 < grey[1] < 0.35
    # A cut-out square is black in view one on CIFAR only.
    black = (first.amax(1) == 0).flatten(1).float().mean(1)
    assert bool(black.min() > 0.05) is (kind == "cifar")
