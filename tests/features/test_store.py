"""The feature store: whole, checked, or refused in one line."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from ltpipe.features.store import Blocks, FeatureStore, write_features
from ltpipe.utils.errors import InputError


def contents(samples=7, dim=3, classes=4, views=2):
    stream = np.random.default_rng(0)
    return {
        "features": stream.normal(size=(samples, dim)).astype(np.float32),
        "labels": stream.integers(0, classes, samples),
        "index": stream.permutation(100)[:samples],
        "class_names": [f"class {c}" for c in range(classes)],
        "class_counts": list(range(1, classes + 1)),
        "views": stream.normal(size=(views, samples, dim)).astype(np.float16),
        "view_strength": np.linspace(0, 1, views).astype(np.float32),
        "logits": stream.normal(size=(samples, classes)).astype(np.float32),
        "text": stream.normal(size=(classes, dim)).astype(np.float32),
        "classifier_weight": stream.normal(size=(classes, dim)).astype(np.float32),
        "classifier_bias": stream.normal(size=classes).astype(np.float32),
    }


def test_everything_comes_back(tmp_path):
    values = contents()
    path = tmp_path / "a.h5"
    write_features(path, attributes={"backbone": "resnet8", "mean": [0.1, 0.2]}, **values)
    store = FeatureStore.open(path)
    for name, value in values.items():
        np.testing.assert_array_equal(getattr(store, name), value)
    assert store.features.dtype == np.float32
    assert store.labels.dtype == np.int64
    assert store.attributes["backbone"] == "resnet8"
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_absent_and_skipped_data_sets_are_none(tmp_path):
    values = contents()
    write_features(tmp_path / "a.h5", **values)
    store = FeatureStore.open(tmp_path / "a.h5", skip=["views"])
    assert store.views is None
    assert store.logits is not None
    for name in ("views", "view_strength", "logits", "text"):
        del values[name]
    write_features(tmp_path / "b.h5", **values)
    assert FeatureStore.open(tmp_path / "b.h5").logits is None


@pytest.mark.parametrize("sizes", [[21], [1] * 21, [5, 9, 7], [7, 7, 7], [20, 1]])
def test_views_streamed_in_blocks_of_any_size(tmp_path, sizes):
    values = contents(views=3)
    views = values.pop("views")
    flat = views.reshape(-1, 3)
    blocks = np.split(flat, np.cumsum(sizes)[:-1])
    values.pop("view_strength")
    write_features(tmp_path / "a.h5", views=Blocks(views.shape, "float16", blocks), **values)
    np.testing.assert_array_equal(FeatureStore.open(tmp_path / "a.h5").views, views)


def test_thousands_of_long_class_names(tmp_path):
    names = [f"{'very long name ' * 4}{c}" for c in range(8142)]
    write_features(
        tmp_path / "a.h5",
        features=np.zeros((1, 2), np.float32),
        labels=np.zeros(1, np.int64),
        class_names=names,
        class_counts=[1] * 8142,
    )
    assert FeatureStore.open(tmp_path / "a.h5").class_names == names


def test_the_layout_is_the_one_that_dlsa_reads(tmp_path):
    values = contents()
    write_features(tmp_path / "a.h5", **values)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["features"][:], values["features"])
        np.testing.assert_array_equal(file["labels"][:], values["labels"])
        assert file["features"].chunks is None
        assert file["features"].compression is None


def refused(path):
    with pytest.raises(InputError) as caught:
        FeatureStore.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_foreign_and_unfinished_files(tmp_path):
    assert "no such feature file" in refused(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    assert "not a readable feature file" in refused(tmp_path / "text.h5")
    with h5py.File(tmp_path / "dlsa.h5", "w") as file:
        file["features"] = np.zeros((2, 2))
    assert "source: features" in refused(tmp_path / "dlsa.h5")
    write_features(tmp_path / "a.h5", **contents())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["complete"]
    assert "was not finished" in refused(tmp_path / "a.h5")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    write_features(tmp_path / "a.h5", **contents())
    whole = (tmp_path / "a.h5").read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        refused(tmp_path / "cut.h5")


@pytest.mark.parametrize("name", ["features", "labels", "index", "views", "logits"])
def test_one_flipped_bit_is_noticed(tmp_path, name):
    path = tmp_path / "a.h5"
    write_features(path, **contents())
    with h5py.File(path, "r") as file:
        offset = file[name].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 1] ^= 4
    path.write_bytes(data)
    assert f"{name!r} is damaged" in refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((7, 3), np.nan, np.float32)}, "NaN"),
        ({"logits": np.full((7, 4), np.inf, np.float32)}, "infinite"),
        ({"labels": np.array([0, 1, 2, 3, 4, 0, 0])}, "label 4 is out of range"),
        ({"labels": np.array([0, 1, 2, 3, -1, 0, 0])}, "label -1 is out of range"),
        ({"labels": np.zeros(7)}, "whole numbers"),
        ({"labels": np.zeros(6, np.int64)}, "do not fit"),
        ({"views": np.zeros((2, 6, 3), np.float16)}, "do not fit features"),
        ({"views": np.zeros((7, 3), np.float16)}, "3 axes"),
        ({"class_counts": [1, 2]}, "class names"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        write_features(tmp_path / "a.h5", **{**contents(), **change})
    assert list(tmp_path.iterdir()) == []


def test_a_block_with_nan_leaves_nothing_behind(tmp_path):
    values = contents()
    del values["views"], values["view_strength"]
    bad = Blocks((1, 7, 3), "float16", [np.full((7, 3), 1e9, np.float32)])
    with pytest.raises(InputError, match="too large for float16"), np.errstate(over="ignore"):
        write_features(tmp_path / "a.h5", views=bad, **values)
    assert list(tmp_path.iterdir()) == []
