"""Work in steps that takes turns on a device, each piece on a stream of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ltpipe.training.engine import Steps


def take_turns(
    started: Sequence[Steps[Any]], device: torch.device, finish: Callable[[int, Any], None]
) -> None:
    """Take a step of each in turn until all have ended; on a GPU each has a stream of its own.

    Args:
        finish: is told of each, by its place, as soon as it has ended: what it returned or raised.
    """
    if device.type == "cuda":
        # What was made on this stream, such as images, is read on others.
        torch.cuda.synchronize(device)
    running = [_Turns(place, steps, device) for place, steps in enumerate(started)]
    while running:
        for turns in list(running):
            if turns.take():
                running.remove(turns)
                finish(turns.place, turns.result)


class _Turns:
    """Work under way, and the stream on which its steps run."""

    def __init__(self, place: int, steps: Steps[Any], device: torch.device) -> None:
        self.place = place
        self.steps = steps
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.result: Any = None

    def take(self) -> bool:
        """Take a step; return whether that was the last one."""
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            try:
                next(self.steps)
                return False
            except StopIteration as end:
                self.result = end.value
            except Exception as error:
                self.result = error
        return True
