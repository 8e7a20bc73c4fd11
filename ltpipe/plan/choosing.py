"""Which artifact is meant by an experiment file and the name of one of its methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltpipe.plan.layout import Plan
from ltpipe.plan.stages import MANIFEST
from ltpipe.plan.workload import Workload, load_workload
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.paths import named_root


@dataclass(frozen=True)
class Result:
    """A method's result for one seed.

    Attributes:
        row: of the report's spec: dataset, method, label, kind, seed, folder.
        experiment: the name of its experiment.
        dataset: the data set's settings; `data` the folder of its draw, `root` where data lie.
    """

    row: dict[str, Any]
    experiment: str
    dataset: Any
    data: Path
    root: Path | None

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.row["folder"])


def results_of(load: Workload) -> list[Result]:
    """Return every result that an experiment file, or all those it includes, ask for."""
    root = named_root(load.head.data.root)
    return [
        Result(
            row,
            plan.experiment.file.experiment,
            _settings(plan, row["dataset"]),
            Path(plan.report.spec["datasets"][row["dataset"]]["folder"]),
            root,
        )
        for plan in load.plans
        for row in plan.report.spec["results"]
    ]


def _settings(plan: Plan, name: str) -> Any:
    """Return a data set's settings; of several draws under one name those of the first."""
    datasets = plan.experiment.datasets
    if name in datasets:
        return datasets[name].settings
    return next(d.settings for d in datasets.values() if d.settings.draws_of == name)


def find_result(
    experiment: Path, method: str, dataset: str | None = None, seed: int | None = None
) -> Result:
    """Return the finished result of a method of an experiment file.

    Args:
        method: its name in the file, or its label.
        dataset: where the file has several.
        seed: the first one unless given.

    Raises:
        InputError: the file can't be read, there is no such method, data set or seed, several are
            meant, or the result is not there yet.
    """
    found = results_of(load_workload(experiment))
    for key, wanted, option in (("method", method, ""), ("dataset", dataset, "--dataset ")):
        known = list(dict.fromkeys(row.row[key] for row in found))
        if key == "method":
            chosen = [row for row in found if method in (row.row["method"], row.row["label"])]
        else:
            chosen = [row for row in found if wanted in (None, row.row[key])]
        if not chosen:
            raise InputError(
                f"{option}{wanted}: {experiment} has no such {key}{nearest(str(wanted), known)}; "
                f"it has {', '.join(known)}"
            )
        found = chosen
    several = list(dict.fromkeys(row.row["dataset"] for row in found))
    if len(several) > 1:
        raise InputError(
            f"{method} runs on several data sets; choose by --dataset one of {', '.join(several)}"
        )
    seeds = [row.row["seed"] for row in found]
    if seed is not None and seed not in seeds:
        raise InputError(f"--seed {seed}: {method} has the seeds {', '.join(map(str, seeds))}")
    result = found[0 if seed is None else seeds.index(seed)]
    if not (result.folder / MANIFEST).is_file():
        raise InputError(
            f"{method} has not been run yet ({result.folder}): `ltpipe run {experiment}` makes it"
        )
    return result
