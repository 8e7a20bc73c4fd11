"""DLSA: each sample is answered by the classifier of the first filter that takes it out.

Xu et al., "Constructing Balance from Imbalance for Long-tailed Image Recognition", ECCV 2022,
sections 3.1 and 3.4. The classifier of a block is aided by clusters: it sees the feature x, the
flow's latent vector z and the class distribution P(y | h) of the sample's cluster among all
training samples; what no block takes out goes to a regular classifier on x and z. Logits are
``FC[x, z] + FC[P]`` (in the released code FC[x] + FC[z, P]), kept as one map of the joined vector:
of linear classifiers it is one matrix, a cosine classifier adds the cosines of both parts. Class
counts in a loss are those of the samples that it is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.models.flow import FlowMixture, FlowOutput
from ltpipe.stage2.core.cascade import Filter
from ltpipe.stage2.core.filters import Block, read_block, read_filters
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import Features, finish, open_features
from ltpipe.stage2.core.results import metric_rows, metrics_of, read_predictions, under
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.stage2.dlsa.clusters import cluster_shares, purity
from ltpipe.stage2.dlsa.embedded import GroupData, fit_group, group_logits
from ltpipe.stage2.dlsa.settings import DLSA
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.progress import say

# A class is called tail by the paper's separation accuracy if it has at most so many samples.
TAIL_COUNT = 50
# The released code looks at the test set so many epochs apart.
_TEST_EVERY = 5
_ROWS = 4096


@dataclass(frozen=True)
class Lift:
    """From features x (n, D) to what a group's classifier sees: x, then z, then P(y | h).

    Without a flow it is x alone, without a prior (K, C) it is x and z. `form` is as in DLSA's
    settings.
    """

    flow: FlowMixture | None = None
    prior: Tensor | None = None
    use_latent: bool = True
    form: str = "paper"

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Return (n, D) float32, or more columns."""
        if self.flow is None:
            return features
        lifted = []
        for rows in features.split(_ROWS):
            lifted.append(self.lifted(rows, self.flow(rows)))
        return torch.cat(lifted) if lifted else features

    def lifted(self, rows: Tensor, output: FlowOutput) -> Tensor:
        """Return what `__call__` does, of rows and what the flow says of them."""
        parts = [rows, output.latent if self.use_latent else rows]
        if self.prior is not None:
            parts.append(self.prior[output.cluster_log_prob.argmax(1)])
        return torch.cat(parts, 1)

    def sizes(self, dimension: int) -> list[int]:
        """Return the widths of the parts that have layers of their own, x's first."""
        if self.flow is None:
            return [dimension]
        classes = [] if self.prior is None else [self.prior.shape[1]]
        if self.form == "released":
            return [dimension, sum([dimension, *classes])]
        return [2 * dimension, *classes]


def _lift(settings: DLSA, flow: FlowMixture, prior: Tensor | None = None) -> Lift:
    return Lift(flow, prior, settings.use_latent, settings.form)


@dataclass(frozen=True)
class Group:
    """One classifier's samples: (N,) bool of the training and of the test set."""

    name: str
    lift: Lift
    train: np.ndarray
    test: np.ndarray


def run(job: Job) -> dict[str, Any]:
    """Train the classifier of every group and evaluate the cascade.

    `job.inputs` has `features.features` and the filters `filter.1`, `filter.2`, ...

    Raises:
        InputError: an input is damaged, or a classifier is missing that stage one must provide.
    """
    features = open_features(job, DLSA)
    settings = features.settings
    dimension = features.train.features.shape[1]
    filters = read_filters(job, settings.filter, settings.blocks, dimension)
    blocks = {
        split: [
            read_block(job.file(f"filter.{number}", "filter.h5"), split)
            for number in range(1, settings.blocks + 1)
        ]
        for split in ("train", "test")
    }
    train = torch.from_numpy(features.train.features).to(job.device)
    best = None
    if settings.best_test:
        best = _BestOnTest(features.test, settings.epochs, job.device)
    weights: dict[str, Tensor] = {}
    all_counts = torch.tensor(features.train.class_counts)
    for group in cascade(features, filters, blocks, job.device):
        members = group.train if group.train.any() else np.ones_like(group.train)
        rows = torch.from_numpy(np.flatnonzero(members))
        labels = torch.from_numpy(features.train.labels)[rows]
        everything = group.name == "rest" and settings.prior == "all"
        data = GroupData(
            group.name,
            train[rows.to(job.device)],
            labels,
            group.lift,
            group.lift.sizes(dimension),
            all_counts if everything else torch.bincount(labels, minlength=features.classes),
        )
        fitted = fit_group(
            data,
            features.train,
            settings.classifier,
            recipe_of(settings),
            job.seed,
            job.device,
            initial=settings.initial,
            watch=None if best is None else best.of_group(group),
        )
        weights |= {f"{group.name}.{name}": value[None] for name, value in fitted.items()}
        if group.lift.prior is not None:
            weights[f"{group.name}.prior"] = group.lift.prior[None]
    rows_of_best = [] if best is None else [best.rows(job.spec["groups"])]
    facts = finish(job, features, logits, weights, other_rows=rows_of_best, filters=filters)
    _write_tables(job, features, blocks)
    return facts


def _write_tables(job: Job, features: Features[DLSA], blocks: dict[str, list[Block]]) -> None:
    table = block_table(features, blocks, read_predictions(job.output).predicted[0])
    for name, rows in (
        ("blocks.csv", table),
        ("clusters.csv", cluster_table(features.train.labels, blocks["train"])),
        ("routes.csv", route_table(features, blocks["test"])),
    ):
        write_text_atomic(job.output / name, rows.to_csv(index=False))
    for row in table.to_dict("records"):
        say(
            f"block {row['block']}: {row['test']} test samples, {row['separation']:.1%} of them "
            f"of tail classes, accuracy {row['accuracy']:.1%}"
        )


def logits(fitted: Fitted[DLSA], samples: Samples) -> Tensor:
    """Return the logits (N, C) of each sample's group, as the filters' thresholds send it there.

    Every group answers every sample and most of it is thrown away: it is little beside a backbone,
    and no shape depends on the samples.
    """
    features, settings = samples["features"].features, fitted.settings

    def answered(name: str, lift: Lift, inputs: Tensor) -> Tensor:
        weights = under(fitted.weights, name)
        return group_logits(settings.classifier, weights, inputs, lift.sizes(features.shape[1]))

    if not fitted.filters:
        return answered("all", Lift(), features)
    taken: list[tuple[Tensor, Tensor]] = []
    for number, block in enumerate(fitted.filters, 1):
        output: FlowOutput = block.flow(features)
        lift = _lift(settings, block.flow, fitted.weights[f"block{number}.prior"])
        answer = answered(f"block{number}", lift, lift.lifted(features, output))
        taken.append((output.log_likelihood >= block.threshold, answer))
    rest = _lift(settings, fitted.filters[-1].flow)
    joined = answered("rest", rest, rest.lifted(features, output))
    # The first block that takes a sample out has the last word.
    for inside, answer in reversed(taken):
        joined = torch.where(inside.unsqueeze(1), answer, joined)
    return joined


class _BestOnTest:
    """Each group's logits at the best of every fifth epoch on its test samples."""

    def __init__(self, test: FeatureStore, epochs: int, device: torch.device) -> None:
        self.store = test
        self.epochs = epochs
        self.device = device
        self.logits = torch.zeros(len(test.labels), len(test.class_names), device=device)

    def of_group(self, group: Group) -> Callable[[int, Callable[[Tensor], Tensor]], None]:
        """Return what watches the training of one group's classifier."""
        places = torch.from_numpy(np.flatnonzero(group.test)).to(self.device)
        inputs = group.lift(torch.from_numpy(self.store.features).to(self.device)[places])
        labels = torch.from_numpy(self.store.labels[group.test]).to(self.device)
        most = -1

        def watch(done: int, classify: Callable[[Tensor], Tensor]) -> None:
            nonlocal most
            if done % _TEST_EVERY and done != self.epochs:
                return
            answers = classify(inputs)
            correct = int((answers.argmax(1) == labels).sum())
            if correct > most:
                most = correct
                self.logits[places] = answers

        return watch

    def rows(self, groups: str) -> pd.DataFrame:
        """Return the rows for metrics.csv."""
        metrics = metrics_of(self.logits.softmax(1).cpu().numpy(), self.store, groups)
        return metric_rows(metrics, 0, {}, "best_test")


def cascade(
    features: Features[DLSA],
    filters: Sequence[Filter],
    blocks: dict[str, list[Block]],
    device: torch.device,
) -> list[Group]:
    """Return the groups in order: what each block takes out, then the rest."""
    settings = features.settings
    if not filters:
        all_train = np.ones(len(features.train.labels), dtype=bool)
        return [Group("all", Lift(), all_train, np.ones(len(features.test.labels), bool))]
    groups = []
    parts = zip(filters, blocks["train"], blocks["test"], strict=True)
    for number, (block, train, test) in enumerate(parts, 1):
        prior = cluster_prior(
            train.cluster, features.train.labels, settings.filter.clusters, features.classes
        )
        lift = _lift(settings, block.flow, prior.to(device))
        groups.append(Group(f"block{number}", lift, train.inside, test.inside))
    rest = _lift(settings, filters[-1].flow)
    return [*groups, Group("rest", rest, blocks["train"][-1].passed, blocks["test"][-1].passed)]


def cluster_prior(cluster: np.ndarray, labels: np.ndarray, clusters: int, classes: int) -> Tensor:
    """Return P(y | h), the class shares (K, C) of each cluster; zeros for an empty cluster."""
    counts = np.zeros((clusters, classes), np.float32)
    np.add.at(counts, (cluster, labels), 1)
    return torch.from_numpy(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def block_table(
    features: Features[DLSA], blocks: dict[str, list[Block]], predicted: np.ndarray
) -> pd.DataFrame:
    """Return a row a block: samples that enter and that are taken out, and what became of them.

    `separation` is the share of tail classes among the test samples that are taken out (the
    paper's separation accuracy), `tail_share` that share among all test samples, `purity` the mean
    share of the largest class over the training clusters of members.
    """
    labels = features.test.labels
    tail = np.asarray(features.train.class_counts)[labels] <= TAIL_COUNT
    rows = []
    for number, (train, test) in enumerate(zip(blocks["train"], blocks["test"], strict=True), 1):
        taken = test.inside
        rows.append(
            {
                "block": number,
                "entered_train": int(train.member.sum()),
                "train": int(train.inside.sum()),
                "entered_test": int(test.member.sum()),
                "test": int(taken.sum()),
                "separation": float(tail[taken].mean()) if taken.any() else float("nan"),
                "tail_share": float(tail.mean()),
                "accuracy": float((predicted == labels)[taken].mean())
                if taken.any()
                else float("nan"),
                "clusters": len(np.unique(train.cluster[train.member])),
                "purity": purity(train.cluster[train.member], features.train.labels[train.member]),
            }
        )
    columns = ["block", "entered_train", "train", "entered_test", "test", "separation"]
    columns += ["tail_share", "accuracy", "clusters", "purity"]
    return pd.DataFrame(rows, columns=columns)


def route_table(features: Features[DLSA], blocks: list[Block]) -> pd.DataFrame:
    """Return the block that takes each test sample out, 0 for the rest, and whether it is tail."""
    block = np.zeros(len(features.test.labels), np.int64)
    for number, of_block in enumerate(blocks, 1):
        block[of_block.inside] = number
    tail = np.asarray(features.train.class_counts)[features.test.labels] <= TAIL_COUNT
    return pd.DataFrame({"index": features.test.index, "block": block, "tail": tail})


def cluster_table(labels: np.ndarray, blocks: list[Block]) -> pd.DataFrame:
    """Return a row for each cluster of each block: its members, and its largest class's share."""
    tables = [
        cluster_shares(block.cluster[block.member], labels[block.member]).assign(block=number)
        for number, block in enumerate(blocks, 1)
    ]
    columns = ["block", "cluster", "size", "purity"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)
