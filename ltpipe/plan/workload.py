"""Experiment files that include others: one run of many experiments, a report for each.

Included experiments stay what they are, each with its names and its report. What they have in
common is shared, because folders are named by what defines their contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ltpipe.config.base import Seeds, explain
from ltpipe.config.experiment import (
    Experiment,
    Head,
    Missing,
    find_catalogue,
    resolve,
)
from ltpipe.config.files import read_yaml
from ltpipe.plan.code import code_identity
from ltpipe.plan.contents import OutsideContents
from ltpipe.plan.entries import code_entries
from ltpipe.plan.layout import ArtifactSpec, Contents, Plan, build_plan, seen_before
from ltpipe.plan.missing import Absent, describe_missing, merged, without_missing
from ltpipe.plan.specs import digest_of
from ltpipe.plan.stages import RESULTS
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.paths import named_root


class Collection(Head):
    """A file that includes others, by file name with or without .yaml.

    They are looked for beside it, then among the catalogue's experiments. `seeds` replaces theirs.
    """

    include: list[str] = Field(min_length=1)
    seeds: Seeds | None = None


@dataclass(frozen=True)
class Workload:
    """All that one file asks for: a plan for each experiment, and the page that joins them.

    `head` is the file's own, `overview` None for a lone experiment; `left_out` are the experiments
    of which nothing can run; `notes` are lines for whoever runs it.
    """

    head: Head
    plans: list[Plan]
    overview: ArtifactSpec | None
    missing: tuple[Missing, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def artifacts(self) -> dict[str, ArtifactSpec]:
        """Every artifact of every plan by folder."""
        return {
            folder: artifact for plan in self.plans for folder, artifact in plan.artifacts.items()
        }

    @property
    def folder(self) -> str:
        """Where the file's own page lies: the overview, or the only report."""
        return (self.overview or self.plans[0].report).folder

    @cached_property
    def everything(self) -> dict[str, ArtifactSpec]:
        """All artifacts by folder, reports and overview among them."""
        pages = [plan.report for plan in self.plans]
        pages += [] if self.overview is None else [self.overview]
        return {**self.artifacts, **{page.folder: page for page in pages}}

    @cached_property
    def reports(self) -> dict[str, Plan]:
        """The plans by the names of their experiments."""
        return {plan.experiment.file.experiment: plan for plan in self.plans}

    def of_kind(self, *kinds: str) -> list[ArtifactSpec]:
        """Return the artifacts of these kinds."""
        return [artifact for artifact in self.artifacts.values() if artifact.kind in kinds]


def load_workload(
    path: Path,
    catalogue: Path | None = None,
    absent: Callable[[Head], Absent] | None = None,
    contents: Contents | None = None,
) -> Workload:
    """Read an experiment file or a collection and lay out all that it asks for.

    Raises:
        InputError: as `build_workload`, or the file cannot be read.
    """
    return build_workload(
        read_yaml(path),
        catalogue or find_catalogue(path),
        path.parent,
        absent=absent,
        contents=contents,
        path=path,
    )


def build_workload(
    values: Mapping[str, Any],
    catalogue: Path,
    folder: Path,
    *,
    absent: Callable[[Head], Absent] | None = None,
    contents: Contents | None = None,
    path: Path | None = None,
) -> Workload:
    """Lay out all that `values`, the contents of a file in `folder`, asks for.

    Args:
        values: an experiment, or a collection where it has the key `include`.
        catalogue: the folder with datasets/, backbones/, methods/ and experiments/.
        folder: where included files are looked for first.
        absent: given the file's head, what says why something is not there; without it, nothing
            is left out, and `missing: skip` changes nothing.
        contents: what reads data and weights from outside; by default those that are there.
        path: the file itself, which may not be included again.

    Raises:
        InputError: something cannot be; an included file is unknown, includes itself, or bears
            the name of another; nothing that is asked for can run.
    """
    head: Head
    if "include" in values:
        try:
            head = Collection.model_validate(values)
        except ValidationError as error:
            raise explain(error, "") from None
        seen = (path.resolve(),) if path else ()
        experiments = _included(head, catalogue, folder, head, seen)
        _check_names(head, experiments)
    else:
        experiments = [resolve(values, catalogue, folder)]
        head = experiments[0].file
    outside = OutsideContents(named_root(head.data.root))
    contents = contents or outside
    if head.missing == "skip" and absent is not None:
        judge = absent(head)
        experiments = [without_missing(experiment, judge) for experiment in experiments]
    missing = merged(entry for experiment in experiments for entry in experiment.missing)
    if not any(experiment.jobs for experiment in experiments):
        raise InputError("; ".join(["nothing of it can run", *(entry.why for entry in missing)]))
    identify = cache(code_identity)
    expected = catalogue.parent / "data" / "expected"
    plans = [
        build_plan(experiment, contents, expected, identify)
        for experiment in experiments
        if experiment.jobs
    ]
    left_out = tuple(e.file.experiment for e in experiments if not e.jobs)
    overview = _overview(head, plans, missing, left_out) if "include" in values else None
    notes = [describe_missing(missing, left_out)] if missing else []
    notes += dict.fromkeys(note for plan in plans for note in _seen_before(plan.experiment))
    return Workload(head, plans, overview, missing, left_out, (*notes, *outside.notes))


def _seen_before(experiment: Experiment) -> Iterator[str]:
    """Yield a line for each backbone whose weights know the images that it is tried on."""
    for dataset, method, *_ in experiment.jobs:
        for name in experiment.methods[method].settings.roles().values():
            if backbone := experiment.backbones.get(name):
                yield from filter(None, [seen_before(experiment.datasets[dataset], backbone)])


def _included(
    head: Collection, catalogue: Path, folder: Path, top: Collection, seen: tuple[Path, ...]
) -> list[Experiment]:
    experiments: list[Experiment] = []
    for number, name in enumerate(head.include):
        where = f"include[{number}]"
        path = _find(name, [folder, catalogue / "experiments", catalogue], where)
        if path in seen:
            raise InputError(f"{where}: {path} includes itself")
        values = read_yaml(path)
        try:
            if "include" in values:
                inner = Collection.model_validate(values)
                experiments += _included(inner, catalogue, path.parent, top, (*seen, path))
                continue
            experiment = resolve(_with_seeds(values, top), catalogue, path.parent)
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error, '')}") from None
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(f"{path}") else f"{path}: {text}") from None
        for key in ("data", "device"):
            own = getattr(experiment.file, key)
            if key in experiment.file.model_fields_set and own != getattr(top, key):
                raise InputError(
                    f"{path}: {key} is another than that of {top.experiment}; one run has one, "
                    f"which the including file sets"
                )
        experiments.append(experiment)
    return experiments


def _with_seeds(values: Mapping[str, Any], top: Collection) -> dict[str, Any]:
    return dict(values) if top.seeds is None else {**values, "seeds": top.seeds}


def _find(name: str, folders: list[Path], where: str) -> Path:
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for folder in folders:
        if (folder / file).is_file():
            return (folder / file).resolve()
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise InputError(
        f"{where}: there is no experiment file {name!r}{nearest(name, known)}; "
        f"looked in {', '.join(map(str, folders))}"
    )


def _check_names(head: Collection, experiments: list[Experiment]) -> None:
    seen = {head.experiment}
    for experiment in experiments:
        name = experiment.file.experiment
        if name in seen:
            raise InputError(
                f"include: two experiments are called {name!r}, and each has a folder of its own "
                "under results/experiments; rename one, or include it once"
            )
        seen.add(name)


def _overview(
    head: Head, plans: list[Plan], missing: tuple[Missing, ...], left_out: tuple[str, ...]
) -> ArtifactSpec:
    spec: dict[str, Any] = {
        "kind": "overview",
        "experiment": head.experiment,
        "title": head.title or head.experiment,
        "description": head.description,
        "reports": [plan.report.folder for plan in plans],
        "missing": [entry.as_json() for entry in missing],
        "left_out": list(left_out),
    }
    spec["code"] = code_identity(code_entries(spec))
    return ArtifactSpec(
        "overview",
        f"{RESULTS}/experiments/{head.experiment}/{digest_of(spec)}",
        f"Write the overview {head.experiment}",
        spec,
        {plan.report.folder: plan.report for plan in plans},
    )
