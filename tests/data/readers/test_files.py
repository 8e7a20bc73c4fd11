"""Which files a data set is made of: what a reader opens, and nothing that it does not."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltpipe.config.registry import registered
from ltpipe.data.opening import dataset_settings
from ltpipe.data.readers import cifar, voc
from ltpipe.utils.errors import InputError

OWN = {
    "folder": {"path": "set"},
    "list": {
        "path": "set",
        "train_list": "lists/a.txt",
        "test_list": "lists/b.txt",
        "class_names": "lists/names.txt",
    },
    "table": {"path": "set", "table": "photos.csv"},
    "tiny-imagenet": {"path": "set"},
    "voc": {"path": "set"},
    "medmnist": {"file": "mymnist"},
    "features": {"stores": {"a": {"train": "set/a.npz", "test": "set/b.npz"}}},
}


def settings(source, **changes):
    given = {} if source == "features" else {"input": {"size": [8, 8]}}
    return dataset_settings({"source": source, **given, **OWN.get(source, {}), **changes})


def images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def texts(folder, **contents):
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path = path.with_suffix(path.suffix or ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_folder(root):
    images(root / "set", "train/a/0.png", "train/b/x/1.JPG", "test/a/0.png", "test/b/0.png")
    images(root / "set", "other/a/0.png", "train/.cache/0.png", "train/a/.hidden.png")
    texts(root / "set", train__a__notes="x")


def write_list(root):
    images(root / "set", "a/0.png", "b/1.png", "b/2.png")
    texts(root, lists__a="a/0.png 0\nb/1.png 1\n", lists__b="a/0.png 0\n", lists__names="A\nB\n")
    texts(root, lists__other="b/2.png 1\n")


def write_table(root):
    images(root / "set", "a/0.png", "b/1.png", "b/2.png")
    texts(root, **{"photos.csv": "path,label\na/0.png,cat\nb/1.png,dog\n"})


def write_tiny(root):
    images(root / "set", "train/n01/images/0.png", "train/n02/images/0.png", "test/images/0.png")
    images(root / "set", "val/images/0.png", "val/images/1.png")
    texts(root / "set", wnids="n02\nn01\n", words="n01\tone\nn02\ttwo\n", train__n01__boxes="x")
    texts(root / "set", val__val_annotations="0.png\tn01\t0\n1.png\tn02\t0\n", winds="x")


def write_voc(root):
    images(root / "set", *(f"JPEGImages/2008_{n}.jpg" for n in range(5)))
    xml = "<annotation><object><name>{}</name></object></annotation>"
    for number, name in enumerate(["cat", "dog", "cat", "dog"]):
        path = root / f"set/Annotations/2008_{number}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml.format(name))
    main = {"train": "2008_0\n2008_1\n", "val": "2008_2\n2008_3\n", "trainval": "2008_4\n"}
    for name in voc.CLASS_NAMES:
        main |= {f"{name}_train": "2008_0 -1\n", f"{name}_val": "2008_2 -1\n"}
    for name, text in main.items():
        texts(root / "set/ImageSets/Main", **{name: text})


def write_medmnist(root):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((4, 8, 8), np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    (root / "medmnist").mkdir()
    np.savez(root / "medmnist/mymnist.npz", **arrays)
    np.savez(root / "other.npz", **arrays)


def write_features(root):
    (root / "set").mkdir()
    for name in ("a", "b", "c"):
        np.savez(root / f"set/{name}.npz", features=np.ones((2, 2)), labels=np.arange(2))


def write_cifar(root):
    (root / "cifar-10-batches-bin").mkdir()
    for name in [*cifar.LAYOUTS["cifar10"].train, "test_batch"]:
        (root / f"cifar-10-batches-bin/{name}.bin").write_bytes(bytes(10_000 * 3073))
    texts(root, **{"cifar-10-batches-bin__readme": "x"})


WRITE = {
    "folder": write_folder,
    "list": write_list,
    "table": write_table,
    "tiny-imagenet": write_tiny,
    "voc": write_voc,
    "medmnist": write_medmnist,
    "cifar10": write_cifar,
}


def opened(monkeypatch, root, action):
    """Return the files below `root` that `action` opens."""
    found = set()

    def note(file):
        if isinstance(file, str | Path) and Path(file).is_relative_to(root):
            found.add(Path(file))

    real, real_io, real_os, fromfile = builtins.open, io.open, os.open, np.fromfile
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda f, *a, **k: (note(f), real(f, *a, **k))[1])
        patch.setattr(io, "open", lambda f, *a, **k: (note(f), real_io(f, *a, **k))[1])
        patch.setattr(os, "open", lambda f, *a, **k: (note(f), real_os(f, *a, **k))[1])
        patch.setattr(np, "fromfile", lambda f, *a, **k: (note(f), fromfile(f, *a, **k))[1])
        action()
    return found


@pytest.mark.parametrize("source", WRITE)
def test_a_data_set_is_made_of_the_files_that_its_reader_opens(source, tmp_path, monkeypatch):
    root = tmp_path
    WRITE[source](root)
    named = settings(source)

    def everything():
        data = named.read(root)
        for part in (data.train, data.val, data.test):
            if part is not None:
                part.images.load(np.arange(len(part.labels)))

    files = dict(named.files(root))
    assert len(files) == len(set(files.values()))
    assert {Path(file) for file in files.values()} == opened(monkeypatch, root, everything)
    # Moved as a whole, the files bear the same names.
    moved = root.rename(root.with_name(f"{root.name}-moved"))
    assert list(dict(named.files(moved))) == list(files)


def test_embeddings_are_the_files_of_the_stores(tmp_path):
    root = tmp_path
    write_features(root)
    assert dict(settings("features").files(root)) == {
        "a/train": str(root / "set/a.npz"),
        "a/test": str(root / "set/b.npz"),
    }


def test_digits_come_with_the_package():
    assert list(settings("digits").files(None)) == []


@pytest.mark.parametrize("source", sorted(set(registered("source")) - {"digits"}))
def test_what_is_not_there_is_named(source, tmp_path):
    root = tmp_path
    with pytest.raises(InputError, match=r"does not exist|is not under"):
        list(settings(source).files(root))


def test_only_the_lists_of_the_variant_count(tmp_path):
    root = tmp_path
    write_voc(root)
    lists = {
        variant: {name for name, _ in settings("voc", variant=variant).files(root)}
        for variant in ("objects", "image-labels")
    }
    assert not any("ImageSets" in name for name in lists["objects"])
    assert not any("Annotations" in name for name in lists["image-labels"])
