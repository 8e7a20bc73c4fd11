"""Figures of a cascade, from the tables that its runs leave."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest

from ltpipe.evaluation.figures import Material, draw_figures
from ltpipe.utils.errors import InputError

DATASET = {"label": "made", "folder": "data", "groups": "ranks", "note": ""}


def material(tmp_path, *figures):
    results = []
    for method, scale in (("with", 1), ("without", 2)):
        for seed in (0, 1):
            folder = tmp_path / f"{method}{seed}"
            folder.mkdir(exist_ok=True)
            pd.DataFrame(
                {
                    "block": [1, 1, 1, 2],
                    "cluster": [0, 3, 4, 0],
                    "size": [10 * scale, 4, 2 + 2 * seed, 7],
                    "purity": [0.95, 0.5, 1.0, 0.2],
                }
            ).to_csv(folder / "clusters.csv", index=False)
            pd.DataFrame(
                {"block": [1, 2], "separation": [0.9 + 0.1 * seed, 0.4], "tail_share": [0.5, 0.5]}
            ).to_csv(folder / "blocks.csv", index=False)
            result = {"dataset": "d", "method": method, "label": method, "seed": seed}
            results.append({**result, "folder": f"{method}{seed}"})
    spec = {"datasets": {"d": DATASET}, "results": results, "features": [], "figures": figures}
    return Material(spec, pd.DataFrame(), tmp_path, tmp_path / "figures", tmp_path)


def figure(kind, **settings):
    return {"kind": kind, "dataset": "d", "methods": ["with", "without"], **settings}


def test_sizes_are_sorted_and_averaged_over_seeds(tmp_path):
    (drawn,) = draw_figures(material(tmp_path, figure("cluster_sizes", block=1)))
    data = pd.read_csv(tmp_path / f"figures/{drawn.name}.csv")
    assert data[data["method"] == "with"].sort_values("rank")["size"].tolist() == [10, 4, 3]
    assert data[data["method"] == "without"].sort_values("rank")["size"].tolist() == [20, 4, 3]


def test_purity_is_counted_in_tenths(tmp_path):
    (drawn,) = draw_figures(material(tmp_path, figure("cluster_purity", block=1)))
    data = pd.read_csv(tmp_path / f"figures/{drawn.name}.csv")
    found = data[data["method"] == "with"].set_index("purity_from")["clusters"]
    assert found[found > 0].round(6).to_dict() == {0.5: 1, 0.9: 2}


def test_separation_stands_beside_the_share_in_all_samples(tmp_path):
    (drawn,) = draw_figures(material(tmp_path, figure("separation")))
    data = pd.read_csv(tmp_path / f"figures/{drawn.name}.csv")
    first = data[(data["method"] == "with") & (data["block"] == 1)].iloc[0]
    assert first["mean"] == pytest.approx(0.95)
    assert first["tail_share"] == 0.5
    for suffix in ("png", "svg"):
        assert (tmp_path / f"figures/{drawn.name}.{suffix}").stat().st_size > 5000


def test_a_run_that_left_no_table_is_named(tmp_path):
    made = material(tmp_path, figure("separation"))
    (tmp_path / "with0/blocks.csv").unlink()
    with pytest.raises(InputError, match=r"with0/blocks\.csv: missing or damaged"):
        draw_figures(made)


def predictions(folder, scores, labels, counts):
    with h5py.File(folder / "predictions.h5", "w") as file:
        file["predicted"] = scores.argmax(1)[None]
        file["confidence"] = scores.max(1)[None]
        file["labels"] = labels
        file["index"] = np.arange(len(labels))
        file["scores"] = scores[None]
        file.attrs["points"] = "[{}]"
        file.attrs["class_names"] = json.dumps([f"c{c}" for c in range(len(counts))])
        file.attrs["class_counts"] = json.dumps(counts)
        file.attrs["groups"] = "ranks"


def test_probing_is_the_share_of_samples_sent_right_times_the_accuracy_inside(tmp_path):
    made = material(tmp_path, {**figure("probing", tail_count=50), "methods": ["with"]})
    labels = np.array([0, 1, 2, 3])
    scores = np.array(
        # Right; right among head classes alone; right; wrong among tail classes too.
        [[0.9, 0.1, 0, 0], [0.1, 0.3, 0.6, 0], [0, 0.1, 0.7, 0.2], [0, 0, 0.8, 0.2]]
    )
    for seed in (0, 1):
        predictions(tmp_path / f"with{seed}", scores, labels, [500, 51, 50, 3])
    (drawn,) = draw_figures(made)
    data = pd.read_csv(tmp_path / f"figures/{drawn.name}.csv")
    assert data["plain"].unique().tolist() == [0.5]
    np.testing.assert_allclose(data["accuracy"], 0.75 * data["separation"])
    assert data["separation"].min() == 0.5
    assert data["separation"].max() == 1


def test_blocks_of_a_cascade_in_the_plane(tmp_path):
    drawn = {"kind": "cascade_tsne", "dataset": "d", "backbone": "b", "method": "with"}
    made = material(tmp_path, drawn)
    made.spec["features"].append({"dataset": "d", "backbone": "b", "seed": 0, "folder": "features"})
    (tmp_path / "features").mkdir()
    stream = np.random.default_rng(0)
    with h5py.File(tmp_path / "features/test.h5", "w") as file:
        file["features"] = stream.normal(size=(12, 4)).astype(np.float32)
        file["labels"] = np.arange(12) % 3
    block = [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0]
    routes = pd.DataFrame({"index": range(12), "block": block, "tail": [True, False] * 6})
    routes.to_csv(tmp_path / "with0/routes.csv", index=False)
    (found,) = draw_figures(made)
    data = pd.read_csv(tmp_path / f"figures/{found.name}.csv")
    assert data["block"].tolist() == block
    assert data[["x", "y"]].notna().all(axis=None)
    routes.head(5).to_csv(tmp_path / "with0/routes.csv", index=False)
    with pytest.raises(InputError, match="routes 5 samples"):
        draw_figures(made)


def test_confusion_of_neighbouring_classes_together_without_the_diagonal(tmp_path):
    settings = {"kind": "confusion", "dataset": "d", "method": "with", "at": {}}
    made = material(tmp_path, {**settings, "bins": 2, "diagonal": False})
    labels = np.array([0, 0, 1, 2, 2, 3])
    predicted = np.array([0, 1, 2, 2, 0, 1])
    for seed in (0, 1):
        predictions(tmp_path / f"with{seed}", np.eye(4)[predicted], labels, [1, 5, 9, 20])
    (drawn,) = draw_figures(made)
    data = pd.read_csv(tmp_path / f"figures/{drawn.name}.csv")
    # Ranks 1 and 2 are classes 3 and 2, ranks 3 and 4 are classes 1 and 0.
    assert data["true_class"].tolist() == ["1-2", "3-4"]
    np.testing.assert_allclose(data[["1-2", "3-4"]], [[0, 2 / 3], [1 / 3, 0]])
