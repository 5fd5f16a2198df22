"""Partly decoded JPEG photos against Pillow's pixels, with and without the optional library."""
import io

import numpy as np
from PIL import Image
import pytest

from tests.data.photos import HEIGHT, WIDTH, photo
from vit_efficient.data.host import crops as host, images, jpeg, resize


def encoded(image=None, **options):
    file = io.BytesIO()
    (image or photo()).save(file, "JPEG", **{"quality": 85, **options})
    return file.getvalue()


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(params=["partial", "whole"], autouse=True)
def library(request, monkeypatch):
    if request.param == "whole":
        monkeypatch.setattr(jpeg, "_turbo", lambda: None)
    elif jpeg._turbo() is None:
        pytest.skip("no TurboJPEG 3 on this machine")
    return request.param


@pytest.mark.parametrize("options", [
    dict(subsampling="4:4:4"), dict(subsampling="4:2:2"), dict(subsampling="4:2:0"),
    dict(subsampling="4:2:0", progressive=True), dict(quality=20), dict(gray=True),
    dict(restart_marker_rows=1)])
def test_every_rectangle_has_pillows_pixels(options):
    options = dict(options)
    data = encoded(photo().convert("L") if options.pop("gray", False) else photo(), **options)
    lazy, whole = images.decode(data, "x"), by_pillow(data)
    assert isinstance(lazy, jpeg.Jpeg) and lazy.shape == whole.shape
    np.testing.assert_array_equal(np.asarray(lazy), whole)
    rng = np.random.RandomState(3)
    for _ in range(60):
        (top, bottom), (left, right) = (sorted(rng.choice(side + 1, 2, replace=False))
                                        for side in whole.shape[:2])
        np.testing.assert_array_equal(lazy[top:bottom, left:right], whole[top:bottom, left:right])


def test_only_the_rectangle_is_decoded(library, monkeypatch):
    lazy, decoded = images.decode(encoded(subsampling="4:4:4"), "x"), []
    empty, whole = np.empty, jpeg.simplejpeg.decode_jpeg
    monkeypatch.setattr(jpeg.np, "empty", lambda shape, t: decoded.append(shape) or empty(shape, t))
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg",
                        lambda data: decoded.append(whole(data).shape) or whole(data))
    assert lazy[30:40, 50:60].shape == (10, 10, 3)
    assert decoded == [(14, 14, 3) if library == "partial" else (HEIGHT, WIDTH, 3)]


def test_training_and_evaluation_take_them_as_arrays():
    data = encoded()
    lazy, whole = images.decode(data, "x"), by_pillow(data)
    recipe = dict(crop="random_resized", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5,
                  interpolation="bicubic", eval_crop=1.0)
    for seed in range(10):
        a, b = (host.train(x, 16, np.random.default_rng(seed), **recipe) for x in (lazy, whole))
        np.testing.assert_array_equal(a, b)
    a, b = (host.train(x, 16, np.random.default_rng(0), **recipe | {"crop": "resize"})
            for x in (lazy, whole))
    np.testing.assert_array_equal(a, b)
    a, b = (host.evaluate(x, 32, eval_crop=0.875, interpolation="bicubic") for x in (lazy, whole))
    np.testing.assert_array_equal(a, b)


def test_other_files_are_pillows(monkeypatch):
    png, cmyk = io.BytesIO(), encoded(photo().convert("CMYK"))
    photo().save(png, "PNG")
    for data in (png.getvalue(), cmyk, encoded()[:-2], encoded() + b"\0", b"", b"\xff\xd8\xff\xd9",
                 b"<html>\xff\xd9"):
        assert jpeg.size(data) is None
    np.testing.assert_array_equal(images.decode(cmyk, "x"), by_pillow(cmyk))
    with pytest.raises(images.BadImage, match="name.jpg: no readable image"):
        images.decode(encoded()[:1500], "name.jpg")
    monkeypatch.setattr(jpeg.Image, "MAX_IMAGE_PIXELS", 5000)        # a decompression bomb
    assert jpeg.size(encoded()) is None


def test_damage_that_is_found_late_is_pillows_to_judge(library):
    whole = encoded()
    data = whole[:len(whole) // 2] + b"\xff\xd9"                     # its lower half is missing
    lazy, expected = images.decode(data, "x"), by_pillow(data)
    np.testing.assert_array_equal(lazy[2:75, 3:30], expected[2:75, 3:30])

    def judged(data):
        raise images.BadImage("no image")
    with pytest.raises(images.BadImage):
        jpeg.Jpeg(data, jpeg.size(data), judged)[2:75, 3:30]


def test_many_threads_decode_at_once():
    from concurrent.futures import ThreadPoolExecutor
    data = encoded()
    lazy, whole = images.decode(data, "x"), by_pillow(data)
    recipe = dict(height=20, width=20, interpolation="bilinear")
    expected = resize.resized(whole[5:50, 7:60], **recipe)
    with ThreadPoolExecutor(8) as pool:
        for out in pool.map(lambda _: resize.resized(lazy[5:50, 7:60], **recipe), range(200)):
            np.testing.assert_array_equal(out, expected)
