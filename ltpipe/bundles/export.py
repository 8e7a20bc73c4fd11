"""Make a bundle of a stage-two artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ltpipe.artifacts.manifest import versions
from ltpipe.artifacts.reading import Artifact
from ltpipe.bundles.artifacts import choose_point, open_result, plain, read_metrics, result_settings
from ltpipe.bundles.card import write_card
from ltpipe.bundles.format import (
    METHOD,
    load_tensors,
    new_bundle,
    read_description,
    save_tensors,
    write_description,
)
from ltpipe.bundles.graph import write_graph
from ltpipe.bundles.pipeline import Pipeline, logits_of
from ltpipe.bundles.preparing import input_rule
from ltpipe.config.backbones import backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.data.opening import dataset_settings
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.filters import read_threshold
from ltpipe.stage2.core.results import under
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256

# What of a store's attributes a method's logits may ask for.
_ATTRIBUTES = ("logit_scale", "subclasses", "classes", "head", "towers", "input")
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def export_bundle(
    folder: Path,
    output: Path,
    *,
    point: str | None = None,
    seed: int | None = None,
    force: bool = False,
    onnx: bool = False,
    label: str | None = None,
) -> dict[str, Any]:
    """Write a bundle of a stage-two artifact to `output`, whole or not at all; return bundle.json.

    Args:
        folder: results/stage2/DATASET/METHOD/DIGEST/seedN, or the folder of its seeds.
        point: which of a sweep's points, by number or as NAME=VALUE; of one point that one.
        seed: which seed, where `folder` has several.
        force: replace a bundle that is there.
        onnx: also write model.onnx and check it against this pipeline.
        label: what the experiment calls the method; its folder's name unless given.

    Raises:
        InputError: the artifact or what it was made from is missing, damaged or changed, the choice
            is ambiguous, `output` exists, or the method cannot predict, or not as one graph.
    """
    artifact = open_result(folder, seed)
    settings = result_settings(artifact)
    logits_of(settings.kind)
    place = choose_point(artifact, artifact.manifest["points"], point)
    features = artifact.inputs("features.")
    filters = artifact.inputs("filter.")
    with new_bundle(output, force=force) as bundle:
        tensors = {
            f"method.{name}": tensor[place]
            for name, tensor in load_tensors(artifact.file("models.safetensors")).items()
        }
        backbones, provenance, rules = {}, {"method": artifact.origin()}, []
        names: list[str] = []
        counts: list[int] = []
        for role, store in features.items():
            test = FeatureStore.open(store.file("test.h5"), skip=("logits",))
            names, counts = test.class_names, test.class_counts
            backbones[role], origins, rule = _backbone(bundle, role, store, test)
            provenance |= origins
            rules.append(rule)
            if test.text is not None:
                tensors[f"text.{role}"] = torch.from_numpy(test.text)
        thresholds = []
        for number in range(1, len(filters) + 1):
            filter_ = filters[str(number)]
            provenance[f"filter.{number}"] = filter_.origin()
            state = load_tensors(filter_.file("filter.safetensors"))
            tensors |= {f"filter{number}.{name}": tensor for name, tensor in state.items()}
            thresholds.append(read_threshold(filter_.file("filter.h5")))
        if any(rule != rules[0] for rule in rules):
            raise InputError(f"{artifact.folder}: its backbones see images in different ways")
        save_tensors(bundle / METHOD, tensors)
        values = {
            "label": label or artifact.folder.resolve().parts[-3],
            "method": artifact.spec["method"],
            "point": {"place": place, "parameters": artifact.manifest["points"][place]},
            "protocol": artifact.manifest["protocol"],
            "seed": artifact.spec["seed"],
            "facts": artifact.run_info(),
            "classes": {"names": names, "counts": counts},
            "input": rules[0],
            "backbones": backbones,
            # JSON has no infinity: a filter of one sample takes nothing out.
            "filters": [min(threshold, _LARGEST) for threshold in thresholds],
            "metrics": read_metrics(artifact, place),
            "dataset": artifact.spec.get("dataset") or _dataset(features),
            "onnx": None,
            "versions": versions(),
            "provenance": provenance,
        }
        write_description(bundle, values)
        if onnx:
            values["onnx"] = write_graph(bundle, values)
            write_description(bundle, values)
        # What was written loads: a bundle that does not is never left behind.
        Pipeline(bundle, read_description(bundle), torch.device("cpu"), exact=True)
        write_card(bundle, values)
    return read_description(output)


_LARGEST = torch.finfo(torch.float32).max


def _backbone(
    bundle: Path, role: str, store: Artifact, test: FeatureStore
) -> tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, Any] | None]:
    """Copy one role's backbone; return its entry, its origins, and how it sees images."""
    entry: dict[str, Any] = {
        "dimension": test.features.shape[1],
        "attributes": plain(
            {key: test.attributes[key] for key in _ATTRIBUTES if key in test.attributes}
        ),
        "settings": None,
    }
    origins = {f"features.{role}": store.origin()}
    if "backbone" not in store.spec:
        return entry, origins, None
    if test.attributes.get("train_bn"):
        raise InputError(
            f"{store.folder}: its features depend on the batch that an image comes in (train_bn); "
            "such a method can't be exported"
        )
    if "ensemble" in test.attributes:
        raise InputError(
            f"{store.folder}: its logits are means over five crops; export a method on a backbone "
            "without features.ensemble"
        )
    if "diverged" in test.attributes:
        raise InputError(f"{store.folder}: its backbone did not converge")
    trained = store.inputs("stage1")[""]
    origins[f"stage1.{role}"] = trained.origin()
    origins["data"] = store.inputs("data")[""].origin()
    weights = trained.file("model.safetensors")
    if file_sha256(weights) != test.attributes.get("checkpoint"):
        raise InputError(f"{store.folder} was made from other weights than {weights}; run it again")
    settings = backbone_settings({**store.spec["backbone"], "weights": None})
    state = load_tensors(weights)
    if settings.system == "vision-language":
        # Class texts are stored as what the text tower made of them.
        state = under(state, "visual")
    file = f"backbone.{role}.safetensors"
    save_tensors(bundle / file, state)
    entry |= {
        "file": file,
        "settings": settings.train_identity(),
        "outputs": _outputs(test, len(test.class_names)),
        "precision": _PRECISIONS[str(test.attributes["precision"])],
        "batch_size": int(test.attributes["batch_size"]),
    }
    seen = test.attributes.get("input")
    network = None if seen is None else NetworkInput.model_validate_json(str(seen))
    return entry, origins, input_rule(dataset_settings(store.spec["dataset"]), network)


def _outputs(test: FeatureStore, classes: int) -> int:
    if "subclasses" in test.attributes:
        return int(sum(test.attributes["subclasses"]))
    return len(test.attributes["classes"]) if "classes" in test.attributes else classes


def _dataset(features: dict[str, Artifact]) -> dict[str, Any]:
    return next(iter(features.values())).spec.get("dataset", {})
