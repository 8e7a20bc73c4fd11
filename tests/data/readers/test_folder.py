import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltpipe.data import drawing
from ltpipe.data.subset import read_subset
from ltpipe.utils.errors import InputError
from tests.support import open_source, run_job


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
    assert source.train.labels.tolist() == [0] * 6 + [1]
    assert sorted(source.train.paths)[0] == "a/deep-JPEG/er/000.JPEG"
    assert source.val is None and source.test is None


def drawn(folder, **options):
    """Return the subset that the draw of a folder leaves."""
    spec = {"kind": "data", "dataset": {"source": "folder", "path": str(folder), **options}}
    run_job(drawing, spec, folder.with_name(f"{folder.name}-drawn"))
    return read_subset(folder.with_name(f"{folder.name}-drawn") / "subset.h5")


def test_one_folder_of_classes_is_split_by_seed(tmp_path):
    make(tmp_path / "set", {"a": 20, "bb": 10, "ccc": 5, "dddd": 1})
    subset = drawn(tmp_path / "set")
    # 0.2 of 20; of 10 and 5 as many as three, at most half; a class keeps its last image.
    assert np.bincount(subset.test_labels, minlength=4).tolist() == [4, 3, 2, 0]
    assert subset.class_counts == [16, 7, 3, 1]
    assert subset.part("test") == "train"
    assert sorted([*subset.train_index, *subset.test_index]) == list(range(36))
    assert subset.paths["test"][0].startswith("a/") and len(subset.paths["train"]) == 27
    assert drawn(tmp_path / "set").paths == subset.paths
    assert drawn(tmp_path / "set", split_seed=1).paths != subset.paths


def test_missing_test_split_is_taken_from_the_training_folder(tmp_path):
    make(tmp_path / "set/train", {"a": 10, "b": 10})
    subset = drawn(tmp_path / "set", test_fraction=0.5)
    assert np.bincount(subset.test_labels).tolist() == [5, 5]
    assert subset.paths["test"][0].startswith("train/a/")


def test_a_share_beside_a_test_folder_is_refused(tmp_path):
    for split in ("train", "test"):
        make(tmp_path / "set" / split, {"a": 2, "b": 2})
    with pytest.raises(InputError, match="test_fraction must not be given"):
        drawn(tmp_path / "set", test_fraction=0.1)


def test_damaged_images_stop_a_run_or_are_left_out_by_name(tmp_path):
    make(tmp_path / "set", {"a": 10, "b": 10})
    broken = tmp_path / "set/b/003.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / "set/a/005.png").write_text("no image")
    assert drawn(tmp_path / "set").left_out == []
    subset = drawn(tmp_path / "set", damaged="skip")
    paths = {*subset.paths["train"], *subset.paths["test"]}
    assert len(paths) == 18 and not paths & {"b/003.png", "a/005.png"}
    assert [Path(line.split()[1]).name for line in subset.left_out] == ["005.png", "003.png"]
    assert np.bincount(subset.test_labels).tolist() == [3, 3]


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
        ({"path": "lonely", "size": 8}, "1 class folders"),
        ({"path": "untrained", "size": 8}, "no folder train"),
    ):
        with pytest.raises(InputError, match=message):
            open_source("folder", tmp_path, options)


def test_folders_may_be_given_other_names(tmp_path):
    make(tmp_path, {"n01": 5, "n02": 5})
    options = {"path": str(tmp_path), "class_names": {"n02": "tench"}}
    assert open_source("folder", None, options).class_names == ["n01", "tench"]
    for names, said in (
        ({"n03": "shark"}, "no class folder 'n03'"),
        ({"n02": "n01"}, "two class folders would have one name"),
    ):
        with pytest.raises(InputError, match=said):
            open_source("folder", None, {**options, "class_names": names})


def test_a_class_folder_of_any_bytes_has_a_name_that_can_be_written(tmp_path):
    make(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n"))
    source = open_source("folder", tmp_path.parent, {"path": tmp_path.name, "test_fraction": 0.5})
    assert source.class_names == ["a", "caf\\udce9\\n"]
    assert len(levels(source.train)) == 4
    json.dumps(source.class_names, ensure_ascii=False).encode()
