"""Snakemake's jobs as Kubernetes jobs on one volume that all of them see.

Called by workflow/profiles/kubernetes through Snakemake's generic cluster executor, which shares
files as SLURM's does; the executor plug-in for Kubernetes shares none. What is sent goes through
`kubectl`.

python -m ltpipe.runtime.kubernetes submit ... SCRIPT     prints the job's name
python -m ltpipe.runtime.kubernetes status NAME           prints running, success or failed
python -m ltpipe.runtime.kubernetes cancel NAME ...
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltpipe.utils.errors import InputError

_GPU = "nvidia.com/gpu"
# Variables that jobs need beside those that Snakemake passes on itself.
_PASSED = ("LTPIPE_DATA", "LTPIPE_DEVICE", "LTPIPE_PLAN", "PYTHONPATH")
# A finished job is kept for its log, in seconds.
_KEPT = 86400


def job_body(
    name: str,
    script: Path,
    *,
    image: str,
    claim: str,
    mount: str,
    threads: int,
    memory: int,
    gpus: int,
    minutes: int,
) -> dict[str, Any]:
    """Return the manifest of a job that runs `script` in the working folder.

    GPUs are given by limits alone, and a job that wants none names none.

    Args:
        claim: the persistent volume claim that holds sources, data and results.
        mount: where it is mounted, here and in the job.
        memory: in MB; more ends the job, as its time does.
    """
    amounts = {"cpu": str(threads), "memory": f"{memory}M", **({_GPU: str(gpus)} if gpus else {})}
    container = {
        "name": "job",
        "image": image,
        "command": ["/bin/sh", str(script)],
        "workingDir": str(Path.cwd()),
        "env": [{"name": key, "value": os.environ[key]} for key in _PASSED if key in os.environ],
        "resources": {"limits": amounts, "requests": amounts},
        "volumeMounts": [{"name": "shared", "mountPath": mount}],
    }
    tolerated = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "tolerations": tolerated,
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app": "ltpipe"}},
        "spec": {
            # Snakemake itself tries again, with more of everything.
            "backoffLimit": 0,
            "activeDeadlineSeconds": 60 * minutes,
            "ttlSecondsAfterFinished": _KEPT,
            "template": {"spec": pod},
        },
    }


def state_of(job: dict[str, Any]) -> str:
    """Return running, success or failed for a job as Kubernetes describes it."""
    status = job.get("status", {})
    ended = {c["type"] for c in status.get("conditions", []) if c.get("status") == "True"}
    if "Complete" in ended:
        return "success"
    return "failed" if "Failed" in ended else "running"


def _submit(options: argparse.Namespace) -> None:
    for name in ("image", "claim", "mount"):
        if not getattr(options, name):
            raise InputError(f"set LTPIPE_{name.upper()}, as docs/cluster.md says")
    mount = Path(options.mount).resolve()
    if not Path.cwd().resolve().is_relative_to(mount):
        raise InputError(f"{Path.cwd()} is not below {mount}, which is all that jobs see")
    rule = "".join(letter if letter.isalnum() else "-" for letter in options.rule.lower())
    name = f"ltpipe-{rule}-{uuid.uuid4().hex[:12]}"
    body = job_body(
        name,
        options.script.resolve(),
        image=options.image,
        claim=options.claim,
        mount=str(mount),
        threads=options.threads,
        memory=options.memory,
        gpus=options.gpus,
        minutes=options.minutes,
    )
    _kubectl(["create", "-f", "-"], json.dumps(body))
    print(name)


def _kubectl(arguments: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError("kubectl is not installed here; jobs are sent with it") from None
    if done.returncode:
        raise InputError(f"kubectl {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Run one of the three commands; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit")
    submit.add_argument("--rule", required=True)
    for name in ("threads", "memory", "gpus", "minutes"):
        submit.add_argument(f"--{name}", type=int, required=True)
    for name in ("image", "claim", "mount"):
        submit.add_argument(f"--{name}", default=os.environ.get(f"LTPIPE_{name.upper()}"))
    submit.add_argument("script", type=Path)
    commands.add_parser("status").add_argument("name")
    commands.add_parser("cancel").add_argument("names", nargs="+")
    options = parser.parse_args(arguments)
    try:
        if options.command == "submit":
            _submit(options)
        elif options.command == "status":
            print(state_of(json.loads(_kubectl(["get", "job", options.name, "-o", "json"]))))
        else:
            _kubectl(["delete", "job", "--ignore-not-found", *options.names])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
