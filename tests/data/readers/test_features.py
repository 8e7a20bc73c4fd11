import h5py
import numpy as np
import pytest

from ltpipe.data.readers.features import read_features
from ltpipe.utils.errors import InputError

FEATURES = np.random.default_rng(0).normal(size=(6, 4))
LABELS = np.array([0, 1, 2, 2, 1, 0])


def write(path, features=FEATURES, labels=LABELS, key="labels"):
    if path.suffix == ".npz":
        np.savez(path, **{"features": features, key: labels})
    else:
        with h5py.File(path, "w") as file:
            file["features"], file[key] = features, labels
    return path


@pytest.mark.parametrize("key", ["labels", "label"])
@pytest.mark.parametrize("name", ["a.h5", "a.hdf5", "a.npz"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32])
def test_files_with_both_arrays(tmp_path, name, key, kind):
    path = write(tmp_path / name, labels=LABELS.astype(kind), key=key)
    features, labels = read_features(path)
    assert (features.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(features, FEATURES.astype(np.float32))
    np.testing.assert_array_equal(labels, LABELS)


def test_npy_pair_with_column_labels(tmp_path):
    np.save(tmp_path / "x.npy", FEATURES.astype(np.float16))
    np.save(tmp_path / "y.npy", LABELS[:, None])
    features, labels = read_features(tmp_path / "x.npy", tmp_path / "y.npy")
    np.testing.assert_allclose(features, FEATURES, atol=2e-3)
    np.testing.assert_array_equal(labels, LABELS)


def spoiled(value):
    features = FEATURES.copy()
    features[3, 1] = value
    return features


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (spoiled(np.nan), LABELS, "row 3 are NaN or infinite"),
        (spoiled(np.inf), LABELS, "row 3 are NaN or infinite"),
        # Finite in double precision, infinite in the float32 that is kept.
        (spoiled(1e39), LABELS, "row 3 are NaN or infinite"),
        (FEATURES[0], LABELS, r"shape \(4,\), \(N, D\) numbers"),
        (FEATURES[:0], LABELS[:0], r"shape \(0, 4\)"),
        (FEATURES.astype("S"), LABELS, r"\(N, D\) numbers"),
        (FEATURES, LABELS[:5], r"shape \(5,\), \(6,\) integers"),
        (FEATURES, np.eye(6), r"shape \(6, 6\)"),
        (FEATURES, LABELS - 1, "label -1 of row 0"),
        (FEATURES, LABELS + 0.5, "label 0.5 of row 0"),
        (FEATURES, np.where(LABELS == 2, np.nan, LABELS), "label nan of row 2"),
    ],
)
@pytest.mark.parametrize("name", ["bad.h5", "bad.npz"])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bad_arrays_are_refused(tmp_path, name, features, labels, message):
    with pytest.raises(InputError, match=rf"bad\.\w+: .*{message}"):
        read_features(write(tmp_path / name, features, labels))


def test_missing_array_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no array labels or label, only features, y"):
        read_features(write(tmp_path / "a.npz", key="y"))


@pytest.mark.parametrize("name", ["a.h5", "a.npz"])
@pytest.mark.parametrize("keep", [0, 0.6])
def test_damaged_file_is_named(tmp_path, name, keep):
    path = write(tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InputError, match=rf"{name} can't be read"):
        read_features(path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.array([{}], dtype=object), labels=np.array([0]))
    with pytest.raises(InputError, match="can't be read"):
        read_features(tmp_path / "a.npz")


def test_other_mistakes(tmp_path):
    np.save(tmp_path / "x.npy", FEATURES)
    (tmp_path / "x.csv").write_text("1,2")
    both = write(tmp_path / "a.npz")
    for arguments, message in (
        ((tmp_path / "absent.h5",), r"absent\.h5 does not exist"),
        ((tmp_path / "x.npy",), "a labels file belongs to a .npy"),
        ((both, tmp_path / "x.npy"), "a labels file belongs to a .npy"),
        ((tmp_path / "x.npy", tmp_path / "absent.npy"), r"absent\.npy"),
        ((tmp_path / "x.csv",), "are read from .h5"),
    ):
        with pytest.raises(InputError, match=message):
            read_features(*arguments)
