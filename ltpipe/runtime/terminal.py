"""What a run of the workflow shows: a line a job, how far the running ones are, what failed.

Snakemake's own form, every file and resource of every job, is shown with `--verbose` or
`--printshellcmds`, and always kept in the log of the run that is named at its end.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from logging import ERROR, WARNING, Formatter, LogRecord
from pathlib import Path
from typing import Any, TextIO

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from ltpipe.plan.stages import LATEST
from ltpipe.utils.progress import duration

_REFRESH_SECONDS = 0.5
# How many running jobs are shown below each other.
_SHOWN = 4
_TAIL_BYTES = 4096
_WIDTH = 100
# What Snakemake says of itself that a person who waits for results needs not read.
_LEFT_OUT = re.compile(
    r"Assuming unrestricted shared|host: |Building DAG|Using shell|Select jobs to execute"
    r"|Execute \d+ jobs|Conda environments: ignored|This was a dry-run"
    r"|Updating |Shutting down|Exiting because|Finished jobid|Singularity containers"
    r"|Elapsed time|Rules claiming more threads|Provided cores: |Touching output"
    r"|Provided resources: gpu=(1$|Resource\(\"gpu\", 1\)$)"
)
_OF_FAILED_JOBS = (
    "At least one job did not complete",
    "WorkflowError:\nAt least one job did not complete",
    "RuleException:\nCalledProcessError",
    "Exiting because a job execution failed",
)
# A line of `ltpipe.utils.progress`, or of a library's bar.
_PROGRESS = re.compile(r": \d+(/\d+)?,")
_ERROR = re.compile(r"^(ltpipe: error: |\w*(?:Error|Exception|Interrupt)\b)")


@dataclass
class _Job:
    """One job of this run: what it is called, its log, when it was started."""

    number: int
    rule: str
    title: str
    log: Path | None
    started: float = field(default_factory=time.monotonic)


class LogHandler(LogHandlerBase):
    """Writes a run to the terminal, or to whatever stands in its place."""

    def __post_init__(self) -> None:
        settings = self.common_settings
        self._stream: TextIO = sys.stdout if settings.stdout else sys.stderr
        self._details = bool(settings.verbose or settings.printshellcmds)
        quiet = {str(what).rsplit(".", 1)[-1].lower() for what in settings.quiet or ()}
        self._quiet = bool(quiet & {"all", "rules", "progress"}) and not settings.dryrun
        self._jobs: dict[int, _Job] = {}
        self._failed: list[_Job] = []
        self._kinds: dict[str, list[str]] = {}
        self._done = self._total = 0
        self._started = time.monotonic()
        self._broken = self._complete = False
        self._drawn = 0
        self._guard = threading.RLock()
        self._ended = threading.Event()
        if self._stream.isatty() and not self._details and not settings.dryrun and not self._quiet:
            threading.Thread(target=self._refresh, daemon=True).start()

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        """Show one record of Snakemake's."""
        try:
            text = self._text(record)
            if text:
                self._write(text)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """End the run's output: what failed and why comes last."""
        if not self._ended.is_set():
            self._ended.set()
            self._write("\n".join(map(_failure, self._failed)))
            if self._complete and not self._broken and not self.common_settings.dryrun:
                self._show_results()
        super().close()

    def _show_results(self) -> None:
        """Print the table that the run was for, and where the report is."""
        # Imported by the Snakefile; where there was none, there is nothing to show.
        run = sys.modules.get("ltpipe.runtime.run")
        page = None if run is None else run.finished_page()
        if page is None:
            return
        table = (page / "summary.txt").read_text(encoding="utf-8").rstrip()
        latest = page.parent / LATEST
        report = (latest if latest.exists() else page) / "report.html"
        print(f"\n{table}\n\nreport: {report}", flush=True)

    def _text(self, record: LogRecord) -> str:
        values: Any = record
        event = getattr(record, "event", None)
        self._broken |= record.levelno >= ERROR
        if event == LogEvent.JOB_INFO:
            return self._begun(record, values)
        if event == LogEvent.JOB_FINISHED:
            return self._finished(int(values.job_id))
        if event == LogEvent.JOB_ERROR:
            job = self._jobs.pop(int(values.jobid), None)
            if job is not None:
                self._failed.append(job)
            return self._own(record) if self._details else ""
        if event == LogEvent.PROGRESS:
            self._done, self._total = int(values.done), int(values.total)
            return self._own(record) if self._details else ""
        if event == LogEvent.RUN_INFO:
            self._total = int(values.stats.get("total", 0))
            dry = self.common_settings.dryrun and not self._details
            return self._why() if dry else self._own(record)
        if self._details or event == LogEvent.GROUP_ERROR:
            return self._own(record)
        text = str(record.getMessage() or "")
        self._complete |= text.startswith("Nothing to be done")
        if event in (LogEvent.WORKFLOW_STARTED, LogEvent.RULEGRAPH):
            return ""
        if record.levelno < WARNING and (
            _LEFT_OUT.match(text) or (self.common_settings.dryrun and text.startswith("Reasons:"))
        ):
            return ""
        # The failed jobs themselves say it better, at the end.
        if text.startswith(_OF_FAILED_JOBS):
            return ""
        return self._own(record)

    def _own(self, record: LogRecord) -> str:
        """Return the record as Snakemake itself would show it."""
        return (self.formatter or Formatter()).format(record)

    def _begun(self, record: LogRecord, values: Any) -> str:
        if not values.rule_msg:
            # A rule that only names what is wanted.
            return self._own(record) if self._details else ""
        title = values.rule_msg
        log = Path(values.log[0]) if values.log else None
        self._jobs[int(values.jobid)] = _Job(int(values.jobid), values.rule_name, title, log)
        if self._details:
            return self._own(record)
        if self.common_settings.dryrun:
            # Each batch of results has a rule of its own, with a number.
            kind = re.sub(r"_\d+$", "", values.rule_name)
            self._kinds.setdefault(kind, []).append(title)
            return ""
        return "" if self._stream.isatty() else f"Job {values.jobid}: {title}"

    def _finished(self, number: int) -> str:
        job = self._jobs.pop(number, None)
        self._done += 1
        self._complete = True
        if job is None:
            return ""
        took = duration(time.monotonic() - job.started)
        return f"[{self._done}/{self._total or '?'}] {job.title}: done in {took}"

    def _why(self) -> str:
        """Return the plan of a dry run: a line a kind of job, with the first of its jobs."""
        if not self._kinds:
            return ""
        width = max(map(len, self._kinds))
        rows = [
            _cut(f"  {len(titles):>5}  {rule:<{width}}  {titles[0]}{', …' * (len(titles) > 1)}")
            for rule, titles in self._kinds.items()
        ]
        return "\n".join(
            [
                "Not there yet, and to be made:",
                *rows,
                "Nothing was run (-n). -p lists every job; `ltpipe why EXPERIMENT.yaml` says why.",
            ]
        )

    def _write(self, text: str) -> None:
        with self._guard:
            self._erase()
            if text and not self._quiet:
                self._stream.write(text + "\n")
            self._stream.flush()

    def _refresh(self) -> None:
        """Keep the running jobs in view at the bottom of the terminal."""
        while not self._ended.wait(_REFRESH_SECONDS):
            with self._guard:
                self._erase()
                lines = self._status()
                self._stream.write("".join(f"{line}\n" for line in lines))
                self._stream.flush()
                self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\033[{self._drawn}F\033[J")
            self._drawn = 0

    def _status(self) -> list[str]:
        running = list(self._jobs.values())
        if not running:
            return []
        lines = [_cut(f"  {job.title}: {_latest(job)}") for job in running[:_SHOWN]]
        if len(running) > _SHOWN:
            lines.append(f"  and {len(running) - _SHOWN} more")
        passed = duration(time.monotonic() - self._started)
        return [*lines, _cut(f"  {self._done} of {self._total} jobs done, {passed}")]


def _latest(job: _Job) -> str:
    """Return how far a running job says it is, in its own words."""
    found = [line for line in _tail(job.log) if _PROGRESS.search(line)]
    passed = duration(time.monotonic() - job.started)
    return found[-1] if found else f"running for {passed}"


def _failure(job: _Job) -> str:
    """Return why a job failed: the last line of its own that tells of an error."""
    lines = _tail(job.log) or ["it left no message"]
    told = [line for line in lines if _ERROR.match(line)]
    place = "" if job.log is None else f" (log: {job.log})"
    reason = (told or lines)[-1].removeprefix("ltpipe: error: ")
    return f"failed: {job.title}{place}\n  {reason}"


def _tail(path: Path | None) -> list[str]:
    """Return the last lines of a log, without empty ones."""
    if path is None:
        return []
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _cut(line: str) -> str:
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns - 1, 200)
    return line if len(line) <= width else line[: width - 1] + "…"
