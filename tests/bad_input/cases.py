"""Bad input of every sort: what is wrong, and a command that meets it."""

from __future__ import annotations

import copy
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ltpipe.config.base import canonical_json
from ltpipe.testing import make_store
from tests import plans
from tests.support import CE, DIGITS, command_line

GOOD: dict[str, Any] = {
    "experiment": "x",
    "seeds": [0],
    "datasets": {"digits-lt": {}},
    "backbones": {"ce": {"use": "resnet8-ce"}, "kps": {"use": "resnet8-kps"}},
    "methods": {
        "CE": {"use": "backbone-head", "backbones": {"features": "ce"}},
        "FFN": {"use": "ffn", "backbones": {"ce": "ce", "kps": "kps"}, "w1": [0.0, 0.5]},
    },
    "tables": {"main": {"rows": [{"method": "CE"}, {"method": "FFN", "at": {"w1": 0.5}}]}},
    "figures": [{"kind": "class_distribution", "dataset": "digits-lt"}],
}
FOLDER = {"source": "folder", "path": "pets", "input": {"size": [8, 8]}}
LIST = {"source": "list", "path": "pets", "train_list": "a.txt", "test_list": "a.txt"}
FFN = {"kind": "stage2", "method": {"kind": "ffn", "epochs": 1}, "groups": "ranks", "seed": 0}

Prepare = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Case:
    """`area` and `what` say what is wrong; `prepare` puts it into a folder, returns a command."""

    area: str
    what: str
    prepare: Prepare

    @property
    def name(self) -> str:
        return f"{self.area}: {self.what}"


CASES: list[Case] = []


def case(area: str, what: str) -> Callable[[Prepare], Prepare]:
    def add(prepare: Prepare) -> Prepare:
        CASES.append(Case(area, what, prepare))
        return prepare

    return add


def show(place: Path, text: str) -> list[str]:
    (place / "x.yaml").write_text(text, encoding="utf-8")
    return ["show", "x.yaml", "--catalogue", str(plans.CATALOGUE)]


def config(what: str, *path: str, value: Any = None, text: str | None = None) -> None:
    """Add a case of an experiment file with one value changed, taken out (...) or text for it."""

    def prepare(place: Path) -> list[str]:
        values = copy.deepcopy(GOOD)
        at = values
        for key in path[:-1]:
            at = at[key]
        if value is ...:
            del at[path[-1]]
        elif path:
            at[path[-1]] = value
        return show(place, text if text is not None else yaml.safe_dump(values, sort_keys=False))

    CASES.append(Case("experiment file", what, prepare))


config("a bracket that is not closed", text="experiment: [")
config("a list in place of a mapping", text="- experiment\n- seeds\n")
config("empty", text="")
config("a tab where YAML wants spaces", text="experiment: x\nseeds:\n\t- 0\n")
config("a key twice", text="experiment: x\nexperiment: y\n")
config("an object tag", text="experiment: !!python/object/apply:os.system ['true']\n")
config("an unknown key", "sedes", value=[0])
config("a required key left out", "experiment", value=...)
config("no methods", "methods", value={})
config("a name that is no folder name", "experiment", value="../out")
config("seeds that are text", "seeds", value="0")
config("no seeds", "seeds", value=[])
config("a seed twice", "seeds", value=[1, 1])
config("a negative seed", "seeds", value=[-1])
config("a device that does not exist", "device", value="tpu")
config("a data set that is not in the catalogue", "datasets", value={"digits-tl": {}})
config("a setting misspelt", "methods", "FFN", "lerning_rate", value=0.1)
config("text for a number", "methods", "FFN", "epochs", value="ten")
config("a number out of its range", "methods", "FFN", "w1", value=[0.5, 2.0])
config("not a number", "methods", "FFN", "learning_rate", value=float("nan"))
config("a boolean for a number", "methods", "FFN", "epochs", value=True)
config("a backbone that is not there", "methods", "FFN", "backbones", "ce", value="resnet8-cee")
config(
    "a backbone without the views that a method trains on",
    "backbones",
    "ce",
    "features",
    value={"views": 0},
)
config("a role that the method has not", "methods", "CE", "backbones", value={"feature": "ce"})
config("a kind of method that does not exist", "methods", "CE", value={"kind": "ncmm"})
config("a loss that does not exist", "backbones", "ce", "loss", value={"name": "kpss"})
config("a network that does not exist", "backbones", "ce", "network", value="resnet9")
config("a definition that leads back to itself", "methods", "CE", "use", value="CE")
config("a sweep that is no list", "methods", "CE", "sweep", value={"label": "a"})
config("a run of an unknown method", "runs", value=[{"methods": ["FNN"]}])
config("a table row of an unknown method", "tables", "main", "rows", value=[{"method": "KPS"}])
config(
    "a table row at a point that is not swept",
    *("tables", "main", "rows"),
    value=[{"method": "FFN", "at": {"w1": 0.7}}],
)
config("an unknown metric", "tables", "main", "metrics", value=["acuracy"])
config("an unknown figure", "figures", value=[{"kind": "histogram", "dataset": "digits-lt"}])
ROWS = {"rows": [{"method": "CE"}]}
for what, name in (
    ("outside the project", "../../../../../evil"),
    ("with an absolute path", "/tmp/evil"),
    ("without letters", ""),
    ("of 300 letters", "a" * 300),
):
    config(f"a table's name {what}", "tables", value={name: ROWS})
config(
    "a published table outside",
    "tables",
    value={"a": {**ROWS, "expected": {"paper": "../x", "table": "1"}}},
)
config("an experiment's name of 300 letters", "experiment", value="a" * 300)
config("a seed of 60 digits", "seeds", value=[10**60])
config("no seeds in a run", "runs", value=[{"seeds": []}])
config("a seed twice in a run", "runs", value=[{"seeds": [1, 1]}])
config("20,000 seeds", "seeds", value=list(range(20_000)))
config(
    "a figure of several data sets",
    "figures",
    value=[{"kind": "class_distribution", "dataset": "d*"}],
)
for braces in ("{w.foo}", "{w[a]}", "{w:2000000000}", "{w.__init__.__globals__}", "{", "{}"):
    config(
        f"braces that hold {braces}",
        "methods",
        value={f"CE{braces}": {"use": "CE", "for": {"w": [1]}}},
    )
config(
    "a sweep of six axes",
    "methods",
    value={"{a}-{b}-{c}-{d}-{e}-{f}": {"use": "CE", "for": {key: [*range(9)] for key in "abcdef"}}},
)
config("a key that is a number", text="experiment: x\n1: 2\n")
config("a key that is a mapping", text="experiment: x\n{a: 1}: 2\n")
config("a sweep of a number", text="methods: {A: {sweep: {1: [2]}}}\n")
config("3,000 levels", text="title: " + "[" * 3000 + "]" * 3000)
config("an alias that holds itself", text="title: &a [*a]\n")
config("a text with a zero byte", text='title: "a\\0b"\n')
config("a text of 10 MB", text=f"title: {'a' * 10_000_000}\n")
config("200,000 values", text=f"title: [{'1,' * 200_000}]\n")
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
for number in range(8):
    BOMB += f"a{number + 1}: &a{number + 1} [{', '.join([f'*a{number}'] * 9)}]\n"
config("a bomb of aliases", text=BOMB + "title: *a8\n")
config("a share of validation beyond one", "datasets", "digits-lt", "val_fraction", value=1.5)
config("an imbalance below one", "datasets", "digits-lt", "imbalance", value=0.5)


@case("experiment file", "no such file")
def _(place: Path) -> list[str]:
    return ["show", "none.yaml"]


@case("experiment file", "bytes that are no UTF-8")
def _(place: Path) -> list[str]:
    (place / "x.yaml").write_bytes(b"experiment: \xff\xfe")
    return ["show", "x.yaml"]


def job(command: str, spec: dict[str, Any], **inputs: str) -> list[str]:
    roles = {role.replace("__", "."): folder for role, folder in inputs.items()}
    return [*command_line(command, spec, roles), "--device", "cpu"]


def draw(dataset: dict[str, Any]) -> list[str]:
    identity = {key: value for key, value in dataset.items() if key != "input"}
    return job("subset", {"kind": "data", "dataset": identity})


def pets(place: Path) -> None:
    """Put a small folder of images of two classes there."""
    for split, number in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = place / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(i).integers(0, 256, (9, 11, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


@case("data set", "a folder that does not exist")
def _(place: Path) -> list[str]:
    return draw({**FOLDER, "path": "nowhere"})


@case("data set", "a data root that does not exist")
def _(place: Path) -> list[str]:
    return [*draw(FOLDER), "--data-root", "nowhere"]


@case("data set", "a file where a folder should be")
def _(place: Path) -> list[str]:
    (place / "pets").write_text("no folder")
    return draw(FOLDER)


@case("data set", "a folder without classes")
def _(place: Path) -> list[str]:
    (place / "pets/train").mkdir(parents=True)
    return draw(FOLDER)


@case("data set", "a class without training images")
def _(place: Path) -> list[str]:
    pets(place)
    for path in (place / "pets/train/dog").iterdir():
        path.unlink()
    return draw(FOLDER)


@case("data set", "more samples asked for than a class has")
def _(place: Path) -> list[str]:
    pets(place)
    return draw({**FOLDER, "imbalance": 2.0, "max_count": 50})


@case("data set", "counts other than those expected")
def _(place: Path) -> list[str]:
    pets(place)
    return draw({**FOLDER, "expect": {"classes": 3}})


def train(place: Path, dataset: dict[str, Any] = FOLDER) -> list[str]:
    from ltpipe.cli.program import main

    identity = {key: value for key, value in dataset.items() if key != "input"}
    drawn = command_line("subset", {"kind": "data", "dataset": identity}, {})
    assert main(drawn) == 0
    spec = {"kind": "stage1", "dataset": dataset, "backbone": CE, "seed": 0}
    return job("train", spec, data=drawn[-1])


@case("images", "an image cut short")
def _(place: Path) -> list[str]:
    pets(place)
    path = place / "pets/train/cat/3.png"
    path.write_bytes(path.read_bytes()[:60])
    return train(place)


@case("images", "text with the name of an image")
def _(place: Path) -> list[str]:
    pets(place)
    (place / "pets/train/cat/3.png").write_text("no image")
    return train(place)


@case("images", "a bomb: a small file of far too many pixels")
def _(place: Path) -> list[str]:
    pets(place)
    Image.new("1", (20000, 20000)).save(place / "pets/train/cat/3.png")
    return train(place)


@case("images", "a pipe with the name of an image")
def _(place: Path) -> list[str]:
    pets(place)
    os.mkfifo(place / "pets/train/cat/9.png")
    return train(place)


@case("images", "a line of 80 million pixels")
def _(place: Path) -> list[str]:
    pets(place)
    Image.new("1", (80_000_000, 1)).save(place / "pets/train/cat/3.png")
    return train(place)


@case("images", "images that changed since the draw")
def _(place: Path) -> list[str]:
    pets(place)
    command = train(place)
    (place / "pets/train/cat/3.png").rename(place / "pets/train/dog/9.png")
    return command


def listed(what: str, text: str | None, **options: Any) -> None:
    def prepare(place: Path) -> list[str]:
        pets(place)
        if text is not None:
            (place / "a.txt").write_text(text)
        return draw({**LIST, **options})

    CASES.append(Case("list file", what, prepare))


listed("no such list", None)
listed("an empty list", "")
listed("a line without a label", "train/cat/0.png 0\ntrain/cat/1.png\n")
listed("a label that is no number", "train/cat/0.png 0\ntrain/cat/1.png dog\n")
listed("a negative label", "train/cat/0.png -1\n")
listed("a class number left out", "train/cat/0.png 0\ntrain/cat/1.png 2\n")
listed("a label of 5,000 digits", f"train/cat/0.png {'9' * 5000}\n")
listed("the largest label that is a number", "train/cat/0.png 999999999\ntrain/dog/0.png 0\n")
listed("paths relative to another folder", "images/cat/0.png 0\n")


@case("list file", "an image that is not there")
def _(place: Path) -> list[str]:
    pets(place)
    (place / "a.txt").write_text("train/cat/0.png 0\ntrain/cat/none.png 0\ntrain/dog/0.png 1\n")
    return train(place, {**LIST, "input": {"size": [8, 8]}})


def embeddings(what: str, features: Any, labels: Any, **arrays: Any) -> None:
    def prepare(place: Path) -> list[str]:
        np.savez(place / "a.npz", **(arrays or {"features": features, "labels": labels}))
        return draw(STORES)

    CASES.append(Case("embeddings", what, prepare))


STORES = {"source": "features", "stores": {"net": {"train": "a.npz", "test": "a.npz"}}}
embeddings("not a number among them", np.full((4, 2), np.nan), [0, 1, 0, 1])
embeddings("fewer labels than rows", np.zeros((4, 2)), [0, 1, 0])
embeddings("a negative label", np.zeros((4, 2)), [0, -1, 0, 1])
embeddings("a class without samples", np.zeros((4, 2)), [0, 2, 0, 2])
embeddings("labels with fractions", np.zeros((4, 2)), [0.5, 1, 0, 1])
embeddings("three axes", np.zeros((4, 2, 2)), [0, 1, 0, 1])
embeddings("none at all", np.zeros((0, 2)), np.zeros(0, int))
embeddings("an array of another name", None, None, embeddings=np.zeros((4, 2)))


embeddings("the largest label of 32 bits", np.zeros((4, 2)), [0, 1, 2**31 - 1, 1])


@case("embeddings", "an npz that unpacks to gigabytes")
def _(place: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(place / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("features.npy", "w") as file:
            for _ in range(17):
                file.write(bytes(1 << 26))
    return draw(STORES)


def hdf5(what: str) -> Callable[[Callable[[h5py.File], None]], None]:
    """Add a case of an HDF5 file whose features a function writes; its labels are right."""

    def add(write: Callable[[h5py.File], None]) -> None:
        def prepare(place: Path) -> list[str]:
            with h5py.File(place / "other.h5", "w") as file:
                file["features"] = np.zeros((4, 2))
            np.zeros((4, 2)).tofile(place / "raw")
            with h5py.File(place / "a.h5", "w") as file:
                file["labels"] = [0, 1, 0, 1]
                write(file)
            return draw({"source": "features", "stores": {"net": dict.fromkeys(SPLITS, "a.h5")}})

        CASES.append(Case("embeddings", f"HDF5: {what}", prepare))

    return add


SPLITS = ("train", "test")


@hdf5("a data set without a shape")
def _(file: h5py.File) -> None:
    file["features"] = h5py.Empty("f4")


@hdf5("a group in place of an array")
def _(file: h5py.File) -> None:
    file.create_group("features")


@hdf5("a link to another file")
def _(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("other.h5", "/features")


@hdf5("values in another file")
def _(file: h5py.File) -> None:
    file.create_dataset("features", (4, 2), "f8", external=[("raw", 0, 64)])


@hdf5("a view of a file that is gone")
def _(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 2), "f8")
    layout[:] = h5py.VirtualSource("gone.h5", "features", (4, 2))
    file.create_virtual_dataset("features", layout)


@hdf5("values that were never written")
def _(file: h5py.File) -> None:
    file.create_dataset("features", (4, 2), "f8", chunks=(2, 2))[:2] = 1


@hdf5("a bomb: much of nothing, compressed")
def _(file: h5py.File) -> None:
    chunk = (1 << 14, 1 << 10)
    data = file.create_dataset(
        "features", (1 << 18, 1 << 10), "f8", chunks=chunk, compression="gzip"
    )
    packed = zlib.compress(bytes(8 << 24), 1)
    for row in range(0, 1 << 18, 1 << 14):
        data.id.write_direct_chunk((row, 0), packed)


@case("embeddings", "an npz cut short")
def _(place: Path) -> list[str]:
    np.savez(place / "a.npz", features=np.zeros((4, 2)), labels=[0, 1, 0, 1])
    data = (place / "a.npz").read_bytes()
    (place / "a.npz").write_bytes(data[: len(data) // 2])
    return draw(STORES)


@case("embeddings", "a pickle inside an npy")
def _(place: Path) -> list[str]:
    np.save(place / "a.npy", np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    np.save(place / "l.npy", np.array([0]))
    files = {"train": "a.npy", "train_labels": "l.npy", "test": "a.npy", "test_labels": "l.npy"}
    return draw({"source": "features", "stores": {"net": files}})


@case("embeddings", "an npy without its labels")
def _(place: Path) -> list[str]:
    np.save(place / "a.npy", np.zeros((4, 2)))
    return draw({"source": "features", "stores": {"net": {"train": "a.npy", "test": "a.npy"}}})


@case("embeddings", "a kind of file that is not read")
def _(place: Path) -> list[str]:
    (place / "a.csv").write_text("1,2\n")
    return draw({"source": "features", "stores": {"net": {"train": "a.csv", "test": "a.csv"}}})


def finish(*folders: Path) -> None:
    """Leave manifests, as if the folders had been written as they are."""
    from ltpipe.artifacts.manifest import write_manifest

    for folder in folders:
        write_manifest(folder, spec={}, modules={}, inputs={}, run_info={})


def feature_store(what: str, *, written: bool = False) -> Callable[[Callable[[Path], None]], None]:
    """Add a case of a feature store that a function damages, or that was `written` as it is."""

    def add(damage: Callable[[Path], None]) -> None:
        def prepare(place: Path) -> list[str]:
            for number, role in enumerate(("ce", "kps")):
                make_store(place / role, number)
            if written:
                damage(place)
            finish(place / "ce", place / "kps")
            if not written:
                damage(place)
            return job("classify", FFN, features__ce="ce", features__kps="kps")

        CASES.append(Case("feature store", what, prepare))

    return add


@feature_store("a file that is gone")
def _(place: Path) -> None:
    (place / "kps/train.h5").unlink()


@feature_store("a file cut short")
def _(place: Path) -> None:
    path = place / "kps/train.h5"
    path.write_bytes(path.read_bytes()[:-300])


@feature_store("a bit that flipped")
def _(place: Path) -> None:
    with h5py.File(place / "ce/test.h5", "a") as file:
        file["features"][0, 0] += 1


@feature_store("an HDF5 file of other software", written=True)
def _(place: Path) -> None:
    with h5py.File(place / "ce/test.h5", "w") as file:
        file["features"] = np.zeros((2, 2))


@feature_store("a file that was never finished", written=True)
def _(place: Path) -> None:
    with h5py.File(place / "ce/test.h5", "a") as file:
        del file.attrs["complete"]


@feature_store("not a number, with a fitting checksum", written=True)
def _(place: Path) -> None:
    with h5py.File(place / "ce/test.h5", "a") as file:
        values = file["features"][()]
        values[0, 0] = np.nan
        file["features"][...] = values
        file["features"].attrs["crc32"] = zlib.crc32(values.tobytes())


@feature_store("two stores of different samples", written=True)
def _(place: Path) -> None:
    from ltpipe.features.store import FeatureStore, write_features

    path = place / "kps/test.h5"
    store = FeatureStore.open(path)
    write_features(
        path,
        features=np.array(store.features[:-1]),
        labels=np.array(store.labels[:-1]),
        class_names=store.class_names,
        class_counts=store.class_counts,
    )


def weights(what: str) -> Callable[[Callable[[Path], None]], None]:
    """Add a case of a trained backbone whose weights a function writes."""

    def add(write: Callable[[Path], None]) -> None:
        def prepare(place: Path) -> list[str]:
            command = train(place, DIGITS)
            assert command[0] == "train"
            (place / "stage1").mkdir()
            write(place / "stage1/model.safetensors")
            finish(place / "stage1")
            spec = {"kind": "features", "dataset": DIGITS, "backbone": CE, "features": {}}
            data = next(word for word in command if word.startswith("--input=data="))
            folder = data.removeprefix("--input=data=")
            return job("embed", {**spec, "seed": 0}, stage1="stage1", data=folder)

        CASES.append(Case("weights", what, prepare))

    return add


@weights("a file that is gone")
def _(path: Path) -> None:
    path.unlink(missing_ok=True)


@weights("no safetensors file")
def _(path: Path) -> None:
    path.write_bytes(b"no weights")


@weights("a pickle under the name of a safetensors file")
def _(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": [1.0]}))


@weights("weights of another network")
def _(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)


class _Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harm",)


@case("weights", "a checkpoint to start from that would run code")
def _(place: Path) -> list[str]:
    with (place / "w.pth").open("wb") as handle:
        pickle.dump(_Harm(), handle)
    dataset = {**FOLDER, "input": {"size": [32, 32]}}
    pets(place)
    command = train(place, dataset)
    backbone = {**CE, "network": "resnet50", "weights": "w.pth"}
    spec = {"kind": "stage1", "dataset": dataset, "backbone": backbone, "seed": 0}
    data = next(word for word in command if word.startswith("--input=data="))
    return job(command[0], spec, data=data.removeprefix("--input=data="))


def line(what: str, *command: str) -> None:
    CASES.append(Case("command line", what, lambda place: list(command)))


SPEC = canonical_json({"kind": "data", "dataset": {"source": "digits"}, "code": "0" * 10})
line("a spec that is no JSON", "subset", "--spec", "{", "--output", "out")
line("a spec of another kind", "subset", "--spec", '{"kind":"stage1"}', "--output", "out")
line("other code than was planned", "subset", "--spec", SPEC, "--output", "out")
DRAWN = job("subset", {"kind": "data", "dataset": {"source": "digits"}})
TRAINED = job("train", {"kind": "stage1", "backbone": CE, "dataset": DIGITS})
line(
    "a folder of another digest", *DRAWN[: DRAWN.index("--output")], "--output=out", "--device=cpu"
)
line("a folder too many", *DRAWN, "--output=out")
line("an input without a role", *TRAINED, "--input", "data")
line(
    "an input that is not finished",
    *TRAINED,
    "--input=data=nowhere",
)
line(
    "a device that does not exist",
    *job("classify", FFN)[:-1],
    "tpu",
)
line("the table of an experiment that was not run", "table", "results/experiments/x")
line("why, of what is not there", "why", "results/stage2/x/y/0123456789/seed0")
line("verify, where nothing is", "verify", "nowhere")
line("a path of 5,000 letters", "verify", "a" * 5000)
line("gc, without its experiment file", "gc", "none.yaml", "--delete")
