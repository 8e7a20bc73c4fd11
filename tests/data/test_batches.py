import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ltpipe.data import batches as module
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import open_batches
from ltpipe.data.images import ArrayImages, FileImages
from ltpipe.utils.errors import InputError

RANDOM = np.random.default_rng(0)
PLAN = Augmentation((8, 8), padding=2, flip=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def array(n=50, height=10, width=9, channels=3):
    return RANDOM.integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def decode_threads():
    return [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize("kind", ["array", "files"])
@pytest.mark.parametrize("augmented", [True, False])
def test_resident_and_streamed_batches_are_equal(files, kind, augmented):
    paths, pixels = files
    images = ArrayImages(pixels) if kind == "array" else FileImages(paths, (10, 10))
    index = RANDOM.permutation(40)[:33]
    order = torch.from_numpy(RANDOM.integers(0, 33, 70))
    runs = []
    for limit in (None, 0):
        batches = open_batches(images, index, PLAN, "cpu", limit)
        assert (batches.resident, len(batches)) == (limit is None, 33)
        runs.append(list(batches.epoch(order, 16, generator() if augmented else None)))
    assert [len(batch) for batch in runs[0]] == [16, 16, 16, 16, 6]
    for resident, streamed in zip(*runs, strict=True):
        assert resident.dtype == torch.uint8
        assert resident.is_contiguous(memory_format=torch.channels_last)
        assert streamed.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(resident, streamed)
    if not augmented:
        expected = pixels[index][order.numpy()][:, 1:9, 1:9].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(torch.cat(runs[0]).numpy(), expected)


def test_epochs_differ_by_generator_only():
    batches = open_batches(ArrayImages(array()), np.arange(50), PLAN, "cpu")
    order = torch.arange(50)
    epochs = [torch.cat(list(batches.epoch(order, 20, generator(s)))) for s in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


@pytest.mark.parametrize("limit", [None, 0])
def test_empty_order_gives_no_batch(limit):
    batches = open_batches(ArrayImages(array()), np.arange(50), PLAN, "cpu", limit)
    assert list(batches.epoch(torch.empty(0, dtype=torch.int64), 8, None)) == []


def test_memory_limit_decides_between_resident_and_streamed():
    images = ArrayImages(array())
    for limit, resident in ((images.nbytes(50), True), (images.nbytes(50) - 1, False)):
        assert open_batches(images, np.arange(50), PLAN, "cpu", limit).resident is resident


def test_free_memory_respects_the_cgroup(monkeypatch):
    monkeypatch.setattr(module, "_system_memory", lambda: 5000)
    for limit, free in ((1000, 1000), (2**63 - 1, 5000)):
        monkeypatch.setattr(module, "_cgroup_limit", lambda limit=limit: limit)
        assert module._free_memory(torch.device("cpu")) == free


def test_system_memory_is_within_the_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < module._system_memory() <= total


def test_cgroup_limit_is_the_tightest(tmp_path):
    own, base = tmp_path / "cgroup", tmp_path / "fs"
    (base / "job/step").mkdir(parents=True)
    assert module._cgroup_limit(own, base) == 2**63 - 1
    own.write_text("7:memory:/other\n0::/job/step\n")
    (base / "memory.max").write_text("max\n")
    assert module._cgroup_limit(own, base) == 2**63 - 1
    (base / "job/step/memory.max").write_text("4096\n")
    assert module._cgroup_limit(own, base) == 4096
    (base / "memory.max").write_text("1024\n")
    assert module._cgroup_limit(own, base) == 1024


class Counting:
    """Images that count loads and fail at one position."""

    def __init__(self, n, bad=None):
        self.shape, self.n, self.bad, self.loaded = (8, 8, 1), n, bad, 0
        self.lock = threading.Lock()

    def __len__(self):
        return self.n

    def nbytes(self, n):
        return 64 * n

    def load(self, index):
        with self.lock:
            self.loaded += len(index)
        if self.bad in index:
            raise InputError("image 77.jpg can't be read")
        return np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (len(index), 8, 8, 1))


def test_streaming_reads_a_bounded_number_of_batches_ahead():
    images = Counting(1000)
    epoch = open_batches(images, np.arange(1000), PLAN, "cpu", 0).epoch(
        torch.arange(1000), 20, None
    )
    next(epoch)
    epoch.close()
    assert 20 <= images.loaded <= 3 * 20
    assert not decode_threads()


def test_closing_early_or_dropping_the_epoch_ends_its_threads(files):
    batches = open_batches(FileImages(files[0], (10, 10)), np.arange(40), PLAN, "cpu", 0)
    for _ in batches.epoch(torch.arange(40), 4, generator()):
        break
    assert not decode_threads()
    list(batches.epoch(torch.arange(40), 4, generator()))
    assert not decode_threads()


def test_a_worker_error_reaches_the_caller_in_order():
    batches = open_batches(Counting(100, bad=77), np.arange(100), PLAN, "cpu", 0)
    seen = 0
    with pytest.raises(InputError, match=r"77\.jpg"):
        for batch in batches.epoch(torch.arange(100), 20, None):
            seen += len(batch)
    assert seen == 60
    assert not decode_threads()


def test_resident_loading_reports_a_damaged_file(files):
    paths = [*files[0], Path("absent.png")]
    with pytest.raises(InputError, match=r"absent\.png"):
        open_batches(FileImages(paths, (10, 10)), np.arange(41), PLAN, "cpu")


def test_input_larger_than_the_stored_images():
    with pytest.raises(InputError, match="smaller than the input size 12 x 12"):
        open_batches(ArrayImages(array()), np.arange(5), Augmentation((12, 12), 4), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_resident_and_streamed_batches_equal_the_cpu(files):
    images = FileImages(files[0], (10, 10))
    order = torch.from_numpy(RANDOM.integers(0, 40, 90))
    expected = torch.cat(
        list(open_batches(images, np.arange(40), PLAN, "cpu").epoch(order, 16, generator()))
    )
    for limit in (None, 0):
        batches = open_batches(images, np.arange(40), PLAN, "cuda", limit)
        result = torch.cat(list(batches.epoch(order, 16, generator())))
        assert result.device.type == "cuda"
        assert torch.equal(result.cpu(), expected)
