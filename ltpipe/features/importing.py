"""Take over embeddings from elsewhere into the feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.artifacts.job import Job
from ltpipe.config.datasets import StoreFiles
from ltpipe.data.readers.features import read_features
from ltpipe.data.subset import read_subset
from ltpipe.features.store import Blocks, open_foreign, read_paths, write_features
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import locate
from ltpipe.utils.progress import say


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5 with the subset's rows of the files of one store.

    Files are HDF5 with `features` and `labels` (or `label`), npz with the same names, or npy with
    labels beside them. Of a feature store of this package views, logits, texts, the backbone's
    classifier and the names of images come along.

    Raises:
        InputError: a file is missing, damaged, or does not hold the samples that were drawn.
    """
    files = StoreFiles.model_validate(job.spec["store"])
    subset = read_subset(job.file("data", "subset.h5"))
    dimension = None
    for split in ("train", "val", "test"):
        part = subset.part(split)
        index = getattr(subset, f"{split}_index")
        labels = getattr(subset, f"{split}_labels")
        name = getattr(files, part) or files.train
        beside = getattr(files, f"{part}_labels")
        path = locate(name, job.root)
        features, found = read_features(
            path, beside and locate(beside, job.root), subset.class_names
        )
        if len(index) and (index.max() >= len(found) or (found[index] != labels).any()):
            raise InputError(
                f"{name}: the samples are others than those that were drawn; run again"
            )
        if dimension is not None and features.shape[1] != dimension:
            raise InputError(
                f"{name}: features have {features.shape[1]} dimensions, those of {files.train} "
                f"have {dimension}"
            )
        dimension = features.shape[1]
        write_features(
            job.output / f"{split}.h5",
            features=features[index],
            labels=labels,
            index=index,
            class_names=subset.class_names,
            class_counts=subset.class_counts,
            **_more(path, name, index, subset.class_names),
        )
    say(f"took over {len(subset.train_index)} embeddings of {dimension} dimensions")
    return {"dimension": dimension}


def _more(path: Path, name: str, index: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """Return what a file has beside features and labels, of the samples at `index`."""
    attributes = {"backbone": "from elsewhere", "head": "none", "origin": name}
    store = open_foreign(path)
    if store is None:
        return {"attributes": attributes}
    if store.text is not None and len(store.text) != len(class_names):
        raise InputError(
            f"{name}: texts of {len(store.text)} classes, the data set has {len(class_names)}"
        )
    more: dict[str, Any] = {
        "attributes": {**store.attributes, "origin": name},
        "text": store.text,
        "view_strength": store.view_strength,
        "classifier_weight": store.classifier_weight,
        "classifier_bias": store.classifier_bias,
    }
    if store.logits is not None:
        more["logits"] = store.logits[index]
    if (views := store.views) is not None:
        shape = (len(views), len(index), views.shape[2])
        more["views"] = Blocks(shape, str(views.dtype), (view[index] for view in views))
    if (paths := read_paths(path)) is not None:
        more["paths"] = [paths[place] for place in index.tolist()]
    return more
