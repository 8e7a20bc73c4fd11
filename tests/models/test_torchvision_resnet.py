from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ltpipe.compat import import_torchvision
from ltpipe.config.backbones import Backbone
from ltpipe.models import torchvision_resnet
from ltpipe.models.building import build_network
from ltpipe.models.heads import CosineHead
from ltpipe.models.torchvision_resnet import resnet50
from ltpipe.training.optimizers import SGD
from ltpipe.utils.errors import InputError


@pytest.fixture(scope="module")
def official() -> Any:
    torch.manual_seed(1)
    return import_torchvision().models.resnet50(weights=None, num_classes=7).eval()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50", 25_028_904),
    ],
)
def test_published_parameter_count(name: str, published: int) -> None:
    with torch.device("meta"):
        network = getattr(torchvision_resnet, name)(1000)
    assert sum(p.numel() for p in network.parameters()) == published
    assert network.feature_dim == 2048


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "body."])
def test_weights_from_a_file(official: Any, tmp_path: Path, suffix: str, prefix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    classifier = "head." if prefix else "fc."
    state = {
        classifier + key.removeprefix("fc.") if key.startswith("fc.") else prefix + key: value
        for key, value in official.state_dict().items()
    }
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = resnet50(5, head="cosine", weights=path).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, logits = network.features(x), network(x)
        torch.testing.assert_close(official.fc(features), official(x))
        assert torch.equal(logits, network.head(features))
    assert logits.shape == (2, 5)
    assert isinstance(network.head, CosineHead)


def test_one_channel() -> None:
    with torch.device("meta"):
        assert resnet50(3, in_channels=1)(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


@pytest.fixture
def state(official: Any) -> dict[str, torch.Tensor]:
    return dict(official.state_dict())


def refused(state: object, path: Path, in_channels: int = 3) -> str:
    torch.save(state, path)
    with pytest.raises(InputError) as error:
        resnet50(5, in_channels=in_channels, weights=path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_weights_that_do_not_fit_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    assert "conv1.weight has shape (64, 3, 7, 7)" in refused(state, path, in_channels=1)
    assert "extra is unknown" in refused({**state, "extra": torch.zeros(1)}, path)
    del state["layer4.2.bn3.bias"]
    assert "layer4.2.bn3.bias is missing" in refused(state, path)
    assert "not a plain state dict" in refused({"epoch": 3, "state_dict": {}}, path)


class Hostile:
    """A pickle that runs code when it is loaded without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.witness,))


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    assert "more than tensors" in refused(Hostile(witness), tmp_path / "weights.pth")
    assert not witness.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not a weights file", b"\x80\x02X\x01\x00\x00\x00\xff."])
def test_damaged_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        resnet50(5, weights=path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        resnet50(5, weights=tmp_path / "none.pth")


@pytest.fixture
def requests(official: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What torch hub is asked for; it answers with the official network's state."""
    asked = []

    def load(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((url, options))
        return dict(official.state_dict())

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    return asked


@pytest.mark.parametrize(
    ("name", "file"),
    [("IMAGENET1K_V1", "resnet50-0676ba61.pth"), ("IMAGENET1K_V2", "resnet50-11ad3fa6.pth")],
)
def test_weights_by_the_name_under_which_torchvision_publishes_them(
    official: Any,
    requests: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    file: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Backbone.model_validate(
        {"network": "resnet50", "weights": name, "loss": {"name": "ce"}}
    )
    network = build_network(settings, 5, 3)
    ((url, options),) = requests
    assert url == f"https://download.pytorch.org/models/{file}"
    assert options["weights_only"] is True
    assert options["check_hash"] is True
    state = official.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.body.state_dict().items())
    assert network.head.weight.shape == (5, 2048)


def test_names_are_those_of_the_network(requests: list[Any]) -> None:
    with pytest.raises(InputError, match="belong to another network"):
        torchvision_resnet.resnet101(5, weights="IMAGENET1K_V2")
    assert [url for url, _ in requests] == [
        "https://download.pytorch.org/models/resnet101-cd907fc2.pth"
    ]


@pytest.mark.parametrize("name", ["IMAGENET1K_V3", "imagenet1k_v1", "DEFAULT"])
def test_a_name_that_torchvision_does_not_list_is_a_file(requests: list[Any], name: str) -> None:
    with pytest.raises(InputError, match=f"weights file {name} does not exist"):
        resnet50(5, weights=name)
    assert not requests


def test_a_file_of_that_name_comes_first(
    official: Any, requests: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(official.state_dict(), "IMAGENET1K_V1")
    resnet50(5, weights="IMAGENET1K_V1")
    assert not requests


def publish(monkeypatch: pytest.MonkeyPatch, cache: Path, url: str) -> None:
    """Let torchvision publish weights HERE at `url`, and torch hub keep them in `cache`."""
    models = import_torchvision().models
    entries = [SimpleNamespace(name="HERE", url=url)]
    monkeypatch.setattr(models, "get_model_weights", lambda network: entries)
    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


def test_weights_are_fetched_once_and_checked(
    official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(official.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    good = path.rename(tmp_path / f"weights-{digest}.pth")
    publish(monkeypatch, tmp_path / "cache", good.as_uri())
    first = resnet50(5, weights="HERE")
    wanted = official.state_dict()["conv1.weight"]
    assert torch.equal(first.body.conv1.weight, wanted)
    wrong = good.rename(tmp_path / "weights-00000000.pth")
    # The source is gone: these come from the cache.
    assert torch.equal(resnet50(5, weights="HERE").body.conv1.weight, wanted)
    publish(monkeypatch, tmp_path / "cache", wrong.as_uri())
    with pytest.raises(InputError, match="cannot be fetched"):
        resnet50(5, weights="HERE")


def test_weights_that_cannot_be_fetched_are_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "weights-01234567.pth").as_uri()
    publish(monkeypatch, tmp_path / "cache", url)
    with pytest.raises(InputError) as error:
        resnet50(5, weights="HERE")
    message = str(error.value)
    assert "resnet50 HERE" in message
    assert f"download {url} and name the file as weights: PATH" in message
    assert "\n" not in message


def test_the_last_stage_alone_is_trained() -> None:
    torch.manual_seed(0)
    settings = Backbone.model_validate(
        {"network": "resnet50", "trained": "last-stage", "loss": {"name": "ce"}}
    )
    network = build_network(settings, 3, 1).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # In training mode again, as at the start of every epoch.
    network.eval().train()
    optimizer = SGD(network.parameters(), momentum=0.9, weight_decay=0.01)
    torch.nn.functional.cross_entropy(
        network(torch.randn(4, 1, 32, 32)), torch.tensor([0, 1, 2, 1])
    ).backward()
    optimizer.step(0.1)
    after = network.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if name.startswith(("body.layer4.", "head."))}
    assert "body.layer4.0.bn1.running_mean" in moved


def test_a_linear_head_starts_as_torchs_own_does() -> None:
    """Uniform within 1 / sqrt(D), where Kaiming-normal has no bound and 2.4 times the spread."""
    torch.manual_seed(0)
    head = resnet50(200).head
    bound = 2048**-0.5
    assert head.weight.abs().max().item() <= bound
    assert head.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert isinstance(resnet50(20, head="cosine").head, CosineHead)
