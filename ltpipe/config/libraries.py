"""Which networks timm, torchvision and open_clip have, read from their source: planning imports no
torch, and these libraries do.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ltpipe.utils.errors import InputError, nearest

# Modules, and what pip calls them.
LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "open_clip": "open_clip_torch"}
_TIMM = re.compile(r"@register_model\s*def (\w+)\(")
_TORCHVISION = re.compile(r"^class (\w+)_Weights\(WeightsEnum\):(.*?)(?=^\S)", re.M | re.S)
_PUBLISHED = re.compile(r"^ +(\w+) = Weights\((?:\s*#.*)*\s*url=\"([^\"]+)\"", re.M)


@dataclass(frozen=True)
class NetworkName:
    """LIBRARY:MODEL or LIBRARY:MODEL.TAG; a tag names one of the model's published weights."""

    library: str
    model: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.library}:{self.model}" + (f".{self.tag}" if self.tag else "")


def parse_network(text: str) -> NetworkName:
    """Return the parts of a network's name, such as timm:resnet50.a1_in1k.

    Raises:
        InputError: there is no such library or model.
    """
    library, colon, rest = text.partition(":")
    if not colon or library not in LIBRARIES:
        raise InputError(
            f"unknown network {text!r}: a pretrained one is LIBRARY:MODEL or LIBRARY:MODEL.TAG, "
            f"the library one of {', '.join(LIBRARIES)}"
        )
    model, _, tag = rest.partition(".")
    known = models(library)
    if model not in known:
        raise InputError(f"{library} has no network {model!r}{nearest(model, known)}")
    if library == "torchvision" and tag and tag not in torchvision_weights()[model]:
        tags = torchvision_weights()[model]
        raise InputError(
            f"torchvision has no weights {tag!r} of {model}{nearest(tag, tags)}; known: "
            f"{', '.join(tags)}"
        )
    return NetworkName(library, model, tag)


@functools.cache
def models(library: str) -> frozenset[str]:
    """Return the names of a library's image classifiers, or of open_clip's pairs of towers.

    Raises:
        InputError: the library is not installed.
    """
    if library == "torchvision":
        return frozenset(torchvision_weights())
    folder = _folder(library)
    if library == "open_clip":
        return frozenset(path.stem for path in (folder / "model_configs").glob("*.json"))
    sources = (folder / "models").glob("*.py")
    return frozenset(name for path in sources for name in _TIMM.findall(_text(path)))


@functools.cache
def torchvision_weights() -> Mapping[str, Mapping[str, str]]:
    """Return the tags of torchvision's classifiers, and where the weights of each are published."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((_folder("torchvision") / "models").glob("*.py")):
        for name, body in _TORCHVISION.findall(_text(path)):
            found[name.lower()] = dict(_PUBLISHED.findall(body))
    return found


def _folder(library: str) -> Path:
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise InputError(f"{library} is not installed: pip install {LIBRARIES[library]}")
    return Path(spec.origin).parent


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
