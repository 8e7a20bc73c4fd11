"""How pure clusters are of classes."""

from __future__ import annotations

import numpy as np
import pandas as pd


def cluster_shares(cluster: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Return a row for each cluster that is used: `cluster`, its `size`, its `purity`.

    The purity is the share of the cluster's largest class.

    Args:
        cluster, labels: (N,) integers of N samples.
    """
    samples = pd.DataFrame({"cluster": cluster, "label": labels})
    by_class = samples.groupby(["cluster", "label"]).size().groupby("cluster")
    size = by_class.sum()
    table = pd.DataFrame({"size": size, "purity": by_class.max() / size})
    return table.rename_axis("cluster").reset_index()


def purity(cluster: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of samples that are of their cluster's largest class; NaN for none."""
    table = cluster_shares(cluster, labels)
    return float((table["size"] * table["purity"]).sum() / len(labels)) if len(labels) else np.nan
