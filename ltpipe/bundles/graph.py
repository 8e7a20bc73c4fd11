"""A bundle as one ONNX graph: from uint8 images, or features, to probabilities."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.bundles.format import GRAPH, read_description
from ltpipe.bundles.pipeline import Pipeline
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path
from ltpipe.utils.seeding import generator

OPSET = 18
# Above this, the graph is not what it was made of.
TOLERANCE = 1e-3
_TRACED, _CHECKED = 4, (1, 3, 16)


def write_graph(bundle: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write model.onnx of a bundle and check it with onnxruntime; return what bundle.json says.

    The graph computes in float32, and its batch size is free. Probabilities of random images in
    batches of 1, 3 and 16 are compared with those of the bundle itself.

    Raises:
        InputError: onnx is not installed, the method has no such graph, or it gives others numbers.
    """
    runtime = _require("onnxruntime")
    for name in ("onnx", "onnxscript"):
        _require(name)
    pipeline = Pipeline(bundle, read_description(bundle), torch.device("cpu"), exact=True)
    kind = values["method"]["kind"]
    names = _input_names(pipeline, values)
    path = bundle / GRAPH
    traced = _samples(pipeline, values, _TRACED)
    try:
        with atomic_path(path) as temporary, _quiet():
            torch.onnx.export(
                pipeline,
                traced,
                temporary,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=["probabilities"],
                dynamic_shapes={"inputs": tuple({0: torch.export.Dim.DYNAMIC} for _ in traced)},
                external_data=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"method {kind} can't be written as an ONNX graph: {type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}; export without --onnx"
        ) from None
    found = _difference(runtime, path, pipeline, values, names)
    if not found <= TOLERANCE:
        raise InputError(
            f"method {kind}: the ONNX graph's probabilities differ by {found:.1e} from the "
            "bundle's; export without --onnx"
        )
    return {
        "file": GRAPH,
        "opset": OPSET,
        "inputs": names,
        "outputs": ["probabilities"],
        "max_difference": found,
        "checked_batches": list(_CHECKED),
        "versions": {name: _require(name).__version__ for name in ("onnx", "onnxruntime")},
    }


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"--onnx needs {name}: pip install onnx onnxruntime onnxscript") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back that the exporter prints its stages and warns of what it does itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _input_names(pipeline: Pipeline, values: Mapping[str, Any]) -> list[str]:
    if values["input"] is not None:
        return ["images"]
    return [f"features.{role}" for role in pipeline.roles]


def _samples(pipeline: Pipeline, values: Mapping[str, Any], number: int) -> tuple[Tensor, ...]:
    """Return random inputs, the same each time."""
    draws = generator(0, "onnx", number)
    rule = values["input"]
    if rule is None:
        sizes = [(number, dimension) for dimension in pipeline.dimensions.values()]
        return tuple(torch.randn(size, generator=draws) for size in sizes)
    shape = (number, rule["channels"], *rule["size"])
    return (torch.randint(256, shape, generator=draws, dtype=torch.uint8),)


@torch.inference_mode()
def _difference(
    runtime: ModuleType,
    path: Path,
    pipeline: Pipeline,
    values: Mapping[str, Any],
    names: list[str],
) -> float:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for number in _CHECKED:
        inputs = _samples(pipeline, values, number)
        expected = pipeline(*inputs).numpy()
        fed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        (found,) = session.run(None, fed)
        if found.shape != expected.shape:
            return float("inf")
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst
