"""Several processes compute what one process computes on the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltpipe.models.resnet import resnet8
from ltpipe.training import distributed
from ltpipe.utils.errors import InputError
from tests.support import CE, DIGITS, command_line, draw

pytestmark = pytest.mark.heavy

STEP = """
import sys, torch
from safetensors.torch import save_file
from ltpipe.losses import {loss}
from ltpipe.models.resnet import resnet8
from ltpipe.training import distributed

torch.set_num_threads(1)
device = torch.device("cpu")
with distributed.joined(device):
    torch.manual_seed(0)
    network = resnet8(4, head="{head}", in_channels=1).double().train()
    images = torch.randn(10, 1, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 2, 0, 3, 1, 0, 0, 2])
    order, size = distributed.share(torch.arange(10), 10)
    loss = {loss}({arguments})
    loss.reweight(torch.tensor([0.2, 0.7, 1.1, 2.0]))
    forward = distributed.wrap(network, device)
    value = distributed.joint_loss(loss, forward(images[order]), target[order])
    value.backward()
    if distributed.rank() == 0:
        found = {{name: p.grad for name, p in network.named_parameters()}}
        found |= {{"state." + name: value for name, value in network.state_dict().items()}}
        save_file(found, "{out}")
"""


def launch(processes: int, *command: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={processes}", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("loss", "arguments", "head"),
    [("CrossEntropyLoss", "", "linear"), ("LDAMLoss", "[40, 20, 10, 3]", "cosine")],
)
def test_gradients_and_statistics_equal_those_of_the_joint_batch(tmp_path, loss, arguments, head):
    found = {}
    for processes in (1, 2):
        script = tmp_path / f"step{processes}.py"
        out = tmp_path / f"{processes}.safetensors"
        script.write_text(STEP.format(loss=loss, arguments=arguments, head=head, out=out))
        launch(processes, str(script))
        found[processes] = load_file(out)
    assert found[1].keys() == found[2].keys()
    moved = False
    for name, expected in found[1].items():
        torch.testing.assert_close(found[2][name], expected, rtol=1e-5, atol=1e-7)
        moved |= bool(expected.abs().max() > 1e-3)
    assert moved


def test_a_training_run_by_two_processes_ends_like_one(tmp_path):
    data = draw(tmp_path)
    quiet = {**DIGITS, "input": {**DIGITS["input"], "padding": 0}}
    backbone = {**CE, "epochs": 3, "rule": {"name": "rw"}, "learning_rate": 0.01}
    spec = {"kind": "stage1", "dataset": quiet, "backbone": backbone, "seed": 1}
    weights = {}
    for processes in (1, 2):
        words = command_line("train", spec, {"data": str(data)}, str(tmp_path / str(processes)))
        output = Path(words[-1])
        command = [sys.executable, "-m", "ltpipe", *words, "--device", "cpu"]
        done = subprocess.run(
            [*command, "--processes", str(processes)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        weights[processes] = load_file(output / "model.safetensors")
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["processes"] == processes
        assert sorted(p.name for p in output.iterdir()) == [
            "history.csv",
            "manifest.json",
            "model.safetensors",
        ]
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[2][name], expected, rtol=1e-2, atol=1e-3)


def test_shares_cover_each_batch_and_differ_by_one_at_most(monkeypatch):
    order = torch.randperm(21)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "size", lambda: 4)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.share(order, 8))
    assert {size for _, size in parts} == {2}
    for batch in range(2):
        together = torch.cat([part[batch * 2 : batch * 2 + 2] for part, _ in parts])
        assert torch.equal(together, order[batch * 8 : batch * 8 + 8])
    assert [len(part) - 4 for part, _ in parts] == [2, 1, 1, 1]
    with pytest.raises(InputError, match="no multiple of the 4"):
        distributed.share(order, 6)


def test_a_last_batch_smaller_than_the_processes_is_left_out(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    part, _ = distributed.share(torch.arange(11), 8)
    assert part.tolist() == [6, 7]


def test_one_process_is_left_alone():
    network = resnet8(3, in_channels=1)
    assert distributed.wrap(network, torch.device("cpu")) is network
    order = torch.arange(5)
    assert distributed.share(order, 4) == (order, 4)
