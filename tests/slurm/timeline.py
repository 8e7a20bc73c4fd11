"""Print when each job of a run was on the cluster; 1 unless two of stage two overlapped."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path


def jobs(folder: Path) -> list[dict[str, str]]:
    """Return SLURM's records of the jobs of a working folder that it still remembers."""
    shown = subprocess.run(
        ["scontrol", "-o", "show", "jobs"], capture_output=True, text=True, check=True
    )
    found = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.stdout.splitlines()]
    return [job for job in found if job.get("WorkDir") == str(folder)]


def main() -> int:
    """Print a line a job, and which of stage two ran side by side."""
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    for job in sorted(jobs(Path.cwd()), key=lambda job: job["StartTime"]):
        rule = job.get("Comment", "").removeprefix("rule_").partition("_wildcards")[0]
        start, stop = (datetime.fromisoformat(job[key]) for key in ("StartTime", "EndTime"))
        spans.setdefault(rule, []).append((start, stop))
        gpu = "gpu" if "gres/gpu" in job.get("ReqTRES", job.get("TRES", "")) else ""
        print(
            f"job {job['JobId']:>3}  {job['Partition']:<5} {gpu:<4} {rule:<10} "
            f"{start:%H:%M:%S} to {stop:%H:%M:%S}  {job['JobState']}, "
            f"restarted {job.get('Restarts', '0')} times"
        )
    # Groups are named before their rules.
    classify = sorted(
        span for rule, found in spans.items() if rule.endswith("classify") for span in found
    )
    side_by_side = [
        (first, second)
        for place, first in enumerate(classify)
        for second in classify[place + 1 :]
        if second[0] < first[1]
    ]
    print(f"{len(side_by_side)} pairs of {len(classify)} stage-two jobs ran side by side")
    return 0 if side_by_side else 1


if __name__ == "__main__":
    sys.exit(main())
