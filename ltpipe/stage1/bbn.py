"""BBN: a bilateral-branch network, trained cumulatively from the head classes to the tail.

Zhou et al., "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual
Recognition", CVPR 2020. One branch sees samples drawn uniformly, the other samples of class c drawn
in proportion to 1 / n_c; logits are those of ``[2 a f_c; 2 (1 - a) f_r]``, the loss is ``a L(y_c) +
(1 - a) L(y_r)``, and a falls from 1 by the square of the epoch (eqs. 1 to 4).
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.data.sampling import epoch_order
from ltpipe.losses.building import build_loss
from ltpipe.stage1.job import open_training, train_task
from ltpipe.training import distributed
from ltpipe.training.engine import NetworkTask, batch_sums, epoch_stream
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Train the network of `job.spec`; files and inputs are those of supervised training.

    Raises:
        InputError: `drop_last` leaves no batch.
    """
    training = open_training(job)
    loss = build_loss(training.settings.loss, training.data.class_counts)
    task = BilateralTask(
        training.network, loss, training.data, training.settings, job.seed, job.device
    )
    settings, samples = training.settings, len(training.data.labels)
    if settings.drop_last:
        samples -= samples % settings.batch_size
        if not samples:
            raise InputError(
                f"backbone.drop_last leaves nothing of {len(training.data.labels)} samples in "
                f"batches of {settings.batch_size}; take a smaller batch_size"
            )
    return train_task(job, training, task, samples=samples)


def balance(epoch: int, epochs: int) -> float:
    """Return a, the conventional branch's share in the 0-based `epoch` (eq. 4)."""
    return 1 - (epoch / epochs) ** 2


class BilateralTask(NetworkTask):
    """Two streams of samples through two branches."""

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        self.loss.on_epoch(epoch)
        self.network.train()
        a = balance(epoch, self.settings.epochs)
        uniform = self._batches(epoch, "shuffle", "order", "augment")
        reverse = self._batches(epoch, "reversed", "reverse order", "reverse augment")
        criterion = functools.partial(distributed.joint_loss, self.loss)
        sums = torch.zeros(2, device=self.device)
        for (images, target), (rare_images, rare_target) in zip(uniform, reverse, strict=True):
            with self.autocast():
                logits = self.forward(images, rare_images, a)
                value = a * criterion(logits, target) + (1 - a) * criterion(logits, rare_target)
            self.steps.descend(value, rate)
            sums += a * batch_sums(value, logits, target)
            sums += (1 - a) * batch_sums(value, logits, rare_target)
        total, correct = distributed.all_sum(sums).tolist()
        return total, correct

    def _batches(self, epoch: int, sampler: str, order_name: str, augment_name: str) -> Any:
        draws = generator(self.seed, order_name, epoch)
        order = epoch_order(self.data.labels, len(self.data.class_counts), sampler, draws)
        if self.settings.drop_last:
            order = order[: len(order) // self.settings.batch_size * self.settings.batch_size]
        order, batch_size = distributed.share(order, self.settings.batch_size)
        stream = epoch_stream(self.seed, augment_name, epoch, self.device)
        return self.data.labelled(order, batch_size, stream, self.device)
