"""Methods that others are made of: trained for held-out samples, and for the test."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.registry import module_of
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.held_out import fold_files, held_out_files
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.results import read_predictions, under
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say

# Probabilities below this are taken for it: a member must not veto a class by rounding to zero.
FLOOR = 1e-12


def member_logs(fitted: Fitted[Any], samples: Samples) -> list[Tensor]:
    """Return the log-probabilities (N, C) of each member, by name, from its part of the weights."""
    logs = []
    for name, settings in sorted(fitted.settings.members.items()):
        member = Fitted(
            settings,
            under(fitted.weights, name),
            settings.points()[0],
            fitted.class_counts,
            fitted.facts["members"][name],
        )
        own = {role: samples[outer] for role, outer in settings.roles().items()}
        module = importlib.import_module(module_of("method", settings.kind))
        log = torch.log_softmax(module.logits(member, own), dim=1)
        logs.append(log.clamp(min=math.log(FLOOR)))
    return logs


class HeldOut(NamedTuple):
    """Samples that members did not see: labels (N,), the training counts (C,), the members'
    log-probabilities (M, N, C).
    """

    labels: np.ndarray
    class_counts: list[int]
    logs: np.ndarray


def held_out_members(job: Job, roles: list[str], names: Sequence[str], folds: int = 1) -> HeldOut:
    """Return the members on samples that they were not trained on.

    Those are a held-out part; or all training samples, where each of several `folds` is left out
    once.

    Raises:
        InputError: there are none.
    """
    with tempfile.TemporaryDirectory(dir=job.output) as temporary:
        scratch = Path(temporary)
        if folds == 1:
            return _on_files(
                job, {role: held_out_files(job, role, scratch) for role in roles}, names, scratch
            )
        cut = [fold_files(job, role, folds, scratch) for role in roles]
        parts = []
        for place, files in enumerate(zip(*cut, strict=True)):
            folder = scratch / f"fold{place}"
            folder.mkdir()
            parts.append(_on_files(job, dict(zip(roles, files, strict=True)), names, folder))
    labels = np.concatenate([part.labels for part in parts])
    counts = np.bincount(labels, minlength=len(parts[0].class_counts)).tolist()
    return HeldOut(labels, counts, np.concatenate([part.logs for part in parts], axis=1))


def _on_files(
    job: Job, files: Mapping[str, tuple[Path, Path]], names: Sequence[str], scratch: Path
) -> HeldOut:
    folders = {}
    for role, (train, val) in files.items():
        held_out = FeatureStore.open(val, skip=("views",))
        if not len(held_out.labels):
            raise InputError(
                f"{held_out.path}: has no samples for what members are judged by; give the "
                "data set a validation part (or a stack weights: equal)"
            )
        # To a member, the held-out samples are those to be tested on.
        folders[role] = scratch / role
        folders[role].mkdir()
        (folders[role] / "train.h5").symlink_to(train.resolve())
        (folders[role] / "test.h5").symlink_to(val.resolve())
    say(f"members on {len(held_out.labels)} held-out samples, called test here:")
    return HeldOut(held_out.labels, held_out.class_counts, run_members(job, folders, names).logs)


class Trained(NamedTuple):
    """Members' log-probabilities (M, N, C), weights by member and name, and manifest facts."""

    logs: np.ndarray
    weights: dict[str, Tensor]
    facts: dict[str, dict[str, Any]]


def run_members(job: Job, folders: Mapping[str, Path], names: Iterable[str]) -> Trained:
    """Train members on stores by role."""
    logs: list[np.ndarray] = []
    tensors: dict[str, Tensor] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        method = job.spec["method"]["members"][name]
        inputs = {f"features.{own}": folders[outer] for own, outer in method["backbones"].items()}
        with tempfile.TemporaryDirectory(dir=job.output) as temporary:
            output = Path(temporary)
            spec = {**job.spec, "method": method}
            member = importlib.import_module(module_of("method", method["kind"]))
            say(f"member {name}:")
            facts[name] = member.run(
                Job(spec=spec, inputs=inputs, output=output, device=job.device)
            )
            predicted = read_predictions(output).scores
            if predicted is None:
                raise InputError(
                    f"members.{name}: the test set times its classes is too large to keep scores "
                    "of; a stack needs them"
                )
            weights = load_file(output / "models.safetensors")
        logs.append(np.log(predicted[0].astype(np.float64).clip(FLOOR)))
        tensors |= {f"{name}.{key}": value for key, value in weights.items()}
    return Trained(np.stack(logs), tensors, facts)
