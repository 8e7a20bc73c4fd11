"""A flipped bit of an artifact is noticed, or changes nothing."""

from __future__ import annotations

import pytest

from ltpipe.artifacts.reading import Artifact
from tests.fuzz import flips

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("flips"))
        patch.delenv("LTPIPE_DATA", raising=False)
        patch.setenv("LTPIPE_DEVICE", "cpu")
        yield flips.World()


def test_no_flip_changes_what_is_read(world):
    found = flips.flip(world, 150)
    assert len(found) == 9
    assert all(counts.keys() <= {"refused", "equal"} for counts in found.values()), found
    assert sum(counts["refused"] for counts in found.values()) > 100


def test_a_reader_that_does_not_look_is_caught(world, monkeypatch):
    monkeypatch.setattr(Artifact, "file", lambda self, name: self.folder / name)
    found = flips.flip(world, 60, seed=1)
    assert sum(counts["silent"] for counts in found.values()) > 3


def test_no_flip_changes_the_results_of_a_run(world):
    assert flips.follow(world, 3)["silent"] == 0


@pytest.mark.slow
def test_two_thousand_flips(world):
    found = flips.flip(world, 2000, seed=2)
    assert all(counts.keys() <= {"refused", "equal"} for counts in found.values()), found
    assert flips.follow(world, 50, seed=2)["silent"] == 0
