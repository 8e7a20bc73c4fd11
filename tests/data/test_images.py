import io

import numpy as np
import pytest
from PIL import Image

from ltpipe.data import images as module
from ltpipe.data.images import ArrayImages, FileImages
from ltpipe.utils.errors import InputError

RANDOM = np.random.default_rng(0)


def array(n=50, height=10, width=9, channels=3):
    return RANDOM.integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def test_array_images():
    pixels = array()
    images = ArrayImages(pixels)
    assert (len(images), images.shape, images.nbytes(7)) == (50, (10, 9, 3), 7 * 270)
    np.testing.assert_array_equal(images.load(np.array([3, 3, 0])), pixels[[3, 3, 0]])


@pytest.mark.parametrize("bad", [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3, 1))])
def test_array_images_of_another_kind_are_refused(bad):
    with pytest.raises(InputError, match="uint8 is needed"):
        ArrayImages(bad)


def test_file_images_of_the_stored_size_are_read_as_they_are(files):
    paths, pixels = files
    images = FileImages(paths, (10, 10))
    assert (len(images), images.shape, images.nbytes(2)) == (40, (10, 10, 3), 600)
    np.testing.assert_array_equal(images.load(np.array([5, 0, 5])), pixels[[5, 0, 5]])


@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 31), (6, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shorter_side_is_resized_and_the_middle_kept(tmp_path, height, width, interpolation):
    picture = Image.fromarray(array(1, height, width)[0])
    picture.save(tmp_path / "a.png")
    stored = FileImages([tmp_path / "a.png"], (10, 10), interpolation=interpolation)
    short = min(height, width)
    wide, tall = int(width * 10 / short), int(height * 10 / short)
    resized = np.asarray(
        picture.resize((wide, tall), getattr(Image.Resampling, interpolation.upper()))
    )
    top, left = round((tall - 10) / 2), round((wide - 10) / 2)
    np.testing.assert_array_equal(
        stored.load(np.array([0]))[0], resized[top : top + 10, left : left + 10]
    )


@pytest.mark.parametrize(("height", "width"), [(30, 20), (6, 9), (12, 10)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stretched_images_keep_their_edges(tmp_path, height, width, interpolation):
    picture = Image.fromarray(array(1, height, width)[0])
    picture.save(tmp_path / "a.png")
    paths, size = [tmp_path / "a.png"], (12, 10)
    stored = FileImages(paths, size, interpolation=interpolation, fit="stretch")
    expected = picture.resize((10, 12), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(stored.load(np.array([0]))[0], np.asarray(expected))
    # The same aspect ratio leaves nothing to stretch.
    for fit in ("cover", "stretch"):
        same = FileImages(paths, (height, width), interpolation=interpolation, fit=fit)
        np.testing.assert_array_equal(same.load(np.array([0]))[0], np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_8_bit_mode_becomes_rgb_or_grey(tmp_path, mode):
    path = tmp_path / "image.tif"
    picture = Image.fromarray(array(1, 12, 12)[0]).convert(mode)
    picture.save(path)
    for channels, name in ((3, "RGB"), (1, "L")):
        stored = FileImages([path], (12, 12), channels).load(np.array([0]))[0]
        with Image.open(path) as image:
            expected = np.asarray(image.convert(name)).reshape(12, 12, channels)
        np.testing.assert_array_equal(stored, expected)


def _jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b"no image at all", "can't be read"),
        (_jpeg(array(1, 60, 60)[0])[:1500], "truncated"),
    ],
)
def test_damaged_image_is_named(tmp_path, content, message):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken\.jpg.*{message}"):
        FileImages([path], (8, 8)).load(np.array([0]))


def test_truncated_png_and_missing_file_are_named(tmp_path, files):
    broken = tmp_path / "half.png"
    broken.write_bytes(files[0][0].read_bytes()[:200])
    for path in (broken, tmp_path / "absent.png"):
        with pytest.raises(InputError, match=path.name):
            FileImages([path], (8, 8)).load(np.array([0]))


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    Image.new("RGB", (40, 50)).save(path)
    monkeypatch.setattr(module, "MAX_PIXELS", 1999)
    with pytest.raises(InputError, match=r"big\.png has 40 x 50 pixels"):
        FileImages([path], (8, 8)).load(np.array([0]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InputError, match=r"big\.png is too big"):
        FileImages([path], (8, 8)).load(np.array([0]))


def test_16_bit_image_is_refused_rather_than_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"deep\.png has mode I"):
        FileImages([path], (8, 8)).load(np.array([0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 4}, "channels is 4"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"fit": "streched"}, "did you mean 'stretch'"),
        ({"size": (0, 8)}, "image size"),
    ],
)
def test_bad_file_settings(settings, message):
    with pytest.raises(InputError, match=message):
        FileImages([], **{"size": (8, 8)} | settings)
