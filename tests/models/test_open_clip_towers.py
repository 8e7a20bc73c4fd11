"""CLIP's own RN50, with random numbers in a file of the real format, from images to adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ltpipe.compat import import_open_clip
from ltpipe.config.backbones import VisionLanguage
from ltpipe.data import drawing
from ltpipe.features.store import FeatureStore
from ltpipe.models.vision_language import build_towers
from ltpipe.stage1 import vision_language
from ltpipe.stage2.ecvl import job as ecvl
from ltpipe.stage2.simple import zero_shot
from ltpipe.utils.errors import InputError
from tests.support import embed_on, run_job

pytestmark = pytest.mark.heavy

CLASSES = ("tench", "red_fox", "fire truck")
DATASET = {
    "source": "folder",
    "input": {
        "size": [64, 64],
        "stored": [72, 72],
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "resized_crop": True,
        "crop_scale": [0.5, 1.0],
        "interpolation": "bicubic",
        "flip": True,
    },
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An open_clip RN50 of random numbers, as open_clip itself builds and saves it."""
    torch.manual_seed(5)
    made = import_open_clip().create_model("RN50-quickgelu", pretrained=None)
    path = tmp_path_factory.mktemp("weights") / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in made.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Flat colours, one a class: even random towers can tell them."""
    folder = tmp_path_factory.mktemp("pictures")
    stream = np.random.default_rng(0)
    for part, sizes in (("train", (6, 3, 2)), ("test", (2, 2, 2))):
        for label, (name, size) in enumerate(zip(CLASSES, sizes, strict=True)):
            (folder / part / name).mkdir(parents=True)
            for number in range(size):
                image = stream.integers(0, 60, (80, 90, 3))
                image[..., label] += 180
                picture = Image.fromarray(image.astype(np.uint8))
                picture.save(folder / part / name / f"{number}.png")
    return folder


def test_rn50_loads_trains_encodes_and_adapts(weights, pictures, tmp_path):
    dataset = {**DATASET, "path": str(pictures)}
    backbone = {
        "system": "vision-language",
        "network": "RN50-quickgelu",
        "weights": str(weights),
        "epochs": 1,
        "batch_size": 6,
        "optimizer": "sgd",
        "momentum": 0.9,
        "learning_rate": 1e-5,
    }
    bare = {key: value for key, value in dataset.items() if key != "input"}
    stored = {key: dataset["input"][key] for key in ("size", "stored")}
    spec = {"kind": "data", "dataset": {**bare, "input": stored}}
    run_job(drawing, spec, tmp_path / "data")
    spec = {"kind": "stage1", "dataset": dataset, "backbone": backbone, "seed": 0}
    facts = run_job(vision_language, spec, tmp_path / "stage1", data=tmp_path / "data")
    assert facts["towers"].startswith(f"RN50-quickgelu: weights from the file {weights}")
    assert len(facts["weights_sha256"]) == 64

    folder = embed_on(
        dataset,
        tmp_path / "features",
        backbone,
        tmp_path / "stage1",
        tmp_path / "data",
        views=2,
        ladder={"strengths": 2, "draws": 2},
    )
    store = FeatureStore.open(folder / "train.h5")
    assert store.features.shape == (11, 1024)
    assert store.views.shape == (6, 11, 1024)
    assert store.text.shape == (3, 1024)
    assert "weights from the file" in store.attributes["towers"]
    # open_clip reads what was trained, and says the same of a test image.
    found = import_open_clip().create_model(
        "RN50-quickgelu", pretrained=str(tmp_path / "stage1/model.safetensors")
    )
    assert found.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)
    for module, method in ((zero_shot, {"kind": "zero-shot"}), (ecvl, {"kind": "ecvl"})):
        output = tmp_path / method["kind"]
        spec = {"kind": "stage2", "method": method, "groups": "ranks", "seed": 0}
        facts = run_job(module, spec, output, **{"features.features": folder})
        assert "weights from the file" in facts["towers"]
        recorded = json.loads((output / "manifest.json").read_text())["spec"]
        assert {key: recorded[key] for key in spec} == spec


def test_towers_refuse_a_file_of_others(weights):
    settings = {"system": "vision-language", "network": "ViT-B-32", "weights": str(weights)}
    with pytest.raises(InputError, match=r"open_clip_model.safetensors: .* (missing|unknown)"):
        build_towers(VisionLanguage.model_validate(settings))
