"""HRJBA: a head branch and a tail branch joined to one classifier of all classes.

The paper answers each test sample by the branch of its true group, an oracle; the other ways of
joining need no such knowledge. Each branch's logits are those of its own classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import HRJBA, Classifier
from ltpipe.data.head_tail import group_classes, tail_classes
from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import SoftmaxForm
from ltpipe.losses.building import build_loss
from ltpipe.stage2.core.decoupled import Features, finish
from ltpipe.stage2.core.fit import Parameters, fit
from ltpipe.stage2.core.heads import LinearModel, linear_scores, model_at, random_linear
from ltpipe.stage2.core.logit_gradients import SoftmaxGradient
from ltpipe.stage2.core.results import method_settings, open_stores
from ltpipe.stage2.core.retraining import recipe_of, training_batches
from ltpipe.stage2.core.scoring import Embedded, Fitted, Samples, finish_scores
from ltpipe.stage2.dlsa.blocks import read_block
from ltpipe.stage2.hrjba.groups import group_rows, masked, sample_groups
from ltpipe.stage2.hrjba.routing import energy_gap, fit_bias, fit_temperature, tempered
from ltpipe.stage2.simple.classifier import fit_classifiers
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say
from ltpipe.utils.seeding import generator

GROUPS = ("head", "tail")


@dataclass(frozen=True)
class Branches:
    """Both branches' logits of the same N samples: (N, h) and (N, t), and their classes."""

    logits: tuple[Tensor, Tensor]
    classes: tuple[list[int], list[int]]

    def joined(self, parts: Tensor) -> Tensor:
        """Return scores (N, h + t), head classes first, in the order of classes: (N, C)."""
        order = torch.tensor([*self.classes[0], *self.classes[1]], device=parts.device)
        return parts.index_select(1, torch.argsort(order))

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
    train = open_stores(job, "train", skip=() if settings.needs_views() else ("views",))
    test = open_stores(job, "test")
    features = Features(settings, _both(train), test["head"])
    if settings.routing == "retrain":
        return _retrain(job, features, test)
    samples = {group: Embedded.of(test[group], job.device) for group in GROUPS}
    weights, facts = _learned(job, features)
    found = join(
        Fitted(settings, weights, {}, features.test.class_counts, facts),
        samples,
        _known_groups(job, features.test, settings),
    )
    rows = group_rows(
        found.argmax(1).cpu().numpy(), features.test, settings.tail_share, settings.protocol()
    )
    weights = {name: value[None] for name, value in weights.items()}
    return finish(job, features, lambda fitted, samples: found, weights, more_rows=[rows], **facts)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return the scores of all classes, each sample routed by what it is alone."""
    if fitted.settings.routing == "retrain":
        loss = build_loss(fitted.settings.loss, fitted.class_counts)
        return loss.logits(linear_scores(fitted.weights, _side_by_side(samples)))
    to_tail = None
    if fitted.settings.routing == "flow":
        (block,) = fitted.filters
        features = samples[fitted.settings.filter_role()].features
        to_tail = block.flow(features).log_likelihood >= block.threshold
    return join(fitted, samples, to_tail)


def join(fitted: Fitted, samples: Samples, to_tail: Tensor | None) -> Tensor:
    """Return scores (N, C) of both branches whose softmax counts.

    Args:
        to_tail: (N,) bool, the samples that the tail branch answers, where routing `oracle` or
            `flow` knows; None where the branches and what was learned decide.
    """
    settings, weights = fitted.settings, fitted.weights
    branches = branches_of(samples, fitted.class_counts, settings.tail_share)
    if settings.routing == "concat":
        return branches.concatenated
    device = branches.logits[0].device
    is_tail = tail_classes(fitted.class_counts, settings.tail_share)
    tail = torch.from_numpy(is_tail).to(device)
    inside = branches.joined(torch.cat([z.log_softmax(1) for z in branches.logits], 1))
    if to_tail is not None:
        return masked(inside, tail, to_tail)
    if settings.routing == "gate":
        log_share = linear_scores(weights, _side_by_side(samples)).log_softmax(1)
        if settings.soft:
            return inside + log_share[:, tail.long()]
        return masked(inside, tail, log_share[:, 1] > log_share[:, 0])
    temperatures = (weights["temperatures"][0], weights["temperatures"][1])
    if settings.routing == "temperature":
        share = 0.5 if settings.prior == "even" else float(is_tail.mean())
        return branches.joined(tempered(*branches.logits, temperatures, share))
    return masked(inside, tail, energy_gap(*branches.logits, temperatures) + weights["bias"] > 0)


def _side_by_side(samples: Samples) -> Tensor:
    """Return the features of the head branch, then those of the tail branch."""
    return torch.cat([samples[group].features for group in GROUPS], 1)


def _known_groups(job: Job, test: FeatureStore, settings: HRJBA) -> Tensor | None:
    """Return which test samples go to the tail branch, (N,) bool, where it is known before."""
    if settings.routing == "oracle":
        return sample_groups(test, settings.tail_share)[1].to(job.device)
    if settings.routing == "flow":
        taken = read_block(job.inputs["filter.1"], "test").inside
        return torch.from_numpy(taken).to(job.device)
    return None


def branches_of(samples: Samples, class_counts: Sequence[int], tail_share: float) -> Branches:
    """Return the logits of both branches, each of its own classes.

    Raises:
        InputError: a branch has no logits, or was trained on other classes.
    """
    found, groups = [], []
    for group in GROUPS:
        branch = samples[group]
        classes = group_classes(class_counts, tail_share, group)
        if branch.logits is None:
            raise InputError(f"{branch.path}: has no logits to join")
        covered = [int(label) for label in branch.attributes.get("classes", [])]
        if covered and covered != classes:
            raise InputError(
                f"{branch.path}: its branch was trained on {len(covered)} classes, tail_share "
                f"{tail_share:g} makes {len(classes)} {group} classes; give both the same"
            )
        # A classifier of all classes serves as a branch by its outputs for the group.
        found.append(branch.logits if covered else branch.logits[:, classes])
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


def _learned(job: Job, features: Features) -> tuple[Parameters, dict[str, Any]]:
    """Return what the routing learns, and facts of it; nothing where it learns nothing."""
    settings = features.settings
    if settings.routing == "gate":
        return _gate(job, features), {}
    if settings.routing not in ("temperature", "energy"):
        return {}, {}
    held_out, labels = _held_out(job, settings.tail_share)
    temperatures = _temperatures(held_out, labels)
    facts: dict[str, Any] = {"temperatures": list(temperatures)}
    learned = {"temperatures": torch.tensor(temperatures)}
    if settings.routing == "energy":
        tail, _ = sample_groups(features.test, settings.tail_share)
        bias = fit_bias(energy_gap(*held_out.logits, temperatures), tail[labels])
        say(f"temperatures {temperatures[0]:.2f} and {temperatures[1]:.2f}, bias {bias:.2f}")
        learned["bias"] = torch.tensor(bias)
        facts["bias"] = bias
    return {name: value.to(job.device) for name, value in learned.items()}, facts


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
    samples = {group: Embedded.of(store, torch.device("cpu")) for group, store in stores.items()}
    return branches_of(samples, head.class_counts, tail_share), torch.from_numpy(head.labels)


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


def _gate(job: Job, features: Features) -> Parameters:
    """Learn to route by a logistic regression on both branches' features, classes drawn evenly."""
    settings, seed = features.settings, job.spec["seed"]
    batches = training_batches([features.train], settings, [seed], job.device)
    tail, _ = sample_groups(features.test, settings.tail_share)
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
    return model_at(found, 0)


def _retrain(job: Job, features: Features, test: dict[str, FeatureStore]) -> dict[str, Any]:
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
    samples = {group: Embedded.of(test[group], job.device) for group in GROUPS}
    counts = features.test.class_counts
    rows = []
    for place, point in enumerate(settings.points()):
        fitted = Fitted(settings, model_at(found, place), point, counts)
        predicted = scores(fitted, samples).argmax(1).cpu().numpy()
        share, protocol = settings.tail_share, settings.protocol()
        rows.append(group_rows(predicted, features.test, share, protocol, place, point))
    return finish_scores(job, settings, test, scores, found, more_rows=rows)
