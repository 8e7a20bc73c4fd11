"""What planning finds on this machine, against the libraries' own lists and the readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from ltpipe.compat import import_open_clip, import_torchvision
from ltpipe.config.backbones import AnyBackbone
from ltpipe.config.datasets import Dataset
from ltpipe.config.experiment import read_catalogue
from ltpipe.config.weights import OPENAI_REPOSITORIES, TORCHVISION_FILES
from ltpipe.plan.availability import require
from ltpipe.utils.errors import InputError

CATALOGUE = read_catalogue(Path(__file__).resolve().parents[2] / "config")


def dataset(name, **changes):
    return TypeAdapter(Dataset).validate_python({**CATALOGUE["datasets"][name], **changes})


def backbone(**values):
    base = {"system": "supervised", "loss": {"name": "ce"}}
    return TypeAdapter(AnyBackbone).validate_python({**base, **values})


def towers(**values):
    base = {"system": "vision-language", "network": "RN50-quickgelu"}
    return TypeAdapter(AnyBackbone).validate_python({**base, **values})


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("cifar10-lt", "put the folder cifar-10-batches-bin or cifar-10-batches-py into"),
        ("cifar100-lt", "put the folder cifar-100-binary"),
        ("octmnist", "put it into .*medmnist"),
        ("tiny-imagenet-lt", "tiny-imagenet-200 does not exist"),
        ("voc-lt", "VOC2012 does not exist"),
        ("imagenet-lt", "imagenet does not exist"),
        ("places-lt", "places365 does not exist"),
        ("inaturalist18", "inaturalist18 does not exist"),
    ],
)
def test_an_empty_root_has_nothing_but_digits(tmp_path, name, advice):
    require(dataset("digits-lt"), tmp_path)
    with pytest.raises(InputError, match=advice):
        require(dataset(name), tmp_path)


def test_files_in_their_places_are_found(tmp_path):
    for file in (
        "cifar-10-batches-bin/data_batch_1.bin",
        "cifar-100-python/train",
        "medmnist/octmnist.npz",
        "tiny-imagenet-200/wnids.txt",
        "VOCdevkit/VOC2012/x",
        "imagenet/x",
        "ImageNet_LT/ImageNet_LT_train.txt",
        "ImageNet_LT/ImageNet_LT_val.txt",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    names = ["cifar10-lt", "cifar100-lt", "octmnist", "tiny-imagenet-lt", "voc-lt"]
    for name in names:
        require(dataset(name), tmp_path)
    with pytest.raises(InputError, match=r"ImageNet_LT_test.txt does not exist"):
        require(dataset("imagenet-lt"), tmp_path)


def test_every_file_of_embeddings_is_looked_for(tmp_path):
    stores = {"a": {"train": "train.npz", "test": "test.npz"}}
    settings = TypeAdapter(Dataset).validate_python({"source": "features", "stores": stores})
    np.savez(tmp_path / "train.npz", features=np.ones((2, 2)))
    with pytest.raises(InputError, match=r"test.npz does not exist"):
        require(settings, tmp_path)


def test_openai_repositories_are_those_of_open_clip():
    pretrained = import_open_clip().pretrained
    for network, repository in OPENAI_REPOSITORIES.items():
        assert pretrained.get_pretrained_cfg(network, "openai")["hf_hub"] == repository + "/"


def test_checkpoint_files_are_those_of_torchvision():
    models = import_torchvision().models
    for (network, tag), file in TORCHVISION_FILES.items():
        name = "resnext50_32x4d" if network == "resnext50" else network
        found = {entry.name: entry.url for entry in models.get_model_weights(name)}
        assert found[tag].endswith("/" + file)


def test_weights_in_the_libraries_caches_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    clip, resnet = towers(weights="openai"), backbone(network="resnet152", weights="IMAGENET1K_V1")
    with pytest.raises(InputError, match=r"resnet50_clip.openai"):
        require(clip, None)
    with pytest.raises(InputError, match=r"resnet152-394f9c45.pth"):
        require(resnet, None)
    snapshot = tmp_path / "hf/hub/models--timm--resnet50_clip.openai/snapshots/0"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    checkpoints = tmp_path / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet152-394f9c45.pth").touch()
    require(clip, None)
    require(resnet, None)


def test_weights_files_are_looked_for(tmp_path):
    file = tmp_path / "towers.safetensors"
    for settings in (towers(weights=str(file)), backbone(network="resnet50", weights=str(file))):
        with pytest.raises(InputError, match=r"weights file .* does not exist"):
            require(settings, None)
    file.touch()
    require(towers(weights=str(file)), None)
    require(towers(), None)
    require(backbone(network="resnet8"), None)
