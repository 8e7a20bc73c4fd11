import shutil

import numpy as np
import pytest
from PIL import Image

from ltpipe.compat import import_torchvision
from ltpipe.data.longtail import class_counts
from ltpipe.data.subset import draw
from ltpipe.utils.errors import InputError
from tests.support import open_source

# Not in sorted order, as in the published file.
WNIDS = ["n03", "n01", "n02"]
WORDS = {"n01": "goldfish, Carassius auratus", "n02": "crane", "n03": "crane", "n99": "entity"}
OPTIONS = {"size": 64}


def save(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (level, level, 0)).save(path, "PNG")


@pytest.fixture
def root(tmp_path):
    """Tiny-ImageNet's layout: grey levels 10 c + i in training class c, 100 + i in image val_i."""
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        for number in range(1 + int(wnid[-1])):
            # 10 sorts before 2.
            name = f"{wnid}_{(2, 10, 30, 4)[number]}.JPEG"
            save(folder / "train" / wnid / "images" / name, 10 * int(wnid[-1]) + number)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("n_0.JPEG\t0\t0\t1\t1\n")
    lines = []
    for number, wnid in enumerate(["n02", "n01", "n03", "n01"]):
        save(folder / f"val/images/val_{number}.JPEG", 100 + number)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text("".join(f"{key}\t{WORDS[key]}\n" for key in sorted(WORDS)))
    return tmp_path


def levels(part):
    return part.images.load(np.arange(len(part.images)))[:, 0, 0, 0].tolist()


def test_classes_are_the_sorted_wordnet_ids(root):
    source = open_source("tiny-imagenet", root, OPTIONS)
    assert source.class_names == ["goldfish", "crane (n02)", "crane (n03)"]
    assert source.val is None
    assert source.train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert source.train.labels.dtype == np.int64
    # Files are in the order of their names: _10, _2, _30, _4.
    assert levels(source.train) == [11, 10, 21, 20, 22, 31, 30, 32, 33]
    assert source.test.labels.tolist() == [0, 0, 1, 2]
    assert levels(source.test) == [101, 103, 100, 102]
    assert source.train.images.shape == (64, 64, 3)


def test_training_images_come_in_the_order_of_an_image_folder(root):
    ours = open_source("tiny-imagenet", root, OPTIONS).train.images.paths
    theirs = import_torchvision().datasets.ImageFolder(root / "tiny-imagenet-200/train")
    assert [str(path) for path in ours] == [path for path, _ in theirs.samples]


def test_class_folders_below_val_are_read_alike(root):
    before = open_source("tiny-imagenet", root, OPTIONS).test
    val = root / "tiny-imagenet-200/val"
    for number, wnid in enumerate(["n02", "n01", "n03", "n01"]):
        (val / wnid).mkdir(exist_ok=True)
        (val / f"images/val_{number}.JPEG").rename(val / wnid / f"val_{number}.JPEG")
    shutil.rmtree(val / "images")
    (val / "val_annotations.txt").unlink()
    after = open_source("tiny-imagenet", root, OPTIONS).test
    assert after.labels.tolist() == before.labels.tolist()
    assert levels(after) == [101, 103, 100, 102]


def test_without_words_classes_are_called_by_their_id(root):
    (root / "tiny-imagenet-200/words.txt").unlink()
    assert open_source("tiny-imagenet", root, OPTIONS).class_names == sorted(WNIDS)


def test_path_and_size_are_options(root):
    (root / "tiny-imagenet-200").rename(root / "moved")
    source = open_source("tiny-imagenet", root, {"path": "moved", "size": [32, 16], "channels": 1})
    assert source.train.images.shape == (32, 16, 1)
    with pytest.raises(InputError, match="tiny-imagenet-200 does not exist"):
        open_source("tiny-imagenet", root, OPTIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is not 'image<tab>id<tab>box'"),
        ("val_2.JPEG", "is not 'image<tab>id<tab>box'"),
        ("val_2.JPEG n03 0 0 63 63", "is not 'image<tab>id<tab>box'"),
        ("val_2.JPEG\tn04\t0\t0\t63\t63", r"n04 is no class of wnids\.txt"),
        ("val_9.JPEG\tn03\t0\t0\t63\t63", r"val_9\.JPEG does not exist"),
        ("val_1.JPEG\tn01\t0\t0\t63\t63", r"val_1\.JPEG is annotated twice"),
    ],
)
def test_bad_annotation_is_named_by_file_and_line(root, line, message):
    path = root / "tiny-imagenet-200/val/val_annotations.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(InputError, match=rf"val_annotations\.txt:3: .*{message}"):
        open_source("tiny-imagenet", root, OPTIONS)


def test_image_without_annotation(root):
    path = root / "tiny-imagenet-200/val/val_annotations.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match=r"no line for val_3\.JPEG \(images in all: 4, annot"):
        open_source("tiny-imagenet", root, OPTIONS)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "wnids.txt").unlink(), r"wnids\.txt can't be read"),
        (lambda f: (f / "wnids.txt").write_text("n01\n"), "names 1 classes"),
        (lambda f: (f / "wnids.txt").write_text("n01\nn02\nn01\n"), "names n01 twice"),
        (lambda f: (f / "wnids.txt").write_bytes(b"\xff\n"), r"wnids\.txt can't be read"),
        (lambda f: (f / "words.txt").write_text("n01 fish\n"), r"words\.txt:1: 'n01 fish' is not"),
        (lambda f: (f / "val/val_annotations.txt").unlink(), r"annotations\.txt can't be read"),
        (lambda f: shutil.rmtree(f / "val"), "val is missing"),
        (lambda f: shutil.rmtree(f / "train"), "train is missing"),
        (lambda f: shutil.rmtree(f / "train/n02"), r"train/n02 has no image"),
        (lambda f: (f / "train/n07").mkdir(), r"train/n07 is no class of wnids\.txt"),
    ],
)
def test_damaged_layout(root, break_it, message):
    break_it(root / "tiny-imagenet-200")
    with pytest.raises(InputError, match=message):
        open_source("tiny-imagenet", root, OPTIONS)


@pytest.mark.realdata
@pytest.mark.parametrize(("imbalance", "total"), [(50, 25_082), (100, 21_549), (200, 18_836)])
def test_real_long_tails(real_data, imbalance, total):
    source = open_source("tiny-imagenet", real_data, OPTIONS)
    subset = draw(
        source,
        imbalance=imbalance,
        profile="exp",
        max_count=500,
        seed=0,
        val_fraction=0.0,
        class_order="natural",
    )
    assert len(subset.train_index) == len(set(subset.train_index)) == total
    assert subset.class_counts == class_counts(200, 500, imbalance)
    assert np.bincount(subset.test_labels).tolist() == [50] * 200
    assert len(set(source.class_names)) == 200
    assert source.class_names[0] == "goldfish"
    for part, position in ((source.train, subset.train_index[-1]), (source.test, 9_999)):
        assert part.images.paths[position].is_file()
        image = part.images.load(np.array([position]))
        assert image.shape == (1, 64, 64, 3)
        assert image.std() > 0
