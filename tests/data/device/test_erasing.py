"""Random erasing against timm's loop: the boxes' distribution, what fills them, what stays."""
from functools import partial
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests.data.distances import deviations, kolmogorov, smirnov
from vit_efficient.data.device.erasing import boxes, erase, noise

H, W, B = 40, 56, 3000


def timm_box(draw):
    """RandomErasing._erase of timm 0.3.2 with its defaults: (top, left, height, width)."""
    for _ in range(10):
        target_area = draw.uniform(0.02, 1 / 3) * H * W
        aspect_ratio = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
        h = int(round(math.sqrt(target_area * aspect_ratio)))
        w = int(round(math.sqrt(target_area / aspect_ratio)))
        if w < W and h < H:
            return draw.randint(0, H - h), draw.randint(0, W - w), h, w
    return None


def box_of(mask):
    """(top, left, height, width) of the one box in bool [H, W]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert mask.sum() == box[2] * box[3]
    return box


def test_boxes_are_timms():
    masks = np.asarray(boxes(jax.random.key(1), (B, H, W)))
    draw = random.Random(3)
    ours = np.array([box_of(mask) for mask in masks])
    theirs = np.array([timm_box(draw) for _ in range(B)])
    for of in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 2], lambda x: x[:, 3],
               lambda x: x[:, 2] * x[:, 3], lambda x: x[:, 2] / x[:, 3],
               lambda x: x[:, 0] / (H - x[:, 2] + 1), lambda x: x[:, 1] / (W - x[:, 3] + 1)):
        assert smirnov(of(ours), of(theirs)) < 1.95
    assert ours[:, 0].min() == 0 and (ours[:, 0] + ours[:, 2]).max() == H
    assert ours[:, 1].min() == 0 and (ours[:, 1] + ours[:, 3]).max() == W


def test_boxes_that_never_fit_are_empty():
    assert not boxes(jax.random.key(0), (50, 1, 1)).any()


def normalised(count):
    return {"image": jnp.full((count, H, W, 3), 7.0), "label": jnp.arange(count)}


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_what_fills_the_box(mode):
    out = erase(normalised(300), jax.random.key(5), probability=0.25, mode=mode)
    image = np.asarray(out["image"])
    erased = (image != 7).any(-1)
    assert deviations(erased.any((1, 2)).sum(), 300, 0.25) < 4
    assert image.dtype == np.float32 and (out["label"] == np.arange(300)).all()
    filled = [x[mask] for x, mask in zip(image, erased) if mask.any()]
    for mask in erased[erased.any((1, 2))]:
        box_of(mask)
    if mode == "const":
        assert not any(x.any() for x in filled)
    elif mode == "rand":
        assert all((x == x[0]).all() for x in filled)
        assert kolmogorov([x[0] for x in filled], norm.cdf) < 1.95
        channels = np.corrcoef(np.stack([x[0] for x in filled]).T)
        assert (abs(channels[np.triu_indices(3, 1)]) < 4 / len(filled) ** 0.5).all()
    else:
        assert kolmogorov(np.concatenate(filled), norm.cdf) < 1.95
        assert len(np.unique(filled[0])) > 0.99 * filled[0].size


def test_noise_is_normal_and_independent():
    z = np.asarray(jax.jit(noise, static_argnums=1)(jax.random.key(1), (8, 32, 40, 3)))
    assert z.dtype == np.float32 and np.isfinite(z).all()
    assert kolmogorov(z, norm.cdf) < 1.95 and 4 < np.abs(z).max() < 5.5
    for image in z:
        assert kolmogorov(image, norm.cdf) < 1.95

    def independent(a, b):
        a, b = a.ravel(), b.ravel()
        for f in (lambda x: x, abs):
            assert abs(np.corrcoef(f(a), f(b))[0, 1]) < 4 / a.size ** 0.5
    for axis in range(4):                               # images, rows, columns, channels
        swapped = np.moveaxis(z, axis, 0)
        independent(swapped[1:], swapped[:-1])
    independent(z, np.asarray(noise(jax.random.key(2), z.shape)))


@pytest.mark.parametrize("probability", [0.0, 0.6, 1.0])
def test_how_many_are_erased(probability):
    make = jax.jit(partial(erase, mode="const", probability=probability))
    image = np.asarray(make(normalised(600), jax.random.key(9))["image"])
    count = (image != 7).any((1, 2, 3)).sum()
    assert count == 600 * probability or deviations(count, 600, probability) < 4


def test_images_are_erased_independently():
    masks = np.asarray(boxes(jax.random.key(4), (400, H, W)))
    corners = np.array([box_of(mask) for mask in masks], float)
    assert len(np.unique(corners, axis=0)) > 380
    neighbours = [np.corrcoef(x[1:], x[:-1])[0, 1] for x in corners.T]
    assert np.abs(neighbours).max() < 4 / 400 ** 0.5
    again = np.asarray(boxes(jax.random.key(4), (400, H, W)))
    np.testing.assert_array_equal(masks, again)
