"""Training a part of a network that others trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.compat import import_open_clip, import_torchvision
from ltpipe.config.backbones import Pretrained
from ltpipe.config.datasets import InputSettings
from ltpipe.data.images import FiveCrops
from ltpipe.features.pretrained import CropEmbedder
from ltpipe.features.store import FeatureStore
from ltpipe.models.pretrained import add_trained_parts, build_pretrained
from ltpipe.models.vision_language import build_prompts, encode_texts
from ltpipe.stage1 import pretrained
from ltpipe.stage1.pretrained import _texts
from tests.support import CPU, DIGITS, draw, embed, run_job

VIT = {
    "system": "pretrained",
    "network": "timm:test_vit.r160_in1k",
    "weights": None,
    "size": [32, 32],
    "trained": "adapter",
    "adapter": {"bottleneck": 4},
    "loss": {"name": "logit-adjustment"},
    "head": "cosine",
    "epochs": 2,
    "batch_size": 32,
    "precision": "fp32",
}
LINEAR = {key: value for key, value in VIT.items() if key not in ("adapter", "head")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data"))


def start_of(backbone):
    """The weights before training: what an untouched parameter must still have."""
    torch.manual_seed(0)
    settings = Pretrained.model_validate(backbone)
    network = build_pretrained(settings)
    add_trained_parts(network, settings, 10)
    return {name for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("backbone", "trained"),
    [
        (VIT, ("adapter.", "head.")),
        ({**LINEAR, "trained": "head"}, ("head.",)),
        ({**LINEAR, "trained": "last-stage"}, ("body.blocks.5.", "body.norm.", "head.")),
    ],
)
def test_only_what_is_named_is_trained(backbone, trained, data, tmp_path):
    runs = []
    for epochs in (1, 2):
        spec = {"kind": "stage1", "dataset": DIGITS, "backbone": {**backbone, "epochs": epochs}}
        run_job(pretrained, {**spec, "seed": 0}, tmp_path / str(epochs), data=data)
        runs.append(load_file(tmp_path / str(epochs) / "model.safetensors"))
    changed = {name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])}
    assert changed == start_of(backbone)
    assert all(any(part in name for part in trained) for name in changed)
    assert {part for part in trained if any(part in name for name in changed)} == set(trained)


def test_statistics_of_normalisation_stay_where_it_is_frozen(data, tmp_path):
    backbone = {**LINEAR, "network": "timm:resnet18.a1_in1k", "trained": "last-stage", "epochs": 1}
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 0}
    run_job(pretrained, spec, tmp_path / "made", data=data)
    state = load_file(tmp_path / "made/model.safetensors")
    seen = {name for name, value in state.items() if "batches_tracked" in name and value > 0}
    assert seen and all("layer4" in name for name in seen)


def test_stores_have_the_classifiers_logits_and_their_mean_over_five_crops(data, tmp_path):
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": VIT, "seed": 0}
    stage1 = tmp_path / "stage1"
    run_job(pretrained, spec, stage1, data=data)
    embed(tmp_path / "plain", VIT, stage1, data, views=0)
    store = FeatureStore.open(tmp_path / "plain/test.h5")
    cosines = (
        F.normalize(torch.from_numpy(store.features))
        @ F.normalize(torch.from_numpy(store.classifier_weight)).T
    )
    np.testing.assert_allclose(store.logits, 25 * cosines, rtol=1e-4, atol=1e-4)
    embed(tmp_path / "five", VIT, stage1, data, views=0, ensemble=4)
    five = FeatureStore.open(tmp_path / "five/test.h5")
    np.testing.assert_array_equal(five.features, store.features)
    assert np.abs(five.logits - store.logits).max() > 1e-4
    train = [FeatureStore.open(tmp_path / folder / "train.h5") for folder in ("plain", "five")]
    np.testing.assert_array_equal(train[0].logits, train[1].logits)


def test_five_crops_of_files_are_torchvisions(tmp_path):
    T = import_torchvision().transforms

    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (9, 12, 3), np.uint8)
    photo = Image.fromarray(noise).resize((50, 40), Image.Resampling.BILINEAR)
    photo.save(tmp_path / "photo.png")
    stored = InputSettings(size=[32, 32], interpolation="bicubic")
    found = FiveCrops([tmp_path / "photo.png"], (32, 32), 4, stored).load(np.arange(1))[0]
    enlarged = T.Resize(36, T.InterpolationMode.BICUBIC)(photo)
    expected = np.concatenate([np.asarray(crop) for crop in T.FiveCrop(32)(enlarged)])
    np.testing.assert_array_equal(found, expected)

    class Embed(torch.nn.Module):
        size, interpolation = (32, 32), "bicubic"

        def forward(self, batch):
            return batch.float().mean((2, 3))

    stacked = torch.from_numpy(found).permute(2, 0, 1)[None]
    means = CropEmbedder(Embed(), 4)(stacked)[0]
    crops = torch.from_numpy(expected).reshape(5, 32, 32, 3).float().mean((1, 2))
    torch.testing.assert_close(means, crops)
    # LIFT's golden place: of 248 x 310 the middle crop of 224 begins at (12, 43).
    from ltpipe.data.images import crop_places

    assert crop_places((248, 310), (224, 224))[4] == (12, 43)


def test_texts_start_the_classifier_back_through_the_projection():
    torch.manual_seed(0)
    backbone = {**VIT, "network": "open_clip:ViT-S-32-alt", "start": "texts", "projection": False}
    del backbone["size"]
    settings = Pretrained.model_validate(backbone)
    open_clip = import_open_clip()
    names = ["cat", "dog"]
    torch.manual_seed(1)
    rows = _texts(settings, None, names)
    torch.manual_seed(1)
    towers = open_clip.CLIP(**open_clip.get_model_config("ViT-S-32-alt")).eval()
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-S-32-alt")([f"a photo of a {n}." for n in names])
        units = F.normalize(towers.encode_text(tokens), dim=1)
        expected = units @ towers.visual.proj.T
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert encode_texts(towers, build_prompts(towers, names, settings)).shape == units.shape


def test_a_cosine_classifier_starts_at_the_class_means(data, tmp_path):
    backbone = Pretrained.model_validate({**VIT, "start": "class-means"})
    job = Job(spec={"dataset": DIGITS}, inputs={"data": data}, output=tmp_path, device=CPU)
    from ltpipe.models.pretrained import network_input
    from ltpipe.stage1.job import open_images

    images = open_images(job, network_input(backbone))
    network = build_pretrained(backbone)
    sums = pretrained._class_means(network, images, CPU)
    batch = next(images.split.batches.epoch(torch.arange(131), 131, None))
    pixels = batch.float() / 255
    scaled = (pixels - torch.tensor(images.split.pixels.mean)[:, None, None]) / torch.tensor(
        images.split.pixels.std
    )[:, None, None]
    with torch.no_grad():
        units = F.normalize(network.eval().features(scaled))
    for label in range(10):
        expected = units[images.split.labels == label].sum(0)
        torch.testing.assert_close(sums[label], expected, rtol=1e-4, atol=1e-4)
