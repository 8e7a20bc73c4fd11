"""A training step recorded once as a CUDA graph and then replayed.

A small network's step is hundreds of kernels of a few microseconds each, and starting them takes
the host longer than running them. A graph starts them all at once. What it replays is what was
recorded, down to the addresses: batches are copied to where the recording read them, and a step
whose other values change is recorded anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

# Libraries choose kernels and take their workspaces in the first steps, which are not recorded.
WARM_UP = 3

_NOTHING = object()

Step = Callable[[Tensor, Tensor], Tensor]
# Records what a function does without doing it; returns what it returned, and how to do it.
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory and are replayed one after another."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = work()
        self.pool = graph.pool()
        return result, graph.replay


class CapturedStep:
    """Calls `step` on (images (B, ...), target (B,)), from the fourth call of a shape on as replay.

    The step must change nothing but tensors that stay where they are, read nothing back to the
    host and draw no random numbers. Its first calls are plain ones.

    Args:
        step: returns a tensor that is used up before the next call.
        recorded_values: returns the values, beside tensors' contents, that the step depends on.
    """

    def __init__(
        self,
        step: Step,
        recorded_values: Callable[[], Hashable],
        recorder: Callable[[], Record] = CudaRecorder,
    ) -> None:
        self._step = step
        self._recorded_values = recorded_values
        self._recorder = recorder
        self._values: Hashable = _NOTHING
        self._calls: Counter[torch.Size] = Counter()
        self._replays: dict[torch.Size, tuple[Tensor, Tensor, Tensor, Callable[[], None]]] = {}

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        values = self._recorded_values()
        if values != self._values:
            self._replays.clear()
            # A pool must not be taken up again once its last graph has gone.
            self._record = self._recorder()
            self._values = values
        shape = images.shape
        if self._calls[shape] < WARM_UP:
            self._calls[shape] += 1
            return self._step(images, target)
        if shape not in self._replays:
            own_images, own_target = images.clone(), target.clone()
            result, replay = self._record(lambda: self._step(own_images, own_target))
            self._replays[shape] = own_images, own_target, result, replay
        own_images, own_target, result, replay = self._replays[shape]
        own_images.copy_(images)
        own_target.copy_(target)
        replay()
        return result
