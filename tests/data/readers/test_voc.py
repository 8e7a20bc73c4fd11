import numpy as np
import pytest
from PIL import Image

from ltpipe.data.readers import voc
from ltpipe.utils.errors import InputError
from tests.support import open_source

OPTIONS = {"size": [4, 4], "fit": "stretch", "path": "VOCdevkit/VOC2012"}

# Image: its objects, a star for a difficult one. 2008_000001 ... are for training.
TRAIN = {
    "2008_000001": ["dog", "dog"],
    "2008_000002": ["dog", "person"],
    "2008_000003": ["cat", "person*"],
    "2008_000004": ["bird*"],
    "2008_000005": ["cat", "cat*"],
    "2008_000006": ["aeroplane"],
}
TEST = {
    "2009_000001": ["person"],
    "2009_000002": ["cat", "dog*"],
    "2009_000003": ["dog"],
}
# One class among all objects; among those not difficult; in the list files.
EXPECTED = {
    "objects": {"train": {1: "dog", 4: "bird", 5: "cat", 6: "aeroplane"}, "test": "person dog"},
    "non-difficult": {
        "train": {1: "dog", 3: "cat", 5: "cat", 6: "aeroplane"},
        "test": "person cat dog",
    },
    "image-labels": {"train": {1: "dog", 5: "cat", 6: "aeroplane"}, "test": "person dog"},
}


def annotation(objects):
    """A file like VOC's; a person's parts have names of their own."""
    text = "<annotation>\n\t<folder>VOC2012</folder>\n"
    for number, item in enumerate(objects):
        text += f"\t<object>\n\t\t<name>{item.rstrip('*')}</name>\n"
        if item.endswith("*") or number == 0:
            text += f"\t\t<difficult>{int(item.endswith('*'))}</difficult>\n"
        if item == "person":
            text += "\t\t<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>\n"
        text += "\t</object>\n"
    return text + "</annotation>\n"


def mark(objects, name):
    """A list file's word: 1 if an object is plain, 0 if all are difficult, else -1."""
    return " 1" if name in objects else " 0" if f"{name}*" in objects else "-1"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "VOCdevkit/VOC2012"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, images in (("train", TRAIN), ("val", TEST)):
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{i}\n" for i in images))
        for name in voc.CLASS_NAMES:
            (folder / f"ImageSets/Main/{name}_{split}.txt").write_text(
                "".join(f"{image} {mark(items, name)}\n" for image, items in images.items())
            )
        for image, items in images.items():
            (folder / f"Annotations/{image}.xml").write_text(annotation(items))
            # Twice as wide as high, the left half darker; the level is the image's number.
            picture = np.full((8, 16, 3), 10 * int(image[-1]), np.uint8)
            picture[:, 8:] += 100
            Image.fromarray(picture).save(folder / f"JPEGImages/{image}.jpg", quality=100)
    return tmp_path


def contents(part):
    """Return (number of the image, class) of each image, by what is drawn in it."""
    pixels = part.images.load(np.arange(len(part.images)))
    numbers = np.rint(pixels[:, 0, 0, 0] / 10).astype(int)
    return [
        (number, voc.CLASS_NAMES[label])
        for number, label in zip(numbers.tolist(), part.labels.tolist(), strict=True)
    ]


@pytest.mark.parametrize("variant", EXPECTED)
def test_images_of_one_class(root, variant):
    source = open_source("voc", root, OPTIONS | {"variant": variant})
    assert source.class_names == sorted(voc.CLASS_NAMES)
    assert len(source.class_names) == 20
    assert source.val is None
    assert source.train.labels.dtype == np.int64
    assert contents(source.train) == list(EXPECTED[variant]["train"].items())
    assert [name for _, name in contents(source.test)] == EXPECTED[variant]["test"].split()


def test_images_are_stretched(root):
    source = open_source("voc", root, OPTIONS)
    stretched = source.train.images.load(np.array([0]))[0]
    assert stretched.shape == (4, 4, 3)
    # Both halves of the picture are there, equally wide.
    np.testing.assert_allclose(stretched[:, :, 0].mean(axis=0), [10, 10, 110, 110], atol=15)


def test_published_numbers():
    assert (len(voc.TEST_COUNTS), sum(voc.TEST_COUNTS)) == (20, 3539)
    counts = dict(zip(voc.CLASS_NAMES, voc.TEST_COUNTS, strict=True))
    ranked = sorted(counts, key=counts.get, reverse=True)
    assert ranked[:3] == ["person", "cat", "dog"]
    assert [counts[name] for name in ranked[-2:]] == [48, 13]
    assert ranked[-2:] == ["sofa", "diningtable"]


def test_auto_falls_back_to_objects_and_says_the_numbers(root, capsys):
    source = open_source("voc", root, OPTIONS)
    assert contents(source.train) == list(EXPECTED["objects"]["train"].items())
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "no variant gives the published 3437 training and 3539 test images" in said
    assert "variant objects gives 4 (aeroplane 1, bicycle 0, bird 1," in said
    assert "and 2 (aeroplane 0," in said


@pytest.mark.parametrize("variant", ["non-difficult", "image-labels"])
def test_auto_takes_the_variant_with_the_published_numbers(root, capsys, monkeypatch, variant):
    expected = EXPECTED[variant]
    test = [voc.CLASS_NAMES.index(name) for name in expected["test"].split()]
    monkeypatch.setattr(voc, "TRAIN_IMAGES", len(expected["train"]))
    monkeypatch.setattr(voc, "TEST_COUNTS", tuple(np.bincount(test, minlength=20).tolist()))
    source = open_source("voc", root, OPTIONS | {"variant": "auto"})
    assert contents(source.train) == list(expected["train"].items())
    assert capsys.readouterr().out == ""


def test_list_of_training_images(root, capsys):
    ids = ["2009_000003", "2008_000005", "2008_000002"]
    (root / "ids.txt").write_text("\n".join(ids) + "\n")
    source = open_source("voc", root, OPTIONS | {"ids": "ids.txt"})
    assert contents(source.train) == [(3, "dog"), (5, "cat")]
    # A training image is no test image.
    assert contents(source.test) == [(1, "person")]
    assert capsys.readouterr().out == ""


def test_options(root):
    for options, message in (
        (
            OPTIONS | {"variant": "object"},
            r"unknown value 'object' \(did you mean",
        ),
        (OPTIONS | {"path": "VOC2007"}, "VOC2007 does not exist"),
        (OPTIONS | {"ids": "absent.txt"}, r"absent\.txt does not exist"),
        (OPTIONS | {"fit": "strech"}, "did you mean 'stretch'"),
    ):
        with pytest.raises(InputError, match=message):
            open_source("voc", root, options)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation><object><name>&b;</name></object></annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "declares a document type or an entity"),
        ("<annotation><object>", r"2008_000005\.xml can't be read"),
        ("", r"2008_000005\.xml can't be read"),
        (annotation(["cow", "cats"]), r"'cats' is none of VOC's classes \(did you mean 'cat'\?\)"),
        ("<annotation><object/></annotation>", "'' is none of VOC's classes"),
        (annotation(["cow*"]).replace(">1<", ">2<"), "difficult is '2', not 0 or 1"),
        ("<annotation>" + " " * voc.MAX_XML_BYTES + "</annotation>", "bytes, more than"),
        ("<annotation>\xe9</annotation>", r"2008_000005\.xml can't be read"),
    ],
)
def test_damaged_annotation_is_named(root, text, message):
    path = root / "VOCdevkit/VOC2012/Annotations/2008_000005.xml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        open_source("voc", root, OPTIONS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.txt", None, r"train\.txt can't be read"),
        ("train.txt", "", r"train\.txt is empty"),
        ("train.txt", "2008_000001\n\n", r"train\.txt:2: '' is not an image's id"),
        ("val.txt", "2009_000001\n../x\n", r"val\.txt:2: '\.\./x' is not an image's id"),
        ("val.txt", "2009_000001\n2009_000001\n", r"val\.txt names image 2009_000001 twice"),
        ("cow_train.txt", None, r"cow_train\.txt can't be read"),
        ("cow_val.txt", "2009_000001  1\n2009_000002\n", r"cow_val\.txt:2: .* is not 'image'"),
        ("cow_val.txt", "2009_000001  2\n", r"cow_val\.txt:1: .* is not 'image'"),
    ],
)
def test_damaged_list_is_named_by_line(root, file, text, message):
    path = root / "VOCdevkit/VOC2012/ImageSets/Main" / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        open_source("voc", root, OPTIONS | {"variant": "image-labels"})


def test_missing_files_are_named(root):
    folder = root / "VOCdevkit/VOC2012"
    (folder / "JPEGImages/2009_000003.jpg").unlink()
    with pytest.raises(InputError, match=r"2009_000003\.jpg does not exist"):
        open_source("voc", root, OPTIONS)
    (folder / "Annotations/2009_000002.xml").unlink()
    with pytest.raises(InputError, match=r"2009_000002\.xml can't be read"):
        open_source("voc", root, OPTIONS)


@pytest.mark.realdata
def test_published_list_of_training_images(real_data):
    ids = voc._read_ids(real_data / "splits/VOC_LT2012_img_id.txt")
    assert len(ids) == 1142
    assert ids[0] == "2008_000023"
