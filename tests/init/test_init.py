"""`ltpipe init` through the command line: what it says, what it writes, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ltpipe.cli.program import main
from ltpipe.config.experiment import load_experiment, read_catalogue
from ltpipe.data.images import FileImages
from ltpipe.features.store import write_features
from ltpipe.init import advice
from ltpipe.plan.layout import build_plan

CATALOGUE = Path(__file__).resolve().parents[2] / "config"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working folder; no data root but its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    return tmp_path


def images(folder, counts, size=(12, 10), mode="RGB"):
    """Write `counts[class]` images of noise, (height, width)."""
    stream = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = size if mode == "L" else (*size, 3)
            pixels = stream.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:04}.png")


def features(path, counts, dimension=6, name="labels"):
    """Write separable embeddings with `counts[c]` rows of class c; return them and their labels."""
    path.parent.mkdir(exist_ok=True)
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.eye(len(counts), dimension)[labels].astype("f4")
    if path.suffix == ".npz":
        np.savez(path, features=rows, **{name: labels})
    elif path.suffix == ".npy":
        np.save(path, rows)
        np.save(path.with_name(f"{path.stem}_labels.npy"), labels)
    else:
        with h5py.File(path, "w") as file:
            file["features"], file[name] = rows, labels
    return rows, labels


def init(data, *options, output="mine.yaml"):
    """Run the command; return the experiment as a run would load it."""
    assert main(["init", str(data), "--output", output, *map(str, options)]) == 0
    experiment = load_experiment(Path(output), CATALOGUE)
    build_plan(experiment)
    return experiment


def own(data, *options, **more):
    """Set up a network of one's own."""
    return init(data, "--train", *options, **more)


def only(section):
    (named,) = section.values()
    return named.settings


def refused(capsys, place, data, *options, output="mine.yaml"):
    """Return the one line of an error; no file is left behind."""
    before = {path.name for path in place.iterdir()}
    assert main(["init", str(data), "--output", output, *map(str, options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ltpipe: error: ")
    assert captured.err.count("\n") == 1
    assert {path.name for path in place.iterdir()} == before
    return captured.err


def test_a_long_tailed_folder(place, capsys):
    images(place / "pets/train", {"ant": 30, "bee": 9, "cat": 1}, mode="L")
    images(place / "pets/test", {"ant": 2, "bee": 2, "cat": 2}, mode="L")
    experiment = own("pets")
    text = capsys.readouterr().out
    assert "3 classes, 40 training samples, none for validation, 6 for testing" in text
    assert "largest classes    ant 30, bee 9, cat 1" in text
    assert "imbalance          30 " in text
    assert "0/1/2 classes (many: >100" in text
    assert "1/1/1 classes (ranks" in text
    assert "its own, 2 to 2 a class" in text
    assert "all of 46; 0 can't be used" in text
    assert "12 x 10 to 12 x 10" in text
    assert "modes              L 46; all without colour" in text
    assert "warning: classes with one training sample: cat" in text
    assert "\n  ltpipe run mine.yaml\n" in text
    dataset = only(experiment.datasets)
    assert (dataset.path, dataset.test_fraction, dataset.groups) == ("pets", None, "ranks")
    assert (dataset.input.size, dataset.input.channels) == ([12, 10], 1)
    assert not dataset.input.flip
    # Uniform noise: mean 1/2, deviation 1/sqrt(12).
    assert dataset.input.mean == pytest.approx([0.5], abs=0.02)
    assert dataset.input.std == pytest.approx([0.289], abs=0.02)
    assert list(experiment.methods) == ["CE", "cRT", "LA", "BalancedSoftmax", "MiSLAS", "FFN"]
    assert set(experiment.backbones) == {"ce", "kps"}
    assert experiment.backbones["ce"].settings.network == "resnet8"
    assert len(dataset.read(None).test.labels) == 6


def test_a_folder_without_a_test_set(place, capsys):
    images(place / "pets", {"ant": 10, "bee": 6, "cat": 1})
    dataset = only(init("pets").datasets)
    text = capsys.readouterr().out
    # A fifth of 10 and of 6 is less than three, and so are three; a lone image stays.
    assert "3 classes, 11 training samples, none for validation, 6 for testing" in text
    assert "none found: a fifth is set apart, 0 to 3 a class" in text
    assert "3 of 3 classes have fewer" not in text and "2 of 3 classes have fewer than 10" in text
    assert "warning: classes without a test sample, whose accuracy is not measured: cat" in text
    assert dataset.test_fraction == 0.2
    assert dataset.input.flip


def test_a_validation_folder_is_used(place, capsys):
    for split, number in (("train", 6), ("val", 2), ("test", 3)):
        images(place / f"pets/{split}", {"ant": number, "bee": number})
    init("pets")
    assert "12 training samples, 4 for validation, 6 for testing" in capsys.readouterr().out


def test_balanced_data_get_few_methods(place, capsys):
    images(place / "pets", {"ant": 10, "bee": 9})
    experiment = own("pets")
    assert "not long-tailed" in capsys.readouterr().out
    assert list(experiment.methods) == ["CE", "cRT", "LA"]
    assert set(experiment.backbones) == {"ce"}


def test_an_imbalanced_test_set_changes_the_first_metric(place, capsys):
    images(place / "pets", {"ant": 40, "bee": 10})
    experiment = init("pets")
    assert experiment.file.tables["main"].metrics[0] == "balanced_accuracy"
    assert "the test set is imbalanced, too" in capsys.readouterr().out


def test_damaged_images_are_named(place, capsys):
    images(place / "pets", {"ant": 4, "bee": 4})
    (place / "pets/ant/0000.png").write_bytes(b"no image")
    whole = (place / "pets/bee/0001.png").read_bytes()
    (place / "pets/bee/0001.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(place / "pets/bee/deep.png")
    init("pets")
    text = capsys.readouterr().out
    assert "all of 9; 3 can't be used" in text
    for name in ("ant/0000.png", "bee/0001.png", "bee/deep.png"):
        assert f"warning: image pets/{name}" in text
    assert "warning: 3 images can't be used" in text and "left out" in text
    assert "2 classes, 4 training samples, none for validation, 2 for testing" in text


def test_only_damaged_images(place, capsys):
    images(place / "pets", {"ant": 2, "bee": 2})
    for path in (place / "pets").rglob("*.png"):
        path.write_bytes(b"no image")
    assert "no image can be read; the first of 4" in refused(capsys, place, "pets")


def test_a_sample_bounds_the_work(place, capsys, monkeypatch):
    images(place / "pets", {"ant": 30, "bee": 30, "cat": 3})
    opened = []
    load = FileImages.load
    monkeypatch.setattr(
        FileImages, "load", lambda self, index: opened.append(len(index)) or load(self, index)
    )
    init("pets", "--sample", 12)
    assert sum(opened) == 12
    assert "12 spread evenly of 63" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("side", "network", "size", "stored"),
    [
        (10, "resnet8", [10, 10], None),
        (40, "resnet8", [32, 32], None),
        (70, "resnet8", [64, 64], None),
        # From random numbers, a large network learns nothing from five photos.
        (200, "resnet8", [64, 64], None),
    ],
)
def test_network_by_image_size(place, side, network, size, stored):
    images(place / "pets", {"ant": 3, "bee": 2}, size=(side, side))
    experiment = own("pets")
    settings = only(experiment.datasets).input
    assert (settings.size, settings.stored) == (size, stored)
    assert experiment.backbones["ce"].settings.network == network


def test_options_override(place, capsys):
    images(place / "pets", {"ant": 24, "bee": 2}, size=(200, 150))
    experiment = own("pets", "--size", 48, "--epochs", 10)
    assert only(experiment.datasets).input.size == [48, 48]
    backbone = experiment.backbones["kps"].settings
    assert (backbone.network, backbone.epochs, backbone.loss.adjust_from) == ("resnet8", 10, 6)
    experiment = init("pets", "--pretrained", output="other.yaml")
    assert experiment.backbones["ce"].settings.weights == "IMAGENET1K_V1"
    capsys.readouterr()
    options = ["--pretrained", "--size", 32]
    assert "add --size 224" in refused(capsys, place, "pets", *options, output="third.yaml")


def test_filters_need_samples(place, capsys):
    features(place / "many/train.h5", [300, 60])
    features(place / "many/test.h5", [5, 5])
    dlsa = init("many").methods["DLSA"].settings
    assert dlsa.filter.clusters == 20
    features(place / "few/train.h5", [100, 20])
    features(place / "few/test.h5", [5, 5])
    capsys.readouterr()
    assert "DLSA" not in init("few", output="few.yaml").methods
    assert "60 images a class on average: DLSA's filters want 100" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".npz", ".npy"])
def test_embeddings(place, capsys, suffix):
    features(place / f"emb/train{suffix}", [40, 4])
    features(place / f"emb/test{suffix}", [3, 3])
    experiment = init("emb")
    text = capsys.readouterr().out
    assert "embeddings: 2 classes, 44 training samples" in text
    assert "6 dimensions, norms 1 to 1, no NaN" in text
    store = only(experiment.datasets).stores["features"]
    assert (store.train, store.test) == (f"emb/train{suffix}", f"emb/test{suffix}")
    labels = "emb/train_labels.npy" if suffix == ".npy" else None
    assert store.train_labels == labels
    assert list(experiment.methods) == ["CE", "cRT", "BalancedSoftmax", "GDA", "kNN"]


def test_embeddings_by_the_training_file(place):
    features(place / "features_train.npy", [4, 3])
    features(place / "features_test.npy", [2, 2])
    for split in ("train", "test"):
        Path(f"features_{split}_labels.npy").rename(f"labels_{split}.npy")
    store = only(init("features_train.npy").datasets).stores["features"]
    assert (store.test, store.test_labels) == ("features_test.npy", "labels_test.npy")


def test_our_own_feature_files_are_taken(place):
    for split, number in (("train", 5), ("val", 0), ("test", 2)):
        labels = np.repeat([0, 1], number)
        write_features(
            place / f"{split}.h5",
            features=np.ones((len(labels), 3), dtype=np.float32),
            labels=labels,
            class_names=["a", "b"],
            class_counts=[5, 5],
        )
    store = only(init(place).datasets).stores["features"]
    assert (store.train, store.val, store.test) == ("train.h5", None, "test.h5")


def test_list_files(place, capsys):
    images(place / "photos", {"ant": 8, "bee": 4})
    for split, first, last in (("train", 0, 3), ("test", 3, 4)):
        lines = [
            f"{name}/{i:04}.png {label}\n"
            for label, name in enumerate(("ant", "bee"))
            for i in range(first, last)
        ]
        (place / f"pets_{split}.txt").write_text("".join(lines))
    dataset = only(init("pets_train.txt", "--images", "photos").datasets)
    assert (dataset.path, dataset.test_list) == ("photos", "pets_test.txt")
    assert "list files: 2 classes, 6 training samples" in capsys.readouterr().out


def there(monkeypatch, *names):
    """Let the weights of these networks of the catalogue be on this machine, and no others."""
    catalogue = read_catalogue(CATALOGUE)["backbones"]
    wanted = [catalogue[name] for name in names]
    monkeypatch.setattr(advice, "_is_there", lambda values: values in wanted)


def test_photos_get_the_best_pretrained_network_that_is_there(place, capsys, monkeypatch):
    images(place / "pets", {"ant": 30, "bee": 3}, size=(200, 150))
    there(monkeypatch, "efficientnet-lite0", "convnext-tiny")
    experiment = init("pets")
    assert "convnext-tiny, pretrained and frozen" in capsys.readouterr().out
    (backbone,) = experiment.backbones.values()
    assert (backbone.folder, backbone.settings.trained) == ("convnext-tiny", "none")
    settings = only(experiment.datasets)
    assert (settings.damaged, settings.input.orientation) == ("skip", "exif")
    assert list(experiment.methods) == ["CE", "cRT", "BalancedSoftmax", "GDA", "kNN"]
    assert all(named.settings.needs_validation() for named in experiment.methods.values())
    experiment = init("pets", "--backbone", "efficientnet-lite0", "--size", 96, output="b.yaml")
    assert only(experiment.backbones).size == [96, 96]
    experiment = own("pets", output="c.yaml")
    assert experiment.backbones["ce"].settings.network == "resnet8"
    there(monkeypatch)
    init("pets", output="d.yaml")
    assert "no pretrained network is on this machine" in capsys.readouterr().out


def test_pretrained_networks_see_small_images_smaller_and_tiny_ones_not(place, capsys, monkeypatch):
    there(monkeypatch, "efficientnet-lite0")
    images(place / "small", {"ant": 3, "bee": 3}, size=(32, 32))
    assert only(init("small").backbones).size == [160, 160]
    images(place / "tiny", {"ant": 3, "bee": 3}, size=(8, 8))
    assert "ce" in init("tiny", output="tiny.yaml").backbones
    assert "sees little in them" in capsys.readouterr().out


def test_a_table_is_read_by_the_names_of_its_columns_and_split(place, capsys):
    images(place / "photos", {"x": 9})
    rows = [f"photos/x/{i:04}.png,{'Löwe' if i < 6 else 'ant'}" for i in range(9)]
    (place / "animals.csv").write_text("\n".join(["Filename,Species", *rows]))
    settings = only(init("animals.csv").datasets)
    assert (settings.path_column, settings.label_column) == ("Filename", "Species")
    text = capsys.readouterr().out
    assert "table: 2 classes, 5 training samples, none for validation, 4 for testing" in text
    assert "largest classes    Löwe 3, ant 2" in text
    (place / "other.csv").write_text("a,b\n1,2\n")
    message = refused(capsys, place, "other.csv", output="other.yaml")
    assert "which column is the path? It has a, b" in message


def test_one_file_of_embeddings_with_texts_for_labels_is_split(place, capsys):
    labels = np.repeat(["bee", "ant"], [20, 5])
    rows = np.random.default_rng(0).normal(size=(25, 4))
    np.savez(place / "emb.npz", features=rows, labels=labels)
    with h5py.File(place / "emb.h5", "w") as file:
        file["features"] = rows
        file.create_dataset("labels", data=list(labels), dtype=h5py.string_dtype())
    for name in ("emb.npz", "emb.h5"):
        store = only(init(name, "--force").datasets).stores["features"]
        assert (store.train, store.test) == (name, None)
        text = capsys.readouterr().out
        assert "2 classes, 19 training samples, none for validation, 6 for testing" in text
        assert "largest classes    bee 16, ant 3" in text


def test_exact_copies_are_found(place, capsys):
    images(place / "pets/train", {"ant": 6, "bee": 6})
    images(place / "pets/test", {"ant": 2, "bee": 2})
    train, test = place / "pets/train", place / "pets/test"
    shutil.copy(train / "ant/0000.png", train / "bee/copy.png")
    shutil.copy(train / "ant/0001.png", train / "ant/copy.png")
    for file in test.rglob("*.png"):
        Image.fromarray(np.full((9, 9), len(file.name), np.uint8)).save(file)
    shutil.copy(train / "bee/0002.png", test / "bee/0000.png")
    init("pets")
    text = capsys.readouterr().out
    assert "copies under several labels, so at least one is wrong" in text
    assert "pets/train/ant/0000.png = pets/train/bee/copy.png" in text
    assert "copies in training and test" in text and "pets/test/bee/0000.png" in text
    assert "copies among the images of one class and split" in text


def test_files_that_are_no_known_images_are_counted(place, capsys):
    images(place / "pets", {"ant": 3, "bee": 3})
    (place / "pets/ant/a.heic").write_bytes(b"x")
    init("pets")
    assert "files of other kinds are not used: 1 .heic" in capsys.readouterr().out


def test_paths_lead_from_where_the_run_starts(place, monkeypatch):
    images(place / "pets", {"ant": 3, "bee": 3})
    (place / "work").mkdir()
    monkeypatch.chdir(place / "work")
    assert only(init("../pets").datasets).path == str(place / "pets")
    monkeypatch.chdir(place)
    assert only(init(place / "pets").datasets).path == "pets"
    # Another folder of that name under the data root would be found first.
    images(place / "data/pets", {"cow": 3, "dog": 3})
    monkeypatch.setenv("LTPIPE_DATA", str(place / "data"))
    assert only(init("pets", output="other.yaml").datasets).path == str(place / "pets")


@pytest.mark.parametrize("name", ["no", "1e3", "2024", "my pets: #1 'x'"])
def test_any_name_gives_a_file_that_loads(place, name):
    images(place / name, {"yes": 3, "null": 3})
    experiment = init(name, output=f"{name}.yaml")
    assert only(experiment.datasets).path == name


def test_a_file_is_replaced_only_on_request(place, capsys):
    images(place / "pets", {"ant": 3, "bee": 3})
    (place / "mine.yaml").write_text("mine")
    message = refused(capsys, place, "pets")
    assert "mine.yaml exists" in message and "--force" in message
    assert (place / "mine.yaml").read_text() == "mine"
    init("pets", "--force")


def test_a_file_that_would_not_load_is_not_written(place, capsys, monkeypatch):
    from ltpipe.init import writing
    from ltpipe.utils.errors import InputError

    def refuse(*_):
        raise InputError("datasets.mine: no")

    images(place / "pets", {"ant": 3, "bee": 3})
    monkeypatch.setattr(writing, "load_experiment", refuse)
    assert main(["init", "pets", "--output", "mine.yaml"]) == 2
    assert sorted(path.name for path in place.iterdir()) == ["pets"]


def empty(place):
    (place / "pets").mkdir()


def one_class(place):
    images(place / "pets", {"ant": 3})


def loose(place):
    images(place, {"pets": 3})


def empty_class(place):
    images(place / "pets", {"ant": 3, "bee": 0})


def other_classes(place):
    images(place / "pets/train", {"ant": 3, "bee": 3})
    images(place / "pets/test", {"ant": 3, "cow": 3})


def misnamed(place):
    images(place / "pets/training", {"ant": 3, "bee": 3})
    images(place / "pets/valid", {"ant": 3, "bee": 3})


def only_test(place):
    images(place / "pets/test", {"ant": 3, "bee": 3})


def text_file(place):
    (place / "pets").write_text("no data")


def two_training_files(place):
    features(place / "pets/a-train.h5", [3, 3])
    features(place / "pets/b-train.h5", [3, 3])


def no_labels(place):
    features(place / "pets/train.npz", [3, 3], name="targets")
    features(place / "pets/test.npz", [3, 3])


def no_labels_beside(place):
    features(place / "pets/train.npy", [3, 3])
    features(place / "pets/test.npy", [3, 3])
    (place / "pets/test_labels.npy").unlink()


def not_a_number(place):
    rows, labels = features(place / "pets/train.npz", [3, 3])
    rows[4, 2] = np.nan
    np.savez(place / "pets/train.npz", features=rows, labels=labels)
    features(place / "pets/test.npz", [3, 3])


def other_dimensions(place):
    features(place / "pets/train.npz", [3, 3])
    features(place / "pets/test.npz", [3, 3], dimension=4)


def one_label(place):
    features(place / "pets/train.h5", [3])
    features(place / "pets/test.h5", [3])


def gap_in_labels(place):
    features(place / "pets/train.h5", [3, 0, 3])
    features(place / "pets/test.h5", [3, 3, 3])


def unknown_label(place):
    features(place / "pets/train.h5", [3, 3])
    features(place / "pets/test.h5", [3, 3, 3])


def damaged_file(place):
    features(place / "pets/test.h5", [3, 3])
    (place / "pets/train.h5").write_bytes(b"no features")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: None, "pets does not exist"),
        (empty, "pets is empty"),
        (one_class, "1 class folders: at least two are needed"),
        (loose, "holds 3 images but no folders"),
        (empty_class, "bee has no image"),
        (other_classes, "differ in their classes: bee, cow"),
        (misnamed, "rename training as train, valid as val"),
        (only_test, "has a folder test but no folder train"),
        (text_file, "no table (.csv .tsv .parquet), no list file (.txt .lst) and no feature file"),
        (two_training_files, "several files that may be the training one: name one of a-train.h5"),
        (no_labels, "has no array labels or label, only features, targets"),
        (no_labels_beside, "labels are looked for in test_labels.npy"),
        (not_a_number, "features of row 4 are NaN or infinite"),
        (other_dimensions, "train.npz: 6, test.npz: 4"),
        (one_label, "all training samples are of one class (0)"),
        (gap_in_labels, "class 1 (1) has no training sample"),
        (unknown_label, "test labels reach from 0 to 2 but there are 2 classes"),
        (damaged_file, "train.h5 can't be read"),
    ],
)
def test_bad_data(place, capsys, make, message):
    make(place)
    assert message in refused(capsys, place, "pets")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 4], "--size 4: between 8 and 1024 pixels"),
        (["--epochs", 0], "--epochs 0: at least 1"),
        (["--sample", -1], "--sample -1"),
        (["--images", "pets"], "--images belongs to a table or a list file"),
        (["--output", "mine.txt"], "name a .yaml file"),
    ],
)
def test_bad_options(place, capsys, options, message):
    images(place / "pets", {"ant": 3, "bee": 3})
    assert message in refused(capsys, place, "pets", *options)


def test_training_options_are_not_for_embeddings(place, capsys):
    features(place / "pets/train.h5", [3, 3])
    features(place / "pets/test.h5", [3, 3])
    assert "embeddings have no stage one" in refused(capsys, place, "pets", "--epochs", 3)


def test_balanced_images_become_long_tailed_draws(place, capsys):
    images(place / "pets/train", {"ant": 40, "bee": 40})
    images(place / "pets/test", {"ant": 12, "bee": 12})
    experiment = init("pets", "--imbalance", 10, "--draws", 2)
    text = capsys.readouterr().out
    assert "largest classes    ant 40, bee 4" in text and "imbalance          10 " in text
    drawn = [named.settings for named in experiment.datasets.values()]
    assert [(d.subset_seed, d.imbalance, d.draws_of) for d in drawn] == [
        (0, 10, "mine"),
        (1, 10, "mine"),
    ]
    assert {seed for _, _, seed in experiment.jobs} == {0}
    assert only(init("pets", "--imbalance", 4, output="one.yaml").datasets).imbalance == 4
    capsys.readouterr()
    for options in (["--imbalance", 0.5], ["--draws", 3], ["--imbalance", 5, "--draws", 0]):
        assert options[-2] in refused(capsys, place, "pets", *options, output="third.yaml")


@pytest.mark.parametrize(
    ("folder", "classes", "seen"),
    [
        ("tiny-imagenet", ("ant", "bee"), True),
        ("pets", ("n01440764", "n02102040"), True),
        ("pets", ("ant", "bee"), False),
    ],
)
def test_a_network_that_saw_the_images_is_told_of(place, capsys, folder, classes, seen):
    images(place / folder, dict.fromkeys(classes, 3), size=(30, 30))
    experiment = init(folder, "--backbone", "efficientnet-lite0")
    warned = "warning: these images seem to come from ImageNet, on which efficientnet-lite0"
    assert (warned in capsys.readouterr().out) == seen
    assert ("ImageNet" in only(experiment.datasets).note) == seen
