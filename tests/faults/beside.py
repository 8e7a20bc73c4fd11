"""Start two runs of one experiment beside each other, in two work folders that share `results`.

    python tests/faults/beside.py --trials 10

The second starts at a random moment of the first. Each must end with the bytes of a lone run, or
with one line that names the other; and what is left must be the lone run's.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltpipe.artifacts.verify import verify
from tests.faults.kill import contents, prepare, run_through, start
from tests.workflow.workspace import EXPERIMENT, Workspace


def trial(reference: Workspace, base: Path, after: float) -> list[str]:
    """Run two beside each other; return how each ended.

    Raises:
        AssertionError: one ended otherwise than with a lone run's bytes or with that line.
    """
    works = [base / "one", base / "two"]
    for work in works:
        work.mkdir(parents=True)
        shutil.copy(reference.work / "experiment.yaml", work)
        for path in reference.work.glob("*.npz"):
            shutil.copy(path, work)
    (works[0] / "results").mkdir()
    (works[1] / "results").symlink_to(works[0] / "results")
    first = start(Workspace(reference.source, works[0]))
    time.sleep(after)
    second = start(Workspace(reference.source, works[1]))
    ended = []
    for process, work in ((first, works[0]), (second, works[1])):
        said = (work / "stderr").read_text() if process.wait() else ""
        lines = [line for line in said.splitlines() if "a run is at work there already" in line]
        assert process.returncode == 0 or (len(lines) == 1 and "Traceback" not in said), said
        ended.append("refused" if process.returncode else "well")
    assert "well" in ended, ended
    assert contents(works[0]) == contents(reference.work)
    assert verify(works[0] / "results").wrong == []
    return ended


def main() -> int:
    """Print how each trial ended; 1 if one ended wrongly."""
    parser = argparse.ArgumentParser(description="Run two beside each other on one results folder.")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experiment", type=Path, help="default: the demo, cut down")
    options = parser.parse_args()
    values = EXPERIMENT
    if options.experiment:
        values = yaml.safe_load(options.experiment.read_text(encoding="utf-8"))
    stream, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="ltpipe-beside-") as folder:
        reference = prepare(Path(folder), values)
        length = run_through(reference)
        for number in range(1, options.trials + 1):
            # Some at once, where both plan and begin together.
            after = 0.0 if number % 3 == 0 else stream.uniform(0, length)
            work = Path(folder, f"trial{number}")
            try:
                said = " and ".join(trial(reference, work, after))
                shutil.rmtree(work)
            except AssertionError as error:
                wrong += 1
                said = f"WRONG: {error}"
            print(f"{number:2d}: the second after {after:5.1f} s: {said}", flush=True)
    print(f"{options.trials - wrong} of {options.trials} trials ended as they should")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
