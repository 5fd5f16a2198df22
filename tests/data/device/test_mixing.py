"""Mixup and CutMix against slow loops, and every drawn number's distribution."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta

from tests.data.distances import deviations, kolmogorov, smirnov
from tests.data.photos import photos
from vit_efficient.data.device.mixing import blend, mix, weights

BOTH = dict(mixup=0.8, cutmix=1.0, probability=1.0, switch_probability=0.5)
SIZE, DRAWS = (20, 31), 4000


def draws(n=DRAWS, **options):
    """What pixels and labels keep in many batches: float32 [n, H, W] and [n]."""
    keys = jax.random.split(jax.random.key(7), n)
    return map(np.asarray, jax.jit(jax.vmap(partial(weights, size=SIZE, **BOTH | options)))(keys))


def slow_mix(images, labels, own):
    """Pixel by pixel: what it keeps, and the partner's at the other end of the batch."""
    B, H, W, _ = images.shape
    mixed, share = np.empty(images.shape), own.astype(float).mean()
    for b in range(B):
        for i in range(H):
            for j in range(W):
                lam = float(own[i, j])
                mixed[b, i, j] = lam * images[b, i, j] + (1 - lam) * images[B - 1 - b, i, j]
    return mixed, np.array([share * labels[b] + (1 - share) * labels[B - 1 - b] for b in range(B)])


def batch(dtype):
    image = np.asarray(photos()[0])
    images = np.stack([image[10 * i:10 * i + 20, 20 * i:20 * i + 31] for i in range(4)])
    return {"image": jnp.asarray(images, dtype), "label": jnp.eye(4, 6), "weight": jnp.ones(4)}


@pytest.mark.parametrize("options", [dict(cutmix=0.0), dict(mixup=0.0), dict(probability=0.0)])
def test_images_and_labels(options):
    options, changed = BOTH | options, 0
    for seed in range(4):
        key = jax.random.key(seed)
        own = np.asarray(weights(key, SIZE, **options)[0])
        for dtype in (jnp.uint8, jnp.float32):
            given = batch(dtype)
            out = mix(given, key, **options)
            image, label = slow_mix(np.asarray(given["image"], float), np.eye(4, 6), own)
            assert out["image"].dtype == dtype and out["label"].shape == (4, 6)
            if dtype == jnp.uint8:
                ties = np.abs(image % 1 - 0.5) < 1e-3           # rounded up or down in float32
                np.testing.assert_array_equal(np.where(ties, 0, out["image"]),
                                              np.where(ties, 0, np.rint(image)))
            else:
                np.testing.assert_allclose(out["image"], image, atol=1e-4)
            np.testing.assert_allclose(out["label"], label, atol=1e-6)
            changed += (out["image"] != given["image"]).any()
    assert changed == (8 if options["probability"] else 0)


def test_halves_are_rounded_to_even():
    given = {"image": jnp.array([1, 3, 4, 4], jnp.uint8).reshape(4, 1, 1, 1), "label": jnp.eye(4)}
    out = blend(given, jnp.full((1, 1), 0.5), 0.5)["image"].ravel()
    assert out.dtype == jnp.uint8 and out.tolist() == [2, 4, 4, 2]       # 2.5, 3.5: NumPy's rint


def test_mixup_shares_are_of_a_beta_distribution():
    for alpha in (0.8, 3.0):
        own, share = draws(cutmix=0.0, mixup=alpha)
        assert (own == share[:, None, None]).all()
        assert kolmogorov(share, beta(alpha, alpha).cdf) < 1.95


def timm_box(height, width, share, rng):
    """rand_bbox of timm 0.3.2, line by line: (top, bottom, left, right)."""
    ratio = np.sqrt(1 - share)
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    cy, cx = rng.integers(0, height), rng.integers(0, width)
    return (np.clip(cy - cut_h // 2, 0, height), np.clip(cy + cut_h // 2, 0, height),
            np.clip(cx - cut_w // 2, 0, width), np.clip(cx + cut_w // 2, 0, width))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_cutmix_boxes_are_timms(alpha):
    (own, share), rng = draws(mixup=0.0, cutmix=alpha), np.random.default_rng(0)
    assert set(np.unique(own)) == {0.0, 1.0}
    np.testing.assert_allclose(share, own.mean((1, 2)), rtol=1e-6)
    ours, rows, columns = [], 1 - own.min(2), 1 - own.min(1)
    for mask, row, column in zip(1 - own, rows, columns):
        np.testing.assert_array_equal(mask, np.outer(row, column))      # one box or none
        if mask.any():
            sides = [f(np.flatnonzero(x)) for x in (row, column) for f in (np.min, np.max)]
            assert row.sum() == sides[1] - sides[0] + 1 and column.sum() == sides[3] - sides[2] + 1
            ours.append(sides)
    theirs = [timm_box(*SIZE, rng.beta(alpha, alpha), rng) for _ in range(DRAWS)]
    theirs = np.array([(top, bottom - 1, left, right - 1) for top, bottom, left, right in theirs
                       if top < bottom and left < right])
    assert abs(len(ours) - len(theirs)) < 4 * (2 * DRAWS * 0.1) ** 0.5
    for i in range(4):
        assert smirnov(np.array(ours)[:, i], theirs[:, i]) < 1.95
    area = lambda x: (x[:, 1] - x[:, 0] + 1) * (x[:, 3] - x[:, 2] + 1)
    assert smirnov(area(np.array(ours)), area(theirs)) < 1.95


def test_decisions():
    own, share = draws(probability=0.7, switch_probability=0.3)
    flat = (own == own[:, :1, :1]).all((1, 2))
    mixup = flat & (own[:, 0, 0] < 1)
    assert deviations(mixup.sum(), DRAWS, 0.7 * 0.7) < 4
    # A cut box may have no pixel: int(31 * sqrt(1 - share)) < 2, or int(20 * ...) < 2.
    assert deviations((~flat).sum(), DRAWS, 0.7 * 0.3 * 0.99) < 4
    assert kolmogorov(share[mixup], beta(0.8, 0.8).cdf) < 1.95          # as drawn without the rest
    assert deviations((share == 1).sum(), DRAWS, 0.3 + 0.7 * 0.3 * 0.01) < 4


def test_an_odd_batch_is_refused():
    odd = jax.tree.map(lambda x: x[:3], batch(jnp.uint8))
    with pytest.raises(ValueError, match="batch_size = 3: must be even"):
        mix(odd, jax.random.key(0), **BOTH)


def test_sharded_batches_are_mixed_across_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    given, key = batch(jnp.uint8), jax.random.key(2)
    out = jax.jit(partial(mix, **BOTH))(jax.device_put(given, place), key)
    expected = jax.jit(partial(mix, **BOTH))(given, key)
    jax.tree.map(np.testing.assert_array_equal, out, expected)
