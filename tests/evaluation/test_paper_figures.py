"""Figures that put a paper's claims beside ours: heat maps of a data set, the rarest classes."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from ltpipe.artifacts.manifest import write_manifest
from ltpipe.config.backbones import Backbone
from ltpipe.config.figures import ActivationMaps, TailAccuracy
from ltpipe.data.loading import open_split
from ltpipe.data.subset import read_subset
from ltpipe.evaluation.figures import Material, draw_figures
from ltpipe.models.building import build_network, load_weights
from ltpipe.models.cam import class_activation_maps
from ltpipe.utils.errors import InputError
from tests.evaluation.test_tables import EXPECTED
from tests.support import CE, CPU, DIGITS, draw, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("maps")
    data = draw(base)
    for seed in (1, 0):
        folder = train(base / f"CE{seed}", CE, data, seed)
        spec = {"kind": "stage1", "dataset": DIGITS, "backbone": CE, "seed": seed}
        write_manifest(folder, spec=spec, modules={}, inputs={"data": data}, run_info={})
    return base


def drawn(base, output, **settings):
    values = {"kind": "activation_maps", "dataset": "d", "backbones": ["CE"], **settings}
    figure = ActivationMaps.model_validate(values).model_dump(mode="json")
    stage1 = [
        {"dataset": "d", "backbone": "CE", "seed": seed, "folder": f"CE{seed}"} for seed in (1, 0)
    ]
    spec = {"datasets": {"d": {"label": "digits"}}, "stage1": stage1, "figures": [figure]}
    (made,) = draw_figures(Material(spec, pd.DataFrame(), base, output, output))
    return made, pd.read_csv(output / f"{made.name}.csv", dtype={"class": str})


def test_heat_maps_are_of_test_images_of_tail_classes_under_the_first_seed(trained, tmp_path):
    """Each map's concentration, from a network loaded and run here."""
    made, data = drawn(trained, tmp_path, method="cam", untrained=True, channels=2, images=2)
    assert made.name == "activation-cam-d"
    assert data["map"].tolist() == [
        name for _ in range(2) for name in ("cam", "untrained", *data["map"][2:4])
    ]
    subset = read_subset(trained / "data/subset.h5")
    # The six smallest of ten classes are tail; the largest of these come first.
    assert data["class"].unique().tolist() == ["4", "5"]
    network = build_network(Backbone.model_validate(CE), 10, 1).eval()
    load_weights(network, trained / "CE0/model.safetensors")
    split = open_split(DIGITS, subset, "test", CPU, None)
    for label, sample in data.drop_duplicates("class")[["class", "sample"]].to_numpy():
        place = int(np.flatnonzero(subset.test_index == sample)[0])
        assert subset.test_labels[place] == int(label)
        image = next(split.batches.epoch(torch.tensor([place]), 1, None))
        heat = class_activation_maps(
            network, (image.float() / 255 - 0.3) / 0.4, torch.tensor([int(label)])
        )
        values = np.sort(heat.clamp_min(0).flatten().numpy())[::-1]
        expected = values[: max(1, len(values) // 10)].sum() / values.sum()
        shown = data[(data["class"] == label) & (data["map"] == "cam")]["share_on_hottest_tenth"]
        assert shown.item() == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "activation-cam-d.png").stat().st_size > 5000


def test_a_backbone_that_nobody_trained_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="no run trains AM on d"):
        drawn(trained, tmp_path, backbones=["AM"])


def test_differences_on_the_rarest_classes_stand_beside_the_papers(tmp_path):
    """Two methods, by a count of right answers on the 4, 8, ... rarest of 20 classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, 400)
    counts = list(range(400, 0, -20))
    hits = {}
    for name in ("BM", "AM"):
        right = rng.random(400) < 0.6
        hits[name] = right
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "predictions.h5", "w") as file:
            file["predicted"] = np.where(right, labels, (labels + 1) % 20)[None]
            file["labels"] = labels
            file["index"] = np.arange(400)
            file["confidence"] = np.ones((1, 400), np.float32)
            file.attrs["points"] = "[{}]"
            file.attrs["class_names"] = json.dumps([str(i) for i in range(20)])
            file.attrs["class_counts"] = json.dumps(counts)
            file.attrs["groups"] = "ranks"
    figure = TailAccuracy(
        kind="tail_accuracy",
        dataset="voc",
        methods=["BM", "AM"],
        sizes=[4, 8, 20],
        expected={"paper": "hrjba", "table": "Fig7-text"},
        paper_method="AM minus BM alpha={size}",
    ).model_dump(mode="json")
    results = [
        {"dataset": "voc", "method": m, "label": m, "seed": 0, "folder": m} for m in ("BM", "AM")
    ]
    described = {"label": "VOC-LT", "benchmark": "VOC-LT", "imbalance": None}
    spec = {"datasets": {"voc": described}, "results": results, "figures": [figure]}
    material = Material(spec, pd.DataFrame(), tmp_path, tmp_path / "figures", EXPECTED)
    (made,) = draw_figures(material)
    assert "points by which" in made.caption
    # Text in the picture is drawn as curves: what was written is asked of the function behind it.
    from ltpipe.evaluation.figures.accuracy import _published_differences

    data = pd.read_csv(tmp_path / "figures/tail-accuracy-voc.csv")
    found = _published_differences(material, figure, data)
    # The text names no number for the four rarest.
    assert sorted(found) == [8, 20]
    for size, paper in ((8, 2.01), (20, 2.03)):
        rare = labels >= 20 - size
        ours = 100 * (hits["AM"][rare].mean() - hits["BM"][rare].mean())
        assert found[size] == (pytest.approx(ours), paper)
