from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ltpipe.compat import import_torchvision
from ltpipe.errors import InputError
from ltpipe.models import torchvision_resnet
from ltpipe.models.heads import CosineHead
from ltpipe.models.torchvision_resnet import resnet50


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
    assert "unknown key extra" in refused({**state, "extra": torch.zeros(1)}, path)
    del state["layer4.2.bn3.bias"]
    assert "lacks layer4.2.bn3.bias" in refused(state, path)
    assert "not a plain state dict" in refused({"epoch": 3, "state_dict": {}}, path)


class Hostile:
    """A pickle that runs code when it is loaded without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.witness,))


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    assert "cannot be read" in refused(Hostile(witness), tmp_path / "weights.pth")
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
