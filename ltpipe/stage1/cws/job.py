"""CWS: the backbone learns subclasses, which are found anew in every batch.

"Classwise splitting" cuts large classes into shells around a moving centre of their features
(ltpipe.stage1.cws.clustering) and trains the network to name the shell. Loss and rule are those of
the classes, applied to subclasses: margins and weights follow the number of samples that each
subclass was given in the epoch before, n_c / SN_c at first and never less than one. Resampling
draws by real classes, whose labels are known before a batch is.
"""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import CWS, backbone_settings
from ltpipe.data.augment import normalise
from ltpipe.data.sampling import epoch_order
from ltpipe.losses.building import build_loss
from ltpipe.models.mapping import Splitting, owners, write_splitting
from ltpipe.stage1.cws.clustering import Clustering
from ltpipe.stage1.cws.mapping import AlternatingMapping
from ltpipe.stage1.cws.subclasses import image_spread, subclass_counts
from ltpipe.stage1.job import open_images, open_training, train_task
from ltpipe.training import distributed
from ltpipe.training.compiling import compiled
from ltpipe.training.engine import Epoch, NetworkTask, TrainingSet, epoch_stream
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Train the network of `job.spec`; files and inputs are those of supervised training.

    Beside them it leaves splitting.safetensors (subclasses, centres, the mapping where it
    alternates), occupancy.csv (epoch, class, subclass, samples), and mapping.csv (epoch, loss,
    accuracy) where the mapping alternates.

    Raises:
        InputError: several processes are to train it, or `subclasses` do not fit the classes.
    """
    if distributed.size() > 1:
        raise InputError("system cws trains in one process: its centres are not shared")
    settings = backbone_settings(job.spec["backbone"])
    images = open_images(job)
    subclasses = numbers_of(settings, images.data)
    training = open_training(job, images, sum(subclasses))
    task = SplittingTask(
        training.network, training.data, settings, subclasses, job.seed, job.device
    )
    run_info = train_task(job, training, task, functools.partial(_conclude, job, task))
    return {"subclasses": subclasses, **run_info}


def _conclude(job: Job, task: SplittingTask, history: list[Epoch]) -> str:
    """Leave what the task knows beside its weights; say whether empty subclasses lose the run."""
    settings, mapping, epochs = task.settings, task.mapping, len(history)
    write_splitting(
        job.output,
        Splitting(
            task.subclasses,
            task.clustering.centres,
            {} if mapping is None else mapping.trained(),
            "" if mapping is None else settings.mapper.input,
        ),
    )
    _write(job, "occupancy.csv", occupancy_table(task.occupancy[:epochs], task.subclasses))
    if mapping is not None:
        table = pd.DataFrame(mapping.history[:epochs].numpy(), columns=["loss", "accuracy"])
        table.insert(0, "epoch", range(epochs))
        _write(job, "mapping.csv", table)
    empty = int((task.occupancy[epochs - 1] == 0).sum())
    if not empty or settings.empty == "kept":
        return ""
    return f"{empty} of {sum(task.subclasses)} subclasses have no sample in the last epoch"


def numbers_of(settings: CWS, data: TrainingSet) -> list[int]:
    """Return the number of subclasses of each class (C,)."""
    wanted, spread = settings.subclasses, None
    if wanted == "counts-and-spread":
        spread = image_spread(data.batches, data.labels, len(data.class_counts))
    return subclass_counts(wanted, data.class_counts, spread)


class SplittingTask(NetworkTask):
    """A network over subclasses, the clustering that names them, and maybe a mapping behind.

    Attributes:
        pseudo_counts: (P,) int64, samples of each subclass in the epoch before.
        occupancy: (epochs, P) int64.
    """

    def __init__(
        self,
        network: nn.Module,
        data: TrainingSet,
        settings: CWS,
        subclasses: list[int],
        seed: int,
        device: torch.device,
    ) -> None:
        shares = [n / number for n, number in zip(data.class_counts, subclasses, strict=True)]
        first = torch.tensor(shares).repeat_interleave(torch.tensor(subclasses))
        self.pseudo_counts = first.round().long().clamp_min(1)
        loss = build_loss(settings.loss, self.pseudo_counts.tolist())
        super().__init__(network, loss, data, settings, seed, device)
        self.subclasses = subclasses
        self.owners = owners(subclasses).to(device)
        self.clustering = Clustering(
            subclasses,
            self.network.feature_dim,
            centre=settings.centre,
            alpha=settings.alpha,
            scope=settings.scope,
            unit=settings.unit,
            device=device,
        )
        # The clustering needs the features too.
        self.forward = compiled(self._outputs, device) if settings.compile else self._outputs
        self.occupancy = torch.zeros(settings.epochs, sum(subclasses), dtype=torch.int64)
        self.mapping = None
        if settings.mapping == "alternating":
            self.mapping = AlternatingMapping(settings, data, subclasses, loss, seed, device)

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images)
        return features, self.network.head(features)

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        settings = self.settings
        counts = self.pseudo_counts.tolist()
        phase = phases(settings.rule, counts, settings.epochs)[epoch]
        self.loss = build_loss(settings.loss, counts).to(self.device)
        self.loss.reweight(None if phase.weights is None else phase.weights.to(self.device))
        self.loss.on_epoch(epoch)
        given = self._label_all() if settings.scope == "epoch" else None
        self.network.train()
        order = epoch_order(
            self.data.labels,
            len(self.subclasses),
            phase.sampler,
            generator(self.seed, "order", epoch),
        )
        stream = epoch_stream(self.seed, "augment", epoch, self.device)
        sums = torch.zeros(2, device=self.device)
        places = order.to(self.device, non_blocking=True)
        start = 0
        for images, target in self.data.labelled(order, settings.batch_size, stream, self.device):
            with self.autocast():
                features, outputs = self.forward(images)
                if given is None:
                    pseudo = self.clustering.assign(features, target)
                else:
                    pseudo = given[places[start : start + len(target)]]
                value = self.loss(outputs, pseudo)
            start += len(target)
            self.steps.descend(value, rate)
            correct = (self.owners[outputs.detach().argmax(1)] == target).sum()
            sums += torch.stack([value.detach() * len(target), correct.to(value.dtype)])
        found = self.clustering.restart().cpu()
        self.occupancy[epoch] = found
        self.pseudo_counts = found.clamp_min(1)
        if self.mapping is not None:
            self.mapping.run_epoch(self.network, epoch, rate)
        total, hits = sums.tolist()
        return total, hits

    @torch.no_grad()
    def _label_all(self) -> Tensor:
        """Return the subclass (N,) of every training sample, by its plain image's features."""
        self.network.eval()
        pixels = self.data.pixels
        order = torch.arange(len(self.data.labels))
        features = []
        for batch in self.data.batches.epoch(order, self.settings.batch_size, None):
            with self.autocast():
                images = normalise(batch, pixels.mean, pixels.std, torch.float32)
                features.append(self.network.features(images).float())
        return self.clustering.assign(torch.cat(features), self.data.labels.to(self.device))

    def state(self) -> dict[str, Tensor]:
        mapping = {} if self.mapping is None else self.mapping.state()
        clustering = {f"clustering.{k}": v for k, v in self.clustering.state().items()}
        counts = {"pseudo_counts": self.pseudo_counts, "occupancy": self.occupancy}
        return {**super().state(), **clustering, **counts, **mapping}


def occupancy_table(occupancy: Tensor, subclasses: list[int]) -> pd.DataFrame:
    """Return rows (epoch, class, subclass, samples) of an occupancy (E, P).

    Subclasses are numbered from 0 within their class, from the centre outwards.
    """
    epochs, total = occupancy.shape
    labels = owners(subclasses)
    within = torch.cat([torch.arange(number) for number in subclasses])
    return pd.DataFrame(
        {
            "epoch": torch.arange(epochs).repeat_interleave(total).numpy(),
            "class": labels.repeat(epochs).numpy(),
            "subclass": within.repeat(epochs).numpy(),
            "samples": occupancy.flatten().numpy(),
        }
    )


def _write(job: Job, name: str, table: pd.DataFrame) -> None:
    write_text_atomic(job.output / name, table.to_csv(index=False))
