"""The order in which an epoch visits the training samples."""

from __future__ import annotations

import torch

from ltpipe.utils.errors import InputError, nearest

SAMPLERS = ("shuffle", "balanced", "effective", "sqrt", "reversed")
_BETA = 0.9999


def epoch_order(
    labels: torch.Tensor,
    num_classes: int,
    kind: str,
    generator: torch.Generator,
    per_class: int = 1,
) -> torch.Tensor:
    """Return the positions of the N samples that one epoch visits.

    * ``shuffle``: a permutation.
    * The others draw N times with replacement, sample i with a probability in proportion to
      ``balanced``: 1 / n, so that all classes are equally likely; ``sqrt``: n ** -0.5 (Kang et
      al., ICLR 2020, eq. 1 with q = 0 and q = 1/2); ``effective``: (1 - b) / (1 - b ** n) with
      b = 0.9999 (Cui et al., CVPR 2019, eq. 2); ``reversed``: n ** -2, so that class c is drawn
      in proportion to 1 / n_c (BBN, Zhou et al., CVPR 2020, section 4.2), n being the size of the
      class of i.

    Args:
        labels: (N,) int64 in 0 .. num_classes-1, on the CPU. A class without samples is not drawn.
        generator: a CPU generator; the order depends on nothing else.
        per_class: samples drawn in a row for each class that is drawn (decoupling draws 4); it
            changes no frequency, and nothing where samples are shuffled.

    Returns:
        (N,) int64 on the CPU.

    Raises:
        InputError: unknown `kind`.
    """
    total = len(labels)
    if kind == "shuffle":
        return torch.randperm(total, generator=generator)
    counts = torch.bincount(labels, minlength=num_classes)
    n = counts.double()
    if kind == "balanced":
        class_weight = (counts > 0).double()
    elif kind == "sqrt":
        class_weight = n.sqrt()
    elif kind == "reversed":
        class_weight = (counts > 0) / n.clamp(min=1)
    elif kind == "effective":
        class_weight = n * (1 - _BETA) / (1 - _BETA ** n.clamp(min=1))
    else:
        raise InputError(
            f"unknown sampler {kind!r}{nearest(kind, SAMPLERS)}: one of {', '.join(SAMPLERS)}"
        )
    # A class first, then one of its samples: exact, and free of multinomial's 2**24 categories.
    number = -(-total // per_class)
    classes = torch.multinomial(class_weight, number, replacement=True, generator=generator)
    classes = classes.repeat_interleave(per_class)[:total]
    within = torch.rand(total, dtype=torch.float64, generator=generator) * n[classes]
    by_class = torch.argsort(labels, stable=True)
    first = counts.cumsum(0) - counts
    return by_class[first[classes] + within.long()]
