"""A draw's rows of the features of all samples, found by part and place."""

from __future__ import annotations

import numpy as np
import pytest

from ltpipe.data import drawing
from ltpipe.data.subset import read_subset
from ltpipe.features import rows
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.utils.errors import InputError
from tests.support import run_job


def feature(part, index):
    """What the pool says of a sample, another number for each of every part."""
    index = np.asarray(index, np.float32)
    return np.stack([index, 1e4 * len(part) + index], axis=1)


def drawn(base, **settings):
    run_job(drawing, {"kind": "data", "dataset": {"source": "digits", **settings}}, base)
    return read_subset(base / "subset.h5")


def write_pool(folder, subset):
    folder.mkdir()
    stream = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        order = stream.permutation(len(getattr(subset, f"{split}_index")))
        index = getattr(subset, f"{split}_index")[order]
        write_features(
            folder / f"{split}.h5",
            features=feature(subset.part(split), index),
            labels=getattr(subset, f"{split}_labels")[order],
            index=index,
            class_names=subset.class_names,
            class_counts=subset.class_counts,
            attributes={"draw": subset.digest, "precision": "float32"},
        )


def test_rows_are_those_of_the_drawn_samples(tmp_path):
    write_pool(tmp_path / "pool", drawn(tmp_path / "whole"))
    subset = drawn(
        tmp_path / "draw", imbalance=20, max_count=40, val_fraction=0.2, class_order="shuffled"
    )
    out = tmp_path / "out"
    run_job(rows, {"kind": "features"}, out, data=tmp_path / "draw", pool=tmp_path / "pool")
    for split in ("train", "val", "test"):
        store = FeatureStore.open(out / f"{split}.h5")
        index = getattr(subset, f"{split}_index")
        assert len(index)
        np.testing.assert_array_equal(store.index, index)
        np.testing.assert_array_equal(store.features, feature(subset.part(split), index))
        np.testing.assert_array_equal(store.labels, getattr(subset, f"{split}_labels"))
        assert store.class_counts == subset.class_counts
        assert store.attributes["draw"] == subset.digest
    # Held-out samples come from the training part.
    assert subset.part("val") == "train"


def test_a_pool_that_lacks_samples_is_refused(tmp_path):
    write_pool(tmp_path / "pool", drawn(tmp_path / "small", imbalance=20, max_count=40))
    drawn(tmp_path / "draw", imbalance=2)
    with pytest.raises(InputError, match="lacks samples of the train part"):
        run_job(
            rows,
            {"kind": "features"},
            tmp_path / "out",
            data=tmp_path / "draw",
            pool=tmp_path / "pool",
        )
