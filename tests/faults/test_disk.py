"""Disks that are full, read-only or failing; files that are cut, damaged or gone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ltpipe.cli.program import main
from ltpipe.features.store import FeatureStore
from ltpipe.utils import io
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, is_temporary, refusal, write_text_atomic
from tests import plans


def left_half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and is_temporary(path)]


def error_line(capsys) -> str:
    message = capsys.readouterr().err
    assert message.startswith("ltpipe: error: ") and message.count("\n") == 1, message
    return message


def test_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle):
        steps.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    def rename(self, target):
        steps.append(f"rename to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_text_atomic(tmp_path / "folder" / "a.txt", "text")
    assert len(steps) == 3
    assert steps[0].startswith("sync .a.txt.")
    assert steps[1:] == ["rename to a.txt", "sync folder"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_is_killed_leaves_no_file_of_that_name(tmp_path):
    code = (
        "import os, sys; from ltpipe.utils.io import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.txt").exists()
    (left,) = tmp_path.iterdir()
    assert is_temporary(left)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on device; free some space"),
        (OSError(errno.EDQUOT, "x"), "free some space"),
        (OSError(errno.EROFS, "x"), "read-only file system; make it writable"),
        (PermissionError(errno.EACCES, "x"), "permission denied; make it writable"),
        (OSError(errno.EIO, "x"), "the disk is failing"),
        (OSError("Can't write data (errno = 28, error message = 'No space')"), "no space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
        (OSError(errno.ENOENT, "x"), None),
        (ValueError("something else"), None),
    ],
)
def test_what_the_system_refused(error, words):
    said = refusal(error)
    assert (said is None) if words is None else (words in str(said))


SPLITS = ["draw", "import", "classify", "report"]


@pytest.mark.parametrize("place", range(4), ids=SPLITS)
def test_a_full_disk_ends_a_job_with_one_line(tiny, capsys, monkeypatch, place):
    """The n-th file that a job syncs meets a full disk; afterwards the job runs as ever."""
    plan = plans.plan_of(tiny / "experiment.yaml")
    cells = [*plan.of_kind("data"), *plan.of_kind("import"), *plan.of_kind("stage2")[:1]]
    cell = [*cells, plan.report][place]
    whole = {path: path.read_bytes() for path in Path(cell.folder).rglob("*") if path.is_file()}
    shutil.rmtree(cell.folder)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(io, "_sync", full)
        assert plans.run_cell(cell) == os.EX_IOERR
    assert "no space left on device; free some space and run again" in error_line(capsys)
    assert not Path(cell.folder, "manifest.json").exists()
    assert left_half_written(tiny) == []
    assert plans.run_cell(cell) == 0
    for path, content in whole.items():
        if path.name not in ("manifest.json", "report.html", "index.csv"):
            assert path.read_bytes() == content, path


def command_of(cell) -> list[str]:
    roles = [f"--input={role}={needed.folder}" for role, needed in cell.inputs.items()]
    head = [sys.executable, "-m", "ltpipe", cell.stage.command]
    return [*head, "--spec", cell.spec_text, "--output", cell.folder, *roles]


def limited(size: int):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["import", "stage2"])
def test_files_that_may_not_grow(tiny, kind):
    """HDF5 and safetensors meet the system's refusal themselves, in the middle of a file."""
    cell = plans.plan_of(tiny / "experiment.yaml").of_kind(kind)[0]
    shutil.rmtree(cell.folder)
    done = subprocess.run(
        command_of(cell), capture_output=True, text=True, preexec_fn=lambda: limited(100)
    )
    assert done.returncode == os.EX_IOERR, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "ulimit -f" in done.stderr
    assert left_half_written(tiny) == []
    assert not Path(cell.folder, "manifest.json").exists()


@pytest.mark.heavy
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_really_full(tiny, tmp_path):
    cell = plans.plan_of(tiny / "experiment.yaml").of_kind("import")[0]
    shutil.rmtree(cell.folder)
    disk = Path(cell.folder).absolute()
    disk.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        done = subprocess.run(command_of(cell), capture_output=True, text=True)
        assert done.returncode == os.EX_IOERR, done.stderr
        assert "no space left on device" in done.stderr and done.stderr.count("\n") == 1
        assert left_half_written(disk) == []
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert subprocess.run(command_of(cell), capture_output=True).returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_results_folder(tiny, capsys, monkeypatch):
    cell = plans.plan_of(tiny / "experiment.yaml").of_kind("stage2")[0]
    shutil.rmtree(cell.folder)
    real = os.mkdir

    def read_only(path, *arguments, **options):
        if str(cell.folder) in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", read_only)
    assert plans.run_cell(cell) == os.EX_IOERR
    line = error_line(capsys)
    assert "read-only file system" in line and "results/stage2" in line


def test_checking_and_explaining_open_nothing_to_write(tiny, capsys, monkeypatch):
    """An archive is often read-only."""
    real = os.open

    def read_only(path, flags, *arguments, **options):
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), path
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "mkdir", lambda *_, **__: pytest.fail("a folder is made"))
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert main(["verify"]) == 0
    (report,) = Path("results/experiments/tiny").iterdir()
    assert main(["why", str(report)]) == 0
    assert "its code is as it was" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.parametrize("gone", ["train.npz", "subset.h5", "train.h5", "test.h5"])
def test_an_input_that_vanished(tiny, capsys, gone):
    plan = plans.plan_of(tiny / "experiment.yaml")
    kind = {"train.npz": "import", "subset.h5": "import"}.get(gone, "stage2")
    (path,) = tiny.rglob(gone)
    path.unlink()
    cell = plan.of_kind(kind)[0]
    shutil.rmtree(cell.folder)
    assert plans.run_cell(cell) == 2
    assert gone in error_line(capsys)
    assert not Path(cell.folder).exists() or not list(Path(cell.folder).iterdir())


def test_an_input_that_was_never_finished(tiny, capsys):
    plan = plans.plan_of(tiny / "experiment.yaml")
    (store,) = plan.of_kind("import")
    Path(store.folder, "manifest.json").unlink()
    assert plans.run_cell(plan.of_kind("stage2")[0]) == 2
    assert "there is no finished artifact in" in error_line(capsys)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_feature_file(tiny, capsys, fraction):
    plan = plans.plan_of(tiny / "experiment.yaml")
    path = Path(plan.of_kind("import")[0].folder, "train.h5")
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    assert plans.run_cell(plan.of_kind("stage2")[0]) == 2
    assert "train.h5" in error_line(capsys)


def test_a_damaged_feature_file_is_refused_and_made_again(tiny, capsys):
    plan = plans.plan_of(tiny / "experiment.yaml")
    store = plan.of_kind("import")[0]
    path = Path(store.folder, "test.h5")
    whole = path.read_bytes()
    with h5py.File(path, "a") as file:
        file["features"][0, 0] += 1
    assert plans.run_cell(plan.of_kind("stage2")[0]) == 2
    assert "damaged; delete the folder and run again" in error_line(capsys)
    shutil.rmtree(store.folder)
    assert plans.run_cell(store) == 0
    assert path.read_bytes() == whole
    assert plans.run_cell(plan.of_kind("stage2")[0]) == 0


def test_counts_of_a_subset_that_were_edited_reach_no_features(tiny, capsys):
    plan = plans.plan_of(tiny / "experiment.yaml")
    path = Path(plan.of_kind("data")[0].folder, "subset.h5")
    with h5py.File(path, "a") as file:
        file["class_counts"][0] += 1
    store = plan.of_kind("import")[0]
    shutil.rmtree(store.folder)
    assert plans.run_cell(store) == 2
    assert f"{path}: damaged; delete the folder and run again" in error_line(capsys)


def test_metrics_that_were_edited_reach_no_report(tiny, capsys):
    plan = plans.plan_of(tiny / "experiment.yaml")
    path = Path(plan.of_kind("stage2")[0].folder, "metrics.csv")
    path.write_text(path.read_text().replace("accuracy,,0.", "accuracy,,1.", 1))
    shutil.rmtree(plan.report.folder)
    assert plans.run_cell(plan.report) == 2
    assert f"{path}: damaged; delete the folder and run again" in error_line(capsys)
    assert not Path(plan.report.folder, "report.html").exists()


def test_a_checkpoint_that_is_damaged_is_not_gone_on_from(tmp_path, capsys):
    import torch

    from ltpipe.training.checkpoint import Checkpoint

    checkpoint = Checkpoint(tmp_path / "resume", "run")
    checkpoint.save({"weight": torch.ones(3)}, {"epoch": 2})
    whole = checkpoint.path.read_bytes()
    assert checkpoint.load() is not None
    flipped = bytearray(whole)
    flipped[-2] ^= 1
    for data in (b"", whole[:20], whole[:-4], b"\xff" * 60, flipped):
        checkpoint.path.write_bytes(data)
        assert checkpoint.load() is None
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{checkpoint.path}: a damaged checkpoint; set aside")
        assert checkpoint.path.with_suffix(".damaged").read_bytes() == data
    checkpoint.path.write_bytes(whole)
    assert Checkpoint(tmp_path / "resume", "another run").load() is None


def test_damaged_weights_are_refused(tmp_path):
    import torch

    from ltpipe.models.building import load_weights

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, path)
    network = torch.nn.Linear(2, 2)
    load_weights(network, path)
    assert torch.equal(network.weight, load_file(path)["weight"])
    whole = path.read_bytes()
    for data in (b"", whole[:9], whole[:-3], bytes(reversed(whole))):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"damaged; delete it and run again"):
            load_weights(network, path)


def test_a_manifest_that_is_damaged_is_no_input(tiny, capsys):
    plan = plans.plan_of(tiny / "experiment.yaml")
    path = Path(plan.of_kind("import")[0].folder, "manifest.json")
    for text in ("", "{", "[]", json.dumps({"format": "ltpipe-manifest/1"})):
        path.write_text(text)
        cell = plan.of_kind("stage2")[0]
        assert plans.run_cell(cell) == 2
        assert f"{path}: " in error_line(capsys)
        assert not Path(cell.folder, "manifest.json").exists()


def test_half_written_files_are_never_read(tiny, capsys):
    plan = plans.plan_of(tiny / "experiment.yaml")
    for cell in plan.artifacts.values():
        for name in ("train.h5", "manifest.json", "subset.h5"):
            Path(cell.folder, f".{name}.abcdefgh.tmp").write_bytes(b"half")
    assert main(["verify"]) == 0
    cell = plan.of_kind("stage2")[0]
    shutil.rmtree(cell.folder)
    assert plans.run_cell(cell) == 0
    assert FeatureStore.open(Path(plan.of_kind("import")[0].folder, "train.h5")).labels.size == 75
    assert np.isin("abcdefgh", [path.name for path in Path(cell.folder).iterdir()]).sum() == 0
