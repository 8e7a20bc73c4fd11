"""Where the installed libraries disagree with each other, in one place."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from ltpipe.utils.errors import InputError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_fragments: list[object] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    The wheel on the public index is built against CUDA. Beside a CPU build of torch its
    operators are not registered and the plain import raises. Declaring the two schemas that
    its Python code refers to lets models, data sets and transforms work; calling one of the
    operators still raises. Where the plain import works, nothing is declared.

    Raises:
        InputError: torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise InputError("torchvision is not installed: pip install torchvision")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import sys

    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    if not _fragments:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        # The declarations last as long as the library object does.
        _fragments.append(library)
    return importlib.import_module("torchvision")


def import_open_clip() -> ModuleType:
    """Import open_clip, which imports torchvision and needs it as `import_torchvision` leaves it.

    Raises:
        InputError: it is not installed.
    """
    return _import_above_torchvision("open_clip", "open_clip_torch")


def import_timm() -> ModuleType:
    """Import timm, which imports torchvision and needs it as `import_torchvision` leaves it.

    Raises:
        InputError: it is not installed.
    """
    return _import_above_torchvision("timm", "timm")


def _import_above_torchvision(name: str, package: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{name} is not installed: pip install {package}")
    import_torchvision()
    return importlib.import_module(name)
