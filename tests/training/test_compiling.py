"""`compile: auto`: measurements decide, the training is not touched, a run goes on as it began."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import torch

from ltpipe.artifacts.job import Job
from ltpipe.models.resnet import resnet8
from ltpipe.stage1 import supervised
from ltpipe.training import compiling
from ltpipe.training.compiling import decide, remembered
from tests.support import CE, CPU, DIGITS, draw


def decided(network, steps):
    images = torch.zeros(4, 3, 8, 8)
    return decide(network, images, steps, contextlib.nullcontext, CPU)


@pytest.fixture
def slow():
    """A network of which each pass takes 20 ms."""
    network = resnet8(3)
    features = network.features

    def slowly(images):
        time.sleep(0.02)
        return features(images)

    network.features = slowly
    return network


def compile_to(monkeypatch, seconds, error=None):
    """Let compiling take no time and give passes of so many seconds."""

    def build(function, device):
        def run(images):
            time.sleep(seconds)
            if error is not None:
                raise error
            return images

        return run

    monkeypatch.setattr(compiling, "compiled", build)


def test_a_short_training_is_plain_and_nothing_is_compiled(monkeypatch):
    compile_to(monkeypatch, 0, AssertionError("compiled"))
    decision = decided(resnet8(3), 10)
    assert (decision.compiled, decision.reason) == (False, "too short to try")
    assert decision.plain_seconds > 0
    assert decision.compiled_seconds is None


@pytest.mark.parametrize(("seconds", "steps", "pays"), [(0, 10**6, True), (0.2, 10**6, False)])
def test_the_faster_form_is_taken(monkeypatch, slow, seconds, steps, pays):
    compile_to(monkeypatch, seconds)
    decision = decided(slow, steps)
    assert decision.compiled is pays
    assert (decision.compiled_seconds < decision.plain_seconds) is pays
    assert decision.compiling_seconds >= seconds


def test_compiling_has_to_be_repaid(monkeypatch, slow):
    # A million steps save 20,000 seconds, a hundred two of them.
    monkeypatch.setattr(compiling, "_WORTH_TRYING", 0.0)
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(compiling, "_seconds", lambda features, *others: next(rates))
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    compile_to(monkeypatch, 0)
    for steps, pays in ((4000, False), (6000, True)):
        rates = iter([0.04, 0.02])
        decision = decided(slow, steps)
        assert decision.compiled is pays
        assert decision.compiling_seconds == 100


def test_what_cant_be_compiled_is_plain_and_says_why(monkeypatch, slow):
    compile_to(monkeypatch, 0, RuntimeError("no C++ compiler\nand more"))
    decision = decided(slow, 10**6)
    assert not decision.compiled
    assert decision.reason == "can't be compiled: no C++ compiler"


def test_measuring_changes_neither_network_nor_streams():
    network = resnet8(3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stream = torch.get_rng_state()
    decided(network, 10)
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_run_goes_on_as_it_began(tmp_path):
    decisions = iter([decided(resnet8(3), 10), None])
    first = remembered(tmp_path / "resume", "a", lambda: next(decisions))
    assert remembered(tmp_path / "resume", "a", lambda: pytest.fail("again")) == first
    assert remembered(tmp_path / "resume", "b", lambda: first) == first
    (tmp_path / "resume" / compiling.FILE).write_text("[]")
    assert next(decisions) is None
    assert remembered(tmp_path / "resume", "b", lambda: first) == first


def test_the_manifest_has_what_was_taken_and_plain_bytes_are_those_of_false(tmp_path):
    data, weights = draw(tmp_path), []
    for compile_, name in (("auto", "auto"), (False, "plain")):
        spec = {"kind": "stage1", "dataset": DIGITS, "backbone": {**CE, "compile": compile_}}
        (tmp_path / name).mkdir()
        job = Job({**spec, "seed": 0}, {"data": data}, tmp_path / name, CPU)
        run_info = supervised.run(job)
        assert ("compile" in run_info) is (compile_ == "auto")
        if compile_ == "auto":
            assert run_info["compile"]["compiled"] is False
            assert run_info["compile"]["reason"] == "too short to try"
            json.dumps(run_info)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
