"""What a filter of a cascade leaves: its flow, and what it says of each sample, as filter.h5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.models.flow import FlowMixture
from ltpipe.stage2.core.cascade import Filter
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path
from ltpipe.utils.seeding import generator

FORMAT = "ltpipe-filter/1"


@dataclass(frozen=True)
class Block:
    """What a filter says of the N samples of one split.

    `log_likelihood` (N,) float32, `cluster` (N,) int64; `member` (N,) bool: whether earlier blocks
    let the sample pass; `inside` (N,) bool: whether it is a member that this block takes out.
    """

    log_likelihood: np.ndarray
    cluster: np.ndarray
    member: np.ndarray
    inside: np.ndarray

    @property
    def passed(self) -> np.ndarray:
        """The members that go on to the next block, (N,) bool."""
        return self.member & ~self.inside


def write_blocks(path: Path, blocks: Mapping[str, Block], threshold: float) -> None:
    """Write what a filter says of each split to filter.h5, whole or not at all."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for split, block in blocks.items():
            for name in ("log_likelihood", "cluster", "member", "inside"):
                file[f"{split}/{name}"] = getattr(block, name)
        file.attrs["format"] = FORMAT
        file.attrs["threshold"] = threshold
        file.attrs["complete"] = True


def read_block(path: Path, split: str) -> Block:
    """Return what a filter.h5 says of a split.

    Raises:
        InputError: there is no whole filter.
    """
    names = ("log_likelihood", "cluster", "member", "inside")
    with _opened(path) as file:
        return Block(**{name: file[f"{split}/{name}"][()] for name in names})


def read_threshold(path: Path) -> float:
    """Return the log-likelihood from which on the filter of a filter.h5 takes a sample out.

    Raises:
        InputError: there is no whole filter.
    """
    with _opened(path) as file:
        return float(file.attrs["threshold"])


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT or not file.attrs.get("complete"):
                raise InputError(f"{path}: not a whole filter; delete it and run again")
            yield file
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path}: not a readable filter ({error}); delete it and run again"
        ) from None


def read_filters(job: Job, settings: FlowFilter, blocks: int, dimension: int) -> list[Filter]:
    """Return the cascade of `blocks` filters that a method's job is given, on its device.

    Args:
        dimension: the features' number of dimensions.
    """
    filters = []
    for role in (f"filter.{number}" for number in range(1, blocks + 1)):
        flow = flow_of(load_file(job.file(role, "filter.safetensors")), settings, dimension)
        threshold = read_threshold(job.file(role, "filter.h5"))
        filters.append(Filter(flow.to(job.device), threshold))
    return filters


def flow_of(state: Mapping[str, Tensor], settings: FlowFilter, dimension: int) -> FlowMixture:
    """Return the flow of a state dict, in evaluation mode."""
    flow = new_flow(settings, dimension, seed=0, block=0)
    flow.load_state_dict(state)
    return flow.eval().requires_grad_(False)


def new_flow(settings: FlowFilter, dimension: int, *, seed: int, block: int) -> FlowMixture:
    """Return the untrained flow of a block."""
    return FlowMixture(
        dimension,
        settings.clusters,
        layers=settings.layers,
        hidden=settings.hidden,
        spread=settings.spread,
        batch_norm=settings.batch_norm,
        generator=generator(seed, "flow", block),
    )
