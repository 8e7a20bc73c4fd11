"""Phase I: what is trained, what is not, resuming, and the file that it leaves."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import VisionLanguage
from ltpipe.data.loading import open_split
from ltpipe.data.subset import read_subset
from ltpipe.losses.retrieval import retrieval_loss
from ltpipe.models.vision_language import build_prompts, build_towers, encode_images, load_towers
from ltpipe.stage1 import vision_language
from ltpipe.stage1.vision_language import RetrievalTask
from ltpipe.training import distributed
from ltpipe.training.engine import TrainingSet
from ltpipe.utils.errors import InputError
from tests.support import CPU, DIGITS, draw

SPEC = {
    "system": "vision-language",
    "network": "small-vit",
    "epochs": 6,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "logit_scale": 10.0,
    "templates": ["a photo of the digit {class}."],
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def training_set(data):
    subset = read_subset(data / "subset.h5")
    split = open_split(DIGITS, subset, "train", CPU, None)
    return TrainingSet(split.batches, split.labels, split.pixels, subset.class_counts)


def task_of(training_set, **values):
    torch.manual_seed(0)
    settings = VisionLanguage.model_validate({**SPEC, **values})
    towers = build_towers(settings)
    prompts = build_prompts(towers, [str(digit) for digit in range(10)], settings)
    return RetrievalTask(towers, prompts, training_set, settings, 0, CPU)


def train(data, output, checkpoint_every=5, **values):
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": {**SPEC, **values}, "seed": 3}
    output.mkdir(exist_ok=True)
    job = Job(spec, {"data": data}, output, CPU, checkpoint_every=checkpoint_every)
    return vision_language.run(job)


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def copy_of(towers):
    return {key: value.clone() for key, value in towers.state_dict().items()}


def test_both_towers_are_trained_and_unused_words_are_not(training_set):
    task = task_of(training_set, weight_decay=0.5)
    before = copy_of(task.towers)
    task.run_epoch(0, 1e-3)
    moved = changed(before, task.towers.state_dict())
    assert {"visual.proj", "text_projection", "token_embedding.weight"} <= moved
    assert "logit_scale" not in moved
    words = (before["token_embedding.weight"] != task.towers.token_embedding.weight).any(1)
    # Every word of the prompts, and the padding by its decay alone.
    assert set(words.nonzero().flatten().tolist()) == set(task.prompts.rows.tolist())


def test_a_learned_scale_moves_and_has_an_upper_bound(training_set):
    task = task_of(training_set, learn_scale=True, logit_scale=99.9)
    task.run_epoch(0, 1.0)
    assert task.towers.logit_scale.exp() <= 100.0001
    task = task_of(training_set, learn_scale=True)
    task.run_epoch(0, 1e-2)
    assert task.towers.logit_scale.exp().item() != pytest.approx(10.0, abs=1e-3)


@pytest.mark.parametrize(("mode", "moves"), [("eval", False), ("train", True)])
def test_batchnorm_keeps_its_statistics_unless_told(training_set, mode, moves):
    task = task_of(training_set, network="small-resnet", batch_norm=mode)
    before = copy_of(task.towers)
    task.run_epoch(0, 1e-3)
    moved = changed(before, task.towers.state_dict())
    assert any("running_mean" in key for key in moved) == moves
    assert "visual.conv1.weight" in moved


@pytest.mark.parametrize(
    ("values", "in_batch", "both"),
    [
        ({}, False, False),
        ({"text_targets": "in_batch"}, True, False),
        ({"directions": "both"}, False, True),
    ],
)
def test_the_loss_is_that_of_the_settings(training_set, monkeypatch, values, in_batch, both):
    seen = []

    def spy(images, texts, target, scale, **settings):
        value = retrieval_loss(images, texts, target, scale, **settings)
        seen.append((value.item() * len(target), images, texts, scale, settings))
        return value

    monkeypatch.setattr(vision_language, "retrieval_loss", spy)
    total, correct = task_of(training_set, **values).run_epoch(0, 1e-3)
    assert total == pytest.approx(sum(value for value, *_ in seen), rel=1e-5)
    assert 0 <= correct <= len(training_set.labels)
    for _, images, texts, scale, settings in seen:
        torch.testing.assert_close(images.norm(dim=1), torch.ones(len(images)))
        assert texts.shape == (10, 64)
        assert scale.item() == pytest.approx(10)
        assert settings == {"in_batch": in_batch, "both": both}


def test_an_interrupted_job_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    train(data, tmp_path / "whole", checkpoint_every=2)
    run_epoch = RetrievalTask.run_epoch

    def power(self, epoch, rate):
        if epoch == 3:
            raise KeyboardInterrupt
        return run_epoch(self, epoch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalTask, "run_epoch", power)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "broken", checkpoint_every=2)
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["resume"]
    train(data, tmp_path / "broken", checkpoint_every=2)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]


def test_it_learns_and_open_clip_reads_the_file(data, tmp_path):
    values = {"network": "small-resnet", "batch_norm": "train", "epochs": 10, "learning_rate": 4e-3}
    facts = train(data, tmp_path / "a", **values)
    assert "not pretrained" in facts["towers"]
    history = pd.read_csv(tmp_path / "a/history.csv")
    assert history.loss.iloc[-1] < 0.8 * history.loss.iloc[0]
    settings = VisionLanguage.model_validate({**SPEC, **values})
    towers = build_towers(settings)
    load_towers(towers, tmp_path / "a/model.safetensors")
    subset = read_subset(data / "subset.h5")
    split = open_split(DIGITS, subset, "train", CPU, None)
    images = next(split.batches.epoch(torch.arange(100), 100, None)).float() / 255
    prompts = build_prompts(towers, subset.class_names, settings)
    with torch.no_grad():
        # By open_clip's own forward pass.
        tokens = prompts.rows[prompts.tokens]
        padded = F.pad(tokens, (0, 24 - tokens.shape[1]))
        pixels = ((images - 0.3) / 0.4).expand(-1, 3, -1, -1)
        enlarged = F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
        found, texts, _ = towers(enlarged, padded)
        torch.testing.assert_close(
            found, F.normalize(encode_images(towers, (images - 0.3) / 0.4), dim=1)
        )
    accuracy = ((found @ texts.T).argmax(1) == split.labels[:100]).float().mean()
    assert accuracy > 0.5


def test_no_epochs_leave_the_towers_as_they_start(data, tmp_path):
    facts = train(data, tmp_path / "a", epochs=0)
    assert facts["towers"].endswith("not trained here")
    history = pd.read_csv(tmp_path / "a/history.csv")
    assert list(history.columns) == ["epoch", "learning_rate", "loss", "accuracy", "seconds"]
    assert history.empty
    weights = load_file(tmp_path / "a/model.safetensors")
    assert weights["logit_scale"].exp().item() == pytest.approx(10)


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(InputError, match="trains in one process"):
        train(data, tmp_path / "a")
