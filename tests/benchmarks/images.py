"""ImageNet-LT by simulation: synthetic photos packed, cropped, embedded, classified, beside peers.

python tests/benchmarks/images.py [--images N] [--processes N] [--folder DIR] [--output FILE]

Photos of 500 x 375 pixels are a few blurred noises, shifted: a JPEG of them takes about as long to
decode as a photo. They are made once, in DIR, and stay there. Both ways of loading give
random-resized crops of 224 x 224 as uint8, mirrored half of the time. On a busy machine read
CPU-seconds, and take one process: threads that wait for each other there spend them too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parent))
from measure import CPU, machine, version

from ltpipe.compat import import_torchvision
from ltpipe.config.backbones import Pretrained
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import open_batches
from ltpipe.data.images import FileImages
from ltpipe.data.packed import FILE, WholeImages, open_packed
from ltpipe.data.packing import pack
from ltpipe.features.pretrained import pretrained_embedder
from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.pretrained import build_pretrained, network_input
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.fit import Recipe
from ltpipe.training.devices import precision
from ltpipe.utils.progress import track

WHOLE = 115_846
SIZE, STORED, CLASSES = (224, 224), (256, 256), 10
BATCH = 128
NETWORK = "timm:mobilenetv3_small_100.lamb_in1k"
# So many photos differ, by the shift and the noise; the peer loads at most so many.
DIFFERENT, PEER = 500, 20_000


@dataclass
class Stage:
    """What a stage took: seconds by the clock, and of all processes together."""

    name: str
    images: int
    wall: float = 0.0
    cpu: float = 0.0

    def row(self) -> str:
        """Return the stage as a line of the page's table."""
        return (
            f"| {self.name} | {self.images:,} | {self.wall:.1f} | {self.images / self.wall:,.0f} | "
            f"{self.cpu:.1f} | {self.images / self.cpu:,.0f} |"
        )


@contextlib.contextmanager
def stage(name: str, images: int) -> Iterator[Stage]:
    """Time a block, with the processes that it started and waited for."""
    found, before, started = Stage(name, images), os.times(), time.perf_counter()
    yield found
    found.wall = time.perf_counter() - started
    found.cpu = sum(os.times()[:4]) - sum(before[:4])


def make(folder: Path, count: int) -> list[Path]:
    """Return `count` photos, made where they are not there yet."""
    stream = np.random.default_rng(0)
    noise = [
        Image.fromarray(stream.integers(0, 256, (375, 500, 3), np.uint8)).filter(
            ImageFilter.GaussianBlur(radius)
        )
        for radius in (0.7, 1.5, 3, 6)
    ]
    encoded = []
    for number in range(min(count, DIFFERENT)):
        shifted = np.roll(np.asarray(noise[number % 4]), number * 37 % DIFFERENT, axis=1)
        buffer = io.BytesIO()
        Image.fromarray(shifted).save(buffer, "JPEG", quality=85)
        encoded.append(buffer.getvalue())
    paths = []
    for number in track(range(count), "photos"):
        path = folder / f"class{number % CLASSES}" / f"{number:07}.jpg"
        paths.append(path)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded[number % DIFFERENT])
    return paths


def gather(images: WholeImages) -> None:
    """Copy whole images out of the pack, in a random order, in one thread."""
    tallest, widest = images.sizes.max(0).tolist()
    canvas = np.empty((tallest, widest, images.channels), np.uint8)
    for place in np.random.default_rng(1).permutation(len(images)):
        image = images.image(place)
        canvas[: image.shape[0], : image.shape[1]] = image


def our_epoch(images: WholeImages, seed: int) -> None:
    """Take an epoch of crops from the pack."""
    plan = Augmentation(SIZE, flip=True, resized_crop=True)
    batches = open_batches(images, np.arange(len(images)), plan, CPU)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for _ in batches.epoch(order, BATCH, torch.Generator().manual_seed(seed)):
        pass


def their_epoch(folder: Path, count: int, processes: int) -> None:
    """Take an epoch of `count` images from torchvision's ImageFolder under a DataLoader."""
    vision = import_torchvision()
    transforms = vision.transforms
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    data = vision.datasets.ImageFolder(str(folder), change)
    some = torch.utils.data.Subset(data, torch.randperm(len(data))[:count].tolist())
    for _ in torch.utils.data.DataLoader(some, BATCH, shuffle=True, num_workers=processes):
        pass


def embed(images: WholeImages) -> np.ndarray:
    """Return the features of a frozen network with random weights, by the code of `embed`."""
    settings = Pretrained(system="pretrained", network=NETWORK, weights=None)
    dtype = precision("auto", CPU, "extraction")
    frozen = build_pretrained(settings).eval()
    network = pretrained_embedder(frozen, network_input(settings), dtype, CPU)
    batches = open_batches(images, np.arange(len(images)), Augmentation(SIZE), CPU)
    order = torch.arange(len(images))
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in batches.epoch(order, 64, None)]).numpy()


def classify(features: np.ndarray) -> None:
    """Fit one linear head for ten epochs, by the code of `classify`."""
    labels = np.arange(len(features)) % CLASSES
    store = FeatureStore(
        path=Path("photos"),
        features=features,
        labels=labels,
        index=np.arange(len(features)),
        class_counts=np.bincount(labels, minlength=CLASSES).tolist(),
        class_names=[str(label) for label in range(CLASSES)],
    )
    recipe = Recipe(10, 64, 0.1, "cosine", 0.9, 5e-4)
    fit_classifiers(store, CrossEntropyLoss(), recipe, Sampling("plain", "shuffle"), 0, CPU)


def measured(folder: Path, count: int, processes: int) -> list[str]:
    """Return the lines of the page's tables."""
    paths = make(folder, count)
    torch.set_num_threads(processes)
    with tempfile.TemporaryDirectory(dir=folder.parent) as base:
        place = Path(base) / "pack"
        images = FileImages(paths, STORED, fit="whole")
        with stage("packing", count) as packing:
            pack(images, {"train": count}, place, "benchmark", processes)
        size = (place / FILE).stat().st_size
        whole = open_packed(place / FILE, "train", STORED)
        assert isinstance(whole, WholeImages)
        with stage("whole images gathered, one thread", count) as gathering:
            gather(whole)
        with stage("crops from the pack, first epoch", count) as first:
            our_epoch(whole, 0)
        with stage("crops from the pack, second epoch", count) as second:
            our_epoch(whole, 1)
        some = min(count, PEER)
        with stage("crops by ImageFolder and DataLoader", some) as peer:
            their_epoch(folder, some, processes)
        with stage(f"extraction by {NETWORK}, frozen", count) as extraction:
            features = embed(whole)
        with stage("a linear head, ten epochs", 10 * count) as head:
            classify(features)
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    stages = [packing, gathering, first, second, peer, extraction, head]
    lines = [
        "| stage | images | seconds | images/s | CPU-seconds | images per CPU-second |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(found.row() for found in stages),
        "",
        "| what | by the clock | by CPU time |",
        "| --- | ---: | ---: |",
    ]
    ratios, repaid, whole_pack = [], [], []
    for unit in ("wall", "cpu"):
        theirs, ours, packed = (
            getattr(found, unit) / found.images for found in (peer, second, packing)
        )
        ratios.append(f"{theirs / ours:.1f}")
        # The epoch after which packing and ours together are ahead.
        repaid.append(f"{int(packed / (theirs - ours)) + 1}" if theirs > ours else "never")
        whole_pack.append(f"{WHOLE * packed / 60:.1f} minutes")
    facts = {
        "crops from the pack, times the peer": ratios,
        "packing repaid in epoch": repaid,
        f"packing {WHOLE:,} photos at this rate": whole_pack,
    }
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in facts.items()]
    return [
        *lines,
        "",
        f"The pack has {size / 1e9:.2f} GB; the largest process had {peak / 1024:,.0f} MiB, "
        "pages of the mapped pack included.",
    ]


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=WHOLE)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where photos are, or are made")
    parser.add_argument(
        "--output", type=Path, help="the page, such as data/results/scale_images.md"
    )
    options = parser.parse_args()
    measured_of = version()
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photos"
        rows = measured(folder.absolute(), options.images, options.processes)
    lines = [
        "# Images at the scale of ImageNet-LT, by simulation",
        "",
        f"`python tests/benchmarks/images.py --images {options.images} --processes "
        f"{options.processes}`, photos of 500 x 375, version {measured_of}. {machine()}; "
        f"{os.getloadavg()[0]:.1f} processes wanted its cores at the end.",
        "",
        *rows,
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
