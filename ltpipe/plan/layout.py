"""From a resolved experiment to its artifacts: folders, digests, specs, inputs.

The path of an artifact is its whole identity: its digest covers the settings, the code that makes
it, the digests of what it is made from and the contents of data and weights from outside. The seed
stands beside the digest, names are for people, and where something lies counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ltpipe.config.base import canonical_json
from ltpipe.config.datasets import FeaturesDataset, ImageDataset
from ltpipe.config.experiment import Experiment, Named, match, places_on_line
from ltpipe.config.figures import Ranking, SettingCurve, TrainingCurves
from ltpipe.config.registry import find
from ltpipe.plan.code import code_identity
from ltpipe.plan.entries import code_entries
from ltpipe.plan.specs import digest_of
from ltpipe.plan.stages import POOL, RESULTS, STAGES, Stage
from ltpipe.utils.io import file_sha256

# What is set aside of each class for methods that choose something, where a benchmark has no
# validation set of its own.
VALIDATION_SHARE = 0.1

# Systems whose networks are large, and the cores that reading features off one takes at most.
_LARGE, _LARGE_THREADS = ("pretrained", "vision-language"), 8

# From so many draws on, the features of all of a data set's samples are cached once.
_POOLED_DRAWS = 3

# From the settings of a data set or a backbone to the contents of its files from outside, by role.
Contents = Callable[[Any], dict[str, str]]
# From the entries of a job's code to the identity of that code.
Identify = Callable[[tuple[str | Path, ...]], str]


def no_contents(settings: Any) -> dict[str, str]:
    """Return nothing: for layouts that are looked at and never run."""
    return {}


@dataclass(frozen=True)
class ArtifactSpec:
    """One artifact: the stage that makes it, its folder, what defines it, what it is made from.

    `spec` holds the settings that are not at their defaults, `code`, the digests of `inputs` by
    role, the contents of files from `outside`, their `locations` and the `seed`.
    """

    kind: str
    folder: str
    title: str
    spec: dict[str, Any]
    inputs: dict[str, ArtifactSpec] = field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        """The stage that makes it."""
        return STAGES[self.kind]

    @property
    def threads(self) -> int:
        """How many cores its job takes at most: networks from elsewhere keep several busy."""
        large = (
            self.kind == "features"
            and POOL not in self.inputs
            and self.spec["backbone"].get("system") in _LARGE
        )
        return _LARGE_THREADS if large else self.stage.threads

    @cached_property
    def spec_text(self) -> str:
        """The canonical JSON of the spec, as rules and jobs pass it on."""
        return canonical_json(self.spec)

    @property
    def digest(self) -> str:
        """The 10 hex digits in the folder's name."""
        parts = self.folder.split("/")
        return parts[-2] if parts[-1].startswith("seed") else parts[-1]

    def __hash__(self) -> int:
        return hash(self.folder)


@dataclass(frozen=True)
class Plan:
    """All artifacts of an experiment by folder, and the report that ends it."""

    experiment: Experiment
    artifacts: dict[str, ArtifactSpec]
    report: ArtifactSpec

    def of_kind(self, *kinds: str) -> list[ArtifactSpec]:
        """Return the artifacts of these kinds."""
        return [artifact for artifact in self.artifacts.values() if artifact.kind in kinds]


def build_plan(
    experiment: Experiment,
    contents: Contents = no_contents,
    expected: Path | None = None,
    identify: Identify | None = None,
) -> Plan:
    """Lay out every artifact that `experiment` needs.

    Args:
        contents: reads data and weights from outside.
        expected: the folder of the papers' numbers, where tables show them.
        identify: gives the identity of code; one for several plans asks once for each entry.
    """
    return _Layout(experiment, contents, expected, identify or cache(code_identity)).plan()


class _Layout:
    """The artifacts of one experiment; each is built once."""

    def __init__(
        self,
        experiment: Experiment,
        contents: Contents,
        expected: Path | None,
        identify: Identify,
    ) -> None:
        self.identify = identify
        self.experiment = experiment
        self.contents = contents
        self.expected = expected
        self.artifacts: dict[str, ArtifactSpec] = {}

    def plan(self) -> Plan:
        results, features, stage1 = [], [], []
        # Draws of one name stand under it; the first one stands for them where one is needed.
        data: dict[str, ArtifactSpec] = {}
        first: dict[str, Named] = {}
        for dataset_name, method_name, seed in self.experiment.jobs:
            dataset = self.experiment.datasets[dataset_name]
            method = self.experiment.methods[method_name]
            artifact = self.stage2(dataset, method, seed)
            shown = dataset.settings.draws_of or dataset_name
            data.setdefault(shown, self.data(dataset))
            first.setdefault(shown, dataset)
            drawn = {} if shown == dataset_name else {"draw": dataset.settings.subset_seed}
            results.append(
                {
                    "dataset": shown,
                    **drawn,
                    "method": method_name,
                    "label": method.settings.label or method_name,
                    "kind": method.settings.kind,
                    "seed": seed,
                    "folder": artifact.folder,
                    "origins": _origins(self.experiment, dataset, method),
                }
            )
            for role, name in method.settings.roles().items():
                store = artifact.inputs[f"features.{role}"]
                row = {"dataset": shown, **drawn, "backbone": name, "seed": seed}
                if method.settings.stage1_subset_seed() is not None:
                    continue
                if "stage1" in store.inputs:
                    stage1.append({**row, "folder": store.inputs["stage1"].folder})
                # Figures of features show the backbone as it is, without a method's overrides.
                if not method.settings.feature_overrides(role):
                    features.append({**row, "folder": store.folder})
        report = self.report(first, data, results, _unique(stage1), _unique(features))
        return Plan(self.experiment, self.artifacts, report)

    def artifact(
        self,
        kind: str,
        names: tuple[str, ...],
        spec: dict[str, Any],
        *,
        title: str,
        seed: int | None = None,
        inputs: Mapping[str, ArtifactSpec] | None = None,
        outside: Mapping[str, str] | None = None,
        locations: Mapping[str, Any] | None = None,
    ) -> ArtifactSpec:
        """Return the artifact that these settings define; one that is known is not made again."""
        inputs = dict(inputs or {})
        whole: dict[str, Any] = {"kind": kind, **spec}
        whole["inputs"] = {role: needed.digest for role, needed in inputs.items()}
        if outside:
            whole["outside"] = dict(outside)
        entries = code_entries(whole)
        whole["code"] = self.identify(entries)
        folder = "/".join([RESULTS, STAGES[kind].folder, *names, digest_of(whole)])
        if seed is not None:
            folder += f"/seed{seed}"
            whole["seed"] = seed
        plugins = [str(path) for path in self.experiment.plugins]
        is_needed = any(str(entry).endswith(".py") for entry in entries)
        used = {**(locations or {}), "plugins": plugins if is_needed else []}
        if used := {section: value for section, value in used.items() if value}:
            whole["locations"] = used
        made = ArtifactSpec(kind, folder, title, whole, inputs)
        return self.artifacts.setdefault(folder, made)

    def data(self, dataset: Named) -> ArtifactSpec:
        """Return the draw of a data set."""
        return self.artifact(
            "data",
            (dataset.folder,),
            {"dataset": dataset.settings.draw_identity()},
            title=f"Draw the training subset of {dataset.name}",
            outside=self.contents(dataset.settings),
            locations={"dataset": dataset.settings.located()},
        )

    def packed(self, dataset: Named) -> dict[str, str]:
        """Plan the packing of a data set's images where they are files; return where they lie.

        What is made from them is defined by the data set's settings alone, so their place is no
        part of its digest.
        """
        settings = dataset.settings
        if not isinstance(settings, ImageDataset) or not settings.decodes:
            return {}
        made = self.artifact(
            "images",
            (dataset.folder,),
            {"dataset": settings.pack_identity()},
            title=f"Pack the images of {dataset.name}",
            inputs={"data": self.data(dataset)},
            locations={"dataset": settings.located()},
        )
        return {"packed": made.folder}

    def stage1(self, dataset: Named, backbone: Named, seed: int) -> ArtifactSpec:
        """Return a backbone's training; a network that is not trained has no seed."""
        settings = backbone.settings
        trained = settings.has_seed()
        own = settings.prepares_images()
        what = f"{backbone.name} on {dataset.name}"
        return self.artifact(
            "stage1",
            (dataset.folder, backbone.folder),
            {"dataset": dataset.settings.image_identity(), "backbone": settings.train_identity()},
            title=f"Train {what}, seed {seed}" if trained else f"Set up {what}",
            seed=seed if trained else None,
            inputs={"data": self.data(dataset)},
            outside=self.contents(settings),
            locations={
                "dataset": dataset.settings.located(),
                "backbone": settings.located(),
                **({} if own or not settings.epochs else self.packed(dataset)),
            },
        )

    def features(
        self,
        dataset: Named,
        backbone: Named,
        seed: int,
        overrides: dict[str, Any],
        subset_seed: int | None,
    ) -> ArtifactSpec:
        """Return the feature store of a backbone."""
        drawn = dataset if subset_seed is None else _with(dataset, subset_seed=subset_seed)
        trained = self.stage1(drawn, backbone, seed)
        settings = backbone.settings.features.model_copy(update=overrides)
        title = f"Cache the features of {backbone.name} on {dataset.name}"
        return self.artifact(
            "features",
            (dataset.folder, backbone.folder),
            {
                "dataset": dataset.settings.image_identity(),
                "backbone": backbone.settings.train_identity(),
                "features": settings.identity(),
            },
            title=f"{title}, seed {seed}" if "seed" in trained.spec else title,
            seed=trained.spec.get("seed"),
            inputs={
                "stage1": trained,
                "data": self.data(dataset),
                **self.pool(dataset, backbone, seed, overrides),
            },
            locations={
                "dataset": dataset.settings.located(),
                "backbone": backbone.settings.located(),
                **({} if backbone.settings.prepares_images() else self.packed(dataset)),
            },
        )

    def pool(
        self, dataset: Named, backbone: Named, seed: int, overrides: dict[str, Any]
    ) -> dict[str, ArtifactSpec]:
        """Return the features of all samples, where so many draws share them that it saves work.

        That is so of a network that nothing of a draw reaches: its features of a sample are the
        same in each.
        """
        settings, name = dataset.settings, dataset.settings.draws_of
        cached = backbone.settings.features.model_copy(update=overrides)
        if name is None or settings.imbalance is None or backbone.settings.has_classifier():
            return {}
        others = [d.settings.draws_of for d in self.experiment.datasets.values()]
        if others.count(name) < _POOLED_DRAWS or cached.views:
            return {}
        left = ("imbalance", "max_count", "profile", "rounding", "subset_seed", "class_order")
        usual = {key: type(settings).model_fields[key].default for key in (*left, "val_fraction")}
        whole = Named(name, name, settings.model_copy(update=usual))
        return {POOL: self.features(whole, backbone, seed, overrides, None)}

    def imported(self, dataset: Named, store: str) -> ArtifactSpec:
        """Return the store of embeddings from elsewhere: one version, whatever the seed."""
        settings = dataset.settings
        # The draw's contents are those of all stores: of several, the name says which.
        named = {"named": store} if len(settings.stores) > 1 else {}
        identity = {"store": settings.stores[store].identity(), **named}
        return self.artifact(
            "import",
            (dataset.folder, store),
            {"dataset": settings.draw_identity(), **identity},
            title=f"Import the embeddings {store} of {dataset.name}",
            inputs={"data": self.data(dataset)},
            locations={
                "dataset": settings.located(),
                "store": settings.stores[store].located(),
            },
        )

    def stage2(self, dataset: Named, method: Named, seed: int) -> ArtifactSpec:
        """Return a method's results."""
        settings = method.settings
        subset_seed = settings.stage1_subset_seed()
        inputs: dict[str, ArtifactSpec] = {}

        def store(drawn: Named, role: str, name: str) -> ArtifactSpec:
            overrides = settings.feature_overrides(role)
            backbone = self.experiment.backbones[name]
            return self.features(drawn, backbone, seed, overrides, subset_seed)

        for role, name in settings.roles().items():
            is_imported = isinstance(dataset.settings, FeaturesDataset)
            inputs[f"features.{role}"] = (
                self.imported(dataset, name) if is_imported else store(dataset, role, name)
            )
        spec: dict[str, Any] = {"method": settings.identity(), "groups": dataset.settings.groups}
        locations: dict[str, Any] = {}
        if settings.needs_validation() and not _has_validation(dataset):
            held_out = _with(dataset, val_fraction=VALIDATION_SHARE)
            for role, name in settings.roles().items():
                # Of a network that is not trained, the same features are split in the job.
                if self.experiment.backbones[name].settings.has_seed():
                    inputs[f"tuning.{role}"] = store(held_out, role, name)
        if (cascade := settings.filters()) is not None:
            inputs |= self.filters(dataset, method, inputs, cascade, seed)
        if settings.needs_images():
            spec["dataset"] = dataset.settings.image_identity()
            spec["backbones"] = {}
            inputs["data"] = self.data(dataset)
            locations = {"dataset": dataset.settings.located(), **self.packed(dataset)}
            for role, name in settings.roles().items():
                backbone = self.experiment.backbones[name]
                spec["backbones"][role] = backbone.settings.train_identity()
                inputs[f"stage1.{role}"] = inputs[f"features.{role}"].inputs["stage1"]
        return self.artifact(
            "stage2",
            (dataset.folder, method.folder),
            spec,
            title=f"Run {method.name} on {dataset.name}, seed {seed}",
            seed=seed,
            inputs=inputs,
            locations=locations,
        )

    def filters(
        self,
        dataset: Named,
        method: Named,
        inputs: Mapping[str, ArtifactSpec],
        cascade: tuple[Any, int],
        seed: int,
    ) -> dict[str, ArtifactSpec]:
        """Return a cascade's filters by role: each is trained on what the one before lets pass."""
        settings, blocks = cascade
        role = method.settings.filter_role()
        name, store = method.settings.roles()[role], inputs[f"features.{role}"]
        chain: dict[str, ArtifactSpec] = {}
        needed = {"features": store}
        for block in range(1, blocks + 1):
            made = self.artifact(
                "filter",
                # Named as the store is: features/DATASET/BACKBONE/...
                (dataset.folder, store.folder.split("/")[3]),
                {"filter": settings.identity(), "block": block},
                title=f"Train filter {block} on the features of {name} on {dataset.name}, "
                f"seed {seed}",
                seed=seed,
                inputs=needed,
            )
            chain[f"filter.{block}"] = made
            needed = {"features": store, "previous": made}
        return chain

    def published(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contents and the place of the papers' numbers that tables show."""
        papers = sorted({table.expected.paper for table in tables.values() if table.expected})
        if self.expected is None or not papers:
            return {}
        files = {paper: self.expected / f"{paper}.csv" for paper in papers}
        there = {paper: file_sha256(path) for paper, path in files.items() if path.is_file()}
        return {"outside": there, "locations": {"expected": str(self.expected)}}

    def report(
        self,
        first: dict[str, Named],
        data: dict[str, ArtifactSpec],
        results: list[dict[str, Any]],
        stage1: list[dict[str, Any]],
        features: list[dict[str, Any]],
    ) -> ArtifactSpec:
        """Return the report on everything laid out so far."""
        experiment, file = self.experiment, self.experiment.file
        spec = {
            "experiment": file.experiment,
            "title": file.title or file.experiment,
            "description": file.description,
            "seeds": sorted({seed for _, _, seed in experiment.jobs}),
            "datasets": {name: _describe(name, first[name], data[name]) for name in data},
            "results": results,
            "stage1": stage1,
            "features": features,
            "kinds": {row["kind"]: _described("method", row["kind"]) for row in results},
            "tables": {name: _table(experiment, name, set(data)) for name in file.tables},
            # Canonical JSON sorts names; a reader expects them as the file has them.
            "table_order": list(file.tables),
            "dataset_order": list(data),
            "figures": [_figure(experiment, figure) for figure in file.figures],
            "missing": [missing.as_json() for missing in experiment.missing],
        }
        whole: dict[str, Any] = {"kind": "report", **spec, **self.published(file.tables)}
        if plugins := [str(path) for path in experiment.plugins]:
            whole["locations"] = {**whole.get("locations", {}), "plugins": plugins}
        whole["code"] = self.identify(code_entries(whole))
        return ArtifactSpec(
            "report",
            f"{RESULTS}/experiments/{file.experiment}/{digest_of(whole)}",
            f"Write the tables, figures and report of {file.experiment}",
            whole,
            # The folders that its rows name hold their digests; packed images are no result.
            {name: made for name, made in self.artifacts.items() if made.kind != "images"},
        )


def _described(kind: str, name: str) -> dict[str, str]:
    """Return what the registry says of a name, for pages."""
    entry = find(kind, name)
    return {"summary": entry.summary, "paper": entry.paper}


def _origins(experiment: Experiment, dataset: Named, method: Named) -> list[str]:
    """Return what the method's backbones start from, where tables are to say so."""
    named = [experiment.backbones.get(name) for name in method.settings.roles().values()]
    backbones = [backbone for backbone in named if backbone is not None]
    found = [backbone.settings.origin() for backbone in backbones]
    found += [note for backbone in backbones if (note := seen_before(dataset, backbone))]
    return [origin for origin in dict.fromkeys(found) if origin]


def seen_before(dataset: Named, backbone: Named) -> str:
    """Return in words that a backbone's weights were trained on a data set's images, or nothing."""
    if not (dataset.settings.is_of_imagenet() and backbone.settings.knows_imagenet()):
        return ""
    return (
        f"{backbone.name} has seen the images of {dataset.settings.label or dataset.name}: its "
        "weights come from ImageNet, so its numbers there can't be compared"
    )


def _networks(experiment: Experiment, method: Named) -> list[str]:
    """Return the networks that a method rests on, with their attention; none where not known."""
    named = [experiment.backbones.get(name) for name in method.settings.roles().values()]
    settings = [backbone.settings for backbone in named if backbone is not None]
    return [s.network + (f"+{s.attention}" if s.attention else "") for s in settings]


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({canonical_json(row): row for row in rows}.values())


def _with(dataset: Named, **changes: Any) -> Named:
    return Named(dataset.name, dataset.folder, dataset.settings.model_copy(update=changes))


def _has_validation(dataset: Named) -> bool:
    """Return whether the data set surely has a validation part, judged by its settings alone."""
    settings = dataset.settings
    if isinstance(settings, FeaturesDataset):
        return True
    listed = getattr(settings, "val_list", None) is not None
    return bool(settings.val_fraction) or listed or settings.source == "medmnist"


def _figure(experiment: Experiment, figure: Any) -> dict[str, Any]:
    values = figure.model_dump(mode="json")
    if isinstance(figure, SettingCurve):
        values["lines"] = {line: places_on_line(experiment, figure, line) for line in figure.lines}
    if isinstance(figure, Ranking):
        chosen = match(figure.datasets, experiment.datasets, "figures.datasets")
        names = [experiment.datasets[name].settings.draws_of or name for name in chosen]
        values["datasets"] = list(dict.fromkeys(names))
        values["methods"] = match(figure.methods, experiment.methods, "figures.methods")
    if isinstance(figure, TrainingCurves):
        values["backbones"] = match(figure.backbones, experiment.backbones, "figures.backbones")
    return values


def _describe(name: str, dataset: Named, data: ArtifactSpec) -> dict[str, Any]:
    settings = dataset.settings
    return {
        "label": settings.label or name,
        "folder": data.folder,
        "benchmark": settings.benchmark,
        "imbalance": settings.imbalance,
        "groups": settings.groups,
        "note": settings.note,
        "size": settings.input.size[0] if hasattr(settings, "input") else None,
    }


def _table(experiment: Experiment, name: str, datasets: set[str]) -> dict[str, Any]:
    table = experiment.file.tables[name]
    chosen = match(table.datasets, experiment.datasets, f"tables.{name}.datasets")
    names = [experiment.datasets[dataset].settings.draws_of or dataset for dataset in chosen]
    return {
        **table.model_dump(mode="json"),
        "datasets": [dataset for dataset in dict.fromkeys(names) if dataset in datasets],
        "rows": [
            {
                **row.model_dump(mode="json", exclude_none=True),
                "method": method,
                "networks": _networks(experiment, experiment.methods[method]),
            }
            for row in table.rows
            for method in match([row.method], experiment.methods, f"tables.{name}.rows")
        ],
    }
