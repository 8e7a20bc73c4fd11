"""Batches of stored images on a device: all kept there, or streamed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ltpipe.data.augment import (
    Augmentation,
    augment,
    centre_crop,
    coloured,
    crop,
    crop_boxes,
    draw,
    views,
)
from ltpipe.data.images import Images
from ltpipe.data.packed import WholeImages, middle_boxes
from ltpipe.data.resampling import resized_box
from ltpipe.utils.errors import InputError

T = TypeVar("T")

# Images per decoding task, and batches in work beside the one in use.
_TASK = 16
_AHEAD = 2


class ImageBatches:
    """Batches of some of the stored images on a device; `open_batches` makes one.

    Attributes:
        augmentation: what happens to training batches, and the size of all batches.
        resident: whether all the images are kept on the device, or loaded batch by batch.
    """

    def __init__(
        self,
        images: Images,
        index: np.ndarray,
        augmentation: Augmentation,
        device: torch.device,
        resident: bool,
    ) -> None:
        self._images = images
        self._index = np.asarray(index, dtype=np.int64)
        self.augmentation = augmentation
        self._device = device
        self.resident = resident
        self._stored: torch.Tensor | None = None
        if resident:
            self._stored = torch.empty(
                (len(index), *images.shape), dtype=torch.uint8, device=device
            )
            start = 0
            for batch in _loaded(images, self._index, 256, device):
                self._stored[start : start + len(batch)] = batch
                start += len(batch)

    def __len__(self) -> int:
        return len(self._index)

    def epoch(
        self, order: torch.Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[torch.Tensor]:
        """Return the images at `order`, batch by batch; the last batch may be short.

        Resident and streamed images give equal bytes for equal generators.

        Args:
            order: (n,) int64 positions within the index, on the CPU, in any order and repetition.
            batch_size: images per batch.
            generator: source of the augmentation's draws; None gives the plain test view, the
                centre crop.

        Returns:
            (b, C, h, w) uint8 in channels-last memory, on the device.

        Raises:
            InputError: an image file can't be read.
        """
        plan = self.augmentation
        if generator is None:
            return self.changed(order, batch_size, lambda batch: centre_crop(batch, plan.size))
        draws = generator
        return self.changed(order, batch_size, lambda batch: augment(batch, plan, draws))

    def changed(
        self, order: torch.Tensor, batch_size: int, change: Callable[[torch.Tensor], T]
    ) -> Iterator[T]:
        """Yield what `change` makes of each batch of stored images, (b, H, W, C) uint8.

        Raises:
            InputError: an image file can't be read.
        """
        with closing(self._batches(order, batch_size)) as batches:
            for batch in batches:
                yield change(batch)

    def _batches(self, order: torch.Tensor, batch_size: int) -> Generator[torch.Tensor, None, None]:
        if self._stored is None:
            yield from _loaded(self._images, self._index[order.numpy()], batch_size, self._device)
            return
        order = order.to(self._device)
        for start in range(0, len(order), batch_size):
            yield self._stored.index_select(0, order[start : start + batch_size])


class WholeBatches:
    """Batches of whole images of any size, of which each view is a box.

    What the boxes are is drawn for an epoch at once, so that threads copy them ahead of the device,
    which waits for nothing.

    Attributes:
        augmentation: what happens to training batches, and the size of all batches.
        resident: whether the images are kept on the device: never, they are mapped.
    """

    resident = False

    def __init__(
        self,
        images: WholeImages,
        index: np.ndarray,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        self._images = images
        self._index = np.asarray(index, dtype=np.int64)
        self.augmentation = augmentation
        self._device = device

    def __len__(self) -> int:
        return len(self._index)

    def epoch(
        self, order: torch.Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[torch.Tensor]:
        """Yield batches as `ImageBatches.epoch` does."""
        places = self._index[order.numpy()]
        plan, sizes = self.augmentation, self._images.sizes[places]
        if generator is None:
            boxes = middle_boxes(sizes, self._images.kept, plan.size)
            with closing(self._canvases(places, boxes, batch_size)) as canvases:
                for canvas in canvases:
                    yield canvas.permute(0, 3, 1, 2)
            return
        counts = [len(part) for part in order.split(batch_size)]
        drawn = torch.cat([draw(plan, count, generator) for count in counts], 1)
        whole = crop_boxes(plan, drawn.cpu(), torch.from_numpy(sizes).double())
        if self._device.type == "cpu":
            yield from self._crops(places, drawn, whole, batch_size)
            return
        boxes = whole.long().numpy()
        # What is copied begins in the canvas's corner.
        inside = torch.cat([torch.zeros_like(whole[:, :2]), whole[:, 2:]], 1)
        drawn = drawn.to(self._device, non_blocking=True)
        inside = inside.to(self._device, non_blocking=True)
        with closing(self._canvases(places, boxes, batch_size)) as canvases:
            for part, canvas in enumerate(canvases):
                rows = slice(part * batch_size, part * batch_size + len(canvas))
                yield crop(canvas, plan, drawn[:, rows], inside[rows])

    def _crops(
        self, places: np.ndarray, drawn: torch.Tensor, boxes: torch.Tensor, batch_size: int
    ) -> Iterator[torch.Tensor]:
        """Yield the drawn views, resized by the threads that read the images."""
        plan, images = self.augmentation, self._images
        chosen = views(plan, drawn, boxes)

        def fill(batch: np.ndarray, rows: np.ndarray) -> None:
            for out, row in zip(torch.from_numpy(batch), rows.tolist(), strict=True):
                image, (box, mirrored) = torch.from_numpy(images.image(places[row])), chosen[row]
                out.copy_(resized_box(image, box, plan.size, plan.interpolation, mirrored))

        shape = (*plan.size, images.channels)
        stream = _stream(fill, lambda rows: shape, np.arange(len(places)), batch_size, self._device)
        with closing(stream) as batches:
            for part, batch in zip(drawn.split(batch_size, 1), batches, strict=True):
                yield coloured(batch.permute(0, 3, 1, 2), plan, part)

    def changed(
        self, order: torch.Tensor, batch_size: int, change: Callable[[torch.Tensor], T]
    ) -> Iterator[T]:
        """Yield what `change` makes of batches of the images' middles, all of one size."""
        places, kept = self._index[order.numpy()], self._images.kept
        boxes = middle_boxes(self._images.sizes[places], kept, kept)
        with closing(self._canvases(places, boxes, batch_size)) as canvases:
            for canvas in canvases:
                yield change(canvas)

    def _canvases(
        self, places: np.ndarray, boxes: np.ndarray, batch_size: int
    ) -> Generator[torch.Tensor, None, None]:
        """Yield each batch's boxes in the corners of (b, H, W, C) uint8 on the device."""

        def shape(rows: np.ndarray) -> tuple[int, ...]:
            tall, wide = boxes[rows, 2:].max(0).tolist()
            return tall, wide, self._images.channels

        def fill(canvas: np.ndarray, rows: np.ndarray) -> None:
            self._images.crops(places[rows], boxes[rows], canvas)

        yield from _stream(fill, shape, np.arange(len(places)), batch_size, self._device)


AnyBatches = ImageBatches | WholeBatches


def open_batches(
    images: Images | WholeImages,
    index: np.ndarray,
    augmentation: Augmentation,
    device: torch.device | str,
    memory_limit: int | None = None,
) -> AnyBatches:
    """Return the batches of the images at `index`, kept on the device if they fit.

    Args:
        images: the stored images.
        index: (n,) int64 positions in `images`.
        augmentation: what happens to training batches, and the size of all batches.
        device: where the batches are wanted.
        memory_limit: bytes that the uint8 images may take on the device; None is half of what is
            free there.

    Raises:
        InputError: the stored images are smaller than `augmentation.size`, or one can't be read.
    """
    device = torch.device(device)
    height, width = images.kept if isinstance(images, WholeImages) else images.shape[:2]
    if height < augmentation.size[0] or width < augmentation.size[1]:
        raise InputError(
            f"stored images are {height} x {width}, smaller than the input size "
            f"{augmentation.size[0]} x {augmentation.size[1]}: raise the data set's size"
        )
    if isinstance(images, WholeImages):
        return WholeBatches(images, index, augmentation, device)
    limit = _free_memory(device) // 2 if memory_limit is None else memory_limit
    return ImageBatches(images, index, augmentation, device, images.nbytes(len(index)) <= limit)


def _loaded(
    images: Images, index: np.ndarray, batch_size: int, device: torch.device
) -> Generator[torch.Tensor, None, None]:
    """Yield (b, H, W, C) uint8 on `device` for the images at `index`, loading ahead in threads."""

    def fill(rows: np.ndarray, part: np.ndarray) -> None:
        rows[:] = images.load(part)

    yield from _stream(fill, lambda part: images.shape, index, batch_size, device)


def _stream(
    fill: Callable[[np.ndarray, np.ndarray], None],
    shape: Callable[[np.ndarray], tuple[int, ...]],
    index: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> Generator[torch.Tensor, None, None]:
    """Yield uint8 batches on `device`, of which `fill` writes rows ahead in threads.

    `shape` is that of an image in the batch of these places. At most two batches are in work beside
    the one handed out. Closing the iterator cancels what is not yet begun and waits for the rest; a
    worker's exception is raised here.
    """
    pinned = device.type == "cuda"
    chunks = deque(index[at : at + batch_size] for at in range(0, len(index), batch_size))
    pending: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
    # The job's own share of the cores; decoding releases the interpreter lock.
    pool = ThreadPoolExecutor(max(2, torch.get_num_threads()), thread_name_prefix="decode")

    try:
        while chunks or pending:
            while chunks and len(pending) <= _AHEAD:
                chunk = chunks.popleft()
                buffer = torch.empty(
                    (len(chunk), *shape(chunk)), dtype=torch.uint8, pin_memory=pinned
                )
                rows = buffer.numpy()
                tasks = [
                    pool.submit(fill, rows[at : at + _TASK], chunk[at : at + _TASK])
                    for at in range(0, len(chunk), _TASK)
                ]
                pending.append((buffer, tasks))
            buffer, tasks = pending.popleft()
            for task in tasks:
                task.result()
            yield buffer.to(device, non_blocking=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _free_memory(device: torch.device) -> int:
    """Return the bytes that can still be taken on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_system_memory(), _cgroup_limit())


def _system_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_limit(
    own: Path = Path("/proc/self/cgroup"), base: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the memory limit of a container or cluster job, or a number too large to matter."""
    lines = own.read_text().splitlines() if own.exists() else []
    groups = {"", *(line[3:].strip("/") for line in lines if line.startswith("0::"))}
    limits = [
        int(text)
        for path in (base / group / "memory.max" for group in groups)
        if path.exists() and (text := path.read_text().strip()).isdecimal()
    ]
    return min(limits, default=2**63 - 1)
