"""A finished experiment's features and weights in one archive, from which others go on."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import yaml

from ltpipe.artifacts.reading import Artifact, open_artifact
from ltpipe.config.experiment import match
from ltpipe.plan.layout import ArtifactSpec, Plan
from ltpipe.plan.stages import MANIFEST
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, file_sha256
from ltpipe.utils.progress import say, track

FORMAT = "ltpipe-archive/1"
DESCRIPTION = "archive.json"
_README = """# {title}

Features and backbones of the experiment `{name}`. Every classifier of `experiment.yaml` runs on
them, without images and without training a backbone:

```sh
ltpipe run experiment.yaml
```

`features/` has the stores of each data set and backbone (HDF5, ltpipe-features/1), `weights/` the
backbones (safetensors), `{description}` what each was made by, and the SHA-256 of every file.
{left}"""


@dataclass(frozen=True)
class _Group:
    """A data set of the archive: seeds that share their stores, by the backbones' names."""

    name: str
    dataset: str
    seeds: tuple[int, ...]
    stores: dict[str, ArtifactSpec]
    methods: dict[int, list[str]]


def write_archive(experiment: Path, output: Path, catalogue: Path | None = None) -> list[str]:
    """Write the stores and the weights of an experiment, and an experiment file that works on them.

    The archive is a tar file of one folder; the same artifacts give the same bytes. Returns the
    methods that are left out because they need images or features of their own.

    Raises:
        InputError: the file joins several experiments, its features are not all there, or one of
            them is damaged.
    """
    load = load_workload(experiment, catalogue)
    if len(load.plans) != 1:
        raise InputError(f"{experiment}: joins several experiments; pack one of them")
    (plan,) = load.plans
    fitting, left = _fitting(plan)
    if not fitting:
        raise InputError(f"{experiment}: every method needs images; there is nothing to pack")
    groups = _groups(plan, fitting)
    files, stores = _files(groups)
    texts = _texts(plan, groups, fitting, left)
    hashes = {name: file_sha256(path) for name, path in files.items()}
    hashes |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    facts = {"format": FORMAT, "files": dict(sorted(hashes.items())), "stores": stores}
    texts[DESCRIPTION] = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    top = plan.experiment.file.experiment
    with atomic_path(output) as temporary, tarfile.open(temporary, "w") as tar:
        for name, text in sorted(texts.items()):
            data = text.encode()
            tar.addfile(_entry(f"{top}/{name}", len(data)), io.BytesIO(data))
        for name, path in track(sorted(files.items()), "files"):
            with path.open("rb") as handle:
                tar.addfile(_entry(f"{top}/{name}", path.stat().st_size), handle)
    say(f"{output}: {len(files) + len(texts)} files, {output.stat().st_size / 1e6:,.1f} MB")
    return left


def _files(groups: list[_Group]) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Return where the archive's files lie, checked, and what each store was made by."""
    files: dict[str, Path] = {}
    stores = []
    for group in groups:
        for name, store in group.stores.items():
            made = _finished(store)
            base = f"{group.name}/{name}"
            parts = {f"features/{base}/{p}": made.file(p) for p in made.manifest["outputs"]}
            entry = {"spec": _spec(made), "content": made.origin()["content"]}
            if (training := store.inputs.get("stage1")) is not None:
                trained = _finished(training)
                entry["trained"] = _spec(trained)
                parts[f"weights/{base}.safetensors"] = trained.file("model.safetensors")
            files |= parts
            stores.append({**entry, "files": list(parts)})
    return files, stores


def _spec(made: Artifact) -> dict[str, Any]:
    """Return what an artifact was made by, less where files lay on this machine."""
    return {key: value for key, value in made.manifest["spec"].items() if key != "locations"}


def _texts(
    plan: Plan, groups: list[_Group], fitting: dict[str, Any], left: list[str]
) -> dict[str, str]:
    head = plan.experiment.file
    values = _experiment(plan, groups, fitting)
    line = "\nLeft out, as it needs images or features of its own: {}."
    return {
        "experiment.yaml": yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
        "README.md": _README.format(
            title=head.title or head.experiment,
            name=head.experiment,
            description=DESCRIPTION,
            left="".join(map(line.format, left)),
        ),
    }


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


def _finished(planned: ArtifactSpec) -> Artifact:
    if not Path(planned.folder, MANIFEST).is_file():
        raise InputError(
            f"{planned.folder}: not there ({planned.title}); run `snakemake features` first"
        )
    return open_artifact(Path(planned.folder))


def _fitting(plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the methods that run on stores alone, and the names of the others."""
    used = {method for _, method, _ in plan.experiment.jobs}
    fitting, left = {}, []
    for name in (name for name in plan.experiment.methods if name in used):
        settings = plan.experiment.methods[name].settings
        own = any(settings.feature_overrides(role) for role in settings.roles())
        if settings.needs_images() or own or settings.stage1_subset_seed() is not None:
            left.append(name)
        else:
            fitting[name] = settings
    return fitting, left


def _groups(plan: Plan, fitting: dict[str, Any]) -> list[_Group]:
    """Return the archive's data sets: where backbones have seeds, one for each of them."""
    stores: dict[str, dict[int, dict[str, ArtifactSpec]]] = defaultdict(lambda: defaultdict(dict))
    methods: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    made = {
        (row["dataset"], row.get("draw"), row["method"], row["seed"]): row["folder"]
        for row in plan.report.spec["results"]
    }
    for dataset, method, seed in plan.experiment.jobs:
        if method not in fitting:
            continue
        settings = plan.experiment.datasets[dataset].settings
        draw = settings.subset_seed if settings.draws_of else None
        artifact = plan.artifacts[made[settings.draws_of or dataset, draw, method, seed]]
        for role, backbone in fitting[method].roles().items():
            stores[dataset][seed][backbone] = artifact.inputs[f"features.{role}"]
        methods[dataset][seed].append(method)
    groups = []
    for dataset, by_seed in stores.items():
        folders = [
            {name: store.folder for name, store in used.items()} for used in by_seed.values()
        ]
        whole = {name: folder for used in folders for name, folder in used.items()}
        if all(used.items() <= whole.items() for used in folders):
            joined = {name: store for used in by_seed.values() for name, store in used.items()}
            groups.append(_Group(dataset, dataset, tuple(by_seed), joined, methods[dataset]))
            continue
        groups += [
            _Group(f"{dataset}-seed{seed}", dataset, (seed,), used, methods[dataset])
            for seed, used in by_seed.items()
        ]
    return groups


def _experiment(plan: Plan, groups: list[_Group], fitting: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment file on the archive's stores, its methods written out."""
    file = plan.experiment.file
    values: dict[str, Any] = {
        "experiment": file.experiment,
        "title": file.title,
        "data": {"root": "features"},
        "seeds": sorted({seed for group in groups for seed in group.seeds}),
        "preload": file.preload,
        "datasets": {group.name: _dataset(plan, group) for group in groups},
        "methods": {
            name: {"kind": settings.kind, **_written(settings)}
            for name, settings in fitting.items()
        },
        "runs": [run for group in groups for run in _runs(group)],
        "tables": _tables(plan, groups, fitting),
    }
    return {key: value for key, value in values.items() if value not in ("", {})}


def _written(settings: Any) -> dict[str, Any]:
    return dict(settings.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def _dataset(plan: Plan, group: _Group) -> dict[str, Any]:
    settings = plan.experiment.datasets[group.dataset].settings
    kept = {"label", "benchmark", "note", "groups"}
    values = settings.model_dump(mode="json", exclude_defaults=True, include=kept)
    if len(group.seeds) == 1 and group.name != group.dataset:
        values["label"] = f"{settings.label or group.dataset}, backbones of seed {group.seeds[0]}"
    stores: dict[str, dict[str, str]] = {}
    for name, store in group.stores.items():
        folder = Path(store.folder)
        parts = ["train", "test"] + (["val"] if _samples(folder / "val.h5") else [])
        stores[name] = {part: f"{group.name}/{name}/{part}.h5" for part in parts}
    return {"source": "features", **values, "stores": stores}


def _samples(path: Path) -> int:
    with h5py.File(path, "r", locking=False) as file:
        return len(file["labels"])


def _runs(group: _Group) -> list[dict[str, Any]]:
    """Return a run for each set of methods, with all seeds that run these."""
    seeds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for seed in group.seeds:
        seeds[tuple(group.methods[seed])].append(seed)
    return [
        {"datasets": [group.name], "methods": list(methods), "seeds": found}
        for methods, found in seeds.items()
    ]


def _tables(plan: Plan, groups: list[_Group], fitting: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with the rows and data sets that the archive has."""
    tables = {}
    for name, table in plan.experiment.file.tables.items():
        values = _written(table)
        rows = [
            row
            for row, settings in zip(values.get("rows", []), table.rows, strict=True)
            if set(match([settings.method], plan.experiment.methods, name)) <= fitting.keys()
        ]
        if table.datasets != ["*"]:
            chosen = match(table.datasets, plan.experiment.datasets, name)
            values["datasets"] = [group.name for group in groups if group.dataset in chosen]
        if rows and values.get("datasets") != []:
            tables[name] = {**values, "rows": rows}
    return tables
