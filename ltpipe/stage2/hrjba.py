"""HRJBA: a head branch and a tail branch joined to one classifier of all classes.

The paper answers each test sample by the branch of its true group, an oracle; the other ways of
joining need no such knowledge. Each branch's logits are those of its own classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.config.methods import HRJBA, Classifier
from ltpipe.data.head_tail import group_classes
from ltpipe.errors import InputError
from ltpipe.features.store import FeatureStore
from ltpipe.job import Job
from ltpipe.losses.base import SoftmaxForm
from ltpipe.losses.building import build_loss
from ltpipe.progress import say
from ltpipe.seeding import generator
from ltpipe.stage2.blocks import read_block
from ltpipe.stage2.classifier import fit_classifiers
from ltpipe.stage2.classifiers import LinearModel, linear_scores, random_linear
from ltpipe.stage2.decoupled import Features, finish
from ltpipe.stage2.fit import Parameters, fit
from ltpipe.stage2.groups import group_rows, masked, sample_groups
from ltpipe.stage2.logit_gradients import SoftmaxGradient
from ltpipe.stage2.results import method_settings, open_stores
from ltpipe.stage2.retraining import recipe_of, training_batches
from ltpipe.stage2.routing import energy_gap, fit_bias, fit_temperature, tempered

GROUPS = ("head", "tail")


@dataclass(frozen=True)
class Branches:
    """Both branches' logits of the same N samples: (N, h) and (N, t), and their classes."""

    logits: tuple[Tensor, Tensor]
    classes: tuple[list[int], list[int]]

    def joined(self, parts: Tensor) -> Tensor:
        """Return scores (N, h + t), head classes first, in the order of classes: (N, C)."""
        order = torch.tensor([*self.classes[0], *self.classes[1]])
        scores = torch.empty_like(parts)
        scores[:, order] = parts
        return scores

    @property
    def concatenated(self) -> Tensor:
        """The logits of all classes, (N, C)."""
        return self.joined(torch.cat(self.logits, 1))


def run(job: Job) -> dict[str, Any]:
    """Join the branches as the settings say and evaluate the test samples.

    `job.inputs` has the stores `features.head` and `features.tail`; with routing temperature or
    energy also `tuning.head` and `tuning.tail` where the data set has no validation part, with
    routing flow `filter.1`.

    Raises:
        InputError: a store is damaged, is of other classes, or has no held-out samples to fit on.
    """
    settings = method_settings(job, HRJBA, GROUPS)
    needs_views = settings.routing in ("gate", "retrain") and settings.views == "cached"
    train = open_stores(job, "train", skip=() if needs_views else ("views",))
    test = open_stores(job, "test")
    features = Features(settings, _both(train), _both(test))
    if settings.routing == "retrain":
        return _retrain(job, features)
    branches = branches_of(test, settings.tail_share)
    scores, weights, facts = _route(job, features, branches)
    rows = group_rows(
        scores.argmax(1).numpy(), features.test, settings.tail_share, settings.protocol()
    )
    weights = {name: value[None] for name, value in weights.items()}
    return finish(job, features, lambda place: scores, weights, more_rows=[rows], **facts)


def branches_of(stores: dict[str, FeatureStore], tail_share: float) -> Branches:
    """Return the logits of both branches, each of its own classes.

    Raises:
        InputError: a store has no logits, or a branch was trained on other classes.
    """
    found, groups = [], []
    for group in GROUPS:
        store = stores[group]
        classes = group_classes(store.class_counts, tail_share, group)
        if store.logits is None:
            raise InputError(f"{store.path}: has no logits to join")
        logits = torch.from_numpy(store.logits)
        covered = [int(label) for label in store.attributes.get("classes", [])]
        if covered and covered != classes:
            raise InputError(
                f"{store.path}: its branch was trained on {len(covered)} classes, tail_share "
                f"{tail_share:g} makes {len(classes)} {group} classes; give both the same"
            )
        # A classifier of all classes serves as a branch by its outputs for the group.
        found.append(logits if covered else logits[:, classes])
        groups.append(classes)
    return Branches((found[0], found[1]), (groups[0], groups[1]))


def _both(stores: dict[str, FeatureStore]) -> FeatureStore:
    """Return a store whose features are those of the head branch, then those of the tail branch."""
    head, tail = (stores[group] for group in GROUPS)
    views = None
    if head.views is not None and tail.views is not None:
        same = all(head.attributes.get(key) == tail.attributes.get(key) for key in ("view_seed",))
        if not same or len(head.views) != len(tail.views):
            raise InputError(
                f"{head.path} and {tail.path} hold different views: give both branches the same "
                "features.views and features.view_seed"
            )
        views = np.concatenate([head.views, tail.views], 2)
    return dataclasses.replace(
        head, features=np.concatenate([head.features, tail.features], 1), views=views, logits=None
    )


def _route(
    job: Job, features: Features, branches: Branches
) -> tuple[Tensor, Parameters, dict[str, Any]]:
    """Return scores (N, C) whose softmax counts, what was learned, and facts of it."""
    settings = features.settings
    tail, of_tail = sample_groups(features.test, settings.tail_share)
    inside = branches.joined(torch.cat([z.log_softmax(1) for z in branches.logits], 1))
    if settings.routing == "oracle":
        return masked(inside, tail, of_tail), {}, {}
    if settings.routing == "concat":
        return branches.concatenated, {}, {}
    if settings.routing == "flow":
        return masked(inside, tail, torch.from_numpy(_taken(job))), {}, {}
    if settings.routing == "gate":
        return _gate(job, features, tail, inside)
    held_out, labels = _held_out(job, settings.tail_share)
    temperatures = _temperatures(held_out, labels)
    facts: dict[str, Any] = {"temperatures": list(temperatures)}
    learned = {"temperatures": torch.tensor(temperatures)}
    if settings.routing == "temperature":
        share = 0.5 if settings.prior == "even" else float(tail.double().mean())
        return branches.joined(tempered(*branches.logits, temperatures, share)), learned, facts
    bias = fit_bias(energy_gap(*held_out.logits, temperatures), tail[labels])
    gap = energy_gap(*branches.logits, temperatures)
    say(f"temperatures {temperatures[0]:.2f} and {temperatures[1]:.2f}, bias {bias:.2f}")
    learned["bias"] = torch.tensor(bias)
    return masked(inside, tail, gap + bias > 0), learned, {**facts, "bias": bias}


def _taken(job: Job) -> np.ndarray:
    return read_block(job.inputs["filter.1"], "test").inside


def _held_out(job: Job, tail_share: float) -> tuple[Branches, Tensor]:
    """Return the branches' logits and the labels of samples that neither was trained on."""
    stores = {
        group: FeatureStore.open(_tuning_folder(job, group) / "val.h5", skip=("views",))
        for group in GROUPS
    }
    head, tail = stores["head"], stores["tail"]
    if not len(head.labels):
        raise InputError(
            f"{head.path}: has no samples to fit the routing on; give the data set "
            "a validation part"
        )
    if not np.array_equal(head.index, tail.index):
        raise InputError(f"{head.path} and {tail.path} hold different samples")
    return branches_of(stores, tail_share), torch.from_numpy(head.labels)


def _tuning_folder(job: Job, group: str) -> Path:
    return job.inputs.get(f"tuning.{group}", job.inputs[f"features.{group}"])


def _temperatures(branches: Branches, labels: Tensor) -> tuple[float, float]:
    """Return each branch's temperature, fitted on the samples of its own classes."""
    found = []
    for logits, classes in zip(branches.logits, branches.classes, strict=True):
        places = {label: place for place, label in enumerate(classes)}
        local = torch.tensor([places.get(label, -1) for label in labels.tolist()])
        found.append(fit_temperature(logits[local >= 0], local[local >= 0]))
    return found[0], found[1]


def _gate(
    job: Job, features: Features, tail: Tensor, inside: Tensor
) -> tuple[Tensor, Parameters, dict[str, Any]]:
    """Route by a logistic regression on both branches' features, classes drawn evenly."""
    settings, seed = features.settings, job.spec["seed"]
    batches = training_batches([features.train], settings, [seed], job.device)
    to_group = tail.long().to(job.device)

    def groups(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, target in batches(epoch):
            yield inputs, to_group[target]

    dimension = features.train.features.shape[1]
    weight, bias = random_linear(2, dimension, generator(seed, "gate"))
    found = fit(
        {"weight": weight[None].to(job.device), "bias": bias[None].to(job.device)},
        LinearModel(SoftmaxGradient(SoftmaxForm(), device=job.device), ("weight", "bias")),
        groups,
        recipe_of(settings, 1, job.device),
        description="gate",
    )
    test = torch.from_numpy(features.test.features).to(job.device)
    log_share = linear_scores(found, 0, test).log_softmax(1).cpu()
    learned = {name: value[0] for name, value in found.items()}
    if settings.soft:
        return inside + log_share[:, tail.long()], learned, {}
    return masked(inside, tail, log_share[:, 1] > log_share[:, 0]), learned, {}


def _retrain(job: Job, features: Features) -> dict[str, Any]:
    """Train a linear classifier of all classes on both branches' features."""
    settings = features.settings
    values = {
        name: getattr(settings, name)
        for name in Classifier.model_fields
        if name in HRJBA.model_fields and name not in ("kind", "backbones", "label", "description")
    }
    recipe = Classifier.model_validate(
        {"kind": "classifier", "backbones": {"features": "features"}, **values}
    )
    found = fit_classifiers([features.train], recipe, [job.spec["seed"]], job.device)
    loss = build_loss(settings.loss, features.train.class_counts)
    test = torch.from_numpy(features.test.features).to(job.device)
    scores = [loss.logits(linear_scores(found, p, test)).cpu() for p in range(len(found["weight"]))]
    rows = [
        group_rows(
            scores[place].argmax(1).numpy(),
            features.test,
            settings.tail_share,
            settings.protocol(),
            place,
            point,
        )
        for place, point in enumerate(settings.points())
    ]
    return finish(job, features, lambda place: scores[place], found, more_rows=rows)
