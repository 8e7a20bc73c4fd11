"""From a resolved experiment to its artifacts: folders, digests, specs, inputs.

A cell is one artifact folder and the job that makes it. Its digest covers everything that
defines it except the seed, so equal settings meet in equal folders whichever experiment asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.base import canonical_json, digest
from ltpipe.config.datasets import FeaturesDataset, StoreFiles
from ltpipe.config.experiment import Experiment, Named, match, places_on_line
from ltpipe.config.figures import SettingCurve, TrainingCurves
from ltpipe.config.methods import FlowFilter, settings_of
from ltpipe.config.registry import module_of

RESULTS = "results"
# What is set aside of each class for methods that choose something, where a benchmark has no
# validation set of its own.
VALIDATION_SHARE = 0.1

# The module that runs each kind of job; a system's module runs stage one, a method's stage two.
JOBS = {
    "data": "ltpipe.data.drawing",
    "features": "ltpipe.features.extract",
    "import": "ltpipe.features.importing",
    "filter": "ltpipe.stage2.dlsa.filter",
    "report": "ltpipe.evaluation.report",
    "overview": "ltpipe.evaluation.overview",
}


# Systems whose networks are dumped in a way of their own.
_DUMPS = {"vision-language": "ltpipe.features.vision_language"}


@dataclass(frozen=True)
class Cell:
    """One artifact: `kind` of job, its `folder`, the `spec` that defines it, what it reads.

    `inputs` maps a role to the cell whose artifact plays it.
    """

    kind: str
    folder: str
    title: str
    spec: dict[str, Any]
    inputs: dict[str, Cell] = field(default_factory=dict)

    @cached_property
    def spec_text(self) -> str:
        """The canonical JSON of the spec, as rules and jobs pass it on."""
        return canonical_json(self.spec)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of embeddings from outside that it reads."""
        return outside_files(self.spec)

    @property
    def digest(self) -> str:
        """The 10 hex digits in the folder's name."""
        parts = self.folder.split("/")
        return parts[-2] if parts[-1].startswith("seed") else parts[-1]

    def __hash__(self) -> int:
        return hash((self.kind, self.folder))


def job_module(spec: Mapping[str, Any]) -> str:
    """Return the module that runs the job of `spec`, its function being `run`."""
    kind = spec["kind"]
    if kind == "stage2":
        return module_of("method", spec["method"]["kind"])
    system = spec.get("backbone", {}).get("system", "supervised")
    if kind == "stage1":
        return module_of("system", system)
    return _DUMPS.get(system, JOBS[kind]) if kind == "features" else JOBS[kind]


def _network_module(backbone: Mapping[str, Any]) -> str:
    towers = backbone.get("system") == "vision-language"
    return module_of("tower" if towers else "network", backbone["network"])


def code_entries(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules that make the artifact of `spec`; its code is theirs and their imports'.

    Modules that are found by name, such as a network's, are named here, because following import
    statements does not reach them.
    """
    kind = spec["kind"]
    if kind == "stage2":
        method = job_module(spec)
        entries = [method, *_loss_modules(spec["method"])]
        for member in spec["method"].get("members", {}).values():
            entries += [module_of("method", member["kind"]), *_loss_modules(member)]
        if "dataset" in spec:
            entries += [
                f"{method.rpartition('.')[0]}.online",
                module_of("source", spec["dataset"]["source"]),
            ]
        for backbone in spec.get("backbones", {}).values():
            entries.append(_network_module(backbone))
        return tuple(dict.fromkeys(entries))
    backbone = spec.get("backbone", {})
    entries = [job_module(spec)]
    if "dataset" in spec and kind != "report":
        entries.append(module_of("source", spec["dataset"]["source"]))
    if backbone:
        entries.append(_network_module(backbone))
        loss = backbone_settings(backbone).loss
        entries += [] if loss is None else [module_of("loss", loss.name)]
    return tuple(entries)


def _loss_modules(method: Mapping[str, Any]) -> list[str]:
    """Return the module of the loss that a method is told to use, or uses unless told."""
    field = settings_of(method["kind"]).model_fields.get("loss")
    if field is None:
        return []
    return [module_of("loss", method["loss"]["name"] if "loss" in method else field.default.name)]


def outside_files(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files of embeddings that the artifact of `spec` reads, as they are named."""
    if spec["kind"] == "import":
        stores = [spec["store"]]
    elif spec["kind"] == "data" and spec["dataset"]["source"] == "features":
        stores = list(spec["dataset"]["stores"].values())
    else:
        stores = []
    names = [name for store in stores for name in StoreFiles.model_validate(store).files()]
    return tuple(dict.fromkeys(names))


def report_inputs(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the folders of the artifacts that a report, or an overview of reports, shows."""
    if spec["kind"] == "overview":
        return tuple(f"{RESULTS}/experiments/{name}" for name in spec["experiments"])
    rows = [*spec["datasets"].values(), *spec["stage1"], *spec["features"], *spec["results"]]
    return tuple(dict.fromkeys(row["folder"] for row in rows))


@dataclass(frozen=True)
class Plan:
    """All cells of an experiment by folder, and the report that ends it."""

    experiment: Experiment
    cells: dict[str, Cell]
    report: Cell

    def of_kind(self, *kinds: str) -> list[Cell]:
        """Return the cells of these kinds."""
        return [cell for cell in self.cells.values() if cell.kind in kinds]


def build_plan(experiment: Experiment) -> Plan:
    """Lay out every artifact that `experiment` needs."""
    cells: dict[str, Cell] = {}
    results, features, stage1, data = [], [], [], {}
    for dataset_name, method_name, seed in experiment.jobs:
        dataset = experiment.datasets[dataset_name]
        method = experiment.methods[method_name]
        cell = _stage2(experiment, dataset, method, seed)
        _collect(cell, cells)
        data[dataset_name] = _data(dataset)
        _collect(data[dataset_name], cells)
        results.append(
            {
                "dataset": dataset_name,
                "method": method_name,
                "label": method.settings.label or method_name,
                "kind": method.settings.kind,
                "seed": seed,
                "folder": cell.folder,
                "origins": _origins(experiment, method),
            }
        )
        for role, name in method.settings.roles().items():
            store = cell.inputs[f"features.{role}"]
            row = {"dataset": dataset_name, "backbone": name, "seed": seed}
            # Figures of features show the backbone as it is, without a method's overrides.
            if not method.settings.feature_overrides(role) and (
                method.settings.stage1_subset_seed() is None
            ):
                features.append({**row, "folder": store.folder})
                if "stage1" in store.inputs:
                    stage1.append({**row, "folder": store.inputs["stage1"].folder})
    report = _report(experiment, cells, data, results, _unique(stage1), _unique(features))
    return Plan(experiment, cells, report)


def _origins(experiment: Experiment, method: Named) -> list[str]:
    """Return what the method's backbones start from, where tables are to say so."""
    named = [experiment.backbones.get(name) for name in method.settings.roles().values()]
    found = [backbone.settings.origin() for backbone in named if backbone is not None]
    return [origin for origin in dict.fromkeys(found) if origin]


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({canonical_json(row): row for row in rows}.values())


def _collect(cell: Cell, cells: dict[str, Cell]) -> None:
    cells.setdefault(cell.folder, cell)
    for needed in cell.inputs.values():
        _collect(needed, cells)


def _cell(
    kind: str,
    stage: str,
    names: tuple[str, ...],
    spec: dict[str, Any],
    seed: int | None,
    **parts: Any,
) -> Cell:
    folder = "/".join([RESULTS, stage, *names, digest(spec)])
    spec = {"kind": kind, **spec}
    if seed is not None:
        folder += f"/seed{seed}"
        spec["seed"] = seed
    return Cell(kind=kind, folder=folder, spec=spec, **parts)


def _data(dataset: Named) -> Cell:
    return _cell(
        "data",
        "data",
        (dataset.folder,),
        {"dataset": dataset.settings.draw_identity()},
        None,
        title=f"Draw the training subset of {dataset.name}",
    )


def _with(dataset: Named, **changes: Any) -> Named:
    return Named(dataset.name, dataset.folder, dataset.settings.model_copy(update=changes))


def _has_validation(dataset: Named) -> bool:
    """Return whether the data set surely has a validation part, judged by its settings alone."""
    settings = dataset.settings
    if isinstance(settings, FeaturesDataset):
        return True
    listed = getattr(settings, "val_list", None) is not None
    return bool(settings.val_fraction) or listed or settings.source == "medmnist"


def _stage1(dataset: Named, backbone: Named, seed: int) -> Cell:
    settings = backbone.settings
    return _cell(
        "stage1",
        "stage1",
        (dataset.folder, backbone.folder),
        {"dataset": dataset.settings.image_identity(), "backbone": settings.train_identity()},
        seed,
        title=f"Train {backbone.name} on {dataset.name}, seed {seed}",
        inputs={"data": _data(dataset)},
    )


def _features(
    dataset: Named, backbone: Named, seed: int, overrides: dict[str, Any], subset_seed: int | None
) -> Cell:
    drawn = dataset if subset_seed is None else _with(dataset, subset_seed=subset_seed)
    trained = _stage1(drawn, backbone, seed)
    settings = backbone.settings.features.model_copy(update=overrides)
    return _cell(
        "features",
        "features",
        (dataset.folder, backbone.folder),
        {
            "dataset": dataset.settings.image_identity(),
            "backbone": backbone.settings.train_identity(),
            "features": settings.identity(),
            "stage1": trained.digest,
        },
        seed,
        title=f"Cache the features of {backbone.name} on {dataset.name}, seed {seed}",
        inputs={"stage1": trained, "data": _data(dataset)},
    )


def _imported(dataset: Named, store: str) -> Cell:
    """Embeddings from elsewhere have one version, whatever the seed."""
    settings = dataset.settings
    return _cell(
        "import",
        "features",
        (dataset.folder, store),
        {
            "dataset": settings.draw_identity(),
            "store": settings.stores[store].identity(),
        },
        0,
        title=f"Take over the embeddings {store} of {dataset.name}",
        inputs={"data": _data(dataset)},
    )


def _stage2(experiment: Experiment, dataset: Named, method: Named, seed: int) -> Cell:
    settings = method.settings
    subset_seed = settings.stage1_subset_seed()
    inputs: dict[str, Cell] = {}
    for role, name in settings.roles().items():
        if isinstance(dataset.settings, FeaturesDataset):
            store = _imported(dataset, name)
        else:
            store = _features(
                dataset,
                experiment.backbones[name],
                seed,
                settings.feature_overrides(role),
                subset_seed,
            )
        inputs[f"features.{role}"] = store
    spec: dict[str, Any] = {
        "method": settings.identity(),
        "features": {role: inputs[f"features.{role}"].digest for role in settings.roles()},
        "groups": dataset.settings.groups,
    }
    if settings.needs_validation() and not _has_validation(dataset):
        held_out = _with(dataset, val_fraction=VALIDATION_SHARE)
        for role, name in settings.roles().items():
            backbone = experiment.backbones[name]
            overrides = settings.feature_overrides(role)
            inputs[f"tuning.{role}"] = _features(held_out, backbone, seed, overrides, subset_seed)
        spec["tuning"] = {role: inputs[f"tuning.{role}"].digest for role in settings.roles()}
    cascade = settings.filters()
    if cascade is not None:
        role = settings.filter_role()
        store = inputs[f"features.{role}"]
        chain = _filters(dataset, settings.roles()[role], store, cascade, seed)
        inputs |= {f"filter.{number}": cell for number, cell in enumerate(chain, 1)}
        spec["filters"] = [cell.digest for cell in chain]
    if settings.needs_images():
        spec["dataset"] = dataset.settings.image_identity()
        spec["backbones"] = {}
        inputs["data"] = _data(dataset)
        for role, name in settings.roles().items():
            backbone = experiment.backbones[name]
            spec["backbones"][role] = backbone.settings.train_identity()
            inputs[f"stage1.{role}"] = inputs[f"features.{role}"].inputs["stage1"]
    return _cell(
        "stage2",
        "stage2",
        (dataset.folder, method.folder),
        spec,
        seed,
        title=f"Run {method.name} on {dataset.name}, seed {seed}",
        inputs=inputs,
    )


def _filters(
    dataset: Named, name: str, store: Cell, cascade: tuple[FlowFilter, int], seed: int
) -> list[Cell]:
    """Lay out a cascade's filters: each is trained on what the one before lets pass."""
    settings, blocks = cascade
    chain: list[Cell] = []
    for block in range(1, blocks + 1):
        spec = {"filter": settings.identity(), "features": store.digest, "block": block}
        inputs = {"features": store}
        if chain:
            spec["previous"] = chain[-1].digest
            inputs["previous"] = chain[-1]
        # Named as the store is: features/DATASET/BACKBONE/...
        folder = store.folder.split("/")[3]
        title = f"Train filter {block} on the features of {name} on {dataset.name}, seed {seed}"
        names = (dataset.folder, folder)
        chain.append(_cell("filter", "filters", names, spec, seed, title=title, inputs=inputs))
    return chain


def _report(
    experiment: Experiment,
    cells: dict[str, Cell],
    data: dict[str, Cell],
    results: list[dict[str, Any]],
    stage1: list[dict[str, Any]],
    features: list[dict[str, Any]],
) -> Cell:
    file = experiment.file
    spec = {
        "kind": "report",
        "experiment": file.experiment,
        "title": file.title or file.experiment,
        "description": file.description,
        "seeds": sorted({seed for _, _, seed in experiment.jobs}),
        "datasets": {name: _describe(experiment.datasets[name], data[name]) for name in data},
        "results": results,
        "stage1": stage1,
        "features": features,
        "tables": {name: _table(experiment, name, set(data)) for name in file.tables},
        # Canonical JSON sorts names; a reader expects them as the file has them.
        "table_order": list(file.tables),
        "dataset_order": list(data),
        "figures": [_figure(experiment, figure) for figure in file.figures],
        "missing": [missing.as_json() for missing in experiment.missing],
    }
    return Cell(
        kind="report",
        folder=f"{RESULTS}/experiments/{file.experiment}",
        title=f"Write the tables, figures and report of {file.experiment}",
        spec=spec,
        inputs=dict(cells),
    )


def _figure(experiment: Experiment, figure: Any) -> dict[str, Any]:
    values = figure.model_dump(mode="json")
    if isinstance(figure, SettingCurve):
        values["lines"] = {line: places_on_line(experiment, figure, line) for line in figure.lines}
    if isinstance(figure, TrainingCurves):
        values["backbones"] = match(figure.backbones, experiment.backbones, "figures.backbones")
    return values


def _describe(dataset: Named, data: Cell) -> dict[str, Any]:
    settings = dataset.settings
    return {
        "label": settings.label or dataset.name,
        "folder": data.folder,
        "benchmark": settings.benchmark,
        "imbalance": settings.imbalance,
        "groups": settings.groups,
        "note": settings.note,
    }


def _table(experiment: Experiment, name: str, datasets: set[str]) -> dict[str, Any]:
    table = experiment.file.tables[name]
    chosen = match(table.datasets, experiment.datasets, f"tables.{name}.datasets")
    return {
        **table.model_dump(mode="json"),
        "datasets": [dataset for dataset in chosen if dataset in datasets],
        "rows": [
            {**row.model_dump(mode="json", exclude_none=True), "method": method}
            for row in table.rows
            for method in match([row.method], experiment.methods, f"tables.{name}.rows")
        ],
    }
