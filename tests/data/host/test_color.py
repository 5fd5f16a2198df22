"""Colour jitter and ThreeAugment against slow NumPy forms on photographs; what they draw."""
import itertools
import math

import numpy as np
from PIL import ImageFilter
import pytest

from tests.data.distances import deviations, kolmogorov
from tests.data.host.tones import TONES, gray
from tests.data.photos import photos
from vit_efficient.data.host import color
from vit_efficient.data.host.color import color_jitter, three_augment


def blurred(x, radius):
    """A true Gaussian, edges continued."""
    reach = math.ceil(5 * radius)
    kernel = np.exp(-np.arange(-reach, reach + 1) ** 2 / (2 * radius ** 2))
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        x = np.apply_along_axis(np.convolve, axis, np.pad(x.astype(float), pad, "edge"),
                                kernel / kernel.sum(), "valid")
    return x


def which(x, out):
    """What was made of `x`."""
    if (out == gray(x)[..., None]).all():
        return "grayscale"
    return "solarize" if (out == np.where(x < 128, x, 255 - x)).all() else "blur"


def test_one_of_three(monkeypatch):
    radii, real = [], ImageFilter.GaussianBlur
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda r: (radii.append(r), real(r))[1])
    image, rng, n = photos()[0].resize((24, 16)), np.random.default_rng(1), 3000
    kinds = [which(np.asarray(image).astype(int), np.asarray(three_augment(image, rng)))
             for _ in range(n)]
    for kind in ("grayscale", "solarize", "blur"):
        assert deviations(kinds.count(kind), n, 1 / 3) < 4
    assert len(radii) == kinds.count("blur")
    assert kolmogorov(radii, lambda r: np.clip((r - 0.1) / 1.9, 0, 1)) < 1.95


@pytest.mark.parametrize("radius", [0.1, 0.8, 1.4, 2.0])
def test_blur_is_a_gaussian(monkeypatch, radius):
    monkeypatch.setattr(color, "BLUR_RADIUS", (radius, radius))
    seed = next(s for s in range(99) if np.random.default_rng(s).random() > 2 / 3)
    for image in photos():
        out = np.asarray(three_augment(image, np.random.default_rng(seed)))
        # Pillow's is three box filters: close to the Gaussian, not equal.
        assert np.abs(out - blurred(np.asarray(image), radius)).mean() < 1.2
        if radius > 0.5:
            assert np.abs(out - np.asarray(image).astype(float)).mean() > 2


def test_jitter_is_its_three_parts():
    names, orders = ("Brightness", "Contrast", "Color"), set()
    for image, seed in itertools.product(photos(), range(20)):
        out = np.asarray(color_jitter(image, np.random.default_rng(seed), strength=0.3))
        draws = np.random.default_rng(seed).random(6)
        order = tuple(np.argsort(draws[3:]))
        expected = np.asarray(image).astype(int)
        for i in order:
            change = (2 * draws[i] - 1) * 0.3                   # TONES' factor is 1 + 0.9 signed
            expected = np.floor(TONES[names[i]](expected, 0, change / 0.9) + 1e-4).astype(int)
        assert np.abs(out - expected).max() <= 2                # one level for two of the roundings
        orders.add(order)
    assert len(orders) > 4


def test_the_distribution_of_jitter(monkeypatch):
    done = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __call__(self, image):
            return self

        def enhance(self, factor):
            done.append((self.name, factor))
    monkeypatch.setattr(color, "ENHANCERS", tuple(map(Recorder, "bcs")))
    rng, n = np.random.default_rng(2), 6000
    for _ in range(n):
        color_jitter("image", rng, strength=0.4)
    for name in "bcs":
        factors = [factor for kind, factor in done if kind == name]
        assert len(factors) == n
        assert kolmogorov(factors, lambda f: np.clip((f - 0.6) / 0.8, 0, 1)) < 1.95
    orders = ["".join(kind for kind, _ in done[3 * i:3 * i + 3]) for i in range(n)]
    for order in map("".join, itertools.permutations("bcs")):
        assert deviations(orders.count(order), n, 1 / 6) < 4


def test_no_strength_changes_nothing():
    out = color_jitter(photos()[0], np.random.default_rng(0), strength=0.0)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(photos()[0]))
