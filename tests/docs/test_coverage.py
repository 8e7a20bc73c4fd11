"""Every number and figure of the papers is made, quoted, or left out with a reason."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.docs.test_docs import DOCS, tool


@pytest.fixture(scope="module")
def script():
    return tool("coverage")


@pytest.fixture(scope="module")
def coverage(script):
    return script.cover()


def test_no_published_row_or_figure_lacks_a_target_and_a_reason(script, coverage):
    assert script.missing(coverage) == []


def test_the_page_says_what_the_experiments_and_reasons_say(script, coverage):
    written = (DOCS / "coverage.md").read_text()
    assert written == script.page(coverage), "run python docs/coverage.py"


def test_a_row_that_nobody_makes_is_named(script, coverage):
    """Targets and reasons taken away, everything that a paper reports is missing."""
    for one in coverage:
        bare = script.Coverage(
            one.paper,
            one.rows.assign(made="", quoted="", reason=""),
            one.figures.assign(made="", reason=""),
        )
        found = script.missing([bare])
        assert len(found) == (one.rows["value"] != "NA").sum() + len(one.figures)
    lines = script.missing([script.Coverage("ffn", lost(coverage), pd.DataFrame(columns=FIGURES))])
    assert lines == ["ffn T5, ImageNet-LT (256), BBN, ResNet50: acc"]


FIGURES = ["paper", "figure", "shows", "made", "reason"]


def lost(coverage):
    rows = next(one for one in coverage if one.paper == "ffn").rows.copy()
    chosen = (rows["method"] == "BBN") & (rows["dataset"] == "ImageNet-LT")
    rows.loc[chosen, "made"] = ""
    return rows


def test_what_is_quoted_is_nobodys_own(coverage):
    """A number stands in a table once: as quoted only where no experiment makes it."""
    by_paper = {one.paper: one.rows for one in coverage}
    for paper, methods in {
        "dlsa": {"PaCo", "PaCo+DLSA", "CE+BalSoftmax", "PaCo+RIDE+DLSA"},
        "ecvl": {"BALLAD", "ECVL"},
        "cws": {"CWS"},
    }.items():
        own = by_paper[paper][by_paper[paper]["method"].isin(methods)]
        assert len(own)
        assert (own["made"] != "").all()
        assert (own["quoted"] == "").all()
    ballad = by_paper["ecvl"].query("table == 'T4' and method == 'BALLAD'")
    assert set(ballad["backbone"]) == {"ResNet50", "ResNet101", "ViT-B/16"}


def test_reasons_stand_for_rows_that_nobody_makes(coverage):
    """A reason left behind after its row got a target would be wrong."""
    for one in coverage:
        both = one.rows[(one.rows["reason"] != "") & (one.rows["made"] != "")]
        assert both.empty
