"""The report of a real small experiment: complete, self-contained, escaped, repeatable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from ltpipe.config.figures import Confusion
from ltpipe.errors import InputError
from ltpipe.evaluation.report import write_report
from ltpipe.provenance import write_manifest
from ltpipe.stage2 import ffn, own_classifier
from tests.artifacts import CE, CPU, KPS, Job, draw, embed, train

EXPECTED = Path(__file__).resolve().parents[2] / "data/expected"
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Artifacts of CE and a swept FFN over two seeds, and the report's spec."""
    base = tmp_path_factory.mktemp("report")
    data = draw(base)
    spec = {
        "experiment": "small",
        "title": f"A title {EVIL}",
        "description": "What it is.",
        "seeds": [0, 1],
        "datasets": {
            "digits": {
                "label": f"digits {EVIL}",
                "folder": "data",
                "benchmark": None,
                "imbalance": 20.0,
                "groups": "ranks",
                "note": "",
            }
        },
        "results": [],
        "stage1": [],
        "features": [],
        "tables": {
            "main": {
                "title": "Main",
                "rows": [{"method": "CE"}, {"method": "FFN", "at": {"w1": 0.5}, "label": "FFN"}],
                "datasets": ["digits"],
                "metrics": ["accuracy", "many", "medium", "few", "ece"],
                "expected": None,
            },
            "all": {
                "title": "Beside it",
                "rows": [{"method": "CE"}],
                "datasets": ["digits"],
                "metrics": ["accuracy"],
                "expected": None,
            },
        },
        "table_order": ["main", "all"],
        "figures": [
            {"kind": "class_distribution", "dataset": "digits"},
            {
                "kind": "per_class_accuracy",
                "dataset": "digits",
                "methods": ["CE", "FFN"],
                "at": {"w1": 0.5},
            },
            {
                "kind": "sweep_curve",
                "dataset": "digits",
                "method": "FFN",
                "parameter": "w1",
                "metric": "accuracy",
                "expected": None,
                "paper_method": None,
            },
            {
                "kind": "tsne",
                "dataset": "digits",
                "backbones": ["ce", "kps"],
                "fused": {"ce": "ce", "kps": "kps", "w1": 0.5},
            },
            Confusion(kind="confusion", dataset="digits", method="FFN", at={"w1": 0.5}).model_dump(
                mode="json"
            ),
            {"kind": "training_curves", "dataset": "digits"},
        ],
    }

    def manifest(folder, artifact):
        write_manifest(
            folder,
            spec=artifact,
            code="0" * 10,
            modules={},
            inputs={},
            facts={"wall_s": 1.0, "device": "cpu"},
        )

    manifest(data, {"kind": "data"})
    for seed in (0, 1):
        stores = {}
        for name, backbone in (("ce", CE), ("kps", KPS)):
            stage1 = train(base / f"s1/{name}/{seed}", backbone, data, seed)
            store = embed(base / f"f/{name}/{seed}", backbone, stage1, data, seed)
            manifest(stage1, {"kind": "stage1", "backbone": backbone})
            manifest(store, {"kind": "features"})
            stores[name] = store
            row = {"dataset": "digits", "backbone": name, "seed": seed}
            spec["stage1"].append({**row, "folder": str(stage1.relative_to(base))})
            spec["features"].append({**row, "folder": str(store.relative_to(base))})
        for name, module, method, inputs in (
            ("CE", own_classifier, {"kind": "own-classifier"}, {"features": stores["ce"]}),
            ("FFN", ffn, {"kind": "ffn", "w1": [0.0, 0.5, 1.0], "epochs": 3}, stores),
        ):
            output = base / f"s2/{name}/{seed}"
            output.mkdir(parents=True)
            job_spec = {"kind": "stage2", "method": method, "groups": "ranks", "seed": seed}
            roles = {f"features.{role}": folder for role, folder in inputs.items()}
            module.run(Job(spec=job_spec, inputs=roles, output=output, device=CPU))
            manifest(output, job_spec)
            row = {"dataset": "digits", "method": name, "label": name, "kind": method["kind"]}
            spec["results"].append({**row, "seed": seed, "folder": str(output.relative_to(base))})
    return spec, base


def written(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_artifacts_give_the_same_bytes(experiment, tmp_path):
    spec, base = experiment
    text = write_report(spec, tmp_path / "a", EXPECTED, base)
    again = write_report(json.loads(json.dumps(spec)), tmp_path / "b", EXPECTED, base)
    assert text == again
    assert "FFN" in text and "mean ± sd over 2 seeds; protocol: last" in text
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert first == second
    for suffix in ("png", "svg", "csv"):
        assert (
            len([name for name in first if name.startswith("figures/") and name.endswith(suffix)])
            == 6
        )
    assert {"report.html", "index.csv", "tables/main.csv", "tables/main.md"} <= set(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_page_stands_alone_and_escapes_names(experiment, tmp_path):
    spec, base = experiment
    write_report(spec, tmp_path / "a", EXPECTED, base)
    page = (tmp_path / "a/report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "&lt;script&gt;" in page
    assert "ranks 1-3/4-7/8-10" in page


def test_tables_stand_in_the_order_of_the_experiment(experiment, tmp_path):
    spec, base = experiment
    write_report(spec, tmp_path / "out", EXPECTED, base)
    page = (tmp_path / "out/report.html").read_text()
    assert 0 < page.index(">Main<") < page.index(">Beside it<")


def test_numbers_are_those_of_the_artifacts(experiment, tmp_path):
    spec, base = experiment
    write_report(spec, tmp_path / "a", EXPECTED, base)
    table = pd.read_csv(tmp_path / "a/tables/main.csv")
    values = []
    for seed in (0, 1):
        metrics = pd.read_csv(base / f"s2/FFN/{seed}/metrics.csv")
        chosen = metrics[(metrics["metric"] == "few") & (metrics["point"] == 1)]
        values.append(chosen["value"].item())
    row = table[(table["label"] == "FFN") & (table["metric"] == "few")].iloc[0]
    assert row["mean"] == pytest.approx(sum(values) / 2)
    assert row["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_what_an_earlier_report_held_is_gone(experiment, tmp_path):
    spec, base = experiment
    write_report(spec, tmp_path / "a", EXPECTED, base)
    fewer = {**spec, "figures": spec["figures"][:1]}
    write_report(fewer, tmp_path / "a", EXPECTED, base)
    assert len(list((tmp_path / "a/figures").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.csv", None), ("metrics.csv", b"\x00\xff"), ("predictions.h5", b"x")],
)
def test_missing_and_damaged_artifacts_are_named(experiment, tmp_path, name, content):
    spec, base = experiment
    path = base / "s2/FFN/1" / name
    whole = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            write_report(spec, tmp_path / "a", EXPECTED, base)
    finally:
        path.write_bytes(whole)
    assert not (tmp_path / "a").exists()
