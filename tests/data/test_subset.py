import hashlib
import json

import h5py
import numpy as np
import pytest

from ltpipe.data.images import ArrayImages
from ltpipe.data.longtail import class_counts, draw_subset
from ltpipe.data.sources import Part, Source
from ltpipe.data.subset import draw, draw_from_labels, read_subset, write_subset
from ltpipe.utils.errors import InputError
from tests.support import open_source

SETTINGS = {
    "imbalance": 10,
    "profile": "exp",
    "max_count": None,
    "seed": 0,
    "val_fraction": 0.0,
    "class_order": "natural",
}
NAMES = ["a", "b", "c", "d"]


def part(labels):
    return Part(ArrayImages(np.zeros((len(labels), 2, 2, 1), np.uint8)), np.asarray(labels))


@pytest.fixture
def source():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [60, 50, 40, 70]))
    return Source(NAMES, part(labels), part([0, 1, 2, 3]), part([3, 2, 1, 0, 0]))


def test_digits_draw_is_the_default_long_tail():
    subset = draw(
        open_source("digits", None, {}), **SETTINGS | {"imbalance": 100, "max_count": 120}
    )
    assert subset.class_counts == [120, 71, 43, 25, 15, 9, 5, 3, 2, 1]
    assert len(subset.test_index) == 500


def test_natural_draw(source):
    subset = draw(source, **SETTINGS)
    counts = class_counts(4, 40, 10)
    assert subset.class_counts == counts
    np.testing.assert_array_equal(
        subset.train_index, draw_subset(source.train.labels, counts, seed=0)
    )
    np.testing.assert_array_equal(subset.train_labels, source.train.labels[subset.train_index])
    assert subset.val_part == "val"
    np.testing.assert_array_equal(subset.val_labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(subset.val_index, np.arange(4))
    np.testing.assert_array_equal(subset.test_index, np.arange(5))
    np.testing.assert_array_equal(subset.test_labels, [3, 2, 1, 0, 0])
    expected = hashlib.sha256(subset.train_index.tobytes() + subset.train_labels.tobytes())
    assert subset.digest == expected.hexdigest()[:16]


def test_everything_is_taken_without_imbalance(source):
    subset = draw(source, **SETTINGS | {"imbalance": None})
    assert subset.class_counts == [60, 50, 40, 70]
    np.testing.assert_array_equal(subset.train_index, np.arange(220))


def test_validation_is_carved_from_the_drawn_samples(source):
    whole = draw(source, **SETTINGS)
    subset = draw(source, **SETTINGS | {"val_fraction": 0.1})
    assert subset.val_part == "train"
    assert np.bincount(subset.val_labels).tolist() == [max(1, n // 10) for n in whole.class_counts]
    assert (np.array(subset.class_counts) + np.bincount(subset.val_labels)).tolist() == (
        whole.class_counts
    )
    assert set(subset.train_index) | set(subset.val_index) == set(whole.train_index)
    assert not set(subset.train_index) & set(subset.val_index)
    np.testing.assert_array_equal(subset.val_labels, source.train.labels[subset.val_index])


def test_shuffled_class_order_moves_the_tail(source):
    counts = {
        tuple(draw(source, **SETTINGS | {"class_order": "shuffled", "seed": s}).class_counts)
        for s in range(6)
    }
    assert len(counts) > 1
    assert {tuple(sorted(c, reverse=True)) for c in counts} == {tuple(class_counts(4, 40, 10))}
    order = np.random.RandomState(3).permutation(4)
    subset = draw(source, **SETTINGS | {"class_order": "shuffled", "seed": 3})
    assert [subset.class_counts[c] for c in order] == class_counts(4, 40, 10)


def test_seed_decides_the_draw(source):
    digests = [draw(source, **SETTINGS | {"seed": s}).digest for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_labels_alone_are_enough():
    subset = draw_from_labels(NAMES, np.repeat(np.arange(4), 10), None, None, **SETTINGS)
    assert subset.class_counts == class_counts(4, 10, 10)
    assert len(subset.val_index) == len(subset.test_index) == 0
    assert subset.val_part == "train"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_order": "shufled"}, "did you mean 'shuffled'"),
        ({"max_count": 61}, r"class 0 \(a\) has 60 training samples but 61"),
        ({"imbalance": None, "max_count": 5}, "max_count needs imbalance"),
        ({"profile": "ex"}, "unknown profile"),
        ({"val_fraction": 1.5}, "split fraction"),
    ],
)
def test_settings_that_cannot_be_met(source, settings, message):
    with pytest.raises(InputError, match=message):
        draw(source, **SETTINGS | settings)


def test_class_without_training_sample_is_named():
    for imbalance in (None, 2):
        with pytest.raises(InputError, match=r"class 1 \(b\) has no training sample"):
            draw(Source(["a", "b"], part([0, 0])), **SETTINGS | {"imbalance": imbalance})


def test_label_without_a_name_is_refused():
    with pytest.raises(InputError, match="test labels reach from 0 to 2"):
        draw(Source(["a", "b"], part([0, 1]), test=part([0, 2])), **SETTINGS | {"imbalance": 1})


ARRAYS = ("train_index", "train_labels", "val_index", "val_labels", "test_index", "test_labels")


@pytest.mark.parametrize("imbalance", [10, None])
def test_file_round_trip(source, tmp_path, imbalance):
    subset = draw(source, **SETTINGS | {"imbalance": imbalance, "val_fraction": 0.2, "seed": 5})
    write_subset(tmp_path / "deep/subset.h5", subset)
    again = read_subset(tmp_path / "deep/subset.h5")
    for name, value in vars(subset).items():
        if name in ARRAYS:
            assert getattr(again, name).dtype == np.int64
            np.testing.assert_array_equal(getattr(again, name), value)
        else:
            assert getattr(again, name) == value
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["subset.h5"]


def test_file_layout_for_other_readers(source, tmp_path):
    subset = draw(source, **SETTINGS)
    write_subset(tmp_path / "subset.h5", subset)
    with h5py.File(tmp_path / "subset.h5") as file:
        assert file["class_counts"][()].tolist() == subset.class_counts
        assert json.loads(file.attrs["class_names"]) == NAMES
        assert file.attrs["format"] == "ltpipe-subset/1"
        assert file.attrs["complete"]


def test_same_draw_writes_the_same_bytes(source, tmp_path):
    for name in ("a.h5", "b.h5"):
        write_subset(tmp_path / name, draw(source, **SETTINGS))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_many_long_class_names_fit(tmp_path):
    names = [f"Genus species number {i:06d} é" for i in range(8142)]
    subset = draw_from_labels(names, np.arange(8142), None, None, **SETTINGS | {"imbalance": None})
    write_subset(tmp_path / "subset.h5", subset)
    assert read_subset(tmp_path / "subset.h5").class_names == names


def test_damaged_and_foreign_files_are_refused(source, tmp_path):
    path = tmp_path / "subset.h5"
    write_subset(path, draw(source, **SETTINGS))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not HDF5"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"subset\.h5 can't be read"):
            read_subset(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["test_index"][0] += 1
    with pytest.raises(InputError, match=r"subset\.h5 is damaged"):
        read_subset(path)
    for damage in ("class_counts", "class_names", "val_part", "seed", "imbalance", "profile"):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            if damage in file:
                file[damage][0] += 1
            else:
                file.attrs[damage] = {"class_names": '["x"]', "seed": 9}.get(damage, "1")
        with pytest.raises(InputError, match=r"subset\.h5 is damaged"):
            read_subset(path)
    with h5py.File(path, "w") as file:
        file["features"] = [1]
    with pytest.raises(InputError, match="not a complete ltpipe-subset/1"):
        read_subset(path)
    with pytest.raises(InputError, match=r"absent\.h5"):
        read_subset(tmp_path / "absent.h5")


@pytest.mark.realdata
@pytest.mark.parametrize(("imbalance", "total"), [(10, 20431), (100, 12406), (200, 11203)])
def test_real_cifar10_long_tail(real_data, imbalance, total):
    subset = draw(open_source("cifar10", real_data, {}), **SETTINGS | {"imbalance": imbalance})
    assert len(subset.train_index) == len(set(subset.train_index)) == total
    assert subset.class_counts == class_counts(10, 5000, imbalance)
    assert len(subset.test_index) == 10_000
