"""Trainings that share a device compute what lone ones do, and their processes find each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.manifest import read_manifest
from ltpipe.cli.program import main
from ltpipe.config.base import canonical_json
from ltpipe.runtime.gathering import Gathering
from ltpipe.stage1 import supervised, together
from ltpipe.training import turns
from ltpipe.utils.errors import InputError
from tests.support import CE, CPU, DIGITS, KPS, draw

LDAM = {
    **CE,
    "head": "cosine",
    "loss": {"name": "ldam"},
    "rule": {"name": "drw", "start": 1},
    "schedule": {"kind": "step", "warmup": 1, "milestones": [2], "factors": [0.1]},
}
# Different losses, rules, samplers, attention, lengths and batches.
MODELS = {
    "ce": (CE, 0),
    "ce-1": (CE, 1),
    "kps": ({**KPS, "rule": {"name": "drs", "start": 2}}, 0),
    "ldam": (LDAM, 2),
    "focal": ({**CE, "loss": {"name": "focal"}, "rule": {"name": "cb-rw"}, "epochs": 2}, 0),
    "mixup": ({**CE, "mixup": 1.0, "attention": "se", "batch_size": 24}, 0),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("together"))


def job(data, output, name, every=2):
    backbone, seed = MODELS[name]
    output.mkdir(parents=True, exist_ok=True)
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": seed}
    return Job(
        spec=spec,
        inputs={"data": data},
        output=output,
        device=CPU,
        code="test",
        checkpoint_every=every,
    )


@pytest.fixture(scope="module")
def lone(data, tmp_path_factory):
    """Each model trained alone."""
    base = tmp_path_factory.mktemp("lone")
    for name in MODELS:
        supervised.run(job(data, base / name, name))
    return base


def train(jobs):
    results = {}
    together.train_together(jobs, lambda place, result: results.update({place: result}))
    return [results[place] for place in range(len(jobs))]


def assert_same(folder, other):
    """BatchNorm's statistics are among the weights."""
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    tables = [pd.read_csv(f / "history.csv").drop(columns="seconds") for f in (folder, other)]
    pd.testing.assert_frame_equal(*tables)
    assert not (folder / "resume").exists()


def test_models_trained_together_are_those_trained_alone(data, lone, tmp_path):
    jobs = [job(data, tmp_path / name, name) for name in MODELS]
    for facts in train(jobs):
        assert facts["images_per_second"] > 0
    for name in MODELS:
        assert_same(tmp_path / name, lone / name)


class Killed(BaseException):
    """What no handler of errors takes."""


def test_a_killed_batch_goes_on_in_other_company(data, lone, tmp_path, monkeypatch):
    names = ["ce", "ldam", "focal"]
    take, numbers = turns._Turns.take, iter(range(10_000))

    def dies(self):
        if next(numbers) == 63:
            raise Killed
        return take(self)

    monkeypatch.setattr(turns._Turns, "take", dies)
    with pytest.raises(Killed):
        train([job(data, tmp_path / name, name) for name in names])
    monkeypatch.undo()
    assert (tmp_path / "ce/resume/checkpoint.safetensors").is_file()
    assert not (tmp_path / "ce/model.safetensors").exists()
    # One goes on alone, one with a model that had not begun; the third had been done in time.
    supervised.run(job(data, tmp_path / "ce", "ce"))
    train([job(data, tmp_path / name, name) for name in ("kps", "ldam", "focal")])
    for name in ("ce", "kps", "ldam", "focal"):
        assert_same(tmp_path / name, lone / name)


def test_what_is_wrong_with_one_does_not_stop_the_others(data, lone, tmp_path):
    jobs = [job(data, tmp_path / name, name) for name in ("ce", "kps", "ldam")]
    jobs[0] = replace(jobs[0], inputs={"data": tmp_path / "nowhere"})
    broken = {**LDAM, "loss": {"name": "ldam", "scale": 30.0}, "batch_size": 16}
    jobs[2] = replace(jobs[2], spec={**jobs[2].spec, "backbone": {**broken, "rule": {"name": "?"}}})
    results = train(jobs)
    assert isinstance(results[0], InputError)
    assert isinstance(results[2], Exception)
    assert_same(tmp_path / "kps", lone / "kps")


def test_a_run_that_does_not_converge_leaves_the_others_alone(data, lone, tmp_path):
    wild = job(data, tmp_path / "wild", "ce-1")
    backbone = {**CE, "learning_rate": 1e30}
    results = train(
        [replace(wild, spec={**wild.spec, "backbone": backbone}), job(data, tmp_path / "ce", "ce")]
    )
    assert "the loss is" in results[0]["diverged"]
    assert len(pd.read_csv(tmp_path / "wild/history.csv")) < 3
    assert "diverged" not in results[1]
    assert_same(tmp_path / "ce", lone / "ce")


@pytest.mark.parametrize(
    ("backbone", "wanted", "reason"),
    [
        (CE, "cpu", "keeps a CPU busy"),
        (CE, "auto", ""),
        ({**CE, "mixup": 1.0}, "auto", "mixup"),
        ({**CE, "compile": True}, "cuda", "compile"),
        ({"system": "bbn", "network": "bbn-resnet32"}, "auto", "system bbn"),
    ],
)
def test_it_says_what_is_trained_alone(monkeypatch, backbone, wanted, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = together.why_alone({"backbone": backbone}, wanted)
    assert (reason in found) if reason else not found


def test_several_processes_for_one_training_stay_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes" in together.why_alone({"backbone": CE}, "auto")


def test_a_job_of_the_command_line_has_the_manifest_of_a_lone_one(
    lone, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(together, "why_alone", lambda spec, wanted: "")
    monkeypatch.setattr(together, "PATIENCE", 0.1)
    drawn = {"kind": "data", "dataset": {k: v for k, v in DIGITS.items() if k != "input"}}
    data = tmp_path / "data"
    assert main(["draw", "--spec", canonical_json(drawn), "--output", str(data)]) == 0
    backbone, seed = MODELS["ldam"]
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": seed}
    command = ["train", "--spec", canonical_json(spec), "--input", f"data={data}"]
    command += ["--device", "cpu", "--output"]
    assert main([*command, str(tmp_path / "alone")]) == 0
    assert "together" not in capsys.readouterr().out
    assert main([*command, str(tmp_path / "shared"), "--together", "3"]) == 0
    assert "training 1 together on cpu" in capsys.readouterr().out
    alone, shared = (read_manifest(tmp_path / name) for name in ("alone", "shared"))
    assert shared["together"] == 1
    for key in ("spec", "code", "modules", "inputs", "device", "precision", "processes"):
        assert shared[key] == alone[key]
    weights = "model.safetensors"
    assert shared["outputs"][weights] == alone["outputs"][weights]
    assert_same(tmp_path / "shared", lone / "ldam")
    monkeypatch.undo()
    assert main([*command, str(tmp_path / "cpu"), "--together", "3"]) == 0
    assert "alone, not together with others: one model keeps a CPU busy" in capsys.readouterr().out


# A job's process: what `ltpipe train --together` does, on a CPU. It prints when it leads.
_PROCESS = """
import json, sys
from pathlib import Path
from ltpipe.plan.layout import code_entries
from ltpipe.artifacts.job import Job
from ltpipe.artifacts.manifest import read_manifest
from ltpipe.artifacts.manifest import code_identity
from ltpipe.stage1 import together
from ltpipe.training.devices import CPU
spec, data, output, at_once = json.loads(sys.argv[1])
Path(output).mkdir(parents=True, exist_ok=True)
code = code_identity(code_entries(spec))
job = Job(spec, {"data": Path(data)}, Path(output), CPU, code=code, checkpoint_every=1)
print(json.dumps(together.take_part(job, "cpu", at_once)), flush=True)
"""


@pytest.fixture
def start(data, tmp_path):
    started = []

    def one(name, epochs=None, at_once=3):
        backbone, seed = MODELS[name]
        backbone = backbone if epochs is None else {**backbone, "epochs": epochs}
        spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": seed}
        argument = canonical_json([spec, str(data), str(tmp_path / name), at_once])
        process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, argument],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_processes_meet_and_one_trains_for_all(start, lone, tmp_path):
    names = ("ce", "kps", "ldam")
    outputs = [start(name) for name in names]
    texts = [process.communicate(timeout=200)[0] for process in outputs]
    assert [process.returncode for process in outputs] == [0, 0, 0], texts
    assert sum("training 3 together on cpu" in text for text in texts) == 1
    assert sum("trained as one of 3 by process" in text for text in texts) == 2
    for name, text in zip(names, texts, strict=True):
        facts = json.loads(text.splitlines()[-1])
        assert facts["together"] == 3
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        # Checkpoints are part of no result.
        assert weights == (lone / name / "model.safetensors").read_bytes()
    left = [path for path in tmp_path.glob("ltpipe-together-*/*/*") if "leader" not in path.name]
    assert not left


def test_where_the_leader_dies_another_goes_on(start, tmp_path):
    processes = [start("ce", epochs=50, at_once=2), start("ce-1", epochs=50, at_once=2)]
    folders = [tmp_path / "ce", tmp_path / "ce-1"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if all((folder / "resume/checkpoint.safetensors").is_file() for folder in folders):
            break
        time.sleep(0.05)
    taken = next(tmp_path.glob("ltpipe-together-*/*/*.taken"))
    leader = int(json.loads(taken.read_text()).rpartition("-")[2])
    dead, other = sorted(processes, key=lambda process: process.pid != leader)
    assert dead.pid == leader
    dead.send_signal(signal.SIGKILL)
    output, _ = other.communicate(timeout=200)
    assert other.returncode == 0, output
    assert "training 1 together" in output
    assert "going on after epoch" in output
    finished = [(folder / "model.safetensors").is_file() for folder in folders]
    assert sorted(finished) == [False, True]


def meet(folder, request, results, accepts=lambda values: True):
    """A process that takes part: the leader answers everyone with their names."""
    with Gathering(folder, request) as gathering:
        answer = gathering.wait()
        if answer is None:
            taken = gathering.take(2, 0.5, accepts)
            for entry, values in taken:
                if entry.name != gathering.own.name:
                    entry.reply({"by": request["name"], "for": values["name"]})
            answer = {"led": [values["name"] for _, values in taken]}
        results[request["name"]] = answer


def test_no_more_are_taken_than_asked_and_only_those_that_fit(tmp_path):
    results: dict = {}
    refuse_c = lambda values: values["name"] != "c"  # noqa: E731
    threads = [
        threading.Thread(target=meet, args=(tmp_path, {"name": name}, results, refuse_c))
        for name in "abcde"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(results) == set("abcde")
    led = [answer["led"] for answer in results.values() if "led" in answer]
    assert sorted(name for names in led for name in names) == list("abcde")
    assert all(len(names) <= 2 for names in led)
    # The one that others refuse leads itself.
    assert any(names[0] == "c" for names in led)
    for name, answer in results.items():
        assert "led" in answer or answer["for"] == name
