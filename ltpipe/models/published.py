"""Weights that others published: whether they are those of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ltpipe.utils.errors import InputError


def load_published(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights into a network, in its own precision.

    Args:
        origin: names the weights in messages.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    expected = network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        fault = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise InputError(f"{origin}: {fault}; these weights belong to another network")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"{origin}: {key} has shape {tuple(state[key].shape)}, the network needs "
                f"{tuple(value.shape)}; these weights belong to another network"
            )
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in state.items()})
