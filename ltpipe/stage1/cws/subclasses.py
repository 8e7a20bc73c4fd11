"""How many subclasses each class is split into, and how they are numbered.

CWS's lists are those of its Table 3, which prints nine numbers for ten classes; the last class has
one subclass. Subclass ids run class by class: those of class c start where those of class c - 1
end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltpipe.utils.errors import InputError

PRESETS: dict[str, list[int]] = {
    "paper-18": [5, 3, 2, 2, 1, 1, 1, 1, 1, 1],
    "paper-39": [10, 8, 6, 5, 3, 2, 2, 1, 1, 1],
    "paper-99": [30, 24, 18, 15, 3, 3, 2, 2, 1, 1],
    "paper-167": [50, 40, 30, 25, 9, 9, 1, 1, 1, 1],
}
# The paper's smallest list splits the largest class by five; so do the rules.
_MOST = 5


def subclass_counts(
    wanted: str | Sequence[int], class_counts: Sequence[int], spread: Tensor | None = None
) -> list[int]:
    """Return the number of subclasses of each class, in the order of `class_counts` (C,).

    A list, or a preset's, holds numbers for ranks by training count, ties in the order of classes;
    with k classes to a number, the first stands for the k largest classes, and so on. `counts` and
    `counts-and-spread` are `automatic` without and with the classes' spread.

    Args:
        wanted: a list of numbers, or a name.
        spread: (C,) of `image_spread`, for `counts-and-spread`.

    Raises:
        InputError: a list's length is not a divisor of the number of classes, or a class has fewer
            images than subclasses.
    """
    if wanted == "counts":
        return automatic(class_counts)
    if wanted == "counts-and-spread":
        if spread is None:
            raise ValueError("counts-and-spread needs the classes' spread")
        return automatic(class_counts, spread)
    by_rank = PRESETS[wanted] if isinstance(wanted, str) else list(wanted)
    classes = len(class_counts)
    if classes % len(by_rank):
        shown = f"{wanted!r} has" if isinstance(wanted, str) else "there are"
        raise InputError(
            f"subclasses: {shown} {len(by_rank)} numbers for {classes} classes; give one a class, "
            "or as many as divide the number of classes"
        )
    order = sorted(range(classes), key=lambda label: (-class_counts[label], label))
    each = classes // len(by_rank)
    found = [1] * classes
    for rank, label in enumerate(order):
        found[label] = by_rank[rank // each]
    for label, number in enumerate(found):
        if number > class_counts[label]:
            raise InputError(
                f"subclasses: class {label} has {class_counts[label]} training images, too few for "
                f"{number} subclasses"
            )
    return found


def automatic(class_counts: Sequence[int], spread: Tensor | None = None) -> list[int]:
    """Return numbers of subclasses by class size, and by spread where it is given.

    ``SN_c = min(max(round(5 n_c / n_max), 1), 5)``: subclasses of about a fifth of the largest
    class each. With spreads s the size counts ``s_c / mean(s)`` times before it is compared with
    the largest: of two classes of one size, the wider one is split into more. CWS names such a
    rule as future work.

    Args:
        spread: (C,) the root mean square distance of each class's samples from their mean.
    """
    sizes = torch.tensor(class_counts, dtype=torch.float64)
    if spread is not None:
        sizes = sizes * (spread / spread.mean()).cpu().double()
    numbers = (_MOST * sizes / sizes.max()).round().clamp(1, _MOST)
    return [int(min(number, count)) for number, count in zip(numbers, class_counts, strict=True)]


def spread_of(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return each class's root mean square distance (C,) from its mean, float64.

    Args:
        vectors: (N, D).
        labels: (N,).
    """
    sums, squares, counts = _moments(vectors, labels, classes)
    return _spread(sums, squares, counts)


def image_spread(batches: object, labels: Tensor, classes: int, size: int = 16) -> Tensor:
    """Return `spread_of` the plain training images, brought to at most `size` pixels a side.

    It is known before a network is, at the price of one pass over the images. Small images keep
    shapes and colours and lose the noise of single pixels.

    Args:
        batches: a stream of (B, C, H, W) images, as `ltpipe.data.batches.open_batches` gives it.
        labels: (N,).
    """
    totals: tuple[Tensor, Tensor, Tensor] | None = None
    start = 0
    for batch in batches.epoch(torch.arange(len(labels)), 512, None):  # type: ignore[attr-defined]
        images = batch.float() / 255
        if max(images.shape[2:]) > size:
            images = torch.nn.functional.adaptive_avg_pool2d(images, size)
        target = labels[start : start + len(images)]
        start += len(images)
        found = _moments(images.flatten(1), target.to(images.device), classes)
        totals = found if totals is None else tuple(map(torch.add, totals, found))  # type: ignore[assignment]
    assert totals is not None
    return _spread(*totals)


def _moments(vectors: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's sum (C, D), sum of squared norms (C,) and number (C,)."""
    values = vectors.double()
    sums = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    squares = values.new_zeros(classes).index_add_(0, labels, values.square().sum(1))
    return sums, squares, torch.bincount(labels, minlength=classes)


def _spread(sums: Tensor, squares: Tensor, counts: Tensor) -> Tensor:
    n = counts.clamp_min(1)
    means = sums / n.unsqueeze(1)
    return (squares / n - means.square().sum(1)).clamp_min(0).sqrt()
