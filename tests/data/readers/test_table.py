"""Tables of paths and labels: what a CSV, TSV or Parquet file says, and what it may not say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ltpipe.utils.errors import InputError
from tests.support import open_source


@pytest.fixture
def photos(tmp_path):
    """Six photos, of which grey levels tell which is which."""
    for place in range(6):
        Image.new("RGB", (8, 8), (place * 10,) * 3).save(tmp_path / f"Foto {place} ü.png")
    return tmp_path


def opened(folder, name="photos.csv", **options):
    given = {"path": str(folder), "table": str(folder / name), "size": 8, **options}
    return open_source("table", None, given)


def rows(*values):
    return "".join(f"{','.join(row)}\n" for row in values)


def labelled(part):
    levels = part.images.load(np.arange(len(part.labels)))[:, 0, 0, 0]
    return dict(zip((levels // 10).tolist(), part.labels.tolist(), strict=True))


def test_text_labels_splits_and_any_order_of_columns(photos):
    text = rows(
        ("split", "weight", "label", "path"),
        ("train", "1", "Löwe", "Foto 0 ü.png"),
        ("Training", "2", "ant", " Foto 1 ü.png "),
        ("valid", "3", "ant", "Foto 2 ü.png"),
        ("test", "4", "Löwe", "Foto 3 ü.png"),
    )
    (photos / "photos.csv").write_text(text, encoding="utf-8-sig")
    source = opened(photos)
    assert source.class_names == ["Löwe", "ant"]
    assert labelled(source.train) == {0: 0, 1: 1}
    assert labelled(source.val) == {2: 1} and labelled(source.test) == {3: 0}
    assert source.train.paths == ["Foto 0 ü.png", "Foto 1 ü.png"]


def test_numbers_name_classes_by_their_size_and_columns_may_be_called_otherwise(photos):
    pairs = [(f"Foto {place} ü.png", label) for place, label in enumerate(("10", "9", "9"))]
    text = "file\tkind\n" + "".join(f"{file}\t{label}\n" for file, label in pairs)
    (photos / "photos.tsv").write_text(text)
    source = opened(photos, "photos.tsv", path_column="file", label_column="kind")
    assert source.class_names == ["9", "10"] and labelled(source.train) == {0: 1, 1: 0, 2: 0}
    assert source.test is None


def test_parquet_says_the_same(photos):
    table = pd.DataFrame({"path": ["Foto 0 ü.png", "Foto 1 ü.png"], "label": ["b", "a"]})
    table.to_parquet(photos / "photos.parquet", engine="fastparquet")
    source = opened(photos, "photos.parquet")
    assert source.class_names == ["a", "b"] and labelled(source.train) == {0: 1, 1: 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("path,label\n", "is empty: rows of path, label"),
        ("path,lable\nFoto 0 ü.png,a\n", "no column 'label'.*lable"),
        ("path,label\nFoto 0 ü.png\n", "row 1 has 1 fields, the heading 2"),
        ("path,label\nFoto 0 ü.png,a\nFoto 1 ü.png,\n", "row 2 has no label"),
        ("path,label\nelsewhere.png,a\n", "first image of .* does not exist"),
        ("path,label,split\nFoto 0 ü.png,a,eval\n", "split 'eval' of row 1"),
        (
            "path,label,split\nFoto 0 ü.png,a,train\nFoto 1 ü.png,b,test\n",
            "class 'b' has test rows and no train row",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_a_line(text, message, photos):
    (photos / "photos.csv").write_text(text)
    with pytest.raises(InputError, match=message) as found:
        opened(photos)
    assert "\n" not in str(found.value)
