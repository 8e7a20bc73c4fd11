"""The label mapping against torch's own layers, sums against loops, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltpipe.models.mapping import (
    Splitting,
    copy_splitting,
    fresh_mapping,
    map_scores,
    mapping_input,
    marginal_scores,
    owners,
    read_splitting,
    write_splitting,
)
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator


def models(number, head, subclasses=7, classes=3, hidden=5):
    fresh = [
        fresh_mapping(subclasses, classes, hidden, head, generator(seed, "x"))
        for seed in range(number)
    ]
    return {name: torch.stack([one[name] for one in fresh]) for name in fresh[0]}


def test_shapes():
    parameters = models(4, "linear")
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    assert shapes == {
        "weight1": (4, 5, 7),
        "bias1": (4, 5),
        "weight2": (4, 3, 5),
        "bias2": (4, 3),
    }
    assert map_scores(parameters, torch.randn(2, 6, 7)).shape == (2, 6, 2, 3)
    assert "bias2" not in models(1, "cosine")


def test_it_starts_as_torchs_layers_do():
    parameters = fresh_mapping(16, 3, 400, "linear", generator(0, "x"))
    assert parameters["weight1"].abs().max() <= 16**-0.5
    assert parameters["weight1"].abs().max() > 0.99 * 16**-0.5
    assert parameters["weight2"].abs().max() <= 400**-0.5


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_many_models_are_what_each_is_alone(head):
    parameters = models(4, head)
    inputs = torch.randn(2, 6, 7)
    found = map_scores(parameters, inputs)
    for group in range(2):
        for place in range(2):
            model = 2 * group + place
            first = nn.Linear(7, 5)
            first.load_state_dict(
                {"weight": parameters["weight1"][model], "bias": parameters["bias1"][model]}
            )
            units = torch.relu(first(inputs[group]))
            weight = parameters["weight2"][model]
            if head == "linear":
                expected = units @ weight.T + parameters["bias2"][model]
            else:
                expected = F.cosine_similarity(units[:, None], weight[None], dim=2)
            torch.testing.assert_close(found[group, :, place], expected)


def test_inputs():
    logits = torch.randn(4, 7)
    assert torch.equal(mapping_input(logits, "logits"), logits)
    torch.testing.assert_close(mapping_input(logits, "softmax").sum(1), torch.ones(4))
    torch.testing.assert_close(mapping_input(logits, "log-softmax"), F.log_softmax(logits, 1))


def test_marginal_scores_against_loops():
    subclasses = [3, 1, 2]
    assert owners(subclasses).tolist() == [0, 0, 0, 1, 2, 2]
    logits = np.random.default_rng(0).normal(size=(5, 6)) * 3
    found = marginal_scores(torch.from_numpy(logits), owners(subclasses), 3)
    for row, scores in zip(logits, found, strict=True):
        total = sum(np.exp(row))
        expected = [
            sum(np.exp(row[:3])) / total,
            np.exp(row[3]) / total,
            sum(np.exp(row[4:])) / total,
        ]
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_the_file_keeps_everything(tmp_path):
    mapping = fresh_mapping(6, 3, 4, "linear", generator(0, "x"))
    write_splitting(tmp_path, Splitting([3, 1, 2], torch.randn(3, 8), mapping, "softmax"))
    copy_splitting(tmp_path, tmp_path / "copy")
    found = read_splitting(tmp_path / "copy")
    assert found.subclasses == [3, 1, 2]
    assert found.input == "softmax"
    assert all(torch.equal(mapping[name], value) for name, value in found.mapping.items())
    assert set(found.mapping) == set(mapping)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"splitting\.safetensors: no such file"):
        read_splitting(tmp_path)
    write_splitting(tmp_path, Splitting([1], torch.zeros(1, 2), {}))
    path = tmp_path / "splitting.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="damaged"):
        copy_splitting(tmp_path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
