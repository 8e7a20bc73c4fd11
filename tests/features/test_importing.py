"""A feature store of one project is the data set of another, with all that it holds."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ltpipe.features.store import FeatureStore, read_paths, write_features
from tests import plans

CLASSES = ["zebra", "ant", "bee", "cow"]
COUNTS = {"train": [40, 20, 10, 5], "test": [8, 8, 8, 8]}
STORES = {role: {s: f"{role}/{s}.h5" for s in COUNTS} for role in ("ce", "kps")}
METHODS = {
    "FFN": {"kind": "ffn", "backbones": {"ce": "ce", "kps": "kps"}, "epochs": 2},
    "CE": {"kind": "backbone-head", "backbones": {"features": "ce"}},
}


def write_store(folder: Path, split: str, offset: float) -> None:
    labels = np.repeat(np.arange(4), COUNTS[split])
    stream = np.random.default_rng(len(split))
    features = stream.normal(size=(len(labels), 6)) + np.eye(4, 6)[labels] * 5 + offset
    views = features + 0.1 * stream.normal(size=(3, *features.shape))
    folder.mkdir(exist_ok=True)
    write_features(
        folder / f"{split}.h5",
        features=features,
        labels=labels,
        index=stream.permutation(1000)[: len(labels)],
        class_names=CLASSES,
        class_counts=COUNTS["train"],
        attributes={"backbone": "resnet32", "seed": 3, "view_seed": 0, "mean": [0.1, 0.2]},
        paths=[f"{split}/{place}.png" for place in range(len(labels))],
        views=views.astype(np.float16) if split == "train" else None,
        logits=features[:, :4].astype(np.float32),
        classifier_weight=np.eye(4, 6, dtype=np.float32),
        classifier_bias=np.zeros(4, np.float32),
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    for number, (role, files) in enumerate(STORES.items()):
        for split in files:
            write_store(tmp_path / role, split, 0.1 * number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    return tmp_path


def experiment(place, **settings):
    dataset = {"source": "features", "stores": STORES, **settings}
    values = {"experiment": "second", "seeds": [0], "datasets": {"mine": dataset}}
    return plans.plan_of(plans.write_experiment(place, {**values, "methods": METHODS}))


def imported(plan, role: str, split: str) -> Path:
    (cell,) = [cell for cell in plan.of_kind("import") if f"/{role}/" in cell.folder]
    return Path(cell.folder, f"{split}.h5")


def run(plan, *kinds):
    return [plans.run_cell(cell) for kind in kinds for cell in plan.of_kind(kind)]


def test_all_of_a_store_comes_along_and_every_method_finds_what_it_needs(place):
    plan = experiment(place)
    assert set(run(plan, "data", "import", "stage2")) == {0}
    for role in STORES:
        for split in COUNTS:
            was = FeatureStore.open(place / role / f"{split}.h5")
            now = FeatureStore.open(imported(plan, role, split))
            assert now.class_names == CLASSES
            assert now.index.tolist() == list(range(len(was.labels)))
            for name in ("features", "labels", "views", "logits", "classifier_weight"):
                np.testing.assert_array_equal(getattr(now, name), getattr(was, name))
            assert now.attributes["backbone"] == "resnet32"
            assert now.attributes["origin"] == f"{role}/{split}.h5"
            np.testing.assert_array_equal(now.attributes["mean"], [0.1, 0.2])


def test_a_draw_of_it_has_its_own_rows(place):
    plan = experiment(place, imbalance=2, subset_seed=3)
    assert set(run(plan, "data", "import")) == {0}
    was, path = FeatureStore.open(place / "ce/train.h5"), imported(plan, "ce", "train")
    now = FeatureStore.open(path)
    assert 0 < len(now.labels) < len(was.labels)
    np.testing.assert_array_equal(now.views, was.views[:, now.index])
    np.testing.assert_array_equal(now.logits, was.logits[now.index])
    assert read_paths(path) == [f"train/{row}.png" for row in now.index]


def test_a_damaged_store_is_refused(place, capsys):
    with h5py.File("kps/train.h5", "a") as file:
        file["views"][1, 2, 3] += 1
    plan = experiment(place)
    assert run(plan, "data", "import").count(2) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "kps/train.h5: data set 'views' is damaged" in line
    assert not imported(plan, "kps", "train").exists()


def test_views_that_lie_in_another_file_are_refused(place, capsys):
    with h5py.File("kps/train.h5", "a") as file:
        shape = file["views"].shape
        del file["views"]
        with h5py.File("other.h5", "w") as other:
            other["views"] = np.ones(shape, np.float16)
        layout = h5py.VirtualLayout(shape, np.float16)
        layout[...] = h5py.VirtualSource("other.h5", "views", shape)
        file.create_virtual_dataset("views", layout)
    plan = experiment(place)
    assert run(plan, "data", "import").count(2) == 1
    assert "kps/train.h5 can't be read: views lies in other files" in capsys.readouterr().err
