"""DLSA: each sample is answered by the classifier of the first filter that takes it out.

Xu et al., "Constructing Balance from Imbalance for Long-tailed Image Recognition", ECCV 2022,
sections 3.1 and 3.4. The classifier of a block is aided by clusters: it sees the feature x, the
flow's latent vector z and the class distribution P(y | h) of the sample's cluster among all
training samples; what no block takes out goes to a regular classifier on x and z. For linear
classifiers ``FC[x, z] + FC[P]`` is one linear map of the joined vector; a cosine classifier adds
the cosines of both parts. Class counts in a loss are those of the samples that it is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.config.methods import DLSA
from ltpipe.io import write_text_atomic
from ltpipe.job import Job
from ltpipe.models.flow import FlowMixture
from ltpipe.progress import say
from ltpipe.stage2.decoupled import Features, finish, open_features
from ltpipe.stage2.embedded import GroupData, fit_group
from ltpipe.stage2.flow_filter import Block, read_block, read_flow

# A class is called tail by the paper's separation accuracy if it has at most so many samples.
TAIL_COUNT = 50
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
            output = self.flow(rows)
            parts = [rows, output.latent if self.use_latent else rows]
            if self.prior is not None:
                parts.append(self.prior[output.cluster_log_prob.argmax(1)])
            lifted.append(torch.cat(parts, 1))
        return torch.cat(lifted) if lifted else features

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
    scores = torch.zeros(len(test), features.classes, device=job.device)
    weights: dict[str, Tensor] = {}
    for group in cascade(job, features, blocks):
        chosen = group.train if group.train.any() else np.ones_like(group.train)
        rows = torch.from_numpy(np.flatnonzero(chosen))
        data = GroupData(
            train[rows.to(job.device)],
            torch.from_numpy(features.train.labels)[rows],
            group.lift,
            group.lift.sizes(train.shape[1]),
        )
        classify, found = fit_group(data, features.train, settings, job, group.name)
        weights |= {f"{group.name}.{name}": value[None] for name, value in found.items()}
        places = torch.from_numpy(np.flatnonzero(group.test)).to(job.device)
        scores[places] = classify(group.lift(test[places])).to(scores.dtype)
    table = block_table(features, blocks, scores.argmax(1).cpu().numpy())
    write_text_atomic(job.output / "blocks.csv", table.to_csv(index=False))
    clusters = cluster_table(features.train.labels, blocks["train"])
    write_text_atomic(job.output / "clusters.csv", clusters.to_csv(index=False))
    for row in table.to_dict("records"):
        say(
            f"block {row['block']}: {row['test']} test samples, {row['separation']:.1%} of them "
            f"of tail classes, accuracy {row['accuracy']:.1%}"
        )
    return finish(job, features, lambda place: scores, weights)


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


def cluster_table(labels: np.ndarray, blocks: list[Block]) -> pd.DataFrame:
    """Return a row for each cluster of each block: its members, and its largest class's share."""
    rows = []
    for number, block in enumerate(blocks, 1):
        members, classes = block.cluster[block.member], labels[block.member]
        for cluster in np.unique(members):
            counts = np.bincount(classes[members == cluster])
            share = counts.max() / counts.sum()
            rows.append((number, int(cluster), int(counts.sum()), float(share)))
    return pd.DataFrame(rows, columns=["block", "cluster", "size", "purity"])


def purity(cluster: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of samples that are of their cluster's largest class."""
    if not len(labels):
        return float("nan")
    pairs, counts = np.unique(np.stack([cluster, labels]), axis=1, return_counts=True)
    largest = pd.Series(counts).groupby(pairs[0]).max()
    return float(largest.sum() / len(labels))
