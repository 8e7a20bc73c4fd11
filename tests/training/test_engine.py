"""The epoch loop: it learns, it repeats itself, and it survives being killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from ltpipe.config.backbones import Backbone
from ltpipe.data.loading import open_split
from ltpipe.data.subset import read_subset
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet8
from ltpipe.training.checkpoint import Checkpoint
from ltpipe.training.engine import TrainingSet, train
from tests.support import CE, CPU, DIGITS, KPS, command_line, draw


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    data = draw(tmp_path_factory.mktemp("engine"))
    return open_split(DIGITS, read_subset(data / "subset.h5"), "train", CPU, None)


def training_set(split):
    return TrainingSet(split.batches, split.labels, split.pixels, split.labels.bincount().tolist())


def fit(split, loss=None, checkpoint=None, **settings):
    torch.manual_seed(0)
    network = resnet8(10, in_channels=1)
    history = train(
        network,
        loss or CrossEntropyLoss(),
        training_set(split),
        Backbone.model_validate({**CE, "epochs": 6, **settings}),
        seed=0,
        device=CPU,
        checkpoint=checkpoint,
    )
    return network.state_dict(), history


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_the_same_seed_gives_the_same_bytes(split):
    first, history = fit(split)
    assert history[-1].loss < 0.6 * history[0].loss
    assert history[-1].accuracy > history[0].accuracy
    again, _ = fit(split)
    assert same(first, again)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(split, tmp_path, mixup):
    unbroken, expected = fit(split, mixup=mixup)

    class Power(CrossEntropyLoss):
        calls = 0

        def forward(self, logits, target):
            Power.calls += 1
            if Power.calls == 45 * (1 + bool(mixup)):
                raise KeyboardInterrupt
            return super().forward(logits, target)

    checkpoint = Checkpoint(tmp_path / "resume", "run", every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(split, loss=Power(), checkpoint=checkpoint, mixup=mixup)
    _, state = checkpoint.load()
    assert 0 < len(state["history"]) < 6
    resumed, history = fit(split, checkpoint=checkpoint, mixup=mixup)
    assert same(unbroken, resumed)
    assert [(r.epoch, r.loss, r.accuracy) for r in history] == [
        (r.epoch, r.loss, r.accuracy) for r in expected
    ]


def test_checkpoints_of_other_runs_and_damaged_ones_are_not_used(split, tmp_path):
    checkpoint = Checkpoint(tmp_path, "run", every=2)
    fit(split, checkpoint=checkpoint)
    assert checkpoint.load() is not None
    assert Checkpoint(tmp_path, "other run").load() is None
    unbroken, _ = fit(split)
    whole, before = checkpoint.path.read_bytes(), checkpoint.before.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        checkpoint.path.write_bytes(whole[:length])
        _, state = checkpoint.load()
        assert len(state["history"]) == 2
    from_the_one_before, _ = fit(split, checkpoint=checkpoint)
    assert same(unbroken, from_the_one_before)
    checkpoint.path.write_bytes(whole[:-1])
    checkpoint.before.write_bytes(before[:-1])
    assert checkpoint.load() is None
    fresh, _ = fit(split, checkpoint=checkpoint)
    assert same(unbroken, fresh)


def test_a_loss_that_is_no_number_ends_the_run(split):
    _, history = fit(split, learning_rate=1e30)
    *before, last = history
    assert math.isnan(last.loss)
    assert all(math.isfinite(record.loss) for record in before)
    assert last.epoch == len(before) < 6


@pytest.mark.heavy
def test_a_killed_job_ends_with_the_bytes_of_an_unbroken_one(tmp_path):
    data = draw(tmp_path)
    backbone = {**KPS, "epochs": 40, "mixup": 1.0}
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 3}

    def words(name):
        return command_line("train", spec, {"data": str(data)}, str(tmp_path / name))

    def start(name):
        command = [sys.executable, "-m", "ltpipe", *words(name)]
        command += ["--checkpoint-every", "2", "--device", "cpu"]
        return subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
        )

    unbroken = start("unbroken")
    killed = start("killed")
    folders = [Path(words(name)[-1]) for name in ("killed", "unbroken")]
    checkpoint = folders[0] / "resume/checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (folders[0] / "model.safetensors").exists()
    again = start("killed")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    assert "going on after epoch" in output
    assert unbroken.wait(timeout=300) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in folders]
    pd.testing.assert_frame_equal(*histories)
    assert not (folders[0] / "resume").exists()
    recorded = json.loads((folders[0] / "manifest.json").read_text())["spec"]
    assert {key: recorded[key] for key in spec} == spec
