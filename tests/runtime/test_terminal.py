"""What a run shows, record by record, as Snakemake hands records to its logger plug-in."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from ltpipe.runtime.terminal import LogHandler
from ltpipe.utils import progress


class Terminal(io.StringIO):
    """A stream that may pass for a terminal."""

    def __init__(self, is_terminal=False):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def handler(monkeypatch, stream, **settings):
    monkeypatch.setattr("sys.stderr", stream)
    defaults = {"verbose": False, "printshellcmds": False, "dryrun": False, "quiet": None}
    return LogHandler(SimpleNamespace(stdout=False, **{**defaults, **settings}), None)


def record(text="", event=None, level=logging.INFO, **values):
    made = logging.LogRecord("snakemake", level, "", 0, text, None, None)
    for name, value in {"event": event, **values}.items():
        setattr(made, name, value)
    return made


def begun(number, title, log, rule="train"):
    return record(
        event=LogEvent.JOB_INFO, jobid=number, rule_name=rule, rule_msg=title, log=[str(log)]
    )


def test_a_job_is_a_line_when_it_starts_and_one_when_it_is_done(monkeypatch, tmp_path):
    stream = Terminal()
    shown = handler(monkeypatch, stream)
    shown.emit(record("Building DAG of jobs..."))
    shown.emit(record("Job stats: 2", event=LogEvent.RUN_INFO, stats={"total": 2}))
    shown.emit(begun(7, "Train ce on photos, seed 0", tmp_path / "log"))
    shown.emit(record(event=LogEvent.JOB_FINISHED, job_id=7))
    shown.emit(record("a warning", level=logging.WARNING))
    shown.close()
    said = stream.getvalue().splitlines()
    assert said[:2] == ["Job stats: 2", "Job 7: Train ce on photos, seed 0"]
    assert said[2].startswith("[1/2] Train ce on photos, seed 0: done in 0:0")
    assert said[3] == "a warning"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("step 1\nltpipe: error: photo.jpg can't be read\n", "photo.jpg can't be read"),
        (
            "Traceback (most recent):\n  File x\nMemoryError: 4 GiB\n",
            "MemoryError: 4 GiB",
        ),
        ("ltpipe: error: a\nafterword\n", "a"),
        ("killed without an error line\n", "killed without an error line"),
        ("", "it left no message"),
    ],
)
def test_what_a_failed_job_said_last_stands_last(log, reason, monkeypatch, tmp_path):
    stream = Terminal()
    shown = handler(monkeypatch, stream)
    (tmp_path / "log").write_text(log)
    shown.emit(begun(1, "Embed photos", tmp_path / "log"))
    shown.emit(record("Error in rule embed", LogEvent.JOB_ERROR, logging.ERROR, jobid=1))
    for text in ("RuleException:\nCalledProcessError in file x", "Complete log(s): y"):
        shown.emit(record(text, level=logging.ERROR))
    shown.close()
    said = stream.getvalue().splitlines()
    assert said[-1] == f"  {reason}"
    assert said[-2] == f"failed: Embed photos (log: {tmp_path / 'log'})"
    assert "RuleException" not in stream.getvalue()


def test_a_dry_run_is_a_line_a_kind_of_job(monkeypatch, tmp_path):
    stream = Terminal()
    shown = handler(monkeypatch, stream, dryrun=True)
    stats = {"event": LogEvent.RUN_INFO, "stats": {"total": 60}}
    shown.emit(record("Job stats: 60", **stats))
    for number in range(60):
        kind = "train" if number < 20 else "classify"
        title = f"{kind} number {number} " + "with a long reason " * 40
        shown.emit(begun(number, title, tmp_path / "log", rule=kind))
    shown.emit(record("Job stats: 60", **stats))
    shown.emit(record("Reasons:\n    (check individual jobs above for details)"))
    shown.close()
    said = stream.getvalue().splitlines()
    assert len(said) <= 6 and max(map(len, said)) <= 200
    assert said[1].split()[:4] == ["20", "train", "train", "number"]
    assert said[2].split()[:4] == ["40", "classify", "classify", "number"]


def test_running_jobs_stand_below_with_their_own_words(monkeypatch, tmp_path):
    stream = Terminal(is_terminal=True)
    monkeypatch.setattr("ltpipe.runtime.terminal._REFRESH_SECONDS", 1000.0)
    shown = handler(monkeypatch, stream)
    (tmp_path / "log").write_text("hello\nnet: 3/60, loss 0.5, 1:10 left\nsomething else\n")
    shown.emit(record("Job stats", event=LogEvent.RUN_INFO, stats={"total": 9}))
    shown.emit(begun(1, "Train ce", tmp_path / "log"))
    shown.emit(begun(2, "Train kps", tmp_path / "absent"))
    first, second, last = shown._status()
    assert first == "  Train ce: net: 3/60, loss 0.5, 1:10 left"
    assert second.startswith("  Train kps: running for 0:0")
    assert last.startswith("  0 of 9 jobs done, 0:0")
    shown.close()


def test_loops_leave_a_line_an_item_or_every_few_seconds_where_there_is_no_terminal(
    monkeypatch, capsys
):
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = progress.track(range(2, 5), "net", 5, 2, every=True)
    for _ in bar:
        bar.set_postfix(loss="0.5")
    # Each of three epochs took a second: two are left after the first.
    assert capsys.readouterr().err.splitlines() == [
        "net: 3/5, loss 0.5, 0:02 left",
        "net: 4/5, loss 0.5, 0:01 left",
        "net: 5/5, loss 0.5, 0:00 left",
    ]
    assert list(progress.track(range(5), "batches")) == [0, 1, 2, 3, 4]
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert list(progress.track(iter("ab"), "unknown", every=True)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["unknown: 1, 0:01", "unknown: 2, 0:02"]
