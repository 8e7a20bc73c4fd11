import hashlib

import numpy as np
import pytest
import torch

from ltpipe.data.augment import Augmentation, normalise
from ltpipe.data.batches import open_batches
from ltpipe.data.readers import medmnist
from ltpipe.utils.errors import InputError
from tests.support import open_source

RANDOM = np.random.default_rng(0)
OCT = {"file": "octmnist", "size": [32, 32]}
COUNTS = {"train": 9, "val": 5, "test": 4}


def arrays(shape=(28, 28), classes=4):
    """The keys, types and shapes of a MedMNIST file; labels run through the classes."""
    made = {}
    for split, n in COUNTS.items():
        made[f"{split}_images"] = RANDOM.integers(1, 256, (n, *shape), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(n, dtype=np.uint8) % classes)[:, None]
    return made


def write(root, made, name="octmnist"):
    np.savez_compressed(root / f"{name}.npz", **made)
    return made


def test_grey_images_are_centred_in_zeros_and_repeated(tmp_path):
    made = write(tmp_path, arrays())
    source = open_source("medmnist", tmp_path, OCT)
    assert source.class_names == [
        "choroidal neovascularization",
        "diabetic macular edema",
        "drusen",
        "normal",
    ]
    for split, n in COUNTS.items():
        part = getattr(source, split)
        assert part.labels.tolist() == [i % 4 for i in range(n)]
        assert part.labels.dtype == np.int64
        assert (len(part.images), part.images.shape) == (n, (32, 32, 3))
        assert part.images.nbytes(2) == 2 * 32 * 32 * 3
        expected = np.pad(made[f"{split}_images"], ((0, 0), (2, 2), (2, 2)))
        order = np.array([2, 0, 2])
        np.testing.assert_array_equal(
            part.images.load(order), np.stack([expected[order]] * 3, axis=-1)
        )


def test_colour_and_uneven_padding(tmp_path):
    made = write(tmp_path, arrays((28, 28, 3), classes=3), "bloodmnist")
    options = {"file": "bloodmnist", "size": [29, 28]}
    source = open_source("medmnist", tmp_path, options)
    assert source.class_names == ["0", "1", "2"]
    images = source.test.images.load(np.arange(4))
    np.testing.assert_array_equal(images[:, :28], made["test_images"])
    assert not images[:, 28].any()
    with pytest.raises(InputError, match="images of 3 channels, which 1 can't hold"):
        open_source("medmnist", tmp_path, options | {"channels": 1})


def test_one_channel(tmp_path):
    made = write(tmp_path, arrays())
    source = open_source("medmnist", tmp_path, {"file": "octmnist", "size": 28, "channels": 1})
    np.testing.assert_array_equal(source.val.images.load(np.arange(5))[..., 0], made["val_images"])


def test_padding_is_black_after_normalisation(tmp_path):
    made = write(tmp_path, arrays())
    images = open_source("medmnist", tmp_path, OCT).test.images
    batches = open_batches(images, np.arange(4), Augmentation((32, 32)), "cpu")
    (batch,) = batches.epoch(torch.arange(4), 4, None)
    values = normalise(batch, [0.5] * 3, [0.5] * 3, torch.float32).numpy()
    expected = made["test_images"].astype(np.float64) / 127.5 - 1
    assert values.shape == (4, 3, 32, 32)
    for channel in range(3):
        np.testing.assert_allclose(values[:, channel, 2:30, 2:30], expected, atol=1e-6)
    assert (values[:, :, :2] == -1).all()


def test_stored_size_below_the_images(tmp_path):
    write(tmp_path, arrays())
    with pytest.raises(InputError, match=r"28 x 28, larger than the stored size 32 x 27"):
        open_source("medmnist", tmp_path, OCT | {"size": [32, 27]})


def test_options(tmp_path):
    for options, message in (
        ({"size": 32}, "file: this key is required"),
        ({"file": "../octmnist"}, "file: string should match pattern"),
    ):
        with pytest.raises(InputError, match=message):
            open_source("medmnist", tmp_path, options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_images": None}, r"octmnist\.npz is not a whole MedMNIST file \(.*val_images"),
        ({"train_images": np.zeros((9, 28, 28), np.float32)}, "float32 train_images"),
        ({"train_images": np.zeros((9, 784), np.uint8)}, r"train_images \(9, 784\)"),
        ({"test_images": np.zeros((4, 28, 28, 28), np.uint8)}, r"test_images \(4, 28, 28, 28\)"),
        ({"test_images": np.zeros((4, 27, 28), np.uint8)}, "different sizes in its parts"),
        ({"train_labels": np.zeros((9, 14), np.uint8)}, r"train_labels \(9, 14\)"),
        ({"train_labels": np.zeros((8, 1), np.uint8)}, r"train_labels \(8, 1\)"),
        ({"train_labels": np.zeros((9, 1))}, "float64 train_labels"),
        ({"train_labels": np.full((9, 1), 4, np.uint8)}, r"train_labels reach from 4 to 4 but"),
        ({"test_labels": np.full((4, 1), -1)}, "test_labels reach from -1 to -1 but"),
        ({"train_images": np.array([None] * 9)}, "not a whole MedMNIST file"),
    ],
)
def test_damaged_file_is_named(tmp_path, change, message):
    made = arrays() | change
    write(tmp_path, {key: value for key, value in made.items() if value is not None})
    with pytest.raises(InputError, match=message):
        open_source("medmnist", tmp_path, OCT)


def test_label_of_a_class_that_training_lacks(tmp_path):
    write(tmp_path, arrays() | {"val_labels": np.full((5, 1), 4, np.uint8)}, "mymnist")
    with pytest.raises(InputError, match=r"val_labels reach from 4 to 4 but .* 0 \.\. 3"):
        open_source("medmnist", tmp_path, OCT | {"file": "mymnist"})


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_truncated_file_is_named(tmp_path, keep):
    write(tmp_path, arrays())
    path = tmp_path / "octmnist.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"octmnist\.npz is not a whole MedMNIST file"):
        open_source("medmnist", tmp_path, OCT)


def serve(monkeypatch, folder, md5=None):
    folder.mkdir()
    write(folder, arrays())
    md5 = md5 or hashlib.md5((folder / "octmnist.npz").read_bytes()).hexdigest()
    monkeypatch.setattr(medmnist, "_MD5", {"octmnist": md5})
    monkeypatch.setattr(medmnist, "_URL", folder.as_uri() + "/")


def test_download_is_checked_and_found_again(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path / "server")
    root = tmp_path / "root"
    first = open_source("medmnist", root, OCT)
    assert [path.relative_to(root).as_posix() for path in root.rglob("*.*")] == [
        "medmnist/octmnist.npz"
    ]
    monkeypatch.setattr(medmnist, "_URL", "file:///absent/")
    again = open_source("medmnist", root, OCT)
    index = np.arange(9)
    np.testing.assert_array_equal(again.train.images.load(index), first.train.images.load(index))


def test_missing_file_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(medmnist, "_URL", "file:///absent/")
    with pytest.raises(
        InputError,
        match=rf"octmnist\.npz is not under {tmp_path}/medmnist and file:///absent/octmnist\.npz "
        rf".*put octmnist\.npz into {tmp_path}/medmnist \(data\.root or LTPIPE_DATA",
    ):
        open_source("medmnist", tmp_path, OCT)
    with pytest.raises(InputError, match=rf"mymnist\.npz is neither in {tmp_path} nor in"):
        open_source("medmnist", tmp_path, OCT | {"file": "mymnist"})


def test_download_with_another_checksum_leaves_no_file(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path / "server", md5="0" * 32)
    with pytest.raises(InputError, match="MD5 is"):
        open_source("medmnist", tmp_path / "root", OCT)
    assert [path.name for path in (tmp_path / "root").rglob("*")] == ["medmnist"]


@pytest.mark.realdata
def test_real_pneumoniamnist(real_data):
    source = open_source("medmnist", real_data, {"file": "pneumoniamnist", "size": 32})
    assert source.class_names == ["normal", "pneumonia"]
    assert np.bincount(source.train.labels).tolist() == [1214, 3494]
    assert np.bincount(source.val.labels).tolist() == [135, 389]
    assert np.bincount(source.test.labels).tolist() == [234, 390]
    images = source.train.images.load(np.arange(100))
    assert images.shape == (100, 32, 32, 3)
    assert images[:, 2:30, 2:30].std() > 0
    assert not images[:, :2].any()
