"""The report of a real small experiment: complete, self-contained, escaped, repeatable."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from ltpipe.artifacts.manifest import write_manifest
from ltpipe.config.base import canonical_json
from ltpipe.config.figures import ActivationMaps, Confusion, Reliability
from ltpipe.config.registry import find
from ltpipe.evaluation.artifacts import STEPS, draw_graph, group_artifacts, read_artifacts
from ltpipe.evaluation.report import write_report
from ltpipe.stage2.core.results import read_predictions
from ltpipe.stage2.ffn import job as ffn
from ltpipe.stage2.simple import backbone_head
from ltpipe.utils.errors import InputError
from tests.support import CE, CPU, DIGITS, KPS, Job, draw, embed, train

EXPECTED = Path(__file__).resolve().parents[2] / "data/expected"
# In one worker: writing a report takes longer than reading it.
pytestmark = pytest.mark.xdist_group("report")
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
            # Before main by name, after it in the file.
            "alone": {
                "title": "One alone",
                "rows": [{"method": "CE"}],
                "datasets": ["digits"],
                "metrics": ["accuracy"],
                "expected": None,
            },
        },
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
            Reliability(
                kind="reliability", dataset="digits", methods=["CE", "FFN"], at={"w1": 0.5}
            ).model_dump(mode="json"),
            {"kind": "training_curves", "dataset": "digits"},
        ],
        "missing": [],
        "kinds": {
            kind: {"summary": find("method", kind).summary, "paper": find("method", kind).paper}
            for kind in ("backbone-head", "ffn")
        },
        "table_order": ["main", "alone"],
        "dataset_order": ["digits"],
    }

    def manifest(folder, artifact, **inputs):
        # Manifests name folders as seen from where the jobs run.
        with chdir(base):
            write_manifest(
                folder,
                spec={"code": "0" * 10, **artifact},
                modules={},
                inputs={role: needed.relative_to(base) for role, needed in inputs.items()},
                run_info={"wall_s": 1.0, "device": "cpu"},
            )

    manifest(data, {"kind": "data"})
    for seed in (0, 1):
        stores = {}
        for name, backbone in (("ce", CE), ("kps", KPS)):
            stage1 = train(base / f"s1/{name}/{seed}", backbone, data, seed)
            store = embed(base / f"f/{name}/{seed}", backbone, stage1, data, seed)
            trained = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": seed}
            manifest(stage1, trained, data=data)
            manifest(store, {"kind": "features", "seed": seed}, stage1=stage1, data=data)
            stores[name] = store
            row = {"dataset": "digits", "backbone": name, "seed": seed}
            spec["stage1"].append({**row, "folder": str(stage1.relative_to(base))})
            spec["features"].append({**row, "folder": str(store.relative_to(base))})
        for name, module, method, inputs in (
            ("CE", backbone_head, {"kind": "backbone-head"}, {"features": stores["ce"]}),
            ("FFN", ffn, {"kind": "ffn", "w1": [0.0, 0.5, 1.0], "epochs": 3}, stores),
        ):
            output = base / f"s2/{name}/{seed}"
            output.mkdir(parents=True)
            job_spec = {"kind": "stage2", "method": method, "groups": "ranks", "seed": seed}
            roles = {f"features.{role}": folder for role, folder in inputs.items()}
            module.run(Job(spec=job_spec, inputs=roles, output=output, device=CPU))
            manifest(output, job_spec, **{role.replace(".", "_"): f for role, f in roles.items()})
            row = {"dataset": "digits", "method": name, "label": name, "kind": method["kind"]}
            spec["results"].append({**row, "seed": seed, "folder": str(output.relative_to(base))})
    return spec, base


@pytest.fixture(scope="module")
def report(experiment, tmp_path_factory):
    """The written report, and what writing it returned; tests only read it."""
    spec, base = experiment
    folder = tmp_path_factory.mktemp("written") / "a"
    return folder, write_report(spec, folder, EXPECTED, base)


def written(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.heavy
def test_the_same_artifacts_give_the_same_bytes(experiment, report, tmp_path):
    spec, base = experiment
    folder, text = report
    again = write_report(json.loads(json.dumps(spec)), tmp_path / "b", EXPECTED, base)
    assert text == again
    assert "FFN" in text and "mean ± sd over 2 seeds; protocol: last" in text
    first, second = written(folder), written(tmp_path / "b")
    assert first == second
    for suffix in ("png", "svg", "csv"):
        assert (
            len([name for name in first if name.startswith("figures/") and name.endswith(suffix)])
            == 7
        )
    assert {"report.html", "index.csv", "tables/main.csv", "tables/main.md"} <= set(first)
    for place in (folder.parent, tmp_path):
        assert len(list(place.iterdir())) == 1


def test_the_page_stands_alone_and_escapes_names(report):
    folder, _ = report
    page = (folder / "report.html").read_text()
    assert "http:" not in page and "https:" not in page
    assert not re.findall(r"src=\"(?!data:)", page)
    assert "@import" not in page and "url(" not in page
    assert page.count("<script>") == 1 and "<script src" not in page
    assert EVIL not in page and "&lt;script&gt;" in page
    assert "ranks 1-3/4-7/8-10" in page


def test_links_lead_somewhere(report):
    folder, _ = report
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    anchors = re.findall(r'id="([^"]+)"', page)
    assert len(set(anchors)) == len(anchors)
    assert {link[1:] for link in links if link.startswith("#")} <= set(anchors)
    files = [link for link in links if not link.startswith("#")]
    assert all((folder / unquote(link)).is_file() for link in files)
    for figure in (folder / "figures").glob("*.svg"):
        assert {f"figures/{figure.stem}.{suffix}" for suffix in ("svg", "png", "csv")} <= set(files)


def test_tables_of_classes_groups_and_data_sets_and_heat_maps_stand_in_a_report(
    experiment, tmp_path
):
    spec, base = experiment
    shared = {"datasets": ["digits"], "expected": None}
    rows = [{"method": "CE"}, {"method": "FFN", "at": {"w1": 0.5}, "label": "FFN"}]
    tables = {
        "facts": {"kind": "datasets", "title": "Facts", "rows": [], "metrics": ["train_images"]},
        "classes": {"title": "By class", "rows": rows, "metrics": ["class_accuracy"]},
        "groups": {"title": "By group", "rows": rows, "metrics": ["rank_error"], "ranks": [4, 6]},
    }
    tables = {name: {"ranked_by": "train", **shared, **table} for name, table in tables.items()}
    values = {"kind": "activation_maps", "dataset": "digits", "backbones": ["ce"], "images": 2}
    figures = [ActivationMaps.model_validate(values).model_dump(mode="json")]
    whole = {**spec, "tables": tables, "table_order": list(tables), "figures": figures}
    # Manifests name their inputs as seen from where the report is written.
    with chdir(base):
        write_report(whole, tmp_path / "a", EXPECTED, base)
    facts = pd.read_csv(tmp_path / "a/tables/facts.csv")
    assert facts["mean"].tolist() == [131]
    classes = (tmp_path / "a/tables/classes.md").read_text()
    assert [line.split("|")[1].strip() for line in classes.splitlines()[4:14]] == list("0123456789")
    groups = pd.read_csv(tmp_path / "a/tables/groups.csv")
    assert groups["metric"].unique().tolist() == ["rank_error:1-4", "rank_error:5-10"]
    # 50 test digits a class: the two groups make up the whole.
    whole_error = groups.groupby("label")["mean"].apply(lambda m: 0.4 * m.iloc[0] + 0.6 * m.iloc[1])
    accuracy = pd.read_csv(base / "s2/CE/0/metrics.csv").query("metric == 'accuracy'")["value"]
    other = pd.read_csv(base / "s2/CE/1/metrics.csv").query("metric == 'accuracy'")["value"]
    assert whole_error["CE"] == pytest.approx(1 - (accuracy.item() + other.item()) / 2)
    page = (tmp_path / "a/report.html").read_text()
    for text in ("Facts", "classes 5-10", "Classes by rank of training images", "Where networks"):
        assert text in page


def test_tables_stand_in_the_order_of_the_experiment_file(experiment, tmp_path):
    spec, base = experiment
    as_planned = json.loads(canonical_json({**spec, "figures": []}))
    assert list(as_planned["tables"]) == ["alone", "main"]
    text = write_report(as_planned, tmp_path / "a", EXPECTED, base)
    assert text.index("Main") < text.index("One alone")
    page = (tmp_path / "a/report.html").read_text()
    assert page.index('id="table-main"') < page.index('id="table-alone"')


def test_each_system_has_a_section_with_its_figures(report):
    folder, _ = report
    page = (folder / "report.html").read_text()
    parts = dict(re.findall(r'<h2 id="([a-z]+)">(.*?)(?=<h2 |</main>)', page, re.DOTALL))
    names = {
        key: set(re.findall(r'<figure id="figure-([^"]+)"', part)) for key, part in parts.items()
    }
    assert "sweep-ffn-digits" in names["ffn"] and "confusion-ffn-digits" in names["ffn"]
    assert names["calibration"] == {"reliability-ce-ffn-digits"}
    assert names["backbones"] == {"class-distribution-digits", "training-digits"}
    assert "backbone-head" in parts["baselines"] and "epochs: 3" in parts["ffn"]


def test_the_graph_shows_what_was_made_from_what(experiment):
    spec, base = experiment
    artifacts = read_artifacts(spec, base)
    kinds = [artifact.kind for artifact in artifacts.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "data": 1,
        "stage1": 4,
        "features": 4,
        "stage2": 4,
    }
    assert kinds == sorted(kinds, key=list(STEPS).index)
    drawing = draw_graph(group_artifacts(artifacts.values()))
    # data -> 2 backbones -> 2 stores (data, too) -> CE from one, FFN from both
    assert (len(drawing.boxes), len(drawing.edges)) == (7, 2 + 2 + 2 + 3)
    assert {box.second for box in drawing.boxes if box.first == "FFN"} == {"digits · 2 jobs"}


def test_a_graph_of_a_thousand_jobs_stays_small(experiment):
    spec, base = experiment
    (example,) = [a for a in read_artifacts(spec, base).values() if a.kind == "data"]
    many = [
        replace(
            example, kind="stage2", name=f"{'a-method-with-a-long-name-'}{n // 5}", folder=f"f{n}"
        )
        for n in range(1000)
    ]
    drawing = draw_graph(group_artifacts([example, *many]))
    assert drawing.height < 600 and len(drawing.boxes) < 12
    assert drawing.boxes[-1].first == "and 192 more" and drawing.boxes[-1].second == "960 jobs"
    assert max(len(box.first) for box in drawing.boxes) <= 25


def test_reliability_is_that_of_plain_loops(experiment, report):
    _, base = experiment
    folder, _ = report
    table = pd.read_csv(folder / "figures/reliability-ce-ffn-digits.csv")
    pairs = []
    for seed in (0, 1):
        found = read_predictions(base / f"s2/FFN/{seed}")
        for n in range(len(found.labels)):
            pairs.append((float(found.confidence[1][n]), found.predicted[1][n] == found.labels[n]))
    rows = table[table["method"] == "FFN"]
    assert len(rows) == 15
    for _, row in rows.iterrows():
        inside = [right for c, right in pairs if row["above"] < c <= row["up_to"]]
        assert row["share"] == pytest.approx(len(inside) / len(pairs))
        if inside:
            assert row["accuracy"] == pytest.approx(sum(inside) / len(inside))


def test_numbers_are_those_of_the_artifacts(experiment, report):
    _, base = experiment
    folder, _ = report
    table = pd.read_csv(folder / "tables/main.csv")
    values = []
    for seed in (0, 1):
        metrics = pd.read_csv(base / f"s2/FFN/{seed}/metrics.csv")
        chosen = metrics[(metrics["metric"] == "few") & (metrics["point"] == 1)]
        values.append(chosen["value"].item())
    row = table[(table["label"] == "FFN") & (table["metric"] == "few")].iloc[0]
    assert row["mean"] == pytest.approx(sum(values) / 2)
    assert row["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_what_an_earlier_report_held_is_gone(experiment, report, tmp_path):
    spec, base = experiment
    shutil.copytree(report[0], tmp_path / "a")
    fewer = {**spec, "figures": spec["figures"][:1]}
    write_report(fewer, tmp_path / "a", EXPECTED, base)
    assert len(list((tmp_path / "a/figures").iterdir())) == 3


def test_the_page_lists_what_was_left_out(experiment, tmp_path):
    spec, base = experiment
    short = {**spec, "figures": []}
    write_report(short, tmp_path / "a", EXPECTED, base)
    assert "Not there" not in (tmp_path / "a/report.html").read_text()
    entry = {
        "why": "put <it> there; `ltpipe fetch <F>` helps",
        "names": ["Photos"],
        "tables": ["x/photos"],
    }
    write_report({**short, "missing": [entry]}, tmp_path / "b", EXPECTED, base)
    page = (tmp_path / "b/report.html").read_text()
    assert "Not there" in page
    assert (
        "<td>Photos</td><td>put &lt;it&gt; there; <code>ltpipe fetch &lt;F&gt;</code> helps</td>"
        in page
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.csv", None), ("metrics.csv", b"\x00\xff"), ("predictions.h5", b"x")],
)
def test_missing_and_damaged_artifacts_are_named(experiment, tmp_path, name, content):
    spec, base = experiment
    path = base / "s2/FFN/1" / name
    last = [figure for figure in spec["figures"] if figure["kind"] == "reliability"]
    whole = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            write_report({**spec, "figures": last}, tmp_path / "a", EXPECTED, base)
    finally:
        path.write_bytes(whole)
    assert not (tmp_path / "a").exists()
