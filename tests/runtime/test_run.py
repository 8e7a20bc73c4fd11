"""What the Snakefile asks before it plans."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from ltpipe.runtime.run import plan_run
from ltpipe.utils.errors import InputError
from tests import plans

HOME = plans.CATALOGUE.parent


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "LTPIPE_PLAN": ""})


def test_what_snakemake_takes_silently_is_refused(tmp_path):
    """It reads the file before the Snakefile does, and takes the last of equal keys."""
    plans.write_embeddings(tmp_path)
    path = plans.write_experiment(tmp_path)
    values = yaml.safe_load(path.read_text())
    assert list(plan_run(values, HOME, [path]).reports) == ["tiny"]
    os.environ.pop("LTPIPE_PLAN")
    path.write_text(path.read_text() + "experiment: other\n")
    with pytest.raises(InputError, match=r"experiment.yaml: line \d+: key 'experiment' stands tw"):
        plan_run(yaml.safe_load(path.read_text()), HOME, [path])


def test_braces_in_the_path_are_told_of(tmp_path, monkeypatch):
    folder = Path(tmp_path, "a{b}")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="takes braces in a path for names"):
        plan_run(plans.EXPERIMENT, HOME, [])
