"""What `ltpipe init` says, and the experiment file that it writes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader

from ltpipe.config.experiment import find_catalogue, load_experiment
from ltpipe.evaluation.metrics import describe_groups
from ltpipe.init.advice import Advice
from ltpipe.init.survey import ImageFacts, Survey
from ltpipe.plan.layout import build_plan
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path

_SHOWN = 5
# Of fewer test samples, an accuracy says little.
_FEW = 10
_COMMENTS = {
    "imbalance": "  # of the subset that is drawn, largest class over smallest",
    "subset_seeds": "  # a draw each; the table joins them",
    "flip": "  # whether left and right may be swapped",
    "orientation": "  # photos are turned as their cameras say",
    "padding": "  # training images are shifted by up to this many pixels",
    "resized_crop": "  # training images are random parts, resized",
    "features": "  # augmented views of each training image, cached for stage two",
    "weights": "  # torchvision's, fetched once",
}


def describe(survey: Survey) -> list[str]:
    """Return what was found, in lines."""
    names, counts = survey.class_names, survey.train
    order = np.argsort(-counts, kind="stable")
    largest = ", ".join(f"{names[c]} {counts[c]:,}" for c in order[:3])
    smallest = ", ".join(f"{names[c]} {counts[c]:,}" for c in order[-3:])
    lines = [
        f"{survey.title}: {len(names)} classes, {counts.sum():,} training samples, "
        f"{_number(survey.val)} for validation, {survey.test.sum():,} for testing",
        f"  largest classes    {largest}",
        f"  smallest classes   {smallest}",
        f"  imbalance          {survey.imbalance:.3g} (largest over smallest)",
    ]
    for rule in ("thresholds", "ranks"):
        groups = "/".join(str(number) for number in survey.group_sizes(rule).values())
        words = _words(survey, rule).removeprefix("many/medium/few: ")
        lines.append(f"  many/medium/few    {groups} classes ({words})")
    fewest = f"{survey.test.min():,} to {survey.test.max():,} a class"
    if survey.split_off:
        lines.append(f"  test set           none found: a fifth is set apart, {fewest}")
    else:
        lines.append(f"  test set           its own, {fewest}")
    if survey.images is not None:
        lines += _describe_images(survey.images)
    if survey.features is not None:
        low, high = survey.features.norms
        lines.append(
            f"  features           {survey.features.dimension} dimensions, norms {low:.3g} to "
            f"{high:.3g}, no NaN or infinite values"
        )
    return lines


def _number(counts: np.ndarray | None) -> str:
    return "none" if counts is None else f"{counts.sum():,}"


def _words(survey: Survey, rule: str) -> str:
    return describe_groups(len(survey.class_names), rule)


def _describe_images(images: ImageFacts) -> list[str]:
    low, middle, high = (
        " x ".join(str(int(side)) for side in point)
        for point in (
            images.sizes.min(axis=0),
            np.median(images.sizes, axis=0),
            images.sizes.max(axis=0),
        )
    )
    which = "all" if images.looked_at == images.total else f"{images.looked_at:,} spread evenly"
    modes = ", ".join(f"{mode} {number:,}" for mode, number in images.modes.items())
    grey = "; all without colour" if images.grey else ""
    return [
        f"  images opened      {which} of {images.total:,}; {len(images.damaged)} can't be used",
        f"  height x width     {low} to {high}, median {middle}",
        f"  modes              {modes}{grey}",
    ]


def warnings(survey: Survey) -> list[str]:
    """Return what should be mended or known before the experiment runs."""
    found = list(survey.notes)
    for counts, text in (
        (survey.train == 1, "classes with one training sample"),
        (survey.test == 0, "classes without a test sample, whose accuracy is not measured"),
    ):
        if counts.any():
            names = [survey.class_names[c] for c in np.flatnonzero(counts)]
            found.append(f"{text}: {_some(names)}")
    if survey.images is not None and survey.images.damaged:
        damaged = survey.images.damaged
        found += damaged[:_SHOWN]
        found.append(
            f"{len(damaged)} images can't be used (above: the first {min(_SHOWN, len(damaged))}); "
            "they are left out and listed in the report (damaged: stop refuses them instead)"
        )
    rare = int(((survey.test > 0) & (survey.test < _FEW)).sum())
    if rare:
        found.append(
            f"{rare} of {len(survey.test)} classes have fewer than {_FEW} test samples: their "
            "accuracies move by chance alone"
        )
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_output(output: Path, force: bool) -> None:
    """Refuse a place where no experiment file can be written, before any work is done.

    Raises:
        InputError: the file exists and `force` is not given, or its name is no YAML file's.
    """
    if output.suffix not in (".yaml", ".yml") or output.is_dir():
        raise InputError(f"--output {output}: name a .yaml file")
    if output.exists() and not force:
        raise InputError(f"{output} exists: name another file, or add --force to replace it")


def write_experiment(survey: Survey, advice: Advice, output: Path) -> str:
    """Write the experiment file, whole or not at all, after loading it as a run would.

    Returns:
        The command that runs it.

    Raises:
        InputError: there is no catalogue to load it with.
    """
    catalogue = find_catalogue(output)
    command = shlex.join(["ltpipe", "run", str(output)])
    text = _render(survey, advice, _name(output.stem), command)
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
        build_plan(load_experiment(temporary, catalogue))
    return command


def _name(text: str) -> str:
    """Return `text` as a name of folders and entries."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-._+") or "mine"


def _render(survey: Survey, advice: Advice, name: str, command: str) -> str:
    environment = Environment(
        loader=PackageLoader("ltpipe.init"), autoescape=False, keep_trailing_newline=True
    )
    environment.filters["yaml"] = _in_one_line
    counts = survey.train
    methods = [method.name for method in advice.methods]
    return environment.get_template("experiment.yaml.jinja").render(
        name=name,
        command=command,
        source=survey.dataset,
        split_off=survey.split_off,
        several_draws="subset_seeds" in survey.dataset,
        training=f"{counts.sum():,} training samples of {len(counts)} classes, {counts.max():,} "
        f"to {counts.min():,} a class: imbalance {survey.imbalance:.3g}.",
        groups=_words(survey, advice.groups),
        advice=advice,
        comments=_COMMENTS,
        compared=[methods[0], methods[-1]],
    )


def _in_one_line(value: object) -> str:
    """Return `value` as YAML that fits behind a key."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=2**20, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
