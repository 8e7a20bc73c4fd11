"""Rebalancing rules: what is drawn, and how classes are weighed, in each epoch.

| rule | draws | class weights | active |
| --- | --- | --- | --- |
| none | a permutation | none | |
| rs | with replacement, rare classes more often | none | always |
| rw | a permutation | 1 / n, or the inverse effective number | always |
| cb-rw | a permutation | the inverse effective number | always |
| drs | as rs | none | from `start` on |
| drw | a permutation | as rw | from `start` on |
| dcb | a permutation | the inverse effective number | from `start` on |

Deferred reweighting is Cao et al., NeurIPS 2019 (LDAM), section 3.4; the inverse effective number
is Cui et al., CVPR 2019, eq. 2. LDAM's released code defers the effective number and calls that
DRW; the HRJBA paper calls it DCB and keeps DRW for the inverse frequency, as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltpipe.config.backbones import Rule
from ltpipe.config.registry import load, rebalancing
from ltpipe.losses.weights import effective_number_weights, inverse_frequency_weights


@dataclass(frozen=True)
class Phase:
    """What holds in one epoch: the sampler's kind (see epoch_order) and class weights (C,)."""

    sampler: str
    weights: Tensor | None


PLAIN = Phase("shuffle", None)
_SAMPLERS = {"inverse": "balanced", "effective": "effective", "sqrt": "sqrt"}


@rebalancing("none")
def none(rule: Rule, class_counts: Sequence[int]) -> Phase:
    """Shuffle samples and weigh all classes alike."""
    return PLAIN


@rebalancing("rs", paper="Kang et al., ICLR 2020")
@rebalancing("drs", paper="Cao et al., NeurIPS 2019")
def resampling(rule: Rule, class_counts: Sequence[int]) -> Phase:
    """Draw rare classes more often; `drs` from a later epoch on."""
    return Phase(_SAMPLERS[rule.by or "inverse"], None)


@rebalancing("rw", "drw", paper="Cao et al., NeurIPS 2019")
def reweighting(rule: Rule, class_counts: Sequence[int]) -> Phase:
    """Weigh classes by their inverse frequency; `drw` from a later epoch on."""
    if rule.by == "effective":
        return effective_reweighting(rule, class_counts)
    return Phase("shuffle", inverse_frequency_weights(class_counts))


@rebalancing("cb-rw", paper="Cui et al., CVPR 2019")
@rebalancing("dcb", paper="Cao et al., NeurIPS 2019")
def effective_reweighting(rule: Rule, class_counts: Sequence[int]) -> Phase:
    """Weigh classes by the inverse effective number; `dcb` from a later epoch on."""
    return Phase("shuffle", effective_number_weights(class_counts, rule.beta))


def phases(rule: Rule, class_counts: Sequence[int], epochs: int) -> list[Phase]:
    """Return the phase of each of `epochs` epochs."""
    start = rule.first_epoch(epochs)
    active: Phase = load("rule", rule.name)(rule, class_counts)
    return [active if epoch >= start else PLAIN for epoch in range(epochs)]


def on_device(found: Sequence[Phase], device: torch.device) -> list[Phase]:
    """Return the same phases with their weights on `device`, each moved once."""
    moved = {
        id(phase): Phase(phase.sampler, None if phase.weights is None else phase.weights.to(device))
        for phase in found
    }
    return [moved[id(phase)] for phase in found]
