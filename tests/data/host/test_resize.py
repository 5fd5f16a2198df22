"""The fast resizer against Pillow."""
import numpy as np
from PIL import Image
import pytest

from tests.data.photos import photo
from vit_efficient.data.host import resize


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("height, width", [(224, 224), (16, 16), (33, 90), (1, 1), (77, 97)])
def test_close_to_pillow(interpolation, height, width):
    image = np.asarray(photo())
    out = resize.resized(image, height, width, interpolation)
    expected = resize.pillow_resized(image, height, width, interpolation)
    difference = np.abs(out.astype(int) - expected)
    assert out.shape == (height, width, 3) and out.dtype == np.uint8
    assert difference.mean() < 0.5 and difference.max() <= 24
    # The filters differ by far more from one another, so the right one was taken.
    other = {"bicubic": "bilinear", "bilinear": "bicubic"}[interpolation]
    if (height, width) != (77, 97):
        wrong = resize.pillow_resized(image, height, width, other)
        assert np.abs(out.astype(int) - wrong).mean() > 2 * difference.mean()


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_pillow_is_the_reference_and_the_fallback(name, monkeypatch):
    image = photo()
    expected = np.asarray(image.resize((20, 30), getattr(Image.Resampling, name.upper())))
    np.testing.assert_array_equal(resize.pillow_resized(image, 30, 20, name), expected)
    monkeypatch.setattr(resize, "simd", None)
    np.testing.assert_array_equal(resize.resized(np.asarray(image), 30, 20, name), expected)


def test_a_view_with_gaps_is_read_right():
    image = np.asarray(photo())
    view = image[10:60, 20:80][:, ::-1]
    np.testing.assert_array_equal(resize.resized(view, 24, 24, "bicubic"),
                                  resize.resized(np.ascontiguousarray(view), 24, 24, "bicubic"))
