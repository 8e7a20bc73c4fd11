"""Small image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], np.ndarray]:
    """Return the paths of 40 PNG files and their pixels, (40, 10, 10, 3) uint8."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 10, 10, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels
