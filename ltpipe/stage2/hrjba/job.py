"""HRJBA: a head branch and a tail branch joined to one classifier of all classes.

The paper answers each test sample by the branch of its true group, an oracle; the other ways of
joining need no such knowledge. Each branch's logits are those of its own classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.data.head_tail import group_classes, tail_classes
from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import SoftmaxForm
from ltpipe.losses.building import build_loss
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.cascade import Filter
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.filters import read_filters
from ltpipe.stage2.core.fit import Parameters, Recipe, fit, repeated
from ltpipe.stage2.core.heads import LinearModel, linear_logits, random_classifier
from ltpipe.stage2.core.inference import Embedded, Fitted, Samples, evaluate_points
from ltpipe.stage2.core.logit_gradients import SoftmaxGradient
from ltpipe.stage2.core.results import method_settings, open_stores
from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches
from ltpipe.stage2.hrjba.groups import group_rows, masked, sample_groups
from ltpipe.stage2.hrjba.routing import energy_gap, fit_bias, fit_temperature, tempered
from ltpipe.stage2.hrjba.settings import HRJBA
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
        """Return values (N, h + t), head classes first, in the order of classes: (N, C)."""
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
    weights, facts = _learned(job, settings, train)
    filters: list[Filter] = []
    if settings.routing == "flow":
        dimension = train[settings.filter_role()].features.shape[1]
        filters = read_filters(job, settings.filter, 1, dimension)
    points, protocol = settings.points(), settings.protocol()

    def by_group(place: int, probabilities: np.ndarray) -> pd.DataFrame:
        predicted, share = probabilities.argmax(1), settings.tail_share
        return group_rows(predicted, test["head"], share, protocol, place, points[place])

    return evaluate_points(
        job, settings, test, logits, weights, more_rows=by_group, filters=filters, **facts
    )


def logits(fitted: Fitted[HRJBA], samples: Samples) -> Tensor:
    """Return what softmax should see (N, C): logits, or log-probabilities of the joined branches.

    Routing `oracle` is told each sample's class.
    """
    settings, weights = fitted.settings, fitted.weights
    if settings.routing == "retrain":
        loss = build_loss(settings.loss, fitted.class_counts)
        return loss.logits(linear_logits(weights, _side_by_side(samples)))
    branches = branches_of(samples, fitted.class_counts, settings.tail_share)
    if settings.routing == "concat":
        return branches.concatenated
    is_tail = tail_classes(fitted.class_counts, settings.tail_share)
    tail = torch.from_numpy(is_tail).to(branches.logits[0].device)
    inside = branches.joined(torch.cat([z.log_softmax(1) for z in branches.logits], 1))
    if settings.routing == "oracle":
        labels = samples["head"].labels
        assert labels is not None, "only an oracle is told the labels"
        return masked(inside, tail, tail[labels])
    if settings.routing == "flow":
        (block,) = fitted.filters
        features = samples[settings.filter_role()].features
        return masked(inside, tail, block.flow(features).log_likelihood >= block.threshold)
    if settings.routing == "gate":
        log_share = linear_logits(weights, _side_by_side(samples)).log_softmax(1)
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


def branches_of(samples: Samples, class_counts: Sequence[int], tail_share: float) -> Branches:
    """Return the logits of both branches, each of its own classes.

    Raises:
        InputError: a branch has no logits, or was trained on other classes.
    """
    logits, groups = [], []
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
        logits.append(branch.logits if covered else branch.logits[:, classes])
        groups.append(classes)
    return Branches((logits[0], logits[1]), (groups[0], groups[1]))


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


def _learned(
    job: Job, settings: HRJBA, train: dict[str, FeatureStore]
) -> tuple[Parameters, dict[str, Any]]:
    """Return what the routing learns, the sweep points first, and facts of it."""
    seed, device = job.seed, job.device
    recipe, sampling = recipe_of(settings), sampling_of(settings)
    if settings.routing == "retrain":
        loss = build_loss(settings.loss, train["head"].class_counts)
        return fit_classifiers(_both(train), loss, recipe, sampling, seed, device), {}
    if settings.routing == "gate":
        return fit_gate(_both(train), settings.tail_share, recipe, sampling, seed, device), {}
    if settings.routing not in ("temperature", "energy"):
        return {}, {}
    held_out, labels = _held_out(job, settings.tail_share)
    temperatures = _temperatures(held_out, labels)
    facts: dict[str, Any] = {"temperatures": list(temperatures)}
    learned = {"temperatures": torch.tensor([temperatures])}
    if settings.routing == "energy":
        tail, _ = sample_groups(train["head"], settings.tail_share)
        bias = fit_bias(energy_gap(*held_out.logits, temperatures), tail[labels])
        say(f"temperatures {temperatures[0]:.2f} and {temperatures[1]:.2f}, bias {bias:.2f}")
        learned["bias"] = torch.tensor([bias])
        facts["bias"] = bias
    return learned, facts


def _held_out(job: Job, tail_share: float) -> tuple[Branches, Tensor]:
    """Return the branches' logits and the labels of samples that neither was trained on."""
    stores = {
        group: FeatureStore.open(job.file(job.tuning(group), "val.h5"), skip=("views",))
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


def _temperatures(branches: Branches, labels: Tensor) -> tuple[float, float]:
    """Return each branch's temperature, fitted on the samples of its own classes."""
    temperatures = []
    for logits, classes in zip(branches.logits, branches.classes, strict=True):
        places = {label: place for place, label in enumerate(classes)}
        local = torch.tensor([places.get(label, -1) for label in labels.tolist()])
        temperatures.append(fit_temperature(logits[local >= 0], local[local >= 0]))
    return temperatures[0], temperatures[1]


def fit_gate(
    store: FeatureStore,
    tail_share: float,
    recipe: Recipe,
    sampling: Sampling,
    seed: int,
    device: torch.device,
) -> Parameters:
    """Learn to route by a logistic regression on both branches' features, classes drawn evenly.

    Returns weight (1, 2, D) and bias (1, 2) of the groups head and tail.
    """
    batches = training_batches(store, sampling, recipe.batch_size, seed, device)
    to_group = sample_groups(store, tail_share)[0].long().to(device)

    def groups(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, target in batches(epoch):
            yield inputs, to_group[target]

    start = random_classifier(2, store.features.shape[1], generator(seed, "gate"), cosine=False)
    return fit(
        repeated(start, 1, device),
        LinearModel(SoftmaxGradient(SoftmaxForm(), device=device), ("weight", "bias")),
        groups,
        recipe,
        description="gate",
    )
