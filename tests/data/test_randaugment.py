"""Batched RandAugment against Pillow and torchvision, operation by operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ltpipe.compat import import_torchvision
from ltpipe.data.randaugment import OPERATIONS, apply_operations, grouped, rand_augment

NAMES = [operation.name for operation in OPERATIONS]
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=30, height=17, width=20, channels=3):
    """Smooth random images, so that histograms and neighbours are those of pictures."""
    stream = np.random.default_rng(3)
    rows = []
    for _ in range(count):
        small = stream.integers(0, 256, (4, 5, channels), dtype=np.uint8)
        image = Image.fromarray(small if channels == 3 else small[..., 0])
        rows.append(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(rows).reshape(count, height, width, channels)).permute(
        0, 3, 1, 2
    )


def pillow(name, image, value):
    width, height = image.size
    maps = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * height),
    }
    if name in maps:
        return image.transform(image.size, Image.Transform.AFFINE, maps[name])
    plain = {
        "rotate": lambda: image.rotate(value),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "invert": lambda: ImageOps.invert(image),
        "equalize": lambda: ImageOps.equalize(image),
        "solarize": lambda: ImageOps.solarize(image, value),
        "posterize": lambda: ImageOps.posterize(image, int(value)),
    }
    if name in plain:
        return plain[name]()
    return getattr(ImageEnhance, name.capitalize())(image).enhance(value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "cutout"])
def test_an_operation_is_pillows(name, channels):
    images = pictures(channels=channels)
    operation = BY_NAME[name]
    value = operation.value(torch.rand(30, generator=generator(1)))
    value = torch.where(torch.arange(30) % 2 == 0, value, -value) if operation.signed else value
    found = operation.apply(images, value, torch.zeros(2, 30))
    assert found.dtype == torch.uint8
    expected = []
    for image, amount in zip(images, value.tolist(), strict=True):
        array = image.permute(1, 2, 0).numpy()
        made = pillow(name, Image.fromarray(array if channels == 3 else array[..., 0]), amount)
        expected.append(np.asarray(made).reshape(array.shape))
    difference = np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(expected))
    # Pillow maps places in fixed point and stretches in float: a pixel in hundreds may differ.
    assert (difference > 0).mean() < 0.005
    if name not in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert difference.max() <= 1


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("invert", lambda f, image, value: f.invert(image)),
        ("posterize", lambda f, image, value: f.posterize(image, int(value))),
        ("equalize", lambda f, image, value: f.equalize(image)),
        ("autocontrast", lambda f, image, value: f.autocontrast(image)),
        ("brightness", lambda f, image, value: f.adjust_brightness(image, value)),
    ],
)
def test_an_operation_is_torchvisions(name, theirs):
    import_torchvision()
    from torchvision.transforms.v2 import functional

    images = pictures()
    value = BY_NAME[name].value(torch.rand(30, generator=generator(2)))
    found = BY_NAME[name].apply(images, value, torch.zeros(2, 30))
    for changed, image, amount in zip(found, images, value.tolist(), strict=True):
        expected = theirs(functional, image.contiguous(), amount)
        assert (changed.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_paints_a_square(channels):
    images = pictures(channels=channels)
    place = torch.rand((2, 30), generator=generator(4))
    value = torch.linspace(0, 0.4, 30)
    found = BY_NAME["cutout"].apply(images, value, place)
    fill = [125, 123, 114] if channels == 3 else [round(0.299 * 125 + 0.587 * 123 + 0.114 * 114)]
    painted = 0
    for i in range(30):
        half = float(value[i]) * 20 / 2
        for y in range(17):
            for x in range(20):
                inside = (
                    abs(x + 0.5 - float(place[0, i]) * 20) <= half
                    and abs(y + 0.5 - float(place[1, i]) * 17) <= half
                )
                expected = fill if inside else images[i, :, y, x].tolist()
                assert found[i, :, y, x].tolist() == expected
                painted += inside
    assert painted > 100


def test_strength_runs_over_the_published_ranges():
    ranges = {operation.name: (operation.low, operation.high) for operation in OPERATIONS}
    assert len(OPERATIONS) == 15
    assert ranges["rotate"] == (0, 60)
    assert ranges["solarize"] == (0, 110)
    assert ranges["posterize"] == (4, 8)
    assert ranges["contrast"] == ranges["sharpness"] == (0.1, 1.9)
    assert ranges["translate_x"] == (0, 0.66)
    half = BY_NAME["shear_x"].value(torch.tensor(0.5))
    assert half == pytest.approx(0.3)


def test_grouping_by_operation_changes_nothing():
    images = pictures()
    which = torch.randint(15, (30,), generator=generator(5))
    drawn = torch.rand((1, 4, 30), generator=generator(6))

    def applied(part: slice) -> torch.Tensor:
        ((groups, (strength, sign, *place)),) = grouped(
            which[None, part], drawn[:, :, part], images.device
        )
        return apply_operations(images[part], groups, strength, sign < 0.5, torch.stack(place))

    together = applied(slice(None))
    for i in range(30):
        assert torch.equal(together[i : i + 1], applied(slice(i, i + 1)))


def test_a_sample_of_no_memory_stays_and_one_of_full_memory_changes():
    images = pictures(400)
    memory = torch.cat([torch.zeros(100), torch.full((100,), 0.5), torch.ones(200)])
    before = images.clone()
    found = rand_augment(images, memory, generator())
    assert torch.equal(images, before)
    changed = (found != images).flatten(1).any(1).float()
    assert changed[:100].sum() == 0
    # With M = 1/2 one operation of two is applied on average, with M = 1 both are.
    assert 0.55 < changed[100:200].mean() < 0.85
    assert changed[200:].mean() > 0.95
    distance = (found.float() - images.float()).abs().flatten(1).mean(1)
    assert distance[100:200].mean() < distance[200:].mean()


def test_each_image_draws_for_itself_and_draws_repeat():
    one = pictures(1).expand(64, -1, -1, -1)
    memory = torch.ones(64)
    found = rand_augment(one, memory, generator(1))
    assert len({image.numpy().tobytes() for image in found}) > 50
    assert torch.equal(found, rand_augment(one, memory, generator(1)))
    assert not torch.equal(found, rand_augment(one, memory, generator(2)))


def test_floor_and_fixed_strength():
    images = pictures(200)
    memory = torch.full((200,), 0.3)

    def distance(**settings):
        found = rand_augment(images, memory, generator(3), operations=1, **settings)
        geometric = [i for i, name in enumerate(NAMES) if name.startswith(("shear", "translate"))]
        drawn = torch.randint(15, (1, 200), generator=generator(3))[0]
        chosen = torch.isin(drawn, torch.tensor(geometric))
        return (found[chosen].float() - images[chosen].float()).abs().mean()

    assert distance() < distance(random_strength=False)
    assert distance(random_strength=False) < distance(random_strength=False, floor=25.0)
