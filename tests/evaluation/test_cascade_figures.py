"""Figures of a cascade, from the tables that its runs leave."""

from __future__ import annotations

import pandas as pd
import pytest

from ltpipe.errors import InputError
from ltpipe.evaluation.figures import Material, draw_figures

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
