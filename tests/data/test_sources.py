import numpy as np
import pytest

from ltpipe.config.registry import registered
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root, locate
from tests.support import open_source


def test_unknown_source():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        open_source("cifar-10", None, {})


@pytest.mark.parametrize("name", sorted(set(registered("source")) - {"features"}))
def test_every_source_refuses_an_unknown_option(name, tmp_path):
    with pytest.raises(InputError, match="unknown key 'sise'"):
        open_source(name, tmp_path, {"sise": 3})


def test_data_root_is_the_setting_then_the_variable_then_data_raw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    assert data_root(None) is None
    (tmp_path / "data/raw").mkdir(parents=True)
    assert data_root(None).resolve() == tmp_path / "data/raw"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("LTPIPE_DATA", str(tmp_path / "a"))
    assert data_root(None) == tmp_path / "a"
    assert data_root(str(tmp_path / "b")) == tmp_path / "b"
    with pytest.raises(InputError, match=r"data\.root names absent"):
        data_root("absent")
    monkeypatch.setenv("LTPIPE_DATA", "absent")
    with pytest.raises(InputError, match="LTPIPE_DATA names absent"):
        data_root(None)


def test_locate_prefers_the_root_and_names_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "x").mkdir()
    assert locate("x", root).resolve() == tmp_path / "x"
    (root / "x").mkdir()
    assert locate("x", root) == root / "x"
    assert locate(str(tmp_path / "x"), root) == tmp_path / "x"
    with pytest.raises(InputError, match=r"looked for .*root/y and y .*LTPIPE_DATA"):
        locate("y", root)


def test_digits_split_is_fixed_and_disjoint():
    first, second = (open_source("digits", None, {}) for _ in range(2))
    assert first.class_names == list("0123456789")
    assert first.val is None
    assert np.bincount(first.test.labels).tolist() == [50] * 10
    assert len(first.train.images) == len(first.train.labels) == 1297
    assert np.bincount(first.train.labels).min() >= 120
    for part, again in ((first.train, second.train), (first.test, second.test)):
        everything = np.arange(len(part.images))
        np.testing.assert_array_equal(part.images.load(everything), again.images.load(everything))
        assert part.labels.dtype == np.int64


def test_digits_pixels_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = open_source("digits", None, {})
    assert source.train.images.shape == (8, 8, 1)
    ours = []
    for part in (source.train, source.test):
        pixels = part.images.load(np.arange(len(part.images))).reshape(-1, 64)
        ours += [(*row, label) for row, label in zip(pixels.tolist(), part.labels, strict=True)]
    data, target = load_digits(return_X_y=True)
    theirs = [
        (*(int(value / 16 * 255 + 0.5) for value in row), label)
        for row, label in zip(data, target, strict=True)
    ]
    assert sorted(ours) == sorted(theirs)
