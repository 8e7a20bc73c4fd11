"""Whether a training's passes are compiled: by its settings, or by a measurement in the job."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltpipe.models.building import place
from ltpipe.training import distributed
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.progress import say

FILE = "compile.json"
# Seconds of plain passes below which compiling, which takes up to a minute, is not tried.
_WORTH_TRYING = 300.0
_PASSES = 5


@dataclass(frozen=True)
class Decision:
    """What `compile: auto` came to in a job, and why; seconds are those of one pass or None."""

    compiled: bool
    reason: str
    steps: int
    plain_seconds: float | None = None
    compiled_seconds: float | None = None
    compiling_seconds: float | None = None


def compiled(function: Callable[..., Any], device: torch.device) -> Any:
    """Return `function` compiled; on a GPU its kernels are recorded once and replayed."""
    return torch.compile(function, mode="reduce-overhead" if device.type == "cuda" else "default")


def remembered(folder: Path, identity: str, decide: Callable[[], Decision]) -> Decision:
    """Return what was decided for this run before it was interrupted, or decide and write it down.

    A run that goes on has to compute as it began, or its bytes would not be those of an unbroken
    one.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("identity") == identity:
            return Decision(**found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    decision = decide()
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps({"identity": identity, **asdict(decision)}))
    return decision


def decide(
    network: Any, images: Tensor, steps: int, autocast: Callable[[], Any], device: torch.device
) -> Decision:
    """Decide whether compiling pays, by forward and backward passes of a copy of `network`.

    It does where the seconds that all steps save are more than compiling takes.

    Args:
        network: has `features`; neither it nor any stream of random numbers is changed.
        images: a batch (B, C, H, W) of the training's size, its values of no matter.
        steps: how many the training will take.
    """
    if distributed.size() > 1:
        return Decision(False, "several processes train together", steps)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        measured = place(copy.deepcopy(network), device).train()
        plain = _seconds(measured.features, measured, images, autocast)
        if steps * plain < _WORTH_TRYING:
            return Decision(False, "too short to try", steps, plain)
        started = time.perf_counter()
        joined = compiled(measured.features, device)
        try:
            _pass(joined, measured, images, autocast)
        # Whatever a compiler may raise: without one, or with a network that it can't follow.
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Decision(False, f"can't be compiled: {said[:200]}", steps, plain)
        compiling = time.perf_counter() - started
        fast = _seconds(joined, measured, images, autocast)
    pays = steps * (plain - fast) > compiling
    return Decision(pays, "pays" if pays else "does not pay", steps, plain, fast, compiling)


def report(decision: Decision) -> dict[str, Any]:
    """Say what was decided, and return it as the manifest has it."""
    say(f"compile: auto: {'compiled' if decision.compiled else 'plain'}, {decision.reason}")
    return {"compile": asdict(decision)}


def _seconds(
    features: Callable[[Tensor], Tensor],
    network: nn.Module,
    images: Tensor,
    autocast: Callable[[], Any],
) -> float:
    """Return the seconds of the fastest of some passes."""
    _pass(features, network, images, autocast)
    times = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        _pass(features, network, images, autocast)
        times.append(time.perf_counter() - started)
    return min(times)


def _pass(
    features: Callable[[Tensor], Tensor],
    network: nn.Module,
    images: Tensor,
    autocast: Callable[[], Any],
) -> None:
    with autocast():
        value = features(images).float().square().mean()
    # Of a network of which the classifier alone is trained, nothing goes back.
    if value.requires_grad:
        value.backward()
    network.zero_grad()
    if images.device.type == "cuda":
        torch.cuda.synchronize()
