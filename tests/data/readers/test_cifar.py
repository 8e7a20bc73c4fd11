import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ltpipe.data.readers import cifar
from ltpipe.utils.errors import InputError
from tests.support import open_source

LAYOUTS = {"cifar10": cifar._CIFAR10, "cifar100": cifar._CIFAR100}


def sparse(path, records, width):
    """Make a file of `records` records of zeros that takes no space, with two real records."""
    record = np.arange(width, dtype=np.uint64) % 251
    record[: width - 3072] = [3, 7][-(width - 3072) :]
    with path.open("wb") as file:
        file.write(record.astype(np.uint8).tobytes())
        file.truncate(records * width)
    return record[width - 3072 :].reshape(3, 32, 32).transpose(1, 2, 0)


def make_binary(folder, layout):
    folder.mkdir(exist_ok=True)
    for name, records in {**layout.train, **layout.test}.items():
        image = sparse(folder / f"{name}.bin", records, layout.label_bytes + 3072)
    return image


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_binary_layout(tmp_path, name, direct):
    layout = LAYOUTS[name]
    folder = tmp_path / layout.binary_folder
    image = make_binary(folder, layout)
    source = open_source(name, folder if direct else tmp_path, {})
    assert source.class_names == list(layout.class_names)
    assert len(source.train.images) == len(source.train.labels) == 50_000
    assert len(source.test.images) == len(source.test.labels) == 10_000
    # The label byte is the last one before the pixels: the fine label of CIFAR-100.
    assert source.test.labels[0] == 7
    assert source.test.labels[1:].max() == 0
    assert source.train.images.shape == (32, 32, 3)
    np.testing.assert_array_equal(source.test.images.load(np.array([0]))[0], image)


def test_class_names():
    assert len(set(cifar._CIFAR10.class_names)) == 10
    names = cifar._CIFAR100.class_names
    assert len(names) == 100
    assert list(names) == sorted(set(names))


@pytest.mark.parametrize("size", [30_729_999, 30_730_000 - 3073, 0, 30_730_001])
def test_truncated_binary_file_says_both_sizes(tmp_path, size):
    make_binary(tmp_path, cifar._CIFAR10)
    os.truncate(tmp_path / "data_batch_3.bin", size)
    with pytest.raises(
        InputError, match=rf"data_batch_3\.bin has {size} bytes but 30730000 are expected"
    ):
        open_source("cifar10", tmp_path, {})


def test_missing_batch_is_named(tmp_path):
    make_binary(tmp_path, cifar._CIFAR10)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(InputError, match=r"test_batch\.bin is missing"):
        open_source("cifar10", tmp_path, {})


def test_label_out_of_range(tmp_path):
    make_binary(tmp_path, cifar._CIFAR10)
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.write(bytes([10]))
    with pytest.raises(InputError, match=r"data_batch_2\.bin has labels outside 0 \.\. 9"):
        open_source("cifar10", tmp_path, {})


def small(monkeypatch, name, records=20):
    """Let the files of `name` have few records, so that a pickle of them is small."""
    from dataclasses import replace

    layout = LAYOUTS[name]
    layout = replace(
        layout, train=dict.fromkeys(layout.train, records), test=dict.fromkeys(layout.test, records)
    )
    monkeypatch.setitem(cifar.LAYOUTS, name, layout)
    return layout


def make_python(folder, layout, records=20):
    folder.mkdir()
    pixels, labels = {}, {}
    random = np.random.default_rng(0)
    for name in {**layout.train, **layout.test}:
        pixels[name] = random.integers(0, 256, (records, 3072), dtype=np.uint8)
        labels[name] = random.integers(0, len(layout.class_names), records).tolist()
        batch = {b"data": pixels[name], layout.label_key: labels[name], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return pixels, labels


@pytest.mark.parametrize("name", LAYOUTS)
def test_python_layout(tmp_path, monkeypatch, name):
    layout = small(monkeypatch, name)
    pixels, labels = make_python(tmp_path / layout.python_folder, layout)
    source = open_source(name, tmp_path, {})
    for part, files in ((source.train, layout.train), (source.test, layout.test)):
        assert part.labels.tolist() == [label for file in files for label in labels[file]]
        expected = np.concatenate([pixels[file] for file in files]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(
            part.images.load(np.arange(len(part.images))), np.moveaxis(expected, 1, 3)
        )


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_python_layout_runs_no_code_from_a_pickle(tmp_path, monkeypatch):
    layout = small(monkeypatch, "cifar10")
    make_python(tmp_path / layout.python_folder, layout)
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps({b"data": Malicious(), b"labels": []}, protocol=2)
    (tmp_path / layout.python_folder / "data_batch_2").write_bytes(evil)
    with pytest.raises(InputError, match=r"data_batch_2 is not a whole .*mkdir"):
        open_source("cifar10", tmp_path, {})
    assert not Path("owned").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_python_file_is_named(tmp_path, monkeypatch, keep):
    layout = small(monkeypatch, "cifar10")
    make_python(tmp_path / layout.python_folder, layout)
    os.truncate(tmp_path / layout.python_folder / "data_batch_4", keep)
    with pytest.raises(InputError, match=rf"data_batch_4 is not a whole .* {keep} bytes"):
        open_source("cifar10", tmp_path, {})


def test_python_file_of_another_shape_is_refused(tmp_path, monkeypatch):
    layout = small(monkeypatch, "cifar10")
    make_python(tmp_path / layout.python_folder, layout, records=19)
    with pytest.raises(InputError, match=r"data_batch_1 holds uint8 pixels \(19, 3072\)"):
        open_source("cifar10", tmp_path, {})


def serve(monkeypatch, tmp_path, name, content, md5=None):
    """Let the download of `name` find `content` at a file URL."""
    from dataclasses import replace

    (tmp_path / "server").mkdir()
    layout = cifar.LAYOUTS[name]
    (tmp_path / "server" / layout.archive).write_bytes(content)
    md5 = md5 or hashlib.md5(content).hexdigest()
    monkeypatch.setitem(cifar.LAYOUTS, name, replace(layout, archive_md5=md5))
    monkeypatch.setattr(cifar, "_URL", (tmp_path / "server").as_uri() + "/")


def archive(folder, name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=name)
    return buffer.getvalue()


def test_download_is_checked_unpacked_and_found_again(tmp_path, monkeypatch):
    layout = small(monkeypatch, "cifar10")
    make_binary(tmp_path / "made", layout)
    serve(monkeypatch, tmp_path, "cifar10", archive(tmp_path / "made", layout.binary_folder))
    root = tmp_path / "root"
    assert len(open_source("cifar10", root, {}).train.labels) == 100
    assert [path.name for path in root.iterdir()] == [layout.binary_folder]
    monkeypatch.setattr(cifar, "_URL", "file:///absent/")
    assert len(open_source("cifar10", root, {}).train.labels) == 100


def test_missing_data_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "_URL", "file:///absent/")
    with pytest.raises(
        InputError,
        match=rf"CIFAR-100 is not under {tmp_path} .*put the folder cifar-100-binary or "
        rf"cifar-100-python into {tmp_path} \(data\.root or LTPIPE_DATA",
    ):
        open_source("cifar100", tmp_path, {})


def test_download_with_another_checksum_leaves_nothing(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path, "cifar10", b"not the archive", md5="0" * 32)
    root = tmp_path / "root"
    with pytest.raises(InputError, match="MD5 is"):
        open_source("cifar10", root, {})
    assert list(root.iterdir()) == []


def test_archive_that_escapes_its_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    serve(monkeypatch, tmp_path, "cifar10", archive(tmp_path / "file", "../escaped"))
    with pytest.raises(InputError, match="outside"):
        open_source("cifar10", tmp_path / "root", {})
    assert not (tmp_path / "root/escaped").exists()


@pytest.mark.realdata
def test_real_cifar10_agrees_with_its_image_folder(real_data):
    binary = open_source("cifar10", real_data, {})
    folder = open_source("folder", real_data, {"path": "cifar10-images", "size": 32})
    assert folder.class_names == binary.class_names
    ours = binary.test.images.load(np.arange(10_000))
    theirs = folder.test.images.load(np.arange(10_000))
    for label in range(10):
        pair = (ours[binary.test.labels == label], theirs[folder.test.labels == label])
        digests = [sorted(image.tobytes() for image in images) for images in pair]
        assert digests[0] == digests[1]
