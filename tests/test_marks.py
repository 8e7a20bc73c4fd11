"""What tests are marked with is true: `make test-fast` leaves out all that start Snakemake."""

from __future__ import annotations

import subprocess
import sys


def test_snakemake_does_not_start_in_a_test_without_the_mark(tmp_path):
    (tmp_path / "Snakefile").write_text("rule all:\n    output: touch('made')\n")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "test-without-the-mark-workflow" in done.stderr
    assert not (tmp_path / "made").exists()
