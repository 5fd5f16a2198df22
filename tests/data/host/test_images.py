"""What the bytes of an image file become: each odd kind of file has one outcome."""
from hypothesis import given, strategies as st
import numpy as np
from PIL import Image
import pytest

from tests.data.image_files import BAD, NOISE, encode
from vit_efficient.data.host.images import BadImage, decode, size

LEVELS = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
GRAY = Image.fromarray(LEVELS)


def test_the_content_counts_and_not_the_name():
    found = decode(encode(NOISE, "PNG"), "n02105855_2933.JPEG")
    np.testing.assert_array_equal(found, np.asarray(NOISE))
    assert found.dtype == np.uint8 and size(encode(NOISE, "PNG"), "x.JPEG") == (40, 60)


@pytest.mark.parametrize("mode,image", {
    "L": GRAY, "LA": Image.merge("LA", [GRAY, Image.new("L", (4, 4), 7)]),
    "RGBA": Image.merge("RGBA", [GRAY] * 3 + [Image.new("L", (4, 4), 7)]),
    "P": GRAY.convert("P"),
    "CMYK": Image.merge("CMYK", [Image.fromarray(255 - LEVELS)] * 3 + [Image.new("L", (4, 4))]),
    "I;16": Image.fromarray(LEVELS.astype(np.uint16) * 256 + 255)}.items())
def test_modes_become_rgb(mode, image):
    assert image.mode == mode
    np.testing.assert_array_equal(decode(encode(image, "TIFF"), ""), np.stack([LEVELS] * 3, -1))


def test_bits_become_black_and_white():
    found = decode(encode(GRAY.convert("1"), "PNG"), "")
    assert found.shape == (4, 4, 3) and set(np.unique(found)) == {0, 255}


def test_cmyk_jpeg_is_not_inverted():
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), v) for v in (10, 200, 30, 40)])
    found = decode(encode(cmyk, "JPEG", quality=100), "")
    expected = [(255 - v) * (255 - 40) / 255 for v in (10, 200, 30)]
    assert np.abs(found - np.array(expected)).max() <= 3


def test_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6                                                 # "turn by 90 degrees"
    data = encode(Image.new("RGB", (10, 4)), "JPEG", exif=exif)
    assert decode(data, "").shape == (4, 10, 3) and size(data, "") == (4, 10)


def test_one_pixel_is_an_image():
    data = encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")
    np.testing.assert_array_equal(decode(data, ""), [[[1, 2, 3]]])


def test_the_first_frame_of_many():
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, "")[0, 0], [255, 0, 0])


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_image_is_bad_and_named(kind):
    data, what = BAD[kind]
    with pytest.raises(BadImage, match=rf"^some/x.jpg: no readable image \(.*{what}"):
        decode(data, "some/x.jpg")


@pytest.mark.parametrize("kind", ["empty", "html"])
def test_headers_tell_that_there_is_no_image(kind):
    with pytest.raises(BadImage, match="^some/x.jpg: no readable image"):
        size(BAD[kind][0], "some/x.jpg")


def test_a_bomb_is_bad(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(encode(NOISE, "PNG"), "")


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_damage_is_an_image_or_bad_and_nothing_else(kind, data):
    image = bytearray(encode(NOISE, kind))
    for place in data.draw(st.lists(st.integers(0, len(image) - 1), min_size=1, max_size=20)):
        image[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(image[:data.draw(st.integers(0, len(image)))]), "x")
    except BadImage:
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
