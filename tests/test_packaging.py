"""One list of requirements, wherever it is read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_constraints_pin_every_requirement_within_its_range():
    from packaging.requirements import Requirement

    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    listed = project()["dependencies"] + project()["optional-dependencies"]["dev"]
    for text in listed:
        requirement = Requirement(text)
        version = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), text


def test_the_workflow_is_tested_with_the_ends_of_snakemakes_range():
    from packaging.requirements import Requirement

    (wanted,) = [r for r in map(Requirement, project()["dependencies"]) if r.name == "snakemake"]
    (line,) = re.findall(r"^SNAKEMAKES := (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    oldest, newest = line.split()
    assert f">={oldest.removesuffix('.0')}" in str(wanted.specifier)
    assert f"snakemake=={newest}\n" in (REPOSITORY / "constraints.txt").read_text()
    assert wanted.specifier.contains(oldest)
    assert wanted.specifier.contains(newest)


def test_conda_users_get_the_same_list():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e ."]}
    assert conda == [f"python {project()['requires-python']}", "pip"]


def test_readme_names_the_two_commands_first():
    text = (REPOSITORY / "README.md").read_text()
    assert text.index("make demo") < text.index("make test") < text.index("## Use")


def test_versions_agree():
    from ltpipe import __version__

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert __version__ == project()["version"] == citation["version"]
    assert re.search(
        r"^## (Unreleased|" + re.escape(__version__) + ")",
        (REPOSITORY / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )


def test_constraints_leave_a_gpus_libraries_to_torch():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("cuda", "nvidia", "triton"))]
