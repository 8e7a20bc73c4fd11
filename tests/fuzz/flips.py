"""Flip single bits of finished artifacts: each is noticed, or changes nothing that is read.

    python tests/fuzz/flips.py --flips 2000 --runs 50

A small experiment with every kind of artifact is run. Then one random bit of a random file is
flipped, and what the product reads of that artifact is read by its own readers, in this process:
either they refuse it in one line, or they give what they gave before. Some flips are followed by a
run of all that is made from the artifact: it stops with one line, or ends with equal results.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.artifacts.reading import checked_file, open_artifact
from ltpipe.bundles.artifacts import read_metrics
from ltpipe.bundles.export import export_bundle
from ltpipe.cli.program import main as ltpipe
from ltpipe.data.subset import read_subset
from ltpipe.evaluation.records import read_class_counts, read_history, read_records
from ltpipe.features.store import FeatureStore
from ltpipe.plan.layout import ArtifactSpec, Plan
from ltpipe.predict import load
from ltpipe.stage2.core.filters import read_block, read_threshold
from ltpipe.stage2.core.results import read_predictions
from ltpipe.training.checkpoint import Checkpoint
from ltpipe.utils.errors import InputError
from tests import plans

EXPERIMENT: dict[str, Any] = copy.deepcopy(plans.EXPERIMENT)
EXPERIMENT["datasets"]["digits-lt"] = {"max_count": 20, "imbalance": 10.0}
EXPERIMENT["backbones"] = {"ce": {"use": "resnet8-ce", "epochs": 1, "features": {"views": 1}}}
EXPERIMENT["methods"] |= {
    "CE": {"use": "backbone-head", "backbones": {"features": "ce"}},
    "DLSA": {
        "use": "dlsa-small",
        "backbones": {"features": "ce"},
        "filter": {"clusters": 4, "epochs": 1, "batch_size": 32},
        "epochs": 1,
        "blocks": 1,
    },
}
EXPERIMENT["runs"] = [
    {"datasets": ["mine"], "methods": ["NCM", "Linear"]},
    {"datasets": ["digits-lt"], "methods": ["CE", "DLSA"]},
]
EXPERIMENT["tables"]["main"]["rows"] += [{"method": "CE"}, {"method": "DLSA"}]
SPLITS = ("train", "val", "test")


class World:
    """The experiment run in the working folder, a bundle of it, and a checkpoint."""

    def __init__(self) -> None:
        plans.write_embeddings(Path())
        self.path = plans.write_experiment(Path(), EXPERIMENT)
        self.plan: Plan = plans.run_plan(self.path)
        (result,) = [a for a in self.plan.of_kind("stage2") if "backbone-head" in a.folder]
        export_bundle(Path(result.folder), Path("bundle"))
        self.checkpoint = Checkpoint(Path("resume"), "run")
        stream = torch.Generator().manual_seed(0)
        for epoch in range(2):
            tensors = {name: torch.randn(20, 9, generator=stream) for name in ("weight", "bias")}
            self.checkpoint.save(tensors, {"history": [epoch]})
        # A finished training may be gone on from, too: what is read then is one of these.
        self.states = [digest(self.checkpoint.load()), digest(None)]
        self.checkpoint.before.replace("before")
        shutil.copy("before", self.checkpoint.before)
        current = self.checkpoint.path.read_bytes()
        shutil.copy("before", self.checkpoint.path)
        self.states.append(digest(self.checkpoint.load()))
        self.checkpoint.path.write_bytes(current)

    def readers(self) -> list[tuple[str, Path, Callable[[], Any]]]:
        """Return of each artifact its kind, its folder, and what reads it."""
        found: list[tuple[str, Path, Callable[[], Any]]] = [
            (artifact.kind, Path(artifact.folder), reader(artifact, self.plan))
            for artifact in self.plan.artifacts.values()
        ]
        report = Path(self.plan.report.folder)
        found.append(("report", report, lambda: printed(["table", str(report)])))
        found.append(("bundle", Path("bundle"), predicted))
        found.append(("checkpoint", Path("resume"), self.checkpoint.load))
        return found


def reader(artifact: ArtifactSpec, plan: Plan) -> Callable[[], Any]:
    """Return what reads all that is read of an artifact."""
    folder = Path(artifact.folder)

    def weights(name: str) -> Any:
        return load_file(checked_file(folder, name))

    def store() -> Any:
        return [FeatureStore.open(checked_file(folder, f"{split}.h5")) for split in SPLITS]

    def records() -> Any:
        spec = plan.report.spec
        rows = [row for row in spec["results"] if row["folder"] == artifact.folder]
        return read_records({**spec, "results": rows}).to_csv()

    def result() -> Any:
        made = open_artifact(folder)
        scores = vars(read_predictions(folder))
        return records(), scores, read_metrics(made, 0), weights("models.safetensors")

    read = {
        "data": lambda: (read_subset(checked_file(folder, "subset.h5")), read_class_counts(folder)),
        "stage1": lambda: (weights("model.safetensors"), read_history(folder).to_csv()),
        "features": store,
        "import": store,
        "filter": lambda: (
            [read_block(checked_file(folder, "filter.h5"), split) for split in ("train", "test")],
            read_threshold(checked_file(folder, "filter.h5")),
            weights("filter.safetensors"),
        ),
        "stage2": result,
    }[artifact.kind]

    def whole() -> Any:
        made = open_artifact(folder)
        inputs = sorted(made.inputs(""))
        return read(), made.spec, made.origin(), made.run_info(), inputs, read_divergence(folder)

    return whole


def predicted() -> Any:
    """Load the bundle and predict two images."""
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
    predictor = load("bundle", "cpu")
    return predictor.predict(images), predictor.class_names


def printed(command: list[str]) -> str:
    """Return what a command prints.

    Raises:
        InputError: it refuses.
    """
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = ltpipe(command)
    if status:
        raise InputError(errors.getvalue().rstrip("\n"))
    return out.getvalue()


def digest(value: Any) -> str:
    """Return the SHA-256 of all that is in a value."""
    found = hashlib.sha256()

    def add(item: Any) -> None:
        found.update(type(item).__name__.encode())
        if isinstance(item, np.ndarray | torch.Tensor):
            array = np.ascontiguousarray(item)
            found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                add((key, item[key]))
        elif isinstance(item, list | tuple):
            found.update(str(len(item)).encode())
            for inner in item:
                add(inner)
        elif hasattr(item, "__dict__"):
            add(vars(item))
        else:
            found.update(repr(item).encode())

    add(value)
    return found.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Return the files of an artifact that anything of the product reads."""
    pages = {".html", ".svg", ".png", ".md"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if path.suffix not in pages]


@contextlib.contextmanager
def flipped(path: Path, stream: random.Random) -> Iterator[int]:
    """Have one bit of a file flipped for the block."""
    whole = path.read_bytes()
    place = stream.randrange(8 * len(whole))
    changed = bytearray(whole)
    changed[place // 8] ^= 1 << place % 8
    path.write_bytes(changed)
    try:
        yield place
    finally:
        path.with_suffix(".damaged").unlink(missing_ok=True)
        path.write_bytes(whole)


def flip(world: World, flips: int, seed: int = 0) -> dict[str, collections.Counter[str]]:
    """Flip bits one after the other; return the numbers of what came of them by kind.

    Every kind of artifact gets its share, whatever its size.

    Raises:
        AssertionError: a refusal is not one line.
    """
    stream = random.Random(seed)
    by_kind: dict[str, list[Any]] = collections.defaultdict(list)
    for kind, folder, read in world.readers():
        right = world.states if kind == "checkpoint" else [digest(read())]
        by_kind[kind].append((folder, read, right))
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _ in range(flips):
        kind = stream.choice(sorted(by_kind))
        folder, read, right = stream.choice(by_kind[kind])
        path = stream.choice(files_of(folder))
        with flipped(path, stream) as place, contextlib.redirect_stdout(io.StringIO()):
            try:
                said = "equal" if digest(read()) in right else "silent"
            except InputError as error:
                assert "\n" not in str(error).strip(), str(error)
                said = "refused"
            except Exception as error:
                said = "traceback"
                print(f"{type(error).__name__}: bit {place} of {path}", file=sys.stderr)
            if kind == "checkpoint":
                path.with_suffix(".damaged").unlink(missing_ok=True)
        if said == "silent":
            print(f"SILENT: bit {place} of {path}", file=sys.stderr)
        found[kind][said] += 1
    return dict(found)


def results_of(plan: Plan) -> str:
    """Return the digest of what people see of an experiment: metrics, predictions, tables."""
    folders = [Path(artifact.folder) for artifact in plan.of_kind("stage2")]
    files = [folder / name for folder in folders for name in ("metrics.csv", "predictions.h5")]
    files.append(Path(plan.report.folder, "summary.txt"))
    return digest([path.read_bytes() for path in files])


def follow(world: World, runs: int, seed: int = 0) -> collections.Counter[str]:
    """Flip a bit of what others are made from, and run all that follows from it again."""
    stream = random.Random(seed)
    right = results_of(world.plan)
    shutil.copytree("results", "kept")
    found: collections.Counter[str] = collections.Counter()
    made_from = [a for a in world.plan.artifacts.values() if a.kind not in ("stage2", "report")]
    for _ in range(runs):
        artifact = stream.choice(made_from)
        path = stream.choice(files_of(Path(artifact.folder)))
        with flipped(path, stream) as place:
            followers = [a for a in plan_order(world.plan) if artifact.folder in below(a)]
            for follower in followers:
                shutil.rmtree(follower.folder, ignore_errors=True)
            errors = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                statuses = [plans.run_cell(a) for a in (*followers, world.plan.report)]
            said = "refused" if any(statuses) else "equal"
            if said == "refused":
                lines = errors.getvalue().splitlines()
                assert all(line.startswith("ltpipe: error: ") for line in lines), lines
                assert not all(Path(a.folder, "manifest.json").is_file() for a in followers)
            elif results_of(world.plan) != right:
                said = "silent"
                print(f"SILENT after a run: bit {place} of {path}", file=sys.stderr)
            found[said] += 1
        shutil.rmtree("results")
        shutil.copytree("kept", "results")
    shutil.rmtree("kept")
    return found


def plan_order(plan: Plan) -> list[ArtifactSpec]:
    """Return the artifacts of a plan, upstream first."""
    kinds = ["data", "stage1", "import", "features", "filter", "stage2"]
    return [artifact for kind in kinds for artifact in plan.of_kind(kind)]


def below(artifact: ArtifactSpec) -> set[str]:
    """Return the folders of all that an artifact is made from."""
    found = set()
    for needed in artifact.inputs.values():
        found |= {needed.folder} | below(needed)
    return found


def main() -> int:
    """Print the counts; 1 if anything was silently wrong."""
    parser = argparse.ArgumentParser(description="Flip single bits of finished artifacts.")
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with contextlib.redirect_stdout(io.StringIO()):
            world = World()
        found = flip(world, options.flips, options.seed)
        for kind, counts in sorted(found.items()):
            print(f"{kind}: {json.dumps(counts, sort_keys=True)}")
        total = sum(found.values(), collections.Counter())
        print(f"{options.flips} flips: {json.dumps(total, sort_keys=True)}", flush=True)
        runs = follow(world, options.runs, options.seed)
        print(f"{options.runs} flips and runs: {json.dumps(runs, sort_keys=True)}")
    return 1 if total["silent"] or total["traceback"] or runs["silent"] else 0


if __name__ == "__main__":
    sys.exit(main())
