"""Experiment files: read, expanded, checked against the catalogue, resolved."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ltpipe.config.backbones import AnyBackbone
from ltpipe.config.base import (
    Name,
    Seeds,
    Settings,
    check_name,
    explain,
    fill_braces,
    merge,
)
from ltpipe.config.datasets import Dataset, FeaturesDataset
from ltpipe.config.figures import (
    ActivationMaps,
    CascadeFigure,
    CascadeTsne,
    Confusion,
    Figure,
    PerClassAccuracy,
    Probing,
    Ranking,
    Reliability,
    SettingCurve,
    SubclassOccupancy,
    SweepCurve,
    TailAccuracy,
    TrainingCurves,
    Tsne,
)
from ltpipe.config.files import read_yaml
from ltpipe.config.methods import Method
from ltpipe.config.plugins import load_plugins, locate_plugins
from ltpipe.config.tables import Table
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.paths import CHECKOUT

# More is no experiment but a slip of the pen.
_MAX_ENTRIES = 10_000
_MAX_JOBS = 100_000
_SECTIONS = ("datasets", "backbones", "methods")
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "datasets": TypeAdapter(Dataset),
    "backbones": TypeAdapter(AnyBackbone),
    "methods": TypeAdapter(Method),
}
_TAGS = {"datasets": "source", "backbones": "system", "methods": "kind"}


class DataLocation(Settings):
    """Where data sets lie; the environment variable LTPIPE_DATA says the same."""

    root: str | None = None


class Run(Settings):
    """Which methods run on which data sets; names may hold `*`."""

    datasets: list[str] = ["*"]
    methods: list[str] = ["*"]
    seeds: Seeds | None = None


class Head(Settings):
    """What experiment files and collections of them share.

    `preload` starts the jobs of this machine from one process that has imported torch already:
    worth it for hundreds of short jobs. `results_per_job` classifiers on the same features are made
    by one job: worth it for thousands. Both are part of no artifact's identity. `missing: skip`
    leaves out what needs data sets or weights that are not there, and says so.
    """

    experiment: Name
    title: str = ""
    description: str = ""
    data: DataLocation = DataLocation()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    preload: bool = False
    results_per_job: int = Field(default=1, ge=1, le=1000)
    missing: Literal["error", "skip"] = "error"


class ExperimentFile(Head):
    """The whole experiment file, names not yet resolved; config/README.md explains every key."""

    plugins: list[str] = []
    seeds: Seeds = [0, 1, 2]
    datasets: dict[str, dict[str, Any] | None] = Field(min_length=1)
    backbones: dict[str, dict[str, Any] | None] = {}
    methods: dict[str, dict[str, Any] | None] = Field(min_length=1)
    runs: list[Run] = Field(default=[Run()], min_length=1)
    tables: dict[Name, Table] = {}
    figures: list[Figure] = []


@dataclass(frozen=True)
class Named:
    """Resolved settings under the name that the experiment gives them.

    `folder` is the name of the definition that they start from; it names folders, so that two
    experiments that use one definition share its artifacts whatever they call it.
    """

    name: str
    folder: str
    settings: Any


@dataclass(frozen=True)
class Missing:
    """Something from outside that is not there: why, what needs it, and the tables it is in.

    `names` are data sets and backbones by their labels, `tables` are written EXPERIMENT/TABLE.
    """

    why: str
    names: tuple[str, ...]
    tables: tuple[str, ...]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Missing:
        """Return the entry that `as_json` wrote."""
        return cls(entry["why"], tuple(entry["names"]), tuple(entry["tables"]))

    def as_json(self) -> dict[str, Any]:
        """Return the entry as specs hold it."""
        return {"why": self.why, "names": list(self.names), "tables": list(self.tables)}


@dataclass(frozen=True)
class Experiment:
    """An experiment file with every name resolved, less what is `missing`.

    `plugins` are the absolute paths of its plug-ins.
    """

    file: ExperimentFile
    datasets: dict[str, Named]
    backbones: dict[str, Named]
    methods: dict[str, Named]
    jobs: list[tuple[str, str, int]]  # data set, method, seed
    missing: tuple[Missing, ...] = ()
    plugins: tuple[Path, ...] = ()

    def parts_in_use(self) -> list[tuple[str, str]]:
        """Return what its jobs take from outside: ("datasets", name) and ("backbones", name)."""
        datasets = {dataset for dataset, _, _ in self.jobs}
        methods = {method for _, method, _ in self.jobs}
        roles = [self.methods[method].settings.roles().values() for method in methods]
        backbones = {name for names in roles for name in names}
        return [
            *(("datasets", name) for name in self.datasets if name in datasets),
            *(("backbones", name) for name in self.backbones if name in backbones),
        ]


def load_experiment(path: Path, catalogue: Path | None = None) -> Experiment:
    """Read and resolve an experiment file.

    `catalogue` is the folder with datasets/, backbones/ and methods/; by default the nearest
    folder above the file that has them.

    Raises:
        InputError: the file is missing, is not YAML, or says something that cannot be.
    """
    values = read_yaml(path)
    return resolve(values, catalogue or find_catalogue(path), path.parent)


def find_catalogue(path: Path) -> Path:
    """Return the catalogue: at or above the folder of `path`, in ./config, or the checkout's."""
    for folder in [*path.resolve().parents, Path("config").resolve(), CHECKOUT / "config"]:
        if (folder / "datasets").is_dir() and (folder / "methods").is_dir():
            return folder
    raise InputError(f"{path}: no folder above it has datasets/ and methods/; name one")


def read_catalogue(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the definitions under `folder`: section -> name -> settings as written."""
    catalogue: dict[str, dict[str, dict[str, Any]]] = {}
    for section in _SECTIONS:
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted((folder / section).glob("*.yaml")):
            for name, values in read_yaml(path).items():
                if name in entries:
                    raise InputError(f"{path}: {section}.{name} is defined in two files")
                if not isinstance(values, dict):
                    raise InputError(f"{path}: {name} must be a mapping")
                entries[str(name)] = values
        catalogue[section] = entries
    return catalogue


def resolve(values: Mapping[str, Any], catalogue: Path, folder: Path = Path()) -> Experiment:
    """Check `values`, the contents of an experiment file in `folder`, and resolve its names.

    Its plug-ins are loaded.

    Raises:
        InputError: names the key's path, what is wrong, and the nearest name that would do.
    """
    known = read_catalogue(catalogue)
    try:
        file = ExperimentFile.model_validate(values)
    except ValidationError as error:
        raise explain(error, "") from None
    plugins = locate_plugins(file.plugins, folder)
    load_plugins(plugins)
    sections: dict[str, dict[str, Named]] = {}
    for section in _SECTIONS:
        entries = _expand(section, getattr(file, section))
        sections[section] = {
            name: _resolve_entry(section, name, entries, known[section]) for name in entries
        }
    for name in _backbones_in_use(sections):
        if name not in sections["backbones"] and name in known["backbones"]:
            sections["backbones"][name] = _resolve_entry("backbones", name, {}, known["backbones"])
    experiment = Experiment(
        file=file,
        datasets=sections["datasets"],
        backbones=sections["backbones"],
        methods=sections["methods"],
        jobs=_jobs(file, sections),
        plugins=plugins,
    )
    _check_references(experiment)
    return experiment


def _expand(section: str, entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Write each entry that has a `sweep` or a `for` out as one entry for each combination.

    Values fill the braces of the entry's name and of its texts. Those of a `sweep` are also what
    the settings of that name are set to.
    """
    expanded: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        entry = dict(entry or {})
        if section == "datasets" and "subset_seeds" in entry:
            name, entry = _drawn(name, entry)
        loops = {key: entry.pop(key) for key in ("sweep", "for") if key in entry}
        for key, loop in loops.items():
            if not isinstance(loop, dict) or not all(
                isinstance(values, list) and values for values in loop.values()
            ):
                raise InputError(f"{section}.{name}.{key}: must map names to lists of values")
        number = math.prod(len(values) for loop in loops.values() for values in loop.values())
        if number + len(expanded) > _MAX_ENTRIES:
            raise InputError(
                f"{section}.{name}: {number:,} entries by its sweep; {section} may have "
                f"{_MAX_ENTRIES:,}"
            )
        variants = _combine(f"{section}.{name}", name, entry, loops) if loops else [(name, entry)]
        for variant, values in variants:
            try:
                check_name(variant)
            except ValueError as error:
                raise InputError(f"{section}.{variant[:60]!r}: {error}") from None
            if variant in expanded:
                raise InputError(f"{section}.{variant}: the sweep gives this name twice")
            expanded[variant] = values
    return expanded


def _drawn(name: str, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the entry with a sweep over its `subset_seeds`, all draws of one name."""
    seeds = entry.pop("subset_seeds")
    where = f"datasets.{name}.subset_seeds"
    if not isinstance(seeds, list) or len(set(map(str, seeds))) != len(seeds) or not seeds:
        raise InputError(f"{where}: must be a list of different seeds")
    if "subset_seed" in entry:
        raise InputError(f"{where}: the entry has a subset_seed, too; give one of them")
    sweep = {**entry.get("sweep", {}), "subset_seed": seeds}
    return f"{name}-draw{{subset_seed}}", {**entry, "draws_of": name, "sweep": sweep}


def _combine(
    where: str, name: str, entry: dict[str, Any], loops: Mapping[str, Mapping[str, list[Any]]]
) -> list[tuple[str, dict[str, Any]]]:
    sweep, texts = loops.get("sweep", {}), loops.get("for", {})
    variants = []
    for combination in itertools.product(*sweep.values(), *texts.values()):
        chosen = dict(zip([*sweep, *texts], combination, strict=True))
        shown = {
            key.replace(".", "_"): f"{value:g}" if isinstance(value, float) else str(value)
            for key, value in chosen.items()
        }
        try:
            variant = fill_braces(name, shown)
            values = _fill(entry, shown)
        except KeyError:
            raise InputError(
                f"{where}: braces in names and texts must name one of "
                + ", ".join(f"{{{key}}}" for key in shown)
            ) from None
        for key in sweep:
            nested: Any = chosen[key]
            for part in reversed(key.split(".")):
                nested = {part: nested}
            values = merge(values, nested)
        variants.append((variant, values))
    return variants


def _fill(value: Any, shown: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return fill_braces(value, shown)
    if isinstance(value, dict):
        return {key: _fill(item, shown) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, shown) for item in value]
    return value


def _resolve_entry(
    section: str,
    name: str,
    entries: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
) -> Named:
    where = f"{section}.{name}"
    folder, values = _definition(where, name, entries, known)
    tag = _TAGS[section]
    if section == "backbones":
        values.setdefault(tag, "supervised")
    if tag not in values:
        hint = nearest(name, known)
        raise InputError(
            f"{where}: there is no definition {name!r}{hint}; name one with use:, or give {tag}:"
        )
    try:
        settings = _ADAPTERS[section].validate_python(values)
    except ValidationError as error:
        raise _without_tag(error, where, values[tag]) from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Named(name, folder, settings)


def _without_tag(error: ValidationError, where: str, tag: Any) -> InputError:
    message = str(explain(error, where))
    return InputError(message.replace(f"{where}.{tag}", where, 1))


def _definition(
    where: str,
    name: str,
    entries: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    seen: tuple[str, ...] = (),
) -> tuple[str, dict[str, Any]]:
    """Return the catalogue's name for what `name` starts from, and all its settings merged.

    An entry of the experiment starts from what it `use`s, or from the catalogue's entry of its
    own name; one that starts from nothing in the catalogue gives its own name.
    """
    in_experiment = name in entries and f"experiment:{name}" not in seen
    entry = dict(entries[name] if in_experiment else known[name])
    seen = (*seen, f"experiment:{name}" if in_experiment else name)
    use = entry.pop("use", name if in_experiment and name in known else None)
    if use is None:
        return name, entry
    choices = {**known, **entries} if in_experiment else known
    if not isinstance(use, str) or use not in choices:
        raise InputError(
            f"{where}.use: there is no {use!r}{nearest(str(use), choices)}; "
            f"known: {', '.join(sorted(choices))}"
        )
    if use in seen or (use not in known and f"experiment:{use}" in seen):
        raise InputError(f"{where}.use: {use!r} leads back to itself")
    visible = entries if in_experiment and use != name else {}
    folder, base = _definition(where, use, visible, known, seen)
    return (folder if in_experiment else name), merge(base, entry)


def _backbones_in_use(sections: Mapping[str, Mapping[str, Named]]) -> list[str]:
    names = [
        backbone
        for method in sections["methods"].values()
        for backbone in method.settings.roles().values()
    ]
    return list(dict.fromkeys(names))


def _jobs(
    file: ExperimentFile, sections: Mapping[str, Mapping[str, Named]]
) -> list[tuple[str, str, int]]:
    jobs: dict[tuple[str, str, int], None] = {}
    for number, run in enumerate(file.runs):
        where = f"runs[{number}]"
        for dataset in match(run.datasets, sections["datasets"], f"{where}.datasets"):
            for method in match(run.methods, sections["methods"], f"{where}.methods"):
                for seed in run.seeds or file.seeds:
                    jobs[(dataset, method, seed)] = None
                if len(jobs) > _MAX_JOBS:
                    raise InputError(f"{where}: more than {_MAX_JOBS:,} classifiers to train")
    return list(jobs)


def match(patterns: list[str], names: Mapping[str, Any], where: str) -> list[str]:
    """Return the names that the patterns match, in the order of `names`; each must match one."""
    chosen = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise InputError(
                f"{where}: nothing is called {pattern!r}{nearest(pattern, names)}; "
                f"known here: {', '.join(names)}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def _check_references(experiment: Experiment) -> None:
    for dataset, method, _ in experiment.jobs:
        settings = experiment.datasets[dataset].settings
        is_features = isinstance(settings, FeaturesDataset)
        choices = settings.stores if is_features else experiment.backbones
        for role, name in experiment.methods[method].settings.roles().items():
            if name not in choices:
                what = f"store of data set {dataset!r}" if is_features else "backbone"
                raise InputError(
                    f"methods.{method}.backbones.{role}: there is no {what} {name!r}"
                    f"{nearest(name, choices)}; known: {', '.join(choices)}"
                )
            if not is_features:
                try:
                    experiment.methods[method].settings.check_backbone(role, choices[name].settings)
                except ValueError as error:
                    where = f"methods.{method}.backbones.{role}"
                    raise InputError(f"{where}: {name!r} does not fit: {error}") from None
        if is_features and experiment.methods[method].settings.needs_images():
            raise InputError(
                f"methods.{method}.online: data set {dataset!r} has embeddings and no images"
            )
    for name, table in experiment.file.tables.items():
        match(table.datasets, experiment.datasets, f"tables.{name}.datasets")
        for number, row in enumerate(table.rows):
            where = f"tables.{name}.rows[{number}]"
            for method in match([row.method], experiment.methods, f"{where}.method"):
                if row.at is not None:
                    _check_point(experiment, method, row.at, f"{where}.at")
    for number, figure in enumerate(experiment.file.figures):
        _check_figure(experiment, figure, f"figures[{number}]")


def _check_point(experiment: Experiment, method: str, at: dict[str, float], where: str) -> None:
    points = experiment.methods[method].settings.points()
    if not any(all(point.get(key) == value for key, value in at.items()) for point in points):
        shown = ", ".join(str(point) for point in points)
        raise InputError(f"{where}: {method} has no point {at}; it has {shown}")


def _check_figure(experiment: Experiment, figure: Any, where: str) -> None:
    if isinstance(figure, Ranking):
        match(figure.datasets, experiment.datasets, f"{where}.datasets")
        match(figure.methods, experiment.methods, f"{where}.methods")
        return
    _check_named(figure.dataset, experiment.datasets, f"{where}.dataset")
    if isinstance(figure, PerClassAccuracy | Probing | Reliability | TailAccuracy):
        match(figure.methods, experiment.methods, f"{where}.methods")
    if isinstance(figure, CascadeFigure):
        for method in match(figure.methods, experiment.methods, f"{where}.methods"):
            cascade = experiment.methods[method].settings.filters()
            if cascade is None or cascade[1] < getattr(figure, "block", 1):
                raise InputError(f"{where}.methods: {method} has no such block of filters")
    if isinstance(figure, TrainingCurves):
        match(figure.backbones, experiment.backbones, f"{where}.backbones")
    if isinstance(figure, ActivationMaps):
        for name in match(figure.backbones, experiment.backbones, f"{where}.backbones"):
            branch = getattr(experiment.backbones[name].settings, "group", figure.group)
            if branch != figure.group:
                raise InputError(f"{where}.backbones: {name} knows no {figure.group} classes")
    if isinstance(figure, SubclassOccupancy):
        _check_named(name := figure.backbone, experiment.backbones, f"{where}.backbone")
        if not experiment.backbones[name].settings.splits_classes():
            raise InputError(f"{where}.backbone: {name} has no subclasses")
    if isinstance(figure, SettingCurve):
        for line in figure.lines:
            places_on_line(experiment, figure, line, where)
        for line, method in figure.levels.items():
            match([line], figure.lines, f"{where}.levels")
            match([method], experiment.methods, f"{where}.levels.{line}")
    if isinstance(figure, SweepCurve | Confusion | CascadeTsne):
        _check_named(figure.method, experiment.methods, f"{where}.method")
    if isinstance(figure, CascadeTsne) and not experiment.methods[figure.method].settings.filters():
        raise InputError(f"{where}.method: {figure.method} has no filters")
    if isinstance(figure, Confusion) and figure.at:
        _check_point(experiment, figure.method, figure.at, f"{where}.at")
    if isinstance(figure, Tsne | CascadeTsne):
        settings = experiment.datasets[figure.dataset].settings
        stores = settings.stores if isinstance(settings, FeaturesDataset) else experiment.backbones
        wanted = figure.backbones if isinstance(figure, Tsne) else [figure.backbone]
        match(wanted, stores, f"{where}.backbones")
        if isinstance(figure, Tsne) and figure.fused is not None:
            match([figure.fused.ce, figure.fused.kps], stores, f"{where}.fused")


def _check_named(name: str, names: Mapping[str, Any], where: str) -> None:
    if name not in names:
        raise InputError(
            f"{where}: nothing is called {name!r}{nearest(name, names)}; "
            f"known here: {', '.join(names)}"
        )


def places_on_line(
    experiment: Experiment, figure: SettingCurve, line: str, where: str = "figures"
) -> dict[str, float]:
    """Return where each method of a line stands: its backbone's value of the figure's setting.

    Raises:
        InputError: nothing has the line's name, or a backbone has no such number.
    """
    found = {}
    for method in match([figure.lines[line]], experiment.methods, f"{where}.lines.{line}"):
        backbone = next(iter(experiment.methods[method].settings.roles().values()))
        value: Any = experiment.backbones[backbone].settings
        for part in figure.setting.split("."):
            value = getattr(value, part, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{where}.setting: {backbone} has no number {figure.setting!r}")
        found[method] = float(value)
    return found
