import numpy as np
import pytest
from PIL import Image

from ltpipe.utils.errors import InputError
from tests.support import open_source


def make(folder, counts, suffix="png", start=0):
    """Write `counts[class]` images whose grey level tells them apart."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            level = start + len(name) * 40 + i
            Image.new("RGB", (10, 8), (level,) * 3).save(folder / name / f"{i:03}.{suffix}")


def levels(part):
    return part.images.load(np.arange(len(part.images)))[:, 0, 0, 0].tolist()


def test_split_folders(tmp_path):
    for split, counts in (
        ("train", {"bb": 3, "a": 2}),
        ("val", {"bb": 1, "a": 1}),
        ("test", {"bb": 2, "a": 2}),
    ):
        make(tmp_path / split, counts)
    source = open_source("folder", tmp_path.parent, {"path": tmp_path.name, "size": [6, 8]})
    assert source.class_names == ["a", "bb"]
    assert source.train.images.shape == (6, 8, 3)
    assert source.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.train.labels.dtype == np.int64
    assert levels(source.train) == [40, 41, 80, 81, 82]
    assert source.val.labels.tolist() == [0, 1]
    assert levels(source.test) == [40, 41, 80, 81]


def test_every_image_type_at_any_depth_and_nothing_else(tmp_path):
    for suffix in ("jpg", "JPEG", "png", "bmp", "webp", "ppm"):
        make(tmp_path / "a" / f"deep-{suffix}", {"er": 1}, suffix)
    make(tmp_path, {"b": 1})
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "a/.hidden.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    source = open_source("folder", None, {"path": str(tmp_path), "size": 8})
    assert sorted([*source.train.labels, *source.test.labels]) == [0] * 6 + [1]
    assert source.val is None


def test_one_folder_of_classes_is_split_by_seed(tmp_path):
    make(tmp_path, {"a": 20, "bb": 10, "ccc": 1})
    options = {"path": str(tmp_path), "size": 8, "channels": 1}
    source = open_source("folder", None, options)
    # 0.2 of 20, 10 and 1 to the test; a class keeps its last image.
    assert np.bincount(source.test.labels, minlength=3).tolist() == [4, 2, 0]
    assert np.bincount(source.train.labels).tolist() == [16, 8, 1]
    everything = levels(source.train) + levels(source.test)
    assert sorted(everything) == [*range(40, 60), *range(80, 90), 120]
    assert source.train.images.shape == (8, 8, 1)
    again = open_source("folder", None, options)
    other = open_source("folder", None, options | {"split_seed": 1})
    assert levels(again.test) == levels(source.test) != levels(other.test)


def test_missing_test_split_is_taken_from_the_training_folder(tmp_path):
    make(tmp_path / "train", {"a": 10, "b": 10})
    source = open_source("folder", None, {"path": str(tmp_path), "size": 8, "test_fraction": 0.5})
    assert np.bincount(source.test.labels).tolist() == [5, 5]


def test_class_folder_without_image_is_named(tmp_path):
    make(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no image"):
        open_source("folder", None, {"path": str(tmp_path), "size": 8})


def test_splits_with_different_classes_are_refused(tmp_path):
    make(tmp_path / "train", {"a": 1, "b": 1})
    make(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(InputError, match=r"differ in their classes: b, c"):
        open_source("folder", None, {"path": str(tmp_path), "size": 8})


def test_other_mistakes(tmp_path):
    make(tmp_path / "good/train", {"a": 2, "b": 2})
    make(tmp_path / "good/test", {"a": 2, "b": 2})
    make(tmp_path / "lonely", {"a": 2})
    make(tmp_path / "untrained/test", {"a": 2, "b": 2})
    for options, message in (
        ({"size": 8}, "path: this key is required"),
        ({"path": "absent", "size": 8}, "absent does not exist"),
        ({"path": "good", "size": 8, "test_fraction": 0.1}, "test_fraction must not be given"),
        ({"path": "lonely", "size": 8}, "1 class folders"),
        ({"path": "untrained", "size": 8}, "no folder train"),
    ):
        with pytest.raises(InputError, match=message):
            open_source("folder", tmp_path, options)
