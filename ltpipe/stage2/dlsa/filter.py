"""DLSA's filter: one block's flow, its clusters, and which samples it takes out.

Xu et al., "Constructing Balance from Imbalance for Long-tailed Image Recognition", ECCV 2022,
sections 3.2 and 3.3. A flow with a Gaussian mixture is trained on the samples that earlier blocks
let pass, rare classes weighing more; those of highest likelihood leave for this block's classifier,
the others go on to the next block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.models.flow import FlowMixture
from ltpipe.stage2.core.filters import Block, new_flow, read_block, write_blocks
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.stage2.dlsa.clusters import cluster_shares
from ltpipe.stage2.dlsa.losses import (
    BalanceLoss,
    likelihood_weights,
    purity_loss,
    weighted_likelihood_loss,
)
from ltpipe.stage2.dlsa.pairs import class_pairs
from ltpipe.training.devices import precision
from ltpipe.training.optimizers import SGD
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, write_text_atomic
from ltpipe.utils.progress import say, track
from ltpipe.utils.seeding import generator

SPLITS = ("train", "test")
# The dimension at which the released likelihood weights were chosen; the likelihood grows with it.
_REFERENCE_DIMENSION = 2048
# Below so many dimensions, rounding to bfloat16 costs more time than it saves.
_WIDE = 256
_ROWS = 4096
# What the released code calls a pure cluster, and a flow that has not collapsed.
_PURE, _MORE_THAN, _FEWER_THAN = 0.7, 10, 5000


def run(job: Job) -> dict[str, Any]:
    """Train one block's flow and write filter.safetensors, filter.h5 and history.csv.

    `job.spec` has `filter`, `block` (from 1) and `seed`; `job.inputs` has `features`, and
    `previous`, the block before, where there is one.

    Raises:
        InputError: an input is damaged, or the flow diverges.
    """
    settings = FlowFilter.model_validate(job.spec["filter"])
    stores = {
        split: FeatureStore.open(job.file("features", f"{split}.h5"), skip=("views",))
        for split in SPLITS
    }
    members = {split: _members(job, split, len(stores[split].labels)) for split in SPLITS}
    train = stores["train"]
    entered = np.flatnonzero(members["train"])
    seed, block = job.seed, job.spec["block"]
    flow = new_flow(settings, train.features.shape[1], seed=seed, block=block).to(job.device)
    # Large features are mapped: all of them together need no copy.
    everything = len(entered) == len(train.labels)
    members_only = train.features if everything else train.features[entered]
    features = torch.from_numpy(members_only).to(job.device)
    labels = torch.from_numpy(train.labels[entered])
    classes = len(train.class_names)
    history = []
    if len(entered) > 1:
        history = train_flow(flow, features, labels, classes, settings, seed=seed, block=block)
    likelihoods, clusters = {}, {}
    for split, store in stores.items():
        likelihoods[split], clusters[split] = assign(
            flow, torch.from_numpy(store.features), job.device
        )
    threshold = quantile_threshold(likelihoods["train"][entered], settings.share)
    with atomic_path(job.output / "filter.safetensors") as temporary:
        state = {name: tensor.cpu().contiguous() for name, tensor in flow.state_dict().items()}
        save_file(state, temporary)
    blocks = {
        split: Block(
            likelihoods[split],
            clusters[split],
            members[split],
            members[split] & (likelihoods[split] >= threshold),
        )
        for split in SPLITS
    }
    write_blocks(job.output / "filter.h5", blocks, threshold)
    columns = ["epoch", "likelihood", "balance", "purity", "loss"]
    table = pd.DataFrame(history, columns=columns)
    write_text_atomic(job.output / "history.csv", table.to_csv(index=False))
    taken = {split: int(block.inside.sum()) for split, block in blocks.items()}
    arrived = {split: int(block.member.sum()) for split, block in blocks.items()}
    say(
        f"block {block}: {taken['train']} of {arrived['train']} training and {taken['test']} of "
        f"{arrived['test']} test samples are taken out; "
        f"{len(np.unique(clusters['train'][entered]))} of {settings.clusters} clusters are in use"
    )
    return {"taken": taken, "entered": arrived, "threshold": float(threshold)}


def train_flow(
    flow: FlowMixture,
    features: Tensor,
    labels: Tensor,
    classes: int,
    settings: FlowFilter,
    *,
    seed: int,
    block: int,
) -> list[dict[str, float]]:
    """Train `flow` in place and return the mean losses of each epoch.

    A batch is one sample of each of many pairs of classes drawn uniformly; the other sample of a
    pair serves the purity loss alone. Where all samples are of one class there are no pairs: then
    samples are drawn uniformly and the purity loss is left out.

    Args:
        features: (N, D), N at least 2; `labels` (N,) int64 on the CPU.

    Raises:
        InputError: the loss is no longer a number.
    """
    counts = torch.bincount(labels, minlength=classes)
    weights = likelihood_weights(counts.tolist(), settings.exponent).to(features.device)
    balance = BalanceLoss(settings.clusters, settings.balance_momentum).to(features.device)
    optimizer = SGD(flow.parameters())
    likelihood_weight = settings.likelihood_weight * _REFERENCE_DIMENSION / features.shape[1]
    paired = int((counts > 0).sum()) > 1
    size = min(settings.batch_size, len(labels))
    steps = -(-len(labels) // size)
    history = []
    purest = _PurestEpoch()
    flow.train()
    narrow = features.shape[1] < _WIDE and settings.precision == "auto"
    wanted = "fp32" if narrow else settings.precision
    flow.compute_in(precision(wanted, features.device, "products"))
    for epoch in track(range(settings.epochs), f"filter, block {block}"):
        draws = generator(seed, "filter", block, epoch)
        first, second = _draw(labels, classes, steps * size, draws, paired)
        targets = labels[first].to(features.device)
        # Moved once: an index on the host would make each step wait for its copy.
        first, second = first.to(features.device), second.to(features.device)
        sums = torch.zeros(4, device=features.device)
        for start in range(0, steps * size, size):
            batch = slice(start, start + size)
            output = flow(features[first[batch]])
            likelihood = weighted_likelihood_loss(output.log_likelihood, targets[batch], weights)
            posterior = output.cluster_log_prob.softmax(1)
            even = balance(posterior)
            pure = posterior.new_zeros(())
            if paired and settings.purity_weight:
                other = flow(features[second[batch]]).cluster_log_prob.log_softmax(1)
                pure = purity_loss(posterior, other, settings.purity_clamp)
            value = (
                likelihood_weight * likelihood
                + settings.balance_weight * even
                + settings.purity_weight * pure
            )
            value.backward()
            if settings.grad_clip is not None:
                # A gradient that is no number stays none, and shows in the epoch's means.
                clip_grad_norm_(flow.parameters(), settings.grad_clip)
            optimizer.step(settings.learning_rate)
            sums += torch.stack([likelihood, even, pure, value]).detach()
        means = (sums / steps).tolist()
        if not np.isfinite(means).all():
            raise InputError(
                f"the flow of block {block} diverges in epoch {epoch}; of its {len(labels)} "
                f"samples the rarest class has {int(counts[counts > 0].min())}: set "
                "filter.grad_clip, or lower filter.learning_rate, filter.likelihood_weight or "
                "filter.exponent"
            )
        names = ("likelihood", "balance", "purity", "loss")
        history.append({"epoch": epoch, **dict(zip(names, means, strict=True))})
        if settings.select == "pure-clusters":
            purest(flow, features, labels)
    flow.compute_in(torch.float32)
    if purest.state is not None:
        flow.load_state_dict(purest.state)
    return history


class _PurestEpoch:
    """The flow of the epoch with the most pure clusters; of none where one cluster takes all.

    The released code counts clusters of more than 10 samples whose largest class has more than
    0.7 of them, in epochs whose largest cluster has fewer than 5,000.
    """

    def __init__(self) -> None:
        self.clusters = -1
        self.state: dict[str, Tensor] | None = None

    def __call__(self, flow: FlowMixture, features: Tensor, labels: Tensor) -> None:
        _, cluster = assign(flow, features, features.device)
        flow.train()
        table = cluster_shares(cluster, labels.numpy())
        pure = int(((table["purity"] > _PURE) & (table["size"] > _MORE_THAN)).sum())
        if table["size"].max() < _FEWER_THAN and pure > self.clusters:
            self.clusters = pure
            self.state = {name: value.clone() for name, value in flow.state_dict().items()}


def _draw(
    labels: Tensor, classes: int, number: int, draws: torch.Generator, paired: bool
) -> tuple[Tensor, Tensor]:
    if paired:
        return class_pairs(labels, classes, number, draws)
    single = torch.randint(len(labels), (number,), generator=draws)
    return single, single


@torch.no_grad()
def assign(
    flow: FlowMixture, features: Tensor, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-likelihoods (N,) float32 and likeliest clusters (N,) of features (N, D)."""
    flow.eval()
    likelihoods, clusters = [], []
    for rows in features.split(_ROWS) if len(features) else ():
        output = flow(rows.to(device))
        likelihoods.append(output.log_likelihood.cpu().numpy())
        clusters.append(output.cluster_log_prob.argmax(1).cpu().numpy())
    if not likelihoods:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    return np.concatenate(likelihoods).astype(np.float32), np.concatenate(clusters)


def quantile_threshold(log_likelihood: np.ndarray, share: float) -> float:
    """Return the likelihood from which on a sample belongs to the likeliest `share`.

    It is entry ``int((1 - share) n)`` of the n sorted values. Fewer than two samples leave nothing
    to take out: the threshold is infinite.
    """
    number = len(log_likelihood)
    if number < 2:
        return float("inf")
    return float(np.sort(log_likelihood)[int((1 - share) * number)])


def _members(job: Job, split: str, samples: int) -> np.ndarray:
    if "previous" not in job.inputs:
        return np.ones(samples, dtype=bool)
    passed = read_block(job.file("previous", "filter.h5"), split).passed
    if len(passed) != samples:
        raise InputError(
            f"{job.inputs['previous']}: the block before has {len(passed)} {split} samples, the "
            f"features have {samples}; delete it and run again"
        )
    return passed
