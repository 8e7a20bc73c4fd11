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


class Cycles:
    """Epochs in which classes take turns, and so do the samples of a class.

    Classes come in shuffled rounds, `per_class` samples of each in a row, and the samples of a
    class in shuffled rounds of their own, which the next epoch goes on with: no sample comes twice
    before all of its class came once. Drawing with replacement leaves 40 % of a class out that is
    drawn 0.9 times its size.

    Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
    the released code's class-aware sampling, which BALLAD's code shares.

    Args:
        labels: (N,) int64 in 0 .. num_classes-1, on the CPU. A class without samples has no turn.
    """

    def __init__(self, labels: torch.Tensor, num_classes: int, per_class: int = 1) -> None:
        counts = torch.bincount(labels, minlength=num_classes)
        by_class = torch.argsort(labels, stable=True).split(counts.tolist())
        self.total = len(labels)
        self.per_class = per_class
        self.samples = [part for part in by_class if len(part)]
        self.coming = [part[:0] for part in self.samples]
        self.turns = torch.empty(0, dtype=torch.int64)

    def epoch(self, generator: torch.Generator) -> torch.Tensor:
        """Return the positions that the next epoch visits, (N,) int64 on the CPU.

        Args:
            generator: a CPU generator; what comes depends on it and on the epochs before.
        """
        runs = -(-self.total // self.per_class)
        everyone = torch.arange(len(self.samples))
        turns, self.turns = _dealt(self.turns, everyone, runs, generator)
        classes = turns.repeat_interleave(self.per_class)
        drawn = []
        numbers = torch.bincount(classes, minlength=len(self.samples)).tolist()
        for place, number in enumerate(numbers):
            part, self.coming[place] = _dealt(
                self.coming[place], self.samples[place], number, generator
            )
            drawn.append(part)
        order = torch.empty_like(classes)
        order[torch.argsort(classes, stable=True)] = torch.cat(drawn)
        return order[: self.total]


def _dealt(
    coming: torch.Tensor, everyone: torch.Tensor, number: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next `number` of a deck that is shuffled whenever it ends, and what is left."""
    decks = [coming]
    for _ in range(-(-max(0, number - len(coming)) // len(everyone))):
        decks.append(everyone[torch.randperm(len(everyone), generator=generator)])
    deck = torch.cat(decks)
    return deck[:number], deck[number:]
