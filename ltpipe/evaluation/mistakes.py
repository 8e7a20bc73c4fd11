"""What a classifier gets wrong: each such test sample with the training samples nearest to it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ltpipe.artifacts.reading import open_artifact
from ltpipe.config.datasets import FeaturesDataset, InputSettings
from ltpipe.data.sources import Part
from ltpipe.data.subset import read_subset
from ltpipe.evaluation.page import render
from ltpipe.features.store import FeatureStore, read_paths
from ltpipe.stage2.core.results import read_predictions
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import write_text_atomic

# Training samples that are shown beside a mistake.
NEIGHBOURS = 5
_SIDE, _SMALL_SIDE = 160, 64
_BLOCK = 1024
# From here on the classifier and the neighbours are so sure that the label may be wrong.
_SURE = 0.8


@dataclass(frozen=True)
class Mistakes:
    """A method's mistakes on the test set, those that look mislabelled first.

    Attributes:
        table: a row a mistake: sample, truth, predicted, probability, probability_of_truth (NaN
            where scores were not kept), suspect, neighbour_1 ... with neighbour_label_1 ...
        place: (M,) rows of the test split; `nearest` (M, K) rows of the training split.
        total: number of test samples.
        role: the backbone whose features say what is near.
    """

    table: pd.DataFrame
    place: np.ndarray
    nearest: np.ndarray
    total: int
    role: str


def find_mistakes(folder: Path, point: int = 0) -> Mistakes:
    """Compare predictions of a finished result with the labels.

    Mistakes are in the order of p(predicted) - p(label) plus the same difference of the shares of
    both classes among the nearest training samples, the largest first: what classifier and
    neighbours agree on against the label is where labels are wrong most often (the margin of
    confident learning, Northcutt et al., JAIR 2021).

    Args:
        folder: results/stage2/DATASET/METHOD/DIGEST/seedN.
        point: of a sweep.

    Raises:
        InputError: a file is missing or damaged, or there is no such point.
    """
    found = read_predictions(folder)
    if not 0 <= point < len(found.points):
        raise InputError(f"--point {point}: {folder} has the points 0 to {len(found.points) - 1}")
    role, store = next(iter(open_artifact(folder).inputs("features.").items()))
    test = FeatureStore.open(store.file("test.h5"), skip=("views",))
    train = FeatureStore.open(store.file("train.h5"), skip=("views",))
    predicted = found.predicted[point]
    wrong = np.flatnonzero(predicted != found.labels)
    nearest = _nearest(test.features[wrong], train.features)
    of_prediction = found.confidence[point][wrong]
    of_truth = np.full(len(wrong), np.nan, np.float32)
    if found.scores is not None:
        of_truth = found.scores[point][wrong, found.labels[wrong]]
    around = train.labels[nearest]
    for_prediction = (around == predicted[wrong, None]).mean(1)
    for_truth = (around == found.labels[wrong, None]).mean(1)
    doubt = of_prediction - np.nan_to_num(of_truth) + for_prediction - for_truth
    counts = np.array(found.class_counts)[found.labels[wrong]]
    # A class of few training samples has few neighbours to speak for it.
    sure = (of_prediction >= _SURE) & (for_prediction >= _SURE) & (counts >= NEIGHBOURS)
    suspect = sure & (for_truth == 0)
    names = np.array(found.class_names, dtype=object)
    samples = _names(found.paths, found.index)
    trained = _names(read_paths(train.path), train.index)
    columns: dict[str, Any] = {
        "sample": [samples[place] for place in wrong],
        "truth": names[found.labels[wrong]],
        "predicted": names[predicted[wrong]],
        "probability": of_prediction,
        "probability_of_truth": of_truth,
        "suspect": suspect,
    }
    for rank in range(nearest.shape[1]):
        columns[f"neighbour_{rank + 1}"] = [trained[place] for place in nearest[:, rank]]
        columns[f"neighbour_label_{rank + 1}"] = names[around[:, rank]]
    order = np.lexsort((-doubt, ~suspect))
    table = pd.DataFrame(columns).iloc[order].reset_index(drop=True)
    return Mistakes(table, wrong[order], nearest[order], len(found.labels), role)


def _nearest(features: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the (M, K) rows of `among` whose cosines with each of `features` are largest."""
    count = min(NEIGHBOURS, len(among))
    directions = _normalised(among)
    found = [np.empty((0, count), np.int64)]
    for start in range(0, len(features), _BLOCK):
        cosines = _normalised(features[start : start + _BLOCK]) @ directions.T
        found.append(np.argsort(-cosines, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _names(paths: Sequence[str] | None, index: np.ndarray) -> list[str]:
    return [f"row {place}" for place in index] if paths is None else list(paths)


def write_mistakes(
    found: Mistakes, output: Path, *, title: str, pictures: Pictures | None, limit: int
) -> None:
    """Write mistakes.csv with all, and mistakes.html with the first `limit`, to a folder.

    Args:
        pictures: what opens the photos; None leaves them out.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output / "mistakes.csv", found.table.to_csv(index=False))
    rows = [_row(found, place, pictures) for place in range(min(limit, len(found.table)))]
    page = render(
        "mistakes.html.jinja",
        title=title,
        rows=rows,
        shown=len(rows),
        wrong=len(found.table),
        total=found.total,
        share=f"{100 * len(found.table) / max(1, found.total):.1f}",
        role=found.role,
        thing="sample" if pictures is None else "photo",
        things="samples" if pictures is None else "photos",
    )
    write_text_atomic(output / "mistakes.html", page)


def _row(found: Mistakes, place: int, pictures: Pictures | None) -> dict[str, Any]:
    row = found.table.iloc[place]
    near = [
        {
            "label": row[f"neighbour_label_{rank + 1}"],
            "name": row[f"neighbour_{rank + 1}"],
            "image": None if pictures is None else pictures.train(sample, _SMALL_SIDE),
        }
        for rank, sample in enumerate(found.nearest[place])
    ]
    known = not pd.isna(row["probability_of_truth"])
    return {
        "name": row["sample"],
        "truth": row["truth"],
        "predicted": row["predicted"],
        "probability": f"{100 * row['probability']:.0f}",
        "probability_of_truth": f"{100 * row['probability_of_truth']:.0f} %" if known else "",
        "suspect": bool(row["suspect"]),
        "image": None if pictures is None else pictures.test(found.place[place], _SIDE),
        "neighbours": near,
    }


class Pictures:
    """Small JPEG pictures of a data set's samples, in base64, by their rows in the splits."""

    def __init__(self, settings: Any, data: Path, root: Path | None) -> None:
        """Open the data set of an artifact `data`.

        Raises:
            InputError: the data set is not there, or has no images.
        """
        if isinstance(settings, FeaturesDataset):
            raise InputError("embeddings from elsewhere have no photos")
        size = InputSettings(size=[_SIDE, _SIDE], orientation=settings.input.orientation)
        source = settings.model_copy(update={"input": size}).read(root)
        self._subset = read_subset(open_artifact(data).file("subset.h5"))
        parts = {"train": source.train, "val": source.val, "test": source.test}
        self._parts: dict[str, Part] = {
            split: part
            for split in ("train", "test")
            if (part := parts[self._subset.part(split)]) is not None
        }

    def train(self, row: int, side: int) -> str:
        """Return a training sample's picture."""
        return self._picture("train", self._subset.train_index[row], side)

    def test(self, row: int, side: int) -> str:
        """Return a test sample's picture."""
        return self._picture("test", self._subset.test_index[row], side)

    def _picture(self, split: str, place: int, side: int) -> str:
        (array,) = self._parts[split].images.load(np.array([place]))
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        # Pictures of a few pixels stay what they are: squares.
        how = Image.Resampling.NEAREST if max(image.size) < side else Image.Resampling.BILINEAR
        stream = io.BytesIO()
        image.resize((side, side), how).save(stream, "JPEG", quality=80)
        return base64.b64encode(stream.getvalue()).decode("ascii")
