"""Every operation against slow NumPy loops on photographs; every drawn number's distribution."""
from functools import partial
import math

import numpy as np
from PIL import Image
import pytest
from scipy.stats import norm

from tests.data.distances import deviations, kolmogorov
from tests.data.host.tones import TONES
from tests.data.photos import photos
from vit_efficient.data.host import randaugment
from vit_efficient.data.host.randaugment import FILL, OPERATIONS, rand_augment

LEVELS = [0.0, 0.1, 0.43, 0.9, 0.95, 1.0]
KINDS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def rotation(s, width, height):
    """About the centre, against the clock for a positive angle (the y axis points down)."""
    a = math.radians(30 * s)
    cos, sin, mid, centre = math.cos(a), math.sin(a), width / 2, height / 2
    return lambda x, y: (mid + (x - mid) * cos - (y - centre) * sin,
                         centre + (x - mid) * sin + (y - centre) * cos)


MOVES = {
    "Rotate": rotation,
    "ShearX": lambda s, width, height: lambda x, y: (x + 0.3 * s * y, y),
    "ShearY": lambda s, width, height: lambda x, y: (x, y + 0.3 * s * x),
    "TranslateXRel": lambda s, width, height: lambda x, y: (x + 0.45 * s * width, y),
    "TranslateYRel": lambda s, width, height: lambda x, y: (x, y + 0.45 * s * height),
}


def taps(at, kind):
    """The pixels that Pillow's filter reads about a place, and their weights (bicubic: a = -1)."""
    first = math.floor(at - 0.5)
    d = at - 0.5 - first
    if kind == "bilinear":
        return [(first, 1 - d), (first + 1, d)]
    near = lambda t: 1 - 2 * t * t + t ** 3
    far = lambda t: 4 - 8 * t + 5 * t * t - t ** 3
    return [(first - 1, far(1 + d)), (first, near(d)), (first + 1, near(1 - d)),
            (first + 2, far(2 - d))]


def moved(image, source, kind):
    """Each pixel's centre looked up at `source`, outside the fill."""
    height, width = image.shape[:2]
    out = np.empty(image.shape)
    for i in range(height):
        for j in range(width):
            x, y = source(j + 0.5, i + 0.5)
            if not (0 <= x < width and 0 <= y < height):
                out[i, j] = FILL
                continue
            out[i, j] = sum(
                wy * wx * image[min(max(r, 0), height - 1), min(max(c, 0), width - 1)].astype(float)
                for r, wy in taps(y, kind) for c, wx in taps(x, kind))
    return np.clip(out, 0, 255)


def test_these_are_the_fifteen():
    assert sorted(OPERATIONS) == sorted([*TONES, *MOVES]) and len(OPERATIONS) == 15


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", TONES)
def test_tones(name, level):
    for image in photos():
        for signed in (level, -level):
            expected = TONES[name](np.asarray(image).astype(int), level, signed)
            out = np.asarray(OPERATIONS[name](image, level, signed, None)).astype(int)
            # Pillow blends in float32 and cuts off what is behind the point.
            exact = name not in ("AutoContrast", "Color", "Contrast", "Brightness", "Sharpness")
            assert np.abs(out - expected).max() <= (0 if exact else 1.001)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MOVES)
def test_moves(name, kind):
    image = photos()[0].resize((36, 28))
    for signed in (0.31, -0.9):
        expected = moved(np.asarray(image), MOVES[name](signed, *image.size), kind)
        out = np.asarray(OPERATIONS[name](image, abs(signed), signed, KINDS[kind])).astype(float)
        # A centre that falls on the very edge may round to either side of it.
        differs = (np.abs(out - expected) > 1.01).any(-1)
        assert differs.mean() < 0.002 and (out == FILL).all(-1).any()


def drawn(monkeypatch, magnitude, n=6000, interpolation="random"):
    """What `n` images are told to do: (name, level, signed, filter) of each operation, by image."""
    done = []

    def record(name, image, level, signed, kind):
        done[-1].append((name, level, signed, kind))
        return image
    fakes = {name: partial(record, name) for name in OPERATIONS}
    monkeypatch.setattr(randaugment, "OPERATIONS", fakes)
    rng = np.random.default_rng(11)
    for _ in range(n):
        done.append([])
        assert rand_augment("image", rng, magnitude=magnitude, interpolation=interpolation)
    return done


@pytest.mark.parametrize("magnitude", [0, 1, 4, 9, 10])
def test_the_distribution_of_what_is_drawn(monkeypatch, magnitude):
    images = drawn(monkeypatch, magnitude)
    flat, n = [operation for image in images for operation in image], len(images)
    lengths = np.bincount([len(image) for image in images], minlength=3)
    assert all(deviations(lengths[k], n, p) < 4 for k, p in enumerate((0.25, 0.5, 0.25)))
    names, levels, signed, kinds = zip(*flat)
    for name in OPERATIONS:
        assert deviations(names.count(name), len(flat), 1 / 15) < 4
    pairs = [image for image in images if len(image) == 2]
    assert deviations(sum(a[0] == b[0] for a, b in pairs), len(pairs), 1 / 15) < 4  # replacement
    levels = 10 * np.array(levels)
    assert levels.min() >= 0 and levels.max() <= 10
    inside = levels[(levels > 0) & (levels < 10)]
    low, high = norm.cdf([0, 10], magnitude, 0.5)
    assert kolmogorov(inside, lambda x: (norm.cdf(x, magnitude, 0.5) - low) / (high - low)) < 1.95
    if magnitude in (0, 10):                                        # half of them are clipped
        assert deviations((levels == magnitude).sum(), len(flat), 0.5) < 4
    np.testing.assert_array_equal(np.abs(signed), levels / 10)
    above = np.array(signed)[levels > 0]
    assert deviations((above > 0).sum(), len(above), 0.5) < 4
    assert deviations(kinds.count(KINDS["bicubic"]), len(flat), 0.5) < 4
    # The numbers of one image tell nothing of one another.
    places = np.array([list(OPERATIONS).index(name) for name in names])
    columns = np.stack([places, levels, np.sign(signed), np.array(kinds) == KINDS["bicubic"]])
    seen = np.abs(np.corrcoef(columns[:, levels > 0]))[np.triu_indices(4, 1)]
    assert (seen < 4 / (levels > 0).sum() ** 0.5).all()


@pytest.mark.parametrize("interpolation", KINDS)
def test_the_recipes_filter(monkeypatch, interpolation):
    images = drawn(monkeypatch, 9, 50, interpolation)
    assert {kind for image in images for *_, kind in image} == {KINDS[interpolation]}


def test_operations_follow_one_another():
    image, changed = photos()[1], 0
    for seed in range(30):
        rng, expected = np.random.default_rng(seed), image
        for _ in range(2):
            name, applied = list(OPERATIONS)[int(rng.random() * 15)], rng.random() < 0.5
            if applied:
                level = (3 + 0.5 * randaugment.normal(rng)) / 10
                signed = -level if rng.random() < 0.5 else level
                expected = OPERATIONS[name](expected, level, signed, KINDS["bilinear"])
        out = rand_augment(image, np.random.default_rng(seed), magnitude=3,
                           interpolation="bilinear")
        np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))
        changed += out is not image
    assert changed > 15


def test_normal_numbers():
    rng = np.random.default_rng(5)
    assert kolmogorov([randaugment.normal(rng) for _ in range(20_000)], norm.cdf) < 1.95
