"""Predict with an exported bundle.

from ltpipe.predict import load

predictor = load("my-bundle")
labels, probabilities = predictor.predict(["cat.jpg", "dog.jpg"])
print(predictor.class_names[labels[0]], probabilities[0, labels[0]])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltpipe.bundles.corrected import Corrected
from ltpipe.bundles.format import read_description
from ltpipe.bundles.pipeline import Pipeline
from ltpipe.bundles.preparing import Given, GivenImages
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import ImageBatches
from ltpipe.data.readers.features import read_unlabelled
from ltpipe.training.devices import named_device
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import track

Features = str | Path | np.ndarray


class Prediction(NamedTuple):
    """`labels` (N,) int64, places in `class_names`; `probabilities` (N, C) float32."""

    labels: np.ndarray
    probabilities: np.ndarray


def load(bundle_dir: Path | str, device: str = "auto") -> Predictor:
    """Open an exported bundle; every file is checked against its hash.

    Args:
        device: auto (a GPU where there is one), cpu, or cuda, as in `cuda:1`.

    Raises:
        InputError: it is no bundle, of another format version, incomplete or changed, or there is
            no such device.
    """
    folder = Path(bundle_dir)
    description = read_description(folder)
    place = named_device(device)
    try:
        pipeline = Pipeline(folder, description, place, exact=False)
        _try(pipeline, description, place)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise _misfit(folder, error) from None
    except RuntimeError as error:
        if place.type == "cuda":
            # The device's own trouble, such as a lack of memory, is not the bundle's.
            raise
        raise _misfit(folder, error) from None
    return Predictor(pipeline, description, place)


def _misfit(folder: Path, error: Exception) -> InputError:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return InputError(
        f"{folder}: bundle.json does not fit the files beside it ({text}); export again"
    )


@torch.inference_mode()
def _try(pipeline: Pipeline, description: Mapping[str, Any], device: torch.device) -> None:
    """Predict one sample of zeros.

    Raises:
        ValueError: there is not a probability for each class.
    """
    rule = description["input"]
    if rule is None:
        given = [torch.zeros(1, size, device=device) for size in pipeline.dimensions.values()]
    else:
        shape = (1, rule["channels"], *rule["size"])
        given = [torch.zeros(shape, dtype=torch.uint8, device=device)]
    found, classes = pipeline(*given).shape, len(description["classes"]["names"])
    if found != (1, classes):
        raise ValueError(f"{found[1]} probabilities for {classes} classes")


class Predictor:
    """A loaded bundle; `load` makes one.

    Attributes:
        class_names: the name of each label.
        description: what bundle.json says.
    """

    def __init__(
        self, pipeline: Pipeline, description: Mapping[str, Any], device: torch.device
    ) -> None:
        self._pipeline = pipeline
        self._device = device
        self.description = description
        self.class_names: list[str] = description["classes"]["names"]

    @property
    def takes_images(self) -> bool:
        """Whether it takes images; else it takes features."""
        return self.description["input"] is not None

    @property
    def roles(self) -> list[str]:
        """The roles of its backbones; a bundle without them takes features for each."""
        return self._pipeline.roles

    def predict(
        self,
        images: Sequence[Given] | np.ndarray | Features | Mapping[str, Features],
        *,
        batch_size: int | None = None,
        bad: dict[int, str] | None = None,
    ) -> Prediction:
        """Return the labels and probabilities of images, or of features.

        Args:
            images: paths, Pillow images and uint8 arrays (H, W), (H, W, 1) or (H, W, 3), mixed at
                will, or one array of all of them. A bundle without backbones takes features: an
                (N, D) array or a file (.npy, .npz, HDF5), or one for each role.
            batch_size: samples at once; those of the feature store unless given.
            bad: where given, images that can't be used are skipped: it gets the message of each by
                its place, and the results lack their rows.

        Raises:
            InputError: an image or a file is missing, damaged or does not fit; it is named.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"the batch size is {batch_size}: it must be at least 1")
        if self.takes_images:
            return self._of_images(images, batch_size, bad)
        return self._of_features(images, batch_size)

    def corrected(self) -> Corrected:
        """Return what moves probabilities to other class priors and makes sets of classes.

        Raises:
            InputError: the bundle is not one of method calibrated.
        """
        return Corrected(self.description, self._pipeline.tensors.under("method"))

    def _of_images(
        self, images: Any, batch_size: int | None, bad: dict[int, str] | None
    ) -> Prediction:
        if isinstance(images, str | Path | Mapping) or not hasattr(images, "__len__"):
            raise InputError("predict takes a list of images: paths, Pillow images or uint8 arrays")
        if isinstance(images, np.ndarray) and images.ndim not in (3, 4):
            raise InputError(
                f"images are an array of shape {images.shape}: (N, H, W) or (N, H, W, channels) "
                "is needed"
            )
        rule = self.description["input"]
        given = GivenImages(images, rule, skip_bad=bad is not None)
        place = np.arange(len(given))
        size = Augmentation(size=(rule["size"][0], rule["size"][1]))
        batches = ImageBatches(given, place, size, self._device, resident=False)
        at_once = batch_size or min(values["batch_size"] for values in self._backbones())
        stream = ((batch,) for batch in batches.epoch(torch.from_numpy(place), at_once, None))
        probabilities = self._run(stream, -(-len(given) // at_once))
        if bad is not None:
            bad |= dict(sorted(given.bad.items()))
            probabilities = probabilities[~np.isin(place, list(given.bad))]
        return Prediction(probabilities.argmax(1), probabilities)

    def _backbones(self) -> Any:
        return self.description["backbones"].values()

    def _of_features(self, given: Any, batch_size: int | None) -> Prediction:
        by_role = given if isinstance(given, Mapping) else dict.fromkeys(self.roles[:1], given)
        if set(by_role) != set(self.roles):
            raise InputError(
                f"this bundle has no backbone and takes features for {', '.join(self.roles)}; it "
                f"was given {', '.join(map(str, by_role))}"
            )
        tables = [self._table(role, by_role[role]) for role in self.roles]
        if len({len(table) for table in tables}) > 1:
            raise InputError("the roles' features have different numbers of rows")
        at_once = batch_size or 4096
        stream = zip(*(table.split(at_once) for table in tables), strict=True)
        moved = (tuple(part.to(self._device) for part in parts) for parts in stream)
        probabilities = self._run(moved, -(-len(tables[0]) // at_once))
        return Prediction(probabilities.argmax(1), probabilities)

    def _table(self, role: str, given: Any) -> Tensor:
        where = str(given) if isinstance(given, str | Path) else f"features of {role}"
        features = read_unlabelled(Path(given)) if isinstance(given, str | Path) else given
        width = self._pipeline.dimensions[role]
        fits = isinstance(features, np.ndarray) and features.ndim == 2
        if not fits or features.dtype.kind not in "fiu" or features.shape[1] != width:
            shape = getattr(features, "shape", type(features).__name__)
            raise InputError(
                f"{where}: (N, {width}) numbers are needed, this is {shape}; the bundle has no "
                "backbone, it takes features"
            )
        features = np.ascontiguousarray(features, np.float32)
        if not np.isfinite(features).all():
            raise InputError(f"{where}: holds NaN or infinite values")
        return torch.from_numpy(features)

    @torch.inference_mode()
    def _run(self, batches: Iterator[tuple[Tensor, ...]], number: int) -> np.ndarray:
        found = [
            self._pipeline(*inputs).float().cpu().numpy()
            for inputs in track(batches, "predicting", total=number)
        ]
        return np.concatenate([np.empty((0, len(self.class_names)), np.float32), *found])
