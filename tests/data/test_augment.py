import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from ltpipe.compat import import_torchvision
from ltpipe.data.augment import (
    Augmentation,
    augment,
    centre_crop,
    color_jitter,
    crop_boxes,
    normalise,
)
from ltpipe.data.augment import (
    crop as sample,
)
from ltpipe.data.resampling import resized_boxes
from ltpipe.utils.errors import InputError


def sizes_of(images):
    return torch.tensor(images.shape[1:3], dtype=torch.float64).expand(len(images), 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=64, height=12, width=10, channels=3):
    # Values of at least 1, so that zero always means padding.
    return torch.randint(
        1, 256, (n, height, width, channels), generator=generator(1), dtype=torch.uint8
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "padding"), [((12, 10), 2), ((8, 7), 0), ((8, 7), 3)])
def test_padded_crop_and_flip_against_a_loop(size, padding, channels):
    images = pictures(channels=channels)
    batch = augment(images, Augmentation(size, padding, flip=True), generator())
    assert batch.shape == (64, channels, *size)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    draws = torch.rand((3, 64), generator=generator()).numpy()
    padded = np.pad(images.numpy(), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    tops, lefts, mirrored = set(), set(), 0
    for image, result, (u, v, f) in zip(padded, batch, draws.T, strict=True):
        top = int(u * (12 + 2 * padding - size[0] + 1))
        left = int(v * (10 + 2 * padding - size[1] + 1))
        crop = image[top : top + size[0], left : left + size[1]]
        crop = crop[:, ::-1] if f < 0.5 else crop
        np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), crop)
        tops.add(top)
        lefts.add(left)
        mirrored += f < 0.5
    assert len(tops) == 12 + 2 * padding - size[0] + 1
    assert len(lefts) == 10 + 2 * padding - size[1] + 1
    assert 16 < mirrored < 48


def test_without_flip_nothing_is_mirrored():
    images = torch.arange(10, dtype=torch.uint8).expand(32, 1, 12, 10).permute(0, 2, 3, 1)
    batch = augment(images.contiguous(), Augmentation((12, 6)), generator())
    assert (batch[..., 1:] > batch[..., :-1]).all()


def test_no_change_asked_for_is_the_image_itself():
    images = pictures()
    assert torch.equal(
        augment(images, Augmentation((12, 10)), generator()), images.permute(0, 3, 1, 2)
    )


PLANS = [
    Augmentation((12, 10), padding=1, flip=True),
    Augmentation((8, 8), resized_crop=True, flip=True, color_jitter=0.4),
]


@pytest.mark.parametrize("plan", PLANS)
def test_draws_come_from_the_generator_alone(plan):
    torch.manual_seed(1)
    first = augment(pictures(), plan, generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(pictures(), plan, generator(3)))
    assert not torch.equal(first, augment(pictures(), plan, generator(4)))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resized_crop_against_torchvision_and_pillow(mode):
    images = pictures(n=40, height=40, width=31)
    area = torch.rand((10, 40), generator=generator(2))
    shape = torch.rand((10, 40), generator=generator(3))
    place = torch.rand((2, 40), generator=generator(4))
    # Candidates of the first images never fit: they take the centred fallback.
    area[:, :4], shape[:, :4] = 1.0, 0.5
    mirrored = torch.arange(40) % 3 == 0
    plan = Augmentation((16, 20), flip=True, resized_crop=True, interpolation=mode)
    drawn = torch.cat([place, area, shape, torch.where(mirrored, 0.0, 1.0)[None]])
    boxes = crop_boxes(plan, drawn, sizes_of(images))
    result = sample(images, plan, drawn, boxes)
    assert result.is_contiguous(memory_format=torch.channels_last)
    import_torchvision()
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    for i in range(40):
        for scale, aspect in zip(area[:, i].tolist(), shape[:, i].tolist(), strict=True):
            pixels = 40 * 31 * (0.08 + 0.92 * scale)
            ratio = np.exp(np.log(3 / 4) + aspect * (np.log(4 / 3) - np.log(3 / 4)))
            w, h = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
            if 0 < w <= 31 and 0 < h <= 40:
                top = int(place[0, i] * (40 - h + 1))
                left = int(place[1, i] * (31 - w + 1))
                break
        else:
            assert i < 4
            w, h = 31, 40  # 31 / 40 lies within 3/4 .. 4/3: the whole image
            top = left = 0
        size = ((16, 20), functional.InterpolationMode(mode), True)
        whole = images[i].permute(2, 0, 1)
        expected = functional.resized_crop(whole, top, left, h, w, *size)
        if mode == "bilinear":
            # Of cubic kernels the two cut off what leaves a byte between their passes differently.
            cut = Image.fromarray(images[i].numpy()).crop((left, top, left + w, top + h))
            pillow = np.array(cut.resize((20, 16), Image.Resampling.BILINEAR))
            assert (expected.int() - torch.from_numpy(pillow).permute(2, 0, 1)).abs().max() <= 1
        if mirrored[i]:
            expected = expected.flip(2)
        assert torch.equal(result[i], expected)
    # The form for GPUs.
    products = resized_boxes(images, boxes, (16, 20), mode, mirrored)
    assert products.is_contiguous(memory_format=torch.channels_last)
    difference = (products.int() - result.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02


def test_crop_scale_bounds_the_share_of_the_area():
    # Each pixel tells its place, so that the corners of a crop tell its extent.
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack([4 * y, 4 * x, x], dim=2).to(torch.uint8).expand(200, -1, -1, -1)
    for scale in ((0.08, 1.0), (0.5, 1.0), (0.5, 0.6)):
        plan = Augmentation((32, 32), resized_crop=True, crop_scale=scale)
        batch = augment(image.contiguous(), plan, generator()).float()
        sides = [
            (batch[:, channel].amax((1, 2)) - batch[:, channel].amin((1, 2))) / 4 + 1
            for channel in (0, 1)
        ]
        share = sides[0] * sides[1] / 64**2
        assert share.min() > scale[0] - 0.08
        assert share.max() < scale[1] + 0.08


def test_resized_crop_fallback_of_a_long_image_is_centred():
    images = pictures(n=1, height=10, width=40)
    never = torch.ones(10, 1)
    plan = Augmentation((10, 13), resized_crop=True)
    drawn = torch.cat([torch.zeros(2, 1), never, never])
    result = sample(images, plan, drawn, crop_boxes(plan, drawn, sizes_of(images)))
    assert torch.equal(result[0], images[0, :, 13:26].permute(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_against_torchvision(channels):
    functional = import_torchvision().transforms.functional

    images = pictures(n=16, channels=channels).permute(0, 3, 1, 2)
    factors = 0.4 + 1.2 * torch.rand((3, 16), generator=generator(5))
    result = color_jitter(images, factors)
    for image, changed, (b, c, s) in zip(images, result, factors.T.tolist(), strict=True):
        expected = functional.adjust_brightness(image.float() / 255, b)
        expected = functional.adjust_contrast(expected, c)
        expected = functional.adjust_saturation(expected, s)
        assert (changed.float() - 255 * expected).abs().max() <= 0.51


def test_colour_jitter_factors_lie_around_one():
    grey = torch.full((500, 4, 4, 1), 100, dtype=torch.uint8)
    batch = augment(grey, Augmentation((4, 4), color_jitter=0.4), generator())
    levels = batch[:, 0, 0, 0].double()
    assert 60 <= levels.min() < 62
    assert 138 < levels.max() <= 140
    assert abs(levels.mean() - 100) < 5


def test_centre_crop():
    images = pictures(height=9, width=12)
    crop = centre_crop(images, (5, 6))
    assert torch.equal(crop, images[:, 2:7, 3:9].permute(0, 3, 1, 2))
    assert crop.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_normalise(dtype, tolerance, channels):
    images = pictures(channels=channels).permute(0, 3, 1, 2)
    mean, std = [0.4914, 0.4822, 0.4465][:channels], [0.2023, 0.1994, 0.2010][:channels]
    batch = normalise(images, mean, std, dtype)
    exact = images.numpy().astype(np.float64) / 255
    exact = (exact - np.reshape(mean, (1, -1, 1, 1))) / np.reshape(std, (1, -1, 1, 1))
    np.testing.assert_allclose(batch.double().numpy(), exact, atol=tolerance)
    assert batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 4)}, "size"),
        ({"size": (4, 4), "padding": -1}, "padding is -1"),
        ({"size": (4, 4), "color_jitter": 1.5}, "color_jitter is 1.5"),
        ({"size": (4, 4), "padding": 2, "resized_crop": True}, "exclude each other"),
    ],
)
def test_bad_augmentation(settings, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**settings)
