"""The loops that published codes use, to measure against: DataLoader, PIL, fp32 NCHW."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import torch
from nflows.transforms.made import MADE
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from ltpipe.losses.margin import LDAMLoss
from ltpipe.models.flow import FlowBatchNorm, FlowOutput

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)


class PilImages(Dataset):
    """CIFAR as the usual data sets serve it: PIL image, pad-crop-flip, tensor, normalise."""

    def __init__(self, images: np.ndarray, labels: Tensor, augment: bool) -> None:
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index])
        if self.augment:
            image = ImageOps.expand(image, 4)
            left, top = random.randrange(9), random.randrange(9)
            image = image.crop((left, top, left + 32, top + 32))
            if random.random() < 0.5:
                image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        return tensor.sub_(MEAN).div_(STD), int(self.labels[index])


def train_epoch(network: nn.Module, images: np.ndarray, labels: Tensor, batch: int) -> float:
    """Return the seconds of one epoch."""
    loader = DataLoader(PilImages(images, labels, True), batch, shuffle=True)
    return _epoch(network.train(), loader, 2e-4)


def _epoch(model: nn.Module, loader: DataLoader, weight_decay: float) -> float:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=weight_decay)
    started = time.perf_counter()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def embed(network: nn.Module, images: np.ndarray, labels: Tensor, batch: int) -> float:
    """Return the seconds of embedding all images."""
    network.eval()
    loader = DataLoader(PilImages(images, labels, False), batch)
    started = time.perf_counter()
    torch.cat([network.features(x) for x, _ in loader])
    return time.perf_counter() - started


def load_epoch(images: np.ndarray, labels: Tensor, batch: int) -> float:
    """Return the seconds of loading and augmenting all images."""
    started = time.perf_counter()
    for _ in DataLoader(PilImages(images, labels, True), batch, shuffle=True):
        pass
    return time.perf_counter() - started


class CosineClassifier(nn.Module):
    """The classifier that FFN retrains."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim, classes) * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        return x @ F.normalize(self.weight, dim=0)


def lone_fusion_run(
    kps: Tensor, ce: Tensor, labels: Tensor, counts: list[int], w1: float, epochs: int
) -> float:
    """Return the seconds of one FFN stage two on cached features, one coefficient, one seed."""
    sample_weights = 1 / torch.tensor(counts, dtype=torch.double)[labels]
    loader = DataLoader(
        TensorDataset(kps, ce, labels),
        64,
        sampler=WeightedRandomSampler(sample_weights, len(labels)),
    )
    model = CosineClassifier(kps.shape[1], len(counts))
    loss_of = LDAMLoss(counts)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
    started = time.perf_counter()
    for _ in range(epochs):
        for a, b, y in loader:
            loss = loss_of(model(w1 * F.normalize(a) + (1 - w1) * F.normalize(b)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


class BroadcastFlow(nn.Module):
    """The usual form of a flow filter: masks laid on in every step, a (B, K, D) difference."""

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.mades = nn.ModuleList(
            MADE(dim, dim, num_blocks=1, output_multiplier=2, use_residual_blocks=False)
            for _ in range(2)
        )
        self.norms = nn.ModuleList(FlowBatchNorm(dim) for _ in range(2))
        self.register_buffer("centres", 0.05 * torch.randn(clusters, dim))

    def forward(self, x: Tensor) -> FlowOutput:
        log_det = x.new_zeros(len(x))
        for made, norm in zip(self.mades, self.norms, strict=True):
            shift, log_scale = made(x.flip(1)).view(*x.shape, 2).unbind(2)
            x, of_norm = norm((x.flip(1) - shift) * torch.exp(-log_scale))
            log_det = log_det - log_scale.sum(1) + of_norm
        difference = x.unsqueeze(1) - self.centres.unsqueeze(0)
        constant = x.shape[1] * math.log(2 * math.pi)
        each = -0.5 * (difference.square().sum(2) + constant) + log_det.unsqueeze(1)
        return FlowOutput(x, each, each.logsumexp(1) - math.log(len(self.centres)))


class LoopClustering:
    """CWS's clustering step sample by sample, as its equations read (2 to 4).

    The class's centre moves towards its batch mean, the class's farthest sample gives the width of
    its shells, and each sample is put into one.
    """

    def __init__(self, subclasses: list[int], alpha: float = 0.99) -> None:
        self.subclasses = subclasses
        self.alpha = alpha
        self.centres: dict[int, Tensor] = {}

    def assign(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return subclass ids (B,) of features (B, D)."""
        members: dict[int, list[int]] = {}
        for place in range(len(labels)):
            members.setdefault(int(labels[place]), []).append(place)
        found = torch.empty(len(labels), dtype=torch.int64)
        for label, places in members.items():
            mean = torch.stack([features[place] for place in places]).mean(0)
            if label in self.centres:
                mean = self.alpha * self.centres[label] + (1 - self.alpha) * mean
            self.centres[label] = mean
            distances = [float((features[place] - mean).norm()) for place in places]
            width = max(distances) / self.subclasses[label]
            first = sum(self.subclasses[:label])
            for place, distance in zip(places, distances, strict=True):
                shell = math.ceil(distance / width) - 1 if width else 0
                found[place] = first + min(max(shell, 0), self.subclasses[label] - 1)
        return found


def linear_epoch(features: Tensor, labels: Tensor, classes: int, batch: int) -> float:
    """Return the seconds of one epoch of a linear classifier on features in memory."""
    loader = DataLoader(TensorDataset(features, labels), batch, shuffle=True)
    return _epoch(nn.Linear(features.shape[1], classes), loader, 5e-4)
