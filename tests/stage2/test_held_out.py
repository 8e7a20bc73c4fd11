"""Held-out samples: a data set's own, a second backbone's, or split off frozen features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.manifest import write_manifest
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.stage2.core.held_out import fold_files, folds_of, held_out_files

COUNTS = [40, 20, 5, 1]
LABELS = np.repeat(np.arange(4), COUNTS)


def job_of(base, spec, held_out=0):
    """A job with one backbone's features, of which the last `held_out` are held out."""
    folder = base / "features"
    stream = np.random.default_rng(0)
    features = stream.normal(size=(len(LABELS), 3)).astype(np.float32)
    for split, rows in (("train", slice(None)), ("val", slice(0, held_out))):
        write_features(
            folder / f"{split}.h5",
            features=features[rows],
            labels=LABELS[rows],
            class_names=list("abcd"),
            class_counts=COUNTS,
            views=features[None, rows].astype(np.float16),
            text=np.eye(4, 3, dtype=np.float32),
            attributes={"backbone": "frozen"},
        )
    write_manifest(folder, spec=spec, modules={}, inputs={}, run_info={})
    return Job({}, {"features.features": folder}, base, torch.device("cpu"))


def test_features_of_a_frozen_network_are_split(tmp_path):
    job = job_of(tmp_path, {"kind": "features"})
    train, val = (
        FeatureStore.open(path) for path in held_out_files(job, "features", tmp_path / "scratch")
    )
    assert sorted([*train.index, *val.index]) == list(range(len(LABELS)))
    # A tenth of each class, at least one, but never a class's last.
    assert np.bincount(val.labels, minlength=4).tolist() == [4, 2, 1, 0]
    assert train.class_counts == np.bincount(train.labels).tolist() == [36, 18, 4, 1]
    whole = FeatureStore.open(tmp_path / "features/train.h5")
    for part in (train, val):
        np.testing.assert_array_equal(part.features, whole.features[part.index])
        np.testing.assert_array_equal(part.views, whole.views[:, part.index])
        np.testing.assert_array_equal(part.text, whole.text)
        assert part.attributes["backbone"] == "frozen"


@pytest.mark.parametrize(
    ("spec", "held_out"), [({"kind": "features", "seed": 0}, 0), ({"kind": "features"}, 6)]
)
def test_others_are_taken_as_they_are(tmp_path, spec, held_out):
    job = job_of(tmp_path, spec, held_out)
    folder = tmp_path / "features"
    assert held_out_files(job, "features", tmp_path) == (folder / "train.h5", folder / "val.h5")


def test_folds_leave_every_sample_out_once(tmp_path):
    job = job_of(tmp_path, {"kind": "features"})
    fold = folds_of(LABELS, 3)
    # The class of one sample is in no fold.
    assert (fold == -1).sum() == 1 and LABELS[fold == -1] == [3]
    for label in range(3):
        sizes = np.bincount(fold[label == LABELS], minlength=3)
        assert sizes.max() - sizes.min() <= 1
    whole = FeatureStore.open(tmp_path / "features/train.h5")
    seen = []
    for place, paths in enumerate(fold_files(job, "features", 3, tmp_path)):
        train, own = map(FeatureStore.open, paths)
        assert set(own.index) == set(np.flatnonzero(fold == place))
        assert sorted([*train.index, *own.index]) == list(range(len(LABELS)))
        np.testing.assert_array_equal(own.features, whole.features[own.index])
        assert train.class_counts == np.bincount(train.labels, minlength=4).tolist()
        seen += own.index.tolist()
    assert len(seen) == len(set(seen)) == len(LABELS) - 1
    assert not list(tmp_path.glob("features-*"))
