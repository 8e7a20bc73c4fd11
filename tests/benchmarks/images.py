"""ImageNet-LT by simulation: synthetic photos packed, gathered and embedded, beside ImageFolder.

python tests/benchmarks/images.py [--images N] [--processes N] [--folder DIR] [--output FILE]

Photos of 500 x 375 pixels are a few blurred noises, shifted: a JPEG of them takes about as long to
decode as a photo. They are made once, in DIR, and stay there. Both ways of loading give
random-resized crops of 224 x 224 as uint8, mirrored half of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parent))
from measure import CPU, machine, version

from ltpipe.compat import import_torchvision
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import open_batches
from ltpipe.data.images import FileImages
from ltpipe.data.packed import FILE, WholeImages, open_packed
from ltpipe.data.packing import pack
from ltpipe.utils.progress import track

WHOLE = 115_846
SIZE, STORED, CLASSES = (224, 224), (256, 256), 10
BATCH = 128


def make(folder: Path, count: int) -> list[Path]:
    """Return `count` photos, made where they are not there yet."""
    stream = np.random.default_rng(0)
    noise = [
        Image.fromarray(stream.integers(0, 256, (375, 500, 3), np.uint8)).filter(
            ImageFilter.GaussianBlur(radius)
        )
        for radius in (0.7, 1.5, 3, 6)
    ]
    pixels = [np.asarray(image) for image in noise]
    paths = []
    for number in track(range(count), "photos"):
        path = folder / f"class{number % CLASSES}" / f"{number:07}.jpg"
        paths.append(path)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            shifted = np.roll(pixels[number % 4], number * 37 % 500, axis=1)
            Image.fromarray(shifted).save(path, quality=85)
    return paths


def gathered(images: WholeImages) -> float:
    """Return images a second of copying whole images out of the pack, in a random order."""
    order = np.random.default_rng(1).permutation(len(images))
    tallest, widest = images.sizes.max(0).tolist()
    canvas = np.empty((tallest, widest, images.channels), np.uint8)
    started = time.perf_counter()
    for place in order:
        image = images.image(place)
        canvas[: image.shape[0], : image.shape[1]] = image
    return len(order) / (time.perf_counter() - started)


def our_epoch(images: WholeImages, seed: int) -> float:
    """Return the seconds of an epoch of crops from the pack."""
    plan = Augmentation(SIZE, flip=True, resized_crop=True)
    batches = open_batches(images, np.arange(len(images)), plan, CPU)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    started = time.perf_counter()
    for _ in batches.epoch(order, BATCH, torch.Generator().manual_seed(seed)):
        pass
    return time.perf_counter() - started


def their_epoch(folder: Path, processes: int) -> float:
    """Return the seconds of an epoch of torchvision's ImageFolder under a DataLoader."""
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
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=processes)
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started


def measured(folder: Path, count: int, processes: int) -> list[tuple[str, str]]:
    """Return each stage and what it took."""
    paths = make(folder, count)
    torch.set_num_threads(processes)
    with tempfile.TemporaryDirectory(dir=folder.parent) as base:
        place = Path(base) / "pack"
        images = FileImages(paths, STORED, fit="whole")
        started = time.perf_counter()
        pack(images, {"train": count}, place, "benchmark", processes)
        packing = time.perf_counter() - started
        size = (place / FILE).stat().st_size
        whole = open_packed(place / FILE, "train", STORED)
        assert isinstance(whole, WholeImages)
        gathered(whole)
        rate = gathered(whole)
        ours = [our_epoch(whole, seed) for seed in range(2)]
    theirs = their_epoch(folder, processes)
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    # After which epoch packing and ours together are ahead.
    gain = theirs - ours[1]
    repaid = "never" if gain <= 0 else f"in epoch {int(packing / gain) + 1}"
    return [
        ("photos", f"{count:,} of 500 x 375"),
        ("packing", f"{packing:.1f} s, {count / packing:,.0f} images/s, {size / 1e9:.2f} GB"),
        (f"packing {WHOLE:,} at this rate", f"{WHOLE * packing / count / 60:.1f} minutes"),
        ("whole images gathered, one thread", f"{rate:,.0f} images/s"),
        ("crops from the pack, later epochs", f"{count / ours[1]:,.0f} images/s"),
        ("ImageFolder and DataLoader", f"{count / theirs:,.0f} images/s"),
        ("times the peer", f"{theirs / ours[1]:.1f}"),
        ("packing repaid", repaid),
        ("peak memory of a process", f"{peak / 1024:,.0f} MiB"),
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
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photos"
        rows = measured(folder.absolute(), options.images, options.processes)
    lines = [
        "# Images at the scale of ImageNet-LT, by simulation",
        "",
        f"`python tests/benchmarks/images.py --images {options.images}`, {options.processes} "
        f"processes, version {version()}. {machine()}.",
        "",
        "| what | measured |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
