"""Random streams that depend on a seed and a purpose only, never on what ran before."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream called `names` of the run called `seed`.

    Streams of different names are independent, so adding a random draw in one place changes no
    other place, and epoch 57 of a resumed run draws what it would have drawn unbroken.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on `device` for the stream called `names` of the run `seed`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *names))
