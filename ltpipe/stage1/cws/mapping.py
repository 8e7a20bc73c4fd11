"""CWS's alternation: after each of the backbone's epochs, one of the label mapping.

No gradient reaches the backbone, whose BatchNorm stands still too, so its weights are those of a
run without a mapping.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltpipe.config.backbones import CWS
from ltpipe.data.sampling import epoch_order
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.models.mapping import fresh_mapping, map_scores, mapping_input
from ltpipe.training.engine import TrainingSet, autocast, batch_sums, epoch_stream
from ltpipe.training.optimizers import SGD
from ltpipe.training.rules import phases
from ltpipe.utils.seeding import generator


class AlternatingMapping:
    """A perceptron trained under the backbone's loss and rule, on real labels and class counts.

    Args:
        outputs: turns the classifier's outputs (B, P) into logits.
    """

    def __init__(
        self,
        settings: CWS,
        data: TrainingSet,
        subclasses: Sequence[int],
        outputs: Loss,
        seed: int,
        device: torch.device,
    ) -> None:
        total, classes = sum(subclasses), len(subclasses)
        fresh = fresh_mapping(
            total,
            classes,
            settings.mapper.hidden or total,
            settings.head,
            generator(seed, "mapping"),
        )
        # A leading axis: these are one of the many models that map_scores takes.
        self.parameters = {
            name: value[None].to(device).requires_grad_() for name, value in fresh.items()
        }
        self.optimizer = SGD(
            self.parameters.values(),
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        self.settings = settings
        self.data = data
        self.outputs = outputs
        self.seed = seed
        self.device = device
        self.loss = build_loss(settings.loss, data.class_counts).to(device)
        self.phases = phases(settings.rule, data.class_counts, settings.epochs)
        self.autocast = functools.partial(autocast, settings, device)
        self.history = torch.full((settings.epochs, 2), torch.nan, dtype=torch.float64)

    def run_epoch(self, network: Any, epoch: int, rate: float) -> None:
        """Train for one epoch on augmented images as `network` sees them now."""
        settings, phase = self.settings, self.phases[epoch]
        self.loss.reweight(None if phase.weights is None else phase.weights.to(self.device))
        self.loss.on_epoch(epoch)
        if settings.mapper.learning_rate is not None:
            rate *= settings.mapper.learning_rate / settings.learning_rate
        network.eval()
        draws = generator(self.seed, "stage2", epoch)
        classes = len(self.data.class_counts)
        order = epoch_order(self.data.labels, classes, phase.sampler, draws)
        stream = epoch_stream(self.seed, "mapping augment", epoch, self.device)
        sums = torch.zeros(2, device=self.device)
        for images, target in self.data.labelled(order, settings.batch_size, stream, self.device):
            with torch.no_grad(), self.autocast():
                logits = self.outputs.logits(network(images)).float()
            scores = self.scores(logits)
            value = self.loss(scores, target)
            value.backward()
            self.optimizer.step(rate)
            sums += batch_sums(value, scores, target)
        self.history[epoch] = sums.double().cpu() / len(order)

    def scores(self, logits: Tensor) -> Tensor:
        """Return the perceptron's outputs (B, C) for subclass logits (B, P)."""
        inputs = mapping_input(logits, self.settings.mapper.input)
        return map_scores(self.parameters, inputs[None])[0, :, 0]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run has to find again, to be copied into."""
        momenta = {f"mapping.momentum.{i}": b for i, b in enumerate(self.optimizer.buffers)}
        weights = {f"mapping.{name}": value for name, value in self.parameters.items()}
        return {**weights, **momenta, "mapping.history": self.history}

    def trained(self) -> dict[str, Tensor]:
        """Return the perceptron's parameters, without the axis of models."""
        return {name: value.detach()[0] for name, value in self.parameters.items()}
