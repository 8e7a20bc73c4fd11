"""What `ltpipe fetch` downloads, what it leaves alone, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ltpipe.cli import program as cli
from ltpipe.data.readers import cifar
from ltpipe.models import vision_language
from ltpipe.utils.errors import InputError

CATALOGUE = Path(__file__).resolve().parents[2] / "config"


@pytest.fixture
def fetch(tmp_path, monkeypatch, capsys):
    """Run `ltpipe fetch` on data sets and one backbone; return its status and output."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)

    def fetch(*datasets, backbone="resnet8-ce", method="backbone-head"):
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        values = {
            "experiment": "x",
            "data": {"root": str(root)},
            "datasets": dict.fromkeys(datasets),
            "methods": {"m": {"use": method, "backbones": {"features": backbone}}},
        }
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump(values))
        status = cli.main(["fetch", str(path), "--catalogue", str(CATALOGUE)])
        return status, capsys.readouterr().out

    return fetch


def test_where_all_is_there_nothing_is_done(fetch):
    assert fetch("digits-lt") == (0, "all is there\n")


def test_what_cannot_be_downloaded_is_listed(fetch):
    status, text = fetch("digits-lt", "tiny-imagenet-lt", "places-lt")
    assert status == 1
    assert text.count("\n- ") + text.startswith("- ") == 2
    assert "tiny-imagenet-200 does not exist" in text
    assert "places365 does not exist" in text


def test_data_sets_are_downloaded_to_the_data_root(fetch, monkeypatch):
    asked = []

    def download(remote, root, folder):
        asked.append((remote.url, root.name, folder))
        raise InputError("no network: put it there")

    monkeypatch.setattr(cifar, "fetch_folder", download)
    status, text = fetch("cifar100-lt")
    assert asked == [
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "root",
            "cifar-100-binary",
        )
    ]
    assert (status, text) == (1, "- no network: put it there\nnot all is there; see above\n")


def test_weights_are_downloaded_by_building_the_network(fetch, monkeypatch):
    built = []
    monkeypatch.setattr(vision_language, "build_towers", built.append)
    status, _ = fetch("digits-lt", backbone="clip-rn50-zero-shot", method="zero-shot")
    assert status == 0
    assert [settings.network for settings in built] == ["RN50-quickgelu"]
