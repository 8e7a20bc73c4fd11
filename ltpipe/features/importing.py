"""Take over embeddings from elsewhere into the feature store."""

from __future__ import annotations

from typing import Any

from ltpipe.artifacts.job import Job
from ltpipe.config.datasets import StoreFiles
from ltpipe.data.readers.features import read_features
from ltpipe.data.subset import read_subset
from ltpipe.features.store import write_features
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import locate
from ltpipe.utils.progress import say


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5 with the subset's rows of the files of one store.

    Files are HDF5 with `features` and `labels` (or `label`), npz with the same names, or npy with
    labels beside them.

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
        features, found = read_features(
            locate(name, job.root), beside and locate(beside, job.root), subset.class_names
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
            attributes={"backbone": "from elsewhere", "origin": name, "head": "none"},
        )
    say(f"took over {len(subset.train_index)} embeddings of {dimension} dimensions")
    return {"dimension": dimension}
