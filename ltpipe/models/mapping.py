"""CWS's label mapping, from P subclass scores to C classes: a perceptron, or a sum.

CWS calls it a three-layer perceptron that adds two parameters: an input, a hidden and an output
layer, so two weights. Parameters are plain tensors with M models along the first axis: weight1
(M, H, P), bias1 (M, H), weight2 (M, C, H), and bias2 (M, C), which a cosine output has not.

splitting.safetensors holds what stage one knows about its subclasses.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path

FILE = "splitting.safetensors"
INPUTS = ("logits", "softmax", "log-softmax")


def mapping_input(logits: Tensor, kind: str) -> Tensor:
    """Return what the perceptron sees of subclass logits (..., P), in their shape."""
    if kind == "softmax":
        return torch.softmax(logits, dim=-1)
    return torch.log_softmax(logits, dim=-1) if kind == "log-softmax" else logits


def fresh_mapping(
    subclasses: int, classes: int, hidden: int, head: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return one model's parameters, without the axis of models.

    Weights and biases start uniform within 1 / sqrt(inputs), as torch's linear layers do.

    Args:
        head: `linear`, or `cosine` for losses on cosines.
    """

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * inputs**-0.5

    parameters = {
        "weight1": uniform(hidden, subclasses, inputs=subclasses),
        "bias1": uniform(hidden, inputs=subclasses),
        "weight2": uniform(classes, hidden, inputs=hidden),
    }
    if head == "linear":
        parameters["bias2"] = uniform(classes, inputs=hidden)
    return parameters


def map_scores(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Return outputs (G, B, M / G, C) of M models for inputs (G, B, P).

    Models g M / G ... see the inputs of group g. Without bias2 the outputs are the cosines between
    hidden units and the rows of weight2.
    """
    groups, hidden = len(inputs), parameters["weight1"].shape[1]
    side_by_side = parameters["weight1"].reshape(groups, -1, inputs.shape[2])
    first = torch.bmm(inputs, side_by_side.transpose(1, 2))
    first = first + parameters["bias1"].reshape(groups, 1, -1)
    units = F.relu(first).unflatten(2, (-1, hidden)).transpose(1, 2)
    weight2 = parameters["weight2"].unflatten(0, (groups, -1))
    if "bias2" in parameters:
        bias2 = parameters["bias2"].view(groups, -1, 1, weight2.shape[2])
        outputs = units @ weight2.transpose(2, 3) + bias2
    else:
        outputs = F.normalize(units, dim=3) @ F.normalize(weight2, dim=3).transpose(2, 3)
    return outputs.transpose(1, 2)


def mapped(one: Mapping[str, Tensor], logits: Tensor, kind: str) -> Tensor:
    """Return one perceptron's outputs (N, C) for subclass logits (N, P); `kind` is its input's."""
    stacked = {
        name: one[name][None] for name in ("weight1", "bias1", "weight2", "bias2") if name in one
    }
    return map_scores(stacked, mapping_input(logits, kind)[None])[0, :, 0]


def owners(subclasses: Sequence[int]) -> Tensor:
    """Return the class (P,) of each subclass."""
    return torch.arange(len(subclasses)).repeat_interleave(torch.tensor(subclasses))


def marginal_scores(logits: Tensor, owners: Tensor, classes: int) -> Tensor:
    """Return class probabilities (N, C): subclass probabilities summed, from logits (N, P).

    Args:
        owners: (P,) the class of each subclass.
    """
    probabilities = torch.softmax(logits, dim=1)
    scores = probabilities.new_zeros(logits.shape[0], classes)
    return scores.index_add(1, owners.to(logits.device), probabilities)


@dataclass(frozen=True)
class Splitting:
    """What stage one leaves: subclasses of each class, centres (C, D), and a trained mapping.

    `mapping` holds the parameters of one perceptron, without the axis of models, and `input` says
    what it sees; {} and "" where stage one trained none.
    """

    subclasses: list[int]
    centres: Tensor
    mapping: dict[str, Tensor]
    input: str = ""


def write_splitting(folder: Path, splitting: Splitting) -> None:
    """Write splitting.safetensors to `folder`."""
    tensors: Mapping[str, Tensor] = {
        "subclasses": torch.tensor(splitting.subclasses),
        "centres": splitting.centres,
        **{f"mapping.{name}": tensor for name, tensor in splitting.mapping.items()},
    }
    with atomic_path(folder / FILE) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {"input": splitting.input},
        )


def read_splitting(folder: Path) -> Splitting:
    """Read what `write_splitting` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kind = (file.metadata() or {})["input"]
        subclasses, centres = tensors.pop("subclasses").tolist(), tensors.pop("centres")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; train the backbone by system cws first") from None
    except (SafetensorError, KeyError, OSError):
        raise InputError(f"{path}: damaged; delete the folder and run again") from None
    mapping = {name.removeprefix("mapping."): tensor for name, tensor in tensors.items()}
    return Splitting(subclasses, centres, mapping, kind)


def copy_splitting(source: Path, target: Path) -> None:
    """Copy splitting.safetensors from one artifact's folder to another's, whole or not at all."""
    read_splitting(source)
    with atomic_path(target / FILE) as temporary:
        shutil.copyfile(source / FILE, temporary)
