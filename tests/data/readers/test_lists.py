import numpy as np
import pytest
from PIL import Image

from ltpipe.data.readers.lists import read_list
from ltpipe.utils.errors import InputError
from tests.support import open_source


@pytest.fixture
def root(tmp_path):
    for level, name in enumerate(["train/x/0.png", "train/y y/1.png", "val/x/2.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (level * 50,) * 3).save(path)
    (tmp_path / "train.txt").write_text("train/y y/1.png 1\ntrain/x/0.png 0\n")
    (tmp_path / "test.txt").write_text("val/x/2.png 0\r\nval/x/2.png 1\r\n")
    (tmp_path / "names.txt").write_text("class x\nclass y\n")
    return tmp_path


OPTIONS = {"train_list": "train.txt", "test_list": "test.txt", "path": "images", "size": 8}


def test_lists(root):
    source = open_source(
        "list", root, OPTIONS | {"test_list": "test.txt", "class_names": "names.txt"}
    )
    assert source.class_names == ["class x", "class y"]
    assert source.val is None
    assert source.train.labels.tolist() == [1, 0]
    assert source.train.images.load(np.array([0, 1]))[:, 0, 0, 0].tolist() == [50, 0]
    assert source.test.labels.tolist() == [0, 1]
    assert source.test.images.load(np.array([1]))[0, 0, 0, 0] == 100


def test_classes_are_numbered_without_names(root):
    assert open_source("list", root, OPTIONS).class_names == ["0", "1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg", "is not 'relative/path label'"),
        ("", "is not 'relative/path label'"),
        ("a.jpg one", "is not 'relative/path label'"),
        ("a.jpg 1.5", "is not 'relative/path label'"),
        ("a.jpg --1", "is not 'relative/path label'"),
        ("a.jpg -1", "label -1; labels count from 0"),
        ("a.jpg 2", "label 2; labels count from 0 to 1"),
    ],
)
def test_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    (tmp_path / "bad.txt").write_text(f"a.jpg 0\n{line}\na.jpg 1\n")
    with pytest.raises(InputError, match=rf"bad\.txt:2: .*{message}"):
        read_list(tmp_path / "bad.txt", 2)


def test_test_label_that_training_lacks(root):
    (root / "test.txt").write_text("val/x/2.png 0\nval/x/2.png 2\n")
    with pytest.raises(InputError, match=r"test\.txt:2: label 2"):
        open_source("list", root, OPTIONS | {"test_list": "test.txt"})


def test_other_mistakes(root):
    (root / "empty.txt").write_text("")
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (root / "gap.txt").write_text("x\n\ny\n")
    for options, message in (
        ({"path": "images", "test_list": "test.txt"}, "train_list: this key is required"),
        (OPTIONS | {"train_list": "absent.txt"}, r"absent\.txt does not exist"),
        (OPTIONS | {"train_list": "empty.txt"}, r"empty\.txt is empty"),
        (OPTIONS | {"train_list": "binary.txt"}, r"binary\.txt can't be read as text"),
        (OPTIONS | {"class_names": "gap.txt"}, r"gap\.txt:2: a class has no name"),
        (OPTIONS | {"path": "."}, "path must name the folder"),
    ):
        with pytest.raises(InputError, match=message):
            open_source("list", root, options)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "total", "classes", "smallest", "largest"),
    [
        ("Places_LT_train", 62_500, 365, 5, 4980),
        ("Places_LT_val", 7_300, 365, 20, 20),
        ("Places_LT_test", 36_500, 365, 100, 100),
        ("ImageNet_LT_val", 20_000, 1000, 20, 20),
        ("ImageNet_LT_test", 50_000, 1000, 50, 50),
        ("iNaturalist18_val", 24_426, 8142, 3, 3),
    ],
)
def test_published_lists(real_data, name, total, classes, smallest, largest):
    files, labels = read_list(real_data / "splits" / f"{name}.txt", classes)
    counts = np.bincount(labels)
    assert (len(files), len(counts), counts.min(), counts.max()) == (
        total,
        classes,
        smallest,
        largest,
    )
    if name == "Places_LT_train":
        assert counts[:10].tolist() == [219, 20, 115, 86, 229, 33, 25, 4980, 108, 2612]
        assert files[0] == "train/airfield/00004851.jpg"
