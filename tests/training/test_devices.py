"""Devices and precision; several GPUs are played by stand-ins, locks are real."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from ltpipe.training import devices
from ltpipe.utils.errors import InputError


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu-{index}")
    )
    monkeypatch.setattr(devices, "_lock_folder", lambda: tmp_path)


def test_jobs_on_one_host_get_gpus_of_their_own(two_gpus):
    with devices.lease("auto") as first, devices.lease("cuda") as second:
        assert {first.index, second.index} == {0, 1}
        third: list[int] = []

        def wait() -> None:
            with devices.lease("auto") as device:
                third.append(device.index)

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.3)
        assert third == []
    waiting.join(10)
    assert third and third[0] in (0, 1)


def test_a_lease_ends_with_an_error_too(two_gpus):
    for _ in range(3):
        with pytest.raises(RuntimeError), devices.lease("auto") as device:
            assert device.index == 0
            raise RuntimeError


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with devices.lease("auto") as device:
        assert device.type == "cpu"
    with pytest.raises(InputError, match="sees no CUDA device"), devices.lease("cuda"):
        pass


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    assert devices.precision("fp32", cpu) is torch.float32
    assert devices.precision("bf16", cpu) is torch.bfloat16
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "_has_amx", lambda has=has: has)
        assert devices.precision("auto", cpu) is expected
