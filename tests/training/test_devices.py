"""Devices and precision; several GPUs are played by stand-ins, locks are real."""

from __future__ import annotations

import csv
import os
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch

from ltpipe.training import devices
from ltpipe.training.devices import lease, lease_several
from ltpipe.utils import machine
from ltpipe.utils.errors import InputError

CPU = torch.device("cpu")
SMI = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-one)
  MIG 3g.20gb     Device  1: (UUID: MIG-two)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Return a function that lets torch see so many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"{index}")
    )
    monkeypatch.setattr(devices, "_lock_folder", lambda: tmp_path)
    monkeypatch.setattr(devices, "_PAUSE", 0.02)
    for name in ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(machine.shutil, "which", lambda program: None)
    see(2)
    return see


def waits(take):
    """Start `take` in a thread that has to wait; return a function that gives what it got."""
    got: list[object] = []

    def run() -> None:
        with take() as what:
            got.append(what)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.15)
    assert got == []

    def end() -> object:
        thread.join(10)
        return got[0]

    return end


def test_jobs_on_one_host_get_gpus_of_their_own(gpus):
    with lease("auto") as first, lease("cuda") as second:
        assert {first.index, second.index} == {0, 1}
        third = waits(lambda: lease("auto"))
    assert third().index in (0, 1)


def test_a_lease_ends_with_an_error_too(gpus):
    for _ in range(3):
        with pytest.raises(RuntimeError), lease("auto") as device:
            assert device.index == 0
            raise RuntimeError


def test_a_job_of_several_processes_holds_all_its_gpus_at_once(gpus):
    gpus(3)
    with lease_several("auto", 2) as shown:
        assert shown == {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}
        with lease("auto") as other:
            assert other.index == 2
        # One GPU is free and two are wanted: none is held while waiting.
        second = waits(lambda: lease_several("auto", 2))
        with lease("auto") as other:
            assert other.index == 2
    assert second() == {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}


def test_each_process_takes_the_gpu_of_its_number_whatever_is_locked(gpus, monkeypatch):
    with lease_several("auto", 2):
        for rank in (1, 0):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            with lease("auto") as device:
                assert device.index == rank
    gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="2 processes need a GPU each, and torch sees 1"):
        lease("auto").__enter__()


def test_more_processes_than_gpus_are_refused_and_without_gpus_share_the_cpu(gpus):
    with pytest.raises(InputError, match="3 processes need a GPU each, and torch sees 2"):
        lease_several("auto", 3).__enter__()
    with lease_several("cpu", 3) as shown:
        assert shown == {}
    gpus(0)
    with lease_several("auto", 3) as shown:
        assert shown == {}
    with pytest.raises(InputError, match="sees no CUDA device"):
        lease_several("cuda", 3).__enter__()


def test_slots_of_one_gpu_are_shared_and_a_whole_gpu_is_not(gpus, monkeypatch):
    shares: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    with lease("auto", 2) as first, lease("auto", 2) as second:
        # Jobs spread before they share.
        assert {first.index, second.index} == {0, 1}
        with lease("auto", 2), lease("auto", 2):
            third = waits(lambda: lease("auto", 2))
            whole = waits(lambda: lease("auto"))
    assert third().index in (0, 1)
    assert whole().index in (0, 1)
    assert set(shares) == {0.5}
    with pytest.raises(InputError, match="--gpu-slots 0"):
        lease("auto", 0).__enter__()


def test_a_divided_gpu_gives_each_job_one_instance(gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-one,MIG-two")
    with lease("auto") as first:
        assert first == torch.device("cuda", 0)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-one"
        # Of another process, in truth.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-one,MIG-two")
        with lease("auto"):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-two"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-one,MIG-two")
        with pytest.raises(InputError, match="can't train together on MIG instances"):
            lease_several("auto", 2).__enter__()


def test_what_nvidia_smi_lists_are_instances_and_undivided_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine.shutil, "which", lambda program: program)
    listed = SimpleNamespace(returncode=0, stdout=SMI)
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: listed)
    assert machine.mig_devices() == ["MIG-one", "MIG-two"]
    monkeypatch.delenv("LTPIPE_DEVICE", raising=False)
    assert machine.gpu_count() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb,-1")
    assert (machine.mig_devices(), machine.gpu_count()) == ([], 1)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(gpus):
    gpus(0)
    with lease("auto") as device:
        assert device.type == "cpu"
    with pytest.raises(InputError, match="sees no CUDA device"), lease("cuda"):
        pass


def test_on_a_gpu_float32_is_float32_and_sums_are_asked_to_have_an_order(gpus, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with lease("auto") as device:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with warnings.catch_warnings(record=True) as shown, devices.undetermined() as names:
            warnings.simplefilter("always")
            # The one operation on CPUs that torch warns of.
            for _ in range(2):
                torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
            warnings.warn("something else", stacklevel=1)
        assert names == ["put_"]
        assert [str(warning.message) for warning in shown] == ["something else"]
        assert devices.numerics(device, names) == {
            "tf32": False,
            "bfloat16": "emulated",
            "not_deterministic": ["put_"],
        }
        assert devices.precision("auto", device, "training") is torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert devices.numerics(CPU, []) == {}


def test_precision_is_what_the_table_says_of_this_kind_of_processor(monkeypatch, tmp_path):
    assert devices.precision("fp32", CPU, "training") is torch.float32
    assert devices.precision("bf16", CPU, "training") is torch.bfloat16
    # What was measured: units for bfloat16 pay for all work, and without them it pays for none.
    found = {}
    for kind in ("amx", "avx512_bf16", "none"):
        monkeypatch.setattr(devices, "units", lambda kind=kind: kind)
        works = ("training", "extraction", "products")
        found[kind] = [
            work for work in works if devices.precision("auto", CPU, work) is torch.bfloat16
        ]
    assert found["amx"] == found["avx512_bf16"] == ["training", "extraction", "products"]
    assert found["none"] == []
    rows = list(csv.DictReader(devices.PRECISIONS.open(encoding="utf-8")))
    for kind, works in found.items():
        for row in rows:
            if row["units"] == kind:
                pays = float(row["bf16"]) >= 1.2 * float(row["fp32"])
                assert (row["work"] in works) is pays
    assert {row["units"] for row in rows} <= found.keys()
