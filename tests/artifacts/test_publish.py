"""`ltpipe publish`: the path for people leads to the newest report."""

from __future__ import annotations

import shutil
from pathlib import Path

from ltpipe.cli.program import main
from tests import plans


def test_it_leads_to_the_report_that_was_published_last(tiny):
    first = Path(plans.plan_of(tiny / "experiment.yaml").report.folder)
    assert main(["publish", str(first)]) == 0
    latest = Path("results/experiments/tiny/latest")
    assert latest.resolve() == first.resolve()
    values = {**plans.EXPERIMENT, "title": "Second"}
    second = plans.plan_of(plans.write_experiment(tiny, values)).report
    assert plans.run_cell(second) == 0
    mark = first.parent / "published" / first.name
    mark.parent.mkdir()
    mark.touch()
    assert main(["publish", second.folder]) == 0
    assert latest.resolve() == Path(second.folder).resolve() and not mark.exists()


def test_a_copy_that_followed_links_is_replaced(tiny):
    report = Path(plans.plan_of(tiny / "experiment.yaml").report.folder)
    latest = report.parent / "latest"
    shutil.copytree(report, latest)
    assert main(["publish", str(report)]) == 0
    assert latest.is_symlink() and (latest / "report.html").is_file()


def test_an_unfinished_report_is_not_published(tiny, capsys):
    report = Path(plans.plan_of(tiny / "experiment.yaml").report.folder)
    (report / "manifest.json").unlink()
    assert main(["publish", str(report)]) == 2
    assert "no finished report" in capsys.readouterr().err
    assert not (report.parent / "latest").exists()
