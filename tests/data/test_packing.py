"""Packed images: the pixels of the files, gone on from after an interruption, cut as drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ltpipe.data import drawing, packing
from ltpipe.data.augment import Augmentation, crop, crop_boxes, draw
from ltpipe.data.batches import WholeBatches, open_batches
from ltpipe.data.images import ArrayImages, FileImages
from ltpipe.data.loading import open_split
from ltpipe.data.packed import FILE, PackedImages, WholeImages, open_packed
from ltpipe.data.subset import read_subset
from ltpipe.utils.errors import InputError
from tests.support import CPU, run_job

pytestmark = pytest.mark.heavy

INPUT = {"size": [16, 16], "stored": [24, 24], "resized_crop": True, "flip": True}
SIZES = [(40, 30), (31, 64), (24, 24), (90, 25), (25, 90)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of photos of several sizes, one of them grey, in PNG and JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 5)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                size = SIZES[number % len(SIZES)]
                pixels = draws.integers(0, 256, (size[1], size[0], 3), np.uint8)
                image = Image.fromarray(pixels).convert("L" if number == 1 else "RGB")
                ending = "jpg" if number % 2 else "png"
                image.save(folder / split / name / f"{number}.{ending}")
    return folder


def dataset_of(photos, **given):
    return {"source": "folder", "path": str(photos), "input": {**INPUT, **given}}


def packed(photos, base, **given):
    """Draw and pack a data set; return the folders."""
    dataset = dataset_of(photos, **given)
    drawn = {key: value for key, value in dataset.items() if key != "input"}
    run_job(drawing, {"kind": "data", "dataset": drawn}, base / "data")
    run_job(packing, {"kind": "images", "dataset": dataset}, base / "images", data=base / "data")
    return base / "data", base / "images"


@pytest.mark.parametrize("fit", ["cover", "stretch"])
def test_a_fixed_size_is_packed_as_files_are_decoded(photos, tmp_path, fit):
    dataset = dataset_of(photos, fit=fit)
    data, images = packed(photos, tmp_path, fit=fit)
    subset = read_subset(data / "subset.h5")
    for split in ("train", "test"):
        found = open_split(dataset, subset, split, CPU, None, packed=images / FILE)
        expected = open_split(dataset, subset, split, CPU, None)
        assert torch.equal(found.labels, expected.labels)
        assert np.array_equal(found.index, expected.index)
        for seed in (None, 3):
            batches = []
            for opened in (found, expected):
                draws = None if seed is None else torch.Generator().manual_seed(seed)
                order = torch.arange(len(opened.labels)).flip(0)
                batches.append(torch.cat(list(opened.batches.epoch(order, 4, draws))))
            assert torch.equal(*batches)
    assert not (images / "resume").exists()


def test_whole_images_keep_their_aspect_ratio_and_the_test_view_is_that_of_cover(photos, tmp_path):
    data, images = packed(photos, tmp_path, fit="whole")
    subset = read_subset(data / "subset.h5")
    whole = open_packed(images / FILE, "train", (24, 24))
    assert isinstance(whole, WholeImages)
    paths = sorted((photos / "train/cat").iterdir()) + sorted((photos / "train/dog").iterdir())
    for place, path in enumerate(paths):
        with Image.open(path) as image:
            width, height = image.size
            scale = 24 / min(width, height)
            size = (int(width * scale + 1e-9), int(height * scale + 1e-9))
            expected = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        assert np.array_equal(whole.image(place), np.asarray(expected)), path
    found = open_split(
        dataset_of(photos, fit="whole"), subset, "test", CPU, None, packed=images / FILE
    )
    cover = open_split(dataset_of(photos), subset, "test", CPU, None)
    order = torch.arange(len(found.labels))
    views = [torch.cat(list(split.batches.epoch(order, 3, None))) for split in (found, cover)]
    assert torch.equal(*views)


def test_crops_of_whole_images_are_those_of_each_image_alone(photos, tmp_path):
    _, images = packed(photos, tmp_path, fit="whole")
    whole = open_packed(images / FILE, "train", (24, 24))
    plan = Augmentation((16, 16), flip=True, resized_crop=True, color_jitter=0.4)
    batches = open_batches(whole, np.arange(len(whole)), plan, CPU)
    assert isinstance(batches, WholeBatches)
    order = torch.arange(len(whole)).flip(0)
    found = torch.cat(list(batches.epoch(order, 5, torch.Generator().manual_seed(1))))
    stream = torch.Generator().manual_seed(1)
    drawn = torch.cat([draw(plan, len(part), stream) for part in order.split(5)], 1)
    far = 0
    for row, place in enumerate(order.tolist()):
        alone = torch.from_numpy(whole.image(place).copy())[None]
        column = drawn[:, row : row + 1]
        size = torch.tensor([alone.shape[1:3]], dtype=torch.float64)
        box = crop_boxes(plan, column, size)
        expected = crop(alone, plan, column, box)[0]
        assert torch.equal(found[row], expected)
        top, left, height, width = box[0].tolist()
        middle = (alone.shape[1] - 24) / 2, (alone.shape[2] - 24) / 2
        far += left + width > middle[1] + 24 or top + height > middle[0] + 24
    # Boxes reach beyond the middle that `cover` keeps.
    assert far > 0


def test_an_interrupted_job_goes_on_with_what_is_not_packed(photos, tmp_path, monkeypatch, capsys):
    files = sorted(photos.rglob("*.*g"))
    images = FileImages(files, (24, 24), fit="whole")
    monkeypatch.setattr(packing, "_TASK", 4)
    # In processes of their own, as for many files.
    monkeypatch.setattr(packing, "_FEW_BYTES", 0)
    whole = tmp_path / "whole"
    assert packing.pack(images, {"train": len(files)}, whole, "a", 1) == len(files)
    expected = (whole / FILE).read_bytes()
    parts = (whole / "packed.txt").read_text().split()
    assert sorted(map(int, parts)) == list(range(-(-len(files) // 4)))
    # As a killed job leaves it: two parts are done, of the others nothing is known.
    with (whole / FILE).open("r+b") as handle:
        handle.seek(len(expected) - 500)
        handle.write(bytes(500))
    (whole / "packed.txt").write_text("0\n1\n")
    assert packing.pack(images, {"train": len(files)}, whole, "a", 1) == len(files) - 8
    assert (whole / FILE).read_bytes() == expected
    assert "going on with" in capsys.readouterr().out
    # What belongs to another spec is no beginning of this one.
    assert packing.pack(images, {"train": len(files)}, whole, "b", 1) == len(files)


def test_a_damaged_image_stops_the_job_by_name_and_leaves_nothing_finished(photos, tmp_path):
    broken = tmp_path / "broken"
    for path in photos.rglob("*.*g"):
        copy = broken / path.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    bad = broken / "train/dog/2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(InputError, match=r"train/dog/2\.png can't be read"):
        packed(broken, tmp_path, fit="whole")
    assert not (tmp_path / "images" / FILE).exists()


def test_a_file_that_is_cut_off_is_refused(photos, tmp_path):
    _, images = packed(photos, tmp_path)
    path = images / FILE
    assert isinstance(open_packed(path, "train", (24, 24)), PackedImages)
    content = path.read_bytes()
    for damage in (
        content[:-200],
        b"no HDF5",
        content.replace(b"ltpipe-images/1", b"ltpipe-images/9"),
    ):
        path.write_bytes(damage)
        with pytest.raises(InputError, match=r"images\.h5"):
            open_packed(path, "train", (24, 24))


def test_packed_images_of_one_size_load_as_arrays_do():
    array = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), np.uint8)
    index = np.array([3, 3, 8, 0])
    assert np.array_equal(PackedImages(array).load(index), ArrayImages(array).load(index))
