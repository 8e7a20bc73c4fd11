"""DLSA: each sample is answered by the classifier of the first filter that takes it out.

Xu et al., "Constructing Balance from Imbalance for Long-tailed Image Recognition", ECCV 2022,
sections 3.1 and 3.4. The classifier of a block is aided by clusters: it sees the feature x, the
flow's latent vector z and the class distribution P(y | h) of the sample's cluster among all
training samples; what no block takes out goes to a regular classifier on x and z. For linear
classifiers ``FC[x, z] + FC[P]`` is one linear map of the joined vector; a cosine classifier adds
the cosines of both parts. Class counts in a loss are those of the samples that it is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import DLSA
from ltpipe.models.flow import FlowMixture, FlowOutput
from ltpipe.stage2.core.decoupled import Features, finish, open_features
from ltpipe.stage2.core.results import evaluate_scores, metric_rows, under
from ltpipe.stage2.core.scoring import Fitted, Samples
from ltpipe.stage2.dlsa.blocks import Block, read_block
from ltpipe.stage2.dlsa.clusters import cluster_shares, purity
from ltpipe.stage2.dlsa.embedded import GroupData, fit_group, group_scores
from ltpipe.stage2.dlsa.filter import read_flow
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

    Without a flow it is x alone, without a prior (K, C) it is x and z.
    """

    flow: FlowMixture | None = None
    prior: Tensor | None = None
    use_latent: bool = True

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
        """Return the widths of the parts that a cosine classifier takes apart."""
        if self.flow is None:
            return [dimension]
        return [2 * dimension] + ([] if self.prior is None else [self.prior.shape[1]])


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
    blocks = {
        split: [
            read_block(job.inputs[f"filter.{number}"], split)
            for number in range(1, settings.blocks + 1)
        ]
        for split in ("train", "test")
    }
    train = torch.from_numpy(features.train.features).to(job.device)
    test = torch.from_numpy(features.test.features).to(job.device)
    logits = torch.zeros(len(test), features.classes, device=job.device)
    best = torch.zeros_like(logits)
    weights: dict[str, Tensor] = {}
    all_counts = torch.tensor(features.train.class_counts)
    for group in cascade(job, features, blocks):
        chosen = group.train if group.train.any() else np.ones_like(group.train)
        rows = torch.from_numpy(np.flatnonzero(chosen))
        labels = torch.from_numpy(features.train.labels)[rows]
        everything = group.name == "rest" and settings.prior == "all"
        data = GroupData(
            train[rows.to(job.device)],
            labels,
            group.lift,
            group.lift.sizes(train.shape[1]),
            all_counts if everything else torch.bincount(labels, minlength=features.classes),
        )
        places = torch.from_numpy(np.flatnonzero(group.test)).to(job.device)
        inputs = group.lift(test[places])
        watched = _BestOnTest(inputs, features.test.labels[group.test], settings.epochs)
        classify, found = fit_group(
            data, features.train, settings, job, group.name, watched if settings.best_test else None
        )
        weights |= {f"{group.name}.{name}": value[None] for name, value in found.items()}
        if group.lift.prior is not None:
            weights[f"{group.name}.prior"] = group.lift.prior[None]
        logits[places] = classify(inputs).to(logits.dtype)
        best[places] = logits[places] if watched.scores is None else watched.scores
    table = block_table(features, blocks, logits.argmax(1).cpu().numpy())
    write_text_atomic(job.output / "blocks.csv", table.to_csv(index=False))
    clusters = cluster_table(features.train.labels, blocks["train"])
    write_text_atomic(job.output / "clusters.csv", clusters.to_csv(index=False))
    for row in table.to_dict("records"):
        say(
            f"block {row['block']}: {row['test']} test samples, {row['separation']:.1%} of them "
            f"of tail classes, accuracy {row['accuracy']:.1%}"
        )
    write_text_atomic(
        job.output / "routes.csv", route_table(features, blocks["test"]).to_csv(index=False)
    )
    more = []
    if settings.best_test:
        found_best = evaluate_scores(
            best.softmax(1).cpu().numpy(), features.test, job.spec["groups"]
        )
        more.append(metric_rows(found_best, 0, {}, "best_test"))
    return finish(job, features, lambda fitted, samples: logits, weights, more_rows=more)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return the logits of each sample's group, as the filters' thresholds send it there.

    Every group scores every sample and most of it is thrown away: it is little beside a backbone,
    and no shape depends on the samples.
    """
    features, settings = samples["features"].features, fitted.settings

    def answered(name: str, lift: Lift, inputs: Tensor) -> Tensor:
        weights = under(fitted.weights, name)
        return group_scores(settings.classifier, weights, inputs, lift.sizes(features.shape[1]))

    if not fitted.filters:
        return answered("all", Lift(), features)
    taken: list[tuple[Tensor, Tensor]] = []
    for number, block in enumerate(fitted.filters, 1):
        output: FlowOutput = block.flow(features)
        lift = Lift(block.flow, fitted.weights[f"block{number}.prior"], settings.use_latent)
        found = answered(f"block{number}", lift, lift.lifted(features, output))
        taken.append((output.log_likelihood >= block.threshold, found))
    rest = Lift(fitted.filters[-1].flow, None, settings.use_latent)
    logits = answered("rest", rest, rest.lifted(features, output))
    # The first block that takes a sample out has the last word.
    for inside, found in reversed(taken):
        logits = torch.where(inside.unsqueeze(1), found, logits)
    return logits


class _BestOnTest:
    """A group's scores at the best of every fifth epoch on its test samples."""

    def __init__(self, inputs: Tensor, labels: np.ndarray, epochs: int) -> None:
        self.inputs = inputs
        self.labels = torch.from_numpy(labels).to(inputs.device)
        self.epochs = epochs
        self.correct = -1
        self.scores: Tensor | None = None

    def __call__(self, done: int, classify: Callable[[Tensor], Tensor]) -> None:
        if done % _TEST_EVERY and done != self.epochs:
            return
        scores = classify(self.inputs)
        correct = int((scores.argmax(1) == self.labels).sum())
        if correct > self.correct:
            self.correct, self.scores = correct, scores


def cascade(job: Job, features: Features, blocks: dict[str, list[Block]]) -> list[Group]:
    """Return the groups in order: what each block takes out, then the rest."""
    settings = features.settings
    dimension = features.train.features.shape[1]
    groups = []
    flow = None
    for number, (train, test) in enumerate(zip(blocks["train"], blocks["test"], strict=True), 1):
        folder = job.inputs[f"filter.{number}"]
        flow = read_flow(folder, settings.filter, dimension).to(job.device)
        prior = cluster_prior(
            train.cluster, features.train.labels, settings.filter.clusters, features.classes
        )
        lift = Lift(flow, prior.to(job.device), settings.use_latent)
        groups.append(Group(f"block{number}", lift, train.inside, test.inside))
    if not groups:
        everything = Lift()
        all_train = np.ones(len(features.train.labels), dtype=bool)
        return [Group("all", everything, all_train, np.ones(len(features.test.labels), bool))]
    rest = Lift(flow, None, settings.use_latent)
    return [*groups, Group("rest", rest, blocks["train"][-1].passed, blocks["test"][-1].passed)]


def cluster_prior(cluster: np.ndarray, labels: np.ndarray, clusters: int, classes: int) -> Tensor:
    """Return P(y | h), the class shares (K, C) of each cluster; zeros for an empty cluster."""
    counts = np.zeros((clusters, classes), np.float32)
    np.add.at(counts, (cluster, labels), 1)
    return torch.from_numpy(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def block_table(
    features: Features, blocks: dict[str, list[Block]], predicted: np.ndarray
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


def route_table(features: Features, blocks: list[Block]) -> pd.DataFrame:
    """Return the block that takes each test sample out, 0 for the rest, and whether it is tail."""
    block = np.zeros(len(features.test.labels), np.int64)
    for number, found in enumerate(blocks, 1):
        block[found.inside] = number
    tail = np.asarray(features.train.class_counts)[features.test.labels] <= TAIL_COUNT
    return pd.DataFrame({"index": features.test.index, "block": block, "tail": tail})


def cluster_table(labels: np.ndarray, blocks: list[Block]) -> pd.DataFrame:
    """Return a row for each cluster of each block: its members, and its largest class's share."""
    tables = [
        cluster_shares(found.cluster[found.member], labels[found.member]).assign(block=block)
        for block, found in enumerate(blocks, 1)
    ]
    columns = ["block", "cluster", "size", "purity"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)
