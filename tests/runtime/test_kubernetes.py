"""What Kubernetes is asked for, with a stand-in for its command."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ltpipe.runtime import kubernetes

# Keeps what it is given and answers with the file that a test has left.
KUBECTL = """#!/bin/sh
echo "$@" >> {0}/calls
[ "$1" = create ] && cat > {0}/job.json
[ "$1" = get ] && cat {0}/answer.json
[ -z "$FAIL" ] || {{ echo "forbidden" >&2; exit 1; }}
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    for name in ("LTPIPE_DATA", "LTPIPE_DEVICE", "LTPIPE_PLAN", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LTPIPE_PLAN", "results/plans/a.json")
    for name, value in (("IMAGE", "registry/ltpipe:1"), ("CLAIM", "shared"), ("MOUNT", tmp_path)):
        monkeypatch.setenv(f"LTPIPE_{name}", str(value))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def submit(gpus: int) -> int:
    asked = ["--threads=4", "--memory=16000", f"--gpus={gpus}", "--minutes=90"]
    return kubernetes.main(["submit", "--rule=import_features", *asked, "job.sh"])


def test_a_job_asks_for_limits_on_the_shared_volume(cluster, capsys):
    assert submit(gpus=2) == 0
    job = json.loads((cluster / "job.json").read_text())
    assert capsys.readouterr().out.strip() == job["metadata"]["name"]
    assert job["metadata"]["name"].startswith("ltpipe-import-features-")
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 90 * 60
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    wanted = {"cpu": "4", "memory": "16000M", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"limits": wanted, "requests": wanted}
    assert container["command"] == ["/bin/sh", str(cluster / "work/job.sh")]
    assert container["workingDir"] == str(cluster / "work")
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": str(cluster)}]
    assert container["env"] == [{"name": "LTPIPE_PLAN", "value": "results/plans/a.json"}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_a_job_without_a_gpu_names_none(cluster):
    assert submit(gpus=0) == 0
    assert "nvidia" not in (cluster / "job.json").read_text()


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "running"),
        ([{"type": "Complete", "status": "True"}], "success"),
        ([{"type": "Failed", "status": "True"}], "failed"),
        ([{"type": "Failed", "status": "False"}], "running"),
    ],
)
def test_states(cluster, capsys, conditions, state):
    (cluster / "answer.json").write_text(json.dumps({"status": {"conditions": conditions}}))
    assert kubernetes.main(["status", "ltpipe-a"]) == 0
    assert capsys.readouterr().out.strip() == state
    assert (cluster / "calls").read_text() == "get job ltpipe-a -o json\n"


def test_cancelled_jobs_are_deleted(cluster):
    assert kubernetes.main(["cancel", "a", "b"]) == 0
    assert (cluster / "calls").read_text() == "delete job --ignore-not-found a b\n"


def test_what_is_wrong_is_said_in_one_line(cluster, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "1")
    assert submit(gpus=0) == 1
    assert capsys.readouterr().err == "error: kubectl create: forbidden\n"
    monkeypatch.setenv("LTPIPE_MOUNT", "/elsewhere")
    assert submit(gpus=0) == 1
    assert "is not below /elsewhere" in capsys.readouterr().err
    monkeypatch.delenv("LTPIPE_CLAIM")
    assert submit(gpus=0) == 1
    assert "set LTPIPE_CLAIM" in capsys.readouterr().err
    monkeypatch.setenv("LTPIPE_CLAIM", "shared")
    monkeypatch.setenv("LTPIPE_MOUNT", str(cluster))
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    assert submit(gpus=0) == 1
    assert "kubectl is not installed" in capsys.readouterr().err
