"""Take a draw's rows of the features of all of a data set's samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ltpipe.artifacts.job import Job
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say


def run(job: Job) -> dict[str, Any]:
    """Write train.h5, val.h5 and test.h5 with the rows of the input `pool` that the draw has.

    Raises:
        InputError: the pool lacks a sample of the draw.
    """
    subset = read_subset(job.file("data", "subset.h5"))
    stores = {
        name: FeatureStore.open(job.file("pool", f"{name}.h5")) for name in ("train", "val", "test")
    }
    # All samples are there: nothing is held out of the training part but a test part.
    parts = {"train": "train", "val": "val", "test": subset.test_part}
    whole = stores["train"]
    for split in stores:
        index = getattr(subset, f"{split}_index")
        features = np.full((len(index), whole.features.shape[1]), np.nan, np.float32)
        for name, store in stores.items():
            if parts[name] == subset.part(split):
                rows = pd.Index(store.index).get_indexer(index)
                features[rows >= 0] = store.features[rows[rows >= 0]]
        if np.isnan(features).any():
            raise InputError(f"{whole.path}: lacks samples of the {split} part; delete it")
        write_features(
            job.output / f"{split}.h5",
            features=features,
            labels=getattr(subset, f"{split}_labels"),
            index=index,
            paths=subset.paths.get(split),
            class_names=subset.class_names,
            class_counts=subset.class_counts,
            attributes={**whole.attributes, "draw": subset.digest},
        )
    say(f"took {len(subset.train_index)} training samples' features of {whole.path.parent}")
    return {"precision": whole.attributes["precision"]}
