import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ltpipe.artifacts.job import Job
from ltpipe.config.datasets import Expect
from ltpipe.config.experiment import resolve
from ltpipe.data.drawing import run
from ltpipe.data.expectations import check_expected, check_expected_labels
from ltpipe.data.images import ArrayImages
from ltpipe.data.longtail import class_counts
from ltpipe.data.opening import dataset_settings
from ltpipe.data.readers.lists import read_list
from ltpipe.data.sources import Part, Source
from ltpipe.data.subset import read_subset
from ltpipe.plan.layout import build_plan
from ltpipe.utils.errors import InputError

CATALOGUE = Path(__file__).resolve().parents[2] / "config"
INPUT = {"size": [8, 8]}


def part(labels):
    labels = np.array(labels, dtype=np.int64)
    return Part(ArrayImages(np.zeros((len(labels), 2, 2, 3), np.uint8)), labels)


SOURCE = Source(["x", "y", "z"], train=part([2, 1, 2, 0, 2, 1]), test=part([0, 1]))
FOUND = {
    "classes": 3,
    "train": 6,
    "val": 0,
    "test": 2,
    "largest": 3,
    "smallest": 1,
    "train_counts": [1, 2, 3],
    "train_digest": hashlib.sha256(b"1,2,3").hexdigest()[:16],
}


def test_what_is_expected_passes():
    check_expected(SOURCE, None, "folder")
    check_expected(SOURCE, Expect(), "folder")
    check_expected(SOURCE, Expect(**FOUND), "folder")
    for key, value in FOUND.items():
        check_expected(SOURCE, Expect(**{key: value}), "folder")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", 4, r"expect\.classes is 4 but 3 was found"),
        ("train", 7, r"expect\.train is 7 but 6 was found"),
        ("val", 1, r"expect\.val is 1 but 0 was found"),
        ("test", 3, r"expect\.test is 3 but 2 was found"),
        ("largest", 2, r"expect\.largest is 2 but 3 was found"),
        ("smallest", 2, r"expect\.smallest is 2 but 1 was found"),
        ("train_counts", [1, 3, 3], r"expect\.train_counts\[1\] \(y\) is 3 but 2 was found"),
        ("train_counts", [1, 2], r"the length of expect\.train_counts is 2 but 3 was found"),
        ("train_digest", "0" * 16, r"expect\.train_digest is 0{16} but [0-9a-f]{16} was found"),
    ],
)
def test_every_mismatch_is_named(key, value, message):
    with pytest.raises(InputError, match=rf"'folder' is not the expected one: {message}"):
        check_expected(SOURCE, Expect(**FOUND | {key: value}), "folder")


def test_validation_images_are_counted():
    source = Source(["x"], train=part([0]), val=part([0, 0]))
    check_expected(source, Expect(val=2, test=0), "list")
    with pytest.raises(InputError, match=r"expect\.val is 0 but 2"):
        check_expected(source, Expect(val=0), "list")


def test_class_without_training_samples_counts():
    labels = np.array([0, 0, 1])
    check_expected_labels("xyz", labels, None, None, Expect(train_counts=[2, 1, 0]), "features")
    with pytest.raises(InputError, match=r"expect\.smallest is 1 but 0"):
        check_expected_labels("xyz", labels, None, None, Expect(smallest=1), "features")


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"trian": 3}, "'trian'.*did you mean 'train'"),
        ({"train": 0}, r"expect\.train"),
        ({"train_digest": "50C3529BECBFDCA5"}, "train_digest"),
        ({"train_digest": "50c3"}, "train_digest"),
        ({"train_counts": []}, "train_counts"),
    ],
)
def test_bad_expectations_are_refused(expect, message):
    values = {"datasets": {"digits-lt": {"expect": expect}}}
    with pytest.raises(InputError, match=message):
        plan_of(values)


def plan_of(changes):
    values = {
        "experiment": "x",
        "datasets": {"digits-lt": None},
        "methods": {"backbone-head": {"backbones": {"features": "resnet8-ce"}}},
    }
    return build_plan(resolve(copy.deepcopy(values) | changes, CATALOGUE))


def test_expectations_belong_to_the_identity():
    changed = {"datasets": {"digits-lt": {"expect": {"classes": 10}}}}
    before, after = plan_of({}), plan_of(changed)
    assert not set(before.artifacts) & set(after.artifacts)


def draw(folder, dataset):
    spec = {"kind": "data", "dataset": dataset}
    run(Job(spec=spec, inputs={}, output=folder, device=torch.device("cpu"), root=folder))
    return read_subset(folder / "subset.h5")


def test_drawing_checks_the_source_and_not_the_subset(tmp_path):
    digits = {"source": "digits", "imbalance": 10.0, "max_count": 100}
    subset = draw(tmp_path, digits | {"expect": {"train": 1297, "test": 500, "classes": 10}})
    assert subset.class_counts[0] == 100
    (tmp_path / "subset.h5").unlink()
    with pytest.raises(InputError, match=r"'digits' .*expect\.train is 100 but 1297"):
        draw(tmp_path, digits | {"expect": {"train": 100}})
    assert not (tmp_path / "subset.h5").exists()


def test_drawing_checks_embeddings_too(tmp_path):
    for split, labels in (("train", [0, 1, 1]), ("test", [0, 1])):
        features = np.ones((len(labels), 4), np.float32)
        np.savez(tmp_path / f"{split}.npz", features=features, labels=np.array(labels))
    dataset = {
        "source": "features",
        "stores": {"a": {"train": "train.npz", "test": "test.npz"}},
    }
    assert draw(tmp_path, dataset | {"expect": {"largest": 2}}).class_counts == [1, 2]
    with pytest.raises(InputError, match=r"'features' .*expect\.largest is 3 but 2"):
        draw(tmp_path, dataset | {"expect": {"largest": 3}})


def test_drawing_opens_a_source_that_pads_its_images(tmp_path):
    made = {}
    for split in ("train", "val", "test"):
        made[f"{split}_images"] = np.zeros((4, 28, 28), np.uint8)
        made[f"{split}_labels"] = np.array([[0], [1], [1], [0]], np.uint8)
    np.savez(tmp_path / "pneumoniamnist.npz", **made)
    dataset = {"source": "medmnist", "file": "pneumoniamnist"}
    assert draw(tmp_path, dataset).class_counts == [2, 2]


def catalogue():
    entries = {}
    for file in (CATALOGUE / "datasets").glob("*.yaml"):
        entries |= yaml.safe_load(file.read_text())
    return entries


def test_the_catalogue_expects_what_was_published():
    entries = catalogue()
    octmnist = entries["octmnist"]["expect"]
    assert sum(octmnist["train_counts"]) == octmnist["train"] == 97_477
    for name, total in (("cifar10-lt", 12_406), ("cifar100-lt", 10_847)):
        expect = entries[name]["expect"]
        largest = expect["train"] // expect["classes"]
        assert sum(class_counts(expect["classes"], largest, entries[name]["imbalance"])) == total
    tiny = entries["tiny-imagenet-lt"]
    assert sum(class_counts(200, tiny["max_count"], tiny["imbalance"])) == 21_549


@pytest.mark.realdata
def test_real_places_list_is_what_the_catalogue_expects(real_data):
    expect = Expect(**catalogue()["places-lt"]["expect"])
    lists = [
        read_list(real_data / "splits" / f"Places_LT_{split}.txt", 365)[1]
        for split in ("train", "val", "test")
    ]
    names = [str(label) for label in range(365)]
    check_expected_labels(names, *lists, expect, "list")
    counts = np.bincount(lists[0])
    assert ((counts > 100).sum(), (counts < 20).sum()) == (131, 71)
    assert ((counts <= 100) & (counts >= 20)).sum() == 163


@pytest.mark.realdata
def test_real_imagenet_and_inaturalist_lists_are_what_the_catalogue_expects(real_data):
    for name, list_name, key in (
        ("imagenet-lt", "ImageNet_LT_val", "val"),
        ("imagenet-lt", "ImageNet_LT_test", "test"),
        ("inaturalist18", "iNaturalist18_val", "test"),
    ):
        expect = catalogue()[name]["expect"]
        labels = read_list(real_data / "splits" / f"{list_name}.txt", expect["classes"])[1]
        assert len(labels) == expect[key]
        assert len(set(labels.tolist())) == expect["classes"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["cifar10-lt", "tiny-imagenet-lt", "pneumoniamnist"])
def test_real_sources_are_what_the_catalogue_expects(real_data, name):
    settings = dataset_settings(catalogue()[name] | {"imbalance": None, "max_count": None})
    source = settings.read(real_data)
    check_expected(source, settings.expect, settings.source)
