"""What a grammar draws is a plan, or one line: experiment files, images, embeddings, bundles."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ltpipe.bundles.format import DESCRIPTION
from ltpipe.config.base import canonical_json
from ltpipe.config.experiment import load_experiment
from ltpipe.data.images import FileImages
from ltpipe.data.readers.features import read_features
from ltpipe.plan.layout import build_plan
from ltpipe.predict import load
from ltpipe.utils.errors import InputError
from tests import plans
from tests.fuzz.grammar import ODD, places, texts

pytestmark = pytest.mark.heavy

# The same examples each time; the long profile is that of `make test-all`.
PROFILES = [
    pytest.param(1, id="short"),
    pytest.param(20, id="long", marks=pytest.mark.slow),
]


def fuzz(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Run a check on drawn examples."""
    profile = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    profile(given(strategy)(check))()


def refused(action: Callable[[], Any]) -> bool:
    """Return whether an action is refused, which takes one line."""
    try:
        action()
    except InputError as error:
        assert str(error).strip() and "\n" not in str(error), str(error)
        return True
    return False


@pytest.mark.parametrize("times", PROFILES)
def test_experiment_files(tmp_path, times):
    path, said = tmp_path / "x.yaml", []

    def check(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        started = time.process_time()
        said.append(refused(lambda: build_plan(load_experiment(path, plans.CATALOGUE))))
        assert time.process_time() - started < 5

    fuzz(60 * times, texts(), check)
    assert 0.2 < sum(said) / len(said) < 1


def picture(mode: str, kind: str, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 1).save(stream, kind)
    return stream.getvalue()


PICTURES = st.builds(
    picture,
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "I;16"]),
    st.sampled_from(["png", "tiff"]),
    st.tuples(st.sampled_from([1, 7, 9000]), st.sampled_from([1, 5])),
) | st.builds(picture, st.sampled_from(["L", "RGB", "CMYK"]), st.just("jpeg"), st.just((9, 8)))


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw bytes and change some of them."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        change = draw(st.sampled_from(["flip", "cut", "end", "more"]))
        if change == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[place : place + draw(st.integers(1, 40))]
        elif change == "end":
            del data[place:]
        else:
            data[place:place] = draw(st.binary(max_size=20))
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("times", PROFILES)
def test_images(tmp_path, times):
    path, said = tmp_path / "a.png", []

    def check(data: bytes) -> None:
        path.write_bytes(data)
        images = FileImages([path], (8, 8))
        said.append(refused(lambda: images.load(np.array([0]))))

    fuzz(80 * times, damaged(PICTURES), check)
    assert any(said) and not all(said)


def hdf5(shape: tuple[int, ...], kind: str, labels: Any, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("features", shape, kind, **options)[...] = 1
        file["labels"] = labels
    return stream.getvalue()


def npz(shape: tuple[int, ...], kind: str, labels: Any, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    write = np.savez_compressed if options else np.savez
    write(stream, features=np.ones(shape, kind), labels=labels)
    return stream.getvalue()


ARRAYS = (
    st.sampled_from([(4, 2), (4, 3), (4,), (4, 0), (5, 2), (4, 2, 1)]),
    st.sampled_from(["f4", "f8", "f2", "i4", "u1", "?", "S3", "c8"]),
    st.sampled_from(
        [[0, 1, 0, 1], [[0], [1], [0], [1]], [0.0, 1, 0, 1], [-1, 0, 0, 1], [2**31] * 4]
    ),
)


@pytest.mark.parametrize("kind", ["h5", "npz"])
@pytest.mark.parametrize("times", PROFILES)
def test_embeddings(tmp_path, kind, times):
    path, said = tmp_path / f"a.{kind}", []
    options = [{}] if kind == "npz" else [{}, {"compression": "gzip", "chunks": True}]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        said.append(refused(lambda: read_features(path)))

    whole = st.builds(npz if kind == "npz" else hdf5, *ARRAYS, st.sampled_from(options))
    fuzz(60 * times, damaged(whole).map(bytes), check)
    assert any(said) and not all(said)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from tests.fuzz import flips

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("bundles"))
        patch.delenv("LTPIPE_DATA", raising=False)
        patch.setenv("LTPIPE_DEVICE", "cpu")
        flips.World()
        yield Path("bundle").resolve()


@pytest.mark.parametrize("times", PROFILES)
def test_bundles(bundle, tmp_path, times):
    """Whoever changes bundle.json can give it the digest that fits."""
    values = json.loads((bundle / DESCRIPTION).read_text())
    shutil.copytree(bundle, tmp_path / "changed")
    path = tmp_path / "changed" / DESCRIPTION
    image = np.zeros((1, 8, 8), np.uint8)
    of_use = {"versions", "provenance", "metrics", "dataset", "digest", "format"}
    where = [place for place in places(values) if place[0] not in of_use]
    said = []

    def check(change: tuple[tuple[Any, ...], Any]) -> None:
        place, value = change
        changed = json.loads(json.dumps(values))
        at = changed
        for key in place[:-1]:
            at = at[key]
        if value == "left out" and isinstance(at, dict):
            del at[place[-1]]
        else:
            at[place[-1]] = value
        changed.pop("digest", None)
        try:
            text = canonical_json(changed)
        except ValueError:
            return
        changed["digest"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        path.write_text(json.dumps(changed))

        def use() -> None:
            assert load(path.parent, "cpu").predict(image).probabilities.shape[0] == 1

        said.append(refused(use))

    fuzz(40 * times, st.tuples(st.sampled_from(where), ODD | st.just("left out")), check)
    assert any(said) and not all(said)
